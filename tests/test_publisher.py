"""Publishing: waiting for room, keeping order, refusing what cannot be, and giving everything back."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

import shmd
from shmd import limits
from tests.loop_turns import started, turns, until

if TYPE_CHECKING:
    from shmd.testing import Connect

pytestmark = pytest.mark.both_loops

SMALL = limits.TOPIC_SIZE_BYTES_MIN


async def fill(publisher: shmd.Publisher[Any]) -> int:
    """Publish until there is no room; how many went in."""
    count = 0
    while True:
        try:
            publisher.publish_nowait(count)
        except shmd.TopicFull:
            return count
        count += 1


async def test_publisher_numbers_records_upwards_from_one(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t") as publisher:
        assert [await publisher.publish(n) for n in range(3)] == [1, 2, 3]
        assert publisher.publish_nowait(3) == 4
        assert await publisher.publish_many([4, 5, 6]) == 7


async def test_publisher_takes_records_from_nothing_to_the_limit(shmd_client: shmd.Client) -> None:
    async with (
        shmd_client.publisher("t", size=SMALL, codec="raw") as publisher,
        shmd_client.subscribe("t", codec="raw") as subscription,
    ):
        for size in (0, 1, 7, 8, 9, publisher.record_size_max - 1, publisher.record_size_max):
            payload = os.urandom(size)
            await publisher.publish(payload)
            assert (await subscription.get()).value == payload


async def test_publisher_refuses_record_over_the_limit_and_names_it(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t", size=SMALL, codec="raw") as publisher:
        too_large = bytes(publisher.record_size_max + 1)
        with pytest.raises(shmd.RecordTooLarge, match=rf"{len(too_large)} bytes .* {publisher.record_size_max} bytes"):
            await publisher.publish(too_large)
        with pytest.raises(shmd.RecordTooLarge):
            publisher.publish_nowait(too_large)
        with pytest.raises(shmd.RecordTooLarge):
            await publisher.publish_many([bytes(SMALL // 8)] * 3)
        assert await publisher.publish(b"fits") == 1


async def test_publisher_refuses_object_that_cannot_be_packed(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t") as publisher:
        with pytest.raises(shmd.EncodeError, match="a set cannot be packed"):
            await publisher.publish({1})
        with pytest.raises(shmd.EncodeError):
            publisher.publish_nowait(object())
        with pytest.raises(shmd.EncodeError):
            await publisher.publish_many([1, 2, {3}])
        assert await publisher.publish(1) == 1


async def test_publish_many_publishes_all_in_one_piece_or_nothing(shmd_client: shmd.Client) -> None:
    async with (
        shmd_client.publisher("t", size=SMALL, when_full="wait", codec="raw") as publisher,
        shmd_client.subscribe("t", codec="raw") as subscription,
    ):
        for _ in range(4):
            await publisher.publish(bytes(900))
        batch = asyncio.create_task(publisher.publish_many([b"a" * 200, b"b" * 200, b"c" * 200]))
        await started(batch)
        assert len(await subscription.get_many(4)) == 4
        assert await batch == 7
        assert [record.raw[:1] for record in await subscription.get_many(10)] == [b"a", b"b", b"c"]


async def test_publish_many_takes_none_and_an_iterator_and_refuses_too_many(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t", size="16MiB") as publisher:
        assert await publisher.publish_many([]) == 0
        assert await publisher.publish_many(iter(range(5))) == 5
        with pytest.raises(shmd.InvalidOption, match=str(limits.PUBLISH_MANY_MAX)):
            await publisher.publish_many(range(limits.PUBLISH_MANY_MAX + 1))
        assert await publisher.publish_many(range(limits.PUBLISH_MANY_MAX)) == 5 + limits.PUBLISH_MANY_MAX


@pytest.mark.usefixtures("notifier")
async def test_publisher_waits_on_a_full_wait_topic_until_the_subscriber_reads(shmd_client: shmd.Client) -> None:
    async with (
        shmd_client.publisher("t", size=SMALL, when_full="wait") as publisher,
        shmd_client.subscribe("t") as subscription,
    ):
        count = await fill(publisher)
        waiting = asyncio.create_task(publisher.publish("waited"))
        await started(waiting)
        read = [(await subscription.get()).value for _ in range(count)]
        assert await waiting == count + 1
        assert read == list(range(count))
        assert (await subscription.get()).value == "waited"


@pytest.mark.usefixtures("notifier")
async def test_publisher_waits_until_the_slow_subscriber_leaves(
    shmd_client: shmd.Client, shmd_connect: Connect
) -> None:
    other = await shmd_connect()
    slow = await other.subscribe("t")
    async with shmd_client.publisher("t", size=SMALL, when_full="wait") as publisher:
        await until(lambda: slow.topics)
        count = await fill(publisher)
        waiting = asyncio.create_task(publisher.publish("waited"))
        await started(waiting)
        await slow.close()
        assert await waiting == count + 1


async def test_publisher_is_not_held_back_by_an_untethered_subscriber(shmd_client: shmd.Client) -> None:
    async with (
        shmd_client.publisher("t", size=SMALL, when_full="wait") as publisher,
        shmd_client.subscribe("t", tethered=False) as tap,
    ):
        for number in range(1000):
            publisher.publish_nowait(number)
        records = await tap.get_many(1000)
        assert records[0].lost + len(records) == 1000
        assert tap.lost == records[0].lost > 0


@pytest.mark.usefixtures("notifier")
async def test_publisher_keeps_the_order_of_tasks_that_wait(shmd_client: shmd.Client) -> None:
    async with (
        shmd_client.publisher("t", size=SMALL, when_full="wait") as publisher,
        shmd_client.subscribe("t") as subscription,
    ):
        count = await fill(publisher)
        waiting = [asyncio.create_task(publisher.publish(["task", number])) for number in range(200)]
        await started(waiting[-1])
        values = [(await subscription.get()).value for _ in range(count + len(waiting))]
        assert values[count:] == [["task", number] for number in range(200)]
        assert [task.result() for task in waiting] == list(range(count + 1, count + 201))


@pytest.mark.usefixtures("notifier")
async def test_publisher_lets_nobody_overtake_those_who_wait_when_there_is_room_again(shmd_client: shmd.Client) -> None:
    async with (
        shmd_client.publisher("t", size=SMALL, when_full="wait") as publisher,
        shmd_client.subscribe("t") as subscription,
    ):
        count = await fill(publisher)
        waiting = asyncio.create_task(publisher.publish("first"))
        await started(waiting)
        assert subscription.get_nowait().value == 0  # room for all, but who waits has not run yet
        assert await publisher.publish("second") == count + 2
        assert await waiting == count + 1


async def test_publisher_lets_other_tasks_run_while_it_never_has_to_wait(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t") as publisher:

        async def publish_on() -> None:
            while True:
                await publisher.publish(1)

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(publish_on(), 0.02)


async def test_publisher_publishes_at_once_after_a_pause_but_yields_if_the_loop_had_no_turn(
    shmd_client: shmd.Client,
) -> None:
    def publish_in_one_step() -> bool:
        """Whether it was published without a turn of the loop."""
        while not publisher._appender.due:
            pass
        publishing = publisher.publish("x")
        try:
            publishing.send(None)
        except StopIteration:
            return True
        publishing.close()
        return False

    async with shmd_client.publisher("t") as publisher:
        assert publish_in_one_step()
        assert not publish_in_one_step(), "the loop had no turn since the last"
        await turns()
        assert publish_in_one_step()


@pytest.mark.usefixtures("notifier")
async def test_publisher_reserves_room_and_writes_in_place(shmd_client: shmd.Client) -> None:
    async with (
        shmd_client.publisher("t", exclusive=True, codec="raw") as publisher,
        shmd_client.subscribe("t", codec="raw") as subscription,
    ):
        with publisher.reserve(5) as buffer:
            assert len(buffer) == 5
            buffer[:] = b"12345"
            with pytest.raises(shmd.NoRecord):
                subscription.get_nowait()
        assert (await subscription.get()).value == b"12345"


async def test_publisher_forgets_reservation_whose_block_raises(shmd_client: shmd.Client) -> None:
    async with (
        shmd_client.publisher("t", exclusive=True, codec="raw") as publisher,
        shmd_client.subscribe("t", codec="raw") as subscription,
    ):
        with pytest.raises(ZeroDivisionError), publisher.reserve(5) as buffer:
            buffer[:] = b"%05d" % (1 // 0)
        assert await publisher.publish(b"next") == 1
        assert (await subscription.get()).value == b"next"


async def test_publisher_refuses_all_else_while_a_reservation_is_open(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t", exclusive=True, codec="raw") as publisher:
        with publisher.reserve(5):
            with pytest.raises(shmd.ConcurrentUse):
                await publisher.publish(b"x")
            with pytest.raises(shmd.ConcurrentUse), publisher.reserve(1):
                pass
            with pytest.raises(BufferError):
                await publisher.close()
        assert await publisher.publish(b"x") == 2


async def test_publisher_refuses_to_publish_reservation_under_a_live_view(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t", exclusive=True, codec="raw") as publisher:
        with pytest.raises(shmd.UsageError, match="nothing was published"), publisher.reserve(5) as buffer:
            kept = memoryview(buffer)[1:3]
        with pytest.raises(shmd.ConcurrentUse):
            await publisher.publish(b"x")
        kept.release()
        gc.collect()
        assert await publisher.publish(b"x") == 1


async def test_publisher_reserve_refuses_shared_topic_too_much_and_no_room(shmd_client: shmd.Client) -> None:
    async with (
        shmd_client.publisher("shared") as shared,
        shmd_client.publisher("t", size=SMALL, when_full="wait", exclusive=True, codec="raw") as publisher,
        shmd_client.subscribe("t", codec="raw") as subscription,
    ):
        with pytest.raises(shmd.InvalidOption, match="'shared' is not exclusive"), shared.reserve(1):
            pass
        with pytest.raises(shmd.RecordTooLarge), publisher.reserve(SMALL):
            pass
        for _ in range(4):
            await publisher.publish(bytes(900))
        with pytest.raises(shmd.TopicFull), publisher.reserve(900):
            pass
        await subscription.get_many(4)
        with publisher.reserve(900) as buffer:
            assert len(buffer) == 900


async def test_publisher_of_exclusive_topic_keeps_others_out_until_it_closes(
    shmd_client: shmd.Client, shmd_connect: Connect
) -> None:
    other = await shmd_connect(name="second")
    async with shmd_client.publisher("t", exclusive=True):
        with pytest.raises(shmd.TopicBusy):
            await other.publisher("t", exclusive=True)
    async with other.publisher("t") as publisher:
        assert await publisher.publish(1) == 1


async def test_client_close_frees_its_exclusive_topics(shmd_client: shmd.Client, shmd_connect: Connect) -> None:
    other = await shmd_connect()
    publisher = await other.publisher("t", exclusive=True)
    await other.close()
    with pytest.raises(shmd.ClosedError):
        await publisher.publish(1)
    async with shmd_client.publisher("t") as again:
        assert await again.publish(1) == 1


async def test_publisher_waits_for_subscribers(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t") as publisher:
        await publisher.wait_for_subscribers(0)
        waiting = asyncio.create_task(publisher.wait_for_subscribers(2))
        async with shmd_client.subscribe("t"):
            await started(waiting)
            async with shmd_client.subscribe("*"):
                await waiting
        with pytest.raises(shmd.InvalidOption):
            await publisher.wait_for_subscribers(-1)


@pytest.mark.usefixtures("notifier")
async def test_publisher_raises_topic_removed_after_somebody_removed_it(
    shmd_client: shmd.Client, shmd_connect: Connect
) -> None:
    other = await shmd_connect()
    async with (
        shmd_client.publisher("t", size=SMALL, when_full="wait") as publisher,
        shmd_client.subscribe("t"),
    ):
        await fill(publisher)
        waiting = asyncio.create_task(publisher.publish("waited"))
        await started(waiting)
        await other.remove("t")
        with pytest.raises(shmd.TopicRemoved, match="'t' was removed"):
            await waiting
        with pytest.raises(shmd.TopicRemoved):
            publisher.publish_nowait(1)
        with pytest.raises(shmd.TopicRemoved):
            await publisher.publish_many([1])
        async with shmd_client.publisher("t") as again:
            assert await again.publish(1) == 1


@pytest.mark.usefixtures("notifier")
async def test_publisher_close_ends_all_who_wait(shmd_client: shmd.Client) -> None:
    publisher = await shmd_client.publisher("t", size=SMALL, when_full="wait")
    async with shmd_client.subscribe("t"):
        await fill(publisher)
        waiting = [asyncio.create_task(publisher.publish(1)) for _ in range(3)]
        await started(waiting[-1])
        await publisher.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [shmd.ClosedError] * 3


async def test_publisher_raises_closed_error_from_everything_after_close(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t") as publisher:
        pass
    await publisher.close()
    with pytest.raises(shmd.ClosedError, match="this publisher of 't' was closed"):
        await publisher.publish(1)
    with pytest.raises(shmd.ClosedError):
        publisher.publish_nowait(1)
    with pytest.raises(shmd.ClosedError):
        await publisher.publish_many([1])
    with pytest.raises(shmd.ClosedError):
        await publisher.publish_many([])
    with pytest.raises(shmd.ClosedError), publisher.reserve(1):
        pass
    with pytest.raises(shmd.ClosedError):
        await publisher.wait_for_subscribers()


@pytest.mark.usefixtures("notifier")
async def test_publisher_dropped_without_close_warns_and_is_given_back(shmd_client: shmd.Client) -> None:
    publisher = await shmd_client.publisher("t", exclusive=True)
    with pytest.warns(ResourceWarning, match="unclosed <Publisher 1 of 't'>"):  # noqa: PT031
        del publisher
        gc.collect()

    async def daemon_knows() -> bool:
        stat = await shmd_client.stat("t")
        return stat is not None and stat.publishers == ()

    await until(daemon_knows)
    async with shmd_client.publisher("t") as again:
        assert await again.publish(1) == 1


@pytest.mark.usefixtures("notifier")
async def test_publishers_of_one_topic_share_one_sequence(shmd_client: shmd.Client, shmd_connect: Connect) -> None:
    other = await shmd_connect()
    async with (
        shmd_client.publisher("t") as first,
        other.publisher("t") as second,
        shmd_client.subscribe("t") as subscription,
    ):
        assert first.number != second.number
        assert [await first.publish("a"), await second.publish("b"), await first.publish("c")] == [1, 2, 3]
        records = await subscription.get_many(3)
        assert [record.publisher for record in records] == [first.number, second.number, first.number]


async def test_record_tells_when_it_was_published(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t") as publisher, shmd_client.subscribe("t") as subscription:
        before = time.time_ns()
        await publisher.publish(1)
        after = time.time_ns()
        record = await subscription.get()
        assert before <= record.time_ns <= after
        assert record.time == pytest.approx(record.time_ns / 1e9)


async def test_publisher_shows_what_it_is(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t", size="64KiB", when_full="wait", mode=0o600) as publisher:
        assert (publisher.topic, publisher.info.size_bytes, publisher.info.when_full) == ("t", 65536, "wait")
        assert repr(publisher) == f"<Publisher {publisher.number} of 't'>"
    assert "closed" in repr(publisher)
