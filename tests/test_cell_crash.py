"""A cell's writer killed at each of its steps: real processes, real SIGKILL. Readers go on with the last value."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from shmd import segment
from shmd.cell import open_cell
from shmd.errors import CellBusy, CellEmpty
from tests import failpoint_core
from tests.cell_child import FORMAT, value

if TYPE_CHECKING:
    from collections.abc import Iterator

OFFSET = 64
AFTER_INDEX = {"cell_stored", "cell_unlocked"}
"""Death at these comes after the one store that counts."""


@pytest.fixture(scope="module")
def cell_failpoints() -> list[str]:
    return [name for name in failpoint_core.names() if name.startswith("cell_")]


@pytest.fixture
def made() -> Iterator[segment.Segment]:
    with segment.create(4096) as made:
        try:
            yield made
        finally:
            segment.remove(made.id)


def start_writer(shmid: int, failpoint: str, action: str, skip: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.cell_child", failpoint, action, skip, shmid, OFFSET]
    return subprocess.Popen([str(part) for part in command], cwd=failpoint_core.ROOT)


@pytest.mark.parametrize("skip", [0, 1, 2, 7])
def test_readers_keep_the_last_value_after_a_death_at_every_failpoint(
    cell_failpoints: list[str], made: segment.Segment, skip: int
) -> None:
    assert len(cell_failpoints) >= 7
    for failpoint in cell_failpoints:
        made.buf[:] = bytes(made.size_bytes)
        child = start_writer(made.id, failpoint, "kill", skip)
        assert child.wait() == -signal.SIGKILL, f"{failpoint}: the writer ended instead of dying there"
        kept = skip + (failpoint in AFTER_INDEX)
        with (
            segment.attach(made.id, readonly=True) as attached,
            open_cell(attached.mapping, FORMAT, offset=OFFSET) as reader,
            open_cell(made.mapping, FORMAT, offset=OFFSET) as next_writer,
        ):
            if kept:
                assert reader.load_versioned() == (value(kept), kept), failpoint
            else:
                with pytest.raises(CellEmpty):
                    reader.load()
            for number in range(kept + 1, kept + 4):
                next_writer.store(value(number))
                assert reader.load_versioned() == (value(number), number), failpoint


@pytest.fixture
def stopped_writer(made: segment.Segment) -> Iterator[subprocess.Popen[bytes]]:
    child = start_writer(made.id, "cell_half_copied", "stop", 3)
    try:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        yield child
    finally:
        child.send_signal(signal.SIGCONT)
        child.kill()
        child.wait()


def test_second_writer_never_stores_beside_one_who_is_only_stopped(
    made: segment.Segment, stopped_writer: subprocess.Popen[bytes]
) -> None:
    with open_cell(made.mapping, FORMAT, offset=OFFSET) as cell:
        assert cell.load() == value(3)
        for _ in range(100):
            with pytest.raises(CellBusy):
                cell.store(value(99))
        assert cell.load_versioned() == (value(3), 3)
        stopped_writer.send_signal(signal.SIGCONT)
        assert stopped_writer.wait() == 0
        assert cell.load_versioned() == (value(20), 20)
        cell.store(value(21))
