"""What a real daemon does about deaths, stalls and the end of topics."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from shmd import _core, limits, liveness, protocol, segment
from shmd.config import DaemonConfig
from shmd.daemon import Daemon
from shmd.errors import SegmentError
from shmd.protocol import (
    Close,
    Done,
    ListTopics,
    OpenPublisher,
    OpenSubscriber,
    PublisherGranted,
    ReportStall,
    StatReply,
    StatTopic,
    Stop,
    SubscriberGranted,
    TopicGone,
    TopicList,
    TopicOptions,
    Untethered,
    Watch,
)
from tests.raw_peer import RawPeer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.may_block


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with Daemon(DaemonConfig(runtime_dir=tmp_path, total_bytes=64 << 20, ephemeral=True)) as running:
        yield running


async def test_stop_request_ends_serving(daemon: Daemon) -> None:
    serving = asyncio.create_task(daemon.serve_forever())
    async with await RawPeer.to(daemon) as peer:
        await peer.ask(Done, Stop(id=peer.new_id()))
    await serving


async def test_attached_topic_has_no_keys_and_goes_with_its_last_participant(daemon: Daemon) -> None:
    async with await RawPeer.to(daemon) as peer:
        options = TopicOptions(lifetime="attached")
        feed = await peer.ask(PublisherGranted, OpenPublisher(id=peer.new_id(), topic="t", options=options))
        info = feed.topic
        assert (info.log_key, info.ctl_key, info.lifetime) == (0, 0, "attached")
        assert segment.stat(info.log_id).removed
        with segment.attach(info.log_id, readonly=True):
            await peer.ask(Done, Close(id=peer.new_id(), handle=feed.id))
        assert (await peer.ask(TopicList, ListTopics(id=peer.new_id()))).topics == ()
        for shmid in (info.log_id, info.ctl_id):
            with pytest.raises(SegmentError):
                segment.stat(shmid)


async def test_idle_topic_is_removed_by_itself(daemon: Daemon) -> None:
    async with await RawPeer.to(daemon) as peer:
        await peer.ask(Done, Watch(id=peer.new_id(), pattern="t", tethered=False))
        options = TopicOptions(idle_ttl_s=0.01)
        feed = await peer.ask(PublisherGranted, OpenPublisher(id=peer.new_id(), topic="t", options=options))
        seat = OpenSubscriber(id=peer.new_id(), topic="t", watch=1 + 1)
        await peer.ask(SubscriberGranted, seat)
        for handle in (feed.id, seat.id):
            await peer.ask(Done, Close(id=peer.new_id(), handle=handle))
        while not isinstance(await peer.receive(), TopicGone):
            pass


async def _stalled(daemon: Daemon, feed: RawPeer, desk: RawPeer, timeout_s: float | None) -> SubscriberGranted:
    """A subscriber that is tethered at position 0, and reads nothing."""
    watch = Watch(id=desk.new_id(), pattern="t")
    await desk.ask(Done, watch)
    options = TopicOptions(when_full="wait", stall_timeout_s=timeout_s)
    await feed.ask(PublisherGranted, OpenPublisher(id=feed.new_id(), topic="t", options=options))
    return await desk.ask(SubscriberGranted, OpenSubscriber(id=desk.new_id(), topic="t", watch=watch.id))


async def test_stalled_subscriber_is_named_untethered_and_told(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    async with await RawPeer.to(daemon, name="feed") as feed, await RawPeer.to(daemon, name="desk") as desk:
        grant = await _stalled(daemon, feed, desk, 0.05)
        told = asyncio.create_task(desk.receive())
        while not told.done():
            await feed.ask(Done, ReportStall(id=feed.new_id(), topic="t"))
            await asyncio.wait([told], timeout=0.01)
        assert await told == Untethered(topic="t", handle=grant.id)
        (who,) = (await feed.ask(StatReply, StatTopic(id=feed.new_id(), topic="t"))).stat.subscribers
        assert not who.tethered
    assert sum("'desk'" in record.getMessage() for record in caplog.records) == 1


async def test_without_a_stall_timeout_nothing_is_taken_from_anybody(daemon: Daemon) -> None:
    async with await RawPeer.to(daemon) as feed, await RawPeer.to(daemon) as desk:
        await _stalled(daemon, feed, desk, None)
        for _ in range(20):
            await feed.ask(Done, ReportStall(id=feed.new_id(), topic="t"))
        (who,) = (await feed.ask(StatReply, StatTopic(id=feed.new_id(), topic="t"))).stat.subscribers
        assert who.tethered


async def test_subscriber_that_does_not_resume_in_time_is_untethered_and_keeps_its_slot(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RESUME_S", 0.01)
    async with await RawPeer.to(daemon) as feed:
        desk = await RawPeer.to(daemon)
        grant = await _stalled(daemon, feed, desk, None)
        await desk.close(bye=False)
        while True:
            (who,) = (await feed.ask(StatReply, StatTopic(id=feed.new_id(), topic="t"))).stat.subscribers
            if not who.tethered:
                break
        assert who.slot == grant.slot
        async with await RawPeer.to(daemon, resume=desk) as again:
            assert again.welcome is not None
            assert again.welcome.resumed


_SUBSCRIBER = (
    "import signal, socket, sys; from shmd import protocol as p\n"
    "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1])\n"
    "s.send(p.encode(p.Hello(id=1, major=1, minor=0))); s.recv(65536)\n"
    "s.send(p.encode(p.OpenSubscriber(id=2, topic='t'))); s.recv(65536)\n"
    "print('open', flush=True); signal.pause()"
)


@pytest.mark.parametrize("daemon_restarts", [False, True])
async def test_slot_of_a_killed_process_is_free_again(tmp_path: Path, daemon_restarts: bool) -> None:
    config = DaemonConfig(runtime_dir=tmp_path, total_bytes=64 << 20)
    async with contextlib.AsyncExitStack() as stack:
        first = Daemon(config)
        await first.start()
        stack.push_async_callback(first.close)
        peer = await RawPeer.to(first)
        await peer.ask(protocol.TopicReply, protocol.Declare(id=peer.new_id(), topic="t"))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _SUBSCRIBER, str(first.socket_path)), stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"open\n"
        if daemon_restarts:
            await peer.close()
            await first.close()
        process.send_signal(signal.SIGKILL)
        await process.wait()
        if not daemon_restarts:
            await peer.close()
            await first.close()
    async with Daemon(DaemonConfig(runtime_dir=tmp_path, ephemeral=True)) as last, await RawPeer.to(last) as peer:
        while (await peer.ask(StatReply, StatTopic(id=peer.new_id(), topic="t"))).stat.subscribers:
            pass


async def test_lock_of_a_thread_that_is_none_any_more_is_freed_by_proof_only(daemon: Daemon) -> None:
    async with await RawPeer.to(daemon) as feed:
        granted = await feed.ask(PublisherGranted, OpenPublisher(id=feed.new_id(), topic="t"))
        lock_at = _core.layout()["log"]["lock"][0]
        with segment.attach(granted.topic.log_id, readonly=False) as log:
            log.buf[lock_at : lock_at + 4] = (2**22 + 1).to_bytes(4, "little")
            for _ in range(3):
                await feed.ask(Done, ReportStall(id=feed.new_id(), topic="t"))
            # The publisher did not say of which PID namespace it is, so its thread ids prove nothing here.
            assert int.from_bytes(log.buf[lock_at : lock_at + 4], "little") == 2**22 + 1
            log.buf[lock_at : lock_at + 4] = bytes(4)


async def test_lock_of_a_dead_thread_is_freed_for_publishers_of_the_daemons_pid_namespace(daemon: Daemon) -> None:
    async with await RawPeer.to(daemon, hello=False) as feed:
        hello = protocol.Hello(id=feed.new_id(), major=1, minor=0, pid_namespace=liveness.namespaces()[0])
        feed.welcome = await feed.ask(protocol.Welcome, hello)
        granted = await feed.ask(PublisherGranted, OpenPublisher(id=feed.new_id(), topic="t"))
        lock_at = _core.layout()["log"]["lock"][0]
        owner = 2**22 + 1  # no thread has this id: it is over the kernel's limit
        with segment.attach(granted.topic.log_id, readonly=False) as log:
            log.buf[lock_at : lock_at + 4] = owner.to_bytes(4, "little")
            word = owner
            while word == owner:
                await feed.ask(Done, ReportStall(id=feed.new_id(), topic="t"))
                word = int.from_bytes(log.buf[lock_at : lock_at + 4], "little")
            assert word & 0x4000_0000, "FUTEX_OWNER_DIED: the next publisher takes it over"
            log.buf[lock_at : lock_at + 4] = bytes(4)


async def test_stat_tells_that_the_owner_of_the_lock_is_stopped(daemon: Daemon) -> None:
    owner = await asyncio.create_subprocess_exec("sleep", "infinity")
    try:
        async with await RawPeer.to(daemon) as feed:
            granted = await feed.ask(PublisherGranted, OpenPublisher(id=feed.new_id(), topic="t"))
            lock_at = _core.layout()["log"]["lock"][0]

            async def owner_is_stopped() -> bool:
                stat = (await feed.ask(StatReply, StatTopic(id=feed.new_id(), topic="t"))).stat
                assert stat.lock_owner_tid == owner.pid
                return stat.lock_owner_stopped

            with segment.attach(granted.topic.log_id, readonly=False) as log:
                log.buf[lock_at : lock_at + 4] = owner.pid.to_bytes(4, "little")
                assert not await owner_is_stopped()
                owner.send_signal(signal.SIGSTOP)
                await asyncio.to_thread(os.waitid, os.P_PID, owner.pid, os.WSTOPPED | os.WNOWAIT)
                assert await owner_is_stopped()
                log.buf[lock_at : lock_at + 4] = bytes(4)
    finally:
        owner.kill()
        await owner.wait()
