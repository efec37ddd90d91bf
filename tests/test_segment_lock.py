"""The lock of a segment between tasks, between processes, and with programs in C."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import struct
from typing import TYPE_CHECKING

import pytest

from shmd import limits, notifier, segment, semaphore
from shmd.errors import ClosedError, ForkedError, SegmentInvalid, SegmentLocked, SegmentRemoved, UsageError
from shmd.notifier import BellSet
from shmd.segment_lock import SegmentLock
from tests.children import in_child
from tests.classic_program import ClassicLock, end, kill
from tests.interrupt import interruptions
from tests.loop_turns import started, turns, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterator

pytestmark = pytest.mark.both_loops


class Place:
    """A lock's semaphore and bell, and the locks that this process opened there."""

    def __init__(self) -> None:
        self.semaphore = semaphore.create()
        self.bell = notifier.make_bell()
        self.bells = BellSet()

    def open(self) -> SegmentLock:
        """As a process does once: a second one here plays another process."""
        lock = SegmentLock(semaphore.attach(self.semaphore.key, self.semaphore.id), lambda: notifier.ring(self.bell))
        heard = os.dup(self.bell)
        self.bells.add(heard, lock.rung)
        self._heard.append(heard)
        return lock

    async def __aenter__(self) -> Place:
        self._heard: list[int] = []
        asyncio.get_running_loop().add_reader(self.bells.fileno(), self.bells.dispatch)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self.bells.fileno())
        self.bells.close()
        for fd in (*self._heard, self.bell):
            os.close(fd)
        with contextlib.suppress(SegmentInvalid):  # a test may have removed it
            semaphore.remove(self.semaphore.id)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with Place() as place:
        yield place


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks again by itself: only bells wake."""
    monkeypatch.setattr(limits, "SEGMENT_LOCK_RECHECK_MIN_S", 3600.0)
    monkeypatch.setattr(limits, "SEGMENT_LOCK_RECHECK_MAX_S", 3600.0)


@pytest.fixture(scope="module")
def classic(tmp_path_factory: pytest.TempPathFactory) -> ClassicLock:
    return ClassicLock(tmp_path_factory.mktemp("classic"))


@pytest.fixture
def counter() -> Iterator[segment.Segment]:
    with segment.create(4096) as made:
        try:
            yield made
        finally:
            segment.remove(made.id)


class TestTasks:
    async def test_block_holds_the_lock(self, place: Place) -> None:
        lock = place.open()
        assert not lock.locked()
        async with lock as entered:
            assert entered is lock
            assert lock.held
            assert lock.locked()
            assert lock.stat().owner_pid == os.getpid()
        assert not lock.held
        assert lock.stat().owner_pid is None

    async def test_tasks_take_turns_in_the_order_in_which_they_came(self, place: Place) -> None:
        lock = place.open()
        order: list[int] = []

        async def work(number: int) -> None:
            async with lock:
                order.append(number)
                await turns(2)
                assert order[-1] == number

        await lock.acquire()
        workers = [asyncio.create_task(work(number)) for number in range(20)]
        await started(workers[-1])
        lock.release()
        await asyncio.gather(*workers)
        assert order == list(range(20))

    async def test_task_cannot_take_it_twice(self, place: Place) -> None:
        lock = place.open()
        async with lock:
            with pytest.raises(UsageError, match="this task holds"):
                await lock.acquire()
            with pytest.raises(UsageError, match="this task holds"):
                lock.acquire_nowait()
            assert lock.held
        assert not lock.locked()

    async def test_release_of_what_is_not_held_is_a_usage_error(self, place: Place) -> None:
        lock, other = place.open(), place.open()
        with pytest.raises(UsageError, match="not held"):
            lock.release()
        async with other:
            with pytest.raises(UsageError, match="not held"):
                lock.release()
            assert other.held
        assert lock.stat().value == 1

    async def test_nowait_takes_a_free_lock_and_refuses_a_held_one(self, place: Place) -> None:
        lock, other = place.open(), place.open()
        lock.acquire_nowait()
        assert lock.held
        with pytest.raises(SegmentLocked, match=str(os.getpid())):
            other.acquire_nowait()
        with pytest.raises(SegmentLocked, match="another task"):
            await asyncio.create_task(nowait(lock))
        lock.release()
        other.acquire_nowait()
        other.release()
        lock.acquire_nowait()
        lock.release()

    async def test_nowait_does_not_overtake_a_task_that_waits(self, place: Place) -> None:
        lock = place.open()
        await lock.acquire()
        waiter = asyncio.create_task(lock.acquire())
        await started(waiter)
        lock.release()
        with pytest.raises(SegmentLocked):
            lock.acquire_nowait()
        await waiter
        lock.release()

    async def test_timeout_ends_the_wait_and_leaves_no_trace(self, place: Place) -> None:
        lock, other = place.open(), place.open()
        await other.acquire()
        for timeout in (0, 0.001):
            with pytest.raises(TimeoutError):
                await lock.acquire(timeout)
        other.release()
        await lock.acquire(0)
        lock.release()
        assert lock.stat().value == 1


async def nowait(lock: SegmentLock) -> None:
    lock.acquire_nowait()


class TestProcesses:
    @pytest.mark.usefixtures("patient")
    async def test_release_wakes_who_waits_in_another_process(self, place: Place) -> None:
        lock, other = place.open(), place.open()
        await other.acquire()
        waiting = asyncio.create_task(lock.acquire())
        await started(waiting)
        other.release()
        await waiting
        lock.release()

    async def test_waiter_finds_what_a_c_program_releases_without_a_bell(
        self, place: Place, classic: ClassicLock
    ) -> None:
        lock = place.open()
        holder = classic.hold(place.semaphore.key)
        waiting = asyncio.create_task(lock.acquire())
        await started(waiting)
        end(holder)
        await waiting
        lock.release()

    async def test_waiter_gets_the_lock_of_an_owner_that_is_killed(self, place: Place, classic: ClassicLock) -> None:
        lock = place.open()
        holder = classic.hold(place.semaphore.key)
        with pytest.raises(SegmentLocked, match=str(holder.pid)):
            lock.acquire_nowait()
        waiting = asyncio.create_task(lock.acquire())
        await started(waiting)
        kill(holder)
        await waiting
        lock.release()

    @pytest.mark.may_block
    async def test_counters_of_many_processes_lose_nothing(
        self, place: Place, classic: ClassicLock, counter: segment.Segment
    ) -> None:
        """Two in Python with several tasks each, two in C, and this one; each reads, gives way, and writes."""
        cycles = 300
        fork = multiprocessing.get_context("fork")
        where = (place.semaphore.key, place.semaphore.id, place.bell, counter.id, cycles)
        pythons = [fork.Process(target=count_in_tasks, args=where) for _ in range(2)]
        programs = [classic.start_counting(place.semaphore.key, counter.id, cycles) for _ in range(2)]
        for process in pythons:
            process.start()
        lock = place.open()
        for _ in range(cycles):
            async with lock:
                await add_one(counter)
        await until(lambda: all(process.exitcode is not None for process in pythons))
        await until(lambda: all(program.poll() is not None for program in programs))
        assert [process.exitcode for process in pythons] == [0, 0]
        for process in pythons:
            process.close()
        assert [program.returncode for program in programs] == [0, 0]
        assert struct.unpack_from("<Q", counter.buf)[0] == 5 * cycles
        assert lock.stat().value == 1

    async def test_forked_child_uses_nothing_of_its_parents_lock(self, place: Place) -> None:
        lock = place.open()
        await lock.acquire()

        def run() -> int:
            refused = 0
            for use in (lock.release, lock.acquire_nowait, lambda: lock.acquire().send(None)):
                try:
                    use()
                except ForkedError:
                    refused += 1
            return refused

        assert in_child(run) == 3
        assert lock.stat().value == 0
        lock.release()


async def add_one(counter: segment.Segment) -> None:
    seen = struct.unpack_from("<Q", counter.buf)[0]
    await asyncio.sleep(0)
    struct.pack_into("<Q", counter.buf, 0, seen + 1)


def count_in_tasks(key: int, semid: int, bell: int, shmid: int, cycles: int) -> None:
    async def work(lock: SegmentLock, counter: segment.Segment, cycles: int) -> None:
        for _ in range(cycles):
            async with lock:
                await add_one(counter)

    async def run() -> None:
        bells = BellSet()
        lock = SegmentLock(semaphore.attach(key, semid), lambda: notifier.ring(bell))
        bells.add(bell, lock.rung)
        asyncio.get_running_loop().add_reader(bells.fileno(), bells.dispatch)
        with segment.attach(shmid, readonly=False) as counter:
            await asyncio.gather(*(work(lock, counter, cycles // 3) for _ in range(3)))

    asyncio.run(run())


class TestCancellation:
    @pytest.mark.parametrize("held_by", ["nobody", "task", "other"])
    async def test_cancelled_acquire_neither_loses_nor_keeps_the_lock(self, place: Place, held_by: str) -> None:
        """At every suspension, also when the lock comes at the same moment."""
        lock, other = place.open(), place.open()
        holder = {"nobody": None, "task": lock, "other": other}[held_by]

        def acquire() -> Awaitable[None]:
            if holder is not None:
                holder.acquire_nowait()
                asyncio.get_running_loop().call_later(0.002, holder.release)
            return lock.acquire()

        async for outcome, _ in interruptions(acquire):
            if outcome == "done":
                assert lock.held
                lock.release()
            await until(lambda: not lock.held and not other.held)
            assert lock.stat().value == 1
            lock.acquire_nowait()
            lock.release()

    async def test_line_closes_up_behind_a_waiter_that_was_cancelled(self, place: Place) -> None:
        lock, other = place.open(), place.open()
        await other.acquire()
        waiters = [asyncio.create_task(lock.acquire()) for _ in range(3)]
        await started(waiters[-1])
        waiters[0].cancel()
        other.release()
        await waiters[1]
        assert not waiters[2].done()
        lock.release()
        await waiters[2]
        lock.release()
        assert waiters[0].cancelled()


class TestEnd:
    @pytest.mark.usefixtures("patient")
    async def test_closing_gives_back_and_ends_every_wait(self, place: Place) -> None:
        lock, other = place.open(), place.open()
        await other.acquire()
        waiters = [asyncio.create_task(lock.acquire()) for _ in range(3)]
        await started(waiters[-1])
        lock.close()
        for waiter in waiters:
            with pytest.raises(ClosedError):
                await waiter
        other.release()
        assert other.stat().value == 1

    async def test_block_that_closes_its_segment_ends_well(self, place: Place) -> None:
        lock = place.open()
        async with lock:
            lock.close()
            lock.close()
            assert lock.stat().value == 1
        with pytest.raises(ClosedError):
            await lock.acquire()

    async def test_waiter_is_told_when_the_lock_is_removed(self, place: Place) -> None:
        lock, other = place.open(), place.open()
        await other.acquire()
        waiting = asyncio.create_task(lock.acquire())
        await started(waiting)
        semaphore.remove(place.semaphore.id)
        with pytest.raises(SegmentRemoved):
            await waiting
        with pytest.raises(SegmentRemoved):
            other.release()
        assert not other.held
        other.close()
