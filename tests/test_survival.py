"""What nobody notices: a daemon that dies in the middle of a transfer, or is restarted again and again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shmd import inventory
from shmd.cli.torture import leaks
from shmd.cli.torture.chaos import Chaos
from shmd.config import instance_id
from shmd.testing.resources import sysvipc
from tests.notifiers import MIXTURES
from tests.shell import TIMEOUT_S, Shell, parse_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shmd.cli.torture.chaos import Mixture
    from shmd.cli.torture.crew import Member
    from shmd.testing import StartDaemon

RECORDS = 200_000
RECORDS_SOAK = 10_000_000
RESTARTS = 20
RESTARTS_SOAK = 500
WARM_RESTARTS = 3
"""After so many, whatever is made once and kept has been made."""
GROWTH_BYTES = 4 * 2**20
"""Of a process's memory, between the third restart and the last: what an allocator may keep."""
PATH = {"PYTHONPATH": str(Path(__file__).parent.parent)}


def test_transfer_goes_on_without_gap_or_double_while_the_daemon_is_killed(
    shmd_start: StartDaemon, soak: bool, record_property: Callable[[str, object], None], notifier: str
) -> None:
    count = RECORDS_SOAK if soak else RECORDS
    daemon = shmd_start()

    def start(what: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.transfer_child", daemon.socket_path, what, str(count), notifier]
        return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent)

    with start("receive") as receiver, start("send") as sender:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == b"half\n"
        daemon.kill()
        shmd_start(instance=daemon.instance, runtime_dir=daemon.runtime_dir)
        output, _ = receiver.communicate()
        assert (sender.wait(), receiver.returncode) == (0, 0)
    account = json.loads(output)
    print(f"longest pause {account['longest_pause_s']:.3f} s")  # noqa: T201
    record_property("longest_pause_s", account["longest_pause_s"])
    assert account["wrong"] == []
    assert account["received"] == count


@pytest.mark.parametrize("notifiers", MIXTURES)
def test_restarts_of_the_daemon_leave_every_process_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, soak: bool, notifiers: Mixture
) -> None:
    """Under load: descriptors and segments are the same after each restart, and memory does not grow."""
    with Chaos(tmp_path_factory.mktemp("c"), 0, notifiers=notifiers) as chaos:
        chaos.begin()
        members = [member for member in chaos.crew.members if member.kind != "daemon"]
        before = [leaks.descriptors(member.process.pid) for member in members]
        daemons = [leaks.descriptors(daemon(chaos).process.pid)]
        memory: list[list[int]] = []
        for restart in range(RESTARTS_SOAK if soak else RESTARTS):
            chaos.act("kill daemon" if restart % 2 else "restart daemon")
            chaos.wait(0.5)  # longer than a daemon stays away
            for member, expected in zip(members, before, strict=True):
                assert until_the_same(member, expected) == expected
            daemons.append(until_as_many(chaos, daemons[0]))
            assert len(segments(chaos)) == 6
            memory.append([resident_bytes(member) for member in [*members, daemon(chaos)]])
        assert daemons == [daemons[0]] * len(daemons)
        grown = [last - warm for last, warm in zip(memory[-1], memory[WARM_RESTARTS], strict=True)]
        assert max(grown) < GROWTH_BYTES, grown
        outcome = chaos.finish()
    assert outcome.ok, [*outcome.broken, *outcome.leaked]


PARTICIPANT = """
import asyncio, sys, shmd
async def main():
    async with shmd.connect(sys.argv[1]) as client:
        if sys.argv[2] == "publish":
            publisher = await client.publisher("t", when_full="wait", lifetime="attached", notifier=sys.argv[3])
            await publisher.wait_for_subscribers(1)
            await publisher.publish(1)
        else:
            subscription = await client.subscribe("t")
            await subscription.get()
        print("ready", flush=True)
        await asyncio.sleep(3600)
asyncio.run(main())
"""


