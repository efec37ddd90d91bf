"""The benchmarks run end to end and report all that they promise. How fast anything was is not a test's business."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.statistic import Spread, percentile

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[1]
PAYLOADS = ("small", "1 KiB", "64 KiB")
SENDERS = ("shmd publish", "shmd publish_many", "zmq.asyncio", "Unix streams")
CALLERS = ("bare eventfd", "shmd publish", "shmd over FIFOs", "zmq.asyncio", "Unix streams")
FLOORS = {*(f"{side} {payload}" for side in ("pack", "unpack") for payload in PAYLOADS)} | {
    "async generator step",
    "async for step",
}


def _benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def test_benchmarks_measure_every_peer_payload_and_floor_in_one_run(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = _benchmarks("--quick", "--pin", "same", "--json", str(report))
    assert done.returncode == 0, done.stderr
    written: Mapping[str, Any] = json.loads(report.read_text())

    one_way = {("one way", peer, payload) for peer in SENDERS for payload in PAYLOADS}
    round_trip = {("round trip", peer, "small") for peer in CALLERS}
    assert {(row["kind"], row["peer"], row["payload"]) for row in written["pairs"]} == one_way | round_trip
    assert {row["name"] for row in written["floors"]} == FLOORS
    for row in written["pairs"]:
        assert row["placement"] == "same"
        assert len(row["rounds"]) == 2
        assert all(figures["count"] == 300 and figures["seconds"] > 0 for figures in row["rounds"])
        assert all(("p99_ns" in figures) == (row["kind"] == "round trip") for figures in row["rounds"])
    assert all(ns > 0 for row in written["floors"] for ns in row["rounds_ns"])
    assert len(written["goals"]) == 6
    for goal in written["goals"]:
        assert f"{goal['goal']} " in done.stdout
    facts = {"cpu", "cores", "kernel", "python", "packages", "date", "stolen_percent", "others_percent"}
    assert facts <= written["machine"].keys()


def test_benchmarks_say_what_went_wrong_when_a_peer_fails(tmp_path: Path) -> None:
    """A temporary directory too deep for a Unix socket's address: every peer fails to open its end."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    command = [sys.executable, "-m", "benchmarks", "--quick", "--pin", "same", "--peers", "streams"]
    environment = {**os.environ, "TMPDIR": str(deep)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("benchmarks: Unix streams, ")
    assert "Traceback" not in done.stderr
    assert not list(deep.iterdir())


def test_benchmarks_refuse_two_cores_on_one() -> None:
    core = str(min(os.sched_getaffinity(0)))
    command = ["taskset", "-c", core, sys.executable, "-m", "benchmarks", "--quick", "--pin", "split"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "--pin split needs two cores" in done.stderr


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([7], 50, 7), ([1, 2, 3, 4], 50, 2), ([4, 1, 3, 2], 75, 3), (list(range(1, 101)), 99, 99), ([1, 2], 100, 2)],
)
def test_percentile_is_the_least_value_that_so_many_do_not_exceed(
    values: list[float], percent: float, expected: float
) -> None:
    assert percentile(values, percent) == expected


def test_spread_of_ratios_divides_round_by_round() -> None:
    assert Spread.of_ratios([10.0, 40.0, 90.0], [10.0, 20.0, 30.0]) == Spread(1.0, 2.0, 3.0)
