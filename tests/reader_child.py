"""``reader_child SOCKET TOPIC``: subscribes, says "ready", and never reads; until it is killed."""

from __future__ import annotations

import asyncio
import sys

import shmd


async def main(socket_path: str, topic: str) -> None:
    async with shmd.connect(socket_path) as client, client.subscribe(topic):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
