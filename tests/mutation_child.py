"""One process of the live mutation test: it uses shmd while somebody writes into shared memory beneath it.

    python -m tests.mutation_child daemon RUNTIME_DIR INSTANCE
    python -m tests.mutation_child publisher|subscriber|looker|bystander SOCKET SEED

Runs the sanitized core. Participants answer lines on standard input: `ping` with a line; `check` with another, after
they have cancelled all that they do and begun it anew; `meet PID` once they are connected to that daemon; `end` by
ending. They live on whatever ``ShmdError`` comes. Anything else that is raised anywhere, also in a callback of the
event loop, ends the process with status ``UNEXPECTED``.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import itertools
import json
import os
import random
import signal
import sys
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.core_builds import SANITIZED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import shmd

REFUSED = 3
"""Status of a daemon that does not start, and has said why in a sentence."""
UNEXPECTED = 70
SIZE = 4096
"""Of a topic's ring: small, so that every byte is soon read again."""
TOPICS: dict[str, dict[str, Any]] = {
    "m.wait": {"size": SIZE, "when_full": "wait"},
    "m.old": {"size": SIZE},
    "m.solo": {"size": SIZE, "when_full": "wait", "exclusive": True, "notifier": "fifo"},
}
SAFE = "safe"
"""The bystander's topic, which nobody writes into."""
PASS_S = 0.3
"""After which a participant opens everything anew: damage may have left it waiting for ever."""
BATCH = 16


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def give_up(error: BaseException | None, what: object) -> None:
    """This must not happen: say so, and end at once."""
    sys.stderr.write(f"unexpected: {what}\n")
    if error is not None:
        traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(UNEXPECTED)


async def serve(runtime_dir: str, instance: str) -> int:
    from shmd.config import DaemonConfig
    from shmd.daemon import Daemon
    from shmd.errors import ShmdError

    config = DaemonConfig(runtime_dir=Path(runtime_dir), instance=instance, total_bytes=64 << 20)
    try:
        async with Daemon(config) as daemon:
            serving = asyncio.create_task(daemon.serve_forever())
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.cancel)
            say("listening")
            with contextlib.suppress(asyncio.CancelledError):
                await serving
    except ShmdError as error:
        say(f"refused: {error}")
        return REFUSED
    return 0


class Participant:
    """What one role does, in several tasks, each in passes; ``beats`` counts what succeeded."""

    def __init__(self, client: shmd.Client, seed: int) -> None:
        self.client = client
        self.beats = 0
        self.errors: dict[str, int] = {}
        self._random = random.Random(seed)
        self._tasks: list[asyncio.Task[None]] = []

    def jobs(self) -> list[Callable[[], Awaitable[None]]]:
        raise NotImplementedError

    def begin(self) -> None:
        for job in self.jobs():
            task = asyncio.create_task(self._keep_doing(job))
            task.add_done_callback(_must_not_fail)
            self._tasks.append(task)

    async def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def check(self) -> str:
        """Cancel everything, begin it anew, and tell how it went so far."""
        await self.cancel()
        self.begin()
        return json.dumps({"beats": self.beats, "errors": self.errors})

    async def meet(self, daemon_pid: int) -> None:
        """Wait until this daemon is the one that we are connected to."""
        events = self.client.events()
        while self.client.state != "connected" or self.client.daemon_pid != daemon_pid:
            await anext(events)

    async def _keep_doing(self, job: Callable[[], Awaitable[None]]) -> None:
        from shmd.errors import ShmdError

        while True:
            before = self.beats
            try:
                async with asyncio.timeout(PASS_S):
                    await job()
            except (ShmdError, TimeoutError) as error:
                name = type(error).__name__
                self.errors[name] = self.errors.get(name, 0) + 1
                if name == "CorruptTopic" or self.beats == before:
                    await self._renew()
            await asyncio.sleep(0)

    async def _renew(self) -> None:
        """Damaged topics go, so that work goes on in fresh ones."""
        from shmd.errors import ShmdError

        for topic in TOPICS:
            with contextlib.suppress(ShmdError, TimeoutError):
                async with asyncio.timeout(PASS_S):
                    await self.client.remove(topic)


