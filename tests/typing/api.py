"""The public API as type checkers see it. Not run: checked by ``mypy --strict`` along with everything else."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, Literal, assert_type

import msgspec

import shmd


class Price(msgspec.Struct):
    symbol: str
    price: float


async def connecting() -> None:
    assert_type(await shmd.connect(), shmd.Client)
    async with shmd.connect("/run/shmd/control.sock", name="feed") as client:
        assert_type(client, shmd.Client)
        assert_type(client.instance, str)
    task = asyncio.create_task(shmd.connect(instance="other"))
    assert_type(await task, shmd.Client)


async def declaring(client: shmd.Client) -> None:
    assert_type(await client.topic("t", size="16MiB", when_full="wait", exclusive=False, mode=0o640), shmd.TopicInfo)
    assert_type(await client.topics("t.>"), list[shmd.TopicInfo])
    assert_type(await client.stat("t"), shmd.TopicStat | None)
    await client.topic("t", when_full="explode")  # type: ignore[arg-type]
    await client.remove("t")


async def publishing(client: shmd.Client) -> None:
    async with client.publisher("t", size=65536, require_subscribers=True) as publisher:
        assert_type(publisher, shmd.Publisher[Any])
        assert_type(await publisher.publish({"a": 1}), int)
        assert_type(publisher.publish_nowait([1, 2]), int)
        assert_type(await publisher.publish_many([1, "two"]), int)
        with publisher.reserve(5) as buffer:
            assert_type(buffer, memoryview)
        await publisher.wait_for_subscribers(1)
    typed = await client.publisher("t", type=Price)
    assert_type(typed, shmd.Publisher[Price])
    await typed.publish(Price("ABCD", 1.5))
    await typed.publish({"symbol": "ABCD"})  # type: ignore[arg-type]
    either = await client.publisher("t", type=int | str)
    assert_type(either, shmd.Publisher[int | str])
    await either.publish(1)
    await either.publish(1.5)  # type: ignore[arg-type]
    client.publisher("t").publish({})  # type: ignore[attr-defined]
    client.publisher("t", type=5)  # type: ignore[call-overload]


async def subscribing(client: shmd.Client) -> None:
    async with client.subscribe("t", start=datetime.now(UTC), spin=0.001, tethered=False) as subscription:
        assert_type(subscription, shmd.Subscription[Any])
        async for record in subscription:
            assert_type(record, shmd.Record[Any])
            assert_type((record.seq, record.time, record.topic, record.publisher, record.lost, record.raw),
                        tuple[int, float, str, int, int, bytes])  # fmt: skip
        assert_type(subscription.lost, int)
    async with client.subscribe("t", start="all", type=Price, until_closed=True) as prices:
        assert_type(prices, shmd.Subscription[Price])
        async for price in prices:
            assert_type(price.value, Price)
        assert_type(await prices.get(), shmd.Record[Price])
        assert_type(prices.get_nowait(), shmd.Record[Price])
        assert_type(await prices.get_many(256, timeout=1.0), list[shmd.Record[Price]])
    client.subscribe("t", start="newest")  # type: ignore[call-overload]
    assert_type(await client.subscribe("t", type=Price | None), shmd.Subscription[Price | None])
    assert_type(await client.subscribe("t", type=dict[str, int]), shmd.Subscription[dict[str, int]])
    assert_type(await client.subscribe("t", type=Literal["up", "down"]), shmd.Subscription[Literal["up", "down"]])
    assert_type(await client.subscribe("t", type=None), shmd.Subscription[Any])
    async for _ in client.subscribe("t"):  # type: ignore[attr-defined]
        pass


async def looking(client: shmd.Client) -> None:
    assert_type(await client.latest("t"), shmd.Record[Any] | None)
    assert_type(await client.latest("t", type=Price), shmd.Record[Price] | None)
    assert_type(await client.latest("t", type=int | str), shmd.Record[int | str] | None)


async def sharing_memory(client: shmd.Client) -> None:
    async with client.segment("s", size="64KiB", create=True, ftok=("/etc/hosts", "A"), mode=0o600) as segment:
        assert_type(segment, shmd.Segment)
        assert_type(segment.buf, memoryview)
        assert_type((segment.key, segment.id, segment.size_bytes, segment.readonly), tuple[int, int, int, bool])
        assert_type(segment.stat(), shmd.SegmentStat)
        assert_type(segment.info, shmd.SegmentInfo)
        segment.notify()
        await segment.wait()
        await segment.set(mode=0o640)
        await segment.remove()
    await client.segment("s", backing="file", sync="interval")
    await client.segment("s", backing="tape")  # type: ignore[arg-type]
    assert_type(await client.segments("s.>"), list[shmd.SegmentInfo])
    assert_type(await client.segment_stat("s"), shmd.SegmentStat | None)
    await client.remove_segment("s")
