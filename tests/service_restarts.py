"""What runs inside a booted systemd: a publisher and a subscriber, and restarts of the service between them.

python service_restarts.py SOCKET [receive]

The publisher's process restarts the service in each of several ways, and goes on publishing. At the end it prints as
JSON, for both, which bells it had at first and after each restart, and what the subscriber received.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from pathlib import Path

import shmd
from shmd.seat import TopicSeat

TOPIC = "t"
UNIT = "shmd.service"
PAUSE_S = 0.0002
"""Between two records: enough for the subscriber to fall asleep each time."""
WAYS = (("systemctl", "restart", UNIT), ("systemctl", "kill", "--kill-whom=main", "--signal=KILL", UNIT))


def bells(client: shmd.Client) -> list[str]:
    """What tells apart the eventfds that a client hears and rings."""
    found = []
    for seat in client._hub.all_seats():
        assert isinstance(seat, TopicSeat)
        for fd in (seat.listening_fd, seat.ringing_fd):
            fields = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
            found += [field for field in fields if field.startswith("eventfd-id")]
    return sorted(found)


def say(what: object) -> None:
    print(json.dumps(what), flush=True)  # noqa: T201


async def receive(client: shmd.Client) -> None:
    expected, wrong = 1, []
    async with client.subscribe(TOPIC) as subscription:
        say(bells(client))

        async def watch() -> None:
            async for event in client.events():
                if event.kind == "reconnected":
                    say(bells(client))

        watching = asyncio.create_task(watch())
        async for record in subscription:
            if record.value is None:
                break
            if (record.value, record.seq, record.lost) != (expected, expected, 0):
                wrong.append((expected, record.seq, record.value, record.lost))
            expected += 1
        await cancel(watching)
    say({"received": expected - 1, "wrong": wrong[:10]})


async def publish(client: shmd.Client, path: str) -> None:
    events, published = client.events(), 0
    async with client.publisher(TOPIC, when_full="wait", size="64KiB") as publisher:
        receiver = await asyncio.create_subprocess_exec(
            sys.executable, __file__, path, "receive", stdout=subprocess.PIPE
        )
        assert receiver.stdout is not None

        async def go_on() -> None:
            nonlocal published
            while True:
                await publisher.publish(published + 1)
                published += 1
                await asyncio.sleep(PAUSE_S)

        theirs = [json.loads(await receiver.stdout.readline())]
        publishing, ours = asyncio.create_task(go_on()), [bells(client)]
        for way in WAYS:
            restart = await asyncio.create_subprocess_exec(*way)
            while (await anext(events)).kind != "reconnected":
                pass
            assert await restart.wait() == 0
            ours.append(bells(client))
            theirs.append(json.loads(await receiver.stdout.readline()))
        await cancel(publishing)
        await publisher.publish(None)
        received = json.loads(await receiver.stdout.readline())
        await receiver.wait()
    say({"published": published, "bells": ours, "receiver": {"bells": theirs, **received}})


async def cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def main(path: str, *what: str) -> None:
    async with shmd.connect(path) as client:
        await (receive(client) if what else publish(client, path))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
