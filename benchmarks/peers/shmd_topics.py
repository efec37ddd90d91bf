"""shmd through its public API: a `wait` topic, so that nothing is lost, and a second one for the answers.

The daemon is ``python -m shmd serve`` in a directory of its own. It is not pinned, and has nothing to do once both ends
have opened their topics.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, ClassVar, Final

from benchmarks.harness import BenchmarkError, Work
from benchmarks.records import Payload, check
from shmd import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from shmd import Client, Publisher
    from shmd.protocol import Notifier

TOPIC_SIZE: Final = "4MiB"
BATCH_RECORDS: Final = 256
BATCH_BYTES: Final = 256 * 1024
START_TIMEOUT_S: Final = 20.0

_numbers: Final = itertools.count(1)


class ShmdTopics:
    """``await publisher.publish(value)`` for each record; ``async for record in subscription`` at the other end."""

    notifier: ClassVar[Notifier] = "eventfd"

    def __init__(self, socket_path: Path, name: str) -> None:
        self._socket_path = socket_path
        self._there, self._back = f"{name}.there", f"{name}.back"

    @asynccontextmanager
    async def sender(self, payload: Payload) -> AsyncIterator[Work]:
        async with connect(self._socket_path) as client, client.publisher(self._there) as publisher:
            await publisher.wait_for_subscribers(1)
            yield self._send(publisher, payload)

    @asynccontextmanager
    async def receiver(self, payload: Payload) -> AsyncIterator[Work]:
        async with (
            connect(self._socket_path) as client,
            _topic(client, self._there, self.notifier),
            client.subscribe(self._there) as subscription,
        ):

            async def receive(count: int) -> None:
                value, left = None, count
                async for record in subscription:
                    value = record.value
                    left -= 1
                    if not left:
                        break
                check(value, payload)

            yield receive

    @asynccontextmanager
    async def caller(self, payload: Payload) -> AsyncIterator[Work]:
        async with (
            connect(self._socket_path) as client,
            client.publisher(self._there) as publisher,
            client.subscribe(self._back) as subscription,
        ):
            await publisher.wait_for_subscribers(1)
            value = payload.value

            async def call(count: int) -> list[int]:
                times, clock, reply = [], time.perf_counter_ns, None
                for _ in range(count):
                    begin = clock()
                    await publisher.publish(value)
                    reply = (await subscription.get()).value
                    times.append(clock() - begin)
                check(reply, payload)
                return times

            yield call

    @asynccontextmanager
    async def answerer(self, payload: Payload) -> AsyncIterator[Work]:
        async with (
            connect(self._socket_path) as client,
            _topic(client, self._there, self.notifier),
            _topic(client, self._back, self.notifier),
            client.publisher(self._back) as publisher,
            client.subscribe(self._there) as subscription,
        ):

            async def answer(count: int) -> None:
                for _ in range(count):
                    await publisher.publish((await subscription.get()).value)

            yield answer

    def _send(self, publisher: Publisher[object], payload: Payload) -> Work:
        value = payload.value

        async def send(count: int) -> None:
            for _ in range(count):
                await publisher.publish(value)

        return send


class ShmdTopicsOverFifos(ShmdTopics):
    """The same with FIFOs to wake who sleeps."""

    notifier = "fifo"


class ShmdTopicsInBatches(ShmdTopics):
    """The same with ``publish_many``, up to 256 records or 256 KiB at a time."""

    def _send(self, publisher: Publisher[object], payload: Payload) -> Work:
        batch = [payload.value] * max(min(BATCH_RECORDS, BATCH_BYTES // payload.size_bytes), 1)

        async def send(count: int) -> None:
            for _ in range(count // len(batch)):
                await publisher.publish_many(batch)
            if rest := count % len(batch):
                await publisher.publish_many(batch[:rest])

        return send


@contextmanager
def serving(directory: Path) -> Iterator[Path]:
    """A daemon with nothing but the benchmark's topics; gives its socket's path."""
    ready_path, log_path, socket_path = directory / "ready", directory / "log", directory / "control.sock"
    command = [sys.executable, "-m", "shmd", "serve", "--instance", f"bench-{os.getpid()}"]
    command += ["--runtime-dir", str(directory), "--socket", str(socket_path)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, log_path.open("w+") as log:
        ready.bind(str(ready_path))
        ready.settimeout(START_TIMEOUT_S)
        environment = {**os.environ, "NOTIFY_SOCKET": str(ready_path)}
        with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=log) as daemon:
            try:
                _await_ready(ready, log_path)
                yield socket_path
            finally:
                daemon.terminate()


def _await_ready(ready: socket.socket, log_path: Path) -> None:
    try:
        while b"READY=1" not in ready.recv(4096):
            pass
    except TimeoutError:
        raise BenchmarkError(f"the daemon did not start; it says:\n{log_path.read_text()}") from None


def opener(socket_path: Path, kind: type[ShmdTopics]) -> Callable[[Path], AbstractContextManager[ShmdTopics]]:
    """Each measurement has topics of its own, so that no rest of one is in another."""

    @contextmanager
    def open_peer(_: Path) -> Iterator[ShmdTopics]:
        yield kind(socket_path, f"bench.{next(_numbers)}")

    return open_peer


async def async_for_step(socket_path: Path, count: int) -> dict[str, float]:
    """Nanoseconds of an ``async for`` step over ready records, their values not decoded, the countdown included.

    Each batch is published and its first record awaited, which reads the whole batch out of the log; the steps after
    that are timed.
    """
    spent_ns = steps = 0
    async with (
        connect(socket_path) as client,
        _topic(client, "bench.step"),
        client.publisher("bench.step") as publisher,
        client.subscribe("bench.step") as subscription,
    ):
        batch = [None] * BATCH_RECORDS
        while steps < count:
            await publisher.publish_many(batch)
            await subscription.get()
            left = BATCH_RECORDS - 1
            steps += left
            begin = time.perf_counter_ns()
            async for _ in subscription:
                left -= 1
                if not left:
                    break
            spent_ns += time.perf_counter_ns() - begin
    return {"async for step": spent_ns / steps}


@asynccontextmanager
async def _topic(client: Client, name: str, notifier: Notifier = "eventfd") -> AsyncIterator[None]:
    await client.topic(name, size=TOPIC_SIZE, when_full="wait", notifier=notifier)
    try:
        yield
    finally:
        await client.remove(name)
