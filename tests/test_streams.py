"""Cutting byte streams, and moving them through descriptors without keeping the event loop."""

from __future__ import annotations

import asyncio
import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmd.cli import streams
from shmd.cli.pub import RECORD_COST_BYTES, batches
from shmd.cli.streams import Frames, InputError, InputReader, Lines, OutputWriter, frame

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from pathlib import Path

pytestmark = pytest.mark.both_loops


@pytest.fixture
def pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """Its read end and its write end."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as read_end, open(writer, "wb", buffering=0) as write_end:
        yield read_end, write_end


@st.composite
def pieces_of(draw: st.DrawFn, data: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(st.data(), st.binary(max_size=60).map(lambda text: text.replace(b"\x01", b"\n")))
def test_lines_are_the_same_however_the_stream_is_cut(data: st.DataObject, text: bytes) -> None:
    lines = Lines()
    found = [line for piece in data.draw(pieces_of(text)) for line in lines.feed(piece)] + lines.finish()
    expected = text.split(b"\n")
    assert found == (expected if expected[-1] else expected[:-1])


@given(st.data(), st.lists(st.binary(max_size=20), max_size=6))
def test_frames_are_the_same_however_the_stream_is_cut(data: st.DataObject, records: list[bytes]) -> None:
    frames = Frames()
    pieces = data.draw(pieces_of(b"".join(map(frame, records))))
    assert [record for piece in pieces for record in frames.feed(piece)] == records
    assert frames.finish() == []


def test_frames_refuse_a_stream_that_ends_within_a_record() -> None:
    frames = Frames()
    assert list(frames.feed(frame(b"abc")[:-1])) == []
    with pytest.raises(InputError, match="6 bytes into a record"):
        frames.finish()


def test_lines_and_frames_refuse_what_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "UNIT_BYTES_MAX", 10)
    lines = Lines()
    assert lines.feed(b"x" * 10) == []
    with pytest.raises(InputError, match="more than 10 bytes"):
        lines.feed(b"x")
    with pytest.raises(InputError, match="11 bytes"):
        list(Frames().feed(struct.pack("<I", 11)))


@given(st.lists(st.binary(max_size=300)), st.integers(1, 1000))
def test_batches_keep_all_records_in_order_within_the_limit(payloads: list[bytes], bytes_max: int) -> None:
    found = list(batches(payloads, bytes_max))
    assert [payload for batch in found for payload in batch] == payloads
    for batch in found:
        assert len(batch) == 1 or sum(len(payload) + RECORD_COST_BYTES for payload in batch) <= bytes_max


def test_batches_give_what_came_before_an_error_first() -> None:
    def payloads() -> Iterator[bytes]:
        yield b"1"
        yield b"2"
        raise InputError("line 3")

    found = batches(payloads(), 1000)
    assert next(found) == [b"1", b"2"]
    with pytest.raises(InputError):
        next(found)


async def test_reader_waits_for_a_pipe_and_gives_what_there_is(pipe: tuple[FileIO, FileIO]) -> None:
    reader, writer = pipe
    reading = asyncio.ensure_future(InputReader(reader.fileno()).read())
    await asyncio.sleep(0)
    assert not reading.done()
    writer.write(b"ab")
    assert await reading == b"ab"
    writer.close()
    assert await InputReader(reader.fileno()).read() == b""


async def test_reader_that_is_cancelled_takes_nothing(pipe: tuple[FileIO, FileIO]) -> None:
    reader, writer = pipe
    reading = asyncio.ensure_future(InputReader(reader.fileno()).read())
    await asyncio.sleep(0)
    reading.cancel()
    writer.write(b"ab")
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await InputReader(reader.fileno()).read() == b"ab"


async def test_reader_reads_a_file_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    with (tmp_path / "file").open("rb") as file:
        reader = InputReader(file.fileno())
        assert [await reader.read(), await reader.read()] == [b"abc", b""]


async def test_writer_lets_other_tasks_run_while_the_reader_stalls(pipe: tuple[FileIO, FileIO]) -> None:
    reader, writer = pipe
    data = os.urandom(300_000)
    writing = asyncio.ensure_future(OutputWriter(writer.fileno()).write(data))
    await asyncio.sleep(0)
    assert not writing.done()
    found = bytearray()
    while len(found) < len(data):
        found += await InputReader(reader.fileno()).read()
    await writing
    assert found == data


async def test_writer_raises_once_nobody_reads(pipe: tuple[FileIO, FileIO]) -> None:
    reader, writer = pipe
    reader.close()
    with pytest.raises(BrokenPipeError):
        await OutputWriter(writer.fileno()).write(b"x")


async def test_writer_ends_the_block_when_the_reader_leaves(pipe: tuple[FileIO, FileIO]) -> None:
    async def block() -> None:
        async with OutputWriter(writer.fileno()).while_read():
            reader.close()
            await asyncio.Event().wait()

    reader, writer = pipe
    with pytest.raises(BrokenPipeError):
        await block()


async def test_writer_passes_a_cancellation_of_the_block_on(pipe: tuple[FileIO, FileIO]) -> None:
    async def block() -> None:
        async with OutputWriter(pipe[1].fileno()).while_read():
            await asyncio.Event().wait()

    task = asyncio.ensure_future(block())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
