"""One record from a publisher to a subscriber. Needs a daemon: run `shmd serve` in another terminal."""

import asyncio

import shmd


async def main() -> None:
    async with shmd.connect() as client, client.subscribe("prices") as subscription:
        publisher = await client.publisher("prices")
        await publisher.publish({"sym": "ABCD", "px": 101.25})
        async for record in subscription:
            print(record.topic, record.value)
            break


asyncio.run(main())
