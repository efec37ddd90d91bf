"""Raw segments across deaths: the daemon's, a user's, and their own at the hands of people who need not ask."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import shmd
from shmd import segment
from shmd.errors import ForkedError, PermissionDenied, SegmentNotFound, SegmentRemoved
from tests.children import STRANGER_GID, STRANGER_UID, become_stranger, in_child, needs_root

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmd import Client, SegmentInfo
    from shmd.testing import DaemonProcess, StartDaemon

pytestmark = pytest.mark.may_block


async def until(client: Client, kind: str) -> None:
    async for event in client.events():
        if event.kind == kind:
            return


class TestRestart:
    @pytest.fixture
    def restart(self, shmd_start: StartDaemon) -> Callable[..., DaemonProcess]:
        def again(daemon: DaemonProcess, *, ephemeral: bool = True) -> DaemonProcess:
            return shmd_start(instance=daemon.instance, runtime_dir=daemon.runtime_dir, ephemeral=ephemeral)

        return again

    @pytest.mark.parametrize("how", ["kill", "stop"])
    async def test_segment_and_its_users_outlive_the_daemon(
        self, shmd_start: StartDaemon, restart: Callable[..., DaemonProcess], how: str
    ) -> None:
        daemon = shmd_start(ephemeral=False)
        async with shmd.connect(daemon.socket_path) as one, shmd.connect(daemon.socket_path) as other:
            mine, theirs = await one.segment("frame", size=100, mode=0o640), await other.segment("frame")
            mine.buf[0] = 42
            back = [asyncio.create_task(until(client, "reconnected")) for client in (one, other)]
            await asyncio.sleep(0)
            getattr(daemon, how)()
            assert (theirs.buf[0], theirs.stat().attachments) == (42, 1)
            restart(daemon)
            await asyncio.gather(*back)
            (info,) = await one.segments()
            assert (info.id, info.key, info.size_bytes, info.mode) == (mine.id, mine.key, 100, 0o640)
            await theirs.wait()  # each hears once that the bells have changed
            await mine.wait()
            while theirs._seat._notified != theirs._seat._heard:
                await theirs.wait()
            mine.notify()
            await theirs.wait()
            await theirs.close()
            await mine.remove()
            await mine.close()

    async def test_segment_of_lifetime_attached_outlives_the_daemon_with_its_users(
        self, shmd_start: StartDaemon, restart: Callable[..., DaemonProcess]
    ) -> None:
        daemon = shmd_start(ephemeral=False)
        async with shmd.connect(daemon.socket_path) as client:
            seg = await client.segment("frame", size=100, lifetime="attached")
            back = asyncio.create_task(until(client, "reconnected"))
            await asyncio.sleep(0)
            daemon.kill()
            restart(daemon)
            await back
            async with client.segment("frame", create=False) as again:
                assert again.id == seg.id
            await seg.close()
            assert await client.segments() == []

    async def test_segment_removed_while_the_daemon_was_away_is_gone(
        self, shmd_start: StartDaemon, restart: Callable[..., DaemonProcess]
    ) -> None:
        daemon = shmd_start(ephemeral=False)
        async with shmd.connect(daemon.socket_path) as client:
            seg = await client.segment("frame", size=100)
            back = asyncio.create_task(until(client, "reconnected"))
            await asyncio.sleep(0)
            daemon.kill()
            segment.remove(seg.id)
            successor = restart(daemon)
            await back
            assert await client.segments() == []
            assert f"segment frame (id {seg.id}) is gone" in successor.log
            with pytest.raises(SegmentRemoved):
                await seg.wait()
            await seg.close()


class TestOwnersWhoNeedNotAsk:
    async def test_segment_that_ipcrm_removed_is_gone_and_the_daemon_says_so(
        self, shmd_client: Client, shmd_daemon: DaemonProcess
    ) -> None:
        seg = await shmd_client.segment("frame", size=100)
        subprocess.run(["ipcrm", "-m", str(seg.id)], check=True)  # noqa: ASYNC221 - it is quick
        with pytest.raises(SegmentNotFound):
            await shmd_client.segment("frame", create=False)
        assert "segment frame is gone: somebody removed it" in shmd_daemon.log
        assert seg.stat().removed
        with pytest.raises(SegmentRemoved):
            await seg.wait()
        async with shmd_client.segment("frame", size=100) as another:
            assert another.id != seg.id
        await seg.close()

    async def test_owner_changes_the_mode_and_the_daemon_sees_it(self, shmd_client: Client) -> None:
        async with shmd_client.segment("frame", size=100) as seg:
            segment.set_permissions(seg.id, os.getuid(), 4321, 0o644)
            (info,) = await shmd_client.segments()
            assert (info.gid, info.mode) == (4321, 0o644)


_USER = (
    "import asyncio, sys, shmd\n"
    "async def main():\n"
    "    async with shmd.connect(sys.argv[1]) as client, client.segment('frame', size=100) as seg:\n"
    "        seg.buf[0] = 1\n"
    "        print(seg.id, flush=True)\n"
    "        await asyncio.Event().wait()\n"
    "asyncio.run(main())"
)


async def test_killed_user_leaves_nothing_but_what_it_wrote(shmd_client: Client, shmd_daemon: DaemonProcess) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _USER, shmd_daemon.socket_path), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    shmid = int(await process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    await process.wait()
    async with shmd_client.segment("frame") as seg:
        assert (seg.id, seg.buf[0], seg.stat().attachments) == (shmid, 1, 1)


async def test_forked_child_may_use_nothing_of_it_and_detaches_nothing(shmd_client: Client) -> None:
    async with shmd_client.segment("frame", size=100) as seg:

        def refusals() -> list[str]:
            found = []
            for use in (lambda: seg.buf, seg.stat, seg.notify, seg.release, lambda: seg.wait().send(None)):
                try:
                    use()
                except ForkedError as error:
                    found.append(type(error).__name__)
            return found

        assert in_child(refusals) == ["ForkedError"] * 5
        seg.buf[0] = 1
        assert seg.stat().attachments == 1


@needs_root
def test_another_user_is_refused_without_being_told_key_or_id(shmd_daemon: DaemonProcess) -> None:
    shmd_daemon.runtime_dir.chmod(0o711)
    Path(shmd_daemon.socket_path).chmod(0o666)

    async def make() -> SegmentInfo:
        async with (
            shmd.connect(shmd_daemon.socket_path) as client,
            client.segment("frame", size=100, mode=0o600) as seg,
        ):
            return seg.info

    async def try_all() -> list[str]:
        become_stranger()
        told = []
        async with shmd.connect(shmd_daemon.socket_path) as client:
            assert await client.segments() == []
            for work in (
                client.segment("frame"),
                client.segment("frame", readonly=True),
                client.segment_stat("frame"),
                client.set_segment("frame", mode=0o666),
                client.remove_segment("frame"),
            ):
                with pytest.raises(PermissionDenied) as refused:
                    await work
                told.append(str(refused.value))
        return told

    info = asyncio.run(make())
    told = in_child(lambda: asyncio.run(try_all()))
    assert len(told) == 5
    assert not [text for text in told if str(info.key) in text or f"{info.key:#x}" in text or f"id {info.id}" in text]
    assert segment.stat(info.id).mode == 0o600


@needs_root
def test_stranger_shares_what_its_group_may(shmd_daemon: DaemonProcess) -> None:
    """The daemon's rule and the kernel's are one: what the daemon grants, the kernel lets attach."""
    shmd_daemon.runtime_dir.chmod(0o711)
    Path(shmd_daemon.socket_path).chmod(0o666)

    async def use() -> tuple[int, int, int]:
        become_stranger()
        async with (
            shmd.connect(shmd_daemon.socket_path) as client,
            client.segment("frame", size=100) as seg,
        ):
            seg.buf[0] = 5
            found = seg.stat()
            await seg.set(mode=0o640)
            with pytest.raises(PermissionDenied):
                await client.segment("frame")
            async with client.segment("frame", readonly=True) as reader:
                assert reader.buf[0] == 5
            await seg.set(uid=STRANGER_UID)
            async with client.segment("frame"):
                pass
            with pytest.raises(PermissionDenied, match="0600 would keep its own creator"):
                await client.segment("other", size=1, mode=0o600)
            return found.uid, found.gid, found.mode

    assert in_child(lambda: asyncio.run(use())) == (os.getuid(), STRANGER_GID, 0o660)
