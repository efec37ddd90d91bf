"""A subscriber of the torture: reads every topic, each in its own task, and logs each record that it gets.

Usage: python -m shmd.cli.torture.subscriber SOCKET NUMBER DIRECTORY 0 TOPIC... It ends after the finisher's values. One
with an odd NUMBER is slow, and iterates; another is fast, and takes many at a time.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from shmd.cli.torture.history import Receipt
from shmd.cli.torture.participant import opened, take_part
from shmd.cli.torture.values import FINISHER, unpack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import shmd
    from shmd.cli.torture.history import LogWriter
    from shmd.cli.torture.participant import Orders

MANY: Final = 64
SLOW_RECORDS: Final = 128
SLOW_PAUSE_S: Final = 0.01
"""After so many records: long enough to be lapped on a small topic."""


async def subscribe(orders: Orders, log: LogWriter, finish: asyncio.Future[bytes]) -> None:
    async with opened(orders, "subscriber", lambda client, topic: _join(client, topic, log)) as (_, subscriptions):
        reading = [
            asyncio.ensure_future(_read(topic, subscription, orders, log))
            for topic, subscription in subscriptions.items()
        ]
        finish.add_done_callback(lambda _: [task.cancel() for task in reading])
        await asyncio.gather(*reading)


async def _join(client: shmd.Client, topic: str, log: LogWriter) -> shmd.Subscription[bytes]:
    await client.latest(topic, codec="raw")  # it asks the daemon once; by the second time that may be away
    subscription = await client.subscribe(topic, codec="raw")
    newest = await client.latest(topic, codec="raw")
    log.join(topic, newest.seq if newest else 0)
    return subscription


async def _read(topic: str, subscription: shmd.Subscription[bytes], orders: Orders, log: LogWriter) -> None:
    async for record in _slowly(subscription) if orders.number % 2 else _quickly(subscription):
        value = unpack(record.value)
        if value is None:
            log.tear(topic, record.seq)
            continue
        log.receive(topic, Receipt(record.seq, record.publisher, value, record.lost, record.time_ns, time.time_ns()))
        if value.writer == FINISHER:
            log.end(topic)
            return


async def _quickly(subscription: shmd.Subscription[bytes]) -> AsyncIterator[shmd.Record[bytes]]:
    while True:
        for record in await subscription.get_many(MANY):
            yield record


async def _slowly(subscription: shmd.Subscription[bytes]) -> AsyncIterator[shmd.Record[bytes]]:
    taken = 0
    async for record in subscription:
        yield record
        taken += 1
        if taken % SLOW_RECORDS == 0:
            await asyncio.sleep(SLOW_PAUSE_S)


if __name__ == "__main__":
    take_part(subscribe)
