"""A Unix stream socket with asyncio's StreamReader and StreamWriter, records as length-prefixed msgpack.

Used as it is fastest: the writer hands header and payload over in one ``write`` and drains after each record (which
waits only above the transport's high-water mark, so writes coalesce); the reader takes whatever has come and cuts it
into records, instead of two ``readexactly`` calls a record, and may buffer 1 MiB instead of asyncio's 64 KiB, which
otherwise stops the transport for every large record.
"""

from __future__ import annotations

import asyncio
import struct
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgpack

from benchmarks.records import Payload, check

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from benchmarks.harness import Work

BUFFER_BYTES: Final = 1024 * 1024
_length: Final = struct.Struct("<I")


class _Frames:
    """Records out of a stream: those of one chunk at a time."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._rest = b""

    async def next(self) -> list[Any]:
        """All records that are complete; at least one."""
        unpack = msgpack.unpackb
        values: list[Any] = []
        while not values:
            chunk = await self._reader.read(BUFFER_BYTES)
            if not chunk:
                raise ConnectionResetError("the other end has gone")
            data = self._rest + chunk if self._rest else chunk
            view, at, end = memoryview(data), 0, len(data)
            while end - at >= 4:
                stop = at + 4 + _length.unpack_from(data, at)[0]
                if stop > end:
                    break
                values.append(unpack(view[at + 4 : stop]))
                at = stop
            self._rest = data[at:]
        return values


class UnixStreams:
    def __init__(self, path: str) -> None:
        self._path = path

    @asynccontextmanager
    async def sender(self, payload: Payload) -> AsyncIterator[Work]:
        _, writer = await asyncio.open_unix_connection(self._path, limit=BUFFER_BYTES)
        pack, length = msgpack.Packer().pack, _length.pack
        value = payload.value

        async def send(count: int) -> None:
            for _ in range(count):
                packed = pack(value)
                writer.write(length(len(packed)) + packed)
                await writer.drain()

        yield send
        writer.close()

    @asynccontextmanager
    async def receiver(self, payload: Payload) -> AsyncIterator[Work]:
        async with self._accepted() as accepted:

            async def receive(count: int) -> None:
                frames, _ = await accepted()
                values: list[Any] = []
                while count > 0:
                    values = await frames.next()
                    count -= len(values)
                check(values[-1], payload)

            yield receive

    @asynccontextmanager
    async def caller(self, payload: Payload) -> AsyncIterator[Work]:
        reader, writer = await asyncio.open_unix_connection(self._path, limit=BUFFER_BYTES)
        frames = _Frames(reader)
        pack, length = msgpack.Packer().pack, _length.pack
        value = payload.value

        async def call(count: int) -> list[int]:
            times, clock, reply = [], time.perf_counter_ns, None
            for _ in range(count):
                begin = clock()
                packed = pack(value)
                writer.write(length(len(packed)) + packed)
                (reply,) = await frames.next()
                times.append(clock() - begin)
            check(reply, payload)
            return times

        yield call
        writer.close()

    @asynccontextmanager
    async def answerer(self, payload: Payload) -> AsyncIterator[Work]:
        pack, length = msgpack.Packer().pack, _length.pack
        async with self._accepted() as accepted:

            async def answer(count: int) -> None:
                frames, writer = await accepted()
                for _ in range(count):
                    for value in await frames.next():
                        packed = pack(value)
                        writer.write(length(len(packed)) + packed)

            yield answer

    @asynccontextmanager
    async def _accepted(self) -> AsyncIterator[Callable[[], Awaitable[tuple[_Frames, asyncio.StreamWriter]]]]:
        """Listen; the one connection can be awaited, again and again."""
        connection: asyncio.Future[tuple[_Frames, asyncio.StreamWriter]] = asyncio.get_running_loop().create_future()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection.set_result((_Frames(reader), writer))

        async with await asyncio.start_unix_server(accept, self._path, limit=BUFFER_BYTES):
            yield lambda: asyncio.shield(connection)
            (await connection)[1].close()


@contextmanager
def open_peer(directory: Path) -> Iterator[UnixStreams]:
    yield UnixStreams(str(directory / "stream"))
