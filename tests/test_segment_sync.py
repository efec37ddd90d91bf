"""Locks and cells of raw segments, through a daemon: between clients, processes, users and programs in C."""

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
from shmd import inventory, segment, semaphore
from shmd.config import instance_id
from shmd.errors import (
    CellEmpty,
    ClosedError,
    ForkedError,
    InvalidOption,
    SegmentAccessDenied,
    SegmentLocked,
    SegmentRemoved,
    UsageError,
)
from shmd.testing.resources import sysvipc
from tests.children import STRANGER_GID, become_stranger, in_child, needs_root
from tests.classic_program import ClassicLock, end, kill
from tests.loop_turns import started

if TYPE_CHECKING:
    from shmd import Client
    from shmd.testing import Connect, DaemonProcess, StartDaemon

pytestmark = pytest.mark.may_block

FREE_KEY = 0x5EED_0002
_HOLDER = (
    "import asyncio, sys, shmd\n"
    "async def main():\n"
    "    async with shmd.connect(sys.argv[1]) as client, client.segment('frame', size=4096) as seg:\n"
    "        cell = seg.cell('<q')\n"
    "        cell.store(7)\n"
    "        async with seg.lock():\n"
    "            print(seg.key, flush=True)\n"
    "            await asyncio.Event().wait()\n"
    "asyncio.run(main())"
)


@pytest.fixture(scope="module")
def classic(tmp_path_factory: pytest.TempPathFactory) -> ClassicLock:
    return ClassicLock(tmp_path_factory.mktemp("classic"))


