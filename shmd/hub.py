"""What all publishers, subscriptions and segments of one client share: link, bells, and who takes part in what.

    Client ──▶ Hub ──▶ Link (control)             Publisher ────▶ PublisherSeat ─┐
                │ └──▶ BellSet ◀── loop           Subscription ─▶ JoinedTopic ───┴─▶ Seat: attachment, bells, handle
                └─────▶ seats by topic               Segment ──────▶ SegmentSeat ───┘

The hub and the loop know seats, never the publisher or subscription that uses them: one that is dropped without
``close()`` is therefore collected, warns, and gives its seats back.

Who sleeps is woken by a bell. That can fail to come only where participants distrust each other, where a publisher died
between its commit and the bell and no daemon is there to ring, or while clients change to the bells of a new daemon one
after the other: in these three cases sleepers look again by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from shmd import limits, protocol
from shmd.bystander import Bystander
from shmd.client_events import ClientEvent, EventStream
from shmd.errors import (
    ClosedError,
    DaemonUnavailable,
    Disconnected,
    ForkedError,
    SegmentInvalid,
    SegmentNotFound,
    SegmentRemoved,
    ShmdError,
    TopicRemoved,
)
from shmd.link import Link
from shmd.looks import Looks
from shmd.notifier import BellSet
from shmd.retake import retake

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterator
    from pathlib import Path

    from shmd import _core
    from shmd.notifier import Bells, Granted
    from shmd.seat import Doze, Seat, TopicSeat
    from shmd.segment_seat import SegmentSeat
    from shmd.session import Session

logger = logging.getLogger("shmd.client")


class Member(Protocol):
    """A publisher, subscription or segment, as its client sees it."""

    def release(self) -> asyncio.Future[Any] | None:
        """Give everything back; the future tells when the daemon knows. None if that was done before."""

    def forked(self) -> None:
        """This is a forked child's copy: refuse everything from now on."""


class Watcher(Protocol):
    """A subscription, as the daemon's announcements find it."""

    def topic_added(self, event: protocol.TopicAdded) -> None: ...
    async def watch_again(self, session: Session) -> None:
        """The watch ended with the connection: make it again, and join what came meanwhile."""


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
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody can be told
            release()
    warnings.warn(message, ResourceWarning, source=dropped, stacklevel=3)


