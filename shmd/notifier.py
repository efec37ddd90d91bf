"""Bells as a participant has them, and the set of those that one event loop waits for.

Most are eventfds, which wake any number of sleepers. The counter of one stands at 1 for ever. Ringing writes 0, which
wakes every waiter and changes nothing, so that a bell can neither overflow nor block (a counter that is counted up can
do both, and any holder could bring it there). Nobody ever reads it: each process watches it edge-triggered in an epoll
instance of its own, so that one ring is seen once by everybody. That private instance (``BellSet.fileno``) is what sits
in the event loop, level-triggered:

    bell ── EPOLLET ──▶ BellSet's epoll ── add_reader ──▶ asyncio's or uvloop's epoll

A FIFO is one sleeper's own (``fifo``), and is emptied before its callback looks at anything: so it is watched
level-triggered, and one bounded read each time is enough. Who sleeps, and so whose FIFO is to be written to, ``_core``
finds in the ctl.
"""

from __future__ import annotations

import errno
import os
import select
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from shmd import _core, fifo, limits, protocol
from shmd.errors import LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

TopicGranted: TypeAlias = protocol.PublisherGranted | protocol.SubscriberGranted
Granted: TypeAlias = TopicGranted | protocol.SegmentGranted

_EDGE: Final = select.EPOLLIN | select.EPOLLET


def make_bell() -> int:
    """A new bell: a descriptor that executed programs do not inherit. ``OSError`` (EMFILE) if there are none left."""
    return os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def ring(fd: int) -> None:
    """Wake everyone who waits for this bell, in every process. Never blocks."""
    os.eventfd_write(fd, 0)


def make_bells(undo: ExitStack) -> list[int]:
    """The two bells of a topic or a segment. ``LimitExceeded`` if there are no descriptors left."""
    bells = []
    for _ in range(limits.BELLS_PER_GRANT):
        try:
            bell = make_bell()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            raise LimitExceeded(
                f"the daemon is out of descriptors: {error.strerror}", "raise its LimitNOFILE="
            ) from None
        undo.callback(os.close, bell)
        bells.append(bell)
    return bells


class Bells(Protocol):
    """What one grant brings to be woken by, and to wake others. To be closed once."""

    @property
    def descriptors(self) -> int:
        """How many come again when the grant is resumed."""

    def renewed(self, fds: Sequence[int]) -> Bells:
        """Those that a later daemon has for the same grant, which sent ``fds``. The old ones stay open."""

    def close(self) -> None: ...


class TopicBells(Bells, Protocol):
    """Those of a topic: the bell to listen to, and what to ring others with."""

    @property
    def listening_fd(self) -> int: ...
    @property
    def record_fd(self) -> int:
        """Rings readers; for ``_core``, which knows the kind."""

    @property
    def space_fd(self) -> int:
        """Rings publishers that wait for room."""


class EventfdBells:
    """Both of the topic's bells, in the order in which they come; one of them is for us."""

    descriptors: Final = limits.BELLS_PER_GRANT
    __slots__ = ("_is_publisher", "listening_fd", "record_fd", "space_fd")

    def __init__(self, record_fd: int, space_fd: int, *, is_publisher: bool) -> None:
        self.record_fd = record_fd
        self.space_fd = space_fd
        self.listening_fd = space_fd if is_publisher else record_fd
        self._is_publisher = is_publisher

    def renewed(self, fds: Sequence[int]) -> EventfdBells:
        return EventfdBells(*fds, is_publisher=self._is_publisher)

    def close(self) -> None:
        os.close(self.record_fd)
        os.close(self.space_fd)


class FifoBells:
    """Our FIFO, and the directory in which the others' are."""

    descriptors: Final = 0
    __slots__ = ("_directory", "_name", "listening_fd", "record_fd", "space_fd")

    def __init__(self, directory: str, name: str) -> None:
        """``PermissionDenied`` or ``LimitExceeded`` if they cannot be opened."""
        self._directory, self._name = directory, name
        self.record_fd = self.space_fd = fifo.open_directory(directory)
        try:
            self.listening_fd = fifo.open_fifo(name, self.record_fd)
        except BaseException:
            os.close(self.record_fd)
            raise

    def renewed(self, fds: Sequence[int]) -> FifoBells:
        """By the same name: the daemon may have had to make it anew."""
        return FifoBells(self._directory, self._name)

    def close(self) -> None:
        os.close(self.record_fd)
        os.close(self.listening_fd)


