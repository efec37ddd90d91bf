"""The two documents suffice: a client written from them alone takes part in topics with shmd's own."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import msgpack
import pytest

from tests import foreign_client
from tests.loop_turns import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import shmd
    from shmd.testing import DaemonProcess


@pytest.fixture
def foreign(shmd_daemon: DaemonProcess) -> Iterator[foreign_client.Connection]:
    connection = foreign_client.Connection(shmd_daemon.socket_path)
    yield connection
    connection.close()


def test_foreign_client_imports_nothing_of_shmd() -> None:
    tree = ast.parse(Path(foreign_client.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules = imported | {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "msgpack" in modules
    assert not any(module.startswith(("shmd", "tests", "sysv_ipc")) for module in modules)


async def test_foreign_publisher_wakes_a_sleeping_subscriber(
    foreign: foreign_client.Connection, shmd_client: shmd.Client
) -> None:
    async with shmd_client.subscribe("prices") as subscription:
        waiting = asyncio.create_task(subscription.get())
        publisher = foreign_client.Publisher(foreign, "prices")
        # It sleeps once it has joined the new topic; nothing but the bell wakes it then.
        await until(lambda: publisher.ctl.load(publisher.ARMED) > 0)
        assert publisher.publish(msgpack.packb({"px": 101.25})) == 1
        record = await waiting
        assert (record.seq, record.value, record.publisher) == (1, {"px": 101.25}, publisher.grant["publisher"])
        publisher.close()


async def test_foreign_publisher_laps_the_ring_and_every_record_is_read(
    foreign: foreign_client.Connection, shmd_client: shmd.Client
) -> None:
    publisher = foreign_client.Publisher(foreign, "prices")
    async with shmd_client.subscribe("prices", start="all", codec="raw") as subscription:
        for n in range(1, 300):
            payload = b"x" * (n % 97)
            assert publisher.publish(payload) == n
            record = await subscription.get()
            assert (record.seq, record.value, record.lost) == (n, payload, 0)
    stat = await shmd_client.stat("prices")
    assert stat is not None
    assert stat.tail > 2 * stat.topic.size_bytes
    publisher.close()


async def test_foreign_subscriber_is_woken_and_reads_what_is_published(
    foreign: foreign_client.Connection, shmd_client: shmd.Client
) -> None:
    publisher = await shmd_client.publisher("prices")
    subscriber = foreign_client.Subscriber(foreign, "prices")
    await publisher.wait_for_subscribers(1)
    reading = asyncio.create_task(asyncio.to_thread(subscriber.read))
    await until(lambda: subscriber.ctl.load(subscriber.ARMED) > 0)
    await publisher.publish({"px": 7.5})
    seq, payload = await reading
    assert (seq, msgpack.unpackb(payload)) == (1, {"px": 7.5})
    stat = await shmd_client.stat("prices")
    assert stat is not None
    assert [(reader.name, reader.lag_bytes) for reader in stat.subscribers] == [("foreign", 0)]
    await asyncio.to_thread(subscriber.close)
    await publisher.close()


async def test_foreign_client_is_told_why_it_is_refused(foreign: foreign_client.Connection) -> None:
    with pytest.raises(foreign_client.Refused, match="no-such-topic"):
        foreign_client.Subscriber(foreign, "nothing")
