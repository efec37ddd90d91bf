"""What all publishers and subscriptions of one client share: the session, the bells, and who takes part in what.

    Client ──▶ Hub ──▶ Session (control)          Publisher ────▶ PublisherSeat ─┐
                │ └──▶ BellSet ◀── loop           Subscription ─▶ JoinedTopic ───┴─▶ Seat: attachment, bells, handle
                └─────▶ seats by topic

The hub and the loop know seats, never the publisher or subscription that uses them: one that is dropped without
``close()`` is therefore collected, warns, and gives its seats back.

Who sleeps is woken by a bell. That can fail to come only where participants distrust each other, or where a publisher
died between its commit and the bell and no daemon is there to ring: in these two cases sleepers look again by
themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from shmd import limits
from shmd.attachment import Attachment
from shmd.errors import ClosedError, SegmentInvalid, SegmentNotFound, SegmentRemoved, TopicRemoved
from shmd.looks import Looks
from shmd.notifier import BellSet
from shmd.session import Session

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Iterator

    from shmd import _core, protocol
    from shmd.attachment import Role
    from shmd.session import Bells

logger = logging.getLogger("shmd.client")


class Member(Protocol):
    """A publisher or subscription, as its client sees it."""

    def release(self) -> asyncio.Future[Any] | None:
        """Give everything back; the future tells when the daemon knows. None if that was done before."""


class Watcher(Protocol):
    """A subscription, as the daemon's announcements find it."""

    def topic_added(self, event: protocol.TopicAdded) -> None: ...


class Sleeper:
    """One task that waits, and what wakes it."""

    __slots__ = ("_woken",)

    def __init__(self) -> None:
        self._woken: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Wake the task, if one sleeps."""
        woken = self._woken
        if woken is not None and not woken.done():
            woken.set_result(None)

    def until_woken(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Await this to sleep until ``wake``."""
        woken = self._woken = loop.create_future()
        return woken

    async def sleep(self, loop: asyncio.AbstractEventLoop, until: float | None) -> None:
        """Sleep until ``wake`` or the loop's time ``until``."""
        woken = self.until_woken(loop)
        timer = None if until is None else loop.call_at(until, self.wake)
        try:
            await woken
        finally:
            if timer is not None:
                timer.cancel()


class Seat:
    """One grant in use. A subclass says how to begin (``enter``), what a bell does (``ring``), and how to end
    (``leave``).
    """

    __slots__ = ("_attachment", "_bells", "_hub", "_listening_fd", "handle", "info", "released", "removed")

    def __init__(
        self, hub: Hub, granted: protocol.PublisherGranted | protocol.SubscriberGranted, bells: Bells, role: Role
    ) -> None:
        """Attach, and begin. If that raises, ``bells`` and the handle are still the caller's."""
        self._hub = hub
        self._bells = bells
        self._listening_fd = bells.space_fd if role == "publisher" else bells.record_fd
        self.handle = granted.id
        self.info = granted.topic
        self.removed = False
        self.released = False
        self._attachment = Attachment(granted.topic, role)
        try:
            self.enter()
        except BaseException:
            self._attachment.close()
            raise
        hub.seat_taken(self, self._listening_fd)

    @property
    def log(self) -> _core.Log:
        return self._attachment.log

    def enter(self) -> None:
        """Make what is needed of ``log``."""
        raise NotImplementedError

    def ring(self) -> None:
        """The bell rang, the topic was removed, or the daemon went away: look again."""
        raise NotImplementedError

    def leave(self) -> None:
        """Give back what was made of ``log``. Twice is fine."""
        raise NotImplementedError

    def release(self) -> asyncio.Future[Any] | None:
        """Give everything back and tell the daemon; the future says when it knows. None if that was done before."""
        if self.released:
            return None
        self.leave()
        self._attachment.close()
        self.released = True
        self._hub.seat_left(self, self._listening_fd)
        self._bells.close()
        return self._hub.session.close_handle(self.handle)


async def told(closings: Collection[asyncio.Future[Any]]) -> None:
    """Wait until the daemon knows of these, or is gone, or is too slow to wait for: it will know in time."""
    if closings:
        await asyncio.wait(closings, timeout=limits.REQUEST_TIMEOUT_S)


