"""What nothing built of these parts can undercut: a bare doorbell, the codec alone, an empty asynchronous step.

The doorbell is two eventfds between two processes, each in its own event loop: ring, and a reader callback that
resolves a future. No record, no codec. It goes through the same harness as a peer, so loop and pinning are the same.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import msgpack

from benchmarks.records import PAYLOADS, Payload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from benchmarks.harness import Work


class EventfdPingPong:
    """Two inherited eventfds. A future and one callback per wake-up: the least an asyncio program can do."""

    def __init__(self, to_far: int, to_near: int) -> None:
        self._to_far, self._to_near = to_far, to_near

    @asynccontextmanager
    async def caller(self, payload: Payload) -> AsyncIterator[Work]:
        with _waiting(self._to_near) as wait:
            ring, bell = os.eventfd_write, self._to_far

            async def call(count: int) -> list[int]:
                times, clock = [], time.perf_counter_ns
                for _ in range(count):
                    begin = clock()
                    ring(bell, 1)
                    await wait()
                    times.append(clock() - begin)
                return times

            yield call

    @asynccontextmanager
    async def answerer(self, payload: Payload) -> AsyncIterator[Work]:
        with _waiting(self._to_far) as wait:
            ring, bell = os.eventfd_write, self._to_near

            async def answer(count: int) -> None:
                for _ in range(count):
                    await wait()
                    ring(bell, 1)

            yield answer


@contextmanager
def open_eventfds(directory: Path) -> Iterator[EventfdPingPong]:
    flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
    bells = [os.eventfd(0, flags), os.eventfd(0, flags)]
    try:
        yield EventfdPingPong(*bells)
    finally:
        for bell in bells:
            os.close(bell)


@contextmanager
def _waiting(bell: int) -> Iterator[Callable[[], asyncio.Future[None]]]:
    loop = asyncio.get_running_loop()
    rung, taken = loop.create_future(), False

    def wake() -> None:
        nonlocal rung, taken
        os.eventfd_read(bell)
        if taken and rung.done():
            rung, taken = loop.create_future(), False
        rung.set_result(None)

    def wait() -> asyncio.Future[None]:
        nonlocal rung, taken
        if taken:
            rung = loop.create_future()
        taken = True
        return rung

    loop.add_reader(bell, wake)
    try:
        yield wait
    finally:
        loop.remove_reader(bell)


async def codec_alone(count: int) -> dict[str, float]:
    """Nanoseconds to pack and to unpack each payload with msgpack.

    Packing with a kept Packer. Unpacking with a kept Unpacker and with ``unpackb``, whichever is faster: that depends
    on the size.
    """
    result = {}
    for payload in PAYLOADS:
        rounds = max(count // (1 + payload.size_bytes // 1024), 1)
        pack = msgpack.Packer().pack
        packed = pack(payload.value)
        result[f"pack {payload.name}"] = _ns_each(rounds, partial(_call, pack, payload.value))
        kept = _ns_each(rounds, partial(_feed_and_unpack, msgpack.Unpacker(max_buffer_size=0), packed))
        result[f"unpack {payload.name}"] = min(kept, _ns_each(rounds, partial(_call, msgpack.unpackb, packed)))
    return result


async def generator_step(count: int) -> dict[str, float]:
    """Nanoseconds of an ``async for`` step over an asynchronous generator that yields None, the countdown included."""

    async def empty() -> AsyncIterator[None]:
        while True:
            yield None

    left = count
    begin = time.perf_counter_ns()
    async for _ in empty():
        left -= 1
        if not left:
            break
    return {"async generator step": (time.perf_counter_ns() - begin) / count}


def _call(function: Callable[[Any], Any], argument: Any, count: int) -> None:
    for _ in range(count):
        function(argument)


def _feed_and_unpack(unpacker: msgpack.Unpacker, packed: bytes, count: int) -> None:
    feed, unpack = unpacker.feed, unpacker.unpack
    for _ in range(count):
        feed(packed)
        unpack()


def _ns_each(count: int, work: Callable[[int], None]) -> float:
    work(count // 10 + 1)
    begin = time.perf_counter_ns()
    work(count)
    return (time.perf_counter_ns() - begin) / count
