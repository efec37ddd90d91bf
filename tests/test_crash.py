"""Death at every failpoint of the core: real processes, real SIGKILL; the others go on by themselves.

The failpoints are asked of the test build, so that a new one is covered by itself. Those of cells, which are no topics,
have a test of their own (test_cell_crash.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from shmd import _core
from tests import failpoint_core
from tests.crash_child import PUBLISHER, SLOT, is_whole, payload
from tests.local_topic import LocalTopic, drain, local_topic

if TYPE_CHECKING:
    from collections.abc import Iterator

ONLY_WAIT = {"append_claimed", "join_announced", "space_armed", "space_marked"}
"""Passed on `wait` topics only."""
ONLY_FIFO = {"reader_marked", "space_marked", "fifo_written", "fifo_cleared"}
"""Passed only where sleepers are woken through FIFOs."""


@pytest.fixture(scope="module")
def all_failpoints() -> list[str]:
    return [name for name in failpoint_core.names() if not name.startswith("cell_")]


def run_child(topic: LocalTopic, failpoint: str, action: str, skip: int) -> subprocess.Popen[bytes]:
    numbers = (topic.capacity, topic.flags, topic.bell)
    ids = (topic.log_segment.id, topic.ctl_segment.id)
    command = [sys.executable, "-m", "tests.crash_child", failpoint, action, skip, *ids, topic.topic_id.hex(), *numbers]
    return subprocess.Popen([str(part) for part in command], cwd=failpoint_core.ROOT, pass_fds=[topic.bell])


def bury(topic: LocalTopic) -> None:
    """What the daemon does for one who died: take its slot back, whichever incarnation, and ring for it."""
    incarnation, *_ = topic.log.slot_stat(SLOT)
    topic.log.slot_release(SLOT, incarnation)
    topic.log.ring_readers(topic.bell)


@pytest.mark.parametrize("wait", [True, False], ids=["wait", "discard-old"])
@pytest.mark.parametrize("skip", [0, 3, 50])
def test_survivors_go_on_after_a_death_at_every_failpoint(
    all_failpoints: list[str], wait: bool, skip: int, notifier: str
) -> None:
    for failpoint in all_failpoints:
        with local_topic(8192, wait=wait, fifo=notifier == "fifo") as topic:
            cursor = topic.cursor(0, tethered=False)
            cursor.seek_start()
            assert cursor.join()
            ear = topic.ear("r0") if notifier == "fifo" else None
            assert cursor.arm()
            child = run_child(topic, failpoint, "kill", skip)
            status = child.wait()
            if status == 0 and not wait and failpoint in ONLY_WAIT:
                continue
            if status == 0 and notifier == "eventfd" and failpoint in ONLY_FIFO:
                continue
            assert status == -signal.SIGKILL, f"{failpoint}: the child ended with {status} instead of dying there"
            bury(topic)
            if ear is not None and cursor.available:
                assert os.read(ear, 1), f"{failpoint}: nobody woke the sleeper"
            check_survivors(topic, cursor, failpoint)


def check_survivors(topic: LocalTopic, cursor: _core.Cursor, failpoint: str) -> None:
    records = drain(cursor)
    appender = topic.appender(publisher=1)
    for number in range(200):
        assert appender.append(payload(number)) > 0, failpoint
        records += drain(cursor)
    appender.close()
    expected = 0
    for record in records:
        expected += record.lost + 1
        assert record.seq == expected, failpoint
        assert is_whole(record.raw), failpoint
        assert record.publisher in (1, PUBLISHER), failpoint
    assert sum(record.publisher == 1 for record in records) == 200, failpoint
    assert topic.log.stat()["last_seq"] == expected


def test_publisher_takes_over_the_lock_of_one_killed_while_holding_it() -> None:
    with local_topic() as topic:
        child = run_child(topic, "append_half_copied", "kill", 5)
        assert child.wait() == -signal.SIGKILL
        appender = topic.appender()
        before = topic.log.stat()["last_seq"]
        assert appender.append(b"next") == before + 1
        stat = topic.log.stat()
        assert (stat["takeovers"], stat["lock_owner_tid"]) == (1, 0)


def test_slow_ringer_does_not_clear_the_mark_of_a_later_sleep() -> None:
    with local_topic(65536, fifo=True) as topic:
        cursor = topic.cursor(0, tethered=False)
        cursor.seek_start()
        assert cursor.join()
        ear = topic.ear("r0")
        assert cursor.arm()
        child = run_child(topic, "fifo_written", "stop", 0)
        try:
            _, status = os.waitpid(child.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            assert os.read(ear, 10) == b"\0"
            assert drain(cursor)
            assert cursor.arm(), "asleep again, before it is done with the sleep before"
        finally:
            child.send_signal(signal.SIGCONT)
        assert child.wait() == 0
        assert os.read(ear, 10)


@pytest.fixture
def stopped_in_the_lock() -> Iterator[tuple[LocalTopic, subprocess.Popen[bytes]]]:
    with local_topic() as topic:
        child = run_child(topic, "append_locked", "stop", 5)
        try:
            _, status = os.waitpid(child.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            yield topic, child
        finally:
            child.send_signal(signal.SIGCONT)
            child.kill()
            child.wait()


def test_publisher_never_takes_the_lock_of_one_who_is_only_stopped(
    stopped_in_the_lock: tuple[LocalTopic, subprocess.Popen[bytes]],
) -> None:
    topic, child = stopped_in_the_lock
    appender = topic.appender()
    for _ in range(1000):
        assert appender.append(b"x") == _core.BUSY
    assert topic.log.stat()["lock_owner_tid"] == child.pid
    child.send_signal(signal.SIGCONT)
    assert child.wait() == 0
    assert appender.append(b"x") > 0
    assert topic.log.stat()["takeovers"] == 0


def test_production_build_has_no_failpoints() -> None:
    assert _core.failpoints() == ()
    with pytest.raises(ValueError, match="append_locked"):
        _core.failpoint_set("append_locked", "kill")
