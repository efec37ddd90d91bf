"""A raw segment in use: all its bytes are the user's, and shmd only brings people together around them.

    Segment ──▶ SegmentSeat ──▶ segment.Segment (attached)      the kernel's view of the same thing
                     └────────▶ bells ◀── loop

The mapping outlives the daemon, and so do the bells; after a restart the seat is resumed as a topic's is (``seat``).

What another program writes into the segment comes unannounced. Whoever wants to be told waits for the notify bell,
which wakes everybody who waits, in every process, and counts nothing: it says "look again", as a condition variable.
With ``notifier="fifo"`` it is a FIFO, and does count: each byte wakes one, as a semaphore.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from shmd import protocol
from shmd.cell import open_cell
from shmd.errors import ClosedError, InvalidOption, UsageError
from shmd.hub import give_back_dropped

if TYPE_CHECKING:
    import asyncio
    from types import TracebackType
    from typing import Self

    from shmd.cell import Cell
    from shmd.hub import Hub
    from shmd.segment_lock import SegmentLock
    from shmd.segment_seat import SegmentSeat
    from shmd.sysv import SegmentStat

T = TypeVar("T")


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
        """The key by which C programs find it (``shmget``), unsigned, as ipcs prints it; 0 if it has none
        (lifetime `attached`).
        """
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

    @property
    def fifo(self) -> Path | None:
        """With ``notifier="fifo"``: the FIFO that is the notify bell, for programs that can open files and no more.

        A byte that they write is a ``notify``, of whatever value, and one that they read a ``wait``.
        """
        return Path(self._seat.info.fifo) if self._seat.info.fifo else None

    def notify(self, count: int = 1) -> None:
        """Wake everybody who waits for this segment, here and in other processes. Never blocks, costs a system call.

        With ``notifier="fifo"`` it ends ``count`` calls of ``wait``, of whoever is first, now or later: at most
        ``limits.NOTIFY_COUNT_MAX``, all or none. Raises ``NotifierFull`` where so many wait to be taken already that
        they do not fit (61440 always do), and ``InvalidOption`` for another count, or for one where nothing counts.

        Of a file with ``sync="always"`` the bytes are written to the disk first, and only then is anybody woken (that
        the FIFO was full is then logged). Raises ``SegmentRemoved``, ``ClosedError``, ``ForkedError``.
        """
        self._hub.check_process()
        self._seat.check()
        self._seat.notify(count)

    async def wait(self) -> None:
        """Return once somebody has called ``notify`` since the last ``wait`` on this object returned, or since it was
        opened. Several calls may wake it once. Own calls count, too.

        Look at the memory whenever it returns, and wait again if there is nothing: after a restart of the daemon, and
        while it is away, it may return without reason. Any number of tasks may wait, and all are woken. Cancelled, it
        has heard nothing: the next ``wait`` returns at once.

        With ``notifier="fifo"`` it takes one byte out of the FIFO, and returns for no other reason: of all who wait, in
        every process, C programs too, each byte wakes one. Cancelled, it has taken none. Bytes that nobody took stay as
        long as the daemon runs or anybody has the segment open.

        Raises ``SegmentRemoved``, ``ClosedError``, ``ForkedError``.
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
