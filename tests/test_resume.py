"""Clients outlive their daemon: everything open goes on, at the same place, and then with the next daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import shmd
from shmd import _core, fifo, limits, notifier, segment
from shmd import roster_layout as layout
from shmd.notifier import EventfdBells
from tests.conftest import SOAK
from tests.loop_turns import turns, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.restarts import Restarts

pytestmark = pytest.mark.usefixtures("notifier")

SMALL = limits.TOPIC_SIZE_BYTES_MIN
TRANSFER = 10_000_000 if SOAK else 200_000
TRANSFER_RESTARTS = 20 if SOAK else 4
RESTARTS = 500 if SOAK else 20


@contextlib.asynccontextmanager
async def two_clients(restarts: Restarts) -> AsyncIterator[tuple[shmd.Client, shmd.Client]]:
    async with shmd.connect(restarts.socket_path) as one, shmd.connect(restarts.socket_path) as other:
        yield one, other


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def drain(subscription: shmd.Subscription[Any]) -> list[Any]:
    return [record.value for record in await subscription.get_many(limits.GET_MANY_MAX, timeout=0)]


# --- the data path ----------------------------------------------------------------------------------------------------


@pytest.mark.both_loops
async def test_transfer_over_restarts_has_no_gap_and_no_duplicate(restarts: Restarts) -> None:
    async with (
        two_clients(restarts) as (sender, receiver),
        sender.publisher("t", when_full="wait") as publisher,
        receiver.subscribe("t") as subscription,
    ):
        restarting = True

        async def restart() -> None:
            nonlocal restarting
            for _ in range(TRANSFER_RESTARTS):
                await restarts.restart(sender, receiver)
            restarting = False

        async def send() -> int:
            sent = 0
            while sent < TRANSFER or restarting:
                assert await publisher.publish(sent) == sent + 1
                sent += 1
            await publisher.publish(None)
            return sent

        async def receive() -> int:
            received = 0
            async for record in subscription:
                if record.value is None:
                    break
                assert (record.value, record.seq, record.lost) == (received, received + 1, 0)
                received += 1
            return received

        _, sent, received = await asyncio.gather(restart(), send(), receive())
        assert received == sent >= TRANSFER
        assert (publisher.number, subscription.lost) == (1, 0)


async def test_sleepers_are_woken_while_the_daemon_is_away_and_after_it_came_back(restarts: Restarts) -> None:
    async with (
        two_clients(restarts) as (sender, receiver),
        sender.publisher("t", size=SMALL, when_full="wait") as publisher,
        receiver.subscribe("t") as subscription,
    ):

        async def sleep_and_wake() -> None:
            reading = asyncio.create_task(subscription.get())
            await turns()
            await publisher.publish("woken")
            assert (await reading).value == "woken"
            with contextlib.suppress(shmd.TopicFull):
                while True:
                    publisher.publish_nowait("filler")
            publishing = asyncio.create_task(publisher.publish("last"))
            await turns()
            assert not publishing.done()
            while (await subscription.get()).value != "last":
                pass
            await publishing

        for _ in range(3):
            await sleep_and_wake()
            await restarts.kill(sender, receiver)
            await sleep_and_wake()
            await restarts.start(sender, receiver)
            await until(lambda: not (sender._hub.adrift or receiver._hub.adrift))  # from here on only bells wake
            await sleep_and_wake()


async def test_sleeper_hears_the_new_bell_though_it_fell_asleep_before_the_restart(restarts: Restarts) -> None:
    async with (
        two_clients(restarts) as (sender, receiver),
        sender.publisher("t") as publisher,
        receiver.subscribe("t") as subscription,
    ):
        reading = asyncio.create_task(subscription.get())
        await turns()
        await restarts.restart(sender, receiver)
        await turns()
        await publisher.publish("here")
        assert (await reading).value == "here"


@pytest.mark.may_block
async def test_topics_of_both_lifetimes_resume_while_those_that_last_come_and_go(restarts: Restarts) -> None:
    """The lasting part of the roster is not there, comes, and goes again under clients that connected before."""
    async with (
        two_clients(restarts) as (sender, receiver),
        sender.publisher("short", when_full="wait", lifetime="attached") as short,
        receiver.subscribe("short") as subscription,
    ):
        events = receiver.events()

        async def restart_between_records() -> None:
            await restarts.kill(sender, receiver)
            await short.publish("away")
            await restarts.start(sender, receiver)
            assert [(await anext(events)).kind for _ in range(2)] == ["disconnected", "reconnected"]
            await short.publish("back")
            values = [record.value for record in [await subscription.get(), await subscription.get()]]
            assert (values, subscription.lost, subscription.tethered) == (["away", "back"], 0, True)

        await restart_between_records()
        async with sender.publisher("long", when_full="wait") as long, receiver.subscribe("long") as tap:
            await restart_between_records()
            await long.publish(1)
            assert (await tap.get()).value == 1
        await sender.remove("long")
        assert [found.key for found in segment.list_segments() if found.size_bytes == layout.ROSTER_BYTES] == [0]
        await restart_between_records()
        assert [info.name for info in await sender.topics()] == ["short"]


@pytest.mark.may_block
@pytest.mark.parametrize("last", ["publisher", "subscriber"])
async def test_who_resumes_last_wakes_those_who_resumed_before(restarts: Restarts, last: str) -> None:
    """Until then it rings the old bells, which nobody hears any more, and takes those who sleep for rung."""

    def swap(seat: Any) -> None:
        if over_fifos:
            seat.swap_bells(seat._bells.renewed([]))
        else:
            seat.swap_bells(EventfdBells(*map(os.dup, new), is_publisher=seat.role == "publisher"))

    async with (
        two_clients(restarts) as (sender, receiver),
        sender.publisher("t", size=SMALL, when_full="wait") as publisher,
        receiver.subscribe("t") as subscription,
    ):
        new = notifier.make_bell(), notifier.make_bell()
        over_fifos = publisher.info.notifier == "fifo"
        if over_fifos:  # somebody removed them all, and the next daemon made them anew
            directory = Path(publisher.info.fifo_dir)
            fifo.remove_directory(directory)
            fifo.settle(directory, ["r0", "p1"], os.getgid(), 0o600)
        (topic,) = subscription._topics
        if last == "publisher":
            waiting: asyncio.Task[Any] = asyncio.create_task(subscription.get())
            await until(lambda: topic.asleep)
            swap(topic)
            await turns()  # a bell rings once when it is new
            await until(lambda: topic.asleep)
            publisher.publish_nowait("unheard")
            await turns()
            assert topic.asleep
            swap(publisher._seat)
            assert (await waiting).value == "unheard"
        else:
            with contextlib.suppress(shmd.TopicFull):
                while True:
                    publisher.publish_nowait("filler")
            waiting = asyncio.create_task(publisher.publish("unheard"))
            await turns()
            swap(publisher._seat)
            await turns()
            assert await drain(subscription)
            await turns()
            assert not waiting.done()
            swap(topic)
            assert await waiting > 0
        for bell in new:
            os.close(bell)


# --- resume -----------------------------------------------------------------------------------------------------------


async def test_resumed_clients_keep_slots_numbers_and_leases(restarts: Restarts) -> None:
    async with (
        two_clients(restarts) as (sender, receiver),
        sender.publisher("a", exclusive=True) as publisher,
        receiver.subscribe("*") as subscription,
        sender.publisher("b", when_full="wait"),
    ):
        await until(lambda: subscription.topics == ("a", "b"))
        before = [await sender.stat(name) for name in ("a", "b")]
        await publisher.publish("unread")
        for _ in range(2):
            await restarts.restart(sender, receiver)
        after = [await sender.stat(name) for name in ("a", "b")]
        for old, new in zip(before, after, strict=True):
            assert old is not None
            assert new is not None
            assert (new.topic, new.publishers) == (old.topic, old.publishers)
            assert [holder.slot for holder in new.subscribers] == [holder.slot for holder in old.subscribers]
            assert [holder.tethered for holder in new.subscribers] == [holder.tethered for holder in old.subscribers]
        with pytest.raises(shmd.TopicBusy):
            await receiver.publisher("a", exclusive=True)
        assert await drain(subscription) == ["unread"]


async def test_descriptors_stay_the_same_over_many_restarts(restarts: Restarts) -> None:
    async with (
        two_clients(restarts) as (sender, receiver),
        sender.publisher("t", when_full="wait") as publisher,
        receiver.subscribe(">") as subscription,
    ):
        await sender.latest("t")
        await until(lambda: subscription.topics == ("t",))
        await receiver.topics()  # by now the daemon has closed what it sent
        before = descriptors()
        daemon_before = len(os.listdir(f"/proc/{restarts.daemon.pid}/fd"))
        for number in range(RESTARTS):
            await restarts.restart(sender, receiver)
            await publisher.publish(number)
            assert (await subscription.get()).value == number
            assert descriptors() == before
        await receiver.topics()
        assert len(os.listdir(f"/proc/{restarts.daemon.pid}/fd")) == daemon_before


async def test_pattern_joins_what_was_created_before_it_was_back(restarts: Restarts) -> None:
    async with two_clients(restarts) as (one, other), one.subscribe("t.*") as subscription:
        async with other.publisher("t.a") as publisher:
            await publisher.publish("a")
        assert (await subscription.get()).value == "a"
        one._hub.link.session.close()  # this one only; the daemon lives on
        async with other.publisher("t.b", when_full="wait") as publisher:
            await publisher.publish("b")
        assert (await subscription.get()).value == "b"
        assert subscription.topics == ("t.a", "t.b")


async def test_topic_removed_while_a_client_was_away_is_gone_for_it(restarts: Restarts) -> None:
    async with (
        two_clients(restarts) as (one, other),
        one.publisher("t") as publisher,
        one.subscribe("t") as subscription,
        one.subscribe(">") as all_topics,
    ):
        await publisher.publish("rest")
        one._hub.link.session.close()
        await other.remove("t")
        async with other.publisher("t") as successor:
            await successor.publish("another")
        await until(lambda: one.state == "disconnected")
        await until(lambda: one.state == "connected")
        assert (await subscription.get()).value == "rest"
        with pytest.raises(shmd.TopicRemoved):
            await subscription.get()
        with pytest.raises(shmd.TopicRemoved):
            await publisher.publish(1)
        assert [(await all_topics.get()).value for _ in range(2)] == ["rest", "another"]


async def test_closed_while_the_daemon_was_away_is_closed_when_it_is_back(restarts: Restarts) -> None:
    async with two_clients(restarts) as (one, other):
        publisher = await one.publisher("t", exclusive=True)
        subscription = await one.subscribe("t")
        kept = await one.subscribe("t")
        await restarts.kill(one, other)
        await publisher.close()
        await subscription.close()
        await restarts.start(one, other)
        async with other.publisher("t", exclusive=True) as successor:
            await successor.publish("mine")
        stat = await other.stat("t")
        assert stat is not None
        assert len(stat.subscribers) == 1
        assert (await kept.get()).value == "mine"


async def test_request_under_way_is_answered_by_the_next_daemon(restarts: Restarts) -> None:
    async with two_clients(restarts) as (one, other), one.publisher("t") as publisher:
        waiting = asyncio.create_task(publisher.wait_for_subscribers(1))
        await one.topics()
        await restarts.kill(one, other)
        opening = asyncio.create_task(_open(other, "t"))
        await turns()
        assert (waiting.done(), opening.done()) == (False, False)
        await restarts.start(one, other)
        await waiting
        await (await opening).close()


async def _open(client: shmd.Client, topic: str) -> shmd.Subscription[Any]:
    return await client.subscribe(topic)


# --- a daemon that does not know us -----------------------------------------------------------------------------------


async def test_clients_that_the_daemon_forgot_go_on_where_they_were(restarts: Restarts) -> None:
    async with (
        two_clients(restarts) as (sender, receiver),
        sender.publisher("t", size=SMALL, when_full="wait") as publisher,
        sender.publisher("x", exclusive=True) as exclusive,
        receiver.subscribe("t") as subscription,
        receiver.subscribe("x") as tap,
    ):
        events = sender.events()
        for number in range(10):
            await publisher.publish(number)
        assert [(await subscription.get()).value for _ in range(4)] == [0, 1, 2, 3]
        await restarts.kill(sender, receiver)
        await restarts.forget_everybody()
        await publisher.publish(10)
        await restarts.start(sender, receiver)
        assert [(await anext(events)).kind for _ in range(2)] == ["disconnected", "reconnected"]
        await publisher.publish(11)
        await exclusive.publish("still mine")
        assert [(await subscription.get()).value for _ in range(8)] == list(range(4, 12))
        assert (subscription.lost, subscription.tethered) == (0, True)
        assert (await tap.get()).value == "still mine"
        stat = await sender.stat("t")
        assert stat is not None
        assert (len(stat.publishers), len(stat.subscribers)) == (1, 1)
        with contextlib.suppress(shmd.TopicFull):
            while True:
                publisher.publish_nowait("filler")
        assert (await subscription.get()).lost == 0, "the tether held publishers back"


@pytest.mark.may_block
async def test_publisher_that_the_daemon_forgot_is_woken_when_there_is_room(restarts: Restarts) -> None:
    """It has another number and so another FIFO; who rings must look for that one."""
    async with (
        two_clients(restarts) as (sender, receiver),
        sender.publisher("t", size=SMALL, when_full="wait") as publisher,
        receiver.subscribe("t") as subscription,
    ):
        await restarts.kill(sender, receiver)
        await restarts.forget_everybody()
        await restarts.start(sender, receiver)
        await until(lambda: not (sender._hub.adrift or receiver._hub.adrift))  # from here on only bells wake
        with contextlib.suppress(shmd.TopicFull):
            while True:
                publisher.publish_nowait("filler")
        waiting = asyncio.create_task(publisher.publish("last"))
        await turns()
        if publisher.info.notifier == "fifo":
            offset, _ = _core.layout()["ctl"]["waiters"]
            with segment.attach(publisher.info.ctl_id, readonly=True) as ctl:
                marked = fifo.publisher_name(_core.load_word(ctl.mapping, offset) >> 32)
            assert marked in os.listdir(publisher.info.fifo_dir)
            assert marked != fifo.publisher_name(publisher.number)
        values = []
        while "last" not in values:
            record = await subscription.get()
            assert record.publisher == publisher.number
            values.append(record.value)
        await waiting


@pytest.mark.may_block
async def test_topics_of_a_lost_roster_are_gone(restarts: Restarts) -> None:
    async with (
        two_clients(restarts) as (sender, receiver),
        sender.publisher("t") as publisher,
        receiver.subscribe("t") as subscription,
    ):
        await publisher.publish("rest")
        await restarts.kill(sender, receiver)
        for found in segment.list_segments():
            if found.creator_pid == restarts.daemon.pid:
                segment.remove(found.id)
        await restarts.start(sender, receiver)
        with pytest.raises(shmd.TopicRemoved):
            await publisher.publish(1)
        assert (await subscription.get()).value == "rest"
        with pytest.raises(shmd.TopicRemoved):
            await subscription.get()
        assert await sender.topics() == []


# --- what a program may know ------------------------------------------------------------------------------------------


async def test_client_tells_its_state_and_its_events(restarts: Restarts) -> None:
    async with shmd.connect(restarts.socket_path) as client:
        first = client.events()
        states = [client.state]
        await restarts.kill(client)
        states.append(client.state)
        second = client.events()
        await restarts.start(client)
        assert (await anext(first)).kind == "disconnected"
        event = await anext(first)
        assert (event, await anext(second)) == (shmd.ClientEvent("reconnected", resumed=event.resumed), event)
        await client.close()
        assert [*states, client.state] == ["connected", "disconnected", "closed"]
        assert [event.kind async for event in first] == [event.kind async for event in second] == ["closed"]
        assert [event async for event in client.events()] == []


async def test_events_that_nobody_reads_are_bounded(restarts: Restarts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLIENT_EVENTS_MAX", 2)
    async with shmd.connect(restarts.socket_path) as client:
        events = client.events()
        for _ in range(3):
            client._hub.link.session.close()
            await until(lambda: client.state == "disconnected")
            await until(lambda: client.state == "connected")
        await client.close()
        assert [event.kind async for event in events] == ["reconnected", "closed"]


async def test_closing_says_bye_so_that_all_is_free_at_once(restarts: Restarts) -> None:
    async with two_clients(restarts) as (client, other):
        opened = [await client.publisher("t", exclusive=True), await client.subscribe("t")]
        await client.close()
        opened.clear()
        async with other.publisher("t", exclusive=True):
            stat = await other.stat("t")
            assert stat is not None
            assert stat.subscribers == ()


async def test_client_can_be_closed_while_the_daemon_is_away(restarts: Restarts) -> None:
    async with shmd.connect(restarts.socket_path) as client:
        publisher = await client.publisher("t")
        await restarts.kill(client)
        waiting = asyncio.create_task(client.topics())
        await turns()
        await client.close()
        with pytest.raises(shmd.ClosedError):
            await waiting
        with pytest.raises(shmd.ClosedError):
            await publisher.publish(1)


async def test_defect_in_a_resume_is_logged_once_and_does_not_end_the_attempts(
    restarts: Restarts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with shmd.connect(restarts.socket_path) as client, client.publisher("t") as publisher:
        link_found, tries = client._hub.link_found, 0

        async def defective(*arguments: Any) -> None:
            nonlocal tries
            tries += 1
            if tries <= 2:
                raise ValueError("what nobody thought of")
            await link_found(*arguments)

        monkeypatch.setattr(client._hub, "link_found", defective)
        await restarts.restart(client)
        assert tries == 3
        assert caplog.text.count("but we cannot resume") == 1
        async with client.subscribe("t") as subscription:
            await publisher.publish("after")
            assert (await subscription.get()).value == "after"
