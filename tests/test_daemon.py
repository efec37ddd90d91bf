"""A real daemon on real sockets and segments: its beginning and end, what it makes, and whom it survives."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import blockbuster
import pytest

from shmd import limits, protocol, segment, sysv, topic_store
from shmd.config import DaemonConfig
from shmd.daemon import Daemon
from shmd.errors import ConfigError, LimitExceeded, RequestRefused, SegmentLimit, TopicBusy, UsageError
from shmd.protocol import (
    Declare,
    Done,
    Hello,
    ListTopics,
    OpenPublisher,
    OpenSubscriber,
    Peek,
    PublisherGranted,
    Refused,
    RemoveTopic,
    StatReply,
    StatTopic,
    SubscriberGranted,
    TopicAdded,
    TopicGone,
    TopicList,
    TopicOptions,
    TopicReply,
    Watch,
)
from tests.raw_peer import RawPeer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Starting and ending touch the file system; while it serves, nothing may block (the fixture ``daemon``).
pytestmark = pytest.mark.may_block

TOTAL_BYTES = 64 << 20
MIB = 1 << 20


@pytest.fixture
def config(tmp_path: Path) -> DaemonConfig:
    return DaemonConfig(ephemeral=True, runtime_dir=tmp_path, total_bytes=TOTAL_BYTES)


@pytest.fixture
async def daemon(config: DaemonConfig) -> AsyncIterator[Daemon]:
    async with Daemon(config) as running:
        with blockbuster.blockbuster_ctx("shmd") as detector:
            # Making the lasting part of the roster takes system calls that do not wait, and a look into /proc.
            detector.functions["os.stat"].can_block_in("shmd/segment.py", {"_ipc_namespace"})
            yield running


@pytest.fixture
async def peer(daemon: Daemon) -> AsyncIterator[RawPeer]:
    async with await RawPeer.to(daemon) as connected:
        yield connected


async def declare(peer: RawPeer, topic: str, options: TopicOptions | None = None) -> protocol.TopicInfo:
    request = Declare(id=peer.new_id(), topic=topic, options=options or TopicOptions())
    return (await peer.ask(TopicReply, request)).topic


def _read(path: str) -> str:
    return Path(path).read_text()


class TestLife:
    @pytest.mark.both_loops
    async def test_daemon_listens_for_everybody_and_takes_its_socket_away(self, config: DaemonConfig) -> None:
        async with Daemon(config) as daemon:
            assert daemon.socket_path == config.runtime_dir / "control.sock"
            assert stat.S_IMODE(daemon.socket_path.stat().st_mode) == 0o666
            async with await RawPeer.to(daemon) as peer:
                await declare(peer, "t")
        assert not daemon.socket_path.exists()

    async def test_daemon_can_start_again_where_it_ended(self, config: DaemonConfig) -> None:
        for _ in range(2):
            async with Daemon(config) as daemon, await RawPeer.to(daemon) as peer:
                assert (await peer.ask(TopicList, ListTopics(id=peer.new_id()))).topics == ()
                await declare(peer, "t")

    async def test_daemon_that_was_started_cannot_be_started_again(self, daemon: Daemon) -> None:
        with pytest.raises(UsageError):
            await daemon.start()

    async def test_second_daemon_of_an_instance_is_refused_and_names_the_first(self, config: DaemonConfig) -> None:
        async with Daemon(config) as daemon:
            with pytest.raises(ConfigError, match=f"pid {os.getpid()}"):
                await Daemon(config).start()
            async with await RawPeer.to(daemon):
                pass

    async def test_other_instance_runs_beside_it(self, config: DaemonConfig) -> None:
        other = DaemonConfig(ephemeral=True, instance="other", runtime_dir=config.runtime_dir, total_bytes=TOTAL_BYTES)
        async with Daemon(config) as first, Daemon(other) as second:
            assert first.socket_path != second.socket_path
            async with await RawPeer.to(first), await RawPeer.to(second):
                pass

    async def test_socket_of_a_killed_daemon_is_replaced(self, config: DaemonConfig) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
            dead.bind(str(config.socket_path))
        async with Daemon(config) as daemon, await RawPeer.to(daemon):
            pass

    async def test_failed_start_leaves_nothing_open(self, config: DaemonConfig) -> None:
        config.socket_path.write_text("not a socket")
        with pytest.raises(ConfigError, match="no socket"):
            await Daemon(config).start()
        config.socket_path.unlink()
        async with Daemon(config):
            pass

    async def test_serving_ends_when_the_daemon_is_closed(self, config: DaemonConfig) -> None:
        daemon = Daemon(config)
        await daemon.start()
        serving = asyncio.create_task(daemon.serve_forever())
        await asyncio.sleep(0)
        await daemon.close()
        await serving
        await daemon.close()

    async def test_service_manager_hears_ready_alive_and_stopping(
        self, config: DaemonConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(config.runtime_dir / "notify"))
            manager.setblocking(False)
            monkeypatch.setenv("NOTIFY_SOCKET", str(config.runtime_dir / "notify"))
            monkeypatch.setenv("WATCHDOG_USEC", "2000")
            monkeypatch.delenv("WATCHDOG_PID", raising=False)
            loop = asyncio.get_running_loop()
            async with Daemon(config) as daemon:
                serving = asyncio.create_task(daemon.serve_forever())
                assert (await loop.sock_recv(manager, 4096)).startswith(b"READY=1\nSTATUS=listening on ")
                assert await loop.sock_recv(manager, 4096) == b"WATCHDOG=1"
                serving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await serving
                while (told := await loop.sock_recv(manager, 4096)) == b"WATCHDOG=1":
                    pass
                assert told == b"STOPPING=1"

    async def test_daemon_serves_the_socket_that_the_service_manager_opened(self, config: DaemonConfig) -> None:
        path = config.runtime_dir / "activated.sock"
        script = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3);"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1');"
            "os.execv(sys.executable, [sys.executable, '-m', 'shmd', 'serve', '--ephemeral',"
            " '--runtime-dir', sys.argv[2]])"
        )
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.bind(str(path))
            sock.listen()
            fd = sock.fileno()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", script, str(fd), str(config.runtime_dir)),
                pass_fds=[fd],
                stderr=subprocess.DEVNULL,
            )
        async with await RawPeer.connect(path) as peer:
            await declare(peer, "t")
        process.terminate()
        assert await process.wait() == 0
        assert path.exists(), "the service manager's socket is not the daemon's to remove"

    async def test_closing_stops_a_creation_under_way(self, tmp_path: Path) -> None:
        async with Daemon(DaemonConfig(ephemeral=True, runtime_dir=tmp_path, total_bytes=4 << 30)) as daemon:
            peer = await RawPeer.to(daemon)
            peer.send(Declare(id=peer.new_id(), topic="big", options=TopicOptions(size_bytes=2 << 30)))
            await peer.ask(TopicList, ListTopics(id=peer.new_id()))
        await peer.hung_up()
        await peer.close()


class TestTopics:
    async def test_segments_are_what_the_topic_says(self, peer: RawPeer) -> None:
        info = await declare(peer, "a.b", TopicOptions(size_bytes=5 * MIB, mode=0o640))
        log, ctl = segment.stat(info.log_id), segment.stat(info.ctl_id)
        assert info.size_bytes == 8 * MIB
        assert (log.key, log.mode, log.uid, log.gid) == (info.log_key, 0o640, os.geteuid(), os.getegid())
        assert (ctl.key, ctl.mode, ctl.uid, ctl.gid) == (info.ctl_key, 0o660, os.geteuid(), os.getegid())
        assert log.size_bytes + ctl.size_bytes == info.size_bytes + topic_store.OVERHEAD_BYTES

    async def test_memory_is_touched_by_the_daemon_before_anybody_else(self, peer: RawPeer) -> None:
        info = await declare(peer, "t", TopicOptions(size_bytes=4 * MIB))
        segments = await asyncio.to_thread(sysv.list_segments)
        rss = {found.id: (found.rss_bytes, found.size_bytes) for found in segments}
        for shmid in (info.log_id, info.ctl_id):
            touched, size_bytes = rss[shmid]
            assert touched is not None
            assert touched >= size_bytes

    async def test_daemon_itself_maps_the_log_read_only(self, peer: RawPeer) -> None:
        info = await declare(peer, "t")
        access = {
            int(fields[4]): fields[1]
            for line in _read("/proc/self/maps").splitlines()
            if "/SYSV" in line and (fields := line.split())
        }
        assert access[info.log_id].startswith("r--")
        assert access[info.ctl_id].startswith("rw-")

    async def test_grants_come_with_the_topics_two_bells(self, peer: RawPeer) -> None:
        await peer.ask(PublisherGranted, OpenPublisher(id=peer.new_id(), topic="t"))
        await peer.ask(SubscriberGranted, OpenSubscriber(id=peer.new_id(), topic="t"))
        bells = [_read(f"/proc/self/fdinfo/{fd}") for fd in peer.fds]
        identities = [line for text in bells for line in text.splitlines() if line.startswith("eventfd-id")]
        assert len(identities) == 4
        assert identities[:2] == identities[2:]
        assert identities[0] != identities[1]
        assert all("eventfd-count:                1" in text for text in bells)

    async def test_removal_frees_segments_and_descriptors_and_tells_the_participants(self, daemon: Daemon) -> None:
        async with await RawPeer.to(daemon) as peer, await RawPeer.to(daemon) as other:
            await peer.ask(TopicList, ListTopics(id=peer.new_id()))
            descriptors = len(os.listdir("/proc/self/fd"))
            info = await declare(peer, "t")
            await other.ask(TopicReply, Peek(id=other.new_id(), topic="t"))
            await peer.ask(Done, RemoveTopic(id=peer.new_id(), topic="t"))
            assert await other.receive() == TopicGone(topic="t", topic_id=info.topic_id)
            assert len(os.listdir("/proc/self/fd")) == descriptors
            assert not {info.log_id, info.ctl_id} & {found.id for found in await asyncio.to_thread(sysv.list_segments)}

    async def test_segments_that_somebody_else_removed_do_not_disturb(
        self, peer: RawPeer, caplog: pytest.LogCaptureFixture
    ) -> None:
        info = await declare(peer, "t")
        segment.remove(info.log_id)
        await peer.ask(StatReply, StatTopic(id=peer.new_id(), topic="t"))
        await peer.ask(Done, RemoveTopic(id=peer.new_id(), topic="t"))
        assert "Traceback" not in caplog.text

    async def test_stat_tells_of_segments_and_participants(self, daemon: Daemon) -> None:
        async with await RawPeer.to(daemon, name="feed") as feed, await RawPeer.to(daemon, name="desk") as desk:
            granted = await feed.ask(PublisherGranted, OpenPublisher(id=feed.new_id(), topic="t"))
            seat = await desk.ask(SubscriberGranted, OpenSubscriber(id=desk.new_id(), topic="t"))
            told = (await desk.ask(StatReply, StatTopic(id=desk.new_id(), topic="t"))).stat
        assert told.topic == granted.topic
        assert told.published == 0
        assert [(pub.name, pub.pid, pub.publisher) for pub in told.publishers] == [
            ("feed", os.getpid(), granted.publisher)
        ]
        assert [(sub.name, sub.pid, sub.slot) for sub in told.subscribers] == [("desk", os.getpid(), seat.slot)]
        assert told.more_participants == 0

    async def test_stat_of_many_participants_shows_some_and_counts_the_rest(self, peer: RawPeer) -> None:
        await declare(peer, "t")
        for _ in range(limits.PAGE_ENTRIES_MAX + 7):
            await peer.ask(SubscriberGranted, OpenSubscriber(id=peer.new_id(), topic="t"))
        told = (await peer.ask(StatReply, StatTopic(id=peer.new_id(), topic="t"))).stat
        assert len(told.subscribers) == limits.PAGE_ENTRIES_MAX
        assert told.more_participants == 7

    async def test_watch_that_waited_holds_publishers_back_from_the_first_record(self, daemon: Daemon) -> None:
        async with await RawPeer.to(daemon) as watcher, await RawPeer.to(daemon) as feed:
            watch = Watch(id=watcher.new_id(), pattern="t")
            await watcher.ask(Done, watch)
            await declare(feed, "t", TopicOptions(when_full="wait"))
            assert await watcher.receive() == TopicAdded(watch=watch.id, topic="t", existing=False)
            (kept,) = (await feed.ask(StatReply, StatTopic(id=feed.new_id(), topic="t"))).stat.subscribers
            assert kept.tethered
            request = OpenSubscriber(id=watcher.new_id(), topic="t", watch=watch.id)
            assert (await watcher.ask(SubscriberGranted, request)).from_start
            await watcher.close()
            (await feed.ask(Done, protocol.WaitSubscribers(id=feed.new_id(), topic="t", count=0)))
            while (await feed.ask(StatReply, StatTopic(id=feed.new_id(), topic="t"))).stat.subscribers:
                pass

    @pytest.mark.parametrize(
        ("failure", "code"),
        [
            (SegmentLimit("cannot create a segment"), SegmentLimit.code),
            (ZeroDivisionError("a bug"), RequestRefused.code),
        ],
        ids=["system", "bug"],
    )
    async def test_creation_that_fails_is_answered_and_leaves_the_name_free(
        self, peer: RawPeer, monkeypatch: pytest.MonkeyPatch, failure: Exception, code: str
    ) -> None:
        def fail(*_: object) -> None:
            raise failure

        with monkeypatch.context() as patch:
            patch.setattr(topic_store, "create", fail)
            refusal = await peer.ask(Refused, Declare(id=peer.new_id(), topic="t"))
        assert refusal.code == code
        assert "bug" not in refusal.message
        await declare(peer, "t")

    async def test_creation_without_descriptors_is_refused_and_works_again_later(self, peer: RawPeer) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # The worker thread comes into being, and System V is looked at, while there still are descriptors.
        await declare(peer, "first")
        in_use = max(int(fd) for fd in os.listdir("/proc/self/fd")) + 1
        fillers = [os.dup(0) for _ in range(in_use - len(os.listdir("/proc/self/fd")) + 1)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (in_use, hard))
        try:
            refusal = await peer.ask(Refused, Declare(id=peer.new_id(), topic="t"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in fillers:
                os.close(fd)
        assert refusal.code == LimitExceeded.code
        assert "LimitNOFILE" in (refusal.hint or "")
        await declare(peer, "t")

    async def test_topics_over_the_byte_budget_are_refused(self, peer: RawPeer) -> None:
        refusal = await peer.ask(
            Refused, Declare(id=peer.new_id(), topic="t", options=TopicOptions(size_bytes=TOTAL_BYTES))
        )
        assert refusal.code == LimitExceeded.code
        assert str(TOTAL_BYTES) in refusal.message


class TestClients:
    @pytest.mark.both_loops
    async def test_five_hundred_clients_at_once_are_served(self, daemon: Daemon) -> None:
        async with contextlib.AsyncExitStack() as stack:
            peers = await asyncio.gather(*(RawPeer.to(daemon) for _ in range(500)))
            for peer in peers:
                stack.push_async_callback(peer.close)
            requests = [OpenSubscriber(id=peer.new_id(), topic="t") for peer in peers]
            await declare(peers[0], "t")
            grants = await asyncio.gather(
                *(peer.ask(SubscriberGranted, request) for peer, request in zip(peers, requests, strict=True))
            )
            assert sorted(grant.slot for grant in grants) == list(range(500))

    async def test_silent_client_is_hung_up_on(self, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "HELLO_TIMEOUT_S", 0.01)
        async with await RawPeer.to(daemon, hello=False) as silent:
            assert await silent.hung_up() == []

    async def test_client_that_hears_but_does_not_read_is_hung_up_on_and_nobody_else_waits(
        self, daemon: Daemon, peer: RawPeer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "SEND_QUEUE_MESSAGES_MAX", 50)
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as deaf:
            deaf.setblocking(False)
            deaf.connect(str(daemon.socket_path))
            await loop.sock_sendall(deaf, protocol.encode(Hello(id=1, major=1, minor=0)))
            await loop.sock_sendall(deaf, protocol.encode(Watch(id=2, pattern="t")))
            for _ in range(400):  # the kernel keeps some 300 messages for it, the daemon 50 more
                await declare(peer, "t", TopicOptions(size_bytes=4096))
                await peer.ask(Done, RemoveTopic(id=peer.new_id(), topic="t"))
            while await loop.sock_recv(deaf, limits.MESSAGE_BYTES_MAX):
                pass

    async def test_client_that_asks_but_does_not_read_is_not_read_either(self, daemon: Daemon, peer: RawPeer) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as deaf:
            deaf.setblocking(False)
            deaf.connect(str(daemon.socket_path))
            deaf.send(protocol.encode(Hello(id=1, major=1, minor=0)))
            asked, waiting = 1, 0
            while waiting < 100:  # turns of the loop in which the daemon could have read it
                try:
                    deaf.send(protocol.encode(ListTopics(id=1)))
                    asked, waiting = asked + 1, 0
                except BlockingIOError:
                    waiting += 1
                    await peer.ask(TopicList, ListTopics(id=peer.new_id()))
            loop = asyncio.get_running_loop()
            for _ in range(asked):  # nothing was lost
                assert await loop.sock_recv(deaf, limits.MESSAGE_BYTES_MAX)

    async def test_process_that_dies_frees_its_exclusive_topic(self, daemon: Daemon, peer: RawPeer) -> None:
        script = (
            "import signal, socket, sys; from shmd import protocol as p\n"
            "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1])\n"
            "s.send(p.encode(p.Hello(id=1, major=1, minor=0))); s.recv(65536)\n"
            "o = p.TopicOptions(exclusive=True)\n"
            "s.send(p.encode(p.OpenPublisher(id=2, topic='t', options=o))); s.recv(65536)\n"
            "if sys.argv[2] == 'leave': s.close()\n"
            "print('open', flush=True); signal.pause()"
        )
        for how in ("stay", "leave"):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", script, str(daemon.socket_path), how), stdout=subprocess.PIPE
            )
            assert process.stdout is not None
            assert await process.stdout.readline() == b"open\n"
            for _ in range(20):  # a living process keeps its lease, connected or not
                busy = await peer.ask(Refused, OpenPublisher(id=peer.new_id(), topic="t"))
                assert busy.code == TopicBusy.code
                assert f"pid {process.pid}" in busy.message
            process.send_signal(signal.SIGKILL)
            await process.wait()
            await self._free(peer)

    async def _free(self, peer: RawPeer) -> None:
        """Publish as soon as the topic is free, and give it back."""
        while True:
            request = OpenPublisher(id=peer.new_id(), topic="t")
            peer.send(request)
            if isinstance(await peer.receive(), PublisherGranted):
                await peer.ask(Done, protocol.Close(id=peer.new_id(), handle=request.id))
                return

    async def test_log_tells_of_hang_ups_in_one_line_each(
        self, daemon: Daemon, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        async with await RawPeer.to(daemon) as rude:
            for _ in range(limits.PROTOCOL_ERRORS_MAX):
                rude.send(b"\x82\xa4type\xa7\nEVIL\x1b[\xa2id\x01")
            await rude.hung_up()
        (line,) = [record.getMessage() for record in caplog.records if "hung up" in record.getMessage()]
        assert "EVIL" in line
        assert line.isprintable()
