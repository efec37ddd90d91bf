"""A segment's lock, for tasks: ``async with segment.lock():``.

Two locks in a row. Tasks of one process first take turns, in the order in which they came (``asyncio.Lock``); the one
whose turn it is then competes with other processes for the System V semaphore, of which only one of a process's
tasks must know, since the kernel's account of it is kept for each process.

Nobody waits in a system call. Who finds the semaphore taken sleeps on the segment's lock bell, which every release
rings; and looks again by itself, first soon and then less often (``limits.SEGMENT_LOCK_RECHECK_*``), because two kinds
of release ring no bell: those of programs written in C, and the kernel's own, when an owner dies. The daemon has no
part in it.

Between processes the order is nobody's: who looks first when it is free gets it. Programs that wait in ``semop`` are
served by the kernel before anybody here.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from shmd import limits
from shmd.errors import ClosedError, SegmentError, SegmentLocked, UsageError
from shmd.seat import Sleeper

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Self

    from shmd.semaphore import Semaphore, SemaphoreStat


class SegmentLock:
    """The lock of one segment in one process. Made by ``segment.lock()``; an async context manager that holds it.

    Not reentrant. Belongs to one event loop. A process that dies, however it dies, holds it no longer.
    """

    def __init__(self, semaphore: Semaphore, ring: Callable[[], object]) -> None:
        """Not for callers. ``ring`` rings the lock bell; whoever hears it calls ``rung``."""
        self._semaphore = semaphore
        self._ring = ring
        self._turn = asyncio.Lock()
        self._sleeper = Sleeper()
        self._owner: asyncio.Task[Any] | None = None
        self._closed = False

    async def acquire(self, timeout: float | None = None) -> None:
        """Wait until the lock is ours; for ``timeout`` seconds at most, then ``TimeoutError``.

        If it is cancelled, or raises, the lock is not held, and nobody else's place in the line changes. Any number of
        tasks may wait at a time. Raises ``UsageError`` (this task holds it already), ``SegmentRemoved``,
        ``SegmentAccessDenied``, ``ClosedError``, ``ForkedError``.
        """
        self._check_usable()
        if timeout is None:
            await self._take_in_turn()
        else:
            async with asyncio.timeout(timeout):
                await self._take_in_turn()

    def acquire_nowait(self) -> None:
        """Take the lock now; as ``acquire``, but ``SegmentLocked`` where that would wait."""
        self._check_usable()
        if not self._take_turn():
            raise SegmentLocked("another task of this process holds the lock, or waits for it")
        try:
            if not self._semaphore.try_acquire():
                owner = self._semaphore.stat().owner_pid
                raise SegmentLocked(f"process {owner} holds the lock" if owner else "another process held the lock")
        except BaseException:
            self._turn.release()
            raise
        self._owner = asyncio.current_task()

    def release(self) -> None:
        """Give the lock back, and wake who waits. Any task may do it.

        ``UsageError`` if this process does not hold it; ``SegmentRemoved`` if it is gone (it is not held then, either);
        ``ForkedError``.
        """
        self._semaphore.check_process()
        if self._closed:
            return  # which gave it back
        if not self.held:
            raise UsageError("this lock is not held here", "release it once after each acquire")
        self._give_back()

    @property
    def held(self) -> bool:
        """Whether a task of this process holds the lock, through this segment."""
        return self._semaphore.held

    def locked(self) -> bool:
        """Whether anybody holds it, in any process. It may have changed when you hear of it. Raises as ``stat``."""
        return self.held or self.stat().value == 0

    def stat(self) -> SemaphoreStat:
        """What the kernel says of the semaphore: value, ``owner_pid``, how many C programs wait, times, permissions.

        Raises ``SegmentAccessDenied`` or ``SegmentRemoved``.
        """
        return self._semaphore.stat()

    def rung(self) -> None:
        """The lock bell rang. For the one who listens to it."""
        self._sleeper.wake()

    def close(self) -> None:
        """No more use: give it back if it is held; tasks that wait for it get ``ClosedError``. For the segment."""
        if self._closed:
            return
        self._closed = True
        if self.held:
            with contextlib.suppress(SegmentError):  # it was removed, or is no longer ours to use
                self._give_back()
        self._sleeper.wake()

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    async def _take_in_turn(self) -> None:
        await self._turn.acquire()
        try:
            await self._take()
        except BaseException:
            self._turn.release()
            raise

    async def _take(self) -> None:
        """The semaphore, when it is this task's turn. No await comes after it is taken."""
        loop = asyncio.get_running_loop()
        pause_s = limits.SEGMENT_LOCK_RECHECK_MIN_S
        while True:
            self._check_usable()
            if self._semaphore.try_acquire():
                self._owner = asyncio.current_task()
                return
            await self._sleeper.sleep(loop, loop.time() + pause_s)
            pause_s = min(2 * pause_s, limits.SEGMENT_LOCK_RECHECK_MAX_S)

    def _take_turn(self) -> bool:
        """What an asyncio.Lock lacks: acquire it if that needs no waiting."""
        acquiring = self._turn.acquire()
        try:
            acquiring.send(None)
        except StopIteration:
            return True
        acquiring.close()
        return False

    def _give_back(self) -> None:
        self._owner = None
        try:
            self._semaphore.release()
        finally:
            self._turn.release()
            self._ring()

    def _check_usable(self) -> None:
        self._semaphore.check_process()
        if self._closed:
            raise ClosedError("this segment was closed", "open it again")
        if self._owner is not None and self._owner is asyncio.current_task():
            raise UsageError("this task holds the lock already", "the lock is not reentrant: release it first")
