"""Some sleeping subscribers in one process. Usage: python -m tests.idle_child SOCKET COUNT TOPIC...; COUNT of each.

Prints a line when all have subscribed, and another each time that all have received one more record.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

import shmd


async def main(socket_path: str, count: int, *topics: str) -> None:
    async with shmd.connect(socket_path, name="idle") as client:
        subscriptions = [await client.subscribe(topic) for topic in topics for _ in range(count)]
        while True:
            print("ready", flush=True)  # noqa: T201 - to the test, which reads it
            await asyncio.gather(*(subscription.get() for subscription in subscriptions))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
