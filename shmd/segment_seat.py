"""One grant of a raw segment in use: its memory, its bells, its lock and cells, across daemons."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import weakref
from copy import copy
from typing import TYPE_CHECKING, Any

from shmd import backing_file, fifo, limits, notifier, protocol, segment, semaphore
from shmd.errors import ClosedError, InvalidOption, NotifierFull, SegmentNotFound, SegmentRemoved, UsageError
from shmd.hub import forked_error
from shmd.notifier import SegmentBells
from shmd.seat import Doze, Seat
from shmd.segment_lock import SegmentLock

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmd.cell import Cell
    from shmd.errors import ShmdError
    from shmd.hub import Hub
    from shmd.notifier import Bells
    from shmd.session import Session
    from shmd.sysv import SegmentStat

logger = logging.getLogger("shmd.client")


class SegmentSeat(Seat):
    """One grant of a segment in use. Once there is an ``error``, ``check`` raises it."""

    __slots__ = ("_heard", "_lock", "_notified", "_sleepers", "attached", "cells", "error", "info", "readonly")
    _bells: SegmentBells

    def __init__(self, hub: Hub, granted: protocol.SegmentGranted, bells: SegmentBells) -> None:
        """Attach. If that raises (as ``segment.attach``), ``bells`` and the handle are still the caller's."""
        super().__init__(hub, granted, bells, granted.segment.name, "user")
        self.info = granted.segment
        self.readonly = granted.readonly
        self.error: ShmdError | None = None
        self._notified = self._heard = 0
        self._sleepers: set[asyncio.Future[None]] = set()
        self._lock: SegmentLock | None = None
        self.cells: weakref.WeakSet[Cell[Any]] = weakref.WeakSet()
        self.attached = self._attach()
        try:
            self._check_attached()
            hub.segment_taken(self)
        except BaseException:
            self.attached.close()
            raise

    def _attach(self) -> segment.Segment:
        if self._bells.file_fd >= 0:
            return backing_file.attach(self._bells.file_fd, self.info.size_bytes, readonly=self.readonly)
        return segment.attach(self.info.id, readonly=self.readonly)

    def stat(self) -> SegmentStat:
        """See ``Segment.stat``."""
        return backing_file.stat(self._bells.file_fd) if self._bells.file_fd >= 0 else self.attached.stat()

    async def sync(self) -> None:
        """See ``Segment.sync``."""
        if self._bells.file_fd < 0:
            return
        fd = os.dup(self._bells.file_fd)  # ours may be closed meanwhile, for a thread cannot be cancelled
        await asyncio.shield(self._hub.loop.run_in_executor(None, _sync_and_close, fd))

    def _check_attached(self) -> None:
        """An id can come to mean another segment, between the daemon's word and our attaching it."""
        if self._bells.file_fd >= 0:
            return
        found, info = self.attached.stat(), self.info
        if (found.key, found.size_bytes, found.cuid) != (info.key, info.size_bytes, info.creator_uid):
            raise SegmentRemoved(f"segment {info.name!r} (id {info.id}) is another one by now")

    # --- waiting ---

    @property
    def counts(self) -> bool:
        """Whether the notify bell is a FIFO, in which each byte is for one who waits."""
        return bool(self.info.fifo)

    async def wait(self) -> None:
        """See ``Segment.wait``."""
        self.check()
        if self.counts:
            await self._take_byte()
            return
        doze = Doze()
        if self._heard == self._notified:
            before = self._notified
            while self._notified == before:
                recheck_s = self._hub.recheck_s(doze, self._notified, hostile=False)
                await self._sleep(recheck_s)
                self.check()
                if recheck_s is not None and self._notified == before:
                    return
        self._heard = self._notified

    async def _take_byte(self) -> None:
        """Without an await after it is taken: who is cancelled has taken none.

        Edge-triggered, the bell says of every byte that one came; all who sleep here look, and others go on sleeping.
        """
        while not fifo.take_one(self._bells.notify_fd):
            await self._sleep(None)
            self.check()

    async def _sleep(self, timeout_s: float | None) -> None:
        """Until ``ring``, or until ``timeout_s`` is over."""
        woken = self._hub.loop.create_future()
        timer = None if timeout_s is None else self._hub.loop.call_later(timeout_s, _wake, woken)
        self._sleepers.add(woken)
        try:
            await woken
        finally:
            self._sleepers.discard(woken)
            if timer is not None:
                timer.cancel()

    def notify(self, count: int) -> None:
        """See ``Segment.notify``."""
        if not 1 <= count <= (limits.NOTIFY_COUNT_MAX if self.counts else 1):
            raise InvalidOption(
                f"segment {self.name!r} cannot be notified {count} times at once",
                f"from 1 to {limits.NOTIFY_COUNT_MAX}" if self.counts else 'only notifier="fifo" counts',
            )
        if self.info.sync == "always":
            self._hub.start(self._sync_and_ring(count))
        else:
            self._ring_notify(count)

    def _ring_notify(self, count: int) -> None:
        if not self.counts:
            notifier.ring(self._bells.notify_fd)
        elif not fifo.put(self._bells.notify_fd, count):
            raise NotifierFull(
                f"the FIFO of segment {self.name!r} has no room for {count} more: nobody was notified",
                "try again when those who wait have taken some out",
            )

    async def _sync_and_ring(self, count: int) -> None:
        try:
            await self.sync()
        except OSError as error:
            logger.error("segment %r: nobody is notified, for the disk failed: %s", self.name, error)
            return
        try:
            if not self.released:
                self._ring_notify(count)
        except NotifierFull as error:
            logger.error("%s", error)

    def notified(self) -> None:
        """The notify bell rang."""
        self._notified += 1
        self.ring()

    # --- the lock ---

    def lock(self) -> SegmentLock:
        """See ``Segment.lock``."""
        if self.info.sem_id < 0:
            raise UsageError(
                f"segment {self.name!r} has no lock: it is of lifetime {self.info.lifetime!r}",
                "a semaphore cannot go with its last user; make the segment with lifetime='os'",
            )
        if self._lock is None:
            self._lock = SegmentLock(semaphore.attach(self.info.sem_key, self.info.sem_id), self.ring_lock)
        return self._lock

    def ring_lock(self) -> None:
        notifier.ring(self._bells.lock_fd)

    def lock_rung(self) -> None:
        """The lock bell rang."""
        if self._lock is not None:
            self._lock.rung()

    # --- as a seat ---

    def ring_others(self) -> None:
        if not self.counts:
            notifier.ring(self._bells.notify_fd)

    def swap_bells(self, bells: Bells) -> None:
        if not self.released and isinstance(bells, SegmentBells):
            bells.inherit_file(self._bells)
        super().swap_bells(bells)

    def heeded(self) -> list[tuple[int, Callable[[], object]]]:
        return [(self._bells.notify_fd, self.notified), (self._bells.lock_fd, self.lock_rung)]

    def ring(self) -> None:
        for woken in self._sleepers:
            _wake(woken)

    def use_bells(self) -> None:
        """Somebody may have rung the old ones in vain: nobody shall sleep through that."""
        self._notified += 1
        self.ring_lock()
        self.lock_rung()

    def leave(self) -> None:
        for cell in list(self.cells):
            cell.close()
        # What numpy makes of a memoryview by ``ndarray(buffer=)`` exports nothing, and keeps the mapping object only.
        if sys.getrefcount(self.attached.mapping) > 2 + self.attached.mapping.exports:
            raise BufferError(f"segment {self.name!r} cannot be closed: an array on it lives on")
        self.attached.close()
        if self._lock is not None:
            self._lock.close()
        self._end(ClosedError(f"segment {self.name!r} was closed here"))

    def unregister(self) -> None:
        self._hub.segment_left(self)

    def drop(self) -> None:
        """For a finalizer, as ``release``; but whoever still looks at the memory goes on looking at it."""
        try:
            self.release()
        except BufferError:
            self.released = True
            self.unregister()
            self._bells.close()
            self._hub.link.close_handle(self.handle)

    async def reopen(self, session: Session) -> None:
        message = protocol.OpenSegment(id=session.next_id(), segment=self.name, create=False, readonly=self.readonly)
        granted, bells = await session.open(message, protocol.SegmentGranted)
        if self.released or granted.segment.segment_id != self.info.segment_id:
            bells.close()
            session.close_handle(granted.id)
            if not self.released:
                raise SegmentNotFound(f"segment {self.name!r} is no longer the one that was opened here")
            return
        self.handle = granted.id
        self.swap_bells(bells)

    def gone(self) -> None:
        self._end(SegmentRemoved(f"segment {self.name!r} was removed", "what is attached stays until it is closed"))
        super().gone()

    def fail(self, error: ShmdError) -> None:
        self._end(error)

    def forked(self) -> None:
        super().forked()
        self.error = forked_error()

    def check(self) -> None:
        """Raise why nobody can wait for this segment, or ring for it, any more, if so."""
        if self.error is not None:
            raise copy(self.error)

    def _end(self, error: ShmdError) -> None:
        if self.error is None or isinstance(error, ClosedError):
            self.error = error
        self.ring()


def _sync_and_close(fd: int) -> None:
    try:
        backing_file.sync(fd)
    finally:
        os.close(fd)


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
