"""Raw segments from a client's side: all their bytes are the user's, and the kernel's word on them is the last."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sysv_ipc

import shmd
from shmd import segment, segment_options
from shmd.errors import (
    ClosedError,
    InvalidName,
    InvalidOption,
    LimitExceeded,
    SegmentExists,
    SegmentInvalid,
    SegmentMismatch,
    SegmentNotFound,
    SegmentRemoved,
)
from shmd.testing.resources import sysvipc

if TYPE_CHECKING:
    from shmd import Client
    from shmd.testing import Connect, DaemonProcess, StartDaemon

FREE_KEY = 0x5EED_0001


def mappings_of(shmid: int) -> int:
    """How often this process has the segment attached."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum("/SYSV" in line and line.split()[4] == str(shmid) for line in lines)


class TestOpening:
    async def test_new_segment_is_zero_and_of_the_size_asked_for(self, shmd_client: Client) -> None:
        async with shmd_client.segment("frame", size="5KiB") as seg:
            assert (seg.name, seg.size_bytes, seg.readonly, seg.removed) == ("frame", 5120, False, False)
            assert bytes(seg.buf) == bytes(5120)
            found = seg.stat()
            assert (found.id, found.key, found.size_bytes) == (seg.id, seg.key, 5120)
            assert found.allocated_bytes == 8192
            assert found.attachments == 1

    async def test_what_one_writes_another_reads(self, shmd_connect: Connect) -> None:
        one, other = await shmd_connect(), await shmd_connect()
        async with one.segment("frame", size=100) as mine, other.segment("frame", create=False) as theirs:
            mine.buf[:5] = b"hello"
            assert bytes(theirs.buf[:5]) == b"hello"
            assert theirs.size_bytes == 100

    async def test_topic_may_have_the_same_name(self, shmd_client: Client) -> None:
        await shmd_client.topic("frame")
        async with shmd_client.segment("frame", size=1):
            assert [info.name for info in await shmd_client.segments()] == ["frame"]
            assert [info.name for info in await shmd_client.topics()] == ["frame"]

    async def test_segment_that_is_not_there_is_not_opened_without_create(self, shmd_client: Client) -> None:
        with pytest.raises(SegmentNotFound):
            await shmd_client.segment("frame", create=False)

    async def test_exclusive_makes_it_and_refuses_one_that_exists(self, shmd_client: Client) -> None:
        async with shmd_client.segment("frame", size=1, exclusive=True):
            with pytest.raises(SegmentExists):
                await shmd_client.segment("frame", size=1, exclusive=True)

    async def test_new_segment_needs_a_size(self, shmd_client: Client) -> None:
        with pytest.raises(SegmentInvalid, match="size="):
            await shmd_client.segment("frame")
        with pytest.raises(SegmentInvalid):
            await shmd_client.segment("frame", size=0)

    async def test_smaller_wish_is_met_and_a_larger_one_is_invalid(self, shmd_client: Client) -> None:
        async with shmd_client.segment("frame", size=100):
            async with shmd_client.segment("frame", size=10) as seg:
                assert len(seg.buf) == 100
            with pytest.raises(SegmentInvalid, match="100 bytes, not 101"):
                await shmd_client.segment("frame", size=101)

    async def test_other_options_than_it_has_are_named_both(self, shmd_client: Client) -> None:
        async with shmd_client.segment("frame", size=1, key=FREE_KEY, mode=0o640):
            with pytest.raises(SegmentMismatch, match=f"key {FREE_KEY:#x}, not 0x1"):
                await shmd_client.segment("frame", key=1)
            with pytest.raises(SegmentMismatch, match="mode 0640, not 0600"):
                await shmd_client.segment("frame", mode=0o600)

    @pytest.mark.parametrize(
        "options",
        [
            {"key": 0},
            {"key": 2**32},
            {"key": 1, "ftok": ("/", 1)},
            {"ftok": ("/", 0)},
            {"ftok": ("/", 256)},
            {"ftok": ("/nowhere at all", 1)},
            {"mode": 0o1000},
            {"mode": 0o620},
            {"adopt": True},
            {"lifetime": "attached", "key": 1},
            {"lifetime": "short"},
            {"backing": "tape"},
            {"size": "huge"},
        ],
    )
    async def test_option_that_cannot_be_is_refused(self, shmd_client: Client, options: dict[str, object]) -> None:
        with pytest.raises(InvalidOption):
            await shmd_client.segment("frame", **{"size": 1, **options})  # type: ignore[arg-type]

    async def test_name_that_cannot_be_is_refused(self, shmd_client: Client) -> None:
        with pytest.raises(InvalidName):
            await shmd_client.segment("a..b", size=1)

    async def test_key_of_ftok_is_that_of_c(self, shmd_client: Client, tmp_path: Path) -> None:
        file = tmp_path / "here"
        file.touch()
        key = sysv_ipc.ftok(str(file), ord("A"), silence_warning=True)
        assert segment_options.make_key(file, "A") == key
        async with shmd_client.segment("frame", size=1, ftok=(file, "A")) as seg:
            assert seg.key == key

    async def test_key_that_is_taken_is_refused(self, shmd_client: Client) -> None:
        with segment.create(1, key=FREE_KEY) as other:
            with pytest.raises(SegmentExists, match=hex(FREE_KEY)):
                await shmd_client.segment("frame", size=1, key=FREE_KEY)
            segment.remove(other.id)

    @pytest.mark.may_block
    async def test_segments_over_the_byte_budget_are_refused(self, shmd_start: StartDaemon) -> None:
        daemon = shmd_start("--max-bytes", "1MiB")
        async with shmd.connect(daemon.socket_path) as client, client.segment("a", size="1MiB"):
            with pytest.raises(LimitExceeded):
                await client.segment("b", size=1)
            await client.remove_segment("a")
            async with client.segment("b", size=1):
                pass


