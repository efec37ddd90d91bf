"""Every public coroutine, cancelled at every place where it waits, while the daemon is away and coming back.

Most reconnections here are of one and the same daemon, whose connection we cut; some are to a daemon that was killed
and started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

import pytest

import shmd
from shmd import limits
from tests.interrupt import interruptions
from tests.loop_turns import until
from tests.test_cancellation import COVERED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.restarts import Restarts

SMALL = limits.TOPIC_SIZE_BYTES_MIN


class Scene:
    """A client with a publisher and a subscription of one topic, and whatever else the coroutine at hand needs."""

    def __init__(self, client: shmd.Client) -> None:
        self.client = client
        self.sent: list[Any] = []
        self.received: list[Any] = []
        self._beside: list[asyncio.Future[Any]] = []
        self._extra: list[Any] = []
        self.to_close: Any = None

    async def open(self) -> None:
        self.publisher = await self.client.publisher("t", size=SMALL, when_full="wait")
        self.subscription = await self.client.subscribe("t")
        await self.client.topic("spare")
        self._descriptors = len(os.listdir("/proc/self/fd"))

    async def prepare(self, verb: str) -> None:
        """What the coroutine is called on, opened beforehand."""
        self.events = self.client.events()
        if verb == "Publisher.close":
            self.to_close = await self.client.publisher("t")
        elif verb == "Subscription.close":
            self.to_close = await self.client.subscribe("t")
        elif verb == "until closed":
            self.to_close = await self.client.publisher("pipe")
            self.pipe = await self.client.subscribe("pipe", until_closed=True)
            self._extra = [self.pipe]
        elif verb == "require subscribers":
            self.to_close = await self.client.subscribe("pipe")
            self.feed = await self.client.publisher("pipe", size=SMALL, when_full="wait", require_subscribers=True)
            self._extra = [self.feed]
            fill(self.feed)
        elif "egment" in verb:
            with contextlib.suppress(shmd.SegmentError):  # an earlier removal was cancelled in time
                await self.client.remove_segment("s")
            self.segment = self.to_close = await self.client.segment("s", size=100)
        else:
            return
        self._extra.append(self.to_close)

    def beside(self, awaitable: Awaitable[Any]) -> None:
        """Have something done meanwhile that nobody cancels."""
        self._beside.append(asyncio.ensure_future(awaitable))

    def fill(self) -> None:
        self.sent += fill(self.publisher)

    async def publish(self, value: Any) -> None:
        await self.publisher.publish(value)
        self.sent.append(value)

    async def read(self, count: int) -> None:
        self.received += [record.value for record in await self.subscription.get_many(count)]

    async def check(self) -> None:
        """Once the daemon is back, nothing is left of the call, and no record was lost or doubled."""
        await asyncio.gather(*self._beside)
        for opened in self._extra:
            await opened.close()
        self._beside, self._extra = [], []
        await until(lambda: self.client.state == "connected")
        await until(self._settled)
        await until(lambda: self.client._hub.link.session._pending == {})
        self.client._hub.looks.close()
        assert len(os.listdir("/proc/self/fd")) == self._descriptors
        assert len(self.client._hub.all_seats()) == 2
        assert self.client._hub.tasks == set()
        self.received += [record.value for record in await self.subscription.get_many(limits.GET_MANY_MAX, timeout=0)]
        assert self.received == self.sent
        await self.client.topic("spare")

    async def _settled(self) -> bool:
        stat = await self.client.stat("t")
        return stat is not None and (len(stat.publishers), len(stat.subscribers)) == (1, 1)


def fill(publisher: shmd.Publisher[Any]) -> list[str]:
    sent = []
    with contextlib.suppress(shmd.TopicFull):
        while True:
            publisher.publish_nowait("filler")
            sent.append("filler")
    return sent


async def publish(scene: Scene) -> None:
    scene.fill()
    scene.beside(scene.read(limits.GET_MANY_MAX))
    await scene.publish("waited")


async def publish_many(scene: Scene) -> None:
    scene.fill()
    scene.beside(scene.read(limits.GET_MANY_MAX))
    batch = ["one", "two", "three"]
    await scene.publisher.publish_many(batch)
    scene.sent += batch


async def get(scene: Scene) -> None:
    scene.beside(scene.publish("late"))
    scene.received.append((await scene.subscription.get()).value)


async def get_many(scene: Scene) -> None:
    scene.beside(scene.publish("late"))
    await scene.read(2)


async def open_publisher(scene: Scene) -> None:
    await (await scene.client.publisher("t")).close()


async def subscribe(scene: Scene) -> None:
    await (await scene.client.subscribe("*")).close()


async def read_until_closed(scene: Scene) -> None:
    scene.beside(scene.to_close.close())
    with pytest.raises(shmd.TopicClosed):
        await scene.pipe.get()


async def publish_to_somebody(scene: Scene) -> None:
    scene.beside(scene.to_close.close())
    with pytest.raises(shmd.NoSubscribers):
        await scene.feed.publish("to nobody")


async def open_segment(scene: Scene) -> None:
    await (await scene.client.segment("s")).close()


async def wait(scene: Scene) -> None:
    scene.segment.notify()
    await scene.segment.wait()


async def acquire(scene: Scene) -> None:
    async with scene.segment.lock():
        await asyncio.sleep(0)


VERBS: dict[str, Callable[[Scene], Awaitable[Any]]] = {
    "Client.topic": lambda scene: scene.client.topic("t"),
    "Client.stat": lambda scene: scene.client.stat("t"),
    "Client.topics": lambda scene: scene.client.topics(),
    "Client.latest": lambda scene: scene.client.latest("t"),
    "Client.remove": lambda scene: scene.client.remove("spare"),
    "Client.publisher": open_publisher,
    "Client.subscribe": subscribe,
    "Publisher.publish": publish,
    "Publisher.publish_many": publish_many,
    "Publisher.wait_for_subscribers": lambda scene: scene.publisher.wait_for_subscribers(1),
    "Publisher.close": lambda scene: scene.to_close.close(),
    "Subscription.get": get,
    "Subscription.get_many": get_many,
    "Subscription.close": lambda scene: scene.to_close.close(),
    "Client.segment": open_segment,
    "Segment.wait": wait,
    "Segment.set": lambda scene: scene.segment.set(mode=0o600),
    "Segment.remove": lambda scene: scene.segment.remove(),
    "Segment.close": lambda scene: scene.segment.close(),
    "SegmentLock.acquire": acquire,
    "EventStream.__anext__": lambda scene: anext(scene.events),
    "until closed": read_until_closed,
    "require subscribers": publish_to_somebody,
}
ELSEWHERE = {"Client.close", "Client.stop_daemon", "Segment.sync"}
"""The first two have tests of their own below; the last asks no daemon."""


def test_every_coroutine_is_cancelled_here_too() -> None:
    public = {f"{kind}.{name}" for kind, names in COVERED.items() for name in names}
    assert public - VERBS.keys() == ELSEWHERE


@pytest.mark.parametrize("verb", VERBS)
async def test_coroutine_cancelled_during_a_reconnection_leaves_nothing(restarts: Restarts, verb: str) -> None:
    async with shmd.connect(restarts.socket_path) as client:
        scene = Scene(client)
        await scene.open()

        async def run() -> None:
            client._hub.link.session.close()
            await asyncio.sleep(0)
            await VERBS[verb](scene)

        await scene.prepare(verb)
        cancelled = 0
        async for outcome, _ in interruptions(run):
            cancelled += outcome == "cancelled"
            await scene.check()
            await scene.prepare(verb)
        assert cancelled >= 2


@pytest.mark.parametrize("verb", ["Client.publisher", "Client.subscribe", "Publisher.publish", "Subscription.get"])
async def test_coroutine_cancelled_while_another_daemon_comes_leaves_nothing(restarts: Restarts, verb: str) -> None:
    async with shmd.connect(restarts.socket_path) as client:
        scene = Scene(client)
        await scene.open()

        async def run() -> None:
            scene.beside(restarts.start(client))
            await VERBS[verb](scene)

        await restarts.kill(client)
        cancelled = 0
        async for outcome, _ in interruptions(run, ["waiting"]):
            cancelled += outcome == "cancelled"
            await scene.check()
            await restarts.kill(client)
        await restarts.start(client)
        assert cancelled >= 1


async def test_client_close_cancelled_during_a_reconnection_has_closed_all_the_same(restarts: Restarts) -> None:
    async with shmd.connect(restarts.socket_path) as other:
        await other.topic("t")
        before = len(os.listdir("/proc/self/fd"))

        async def open_one() -> tuple[shmd.Client, Any, Any]:
            client = await shmd.connect(restarts.socket_path)
            return client, await client.publisher("t"), await client.subscribe("t")

        async def run() -> None:
            client._hub.link.session.close()
            await asyncio.sleep(0)
            await client.close()

        client, *opened = await open_one()
        async for _ in interruptions(run):
            await client.close()
            assert len(os.listdir("/proc/self/fd")) == before
            for participant in opened:
                with pytest.raises(shmd.ClosedError):
                    await (participant.publish(1) if isinstance(participant, shmd.Publisher) else participant.get())
            client, *opened = await open_one()
        await client.close()


async def test_stop_daemon_cancelled_during_a_reconnection_leaves_nothing_pending(restarts: Restarts) -> None:
    async with shmd.connect(restarts.socket_path) as client:

        async def run() -> None:
            client._hub.link.session.close()
            await asyncio.sleep(0)
            await client.stop_daemon()

        async for _ in interruptions(run, ["waiting"]):
            await restarts.restart(client)
            await until(lambda: client._hub.link.session._pending == {})
