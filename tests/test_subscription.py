"""Subscribing: where it begins, what it waits for, what it loses, how it ends."""

from __future__ import annotations

import asyncio
import gc
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import shmd
from shmd import limits
from shmd.start import parse_start
from tests.loop_turns import started, until

if TYPE_CHECKING:
    from shmd.testing import Connect

pytestmark = pytest.mark.both_loops

SMALL = limits.TOPIC_SIZE_BYTES_MIN


class Price(msgspec.Struct):
    symbol: str
    price: float


def values(records: list[shmd.Record[Any]]) -> list[Any]:
    return [record.value for record in records]


# --- where it begins --------------------------------------------------------------------------------------------------


async def test_subscription_starts_where_it_is_told_to(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t") as publisher:
        for number in range(1, 6):
            await publisher.publish(number)
        for start, expected in (("new", []), ("last", [5]), ("all", [1, 2, 3, 4, 5]), (3, [3, 4, 5]), (7, [])):
            async with shmd_client.subscribe("t", start=start) as subscription:  # type: ignore[arg-type]
                assert values(await subscription.get_many(10, timeout=0)) == expected, start
                assert subscription.lost == 0


async def test_subscription_from_a_number_to_come_skips_what_is_before_it(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t") as publisher, shmd_client.subscribe("t", start=4) as subscription:
        for number in range(1, 6):
            await publisher.publish(number)
        assert values(await subscription.get_many(10)) == [4, 5]
        assert subscription.lost == 0


async def test_subscription_from_a_discarded_number_counts_the_lost(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t", size=SMALL) as publisher:
        for number in range(1, 501):
            await publisher.publish(number)
        async with shmd_client.subscribe("t", start=100) as subscription:
            records = await subscription.get_many(1000)
            assert records[0].lost == records[0].seq - 100 == subscription.lost > 0
            assert values(records) == list(range(records[0].seq, 501))
        async with shmd_client.subscribe("t", start="all") as subscription:
            assert (await subscription.get()).seq == records[0].seq
            assert subscription.lost == 0


async def test_subscription_starts_at_a_time(shmd_client: shmd.Client) -> None:
    async with (
        shmd_client.publisher("t") as publisher,
        shmd_client.subscribe("t") as every,
    ):
        moments = []
        for number in range(3):
            await publisher.publish(number)
            moments.append((await every.get()).time_ns)
            await until(lambda: datetime.now(UTC).timestamp() * 1e9 > moments[-1] + 10_000)
        second = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=-(-moments[1] // 1000) - 1)
        for start, expected in (
            (second, [1, 2]),
            (datetime(1900, 1, 1, tzinfo=UTC), [0, 1, 2]),
            (datetime(9999, 1, 1, tzinfo=UTC), []),
        ):
            async with shmd_client.subscribe("t", start=start) as subscription:
                assert values(await subscription.get_many(10, timeout=0)) == expected


@pytest.mark.parametrize("start", ["newest", 0, -1, True, 1.5, None, 2**63, datetime(2024, 1, 1)])
def test_parse_start_refuses_what_is_no_start(start: Any) -> None:
    with pytest.raises(shmd.InvalidOption):
        parse_start(start)


# --- topics that come -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("notifier")
async def test_subscription_to_a_topic_to_come_gets_it_from_its_first_record(
    shmd_client: shmd.Client, shmd_connect: Connect
) -> None:
    other = await shmd_connect()
    async with shmd_client.subscribe("t") as subscription, other.publisher("t") as publisher:
        await publisher.publish_many(range(100))
        assert values([await subscription.get() for _ in range(100)]) == list(range(100))
        assert subscription.lost == 0


@pytest.mark.usefixtures("notifier")
async def test_subscription_to_a_pattern_joins_topics_that_come_from_their_first_record(
    shmd_client: shmd.Client, shmd_connect: Connect
) -> None:
    other = await shmd_connect()
    async with (
        other.publisher("prices.old") as old,
        other.publisher("volumes.x") as unrelated,
    ):
        await old.publish("before")
        async with shmd_client.subscribe("prices.*") as subscription:
            assert subscription.topics == ("prices.old",)
            async with other.publisher("prices.new", when_full="wait", size=SMALL) as new:
                await new.publish_many(range(20))
                await old.publish("after")
                await unrelated.publish("unrelated")
                await other.topic("prices.too.deep")
                records = [await subscription.get() for _ in range(21)]
        assert values([record for record in records if record.topic == "prices.new"]) == list(range(20))
        assert values([record for record in records if record.topic == "prices.old"]) == ["after"]


@pytest.mark.usefixtures("notifier")
async def test_subscription_to_a_wait_topic_to_come_holds_it_from_its_first_record(
    shmd_client: shmd.Client, shmd_connect: Connect
) -> None:
    other = await shmd_connect()
    async with (
        shmd_client.subscribe("t") as subscription,
        other.publisher("t", size=SMALL, when_full="wait") as publisher,
    ):
        publishing = asyncio.create_task(_publish_all(publisher, 2000))
        assert values([await subscription.get() for _ in range(2000)]) == list(range(2000))
        assert subscription.lost == 0
        await publishing


async def _publish_all(publisher: shmd.Publisher[Any], count: int) -> None:
    for number in range(count):
        await publisher.publish(number)


@pytest.mark.usefixtures("notifier")
async def test_subscription_to_a_pattern_reads_busy_topics_in_turn(shmd_client: shmd.Client) -> None:
    async with (
        shmd_client.publisher("busy", size="4MiB") as busy,
        shmd_client.publisher("quiet") as quiet,
        shmd_client.subscribe(">", start="all") as subscription,
    ):
        for number in range(20_000):
            await busy.publish(number)
        await quiet.publish("heard")
        seen = 0
        while (await subscription.get()).topic == "busy":
            seen += 1
        assert seen * 48 <= 2 * limits.READ_BATCH_BYTES


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("notifier")
async def test_subscription_waits_for_the_next_record(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t") as publisher, shmd_client.subscribe("t") as subscription:
        for number in range(10):
            waiting = asyncio.create_task(subscription.get())
            await started(waiting)
            await publisher.publish(number)
            assert (await waiting).value == number


@pytest.mark.usefixtures("notifier")
async def test_subscription_is_woken_by_a_publisher_of_another_client(
    shmd_client: shmd.Client, shmd_connect: Connect
) -> None:
    other = await shmd_connect()
    async with other.publisher("t") as publisher, shmd_client.subscribe("*") as subscription:
        waiting = asyncio.create_task(subscription.get())
        await started(waiting)
        await publisher.publish("hello")
        record = await waiting
        assert (record.topic, record.seq, record.value, record.lost) == ("t", 1, "hello", 0)


@pytest.mark.usefixtures("notifier")
async def test_subscription_iterates_until_it_is_closed(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t") as publisher, shmd_client.subscribe("t") as subscription:
        seen: list[Any] = []

        async def read() -> None:
            async for record in subscription:
                seen.append(record.value)  # noqa: PERF401 - what a reader does, one by one

        reading = asyncio.create_task(read())
        for number in range(1000):
            await publisher.publish(number)
        await until(lambda: len(seen) == 1000)
        await subscription.close()
        await reading
        assert seen == list(range(1000))


async def test_subscription_keeps_what_was_read_ahead_when_the_loop_is_left(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t") as publisher, shmd_client.subscribe("t") as subscription:
        await publisher.publish_many(range(10))
        async for record in subscription:
            if record.value == 3:
                break
        assert subscription.get_nowait().value == 4
        assert (await subscription.get()).value == 5
        assert values(await subscription.get_many(2)) == [6, 7]
        async for record in subscription:
            assert record.value == 8
            break


async def test_subscription_get_nowait_raises_no_record_until_there_is_one(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t") as publisher, shmd_client.subscribe("t") as subscription:
        with pytest.raises(shmd.NoRecord):
            subscription.get_nowait()
        with pytest.raises(TimeoutError):  # falls asleep on the bell, and is taken away from it
            await asyncio.wait_for(subscription.get(), 0.001)
        publisher.publish_nowait("now")
        assert subscription.get_nowait().value == "now"
        with pytest.raises(shmd.NoRecord):
            subscription.get_nowait()


async def test_subscription_get_many_returns_what_is_there_but_at_least_one(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t") as publisher, shmd_client.subscribe("t") as subscription:
        assert await subscription.get_many(10, timeout=0) == []
        assert await subscription.get_many(10, timeout=0.001) == []
        await publisher.publish_many(range(5))
        assert values(await subscription.get_many(3)) == [0, 1, 2]
        assert values(await subscription.get_many(10, timeout=60)) == [3, 4]
        waiting = asyncio.create_task(subscription.get_many(10))
        await started(waiting)
        await publisher.publish("late")
        assert values(await waiting) == ["late"]


async def test_subscription_get_many_takes_more_than_one_stretch(shmd_client: shmd.Client) -> None:
    count = limits.GET_MANY_MAX
    async with (
        shmd_client.publisher("t", size="16MiB", when_full="wait") as publisher,
        shmd_client.subscribe("t") as subscription,
    ):
        await publisher.publish_many(range(count))
        assert values(await subscription.get_many(count)) == list(range(count))
        for bad in (0, -1, count + 1):
            with pytest.raises(shmd.InvalidOption):
                await subscription.get_many(bad)


async def test_subscription_refuses_two_readers_at_a_time(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t") as publisher, shmd_client.subscribe("t") as subscription:
        waiting = asyncio.create_task(subscription.get())
        await started(waiting)
        for read in (subscription.get, lambda: subscription.get_many(1), lambda: anext(subscription)):
            with pytest.raises(shmd.ConcurrentUse, match="subscribe once for each task"):
                await read()
        with pytest.raises(shmd.ConcurrentUse):
            subscription.get_nowait()
        await publisher.publish(1)
        assert (await waiting).value == 1
        await publisher.publish(2)
        assert (await subscription.get()).value == 2


@pytest.mark.usefixtures("notifier")
async def test_subscription_lets_other_tasks_run_while_there_is_always_something(shmd_client: shmd.Client) -> None:
    async with (
        shmd_client.publisher("t") as publisher,
        shmd_client.subscribe("t") as by_iterating,
        shmd_client.subscribe("t") as by_getting,
    ):

        async def iterate() -> None:
            async for _ in by_iterating:
                publisher.publish_nowait(1)

        async def get() -> None:
            while True:
                await by_getting.get()
                publisher.publish_nowait(1)

        for read in (iterate, get):
            for _ in range(10):
                await publisher.publish(1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await read()


@pytest.mark.usefixtures("notifier")
async def test_slow_subscription_of_a_discard_old_topic_receives_or_loses_every_record(
    shmd_client: shmd.Client, shmd_connect: Connect
) -> None:
    other = await shmd_connect()
    async with other.publisher("t", size=SMALL) as publisher, shmd_client.subscribe("t") as subscription:
        received = 0
        last = 0
        for burst in range(50):
            for _ in range(20 * burst):
                await publisher.publish("x" * burst)
            for record in await subscription.get_many(burst + 1, timeout=0):
                assert record.seq == last + record.lost + 1
                last = record.seq
                received += 1
        sent = await publisher.publish("end")
        while last < sent:
            record = await subscription.get()
            assert record.seq == last + record.lost + 1
            last = record.seq
            received += 1
        assert received + subscription.lost == sent
        assert subscription.lost > 0


@pytest.mark.usefixtures("notifier")
async def test_subscription_spins_before_it_sleeps(shmd_client: shmd.Client) -> None:
    async with (
        shmd_client.publisher("t") as publisher,
        shmd_client.subscribe("t", spin=60.0) as spinning,
        shmd_client.subscribe("t", spin=0.0001) as brief,
    ):
        for number in range(5):
            waiting = [asyncio.create_task(subscription.get()) for subscription in (spinning, brief)]
            await started(waiting[0])
            await publisher.publish(number)
            assert [(await task).value for task in waiting] == [number, number]
        assert await spinning.get_many(1, timeout=0.001) == []
        stat = await shmd_client.stat("t")
        assert stat is not None
        waiting = [asyncio.create_task(spinning.get())]
        await started(waiting[0])
        await spinning.close()
        with pytest.raises(shmd.ClosedError):
            await waiting[0]


async def test_subscription_gives_typed_records_and_names_the_field_that_is_wrong(shmd_client: shmd.Client) -> None:
    async with (
        shmd_client.publisher("t", type=Price) as typed,
        shmd_client.publisher("t") as plain,
        shmd_client.subscribe("t", type=Price) as subscription,
    ):
        await typed.publish(Price("ABCD", 1.5))
        await plain.publish({"symbol": "ABCD"})
        await plain.publish({"symbol": "EFGH", "price": 2.5})
        assert (await subscription.get()).value == Price("ABCD", 1.5)
        wrong = await subscription.get()
        with pytest.raises(shmd.DecodeError, match="price"):
            wrong.value  # noqa: B018
        assert wrong.raw
        assert (await subscription.get()).value.price == 2.5


# --- how it ends ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("notifier")
async def test_subscription_to_a_name_reads_the_rest_and_then_raises_topic_removed(
    shmd_client: shmd.Client, shmd_connect: Connect
) -> None:
    other = await shmd_connect()
    async with shmd_client.publisher("t") as publisher, shmd_client.subscribe("t") as subscription:
        await publisher.publish_many(range(3))
        await other.remove("t")
        assert values([await subscription.get() for _ in range(3)]) == [0, 1, 2]
        for _ in range(2):
            with pytest.raises(shmd.TopicRemoved, match="'t' was removed"):
                await subscription.get()
        with pytest.raises(shmd.TopicRemoved):
            subscription.get_nowait()
        with pytest.raises(shmd.TopicRemoved):
            async for _ in subscription:
                pass
        assert subscription.topics == ()


@pytest.mark.usefixtures("notifier")
async def test_subscription_asleep_is_woken_by_the_removal(shmd_client: shmd.Client, shmd_connect: Connect) -> None:
    other = await shmd_connect()
    await other.topic("t")
    async with shmd_client.subscribe("t") as subscription:
        waiting = asyncio.create_task(subscription.get())
        await started(waiting)
        await other.remove("t")
        with pytest.raises(shmd.TopicRemoved):
            await waiting


@pytest.mark.usefixtures("notifier")
async def test_subscription_to_a_pattern_goes_on_with_a_topic_that_comes_again(
    shmd_client: shmd.Client, shmd_connect: Connect
) -> None:
    other = await shmd_connect()
    async with shmd_client.subscribe("*") as subscription:
        for incarnation in range(3):
            async with other.publisher("t") as publisher:
                await publisher.publish(incarnation)
                record = await subscription.get()
                assert (record.seq, record.value) == (1, incarnation)
                await other.remove("t")
        assert await subscription.get_many(1, timeout=0.001) == []


@pytest.mark.usefixtures("notifier")
async def test_subscription_close_ends_waiting_readers_and_everything_after(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t") as publisher:
        subscription = await shmd_client.subscribe("t")
        waiting = asyncio.create_task(subscription.get())
        await started(waiting)
        await subscription.close()
        await subscription.close()
        with pytest.raises(shmd.ClosedError, match="this subscription to 't' was closed"):
            await waiting
        with pytest.raises(shmd.ClosedError):
            await subscription.get()
        with pytest.raises(shmd.ClosedError):
            subscription.get_nowait()
        with pytest.raises(shmd.ClosedError):
            await subscription.get_many(1)
        assert [record async for record in subscription] == []
        await publisher.publish(1)
        stat = await shmd_client.stat("t")
        assert stat is not None
        assert stat.subscribers == ()


@pytest.mark.usefixtures("notifier")
async def test_subscription_dropped_without_close_warns_and_lets_publishers_go(shmd_client: shmd.Client) -> None:
    async with shmd_client.publisher("t", size=SMALL, when_full="wait") as publisher:
        subscription = await shmd_client.subscribe("t")
        with pytest.warns(ResourceWarning, match="unclosed <Subscription to 't'>"):  # noqa: PT031
            del subscription
            gc.collect()
        for number in range(500):
            await publisher.publish(number)


async def test_subscription_maps_the_log_read_only(shmd_client: shmd.Client, shmd_connect: Connect) -> None:
    other = await shmd_connect()
    info = await other.topic("t")
    async with shmd_client.subscribe("t") as subscription:
        (topic,) = subscription._topics
        log, ctl = topic._attachment._segments
        with pytest.raises(TypeError, match="read-only"):
            log.buf[0] = 1
        assert ctl.id == info.ctl_id
        maps = Path("/proc/self/maps").read_text().splitlines()  # noqa: ASYNC240
        access = {int(line.split()[4]): line.split()[1] for line in maps if "SYSV" in line}
        assert (access[info.log_id], access[info.ctl_id]) == ("r--s", "rw-s")


async def test_subscription_shows_what_it_is(shmd_client: shmd.Client) -> None:
    async with shmd_client.subscribe("a.*") as subscription:
        assert (subscription.pattern, subscription.topics, subscription.lost) == ("a.*", (), 0)
        assert repr(subscription) == "<Subscription to 'a.*'>"
    assert repr(subscription) == "<Subscription to 'a.*' closed>"


@pytest.mark.parametrize("spin", [-1.0, float("nan"), float("inf")])
async def test_subscribe_refuses_what_cannot_be(shmd_client: shmd.Client, spin: float) -> None:
    with pytest.raises(shmd.InvalidOption, match="spin cannot be"):
        await shmd_client.subscribe("t", spin=spin)
    with pytest.raises(shmd.InvalidName):
        await shmd_client.subscribe("a..b")
    with pytest.raises(shmd.InvalidName):
        await shmd_client.subscribe(">.a")