class TestAccess:
    async def test_readonly_segment_cannot_be_written(self, shmd_client: Client) -> None:
        async with (
            shmd_client.segment("frame", size=100) as writer,
            shmd_client.segment("frame", readonly=True) as reader,
        ):
            assert reader.readonly
            assert reader.buf.readonly
            with pytest.raises(TypeError):
                reader.buf[0] = 1
            writer.buf[0] = 7
            assert reader.buf[0] == 7

    @pytest.mark.may_block
    async def test_one_process_attaches_once_however_often_it_opens(self, shmd_client: Client) -> None:
        opened = [await shmd_client.segment("frame", size=100) for _ in range(5)]
        assert opened[0].stat().attachments == 1
        assert mappings_of(opened[0].id) == 1
        for seg in opened[1:]:
            await seg.close()
        assert opened[0].stat().attachments == 1
        await opened[0].close()
        assert mappings_of(opened[0].id) == 0
        stat = await shmd_client.segment_stat("frame")
        assert stat is not None
        assert stat.attachments == 0

    async def test_close_is_refused_under_a_live_view_and_changes_nothing(self, shmd_client: Client) -> None:
        seg = await shmd_client.segment("frame", size=100)
        view = seg.buf[10:20]
        with pytest.raises(BufferError):
            await seg.close()
        view[0] = 5
        assert seg.buf[10] == 5
        buf = seg.buf
        assert seg.stat().attachments == 1
        view.release()
        await seg.close()
        await seg.close()
        with pytest.raises(ValueError, match="released"):
            buf[0]
        for use in (lambda: seg.buf, seg.stat, seg.notify):
            with pytest.raises(ClosedError):
                use()
        for work in (seg.wait(), seg.remove(), seg.set(mode=0o600)):
            with pytest.raises(ClosedError):
                await work

    async def test_array_is_a_view_that_holds_the_segment(self, shmd_client: Client) -> None:
        np = pytest.importorskip("numpy")
        seg = await shmd_client.segment("frame", size=4096)
        array = seg.array("f8", (4, 2), 64)
        array[1, 1] = 1.5
        assert np.frombuffer(bytes(seg.buf[64:128])).tolist() == [0, 0, 0, 1.5, 0, 0, 0, 0]
        with pytest.raises(BufferError):
            await seg.close()
        del array
        await seg.close()

    async def test_array_that_exports_nothing_holds_the_segment_too(self, shmd_client: Client) -> None:
        np = pytest.importorskip("numpy")
        seg = await shmd_client.segment("frame", size=4096)
        array = np.ndarray((4,), "f8", buffer=seg.buf)
        with pytest.raises(BufferError):
            await seg.close()
        array[0] = 1
        del array
        await seg.close()

    async def test_array_that_does_not_fit_or_holds_objects_is_refused(self, shmd_client: Client) -> None:
        pytest.importorskip("numpy")
        async with shmd_client.segment("frame", size=4096) as seg:
            for arguments in (("f8", 513), ("u1", 4096, 1), ("u1", 1, -1), ("u1", (-1,)), ("O", 1)):
                with pytest.raises(InvalidOption):
                    seg.array(*arguments)

    async def test_array_of_a_readonly_segment_is_readonly(self, shmd_client: Client) -> None:
        pytest.importorskip("numpy")
        async with shmd_client.segment("frame", size=8), shmd_client.segment("frame", readonly=True) as seg:
            assert not seg.array("u1", 8).flags.writeable

    @pytest.mark.may_block
    async def test_ten_thousand_cycles_leave_mappings_descriptors_and_memory_flat(self, shmd_client: Client) -> None:
        def held() -> tuple[int, int]:
            return len(Path("/proc/self/maps").read_text().splitlines()), len(os.listdir("/proc/self/fd"))

        def rss_kib() -> int:
            (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
            return int(line.split()[1])

        for _ in range(500):
            async with shmd_client.segment("frame", size=65536) as seg:
                seg.buf[0] = 1
        before, rss_before = held(), rss_kib()
        for _ in range(9_500):
            async with shmd_client.segment("frame") as seg:
                seg.buf[0] = 1
        after, rss_after = held(), rss_kib()
        assert after[1] == before[1]
        assert abs(after[0] - before[0]) <= 8  # the allocator's own
        assert rss_after - rss_before < 4096


class TestLookingAfter:
    @pytest.mark.may_block
    async def test_stat_and_list_match_ipcs(self, shmd_client: Client) -> None:
        async with shmd_client.segment("frame", size=100, mode=0o640) as seg:
            (row,) = [row for row in sysvipc("shm") if int(row["shmid"]) == seg.id]
            found = seg.stat()
            assert (found.key, found.size_bytes, oct(found.mode)[2:]) == (int(row["key"]), 100, row["perms"])
            assert (found.uid, found.gid, found.cuid) == (int(row["uid"]), int(row["gid"]), int(row["cuid"]))
            assert (found.creator_pid, found.last_pid) == (int(row["cpid"]), os.getpid())
            assert (found.attach_time, found.change_time) == (int(row["atime"]), int(row["ctime"]))
            assert await shmd_client.segment_stat("frame") == found
            assert await shmd_client.segment_stat("other") is None
            (info,) = await shmd_client.segments("*")
            assert (info.id, info.key, info.mode) == (seg.id, seg.key, 0o640)

    async def test_lists_are_paged(self, shmd_client: Client) -> None:
        names = [f"s{number:03}" for number in range(150)]
        for name in names:
            async with shmd_client.segment(name, size=1):
                pass
        assert [info.name for info in await shmd_client.segments()] == names

    async def test_set_changes_what_the_kernel_says(self, shmd_client: Client) -> None:
        async with shmd_client.segment("frame", size=1) as seg:
            await seg.set(gid=12345, mode=0o660)
            found = seg.stat()
            assert (found.gid, found.mode, found.uid) == (12345, 0o660, os.getuid())
            (info,) = await shmd_client.segments()
            assert (info.gid, info.mode) == (12345, 0o660)
            with pytest.raises(InvalidOption):
                await seg.set(mode=0o000)
            await shmd_client.set_segment("frame", mode=0o600)
            assert seg.stat().mode == 0o600

    @pytest.mark.may_block
    async def test_removed_segment_stays_with_those_who_have_it(self, shmd_connect: Connect) -> None:
        one, other = await shmd_connect(), await shmd_connect()
        seg, theirs = await one.segment("frame", size=100), await other.segment("frame")
        waiting = asyncio.create_task(theirs.wait())
        await asyncio.sleep(0)
        await seg.remove()
        with pytest.raises(SegmentRemoved):
            await waiting
        seg.buf[0] = 9
        assert theirs.buf[0] == 9
        found = theirs.stat()
        assert (found.removed, found.key, found.attachments) == (True, 0, 1)
        assert theirs.removed
        with pytest.raises(SegmentNotFound):
            await other.segment("frame", create=False)
        with pytest.raises(SegmentRemoved):
            theirs.notify()
        async with one.segment("frame", size=50) as another:
            assert another.id != seg.id
            with pytest.raises(SegmentNotFound):
                await seg.remove()
        await theirs.close()
        await seg.close()
        assert not [row for row in sysvipc("shm") if int(row["shmid"]) == seg.id]

    @pytest.mark.may_block
    async def test_segment_of_lifetime_attached_has_no_key_and_goes_with_its_last_user(
        self, shmd_client: Client
    ) -> None:
        seg = await shmd_client.segment("frame", size=100, lifetime="attached")
        again = await shmd_client.segment("frame")
        assert (seg.key, seg.stat().removed) == (0, True)
        await seg.close()
        assert [info.name for info in await shmd_client.segments()] == ["frame"]
        await again.close()
        assert await shmd_client.segments() == []
        assert not [row for row in sysvipc("shm") if int(row["shmid"]) == again.id]

    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    @pytest.mark.may_block
    async def test_dropped_segment_is_given_back(self, shmd_client: Client) -> None:
        shmid = (await shmd_client.segment("frame", size=100)).id
        while mappings_of(shmid):
            await shmd_client.segments()
        await shmd_client.segments()

    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    async def test_view_outlives_a_dropped_segment(self, shmd_client: Client) -> None:
        view = (await shmd_client.segment("frame", size=100)).buf[:10]
        for _ in range(10):
            await asyncio.sleep(0)
        view[0] = 1
        assert view[0] == 1
        gc.collect()
        view.release()
        async with shmd_client.segment("frame") as seg:  # now somebody sees to it
            assert seg.stat().attachments == 1


class TestBell:
    async def test_wait_returns_after_a_notify_and_not_before(self, shmd_connect: Connect) -> None:
        one, other = await shmd_connect(), await shmd_connect()
        async with one.segment("frame", size=1) as mine, other.segment("frame") as theirs:
            waiting = asyncio.create_task(theirs.wait())
            for _ in range(20):
                await asyncio.sleep(0)
            assert not waiting.done()
            mine.notify()
            await waiting

    async def test_notify_before_wait_is_not_lost_and_several_count_once(self, shmd_connect: Connect) -> None:
        one, other = await shmd_connect(), await shmd_connect()
        async with one.segment("frame", size=1) as mine, other.segment("frame") as theirs:
            for _ in range(3):
                mine.notify()
            await theirs.wait()
            waiting = asyncio.create_task(theirs.wait())
            for _ in range(20):
                await asyncio.sleep(0)
            assert not waiting.done()
            waiting.cancel()

    async def test_every_waiter_is_woken(self, shmd_connect: Connect) -> None:
        one, other = await shmd_connect(), await shmd_connect()
        async with one.segment("frame", size=1) as mine, other.segment("frame") as theirs:
            waiting = [asyncio.create_task(seg.wait()) for seg in (theirs, theirs, mine, theirs)]
            await asyncio.sleep(0)
            mine.notify()
            await asyncio.gather(*waiting)

    async def test_cancelled_wait_has_heard_nothing(self, shmd_client: Client) -> None:
        async with shmd_client.segment("frame", size=1) as seg:
            waiting = asyncio.create_task(seg.wait())
            await asyncio.sleep(0)
            seg.notify()
            seg._hub._bells.dispatch()  # it is woken, but has not run when it is cancelled
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await seg.wait()

    async def test_closing_ends_waiting(self, shmd_client: Client) -> None:
        seg = await shmd_client.segment("frame", size=1)
        waiting = asyncio.create_task(seg.wait())
        await asyncio.sleep(0)
        await seg.close()
        with pytest.raises(ClosedError):
            await waiting

    @pytest.mark.may_block
    async def test_close_of_the_client_closes_its_segments(self, shmd_daemon: DaemonProcess) -> None:
        async with shmd.connect(shmd_daemon.socket_path) as client:
            seg = await client.segment("frame", size=1)
        with pytest.raises(ClosedError):
            seg.notify()
        assert mappings_of(seg.id) == 0
