"""One end of a pipe in a process of its own, until it is killed: ``pipe_child SOCKET TOPIC publish|subscribe COUNT``.

A publisher publishes 0 to COUNT - 1; a subscriber reads COUNT records. Then, either way, it says "ready" and stays.
"""

from __future__ import annotations

import asyncio
import sys

import shmd


async def main(socket_path: str, topic: str, end: str, count: str) -> None:
    async with shmd.connect(socket_path, name=end) as client:
        if end == "publish":
            publisher = await client.publisher(topic)
            await publisher.publish_many(range(int(count)))
        else:
            subscription = await client.subscribe(topic)
            for _ in range(int(count)):
                await subscription.get()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
