"""Subscribing: which topics, from where, and what wakes the one who reads.

    watch ──▶ topic_added ──▶ open, attach, join ──▶ hot ── read ──▶ Feed (C) ──▶ the caller
                                                    ▲   │ dry
                                               bell │   ▼ arm
                                                    asleep

Hot topics are read in turn, a stretch each, so that a busy one does not starve the others. When all are dry they are
armed, and when all are asleep, so is the task. What was read waits in the ``Feed``, from where ``async for`` takes it
without a coroutine.

A read that is cancelled consumes nothing: records leave the feed right before they are returned, with no await between.

A subscription to a name ends with its topic: once the rest has been read, reading raises ``TopicRemoved``. One with
wildcards goes on, also with a topic that is later created under the same name. One that lasts ``until_closed`` ends
with the topic's publishers: the daemon tells when the last has gone, and whatever was committed by then is read first.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from copy import copy
from typing import TYPE_CHECKING, Any, TypeVar

from shmd import _core, limits, names, protocol
from shmd.errors import (
    ClosedError,
    ConcurrentUse,
    CorruptTopic,
    InvalidOption,
    NoRecord,
    NoSuchTopic,
    RequestRefused,
    SegmentError,
    ShmdError,
    TopicClosed,
    TopicRemoved,
)
from shmd.hub import forked_error, give_back_dropped, logger
from shmd.joined_topic import JoinedTopic, Wakeful
from shmd.seat import Doze
from shmd.start import seek_first

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine
    from types import TracebackType
    from typing import Self

    from shmd.codec import Codec
    from shmd.hub import Hub
    from shmd.session import Session
    from shmd.start import Seek

T = TypeVar("T")


class Subscription(_core.Feed[T]):
    """Records of one topic or pattern, in the order of each topic; made by ``Client.subscribe``.

    An asynchronous iterator: ``async for record in subscription`` ends when the subscription is closed, or at its
    ``until_closed``. Leaving the loop keeps what was read ahead for the next read. One task reads at a time
    (``ConcurrentUse``); ``close`` may come from any.

    Reading raises ``TopicRemoved`` (a name, not a pattern), ``CorruptTopic``, or what a join in the background was
    refused with (a name only); with ``until_closed``, after the last record, ``TopicClosed``, again and again.
    ``Record.value`` raises ``DecodeError``; the reading goes on after it.
    """

    def __init__(
        self, hub: Hub, pattern: str, seek: Seek, codec: Codec, *, tethered: bool, until_closed: bool, spin_s: float
    ) -> None:
        """Not for callers: see ``Client.subscribe``."""
        super().__init__(yield_records=limits.YIELD_RECORDS, yield_s=limits.YIELD_S)
        self._hub = hub
        self._pattern = pattern
        self._seek = seek
        self._codec = codec
        self._tethered = tethered
        self._until_closed = until_closed
        self._spin_s = spin_s
        self._topics: set[JoinedTopic] = set()
        self._shared = Wakeful()
        self._hot = self._shared.hot
        self._reading = False
        self._closed = False
        self._over: ShmdError | None = None
        self._wildcard = names.is_pattern(pattern)
        self._hostile = False
        self._doze = Doze()
        self._watching = False
        self._existing: deque[str] = deque()
        self._found: list[str] = []
        self._joining: set[str] = set()
        self._joins: set[asyncio.Task[None]] = set()
        self._handle = hub.link.next_id()
        hub.watchers[self._handle] = self
        hub.members.add(self)

    @property
    def pattern(self) -> str:
        """The topic's name, or the pattern, that was subscribed to."""
        return self._pattern

    @property
    def topics(self) -> tuple[str, ...]:
        """Names of the topics that are joined now."""
        return tuple(sorted(topic.info.name for topic in self._topics))

    @property
    def tethered(self) -> bool:
        """Whether publishers of all joined `wait` topics wait for this subscription. False if it was not to be so, and
        after it lost a tether: it held them back for the topic's ``stall_timeout``, or was away for too long.
        """
        return self._tethered and all(topic.tethered for topic in self._topics)

    def get(self) -> Coroutine[Any, Any, _core.Record[T]]:
        """The next record; waits for one. Cancelled, it consumed nothing. After ``close``: ``ClosedError``."""
        return self._next(iterating=False)

    def get_nowait(self) -> _core.Record[T]:
        """The next record if there is one, else ``NoRecord``. For any number of times in a row: it never yields."""
        self._check_alone()
        record = self.pop()
        if record is None:
            self._look_again()
            if self._read():
                record = self.pop()
        if record is not None:
            return record
        if self._over is not None:
            raise copy(self._over)
        raise NoRecord(f"there is nothing to read in {self._pattern!r} now", "await get(), which waits")

    async def get_many(self, count: int, timeout: float | None = None) -> list[_core.Record[T]]:
        """Up to ``count`` records: what there is, but at least one, for which it waits up to ``timeout`` seconds
        (None: for ever). An empty list if none came. Cancelled, it consumed nothing.

        ``InvalidOption`` if ``count`` is not within 1 and ``limits.GET_MANY_MAX``.
        """
        if not 1 <= count <= limits.GET_MANY_MAX:
            raise InvalidOption(f"get_many cannot return {count} records", f"ask for 1 to {limits.GET_MANY_MAX}")
        until = None if timeout is None else self._hub.loop.time() + timeout
        self._check_alone()
        self._reading = True
        try:
            await self._yield_if_due()
            while True:
                if not await self._fill(count, until):
                    return []
                if records := self.take(count):
                    return records
        finally:
            self._reading = False

    async def close(self) -> None:
        """End it: a waiting ``async for`` ends, a waiting ``get`` raises ``ClosedError``. Unread records are dropped.
        Twice is fine. Returns when the daemon knows; cancelled meanwhile, it is closed all the same.
        """
        closing = self.release()
        if closing is not None:
            await self._hub.told({closing, *self._joins})

    def release(self) -> asyncio.Future[Any] | None:
        """For the client: ``close`` without waiting."""
        self._hub.check_process()
        if self._closed:
            return None
        self._closed = True
        self._over = ClosedError(f"this subscription to {self._pattern!r} was closed")
        self.clear()
        self._hot.clear()
        self._hub.members.discard(self)
        for join in self._joins:
            join.cancel()
        self._shared.sleeper.wake()
        return _release_all(self._hub, self._handle, self._topics)

    def forked(self) -> None:
        """For the client, in a forked child: refuse everything from now on."""
        self.clear()
        self._hot.clear()
        self._over = forked_error()

    async def open(self) -> None:
        """For the client: join all topics that exist, and be told of those to come."""
        await self._hub.link.request(self._watch_request(), protocol.Done)
        self._watching = True
        while self._existing:
            await self._join(self._existing.popleft(), self._seek)

    async def watch_again(self, session: Session) -> None:
        """For the hub: the watch ended with the connection. Topics that came meanwhile are joined from their first
        record, as if we had been told of them.
        """
        if not self._watching or self._closed:
            return
        self._found.clear()
        await session.request(self._watch_request(), protocol.Done)
        for name in self._found:
            if name not in self._existing:
                self._join_soon(name)

    def topic_added(self, event: protocol.TopicAdded) -> None:
        """For the hub: the daemon announces a topic."""
        if not event.existing:
            self._join_soon(event.topic)
        elif self._watching:
            self._found.append(event.topic)
        else:
            self._existing.append(event.topic)

    def _watch_request(self) -> protocol.Watch:
        return protocol.Watch(id=self._handle, pattern=self._pattern, tethered=self._tethered)

    def _join_soon(self, name: str) -> None:
        if self._over is None and (self._wildcard or not self._topics) and not self._takes_part(name):
            join = self._hub.start(self._join_later(name))
            self._joins.add(join)
            join.add_done_callback(self._joins.discard)

    def _takes_part(self, name: str) -> bool:
        """Whether the topic of this name is joined, or just being joined."""
        return name in self._joining or any(topic.info.name == name and not topic.removed for topic in self._topics)

    async def _join_later(self, name: str) -> None:
        try:
            await self._join(name, seek_first)
        except ShmdError as error:
            if self._wildcard:
                logger.warning("cannot subscribe to topic %r: %s", name, error)
            else:
                self._over = error
                self._shared.sleeper.wake()

    async def _join(self, name: str, seek: Seek) -> None:
        if self._takes_part(name):
            return  # announced twice, since the daemon was restarted meanwhile
        self._joining.add(name)
        try:
            await self._open_and_join(name, seek)
        except NoSuchTopic:
            return  # removed before we could open it; the watch tells when it comes again
        except (RequestRefused, SegmentError, CorruptTopic, TopicRemoved) as error:
            if not self._wildcard:
                raise
            logger.warning("cannot subscribe to topic %r: %s", name, error)
        finally:
            self._joining.discard(name)

    async def _open_and_join(self, name: str, seek: Seek) -> None:
        topic = await self._open_topic(name)
        try:
            await topic.join(seek)
            if self._closed:
                raise ClosedError(f"the subscription to {self._pattern!r} was closed while it was being opened")
        except BaseException:
            topic.release()
            raise
        self._topics.add(topic)
        self._hostile = self._hostile or topic.info.hostile

    async def _open_topic(self, name: str) -> JoinedTopic:
        hub = self._hub
        message = protocol.OpenSubscriber(
            id=hub.link.next_id(), topic=name, watch=self._handle, tethered=self._tethered
        )
        granted, bells = await hub.link.open(message, protocol.SubscriberGranted)
        with hub.taking(granted, bells):
            return JoinedTopic(
                *(hub, granted, bells, self._shared, self._codec),
                tethered=self._tethered,
                until_closed=self._until_closed,
            )

    def _step(self) -> Awaitable[_core.Record[T]]:
        return self._next(iterating=True)

    async def _next(self, *, iterating: bool) -> _core.Record[T]:
        if self._reading:
            self._check_alone()
        self._reading = True
        try:
            if self.due:
                await asyncio.sleep(0)
                self.turned()
            while True:
                record = self.pop()
                if record is not None:
                    return record
                if self._read():
                    continue
                if not (self._over or self._spin_s or self._hostile or self._hub.adrift) and self._arm():
                    # What _wait does in the commonest case, without its coroutines: this is every round trip's price.
                    await self._shared.sleeper.until_woken(self._hub.loop)
                    self.turned()
                else:
                    await self._wait(None)
        except (ClosedError, TopicClosed) as error:
            if iterating and (self._closed or isinstance(error, TopicClosed)):
                raise StopAsyncIteration from None
            raise
        finally:
            self._reading = False

    async def _fill(self, count: int, until: float | None) -> bool:
        """Have records ready: as many as there are, up to ``count``, but one at least. False: none came ``until``
        then.
        """
        time = self._hub.loop.time
        if until is not None:
            self._look_again()
        while not self.ready and not self._read():
            if self._over is None and until is not None and time() >= until:
                return False
            await self._wait(until)
        turn_ends = time() + limits.YIELD_S
        while self.ready < count and self._read():
            if time() >= turn_ends:
                await asyncio.sleep(0)
                turn_ends = time() + limits.YIELD_S
        return True

    def _read(self) -> bool:
        """Get records from the next hot topic that has some. False: all are dry."""
        hot = self._hot
        for place, topic in enumerate(hot, 1):
            try:
                count = topic.cursor.read(self, limits.READ_BATCH_BYTES)
            except CorruptTopic as error:
                self._leave(topic, error)
                raise
            if count:
                hot.rotate(-place)  # who was read, and who was dry before it, come last the next time
                return True
            if (topic.removed or topic.closed) and not topic.cursor.available:
                self._leave(topic, topic.end)
                return self._read()
        return False

    def _leave(self, topic: JoinedTopic, reason: ShmdError) -> None:
        self._hot.remove(topic)
        self._topics.discard(topic)
        topic.release()
        if not self._wildcard:
            self._over = reason

    async def _wait(self, until: float | None) -> None:
        """All are dry: give others a turn, or wait until there may be something, or until the loop's time is
        ``until``.
        """
        if self._over is not None:
            raise copy(self._over)
        if not self._spin_s or not await self._spin(until):
            if self._arm():
                await self._sleep(until)
            else:
                await asyncio.sleep(0)
        self.turned()

    async def _spin(self, until: float | None) -> bool:
        """Look again on every turn of the loop, for ``spin`` seconds. Whether that found something."""
        time = self._hub.loop.time
        ends = time() + self._spin_s
        if until is not None:
            ends = min(ends, until)
        while time() < ends:
            await asyncio.sleep(0)
            if self._over is not None or any(topic.cursor.available for topic in self._hot):
                return True
        return False

    def _arm(self) -> bool:
        """Put all hot topics to sleep. False: something came meanwhile."""
        hot = self._hot
        for _ in range(len(hot)):
            topic = hot.popleft()
            topic.asleep = topic.cursor.arm()
            if not topic.asleep:
                hot.append(topic)
        return not hot

    async def _sleep(self, until: float | None) -> None:
        hub = self._hub
        if not (hub.adrift or self._hostile):
            await self._shared.sleeper.sleep(hub.loop, until)
            return
        progress = sum(topic.cursor.position for topic in self._topics)
        recheck_s = hub.recheck_s(self._doze, progress, hostile=self._hostile)
        if recheck_s is not None:
            recheck_at = hub.loop.time() + recheck_s
            until = recheck_at if until is None else min(recheck_at, until)
        await self._shared.sleeper.sleep(hub.loop, until)
        self._look_again()

    def _look_again(self) -> None:
        for topic in self._topics:
            topic.look_again()

    async def _yield_if_due(self) -> None:
        if self.due:
            await asyncio.sleep(0)
            self.turned()

    def _check_alone(self) -> None:
        if self._reading:
            raise ConcurrentUse(
                f"another task is reading this subscription to {self._pattern!r}", "subscribe once for each task"
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if not (getattr(self, "_closed", True) or self._hub.forked):
            release = functools.partial(_release_all, self._hub, self._handle, self._topics)
            give_back_dropped(self, self._hub.loop, release)

    def __repr__(self) -> str:
        return f"<Subscription to {self._pattern!r}{' closed' if self._closed else ''}>"


def _release_all(hub: Hub, handle: int, topics: set[JoinedTopic]) -> asyncio.Future[Any]:
    """Needs no subscription, so that a finalizer can use it. The daemon answers in order: the last answer is enough."""
    while topics:
        topics.pop().release()
    return hub.link.close_handle(handle)
