"""A raw segment in use: all its bytes are the user's, and shmd only brings people together around them.

    Segment ──▶ SegmentSeat ──▶ segment.Segment (attached)      the kernel's view of the same thing
                     └────────▶ bells ◀── loop

The mapping outlives the daemon, and so do the bells; after a restart the seat is resumed as a topic's is (``seat``).

What another program writes into the segment comes unannounced. Whoever wants to be told waits for the notify bell,
which wakes everybody who waits, in every process, and counts nothing: it says "look again", as a condition variable.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
import weakref
from copy import copy
from typing import TYPE_CHECKING, Any, TypeVar, overload

from shmd import backing_file, notifier, protocol, segment, semaphore
from shmd.cell import open_cell
from shmd.errors import ClosedError, InvalidOption, SegmentNotFound, SegmentRemoved, UsageError
from shmd.hub import forked_error, give_back_dropped
from shmd.seat import Doze, Seat
from shmd.segment_lock import SegmentLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from shmd.cell import Cell
    from shmd.errors import ShmdError
    from shmd.hub import Hub
    from shmd.session import Bells, Session
    from shmd.sysv import SegmentStat

T = TypeVar("T")


logger = logging.getLogger("shmd.client")


class SegmentSeat(Seat):
    """One grant of a segment in use. Once there is an ``error``, ``check`` raises it."""

    __slots__ = ("_heard", "_lock", "_notified", "_sleepers", "attached", "cells", "error", "info", "readonly")

    def __init__(self, hub: Hub, granted: protocol.SegmentGranted, bells: Bells) -> None:
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

    async def wait(self) -> None:
        """See ``Segment.wait``."""
        self.check()
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

    def notify(self) -> None:
        if self.info.sync == "always":
            self._hub.start(self._sync_and_ring())
        else:
            notifier.ring(self._bells.notify_fd)

    async def _sync_and_ring(self) -> None:
        try:
            await self.sync()
        except OSError as error:
            logger.error("segment %r: nobody is notified, for the disk failed: %s", self.name, error)
            return
        if not self.released:
            notifier.ring(self._bells.notify_fd)

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

    @property
    def ringing_fd(self) -> int:
        return self._bells.notify_fd

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


class Segment:
    """A raw System V segment that is open in this process. Made by ``client.segment``; an async context manager.

    All its bytes are yours, from offset 0, and new ones are zero. C programs attach the same memory by ``key`` or
    ``id``. What one process writes the others see at once, and in no particular order: agree on who writes when, by
    ``lock``, by ``cell``, or in your own way.

    However often a process opens a segment, it is attached there once for writing and once for reading, and detached
    with the last ``close``. It belongs to the loop of its client; ``buf`` may be used in any thread.
    """

    def __init__(self, hub: Hub, seat: SegmentSeat) -> None:
        """Not for callers: see ``Client.segment``."""
        self._hub = hub
        self._seat = seat
        hub.members.add(self)

    @property
    def name(self) -> str:
        """What shmd knows it by; the kernel knows no names."""
        return self._seat.name

    @property
    def info(self) -> protocol.SegmentInfo:
        """What the daemon said of it when it was opened."""
        return self._seat.info

    @property
    def key(self) -> int:
        """The key by which C programs find it (``shmget``); 0 if it has none (lifetime `attached`)."""
        return self._seat.info.key

    @property
    def id(self) -> int:
        """The id by which C programs attach it (``shmat``), and ``ipcs -m`` and ``ipcrm -m`` know it."""
        return self._seat.info.id

    @property
    def size_bytes(self) -> int:
        """As it was asked for; the kernel rounds the memory up to whole pages."""
        return self._seat.info.size_bytes

    @property
    def readonly(self) -> bool:
        """Whether it was opened so: ``buf`` is then read-only, and the kernel keeps everybody here from writing."""
        return self._seat.readonly

    @property
    def removed(self) -> bool:
        """Whether it was removed, as far as we have heard. What is attached can be used until ``close``."""
        return self._seat.removed

    @property
    def buf(self) -> memoryview:
        """All its bytes, as unsigned ones; read-only if the segment was opened so. ``close`` ends it.

        ``ClosedError``, ``ForkedError``.
        """
        self._check_attached()
        return self._seat.attached.buf

    def array(self, dtype: Any, shape: int | tuple[int, ...], offset: int = 0) -> Any:
        """A numpy array on the segment's memory, from byte ``offset`` on: a view, not a copy.

        ``close`` is refused (``BufferError``) as long as it, or a view of it, lives. Raises ``InvalidOption`` for an
        array that does not fit or holds Python objects, and ``UsageError`` if numpy is not installed.
        """
        try:
            import numpy as np
        except ImportError:
            raise UsageError("arrays need numpy, which is not installed", "pip install 'shmd[numpy]'") from None
        kind = np.dtype(dtype)
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if kind.hasobject:
            raise InvalidOption(f"{kind} holds Python objects, which live in one process only", "use a plain dtype")
        if offset < 0 or min(shape, default=0) < 0 or offset + kind.itemsize * math.prod(shape) > self.size_bytes:
            raise InvalidOption(
                f"an array of {kind} and shape {shape} at byte {offset} does not lie within "
                f"segment {self.name!r} of {self.size_bytes} bytes",
                "make the segment larger, or the array smaller",
            )
        flat = np.frombuffer(self.buf, kind, math.prod(shape), offset) if math.prod(shape) else np.empty(0, kind)
        return flat.reshape(shape)

    def stat(self) -> SegmentStat:
        """What the kernel knows about it now: all of ``struct shmid_ds``. Asks the kernel, not the daemon.

        Of one that was removed while others had it attached, the kernel says ``removed``, and key 0. Raises
        ``ClosedError``, ``ForkedError``, and ``SegmentAccessDenied`` if its mode was changed against us.
        """
        self._check_attached()
        return self._seat.stat()

    def lock(self) -> SegmentLock:
        """The segment's lock, the same object each time: ``async with segment.lock(): ...``.

        Tasks of this process take turns, in order; other processes, and C programs, share the System V semaphore
        ``info.sem_key``. The kernel frees it when its owner dies. ``close`` gives it back. Needs the write bit, even
        for a segment that was opened read-only; one of lifetime `attached` has no lock (``UsageError``). Raises
        ``SegmentAccessDenied``, ``SegmentRemoved``, ``ClosedError``, ``ForkedError``.
        """
        self._check_attached()
        return self._seat.lock()

    @overload
    def cell(self, type: type[T], offset: int = 0, *, size: int | None = None) -> Cell[T]: ...
    @overload
    def cell(self, type: object, offset: int = 0, *, size: int | None = None) -> Cell[Any]: ...
    def cell(self, type: object, offset: int = 0, *, size: int | None = None) -> Cell[Any]:
        """A value at byte ``offset`` (a multiple of 8): stored as a whole by a writer, loaded by any number of readers.

        ``type`` is a ``struct`` format, such as ``"<qd"`` (values are tuples, or single items), a ``ctypes.Structure``
        class, a numpy dtype, or a ``msgspec.Struct`` class, which needs ``size``: the most bytes that a packed value
        may take. The cell takes ``Cell.size_bytes`` of the segment; zeros are an empty one. ``close`` closes it. Raises
        ``InvalidOption`` (no such type, or no room there), ``ClosedError``, ``ForkedError``.
        """
        self._check_attached()
        cell = open_cell(self._seat.attached.mapping, type, offset=offset, size=size, owner=self)
        self._seat.cells.add(cell)
        return cell

    async def set(self, *, uid: int | None = None, gid: int | None = None, mode: int | None = None) -> None:
        """Give it another owner, group or mode (``IPC_SET``); None leaves it. Who is attached stays attached.

        For its owner, its creator, the user who had it made, and root. Raises ``PermissionDenied``, ``InvalidOption``,
        ``SegmentNotFound``, ``SegmentAccessDenied``, ``Disconnected``. Cancelled, it may have been done.
        """
        message = protocol.SetSegment(id=self._next_id(), segment=self.name, uid=uid, gid=gid, mode=mode)
        await self._hub.link.request(message, protocol.Done)

    async def remove(self) -> None:
        """Remove it (``IPC_RMID``): name and key are free at once; the memory goes when the last process has detached.

        Whoever has it open goes on using ``buf`` until ``close``; ``wait`` and ``notify`` raise ``SegmentRemoved``.
        Raises ``PermissionDenied``, ``SegmentNotFound`` (somebody was quicker), ``Disconnected``. Cancelled, it may
        have been done.
        """
        message = protocol.RemoveSegment(id=self._next_id(), segment=self.name, segment_id=self._seat.info.segment_id)
        await self._hub.link.request(message, protocol.Done)

    @property
    def path(self) -> str:
        """Of the file, for ``backing="file"``; else empty. Who may open it there is a matter of its owner and mode."""
        return self._seat.info.path

    async def sync(self) -> None:
        """Return when all that was written so far, by whomever, is on the disk; at once for memory.

        Raises ``OSError`` if the disk fails, ``ClosedError``, ``ForkedError``. Cancelled, the disk goes on writing.
        """
        self._check_attached()
        await self._seat.sync()

    def notify(self) -> None:
        """Wake everybody who waits for this segment, here and in other processes. Never blocks, costs a system call.

        Of a file with ``sync="always"`` the bytes are written to the disk first, and only then is anybody woken.
        Raises ``SegmentRemoved``, ``ClosedError``, ``ForkedError``.
        """
        self._hub.check_process()
        self._seat.check()
        self._seat.notify()

    async def wait(self) -> None:
        """Return once somebody has called ``notify`` since the last ``wait`` on this object returned, or since it was
        opened. Several calls may wake it once. Own calls count, too.

        Look at the memory whenever it returns, and wait again if there is nothing: after a restart of the daemon, and
        while it is away, it may return without reason. Any number of tasks may wait, and all are woken. Cancelled, it
        has heard nothing: the next ``wait`` returns at once. Raises ``SegmentRemoved``, ``ClosedError``,
        ``ForkedError``.
        """
        self._hub.check_process()
        await self._seat.wait()

    async def close(self) -> None:
        """Give it back; the process's last one detaches. The segment stays, as its lifetime says. Twice is fine.

        Raises ``BufferError``, and leaves it open, while a view of ``buf`` or an ``array`` lives. (``buf`` itself and
        cells are ended by ``close``, by one that is refused, too; ask for them again.)
        """
        closing = self.release()
        if closing is not None:
            await self._hub.told([closing])

    def release(self) -> asyncio.Future[Any] | None:
        """For the hub: give everything back, and do not wait until the daemon knows."""
        closing = self._seat.release()
        if closing is not None:
            self._hub.members.discard(self)
        return closing

    def forked(self) -> None:
        """For the hub."""

    def _check_attached(self) -> None:
        self._hub.check_process()
        if self._seat.released:
            raise ClosedError(f"segment {self.name!r} was closed here", "open it again")

    def _next_id(self) -> int:
        self._hub.check_open()
        if self._seat.released:
            raise ClosedError(f"segment {self.name!r} was closed here", "open it again")
        return self._hub.link.next_id()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        seat: SegmentSeat | None = getattr(self, "_seat", None)
        if seat is not None and not (seat.released or self._hub.forked):
            give_back_dropped(self, self._hub.loop, seat.drop)

    def __repr__(self) -> str:
        if self._seat.released:
            return f"<Segment {self.name!r}, closed>"
        access = "read-only" if self.readonly else "read-write"
        return f"<Segment {self.name!r} id={self.id} key={self.key:#x} {self.size_bytes} bytes {access}>"


def _sync_and_close(fd: int) -> None:
    try:
        backing_file.sync(fd)
    finally:
        os.close(fd)


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
