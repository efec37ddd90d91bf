"""Cells over real segments: values of every type, versions, misuse, and memory that somebody else wrote."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import struct
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmd import _core, limits, segment
from shmd.cell import Cell, open_cell
from shmd.errors import (
    CellBusy,
    CellEmpty,
    CellMismatch,
    ClosedError,
    DecodeError,
    EncodeError,
    InvalidOption,
    ShmdError,
)
from tests import failpoint_core

if TYPE_CHECKING:
    from collections.abc import Iterator


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_double)]


class WithPointer(ctypes.Structure):
    _fields_ = [("points", ctypes.POINTER(Point) * 2)]


class Outer(ctypes.Structure):
    _fields_ = [("inner", WithPointer)]


class Quote(msgspec.Struct):
    sym: str
    px: float


@pytest.fixture
def made() -> Iterator[segment.Segment]:
    with segment.create(8192) as made:
        try:
            yield made
        finally:
            segment.remove(made.id)


class TestTypes:
    @pytest.mark.parametrize(
        ("kind", "size", "value"),
        [
            ("<q", None, -5),
            ("<qd3s", None, (1, 2.5, b"abc")),
            ("?", None, True),
            (np.dtype("f8"), None, np.float64(1.5)),
            (np.int32, None, np.int32(-7)),
            (Quote, 64, Quote("ABCD", 101.25)),
        ],
        ids=str,
    )
    def test_reader_gets_what_was_stored(
        self, made: segment.Segment, kind: object, size: int | None, value: object
    ) -> None:
        with open_cell(made.mapping, kind, offset=8, size=size) as writer:
            writer.store(value)
        with (
            segment.attach(made.id, readonly=True) as attached,
            open_cell(attached.mapping, kind, offset=8, size=size) as reader,
        ):
            assert reader.load() == value
            assert type(reader.load()) is type(value)

    def test_reader_gets_a_copy_of_a_structure(self, made: segment.Segment) -> None:
        with open_cell(made.mapping, Point) as cell:
            cell.store(Point(1, 2.5))
            taken = cell.load()
            cell.store(Point(3, 4.5))
            assert (taken.x, taken.y) == (1, 2.5)

    def test_reader_gets_an_array_of_a_dtype_with_a_shape(self, made: segment.Segment) -> None:
        with open_cell(made.mapping, np.dtype((np.float32, (2, 3)))) as cell:
            cell.store([[1, 2, 3], [4, 5, 6]])
            taken = cell.load()
            assert taken.dtype == np.float32
            assert taken.tolist() == [[1, 2, 3], [4, 5, 6]]

    @pytest.mark.parametrize(
        ("kind", "size", "value"),
        [
            ("<h", None, 70_000),
            ("<hh", None, (1,)),
            ("<hh", None, 5),
            (Point, None, (1, 2)),
            (np.dtype((np.int8, 3)), None, [1, 2]),
            (np.int8, None, 300),
            (Quote, 64, "ABCD"),
            (Quote, 16, Quote("long " * 10, 1.0)),
        ],
        ids=str,
    )
    def test_writer_cannot_store_what_is_not_of_the_type(
        self, made: segment.Segment, kind: object, size: int | None, value: object
    ) -> None:
        with open_cell(made.mapping, kind, size=size) as cell, pytest.raises(EncodeError):
            cell.store(value)
        assert bytes(made.buf) == bytes(made.size_bytes)

    @pytest.mark.parametrize(
        ("kind", "size"),
        [
            (Quote, None),
            (Quote, 0),
            (Quote, limits.CELL_SIZE_BYTES_MAX),
            ("<q", 8),
            ("nonsense", None),
            ("", None),
            (f"{limits.CELL_SIZE_BYTES_MAX + 1}s", None),
            (WithPointer, None),
            (Outer, None),
            (np.dtype("O"), None),
            (int, None),
            (None, None),
        ],
        ids=str,
    )
    def test_type_that_cannot_be_is_an_invalid_option(
        self, made: segment.Segment, kind: object, size: int | None
    ) -> None:
        with pytest.raises(InvalidOption) as caught:
            open_cell(made.mapping, kind, size=size)
        assert caught.value.hint

    def test_without_numpy_a_dtype_is_an_invalid_option_and_the_rest_works(self) -> None:
        program = (
            "import sys; sys.modules['numpy'] = None\n"
            "from shmd.cell import open_cell\n"
            "open_cell(bytearray(64), 'q').store(1)\n"
            "open_cell(bytearray(64), int)\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, cwd=failpoint_core.ROOT, check=False
        )
        assert "InvalidOption" in result.stderr
        assert "shmd[numpy]" in result.stderr


class TestCell:
    def test_limits_are_those_of_the_core(self) -> None:
        """limits.py is for everybody, and cannot ask the core."""
        assert limits.CELL_SIZE_BYTES_MAX == _core.CELL_SIZE_MAX

    def test_cell_counts_what_was_stored(self, made: segment.Segment) -> None:
        with open_cell(made.mapping, "<q") as cell:
            assert cell.version == 0
            with pytest.raises(CellEmpty):
                cell.load()
            for number in range(1, 6):
                cell.store(number)
                assert cell.load_versioned() == (number, number)
                assert cell.version == number

    def test_cell_tells_the_bytes_it_takes(self, made: segment.Segment) -> None:
        with open_cell(made.mapping, "<9s") as cell:
            assert (cell.value_size_bytes, cell.size_bytes) == (9, 64)
            cell.store(b"x" * 9)
            assert not any(made.buf[64:])

    def test_neighbours_share_a_segment(self, made: segment.Segment) -> None:
        first: Cell[Any] = open_cell(made.mapping, "<q")
        second: Cell[Any] = open_cell(made.mapping, "<d", offset=first.size_bytes)
        first.store(1)
        second.store(2.5)
        first.store(3)
        assert (first.load(), second.load()) == (3, 2.5)
        first.close()
        second.close()

    @pytest.mark.parametrize("offset", [-8, 4, 8192, 8192 - 40, 2**62])
    def test_place_that_cannot_be_is_an_invalid_option(self, made: segment.Segment, offset: int) -> None:
        with pytest.raises(InvalidOption):
            open_cell(made.mapping, "<q", offset=offset)

    def test_reader_cannot_store(self, made: segment.Segment) -> None:
        with segment.attach(made.id, readonly=True) as attached, open_cell(attached.mapping, "<q") as cell:
            with pytest.raises(TypeError, match="read-only"):
                cell.store(1)
            with pytest.raises(CellEmpty):
                cell.load()

    def test_segment_stays_until_the_cell_is_closed(self, made: segment.Segment) -> None:
        cell = open_cell(made.mapping, "<q")
        with pytest.raises(BufferError):
            made.close()
        cell.close()
        cell.close()
        for use in (cell.load, lambda: cell.store(1), lambda: cell.version):
            with pytest.raises(ClosedError):
                use()
        made.close()

    def test_cell_goes_on_in_a_forked_child(self, made: segment.Segment) -> None:
        with open_cell(made.mapping, "<q") as cell:
            cell.store(1)
            child = multiprocessing.get_context("fork").Process(target=lambda: cell.store(cell.load() + 1))
            child.start()
            child.join()
            assert child.exitcode == 0
            assert cell.load_versioned() == (2, 2)


class TestHostile:
    @pytest.mark.parametrize("at", [0, 8, 16])
    def test_writer_leaves_alone_what_is_no_cell(self, made: segment.Segment, at: int) -> None:
        made.buf[at] = 9
        before = bytes(made.buf)
        with open_cell(made.mapping, "<q") as cell, pytest.raises(CellMismatch):
            cell.store(1)
        assert bytes(made.buf) == before

    def test_cell_of_another_size_is_a_mismatch(self, made: segment.Segment) -> None:
        with open_cell(made.mapping, "<q") as cell, open_cell(made.mapping, "<qq") as other:
            cell.store(1)
            with pytest.raises(CellMismatch):
                other.load()
            with pytest.raises(CellMismatch):
                other.store((1, 2))
            assert cell.load() == 1

    def test_reader_gives_up_on_one_who_pretends_to_store_for_ever(self, made: segment.Segment) -> None:
        with open_cell(made.mapping, "<q") as cell:
            cell.store(1)
            struct.pack_into("<Q", made.buf, 16, 2**63)
            with pytest.raises(CellBusy):
                cell.load()

    def test_writer_gives_up_on_a_lock_that_nobody_releases(self, made: segment.Segment) -> None:
        struct.pack_into("<I", made.buf, 24, 1)
        with open_cell(made.mapping, "<q") as cell, pytest.raises(CellBusy):
            cell.store(1)

    @given(raw=st.binary(max_size=68), length=st.integers(0, 2**32 - 1) | st.integers(0, 64))
    def test_any_bytes_are_a_value_or_a_decode_error(self, raw: bytes, length: int) -> None:
        memory = bytearray(256)
        cell = open_cell(memory, Quote, size=64)
        cell.store(Quote("a", 1.0))
        body = 32 + (cell.version & 1) * 72
        memory[body : body + 72] = (struct.pack("<I", length) + raw).ljust(72, b"\0")[:72]
        with cell, contextlib.suppress(DecodeError):
            assert isinstance(cell.load(), Quote)

    def test_readers_survive_a_process_that_scribbles_over_the_cell(self, made: segment.Segment) -> None:
        """Values, errors of shmd's own, and nothing else; and the loads come to an end."""
        child = multiprocessing.get_context("fork").Process(target=scribble, args=(made.id,))
        child.start()
        try:
            with segment.attach(made.id, readonly=True) as attached, open_cell(attached.mapping, "<20Q") as cell:
                answers: Counter[str] = Counter()
                while answers.total() < 20_000 or len(answers) == 1:  # until it is at work, at least
                    try:
                        cell.load()
                        answers["value"] += 1
                    except ShmdError as error:
                        answers[type(error).__name__] += 1
                assert answers.keys() <= {"value", "CellEmpty", "CellBusy", "CellMismatch"}
        finally:
            child.kill()
            child.join()
            child.close()


