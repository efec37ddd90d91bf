"""A daemon that starts again finds what the one before it left, wherever that was killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shmd import failpoint, protocol, roster, segment, sysv
from shmd.config import DaemonConfig
from shmd.daemon import Daemon
from shmd.protocol import (
    Close,
    Declare,
    Done,
    ListSegments,
    ListTopics,
    OpenPublisher,
    OpenSegment,
    OpenSubscriber,
    PublisherGranted,
    Refused,
    RemoveSegment,
    RemoveTopic,
    Resume,
    Resumed,
    SegmentGranted,
    SegmentList,
    SegmentOptions,
    SegmentStatReply,
    StatReply,
    StatSegment,
    StatTopic,
    SubscriberGranted,
    TopicList,
    TopicOptions,
    TopicReply,
    Watch,
)
from shmd.roster_reader import RosterReader
from tests.raw_peer import HungUp, RawPeer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.may_block

WAIT = TopicOptions(when_full="wait")


@pytest.fixture
def config(tmp_path: Path) -> DaemonConfig:
    return DaemonConfig(runtime_dir=tmp_path, total_bytes=64 << 20)


@pytest.fixture
def last(tmp_path: Path) -> DaemonConfig:
    """The same instance, but leaving nothing behind."""
    return DaemonConfig(runtime_dir=tmp_path, total_bytes=64 << 20, ephemeral=True)


async def declare(peer: RawPeer, topic: str = "t", options: TopicOptions = WAIT) -> protocol.TopicInfo:
    return (await peer.ask(TopicReply, Declare(id=peer.new_id(), topic=topic, options=options))).topic


async def topics(peer: RawPeer) -> tuple[protocol.TopicInfo, ...]:
    return (await peer.ask(TopicList, ListTopics(id=peer.new_id()))).topics


class TestRestart:
    async def test_topics_keep_ids_keys_and_options(self, config: DaemonConfig, last: DaemonConfig) -> None:
        options = TopicOptions(when_full="wait", mode=0o640, idle_ttl_s=1000.125, stall_timeout_s=0.3, exclusive=True)
        async with Daemon(config) as daemon, await RawPeer.to(daemon) as peer:
            made = {await declare(peer, "a", options), await declare(peer, "b")}
        async with Daemon(last) as daemon, await RawPeer.to(daemon) as peer:
            assert set(await topics(peer)) == made
            assert await declare(peer, "a", options) in made

    async def test_empty_roster_goes_with_a_clean_stop(self, config: DaemonConfig) -> None:
        async with Daemon(config) as daemon, await RawPeer.to(daemon) as peer:
            await declare(peer)
            await peer.ask(Done, RemoveTopic(id=peer.new_id(), topic="t"))
        keys = set(roster.candidate_keys(config.instance_id()))
        assert not keys & {found.key for found in sysv.list_segments()}

    async def test_client_resumes_with_its_number_handles_and_slot(
        self, config: DaemonConfig, last: DaemonConfig
    ) -> None:
        async with Daemon(config) as daemon:
            before = await RawPeer.to(daemon, name="desk")
            await declare(before)
            seat = await before.ask(SubscriberGranted, OpenSubscriber(id=before.new_id(), topic="t"))
            feed = await before.ask(PublisherGranted, OpenPublisher(id=before.new_id(), topic="t"))
        await before.hung_up()
        async with Daemon(last) as daemon, await RawPeer.to(daemon, resume=before, name="desk") as after:
            assert after.welcome is not None
            assert (after.welcome.resumed, after.number) == (True, before.number)
            for handle in (seat.id, feed.id):
                await after.ask(Resumed, Resume(id=after.new_id(), handle=handle))
            told = (await after.ask(StatReply, StatTopic(id=after.new_id(), topic="t"))).stat
            assert [(who.name, who.slot, who.pid) for who in told.subscribers] == [("desk", seat.slot, os.getpid())]
            assert [who.publisher for who in told.publishers] == [feed.publisher]
            another = await after.ask(PublisherGranted, OpenPublisher(id=after.new_id(), topic="t"))
            assert another.publisher > feed.publisher
            await after.ask(Done, Close(id=after.new_id(), handle=seat.id))
            again = await after.ask(SubscriberGranted, OpenSubscriber(id=after.new_id(), topic="t"))
            assert again.incarnation > seat.incarnation
        await before.close()

    async def test_seat_kept_for_a_watch_is_kept_across_a_restart(
        self, config: DaemonConfig, last: DaemonConfig
    ) -> None:
        async with Daemon(config) as daemon:
            before = await RawPeer.to(daemon)
            watch = Watch(id=before.new_id(), pattern=">")
            await before.ask(Done, watch)
            await declare(before)
        await before.hung_up()
        async with Daemon(last) as daemon, await RawPeer.to(daemon, resume=before) as after:
            await after.ask(Done, Watch(id=watch.id, pattern=">"))
            request = OpenSubscriber(id=after.new_id(), topic="t", watch=watch.id)
            assert (await after.ask(SubscriberGranted, request)).from_start
        await before.close()

    async def test_topic_whose_log_was_exchanged_is_left_alone(
        self, config: DaemonConfig, last: DaemonConfig, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Daemon(config) as daemon, await RawPeer.to(daemon) as peer:
            info = await declare(peer)
        with segment.attach(info.log_id, readonly=False) as log:
            log.buf[0x30] ^= 1
        async with Daemon(last) as daemon, await RawPeer.to(daemon) as peer:
            assert await topics(peer) == ()
            assert f"segments {info.log_id} and {info.ctl_id} are left alone" in caplog.text
        for shmid in (info.log_id, info.ctl_id):
            assert segment.stat(shmid).size_bytes
            segment.remove(shmid)


async def _run(tmp_path: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.failing_daemon", str(tmp_path), *arguments), stdout=subprocess.PIPE
    )


NOTIFIERS: dict[str, protocol.Notifier] = {"short": "eventfd", "kept": "fifo", "gone": "fifo"}


async def _use(peer: RawPeer) -> None:
    """Pass every failpoint of a daemon that serves."""
    await peer.ask(Done, Watch(id=peer.new_id(), pattern="kept"))
    for name, notifier in NOTIFIERS.items():
        lifetime: protocol.Lifetime = "attached" if name == "short" else "os"
        options = TopicOptions(when_full="wait", lifetime=lifetime, size_bytes=4096, notifier=notifier)
        await declare(peer, name, options)
        seat = OpenSubscriber(id=peer.new_id(), topic=name)
        await peer.ask(SubscriberGranted, seat)
        await peer.ask(PublisherGranted, OpenPublisher(id=peer.new_id(), topic=name))
        await peer.ask(Done, Close(id=peer.new_id(), handle=seat.id))
    await peer.ask(Done, RemoveTopic(id=peer.new_id(), topic="gone"))
    for name, notifier in NOTIFIERS.items():
        lifetime = "attached" if name == "short" else "os"
        wish = SegmentOptions(size_bytes=4096, lifetime=lifetime, notifier=notifier)
        use = OpenSegment(id=peer.new_id(), segment=name, options=wish)
        await peer.ask(SegmentGranted, use)
        await peer.ask(SegmentGranted, OpenSegment(id=peer.new_id(), segment=name))
        await peer.ask(Done, Close(id=peer.new_id(), handle=use.id))
    await peer.ask(Done, RemoveSegment(id=peer.new_id(), segment="gone"))
    for name in ("file.kept", "file.gone"):
        wish = SegmentOptions(size_bytes=4096, backing="file", notifier="fifo")
        await peer.ask(SegmentGranted, OpenSegment(id=peer.new_id(), segment=name, options=wish))
    await peer.ask(Done, RemoveSegment(id=peer.new_id(), segment="file.gone"))


async def _live_until_killed(
    tmp_path: Path, name: str, skip: int, process_group: list[asyncio.subprocess.Process], rosters: ExitStack
) -> bool:
    """Whether a daemon that is used killed itself at the failpoint; if not, it is killed afterwards.

    The roster is kept attached, as any client of a topic does, when nothing is skipped; else it goes with the daemon.
    """
    process = await _run(tmp_path, name, str(skip))
    process_group.append(process)
    assert process.stdout is not None
    if await process.stdout.readline():
        with contextlib.suppress(HungUp):
            peer = await RawPeer.connect(tmp_path / "control.sock")
            try:
                if not skip and peer.welcome is not None:
                    rosters.enter_context(RosterReader(peer.welcome.roster_id))
                await _use(peer)
                process.kill()
                await process.wait()
                return False
            finally:
                await peer.close(bye=False)
    return await process.wait() == -signal.SIGKILL


@pytest.fixture
async def process_group() -> AsyncIterator[list[asyncio.subprocess.Process]]:
    processes: list[asyncio.subprocess.Process] = []
    yield processes
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("name", failpoint.NAMES)
async def test_daemon_killed_at_any_failpoint_leaves_what_the_next_one_can_live_with(
    tmp_path: Path, name: str, skip: int, process_group: list[asyncio.subprocess.Process]
) -> None:
    """Three lives: one that is killed while it works, one that is killed while it adopts, one that cleans up."""
    with ExitStack() as rosters:
        deaths = [await _live_until_killed(tmp_path, name, skip, process_group, rosters) for _ in range(2)]
        final = await _run(tmp_path)
    assert any(deaths) or skip, "nobody passes this failpoint"
    process_group.append(final)
    assert final.stdout is not None
    assert await final.stdout.readline() == b"listening\n"
    async with await RawPeer.connect(tmp_path / "control.sock") as peer:
        for info in await topics(peer):
            await peer.ask(StatReply, StatTopic(id=peer.new_id(), topic=info.name))
            await peer.ask(SubscriberGranted, OpenSubscriber(id=peer.new_id(), topic=info.name))
        for segment_info in (await peer.ask(SegmentList, ListSegments(id=peer.new_id()))).segments:
            assert segment_info.name in ("kept", "gone", "file.kept", "file.gone")
            reply = await peer.ask(SegmentStatReply, StatSegment(id=peer.new_id(), segment=segment_info.name))
            assert (reply.counters.size_bytes, reply.counters.mode) == (4096, 0o600)
        for name in ("kept", "gone", "short"):
            use = OpenSegment(id=peer.new_id(), segment=name, options=SegmentOptions(size_bytes=4096))
            await peer.ask(SegmentGranted, use)
        files = {info.path for info in (await peer.ask(SegmentList, ListSegments(id=peer.new_id()))).segments} - {""}
        there = {str(path) for path in (tmp_path / "state").rglob("*.data")}
        assert there == files
        assert len(list((tmp_path / "state").rglob("*.*"))) == 2 * len(files)
        peer.send(OpenPublisher(id=4711, topic="kept"))
        assert not isinstance(await peer.receive(), Refused)
        noted = {Path(info.fifo_dir) for info in await topics(peer) if info.notifier == "fifo"}
        segments = (await peer.ask(SegmentList, ListSegments(id=peer.new_id()))).segments
        noted |= {Path(info.fifo) for info in segments if info.notifier == "fifo"}
        assert set((tmp_path / "fifo").glob("*")) == noted
    final.terminate()
    assert await final.wait() == 0
    assert not (tmp_path / "fifo").exists()
