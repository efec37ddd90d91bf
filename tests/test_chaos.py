"""Publishers, subscribers and the daemon under load, killed, stopped and restarted at random; then the account."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from shmd.cli.torture.chaos import Chaos, Outcome
from shmd.cli.torture.command import SESSION_ROUNDS
from tests.shell import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROUNDS = 20
ROUNDS_CI = 60
ROUNDS_SOAK = 2000


@pytest.fixture
def rounds(soak: bool) -> int:
    return ROUNDS_SOAK if soak else ROUNDS_CI if os.environ.get("CI") else ROUNDS


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("c")  # a socket's path must be short


def run(chaos: Chaos, rounds: int) -> Outcome:
    with chaos:
        chaos.begin()
        for _ in range(rounds):
            chaos.wait(chaos.gap_s())
            chaos.step()
        return chaos.finish()


def test_survivors_of_chaos_lose_nothing_and_nothing_is_left(
    place: Path, rounds: int, random_seed: int, record_property: Callable[[str, object], None]
) -> None:
    total = Outcome(random_seed)
    for session in range(-(-rounds // SESSION_ROUNDS)):
        directory = place / str(session)
        directory.mkdir()
        total.add(run(Chaos(directory, random_seed + session), min(rounds, SESSION_ROUNDS)))
        assert total.ok, "\n".join([f"seed {random_seed + session}: {total}", *total.broken, *total.leaked])
    print(f"{total}; {total.received} received; longest pause {total.pause_s:.3f} s")  # noqa: T201
    record_property("longest_pause_s", total.pause_s)
    assert total.kills > 0
    assert total.received > 0


@pytest.mark.parametrize("act", ["kill all", "kill daemon", "restart daemon", "kill publisher", "kill subscriber"])
def test_everybody_survives_what_happens_twice_in_a_row(place: Path, act: str) -> None:
    """The second time it meets a crew that is just recovering from the first."""
    with Chaos(place, 0) as chaos:
        chaos.begin()
        for _ in range(2):
            chaos.act(act)  # type: ignore[arg-type]
            chaos.wait(chaos.gap_s())
        outcome = chaos.finish()
    assert outcome.ok, [*outcome.broken, *outcome.leaked]


def test_chaos_notices_a_log_that_somebody_wrote_into(place: Path) -> None:
    """The account can fail: a subscriber claims to have got what nobody published."""
    with Chaos(place, 0) as chaos:
        chaos.begin()
        (subscriber, *_) = chaos.crew.of_kind("subscriber")
        assert subscriber.orders is not None
        with subscriber.orders.log_path.open("ab") as log:
            log.write(b"R torture.wait 1000000 1 1 1000000 0 0 0\n")
        outcome = chaos.finish()
    assert not outcome.ok
    assert any(what.startswith("invented on torture.wait") for what in outcome.broken)


class TestTorture:
    def torture(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "shmd", "torture", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def test_torture_ends_with_its_account(self) -> None:
        output, errors = self.torture("--rounds", "3", "--seed", "7").communicate(timeout=TIMEOUT_S)
        assert errors == b""
        lines = output.decode().splitlines()
        assert lines[0].startswith("seed 7: 1 rounds")
        assert lines[-1].endswith(" kills, 0 lost, 0 torn, 0 leaked")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_torture_leaves_nothing_when_it_is_interrupted(self, number: signal.Signals) -> None:
        """Ctrl-C ends it early, with its account; SIGTERM ends it at once."""
        with self.torture("--duration", "1h") as process:
            assert process.stdout is not None
            process.stdout.readline()  # the first round is over
            process.send_signal(number)
            output, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == (0 if number == signal.SIGINT else 128 + number)
        assert output.decode().endswith(" leaked\n") == (number == signal.SIGINT)
