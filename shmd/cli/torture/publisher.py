"""A publisher of the torture: publishes to every topic at once, one at a time and in pieces, and logs each step.

Usage: python -m shmd.cli.torture.publisher SOCKET NUMBER DIRECTORY COUNT TOPIC... It ends after COUNT values on each
topic, or when it shall finish.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Final

from shmd.cli.torture.history import Value
from shmd.cli.torture.participant import opened, take_part
from shmd.cli.torture.values import pack

if TYPE_CHECKING:
    import shmd
    from shmd.cli.torture.history import LogWriter
    from shmd.cli.torture.participant import Orders

PIECES: Final = (1, 1, 1, 1, 2, 5, 11)
"""How many values are published in one piece."""
BURST_PIECES: Final = 4
PAUSE_S: Final = 0.002
"""After each burst: the others need the machine too."""


async def publish(orders: Orders, log: LogWriter, finish: asyncio.Future[bytes]) -> None:
    async with (
        opened(orders, "publisher", lambda client, topic: client.publisher(topic, codec="raw")) as (_, publishers),
        asyncio.TaskGroup() as group,
    ):
        for publisher in publishers.values():
            group.create_task(_publish_to(publisher, orders, log, finish))


async def _publish_to(
    publisher: shmd.Publisher[bytes], orders: Orders, log: LogWriter, finish: asyncio.Future[bytes]
) -> None:
    chance = random.Random(orders.number)  # noqa: S311 - to be repeated, not to be secret
    n = 1
    while not finish.done() and (n <= orders.count or not orders.count):
        for _ in range(BURST_PIECES):
            count = min(chance.choice(PIECES), orders.count - n + 1 if orders.count else max(PIECES))
            if not count:
                break
            await _publish_piece(publisher, orders.number, n, count, log)
            n += count
        await asyncio.sleep(PAUSE_S)
    log.end(publisher.topic)


async def _publish_piece(publisher: shmd.Publisher[bytes], writer: int, n: int, count: int, log: LogWriter) -> None:
    payloads = [pack(Value(writer, n + offset)) for offset in range(count)]
    log.begin(publisher.topic, n, count)
    seq = await (publisher.publish(payloads[0]) if count == 1 else publisher.publish_many(payloads))
    log.acknowledge(publisher.topic, seq, time.time_ns())


if __name__ == "__main__":
    take_part(publish)