def give_back_dropped(dropped: object, loop: asyncio.AbstractEventLoop, release: Callable[[], object]) -> None:
    """What a finalizer does about an object that nobody closed: warn, and ``release`` in the loop, if there still is
    one.
    """
    if sys.is_finalizing():
        return
    message = f"unclosed {dropped!r}"
    try:
        loop.call_soon_threadsafe(release)  # the collector may run in any thread, and between any two instructions
    except RuntimeError:
        release()  # the loop is closed
    warnings.warn(message, ResourceWarning, source=dropped, stacklevel=3)


class Hub:
    """The shared part of one client. ``session`` is its connection, alive or dead."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes ``sock`` over. Belongs to the running loop."""
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self.adrift = False
        """The daemon is away: bells may not come, and sleepers look again by themselves."""
        self.members: weakref.WeakSet[Member] = weakref.WeakSet()
        self.watchers: weakref.WeakValueDictionary[int, Watcher] = weakref.WeakValueDictionary()
        self.tasks: set[asyncio.Task[None]] = set()
        self.looks = Looks()
        self._seats: dict[str, set[Seat]] = {}
        self._bells = BellSet()
        self.loop.add_reader(self._bells.fileno(), self._bells.dispatch)
        self.session = Session(sock, self)

    def check_open(self) -> None:
        """``ClosedError`` if the client was closed."""
        if self.closed:
            raise ClosedError("this client was closed", "connect() again")

    def recheck_s(self, *, hostile: bool) -> float | None:
        """After how long a sleeper looks again by itself; None: the bell is enough."""
        return limits.RECHECK_HOSTILE_S if hostile or self.adrift else None

    @contextlib.contextmanager
    def taking(self, granted: protocol.PublisherGranted | protocol.SubscriberGranted, bells: Bells) -> Iterator[None]:
        """If the block fails to make a ``Seat`` of the grant, give the grant back and say why in the caller's terms."""
        try:
            self.check_open()
            yield
        except BaseException as error:
            bells.close()
            self.session.close_handle(granted.id)
            if isinstance(error, SegmentInvalid | SegmentNotFound | SegmentRemoved):
                raise TopicRemoved(f"topic {granted.topic.name!r} was removed while it was being opened") from error
            raise

    def seat_taken(self, seat: Seat, listening_fd: int) -> None:
        self._bells.add(listening_fd, seat.ring)
        self._seats.setdefault(seat.info.name, set()).add(seat)

    def seat_left(self, seat: Seat, listening_fd: int) -> None:
        self._bells.discard(listening_fd)
        seats = self._seats[seat.info.name]
        seats.discard(seat)
        if not seats:
            del self._seats[seat.info.name]

    def find_log(self, topic: str) -> _core.Log | None:
        """The log of a topic that somebody here takes part in, or that was looked at before."""
        for seat in self._seats.get(topic, ()):
            if not seat.removed:
                return seat.log
        return self.looks.find(topic)

    def topic_added(self, event: protocol.TopicAdded) -> None:
        if watcher := self.watchers.get(event.watch):
            watcher.topic_added(event)

    def topic_gone(self, event: protocol.TopicGone) -> None:
        self.looks.drop(event.topic, event.topic_id)
        for seat in list(self._seats.get(event.topic, ())):
            if seat.info.topic_id == event.topic_id:
                seat.removed = True
                seat.ring()

    def disconnected(self, reason: Exception | None) -> None:
        """The data plane goes on; sleepers look again by themselves from now on."""
        self.adrift = True
        if not self.closed:
            logger.warning("the daemon is gone (%s): open topics go on without it", reason or "it hung up")
        for seats in list(self._seats.values()):
            for seat in list(seats):
                seat.ring()

    async def close(self) -> None:
        """Give everything back. What cannot be, because a ``reserve`` is open, raises ``BufferError`` at the end."""
        if self.closed:
            return
        self.closed = True
        joins = set(self.tasks)
        closings, errors = self._release_members()
        try:
            await told(joins | closings)
        finally:
            self._hang_up()
        if errors:
            raise errors[0]

    def drop(self) -> None:
        """The same without waiting, for a finalizer."""
        if not self.closed:
            self.closed = True
            self._release_members()
            self._hang_up()

    def _release_members(self) -> tuple[set[asyncio.Future[Any]], list[BufferError]]:
        closings: set[asyncio.Future[Any]] = set()
        errors: list[BufferError] = []
        for member in list(self.members):
            try:
                if closing := member.release():
                    closings.add(closing)
            except BufferError as error:
                errors.append(error)
        return closings, errors

    def _hang_up(self) -> None:
        self.looks.close()
        self.loop.remove_reader(self._bells.fileno())
        self._bells.close()
        self.session.close()
