"""ZeroMQ with ``zmq.asyncio`` over ipc: PUSH/PULL one way, PAIR for the round trip.

Flow control is ZeroMQ's own high-water mark (1,000 messages, its default): PUSH waits when it is reached, and nothing
is lost. Messages are copied, as pyzmq does unless told otherwise: up to 64 KiB that is the faster way here.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import msgpack
import zmq
import zmq.asyncio

from benchmarks.records import Payload, check

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from benchmarks.harness import Work


class ZmqAsyncio:
    def __init__(self, address: str) -> None:
        self._address = address

    @asynccontextmanager
    async def sender(self, payload: Payload) -> AsyncIterator[Work]:
        with zmq.asyncio.Context() as context, context.socket(zmq.PUSH) as socket:
            socket.connect(self._address)
            pack = msgpack.Packer().pack
            value = payload.value

            async def send(count: int) -> None:
                for _ in range(count):
                    await socket.send(pack(value))

            yield send

    @asynccontextmanager
    async def receiver(self, payload: Payload) -> AsyncIterator[Work]:
        with zmq.asyncio.Context() as context, context.socket(zmq.PULL) as socket:
            socket.bind(self._address)
            unpack = msgpack.unpackb

            async def receive(count: int) -> None:
                value = None
                for _ in range(count):
                    value = unpack(await socket.recv())
                check(value, payload)

            yield receive

    @asynccontextmanager
    async def caller(self, payload: Payload) -> AsyncIterator[Work]:
        with zmq.asyncio.Context() as context, context.socket(zmq.PAIR) as socket:
            socket.connect(self._address)
            pack, unpack = msgpack.Packer().pack, msgpack.unpackb
            value = payload.value

            async def call(count: int) -> list[int]:
                times, clock, reply = [], time.perf_counter_ns, None
                for _ in range(count):
                    begin = clock()
                    await socket.send(pack(value))
                    reply = unpack(await socket.recv())
                    times.append(clock() - begin)
                check(reply, payload)
                return times

            yield call

    @asynccontextmanager
    async def answerer(self, payload: Payload) -> AsyncIterator[Work]:
        with zmq.asyncio.Context() as context, context.socket(zmq.PAIR) as socket:
            socket.bind(self._address)
            pack, unpack = msgpack.Packer().pack, msgpack.unpackb

            async def answer(count: int) -> None:
                for _ in range(count):
                    await socket.send(pack(unpack(await socket.recv())))

            yield answer


@contextmanager
def open_peer(directory: Path) -> Iterator[ZmqAsyncio]:
    yield ZmqAsyncio(f"ipc://{directory}/zmq")