class Hub:
    """The shared part of one client. ``link`` is its way to the daemon."""

    def __init__(self, path: Path, name: str, request_timeout_s: float) -> None:
        """Belongs to the running loop. ``connect`` comes next."""
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self.forked = False
        """This is a forked child: everything here is the parent's."""
        self.away = False
        """The daemon is: requests wait for it."""
        self.adrift = False
        """The daemon is away, or others are on their way back to it: bells may not come, sleepers look themselves."""
        self._settling: asyncio.TimerHandle | None = None
        self.members: weakref.WeakSet[Member] = weakref.WeakSet()
        self.watchers: weakref.WeakValueDictionary[int, Watcher] = weakref.WeakValueDictionary()
        self.streams: weakref.WeakSet[EventStream] = weakref.WeakSet()
        self.tasks: set[asyncio.Task[None]] = set()
        self.looks = Looks()
        self.bystander = Bystander()
        self._seats: dict[str, set[TopicSeat]] = {}
        self._segment_seats: set[SegmentSeat] = set()
        self._bells = BellSet()
        self.loop.add_reader(self._bells.fileno(), self._bells.dispatch)
        self.link = Link(path, name, self, request_timeout_s)
        _hubs.add(self)

    async def connect(self, timeout_s: float) -> None:
        """For the first time. Raises why it cannot be; nothing stays open then."""
        try:
            welcome = await self.link.connect(timeout_s)
            self.bystander.learn(welcome)
        except BaseException:
            self.closed = True
            self._hang_up()
            raise
        if welcome.settling:
            self._settle()

    def check_open(self) -> None:
        """``ClosedError`` if the client was closed, ``ForkedError`` if it is another process's."""
        self.check_process()
        if self.closed:
            raise ClosedError("this client was closed", "connect() again")

    def check_process(self) -> None:
        """``ForkedError`` in a forked child."""
        if self.forked:
            raise forked_error()

    def recheck_s(self, doze: Doze, progress: int, *, hostile: bool) -> float | None:
        """After how long a sleeper looks again by itself; None: the bell is enough."""
        if self.adrift:
            return doze.next_s(progress)
        return limits.RECHECK_HOSTILE_S if hostile else None

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do ``work`` in the background; ``close`` waits for its end."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    # --- seats ---

    @contextlib.contextmanager
    def taking(self, granted: Granted, bells: Bells) -> Iterator[None]:
        """If the block fails to make a ``Seat`` of the grant, give the grant back and say why in the caller's terms."""
        try:
            self.check_open()
            yield
        except BaseException as error:
            bells.close()
            self.link.close_handle(granted.id)
            if isinstance(error, SegmentInvalid | SegmentNotFound | SegmentRemoved):
                raise _removed_meanwhile(granted) from error
            raise

    async def told(self, closings: Collection[asyncio.Future[Any]]) -> None:
        """Wait until the daemon knows of these, or is gone, or is too slow to wait for: it will know in time."""
        if closings:
            await asyncio.wait(closings, timeout=self.link.request_timeout_s)

    def seat_taken(self, seat: TopicSeat) -> None:
        self.heed_bells(seat)
        self._seats.setdefault(seat.name, set()).add(seat)

    def segment_taken(self, seat: SegmentSeat) -> None:
        for fd, callback in seat.heeded():
            # Of a FIFO nobody has to be told at first: who waits looks.
            (self._bells.add if seat.counts else self._bells.add_quietly)(fd, callback)
        self._segment_seats.add(seat)

    def seat_left(self, seat: TopicSeat) -> None:
        self.ignore_bells(seat)
        seats = self._seats[seat.name]
        seats.discard(seat)
        if not seats:
            del self._seats[seat.name]

    def segment_left(self, seat: SegmentSeat) -> None:
        self.ignore_bells(seat)
        self._segment_seats.discard(seat)

    def heed_bells(self, seat: Seat) -> None:
        for fd, callback in seat.heeded():
            self._bells.add(fd, callback, drain=seat.drained)

    def ignore_bells(self, seat: Seat) -> None:
        for fd, _ in seat.heeded():
            self._bells.discard(fd)

    def all_seats(self) -> list[Seat]:
        return [*(seat for seats in self._seats.values() for seat in seats), *self._segment_seats]

    def find_log(self, topic: str) -> _core.Log | None:
        """The log of a topic that somebody here takes part in, or that was looked at before."""
        for seat in self._seats.get(topic, ()):
            if not seat.removed:
                return seat.log
        return self.looks.find(topic)

    # --- what the daemon tells ---

    def topic_added(self, event: protocol.TopicAdded) -> None:
        if watcher := self.watchers.get(event.watch):
            watcher.topic_added(event)

    def topic_gone(self, event: protocol.TopicGone) -> None:
        self.looks.drop(event.topic, event.topic_id)
        for seat in list(self._seats.get(event.topic, ())):
            if seat.info.topic_id == event.topic_id:
                seat.gone()

    def untethered(self, event: protocol.Untethered) -> None:
        for seat in self._seats.get(event.topic, ()):
            if seat.handle == event.handle:
                seat.untethered()

    def segment_gone(self, event: protocol.SegmentGone) -> None:
        for seat in list(self._segment_seats):
            if seat.info.segment_id == event.segment_id:
                seat.gone()

    def publishers_gone(self, event: protocol.PublishersGone) -> None:
        for seat in self._seats.get(event.topic, ()):
            if seat.handle == event.handle:
                seat.publishers_gone()

    # --- the daemon goes and comes ---

    def link_lost(self, reason: Exception | None) -> None:
        """The data plane goes on; sleepers look again by themselves from now on."""
        self.away = self.adrift = True
        why = str(reason or "it hung up")
        logger.warning("the daemon is gone (%s): open topics go on without it", why)
        for seat in self.all_seats():
            seat.ring()
        self._tell(ClientEvent("disconnected", reason=why))

    async def link_found(self, session: Session, welcome: protocol.Welcome) -> None:
        """Seats first, so that each subscription knows what it still has when it hears what there is."""
        self.looks.close()  # the new daemon would not tell when one of them is removed
        self.bystander.learn(welcome)
        for seat in self.all_seats():
            if not (seat.released or seat.removed):
                await retake(self, seat, session, welcome)
        for watcher in list(self.watchers.values()):
            await watcher.watch_again(session)

    def link_restored(self, *, resumed: bool) -> None:
        self.away = False
        self._settle()
        logger.info("the daemon is back")
        self._tell(ClientEvent("reconnected", resumed=resumed))

    def _settle(self) -> None:
        """Others may be on their way back to the daemon still, and ring the old bells until then."""
        self.adrift = True
        if self._settling is not None:
            self._settling.cancel()
        self._settling = self.loop.call_later(limits.SETTLE_S, self._settled)

    def _settled(self) -> None:
        self.adrift = self.away  # it may have gone again meanwhile

    def _tell(self, event: ClientEvent) -> None:
        for stream in list(self.streams):
            stream.put(event)

    # --- the end ---

    async def close(self) -> None:
        """Give everything back. What cannot be, because a ``reserve`` is open, raises ``BufferError`` at the end."""
        self.check_process()
        if self.closed:
            return
        self.closed = True
        closings, errors = self._release_members()
        try:
            await self.told(self._end_tasks() | closings)
            with contextlib.suppress(Disconnected, DaemonUnavailable):
                await self.link.say_bye()
        finally:
            self._hang_up()
        if errors:
            raise errors[0]

    def drop(self) -> None:
        """The same without waiting, for a finalizer."""
        if not (self.closed or self.forked):
            self.closed = True
            self._release_members()
            self._end_tasks()
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

    def _end_tasks(self) -> set[asyncio.Future[Any]]:
        for task in self.tasks:
            task.cancel()
        return {*self.tasks, *self.link.shut()}

    def _hang_up(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
        self.looks.close()
        self.bystander.close()
        self.loop.remove_reader(self._bells.fileno())
        self._bells.close()
        self.link.close()
        self._tell(ClientEvent("closed"))

    def after_fork(self) -> None:
        """In the child: nothing here may be used, or reach the parent's daemon or its event loop. Our copies of its
        descriptors go, for a socket that a child keeps open never hangs up.
        """
        self.forked = True
        if self.closed:
            return
        self._bells.close()
        self.link.abandon()
        for seat in self.all_seats():
            seat.forked()
        for member in list(self.members):
            member.forked()


_hubs: weakref.WeakSet[Hub] = weakref.WeakSet()


def _after_fork() -> None:
    for hub in list(_hubs):
        hub.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def _removed_meanwhile(granted: Granted) -> ShmdError:
    if isinstance(granted, protocol.SegmentGranted):
        return SegmentRemoved(f"segment {granted.segment.name!r} was removed while it was being opened")
    return TopicRemoved(f"topic {granted.topic.name!r} was removed while it was being opened")


def forked_error() -> ForkedError:
    return ForkedError(
        "this client was made before the fork: it is the parent's", "connect() in the child, after the fork"
    )