def scribble(shmid: int) -> None:
    import random

    with segment.attach(shmid, readonly=False) as attached:
        identity = struct.pack("<Q", 0x314C4543 << 32 | 160)
        while True:
            attached.buf[:8] = random.choice((identity, identity, identity, bytes(8), os.urandom(8)))
            word = random.choice((0, 1, 2, 2**63, 2**64 - 1, random.getrandbits(64)))
            struct.pack_into("<Q", attached.buf, random.randrange(8, 32, 8), word)
            attached.buf[32:192] = os.urandom(160)


def test_readers_of_a_busy_writer_get_whole_values_in_order(made: segment.Segment) -> None:
    """Another process stores as fast as it can; each value carries its number in every word."""
    last = 20_000
    child = multiprocessing.get_context("fork").Process(target=store_numbers, args=(made.id, last))
    child.start()
    seen = 0
    with segment.attach(made.id, readonly=True) as attached, open_cell(attached.mapping, "<100Q") as cell:
        while seen < last:
            try:
                value, version = cell.load_versioned()
            except (CellBusy, CellEmpty):
                continue
            assert set(value) == {version}
            assert version >= seen
            seen = version
    child.join()
    assert child.exitcode == 0
    child.close()


def store_numbers(shmid: int, last: int) -> None:
    with segment.attach(shmid, readonly=False) as attached, open_cell(attached.mapping, "<100Q") as cell:
        for number in range(1, last + 1):
            cell.store((number,) * 100)
