"""The demo: that its account adds up, that it ends, and that its parts compute what they say."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmd.cli.demo.board import Board
from shmd.cli.demo.latency import Latencies
from shmd.cli.demo.procfs import process, samples
from shmd.cli.demo.publisher import BATCH_RECORDS_MAX, Pace
from shmd.cli.demo.reports import Received, Sent
from tests.shell import TIMEOUT_S, Shell

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def demo_shell() -> Iterator[Shell]:
    """Runs ``shmd`` where there is no daemon."""
    with tempfile.TemporaryDirectory() as directory:
        shell = Shell("", {"TMPDIR": directory})
        yield shell
        shell.close()
        assert not os.listdir(directory)


class TestDemo:
    def test_demo_accounts_for_every_record(self, demo_shell: Shell) -> None:
        account = json.loads(demo_shell.run("demo", "--duration", "2s", "--json"))
        assert account["exact"]
        assert account["sent"] > 1000
        received = {entry["name"]: (entry["received"], entry["lost"]) for entry in account["subscribers"]}
        assert received.keys() == {"fast-1", "fast-2", "slow"}
        assert {count + lost for count, lost in received.values()} == {account["sent"]}
        assert received["slow"][1] > 0

    def test_demo_goes_as_fast_as_it_can_if_told(self, demo_shell: Shell) -> None:
        account = json.loads(demo_shell.run("demo", "--duration", "1s", "--rate", "0", "--json"))
        assert account["exact"]

    def test_demo_without_a_terminal_prints_lines_and_a_summary(self, demo_shell: Shell) -> None:
        lines = demo_shell.run("demo", "--duration", "1s", "--rate", "500").splitlines()
        assert all("sent" in line for line in lines[:-3])
        assert [line.split(":")[0] for line in lines[-4:]] == ["publisher", "fast-1", "fast-2", "slow"]
        assert all(line.endswith("every record accounted for") for line in lines[-3:])

    def test_demo_on_a_terminal_shows_a_table_and_a_summary(self, demo_shell: Shell) -> None:
        ours, theirs = os.openpty()
        demo = demo_shell.start("demo", "--duration", "1s", stdout=theirs)
        os.close(theirs)
        shown = b""
        # EIO comes when nobody has the other end open any more.
        with open(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):
            while part := terminal.read(4096):
                shown += part
        assert demo.wait(TIMEOUT_S) == 0
        assert b"per s" in shown
        assert shown.count(b"every record accounted for") == 3

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_demo_finishes_its_account_when_interrupted(self, demo_shell: Shell, number: int) -> None:
        demo = demo_shell.start("demo", "--duration", "1h")
        assert demo.stdout is not None
        while b"slow: " not in demo.stdout.readline():
            pass
        demo.send_signal(number)
        output, errors = demo.communicate(timeout=TIMEOUT_S)
        assert (demo.returncode, errors) == (128 + number, b"")
        assert output.count(b"every record accounted for") == 3

    def test_demo_ends_when_its_reader_leaves(self, demo_shell: Shell) -> None:
        demo = demo_shell.start("demo", "--duration", "1h")
        assert demo.stdout is not None
        demo.stdout.readline()
        demo.stdout.close()
        assert demo.wait(TIMEOUT_S) == 128 + signal.SIGPIPE

    def test_demo_fails_in_one_line_if_one_of_its_processes_dies(self, demo_shell: Shell) -> None:
        demo = demo_shell.start("demo", "--duration", "1h")
        assert demo.stdout is not None
        while b"slow: " not in demo.stdout.readline():
            pass
        children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
        subprocess.run(["kill", "-KILL", children[0]], check=True)
        _, errors = demo.communicate(timeout=TIMEOUT_S)
        assert demo.returncode == 1
        assert errors.decode() == "shmd: the process fast-1 ended with status -9\n"


class TestBoard:
    @pytest.mark.parametrize(("received", "lost", "exact"), [(7, 3, True), (7, 2, False), (8, 3, False)])
    def test_board_says_whether_the_account_adds_up(self, received: int, lost: int, exact: bool) -> None:
        board = Board("pub", ["sub"])
        board.add(Sent("pub", 10, final=True), 1.0)
        assert not board.complete
        board.add(Received("sub", received, lost, 1, 2, 3, final=True), 1.0)
        assert board.complete
        assert board.account()["exact"] is exact
        assert ("DOES NOT ADD UP" in board.summary()[1]) is not exact

    def test_board_without_a_last_word_does_not_add_up(self) -> None:
        board = Board("pub", ["sub"])
        board.add(Sent("pub", 10, final=True), 1.0)
        board.add(Received("sub", 10, 0, 1, 2, 3), 1.0)
        assert not board.account()["exact"]

    def test_board_takes_rates_from_its_last_reports(self) -> None:
        board = Board("pub", [])
        for second in range(20):
            board.add(Sent("pub", second * second), float(second))
        assert "34/s" in board.line()  # (19² - 15²) / 4


class TestLatencies:
    @given(st.lists(st.integers(0, 2**62), min_size=1), st.sampled_from([1.0, 50.0, 99.0, 100.0]))
    def test_latencies_give_percentiles_to_a_sixteenth(self, values: list[int], percent: float) -> None:
        latencies = Latencies()
        for value in values:
            latencies.add(value)
        exact = next(v for n, v in enumerate(sorted(values), 1) if n >= len(values) * percent / 100)
        assert exact <= latencies.percentile_ns(percent) <= exact * 17 / 16
        assert latencies.max_ns == max(values)

    def test_latencies_take_a_negative_one_as_none(self) -> None:
        latencies = Latencies()
        latencies.add(-5)
        assert latencies.percentile_ns(50) == 0

    def test_latencies_without_values_are_none(self) -> None:
        assert Latencies().percentile_ns(99) == 0


class TestPace:
    def test_pace_is_due_at_its_rate(self) -> None:
        pace = Pace(1000.0, 5.0)
        assert pace.due(5.0, 0) == 1
        assert pace.due(5.0, 1) == 0
        assert pace.due(5.0205, 1) == 20
        assert pace.wait_s(5.0, 10) == pytest.approx(0.01)

    def test_pace_that_fell_behind_catches_up_in_batches(self) -> None:
        assert Pace(1000.0, 0.0).due(60.0, 0) == BATCH_RECORDS_MAX

    def test_pace_of_zero_is_always_due(self) -> None:
        assert Pace(0.0, 0.0).due(0.0, 10**9) == BATCH_RECORDS_MAX


class TestSamples:
    def test_samples_cover_the_host_and_this_process(self) -> None:
        found = list(islice(samples(), 2000))
        assert {"processor", "memory", "interface", "process"} <= {sample["kind"] for sample in found}
        assert os.getpid() in {sample.get("pid") for sample in found}

    def test_process_takes_names_with_parentheses_and_spaces(self) -> None:
        fields = ["S", "1", *["0"] * 9, "250", "50", *["0"] * 4, "3", *["0"] * 3, "7", *["0"] * 20]
        sample = process(f"42 (a) (b c)) {' '.join(fields)}")
        assert (sample["pid"], sample["name"], sample["state"], sample["parent"]) == (42, "a) (b c)", "S", 1)
        assert (sample["threads"], sample["resident_bytes"] % 7) == (3, 0)