async def start_holder(socket_path: Path | str) -> asyncio.subprocess.Process:
    """A process that has stored 7 in the cell at 0, and holds the lock of segment `frame`."""
    holder = await asyncio.create_subprocess_exec(*(sys.executable, "-c", _HOLDER, socket_path), stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert int(await holder.stdout.readline()) > 0
    return holder


async def until_back(client: Client) -> None:
    async for event in client.events():
        if event.kind == "reconnected":
            return


def semaphores() -> set[int]:
    return {int(row["semid"]) for row in sysvipc("sem")}


class TestLock:
    async def test_lock_excludes_between_clients(self, shmd_connect: Connect) -> None:
        one, other = await shmd_connect(), await shmd_connect()
        async with one.segment("frame", size=100) as mine, other.segment("frame") as theirs:
            assert mine.lock() is mine.lock()
            async with mine.lock():
                with pytest.raises(SegmentLocked):
                    theirs.lock().acquire_nowait()
                waiting = asyncio.create_task(theirs.lock().acquire())
                await started(waiting)
            await waiting
            assert theirs.lock().stat().owner_pid == os.getpid()
            theirs.lock().release()

    async def test_next_owner_gets_it_at_once_when_its_owner_is_killed(
        self, shmd_client: Client, shmd_daemon: DaemonProcess
    ) -> None:
        async with shmd_client.segment("frame", size=4096) as seg:
            holder = await start_holder(shmd_daemon.socket_path)
            assert seg.lock().stat().owner_pid == holder.pid
            waiting = asyncio.create_task(seg.lock().acquire())
            await started(waiting)
            holder.send_signal(signal.SIGKILL)
            await holder.wait()
            await waiting
            seg.lock().release()
            assert seg.cell("<q").load() == 7

    async def test_c_program_finds_the_lock_by_the_segments_key(
        self, shmd_client: Client, classic: ClassicLock
    ) -> None:
        async with shmd_client.segment("frame", size=4096) as seg:
            holder = classic.hold(seg.key)
            assert seg.lock().stat().owner_pid == holder.pid
            with pytest.raises(SegmentLocked):
                seg.lock().acquire_nowait()
            kill(holder)
            async with seg.lock():
                program = classic.start_counting(seg.key, seg.id, 1)
                while seg.lock().stat().waiting == 0:
                    assert program.poll() is None
                assert seg.buf[0] == 0
            assert program.wait() == 0
            assert seg.buf[0] == 1

    async def test_lock_goes_on_while_the_daemon_is_away_and_after_it_came_back(
        self, shmd_start: StartDaemon, classic: ClassicLock
    ) -> None:
        daemon = shmd_start(ephemeral=False)
        async with (
            shmd.connect(daemon.socket_path) as one,
            shmd.connect(daemon.socket_path) as other,
            one.segment("frame", size=100) as mine,
            other.segment("frame") as theirs,
        ):
            back = [asyncio.create_task(until_back(client)) for client in (one, other)]
            await mine.lock().acquire()
            waiting = asyncio.create_task(theirs.lock().acquire())
            await started(waiting)
            daemon.kill()
            mine.lock().release()
            await waiting
            shmd_start(instance=daemon.instance, runtime_dir=daemon.runtime_dir)
            await asyncio.gather(*back)
            with pytest.raises(SegmentLocked):
                mine.lock().acquire_nowait()
            theirs.lock().release()
            async with mine.lock():
                (info,) = await one.segments()
                assert (info.sem_id, info.sem_key) == (mine.info.sem_id, mine.info.sem_key)
            await mine.remove()

    async def test_closing_the_segment_gives_the_lock_back(self, shmd_connect: Connect) -> None:
        one, other = await shmd_connect(), await shmd_connect()
        async with other.segment("frame", size=100) as theirs:
            mine = await one.segment("frame")
            lock = mine.lock()
            await lock.acquire()
            await mine.close()
            theirs.lock().acquire_nowait()
            theirs.lock().release()
            with pytest.raises(ClosedError):
                mine.lock()
            with pytest.raises(ClosedError):
                await lock.acquire()

    async def test_removed_segment_takes_its_semaphore_along(self, shmd_client: Client) -> None:
        before = semaphores()
        async with shmd_client.segment("frame", size=100) as seg:
            lock = seg.lock()
            assert semaphores() - before == {seg.info.sem_id}
            await seg.remove()
            assert semaphores() == before
            with pytest.raises(SegmentRemoved):
                await lock.acquire()

    async def test_semaphore_goes_with_a_segment_that_ipcrm_removed(self, shmd_client: Client) -> None:
        before = semaphores()
        async with shmd_client.segment("frame", size=100) as seg:
            subprocess.run(["ipcrm", "-m", str(seg.id)], check=True)  # noqa: ASYNC221 - it is quick
            assert await shmd_client.segments() == []
            assert semaphores() == before

    async def test_purge_without_a_daemon_removes_semaphores_too(self, shmd_start: StartDaemon) -> None:
        before = semaphores()
        daemon = shmd_start(ephemeral=False)
        async with shmd.connect(daemon.socket_path) as client, client.segment("frame", size=100) as seg:
            daemon.kill()
            assert semaphores() - before == {seg.info.sem_id}
            inventory.remove_instance(instance_id(daemon.instance, os.getuid()))
            assert semaphores() == before
            with pytest.raises(SegmentRemoved):
                await seg.lock().acquire()

    async def test_segment_whose_key_has_a_semaphore_already_gets_another(self, shmd_client: Client) -> None:
        taken = semaphore.create(key=FREE_KEY)
        try:
            async with shmd_client.segment("frame", size=100, key=FREE_KEY) as seg:
                assert seg.info.sem_id != taken.id
                assert seg.info.sem_key != FREE_KEY
                async with seg.lock():
                    assert taken.try_acquire()
                    taken.release()
                await seg.remove()
            assert taken.stat().value == 1
        finally:
            semaphore.remove(taken.id)

    async def test_segment_of_lifetime_attached_has_no_lock_that_could_be_left_behind(
        self, shmd_client: Client
    ) -> None:
        before = semaphores()
        async with shmd_client.segment("frame", size=100, lifetime="attached") as seg:
            with pytest.raises(UsageError, match="lifetime 'attached'"):
                seg.lock()
            assert semaphores() == before

    async def test_forked_child_may_not_use_the_lock(self, shmd_client: Client) -> None:
        async with shmd_client.segment("frame", size=100) as seg, seg.lock() as lock:

            def refusals() -> int:
                refused = 0
                for use in (seg.lock, lock.release, lock.acquire_nowait, lambda: seg.cell("<q")):
                    try:
                        use()
                    except ForkedError:
                        refused += 1
                return refused

            assert in_child(refusals) == 4
            assert lock.held


class TestPermissions:
    async def test_semaphore_follows_the_segments_permissions(self, shmd_client: Client) -> None:
        async with shmd_client.segment("frame", size=100, mode=0o640) as seg:
            await seg.set(gid=STRANGER_GID, mode=0o660)
            found = semaphore.stat(seg.info.sem_id)
            assert (found.gid, found.mode) == (STRANGER_GID, 0o660)

    @needs_root
    def test_reader_without_the_write_bit_is_refused_the_lock_and_loads_cells(self, shmd_daemon: DaemonProcess) -> None:
        shmd_daemon.runtime_dir.chmod(0o711)
        Path(shmd_daemon.socket_path).chmod(0o666)

        async def read() -> tuple[int, str]:
            become_stranger()
            async with (
                shmd.connect(shmd_daemon.socket_path) as client,
                client.segment("frame", readonly=True) as seg,
            ):
                with pytest.raises(SegmentAccessDenied):
                    seg.lock()
                with pytest.raises(TypeError):
                    seg.cell("<q").store(1)
                return seg.cell("<q").load(), "refused"

        async def run() -> None:
            async with (
                shmd.connect(shmd_daemon.socket_path) as client,
                client.segment("frame", size=100, mode=0o644) as seg,
            ):
                seg.cell("<q").store(5)

        asyncio.run(run())
        assert in_child(lambda: asyncio.run(read())) == (5, "refused")


class TestAdoption:
    async def test_adopted_segment_keeps_its_programs_semaphore(
        self, shmd_client: Client, classic: ClassicLock
    ) -> None:
        with segment.create(4096, key=FREE_KEY):
            pass
        holder = classic.hold(FREE_KEY)
        async with shmd_client.segment("theirs", key=FREE_KEY, adopt=True) as seg:
            assert seg.info.sem_key == FREE_KEY
            assert seg.lock().stat().owner_pid == holder.pid
            waiting = asyncio.create_task(seg.lock().acquire())
            await started(waiting)
            end(holder)
            await waiting
            seg.lock().release()
            await seg.remove()
        assert seg.info.sem_id not in semaphores()

    async def test_adopted_segment_without_a_semaphore_gets_one_of_its_own(self, shmd_client: Client) -> None:
        with segment.create(4096, key=FREE_KEY):
            pass
        async with shmd_client.segment("theirs", key=FREE_KEY, adopt=True) as seg:
            assert seg.info.sem_key not in (0, FREE_KEY)
            async with seg.lock():
                assert seg.lock().locked()
            await seg.remove()
        assert seg.info.sem_id not in semaphores()


class TestCell:
    async def test_value_that_one_stores_the_others_load(self, shmd_connect: Connect) -> None:
        one, other = await shmd_connect(), await shmd_connect()
        async with one.segment("frame", size=256) as mine, other.segment("frame", readonly=True) as theirs:
            writer, reader = mine.cell("<qd", offset=64), theirs.cell("<qd", offset=64)
            with pytest.raises(CellEmpty):
                reader.load()
            writer.store((1, 2.5))
            assert reader.load_versioned() == ((1, 2.5), 1)

    async def test_place_outside_the_segment_is_an_invalid_option(self, shmd_client: Client) -> None:
        async with shmd_client.segment("frame", size=100) as seg:
            for offset in (4, 56, -8, 1 << 40):
                with pytest.raises(InvalidOption):
                    seg.cell("<q", offset=offset)

    async def test_cells_are_closed_with_their_segment(self, shmd_client: Client) -> None:
        seg = await shmd_client.segment("frame", size=100)
        cell = seg.cell("<q")
        cell.store(1)
        await seg.close()
        with pytest.raises(ClosedError):
            cell.load()
        with pytest.raises(ClosedError):
            seg.cell("<q")
