"""One end of a transfer: SOCKET send|receive COUNT NOTIFIER. Values are 1 to COUNT, on a `wait` topic.

The receiver writes "half" when it is half through, and at the end what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING

import shmd

if TYPE_CHECKING:
    from shmd.protocol import Notifier

TOPIC = "transfer"
PIECE = 16


async def send(client: shmd.Client, count: int) -> None:
    async with client.publisher(TOPIC, when_full="wait", size="256KiB") as publisher:
        await publisher.wait_for_subscribers(1)
        n = 0
        while n < count:
            piece = range(n + 1, min(n + PIECE, count) + 1)
            await publisher.publish_many(piece)
            n = piece[-1]


async def receive(client: shmd.Client, count: int) -> None:
    expected, wrong, longest = 1, [], 0.0
    async with client.subscribe(TOPIC) as subscription:
        await subscription.get_many(1)
        expected += 1
        last = time.monotonic()
        while expected <= count:
            records = await subscription.get_many(256)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
            for record in records:
                if (record.seq, record.value, record.lost) != (expected, expected, 0):
                    wrong.append((expected, record.seq, record.value, record.lost))
                if expected == count // 2:
                    sys.stdout.write("half\n")
                    sys.stdout.flush()
                expected += 1
    json.dump({"received": expected - 1, "wrong": wrong[:10], "longest_pause_s": longest}, sys.stdout)


async def main(socket_path: str, what: str, count: int, notifier: Notifier) -> None:
    async with shmd.connect(socket_path, name=what) as client:
        await client.topic(TOPIC, when_full="wait", size="256KiB", notifier=notifier)
        await {"send": send, "receive": receive}[what](client, count)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))  # type: ignore[arg-type]