class PublishingParticipant(Participant):
    def jobs(self) -> list[Callable[[], Awaitable[None]]]:
        return [self._make(topic) for topic in TOPICS]

    def _make(self, topic: str) -> Callable[[], Awaitable[None]]:
        async def publish() -> None:
            from shmd.errors import TopicFull, TopicLocked

            async with self.client.publisher(topic, **TOPICS[topic]) as publisher:
                for number in itertools.count():
                    size = self._random.choice((0, 1, 7, 8, 9, 60, 200, 900))
                    await publisher.publish(bytes(size))
                    await publisher.publish_many(range(number % 4))
                    with contextlib.suppress(TopicFull, TopicLocked):
                        publisher.publish_nowait(None)
                        if TOPICS[topic].get("exclusive"):
                            with publisher.reserve(size) as view:
                                view[:] = bytes(size)
                    self.beats += 1

        return publish


class SubscribingParticipant(Participant):
    def jobs(self) -> list[Callable[[], Awaitable[None]]]:
        return [self._make(topic) for topic in (*TOPICS, "m.>")]

    def _start(self) -> Any:
        ago = timedelta(seconds=self._random.uniform(-1, 1))
        return self._random.choice(("new", "last", "all", self._random.randrange(1, 10_000), datetime.now(UTC) - ago))

    def _make(self, pattern: str) -> Callable[[], Awaitable[None]]:
        async def read() -> None:
            tethered = self._random.random() < 0.8
            async with self.client.subscribe(pattern, start=self._start(), tethered=tethered) as subscription:
                while True:
                    records = [await subscription.get(), *await subscription.get_many(BATCH, timeout=0)]
                    records.append(await anext(subscription))
                    for record in records:
                        self._look(record)
                    self.beats += 1

        return read

    def _look(self, record: shmd.Record[Any]) -> None:
        from shmd.errors import DecodeError

        assert min(record.seq, record.time, record.lost, record.publisher) >= 0, repr(record)
        with contextlib.suppress(DecodeError):
            assert len(repr(record.value)) >= 0


class LookingParticipant(SubscribingParticipant):
    def jobs(self) -> list[Callable[[], Awaitable[None]]]:
        return [self._look_around]

    async def _look_around(self) -> None:
        for topic in TOPICS:
            if (record := await self.client.latest(topic)) is not None:
                self._look(record)
            await self.client.stat(topic)
        await self.client.topics()
        self.beats += 1


class Bystander(Participant):
    """On a topic that nobody damages everything is as it should be, whatever happens to the others."""

    def __init__(self, client: shmd.Client, seed: int) -> None:
        super().__init__(client, seed)
        self._open = contextlib.AsyncExitStack()
        self._sent = 0

    def jobs(self) -> list[Callable[[], Awaitable[None]]]:
        return []

    async def check(self) -> str:
        """``fine``, or the error after which it opened everything anew: only a new daemon may have caused one."""
        from shmd.errors import ShmdError

        try:
            if not self._sent:
                self._publisher = await self._open.enter_async_context(self.client.publisher(SAFE, size="64KiB"))
                self._subscription = await self._open.enter_async_context(self.client.subscribe(SAFE))
            batch = list(range(self._sent, self._sent + BATCH))
            self._sent += BATCH
            for value in batch:
                await self._publisher.publish(value)
            got = [(await self._subscription.get()).value for _ in batch]
            assert got == batch, (got, batch)
        except ShmdError as error:
            self._sent = 0
            await self._open.aclose()
            return f"{type(error).__name__}: {error}"
        return "fine"

    async def cancel(self) -> None:
        await super().cancel()
        await self._open.aclose()


ROLES: dict[str, type[Participant]] = {
    "publisher": PublishingParticipant,
    "subscriber": SubscribingParticipant,
    "looker": LookingParticipant,
    "bystander": Bystander,
}


def _must_not_fail(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        give_up(task.exception(), task)


def _tell_tasks() -> None:
    """For one that hangs: what each task waits for."""
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stderr)


async def take_part(role: str, socket_path: str, seed: int) -> int:
    import shmd

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR2, _tell_tasks)
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async with shmd.connect(socket_path, name=role) as client:
        participant = ROLES[role](client, seed)
        participant.begin()
        say("ready")
        while (order := (await orders.readline()).strip()) not in (b"", b"end"):
            match order.split():
                case [b"check"]:
                    say(await participant.check())
                case [b"meet", pid]:
                    await participant.meet(int(pid))
                    say("met")
                case _:
                    say("pong")
        await participant.cancel()
    return 0


async def main(role: str, *arguments: str) -> int:
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: give_up(context.get("exception"), context["message"])
    )
    if role == "daemon":
        return await serve(*arguments)
    return await take_part(role, arguments[0], int(arguments[1]))


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1)
    SANITIZED.use()
    sys.exit(asyncio.run(main(*sys.argv[1:])))
