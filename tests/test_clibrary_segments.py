"""Raw segments of the C library beside Python's, both ways, under ASan and UBSan."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import TYPE_CHECKING

import pytest
import sysv_ipc

import shmd
from shmd.errors import SegmentRemoved
from tests.c_programs import failure
from tests.loop_turns import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.c_programs import CPrograms, Program
    from tests.restarts import Restarts

BUSY, EMPTY = "2", "3"
FREE = 1
KEY = 0x5EC5E6


class TestOpening:
    @pytest.mark.parametrize("backing", ["", "file"])
    async def test_c_and_python_share_the_bytes_of_a_segment_that_c_made(
        self, backing: str, drive: Callable[[], Program], shmd_client: shmd.Client
    ) -> None:
        c = drive()
        c.ask(f"segment frame size 5000 {backing}", "0")
        c.ask("write from-c", "0")
        async with shmd_client.segment("frame", create=False) as segment:
            assert c.ask("segment-about").split() == [
                str(word) for word in (segment.id, segment.key, segment.info.sem_id, 5000)
            ]
            assert bytes(segment.buf[:7]) == b"from-c\0"
            segment.buf[:8] = b"from-py\0"
            assert c.ask("read") == "0 from-py"

    @pytest.mark.parametrize("backing", ["memory", "file"])
    async def test_c_opens_readonly_what_python_made(
        self, backing: shmd.protocol.Backing, drive: Callable[[], Program], shmd_client: shmd.Client
    ) -> None:
        async with shmd_client.segment("frame", size=4096, backing=backing) as segment:
            segment.buf[:3] = b"py\0"
            c = drive()
            before = int(c.ask("descriptors"))
            c.ask("segment frame open-only readonly", "0")
            assert c.ask("read") == "0 py"
            c.ask("close-segment", "0")
            assert int(c.ask("descriptors")) == before

    async def test_c_takes_the_key_it_asks_for_and_python_finds_it_by_that(
        self, drive: Callable[[], Program], shmd_client: shmd.Client
    ) -> None:
        c = drive()
        c.ask(f"segment frame size 4096 key {KEY} mode 0600", "0")
        c.ask("write keyed", "0")
        memory = sysv_ipc.SharedMemory(KEY)
        assert memory.read(5) == b"keyed"
        memory.detach()
        await shmd_client.remove_segment("frame")

    def test_c_is_told_why_a_segment_cannot_be_opened(self, drive: Callable[[], Program]) -> None:
        c, other = drive(), drive()
        c.ask("segment frame open-only", failure(errno.ENOENT))
        assert c.ask("code") == "segment-not-found"
        c.ask("segment frame", failure(errno.EINVAL))
        c.ask("segment frame size 4096 key -1", failure(errno.EINVAL))
        c.ask("segment high size 4096 key -2", "0")  # as ftok() makes them of ids from 128 on
        assert int(c.ask("segment-about").split()[1]) == 2**32 - 2
        c.ask(f"segment frame size 4096 key {KEY}", "0")
        other.ask("segment frame size 4096 exclusive", failure(errno.EEXIST))
        assert other.ask("code") == "segment-exists"
        other.ask(f"segment frame key {KEY + 1}", failure(errno.EEXIST))
        assert other.ask("code") == "segment-mismatch"
        other.ask("segment frame size 8192", failure(errno.EINVAL))
        other.ask(f"segment {'x' * 256} size 1", failure(errno.EPROTO))

    def test_c_adopts_a_segment_that_another_program_made(self, drive: Callable[[], Program]) -> None:
        memory = sysv_ipc.SharedMemory(KEY, sysv_ipc.IPC_CREX, size=4096)
        try:
            memory.write(b"mine\0")
            c = drive()
            c.ask(f"segment theirs size 4096 key {KEY}", failure(errno.EEXIST))
            c.ask(f"segment theirs key {KEY} adopt", "0")
            assert c.ask("read") == "0 mine"
            c.ask("remove-segment theirs", "0")
        finally:
            memory.detach()
            with contextlib.suppress(sysv_ipc.ExistentialError):
                memory.remove()

    def test_attached_segment_has_no_lock(self, drive: Callable[[], Program]) -> None:
        c = drive()
        c.ask("segment frame size 4096 attached", "0")
        c.ask("lock", failure(errno.EOPNOTSUPP))


class TestNotifying:
    async def test_python_wakes_c(self, drive: Callable[[], Program], shmd_client: shmd.Client) -> None:
        c = drive()
        c.ask("segment frame size 4096", "0")
        c.ask("wait", EMPTY)
        c.ask("wait timeout 1", EMPTY)
        async with shmd_client.segment("frame") as segment:
            waiting = asyncio.create_task(asyncio.to_thread(c.ask, "wait timeout -1"))
            segment.buf[:3] = b"py\0"
            segment.notify()
            assert (await waiting).split()[0] == "0"
            assert c.ask("read") == "0 py"
            c.ask("wait", EMPTY)
            segment.notify()
            segment.notify()
            c.ask("wait", "0")
            c.ask("wait", EMPTY)

    async def test_c_wakes_python(self, drive: Callable[[], Program], shmd_client: shmd.Client) -> None:
        c = drive()
        c.ask("segment frame size 4096", "0")
        async with shmd_client.segment("frame") as segment:
            c.ask("write news", "0")
            c.ask("notify", "0")
            await segment.wait()
            assert bytes(segment.buf[:4]) == b"news"

    async def test_one_byte_of_a_fifo_wakes_one_of_all_who_wait(
        self, drive: Callable[[], Program], shmd_client: shmd.Client
    ) -> None:
        async with shmd_client.segment("jobs", size=4096, notifier="fifo") as segment:
            programs = [drive(), drive()]
            for c in programs:
                c.ask("segment jobs", "0")
                c.ask("wait timeout 1", EMPTY)
            waiting = [asyncio.create_task(asyncio.to_thread(c.ask, "wait timeout -1")) for c in programs]
            segment.notify()
            done, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result().split()[0] for task in done] == ["0"]
            assert len(others) == 1
            segment.notify()
            assert (await others.pop()).split()[0] == "0"
            for _ in range(3):
                programs[0].ask("notify", "0")
            await segment.wait()
            programs[1].ask("wait", "0")
            programs[0].ask("wait", "0")
            programs[0].ask("wait", EMPTY)

    async def test_fifo_of_a_segment_is_heard_across_a_restart(self, c_programs: CPrograms, restarts: Restarts) -> None:
        with c_programs.drive(restarts.socket_path) as c:
            async with shmd.connect(restarts.socket_path) as client:
                segment = await client.segment("jobs", size=4096, notifier="fifo")
                c.ask("segment jobs", "0")
                await restarts.restart(client)
                waiting = asyncio.create_task(asyncio.to_thread(c.ask, "wait timeout -1"))
                segment.notify()
                assert (await waiting).split()[0] == "0"
                c.ask("wait", EMPTY)
                await segment.close()

    async def test_c_program_that_the_daemon_forgot_keeps_its_segment(
        self, c_programs: CPrograms, restarts: Restarts
    ) -> None:
        with c_programs.drive(restarts.socket_path) as c:
            c.ask("segment frame size 4096", "0")
            c.ask("write kept", "0")
            await restarts.kill()
            await restarts.forget_everybody()
            await restarts.start()
            c.ask("resume", "0")
            async with shmd.connect(restarts.socket_path) as client, client.segment("frame") as segment:
                assert bytes(segment.buf[:5]) == b"kept\0"
                c.say("wait timeout -1")
                segment.notify()
                assert c.line().split()[0] == "0"
                waiting = asyncio.create_task(segment.wait())
                await asyncio.sleep(0)
                c.ask("notify", "0")
                await waiting

    async def test_c_hears_of_the_removal_and_keeps_the_memory(
        self, drive: Callable[[], Program], shmd_client: shmd.Client
    ) -> None:
        c = drive()
        c.ask("segment frame size 4096", "0")
        c.ask("write kept", "0")
        waiting = asyncio.create_task(asyncio.to_thread(c.ask, "wait timeout -1"))
        await shmd_client.remove_segment("frame")
        assert (await waiting).split()[0] == failure(errno.EIDRM)
        c.ask("notify", failure(errno.EIDRM))
        c.ask("lock", failure(errno.EIDRM))
        assert c.ask("read") == "0 kept"

    async def test_python_is_told_that_c_removed_it(
        self, drive: Callable[[], Program], shmd_client: shmd.Client
    ) -> None:
        async with shmd_client.segment("frame", size=4096) as segment:
            c = drive()
            c.ask("remove-segment frame", "0")
            c.ask("remove-segment frame", failure(errno.ENOENT))
            with pytest.raises(SegmentRemoved):
                await segment.wait()


class TestLock:
    async def test_c_and_python_exclude_each_other(
        self, drive: Callable[[], Program], shmd_client: shmd.Client
    ) -> None:
        c = drive()
        c.ask("segment frame size 4096", "0")
        async with shmd_client.segment("frame") as segment:
            async with segment.lock():
                c.ask("lock", BUSY)
                c.ask("lock timeout 1", BUSY)
                waiting = asyncio.create_task(asyncio.to_thread(c.ask, "lock timeout -1"))
                await until(lambda: segment.lock().stat().waiting == 1)
            assert (await waiting).split()[0] == "0"
            with pytest.raises(shmd.SegmentLocked):
                segment.lock().acquire_nowait()
            c.ask("lock", failure(errno.EDEADLK))
            c.ask("unlock", "0")
            c.ask("unlock", failure(errno.EPERM))
            assert segment.lock().stat().value == FREE

    async def test_python_is_woken_by_the_lock_bell_when_c_unlocks(
        self, drive: Callable[[], Program], shmd_client: shmd.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shmd.limits, "SEGMENT_LOCK_RECHECK_MIN_S", 3600.0)
        monkeypatch.setattr(shmd.limits, "SEGMENT_LOCK_RECHECK_MAX_S", 3600.0)
        c = drive()
        c.ask("segment frame size 4096", "0")
        c.ask("lock", "0")
        async with shmd_client.segment("frame") as segment:
            taking = asyncio.create_task(segment.lock().acquire())
            await asyncio.sleep(0)
            c.ask("unlock", "0")
            await taking
            segment.lock().release()

    async def test_lock_of_a_killed_c_program_is_free(
        self, drive: Callable[[], Program], shmd_client: shmd.Client
    ) -> None:
        c = drive()
        c.ask("segment frame size 4096", "0")
        c.ask("lock", "0")
        async with shmd_client.segment("frame") as segment:
            assert segment.lock().locked()
            c.kill()
            async with segment.lock():
                pass

    async def test_closing_gives_the_lock_back(self, drive: Callable[[], Program], shmd_client: shmd.Client) -> None:
        c = drive()
        c.ask("segment frame size 4096", "0")
        c.ask("lock", "0")
        c.ask("close-segment", "0")
        async with shmd_client.segment("frame") as segment:
            assert segment.lock().stat().value == FREE


class TestRestarts:
    @pytest.mark.parametrize("backing", ["", "file"])
    async def test_c_goes_on_with_a_daemon_that_was_killed_and_came_back(
        self, backing: str, c_programs: CPrograms, restarts: Restarts
    ) -> None:
        with c_programs.drive(restarts.socket_path) as c:
            c.ask(f"segment frame size 4096 {backing}", "0")
            c.ask("write before", "0")
            await restarts.kill()
            assert c.ask("read") == "0 before"
            c.ask("notify", "0")
            c.ask("wait timeout -1", "0")
            await restarts.start()
            c.ask("resume", "0")
            async with shmd.connect(restarts.socket_path) as client, client.segment("frame") as segment:
                assert bytes(segment.buf[:6]) == b"before"
                segment.buf[:6] = b"after\0"
                while c.ask("wait").split()[0] == "0":
                    pass
                segment.notify()
                c.ask("wait timeout -1", "0")
                c.ask("notify", "0")
                await segment.wait()
