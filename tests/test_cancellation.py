"""Every public coroutine, cancelled at every place where it waits: nothing lost or doubled, nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
from typing import TYPE_CHECKING, Any

import pytest

import shmd
from shmd import limits
from shmd.client_events import EventStream
from tests.interrupt import interruptions
from tests.loop_turns import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from shmd.testing import Connect, DaemonProcess

pytestmark = pytest.mark.both_loops

SMALL = limits.TOPIC_SIZE_BYTES_MIN


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def assert_nothing_open(client: shmd.Client, topic: str) -> None:
    """Nothing is left of what ``client`` opened: not here, and soon not at the daemon either."""

    async def daemon_knows() -> bool:
        stat = await client.stat(topic)
        return stat is None or (stat.publishers == () and stat.subscribers == ())

    await until(daemon_knows)
    assert client._hub._seats == {}
    assert client._hub.tasks == set()
    assert client._hub.link.session._pending == {}


async def test_connect_cancelled_leaves_nothing_open(shmd_daemon: DaemonProcess) -> None:
    before = descriptors()
    count = 0
    async for outcome, client in interruptions(lambda: shmd.connect(shmd_daemon.socket_path)):
        if client is not None:
            await client.close()
        assert descriptors() == before
        count += outcome == "cancelled"
    assert count >= 2


@pytest.mark.usefixtures("notifier")
async def test_publisher_cancelled_gives_its_lease_back(shmd_client: shmd.Client) -> None:
    before = descriptors()
    cancelled = 0
    async for outcome, publisher in interruptions(lambda: shmd_client.publisher("t", exclusive=True)):
        if publisher is not None:
            await publisher.close()
        cancelled += outcome == "cancelled"
        await assert_nothing_open(shmd_client, "t")
        assert descriptors() == before
        async with shmd_client.publisher("t", exclusive=True):
            pass
    assert cancelled >= 2


@pytest.mark.usefixtures("notifier")
async def test_subscribe_cancelled_gives_its_slots_back(
    shmd_client: shmd.Client, shmd_connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SEEK_STEPS", 2)
    other = await shmd_connect()
    for name in ("t.a", "t.b"):
        async with other.publisher(name, when_full="wait") as publisher:
            await publisher.publish_many(range(10))
    before = descriptors()
    cancelled = 0
    async for outcome, subscription in interruptions(lambda: shmd_client.subscribe("t.*", start=5)):
        if subscription is not None:
            assert subscription.topics == ("t.a", "t.b")
            await subscription.close()
        cancelled += outcome == "cancelled"
        for name in ("t.a", "t.b"):
            await assert_nothing_open(shmd_client, name)
        assert descriptors() == before
    assert cancelled >= 10


@pytest.mark.usefixtures("notifier")
async def test_join_of_a_later_topic_cancelled_by_close_leaves_nothing(
    shmd_client: shmd.Client, shmd_connect: Connect
) -> None:
    other = await shmd_connect()
    for turns in range(60):
        subscription = await shmd_client.subscribe(f"{turns}.*")
        declaring = asyncio.create_task(other.topic(f"{turns}.t", when_full="wait"))
        await until(lambda subscription=subscription: subscription._joins or subscription.topics)  # type: ignore[misc]
        for _ in range(turns // 3):
            await asyncio.sleep(0)
        await subscription.close()
        await declaring
        await assert_nothing_open(shmd_client, f"{turns}.t")


@pytest.mark.parametrize("verb", ["topic", "stat", "topics", "latest", "remove"])
async def test_request_cancelled_leaves_nothing_pending(shmd_client: shmd.Client, verb: str) -> None:
    verbs: dict[str, Callable[[], Awaitable[Any]]] = {
        "topic": lambda: shmd_client.topic("t"),
        "stat": lambda: shmd_client.stat("t"),
        "topics": lambda: shmd_client.topics(),
        "latest": lambda: shmd_client.latest("t"),
        "remove": lambda: shmd_client.remove("t"),
    }
    await shmd_client.topic("t")
    cancelled = 0
    try:
        async for outcome, _ in interruptions(verbs[verb]):
            cancelled += outcome == "cancelled"
            await assert_nothing_open(shmd_client, "t")
            await shmd_client.topic("t")
    finally:
        shmd_client._hub.looks.close()
    assert cancelled >= 1


async def test_segment_cancelled_gives_its_memory_and_its_handle_back(shmd_client: shmd.Client) -> None:
    async with shmd_client.segment("s", size=100):
        pass
    before = descriptors()
    cancelled = 0
    async for outcome, segment in interruptions(lambda: shmd_client.segment("s")):
        if segment is not None:
            await segment.close()
        cancelled += outcome == "cancelled"
        assert shmd_client._hub._segment_seats == set()
        assert descriptors() == before
        async with shmd_client.segment("s") as again:
            assert again.stat().attachments == 1
    assert cancelled >= 1


@pytest.mark.parametrize("verb", ["segments", "segment_stat", "set_segment", "set", "sync", "remove_segment"])
async def test_request_about_a_segment_cancelled_leaves_nothing_pending(shmd_client: shmd.Client, verb: str) -> None:
    async with shmd_client.segment("s", size=100) as segment:
        verbs: dict[str, Callable[[], Awaitable[Any]]] = {
            "segments": shmd_client.segments,
            "segment_stat": lambda: shmd_client.segment_stat("s"),
            "set_segment": lambda: shmd_client.set_segment("s", mode=0o600),
            "set": lambda: segment.set(mode=0o600),
            "sync": segment.sync,
            "remove_segment": lambda: shmd_client.remove_segment("s"),
        }
        async for _ in interruptions(verbs[verb]):
            async with shmd_client.segment("s", size=100):
                assert shmd_client._hub.link.session._pending == {}


async def test_segment_close_cancelled_has_closed_it(shmd_client: shmd.Client) -> None:
    before = descriptors()

    async def open_and_close() -> None:
        segment = await shmd_client.segment("s", size=100)
        await segment.close()

    async for _ in interruptions(open_and_close):
        await shmd_client.segments()  # a close() that was cancelled may still be on its way
        assert shmd_client._hub._segment_seats == set()
        assert descriptors() == before


async def test_segment_remove_cancelled_leaves_nothing_pending(shmd_client: shmd.Client) -> None:
    async def open_and_remove() -> None:
        async with shmd_client.segment("s", size=100) as segment:
            await segment.remove()

    async for _ in interruptions(open_and_remove):
        with contextlib.suppress(shmd.SegmentError):
            await shmd_client.remove_segment("s")
        assert shmd_client._hub._segment_seats == set()
        assert shmd_client._hub.link.session._pending == {}


async def test_segment_lock_cancelled_is_not_held(shmd_client: shmd.Client) -> None:
    async with shmd_client.segment("s", size=100) as segment:
        lock = segment.lock()

        async def hold() -> None:
            async with lock:
                await asyncio.sleep(0)
                await asyncio.sleep(0)

        async def take() -> None:
            holding = asyncio.create_task(hold())
            await asyncio.sleep(0)
            try:
                await lock.acquire()
                lock.release()
            finally:
                await holding

        async for _ in interruptions(take):
            await until(lambda: not lock.held)
            async with lock:
                pass


async def test_segment_wait_cancelled_hears_the_next_time(shmd_client: shmd.Client) -> None:
    async with shmd_client.segment("s", size=100) as segment:

        async def wait_for_it() -> None:
            segment.notify()
            await segment.wait()

        async for outcome, _ in interruptions(wait_for_it):
            if outcome == "cancelled":
                await segment.wait()


async def test_wait_for_subscribers_cancelled_leaves_nothing_pending(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t") as publisher:

        async def wait_for_one() -> None:
            opening = asyncio.create_task(_subscribe_briefly(shmd_client))
            try:
                await publisher.wait_for_subscribers(1)
            finally:
                await opening

        async for _ in interruptions(wait_for_one):
            await shmd_client.stat("t")  # a close() that was cancelled may still be on its way
            assert shmd_client._hub.link.session._pending == {}


async def _subscribe_briefly(client: shmd.Client) -> None:
    async with client.subscribe("t"):
        await asyncio.sleep(0)


@pytest.mark.usefixtures("notifier")
async def test_publish_cancelled_has_not_happened_and_the_next_one_does(shmd_client: shmd.Client) -> None:
    async with (
        shmd_client.publisher("t", size=SMALL, when_full="wait") as publisher,
        shmd_client.subscribe("t") as subscription,
    ):
        expected: list[Any] = []
        tasks: list[asyncio.Task[Any]] = []

        async def publish() -> None:
            with contextlib.suppress(shmd.TopicFull):
                while True:
                    publisher.publish_nowait("filler")
                    expected.append("filler")
            tasks[:] = [
                asyncio.create_task(subscription.get_many(limits.GET_MANY_MAX)),
                asyncio.create_task(publisher.publish("behind")),
            ]
            await publisher.publish("waited")
            expected.append("waited")

        cancelled = 0
        async for outcome, _ in interruptions(publish):
            cancelled += outcome == "cancelled"
            records, _ = await asyncio.gather(*tasks)
            expected.append("behind")
            records += await subscription.get_many(limits.GET_MANY_MAX, timeout=0)
            assert [record.value for record in records] == expected
            expected.clear()
        assert cancelled >= 2


async def test_publish_many_cancelled_has_happened_whole_or_not_at_all(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t") as publisher, shmd_client.subscribe("t") as subscription:
        batch = list(range(3 * limits.YIELD_RECORDS))
        async for outcome, seq in interruptions(lambda: publisher.publish_many(batch)):
            records = await subscription.get_many(len(batch), timeout=0)
            assert [record.value for record in records] == (batch if outcome == "done" else [])
            assert seq is None or seq == records[-1].seq


@pytest.mark.usefixtures("notifier")
@pytest.mark.parametrize("read", ["get", "get_many", "anext"])
async def test_read_cancelled_consumes_nothing(shmd_client: shmd.Client, read: str) -> None:
    async with shmd_client.publisher("t") as publisher, shmd_client.subscribe("t", spin=0.0005) as subscription:
        sent = 0
        received: list[int] = []

        async def reads() -> None:
            nonlocal sent
            publishing = asyncio.create_task(publisher.publish_many([sent, sent + 1, sent + 2]))
            sent += 3
            try:
                if read == "get":
                    received.append((await subscription.get()).value)
                elif read == "get_many":
                    received.extend(record.value for record in await subscription.get_many(2))
                else:
                    received.append((await anext(subscription)).value)
            finally:
                await publishing

        async for _ in interruptions(reads):
            pass
        received += [record.value for record in await subscription.get_many(sent + 1, timeout=0)]
        assert received == list(range(sent))
        assert sent >= 6


async def test_close_cancelled_has_closed_all_the_same(shmd_client: shmd.Client, shmd_connect: Connect) -> None:
    before = descriptors()

    async def open_and_close() -> None:
        publisher = await shmd_client.publisher("t", when_full="wait")
        subscription = await shmd_client.subscribe("t")
        try:
            pass
        finally:
            await subscription.close()
            await publisher.close()

    async for _ in interruptions(open_and_close):
        for member in list(shmd_client._hub.members):
            await member.close()  # type: ignore[attr-defined]
        await assert_nothing_open(shmd_client, "t")
        assert descriptors() == before


@pytest.mark.usefixtures("notifier")
async def test_client_close_cancelled_has_closed_all_the_same(shmd_daemon: DaemonProcess) -> None:
    before = descriptors()
    opened: list[Any] = []

    async def open_and_close() -> None:
        client = await shmd.connect(shmd_daemon.socket_path)
        try:
            opened.append(await client.publisher("t"))
            opened.append(await client.subscribe("t"))
        finally:
            await client.close()

    cancelled = 0
    async for outcome, _ in interruptions(open_and_close):
        cancelled += outcome == "cancelled"
        assert descriptors() == before
        for participant in opened:
            with pytest.raises(shmd.ClosedError):
                await (participant.publish(1) if isinstance(participant, shmd.Publisher) else participant.get())
        opened.clear()
    assert cancelled >= 8


COVERED = {
    "Client": {"topic", "latest", "topics", "stat", "remove", "stop_daemon", "close"},
    "Publisher": {"publish", "publish_many", "wait_for_subscribers", "close"},
    "Subscription": {"get", "get_many", "close"},
    "Segment": {"wait", "set", "sync", "remove", "close"},
    "SegmentLock": {"acquire"},
    "EventStream": {"__anext__"},
}
"""Coroutines that a test above, or below, cancels at each step; and their openers, which are no coroutine functions:
``connect``, ``Client.publisher``, ``Client.subscribe``, and ``Subscription.get``, which returns one."""


def test_every_public_coroutine_is_cancelled_by_a_test_here() -> None:
    """A new one is found missing by itself."""
    found: dict[str, set[str]] = {}
    for kind in (EventStream, *(getattr(shmd, name) for name in shmd.__all__)):
        if isinstance(kind, type) and kind.__module__.startswith("shmd."):
            coroutines = {name: what for name, what in vars(kind).items() if inspect.iscoroutinefunction(what)}
            names = {name for name, what in coroutines.items() if not (what.__doc__ or "").startswith("For the ")}
            public = {name for name in names if not name.startswith("_") or name == "__anext__"}
            if public:
                found[kind.__name__] = public
    found["Subscription"].add("get")
    assert found == COVERED


async def test_stop_daemon_cancelled_leaves_nothing_pending(shmd_daemon: DaemonProcess) -> None:
    async with shmd.connect(shmd_daemon.socket_path) as client:
        task = asyncio.create_task(client.stop_daemon())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: client._hub.link.session._pending == {})
    await asyncio.to_thread(shmd_daemon.process.wait)
    shmd_daemon._ended_by_test = True


async def test_event_read_that_is_cancelled_takes_no_event(shmd_daemon: DaemonProcess) -> None:
    client = await shmd.connect(shmd_daemon.socket_path)
    stream = client.events()
    reading = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    closing = asyncio.create_task(client.close())
    await until(lambda: stream._events)
    reading.cancel()  # when the event has come, but the task has not run yet
    await asyncio.wait([reading])
    await closing
    seen = [] if reading.cancelled() else [reading.result().kind]
    assert seen + [event.kind async for event in stream] == ["closed"]
