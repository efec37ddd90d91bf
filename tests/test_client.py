"""The client: connecting, declaring, looking, and going on when the daemon is gone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import shmd
from shmd import limits, places
from shmd.looks import Looks
from tests.loop_turns import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmd.testing import Connect, DaemonProcess, StartDaemon

pytestmark = pytest.mark.both_loops

WATCHDOG_S = 60.0
"""Longer than anything takes."""
BRIEF_S = 0.02
"""How long requests may take that nobody is going to answer."""
SMALL = limits.TOPIC_SIZE_BYTES_MIN


def state(client: shmd.Client) -> str:
    """A function, so that the type checker does not take it to be what it was."""
    return client.state


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """Where a socket's path is not too long."""
    with tempfile.TemporaryDirectory(prefix="shmd-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


# --- connecting -------------------------------------------------------------------------------------------------------


async def test_connect_can_be_awaited_entered_or_made_a_task(shmd_daemon: DaemonProcess) -> None:
    path = shmd_daemon.socket_path
    client = await shmd.connect(path)
    assert (client.state, client.instance, client.daemon_pid) == ("connected", shmd_daemon.instance, shmd_daemon.pid)
    await client.close()
    assert state(client) == "closed"
    async with shmd.connect(Path(path)) as client:
        assert state(client) == "connected"
    assert state(client) == "closed"
    first, second = await asyncio.gather(asyncio.create_task(shmd.connect(path)), shmd.connect(path))
    async with first, second:
        assert await first.topics() == []


async def test_connect_finds_the_socket_that_the_environment_names(
    shmd_daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMD_SOCKET", shmd_daemon.socket_path)
    async with shmd.connect() as client:
        assert client.instance == shmd_daemon.instance


async def test_connect_fails_fast_and_says_where_it_looked(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with pytest.raises(shmd.DaemonUnavailable, match=f"{path}.*shmd serve"):
        await shmd.connect(path)


@pytest.mark.parametrize("stale", [False, True], ids=["none", "stale"])
async def test_connect_waits_for_a_daemon_that_is_not_there_yet(
    shmd_start: StartDaemon, short_directory: Path, *, stale: bool
) -> None:
    path = short_directory / "control.sock"
    if stale:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as gone:
            gone.bind(str(path))
    connecting = asyncio.create_task(shmd.connect(path, wait=True, timeout_s=WATCHDOG_S))
    await asyncio.sleep(0)
    assert not connecting.done()
    daemon = await asyncio.to_thread(shmd_start, runtime_dir=short_directory)
    async with await connecting as client:
        assert client.daemon_pid == daemon.pid


async def test_connect_waits_also_where_nothing_is_found_to_connect_to(
    shmd_daemon: DaemonProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHMD_SOCKET", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    for name in ("SYSTEM_DIR", "USERS_DIR", "TEMPORARY_DIR"):
        monkeypatch.setattr(places, name, tmp_path / "nothing")
    connecting = asyncio.create_task(shmd.connect(wait=True, timeout_s=WATCHDOG_S))
    await asyncio.sleep(0)
    assert not connecting.done()
    monkeypatch.setattr(places, "SYSTEM_DIR", shmd_daemon.runtime_dir)
    async with await connecting as client:
        assert client.daemon_pid == shmd_daemon.pid


async def test_connect_waits_through_daemons_that_go_before_they_answer(short_directory: Path) -> None:
    path = short_directory / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.setblocking(False)
        connecting = asyncio.create_task(shmd.connect(path, wait=True, timeout_s=WATCHDOG_S))
        for _ in range(3):
            connection, _ = await asyncio.get_running_loop().sock_accept(listening)
            connection.close()
        assert not connecting.done()
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting


async def test_connect_that_waited_in_vain_says_where_it_looked(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with pytest.raises(shmd.DaemonUnavailable, match=f"{path}.*shmd serve"):
        await shmd.connect(path, wait=True, timeout_s=BRIEF_S)


async def test_connect_does_not_wait_for_what_no_daemon_would_change(tmp_path: Path) -> None:
    (tmp_path / "s").touch()
    with pytest.raises(shmd.DaemonUnavailable, match="Not a directory"):
        await shmd.connect(tmp_path / "s" / "control.sock", wait=True, timeout_s=WATCHDOG_S)


async def test_connect_at_the_daemons_limit_of_clients_is_told_so(shmd_start: StartDaemon, tmp_path: Path) -> None:
    (tmp_path / "shmd.toml").write_text("clients_max = 1\n")
    daemon = await asyncio.to_thread(shmd_start, "--config", str(tmp_path / "shmd.toml"))
    path = daemon.socket_path
    async with shmd.connect(path):
        for _ in range(20):  # its word and its hanging up come in any order with ours
            with pytest.raises(shmd.LimitExceeded, match="1 clients"):
                await shmd.connect(path)


async def test_connect_refuses_too_long_a_name(shmd_daemon: DaemonProcess) -> None:
    with pytest.raises(shmd.InvalidOption, match="64 characters"):
        await shmd.connect(shmd_daemon.socket_path, name="x" * 65)


async def test_client_is_named_in_stat(shmd_connect: Connect) -> None:
    named, unnamed = await shmd_connect(name="feed"), await shmd_connect()
    async with named.publisher("t"), unnamed.subscribe("t"):
        stat = await named.stat("t")
        assert stat is not None
        assert [publisher.name for publisher in stat.publishers] == ["feed"]
        assert [subscriber.name for subscriber in stat.subscribers] == [Path(sys.argv[0]).name]


# --- topics -----------------------------------------------------------------------------------------------------------


async def test_topic_is_declared_once_and_then_as_it_is(shmd_client: shmd.Client) -> None:
    info = await shmd_client.topic("a.b", size="100KiB", when_full="wait", exclusive=True, mode=0o600)
    assert (info.name, info.size_bytes, info.when_full, info.exclusive, info.mode) == (
        "a.b",
        131072,
        "wait",
        True,
        0o600,
    )
    assert await shmd_client.topic("a.b") == info
    assert await shmd_client.topic("a.b", size=100_000, when_full="wait") == info
    default = await shmd_client.topic("c")
    assert (default.size_bytes, default.when_full, default.exclusive) == (
        limits.TOPIC_SIZE_BYTES_DEFAULT,
        "discard-old",
        False,
    )


async def test_topic_mismatch_names_both_values(shmd_client: shmd.Client) -> None:
    await shmd_client.topic("t", size="64KiB")
    with pytest.raises(shmd.TopicMismatch, match=r"131072.*65536|65536.*131072"):
        await shmd_client.topic("t", size="128KiB")
    with pytest.raises(shmd.TopicMismatch, match=r"wait.*discard-old|discard-old.*wait"):
        await shmd_client.publisher("t", when_full="wait")


@pytest.mark.parametrize(
    "options",
    [{"size": "much"}, {"size": -1}, {"size": 2**60}, {"when_full": "explode"}, {"mode": 0o1777}, {"mode": "0600"}],
)
async def test_topic_refuses_options_that_cannot_be(shmd_client: shmd.Client, options: dict[str, Any]) -> None:
    with pytest.raises(shmd.ShmdError) as refusal:
        await shmd_client.topic("t", **options)
    assert isinstance(refusal.value, shmd.InvalidOption | shmd.LimitExceeded)
    assert await shmd_client.topics() == []


@pytest.mark.parametrize("name", ["", "a..b", ".a", "a b", "a.*", ">", "x" * 256, "ä"])
async def test_client_refuses_names_that_cannot_be(shmd_client: shmd.Client, name: str) -> None:
    for attempt in (shmd_client.topic, shmd_client.publisher, shmd_client.stat, shmd_client.remove, shmd_client.latest):
        with pytest.raises(shmd.InvalidName):
            await attempt(name)


async def test_topics_lists_what_matches_over_many_pages(shmd_client: shmd.Client) -> None:
    wanted = sorted(f"many.{number}" for number in range(2 * limits.PAGE_ENTRIES_MAX + 1))
    await asyncio.gather(*(shmd_client.topic(name, size=SMALL) for name in [*wanted, "other"]))
    assert [info.name for info in await shmd_client.topics("many.*")] == wanted
    assert [info.name for info in await shmd_client.topics("other")] == ["other"]
    assert len(await shmd_client.topics()) == len(wanted) + 1
    assert await shmd_client.topics("none.>") == []


async def test_stat_counts_and_names_who_takes_part(shmd_client: shmd.Client) -> None:
    assert await shmd_client.stat("t") is None
    async with shmd_client.publisher("t", when_full="wait") as publisher, shmd_client.subscribe("t") as subscription:
        await publisher.publish_many([1, 2, 3])
        await subscription.get()
        await publisher.publish(4)
        stat = await shmd_client.stat("t")
        assert stat is not None
        assert (stat.first_seq, stat.last_seq, stat.published, stat.published_bytes) == (1, 4, 4, 4)
        (publisher_stat,), (subscriber_stat,) = stat.publishers, stat.subscribers
        assert publisher_stat.publisher == publisher.number
        assert (subscriber_stat.tethered, subscriber_stat.lag_bytes) == (True, 40)


async def test_remove_removes_and_says_when_there_is_none(shmd_client: shmd.Client) -> None:
    await shmd_client.topic("t")
    await shmd_client.remove("t")
    assert await shmd_client.topics() == []
    with pytest.raises(shmd.NoSuchTopic):
        await shmd_client.remove("t")


# --- latest -----------------------------------------------------------------------------------------------------------


async def test_latest_is_the_newest_record_and_takes_it_from_nobody(
    shmd_client: shmd.Client, shmd_connect: Connect
) -> None:
    other = await shmd_connect()
    assert await other.latest("t") is None
    async with shmd_client.publisher("t") as publisher, shmd_client.subscribe("t") as subscription:
        assert await other.latest("t") is None
        for number in range(3):
            await publisher.publish(number)
            for client in (shmd_client, other):
                record = await client.latest("t")
                assert record is not None
                assert (record.value, record.seq, record.lost) == (number, number + 1, 0)
        assert [record.value for record in await subscription.get_many(3)] == [0, 1, 2]
        record = await other.latest("t", codec="raw")
        assert record is not None
        assert record.value == b"\x02"


async def test_latest_asks_the_daemon_once(shmd_client: shmd.Client, shmd_daemon: DaemonProcess) -> None:
    client = shmd_client
    async with client.publisher("t") as publisher:
        await publisher.publish("kept")
    assert await client.latest("t") is not None
    shmd_daemon.kill()
    await until(lambda: client.state == "disconnected")
    record = await client.latest("t")
    assert record is not None
    assert record.value == "kept"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(BRIEF_S):
            await client.latest("another")


async def test_latest_forgets_a_topic_that_was_removed(shmd_client: shmd.Client, shmd_connect: Connect) -> None:
    other = await shmd_connect()
    for incarnation in ("first", "second"):
        async with other.publisher("t") as publisher:
            await publisher.publish(incarnation)
        record = await shmd_client.latest("t")
        assert record is not None
        assert record.value == incarnation
        await other.remove("t")
        assert await shmd_client.stat("t") is None  # whatever was sent to this client before the answer has come
        assert await shmd_client.latest("t") is None


async def test_looks_keep_a_bounded_number_of_topics(shmd_client: shmd.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LATEST_TOPICS_MAX", 2)
    infos = [await shmd_client.topic(name) for name in ("a", "b", "c")]
    looks = Looks()
    looks.keep(infos[0])
    looks.keep(infos[1])
    assert looks.find("a") is not None
    looks.keep(infos[2])
    assert [name for name in "abc" if looks.find(name)] == ["a", "c"]
    looks.keep(infos[2])
    looks.drop("c", infos[0].topic_id)
    assert looks.find("c") is not None
    looks.drop("c", infos[2].topic_id)
    assert looks.find("c") is None
    looks.close()
    assert looks.find("a") is None


# --- the daemon goes away ---------------------------------------------------------------------------------------------


async def test_records_flow_on_after_the_daemon_was_killed(shmd_connect: Connect, shmd_daemon: DaemonProcess) -> None:
    client, other = await shmd_connect(), await shmd_connect()
    async with (
        other.publisher("t", size=SMALL, when_full="wait") as publisher,
        client.subscribe("t") as subscription,
    ):
        asleep = asyncio.create_task(subscription.get())
        shmd_daemon.kill()
        await until(lambda: (client.state, other.state) == ("disconnected", "disconnected"))
        await publisher.publish("woken")
        assert (await asleep).value == "woken"
        sending = asyncio.create_task(_publish_all(publisher, 2000))
        assert [(await subscription.get()).value for _ in range(2000)] == list(range(2000))
        await sending


async def test_requests_wait_for_a_daemon_that_is_away_as_long_as_they_may(
    shmd_client: shmd.Client, shmd_connect: Connect, shmd_daemon: DaemonProcess
) -> None:
    await shmd_client.topic("t")
    client = await shmd_connect(request_timeout_s=BRIEF_S)
    shmd_daemon.kill()
    await until(lambda: client.state == "disconnected")
    for request in (
        client.topics(), client.stat("t"), client.topic("u"), client.remove("t"), client.publisher("t"),
        client.subscribe("*"),
    ):  # fmt: skip
        with pytest.raises(shmd.Disconnected, match="there is no connection to the daemon at"):
            await request


async def test_sleepers_look_by_themselves_while_a_daemon_that_had_just_come_is_away_again(
    shmd_client: shmd.Client, shmd_daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SETTLE_S", 0.0)
    hub = shmd_client._hub
    shmd_daemon.kill()
    await until(lambda: shmd_client.state == "disconnected")
    hub._settle()  # by a welcome that was read after the connection had ended
    later: asyncio.Future[None] = hub.loop.create_future()
    hub.loop.call_later(limits.SETTLE_S, later.set_result, None)
    await later
    assert hub.adrift


async def _publish_all(publisher: shmd.Publisher[Any], count: int) -> None:
    for number in range(count):
        await publisher.publish(number)


async def test_sleepers_look_by_themselves_while_there_is_no_daemon(
    shmd_client: shmd.Client, shmd_daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RECHECK_DISCONNECTED_MIN_S", 0.001)
    async with (
        shmd_client.publisher("t", size=SMALL, when_full="wait") as publisher,
        shmd_client.subscribe("t") as subscription,
    ):
        reading = asyncio.create_task(subscription.get_many(1))
        await asyncio.sleep(0)
        shmd_daemon.kill()
        await until(lambda: shmd_client.state == "disconnected")
        shmd_client._hub.ignore_bells(next(iter(subscription._topics)))  # no bell will be heard
        shmd_client._hub.ignore_bells(publisher._seat)
        await publisher.publish(1)
        assert [record.value for record in await reading] == [1]
        with contextlib.suppress(shmd.TopicFull):
            while True:
                publisher.publish_nowait("filler")
        waiting = asyncio.create_task(publisher.publish("last"))
        await asyncio.sleep(0)
        while (await subscription.get()).value != "last":
            pass
        await waiting


async def test_clients_of_a_stopped_daemon_learn_of_it(shmd_client: shmd.Client, shmd_daemon: DaemonProcess) -> None:
    await shmd_client.topic("t")
    assert await asyncio.to_thread(shmd_daemon.stop) == 0
    await until(lambda: shmd_client.state == "disconnected")
    with pytest.raises(shmd.DaemonUnavailable):
        await shmd.connect(shmd_daemon.socket_path)


async def test_close_does_not_wait_for_a_daemon_that_is_stopped(shmd_daemon: DaemonProcess) -> None:
    client = await shmd.connect(shmd_daemon.socket_path)
    publisher, subscription = await client.publisher("t"), await client.subscribe("t")
    client._hub.link.request_timeout_s = 0.01
    os.kill(shmd_daemon.pid, signal.SIGSTOP)
    try:
        await publisher.close()
        await subscription.close()
        await client.close()
    finally:
        os.kill(shmd_daemon.pid, signal.SIGCONT)
    async with shmd.connect(shmd_daemon.socket_path) as client:
        stat = await client.stat("t")
        assert stat is not None
        assert (stat.publishers, stat.subscribers) == ((), ())


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_client_close_closes_everything_and_everything_says_so(shmd_daemon: DaemonProcess) -> None:
    client = await shmd.connect(shmd_daemon.socket_path)
    publisher = await client.publisher("t")
    subscription = await client.subscribe("t")
    await client.latest("t")
    reading = asyncio.create_task(subscription.get())
    await asyncio.sleep(0)
    await client.close()
    await client.close()
    with pytest.raises(shmd.ClosedError):
        await reading
    for attempt in (
        publisher.publish(1), subscription.get(), client.topic("t"), client.publisher("t"), client.subscribe("t"),
        client.latest("t"), client.topics(), client.stat("t"), client.remove("t"),
    ):  # fmt: skip
        with pytest.raises(shmd.ClosedError):
            await attempt
    await publisher.close()
    await subscription.close()


async def test_client_dropped_without_close_warns_and_gives_back(shmd_daemon: DaemonProcess) -> None:
    client = await shmd.connect(shmd_daemon.socket_path)
    publisher = await client.publisher("t")
    hub = client._hub
    with pytest.warns(ResourceWarning, match="unclosed <Client"):  # noqa: PT031
        del client
        gc.collect()
    await until(lambda: hub.closed and not hub.link.session.connected)
    with pytest.raises(shmd.ClosedError):
        await publisher.publish(1)


def test_package_exports_what_it_says() -> None:
    for name in shmd.__all__:
        assert getattr(shmd, name) is not None
    assert set(shmd.__all__) <= set(dir(shmd))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        shmd.nothing  # noqa: B018