@contextlib.contextmanager
def participants(socket_path: str, notifier: str) -> Iterator[tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]]:
    """A subscriber and a publisher of an attached topic, between which one record has gone; killed at the end."""
    command = [sys.executable, "-c", PARTICIPANT, socket_path]
    with (
        subprocess.Popen(
            [*command, "subscribe", notifier], stdout=subprocess.PIPE, env=os.environ | PATH
        ) as subscriber,
        subprocess.Popen([*command, "publish", notifier], stdout=subprocess.PIPE, env=os.environ | PATH) as publisher,
    ):
        try:
            for process in (subscriber, publisher):
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
            yield subscriber, publisher
        finally:
            subscriber.kill()
            publisher.kill()


def test_shared_memory_is_as_before_when_all_that_use_attached_topics_are_killed(
    shmd_start: StartDaemon, notifier: str
) -> None:
    """Publisher, subscriber and daemon, all at once: of them nothing stays."""
    before = [sysvipc("shm"), sysvipc("sem")]
    daemon = shmd_start()
    with participants(daemon.socket_path, notifier) as processes:
        assert kinds(daemon.instance) == ["ctl", "log", "roster"]
        for pid in (daemon.pid, *(process.pid for process in processes)):
            os.kill(pid, signal.SIGKILL)
        daemon.kill()
    assert [sysvipc("shm"), sysvipc("sem")] == before


def test_attached_topic_is_adopted_while_a_participant_lives(shmd_start: StartDaemon, notifier: str) -> None:
    """The daemon alone is killed: its successor finds topic, slot and publisher in the roster that they kept."""
    daemon = shmd_start()
    shell = Shell(daemon.socket_path)
    with participants(daemon.socket_path, notifier) as processes:
        (before,) = parse_lines(shell.run("stat", "t", "--json"))
        daemon.kill()
        assert kinds(daemon.instance) == ["ctl", "log", "roster"]
        shmd_start(instance=daemon.instance, runtime_dir=daemon.runtime_dir)
        (after,) = parse_lines(shell.run("stat", "t", "--json"))
        assert after == before
        pids = [after["subscribers"][0]["pid"], after["publishers"][0]["pid"]]
        assert pids == [process.pid for process in processes]
    shell.close()


def test_daemon_killed_while_it_makes_an_attached_topic_leaves_what_its_successor_removes(
    shmd_start: StartDaemon,
) -> None:
    """Segments have keys while they are made, so for that long the roster has one, too."""
    before = [sysvipc("shm"), sysvipc("sem")]
    daemon = shmd_start()
    code = PARTICIPANT.replace('"t"', '"t", size="1GiB"')
    command = [sys.executable, "-c", code, daemon.socket_path, "publish", "eventfd"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | PATH) as publisher:
        while not any(found.kind == "roster" and found.stat.key for found in of(daemon.instance)):
            pass
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.kill()
        publisher.kill()
    shmd_start(instance=daemon.instance, runtime_dir=daemon.runtime_dir).stop()
    assert [sysvipc("shm"), sysvipc("sem")] == before


def of(instance: str) -> tuple[inventory.Found, ...]:
    return inventory.take().of(instance_id(instance, os.getuid())).segments


def kinds(instance: str) -> list[str]:
    return sorted(found.kind for found in of(instance))


def daemon(chaos: Chaos) -> Member:
    (found,) = chaos.crew.of_kind("daemon")
    return found


def segments(chaos: Chaos) -> list[str]:
    return leaks.segments(chaos.crew.instance)


def until_the_same(member: Member, expected: list[str]) -> list[str]:
    """Its descriptors, once it has come back to the daemon; or after long enough, whatever they are."""
    deadline = time.monotonic() + TIMEOUT_S
    while (found := leaks.descriptors(member.process.pid)) != expected and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def until_as_many(chaos: Chaos, expected: list[str]) -> list[str]:
    return until_the_same(daemon(chaos), expected)


def resident_bytes(member: Member) -> int:
    pages = int(Path("/proc", str(member.process.pid), "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
