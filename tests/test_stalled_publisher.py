"""A publisher that waits too long: it tells the daemon, or, without one, frees its topic of the dead by itself."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import shmd
from shmd import limits
from tests.loop_turns import turns, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmd.testing import Connect
    from tests.restarts import Restarts

pytestmark = pytest.mark.usefixtures("notifier")

SMALL = limits.TOPIC_SIZE_BYTES_MIN


@contextlib.contextmanager
def reader(restarts: Restarts, topic: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds publishers of ``topic`` back."""
    command = [sys.executable, "-m", "tests.reader_child", restarts.socket_path, topic]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            yield child
        finally:
            child.kill()


def fill(publisher: shmd.Publisher[Any]) -> int:
    count = 0
    with contextlib.suppress(shmd.TopicFull):
        while True:
            publisher.publish_nowait("filler")
            count += 1
    return count


async def _subscribers_of(client: shmd.Client, topic: str, count: int) -> bool:
    stat = await client.stat(topic)
    return stat is not None and len(stat.subscribers) == count


@pytest.mark.may_block
@pytest.mark.parametrize("daemon", ["killed", "stopped"])
async def test_full_publisher_without_a_daemon_frees_its_topic_of_a_dead_reader(
    restarts: Restarts, caplog: pytest.LogCaptureFixture, daemon: str
) -> None:
    async with (
        shmd.connect(restarts.socket_path) as client,
        client.publisher("t", size=SMALL, when_full="wait") as publisher,
        client.subscribe("t") as subscription,
    ):
        with reader(restarts, "t") as child:
            count = fill(publisher)
            assert len(await subscription.get_many(limits.GET_MANY_MAX)) == count
            if daemon == "killed":
                await restarts.kill(client)
            else:
                restarts.daemon.process.send_signal(signal.SIGSTOP)
            waiting = asyncio.create_task(publisher.publish("at last"))
            if daemon == "killed":
                await until(lambda: client._hub.link._reconnecting is not None)
            await asyncio.sleep(5 * limits.RECHECK_DISCONNECTED_MIN_S)
            assert not waiting.done(), "the reader lives, and is waited for"
            child.kill()
            await waiting
            assert (await subscription.get()).value == "at last"
            if daemon == "stopped":
                restarts.daemon.process.send_signal(signal.SIGCONT)
                await until(lambda: _subscribers_of(client, "t", 1))
        assert "is dead, and no longer waited for" in caplog.text
        assert subscription.tethered


async def test_reader_that_holds_publishers_back_for_stall_timeout_loses_its_tether_and_is_told(
    shmd_connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "STALL_REPORT_S", 0.02)
    client, other = await shmd_connect(), await shmd_connect()
    async with (
        client.publisher("t", size=SMALL, when_full="wait", stall_timeout="50ms") as publisher,
        other.subscribe("t") as slow,
        other.subscribe("t", tethered=False) as tap,
    ):
        assert publisher.info.stall_timeout_s == 0.05
        assert (slow.tethered, tap.tethered) == (True, False)
        fill(publisher)
        await publisher.publish("at last")
        await until(lambda: not slow.tethered)
        await until(lambda: "no longer wait for it" in caplog.text)
        await publisher.publish_many(["overtakes"] * 20)
        await publisher.publish_many(["overtakes"] * 20)
        records = await slow.get_many(limits.GET_MANY_MAX)
        assert records[0].lost > 0
        assert caplog.text.count("no longer wait for it") == 1


async def test_reader_that_lost_its_tether_while_it_was_away_gets_it_back(shmd_connect: Connect) -> None:
    client, other = await shmd_connect(), await shmd_connect()
    async with (
        client.publisher("t", size=SMALL, when_full="wait") as publisher,
        other.subscribe("t") as subscription,
    ):
        fill(publisher)
        slowest = publisher._seat.log.slowest()
        assert slowest is not None
        assert publisher._seat.log.slot_untether(*slowest)
        assert not subscription.tethered
        for _ in range(300):
            publisher.publish_nowait("overtakes")
        other._hub.link.session.close()
        await until(lambda: other.state == "disconnected")
        await until(lambda: other.state == "connected")
        assert subscription.tethered
        fill(publisher)
        waiting = asyncio.create_task(publisher.publish("last"))
        await turns()
        assert not waiting.done()
        records = await subscription.get_many(limits.GET_MANY_MAX)
        assert records[0].lost > 0
        assert sum(record.lost for record in records[1:]) == 0
        await waiting


@pytest.mark.parametrize(
    "options", [{"lifetime": "forever"}, {"idle_ttl": 0}, {"idle_ttl": "soon"}, {"stall_timeout": "99999d"}]
)
async def test_options_that_cannot_be_are_refused(shmd_client: shmd.Client, options: dict[str, Any]) -> None:
    with pytest.raises(shmd.InvalidOption):
        await shmd_client.topic("t", **options)
    assert await shmd_client.topics() == []


async def test_lifetime_and_times_reach_the_topic(shmd_client: shmd.Client) -> None:
    info = await shmd_client.topic("t", idle_ttl="1h", stall_timeout=2.5)
    assert (info.lifetime, info.idle_ttl_s, info.stall_timeout_s) == ("os", 3600.0, 2.5)
    with pytest.raises(shmd.TopicMismatch):
        await shmd_client.topic("t", lifetime="attached")
    async with shmd_client.publisher("u", lifetime="attached") as publisher:
        assert publisher.info.lifetime == "attached"
    assert await shmd_client.stat("u") is None
