"""Standard input and output beside an event loop, and what a stream of bytes is cut into.

A descriptor may be a pipe, a socket, a terminal or a file. O_NONBLOCK is no way out: it belongs to the open file, which
the shell and other programs share. So pipes and their like are asked first whether they would block (poll), and those
that would are left to the loop to watch; a file never says no, only waits for its disk, so it is read in a thread.
A pipe that is ready takes at least PIPE_BUF bytes: that much is written at a time, and a reader that stalls cannot keep
Ctrl-C out.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import stat
import struct
from typing import TYPE_CHECKING, Final

from shmd.errors import ShmdError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

READ_BYTES: Final = 256 * 1024
"""Of one read: four times a pipe's default capacity, and small beside a file's cache."""
UNIT_BYTES_MAX: Final = 256 * 1024 * 1024
"""One line or one raw record: beyond this, it is no line but a mistake."""

_LENGTH: Final = struct.Struct("<I")


class InputError(ShmdError):
    """What came on standard input cannot be published; the message says where it stands."""

    code = "input"


class InputReader:
    """Reads a descriptor as its bytes come."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._is_file = not _can_be_watched(fd)

    async def read(self) -> bytes:
        """What is there now, after waiting for it to be something; empty at the end. A cancelled read takes nothing."""
        if self._is_file:
            return await asyncio.to_thread(os.read, self._fd, READ_BYTES)
        while not self._poll.poll(0):
            await _watch(self._fd, write=False)
        return os.read(self._fd, READ_BYTES)


class OutputWriter:
    """Writes a descriptor as its reader takes it. BrokenPipeError once nobody reads."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._is_file = not _can_be_watched(fd)

    async def write(self, data: bytes) -> None:
        """All of ``data``, in order. If cancelled, some of it."""
        view = memoryview(data)
        while view:
            while not self._is_file and not self._poll.poll(0):
                await _watch(self._fd, write=True)
            view = view[os.write(self._fd, view if self._is_file else view[: select.PIPE_BUF]) :]

    @contextlib.asynccontextmanager
    async def while_read(self) -> AsyncIterator[None]:
        """Ends the block with BrokenPipeError as soon as nobody can read any more, also if nothing is being written."""
        task = asyncio.current_task()
        if task is None or not stat.S_ISFIFO(os.fstat(self._fd).st_mode):
            yield
            return
        loop = asyncio.get_running_loop()
        reader_left = False

        def end() -> None:
            nonlocal reader_left
            loop.remove_reader(self._fd)
            reader_left = True
            task.cancel()

        loop.add_reader(self._fd, end)  # nothing can be read from a pipe's write end: only its error can come
        try:
            yield
        except asyncio.CancelledError:
            if reader_left and task.uncancel() == 0:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
            raise
        finally:
            loop.remove_reader(self._fd)


class Lines:
    """Cuts a byte stream into lines, whatever the pieces it comes in. Time is linear also for a very long line."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes, without their ends."""
        cut = data.rfind(b"\n") + 1
        if not cut:
            self._keep(data)
            return []
        lines = b"".join([*self._pieces, data[: cut - 1]]).split(b"\n")
        self._pieces, self._size = [], 0
        self._keep(data[cut:])
        return lines

    def finish(self) -> list[bytes]:
        """The last line, if the stream ended without ending it."""
        rest = b"".join(self._pieces)
        self._pieces, self._size = [], 0
        return [rest] if rest else []

    def _keep(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > UNIT_BYTES_MAX:
            raise InputError(f"a line of more than {UNIT_BYTES_MAX} bytes", "end each record with a newline")
        if data:
            self._pieces.append(data)


class Frames:
    """Cuts a byte stream into records, each after its length as four bytes, little-endian."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The records that ``data`` completes. To be taken before the next is fed."""
        self._buffer += data
        position = 0
        while position + _LENGTH.size <= len(self._buffer):
            (length,) = _LENGTH.unpack_from(self._buffer, position)
            if length > UNIT_BYTES_MAX:
                raise InputError(
                    f"a record said to be {length} bytes long", "--raw takes a 4-byte length, then the bytes"
                )
            end = position + _LENGTH.size + length
            if end > len(self._buffer):
                break
            yield bytes(self._buffer[position + _LENGTH.size : end])
            position = end
        del self._buffer[:position]

    def finish(self) -> list[bytes]:
        """Nothing, if the stream ended after a record."""
        if self._buffer:
            raise InputError(
                f"the input ends {len(self._buffer)} bytes into a record", "its writer died, or it is not raw"
            )
        return []


def frame(payload: bytes) -> bytes:
    """``payload`` after its length: what ``Frames`` takes."""
    return _LENGTH.pack(len(payload)) + payload


def _can_be_watched(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or (stat.S_ISCHR(mode) and os.isatty(fd))


async def _watch(fd: int, *, write: bool) -> None:
    loop = asyncio.get_running_loop()
    add, remove = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    ready = loop.create_future()

    def set_ready() -> None:
        if not ready.done():
            ready.set_result(None)

    add(fd, set_ready)
    try:
        await ready
    finally:
        remove(fd)