class SegmentBells:
    """A segment's notify bell and lock bell, and the file, if it is one: ``file_fd``, else -1.

    A notify bell that is a FIFO is opened anew, by its path ``fifo``: what came is open in the daemon and elsewhere,
    and anybody there could have it block us.
    """

    descriptors: Final = limits.BELLS_PER_GRANT
    __slots__ = ("fifo", "file_fd", "lock_fd", "notify_fd")

    def __init__(self, fds: Sequence[int], path: str) -> None:
        """``PermissionDenied`` or ``LimitExceeded`` if the FIFO cannot be opened; then ``fds`` are closed."""
        self.fifo = path
        self.notify_fd, self.lock_fd, self.file_fd = (*fds, -1)[:3]
        if path:
            os.close(self.notify_fd)
            self.notify_fd = -1
            try:
                self.notify_fd = fifo.open_fifo(path, shrink=False)
            except BaseException:
                self.close()
                raise

    def renewed(self, fds: Sequence[int]) -> SegmentBells:
        """Without the file, which stays the same: see ``inherit_file``."""
        return SegmentBells(fds, self.fifo)

    def inherit_file(self, former: SegmentBells) -> None:
        """Take over the file of ``former``, if no other one came."""
        if self.file_fd < 0:
            self.file_fd, former.file_fd = former.file_fd, -1

    def close(self) -> None:
        for fd in (self.notify_fd, self.lock_fd, self.file_fd):
            if fd >= 0:
                os.close(fd)


def descriptors_of(granted: Granted) -> int:
    """How many must have come with a grant."""
    if isinstance(granted, protocol.SegmentGranted):
        return SegmentBells.descriptors + (granted.segment.backing == "file")
    return FifoBells.descriptors if granted.topic.notifier == "fifo" else EventfdBells.descriptors


def take_bells(granted: Granted, fds: Sequence[int]) -> TopicBells | SegmentBells:
    """The bells that a grant brings. If that fails (see ``FifoBells``) no ``fds`` are left to be closed."""
    if isinstance(granted, protocol.SegmentGranted):
        return SegmentBells(fds, granted.segment.fifo)
    is_publisher = isinstance(granted, protocol.PublisherGranted)
    if granted.topic.notifier == "eventfd":
        return EventfdBells(*fds, is_publisher=is_publisher)
    if isinstance(granted, protocol.PublisherGranted):
        return FifoBells(granted.topic.fifo_dir, fifo.publisher_name(granted.publisher))
    return FifoBells(granted.topic.fifo_dir, fifo.reader_name(granted.slot))


class BellSet:
    """The bells that one event loop waits for. Put ``fileno()`` into the loop, with ``dispatch`` as its callback."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._fd = self._epoll.fileno()
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._drained: set[int] = set()

    def add(self, fd: int, callback: Callable[[], object], *, drain: bool = False) -> None:
        """Call ``callback`` from ``dispatch`` after each ring, and once at first if somebody may have rung before.

        ``drain``: it is a FIFO, to be emptied before that.

        Rings that come close together may be seen as one. ``FileExistsError`` if ``fd`` is in the set.
        """
        self._epoll.register(fd, select.EPOLLIN if drain else _EDGE)
        if drain:
            self._drained.add(fd)
        self._callbacks[fd] = callback

    def add_quietly(self, fd: int, callback: Callable[[], object]) -> None:
        """The same without the call at first: only rings from now on count. Calls other bells' callbacks that are due.

        ``FileExistsError`` if ``fd`` is in the set.
        """
        seen: list[int] = []
        self.add(fd, lambda: seen.append(fd))
        # Whoever else holds the bell could have spoiled it, so that it is not even there at first.
        for _ in self._callbacks:
            if seen:
                break
            self.dispatch()
        self._callbacks[fd] = callback

    def discard(self, fd: int) -> None:
        """Forget the bell, before its descriptor is closed; its callback is not called again. Fine if it is unknown."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            self._drained.discard(fd)

    def fileno(self) -> int:
        """Readable as long as a bell has been rung that ``dispatch`` has not seen."""
        return self._epoll.fileno()

    def dispatch(self) -> None:
        """Call the callbacks of all bells rung since the last time. Does not wait.

        All are called, even if some raise; what they raised is raised afterwards.
        """
        callbacks = self._callbacks
        errors: list[Exception] | None = None
        for fd in _core.bells_rung(self._fd):
            callback = callbacks.get(fd)
            if callback is None:
                continue  # discarded by a callback before it
            if fd in self._drained:
                fifo.drain(fd)
            try:
                callback()
            except Exception as error:
                errors = [*(errors or ()), error]
        if errors:
            raise errors[0] if len(errors) == 1 else ExceptionGroup("bells' callbacks failed", errors)

    def close(self) -> None:
        """Forget all bells (whose descriptors stay open: they are their owners'). Twice is fine."""
        self._callbacks.clear()
        self._epoll.close()
