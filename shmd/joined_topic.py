"""One topic of a subscription: its grant, its cursor, and whether it sleeps.

A joined topic is either *hot* (there may be something to read) or *asleep* (armed: the next record rings its bell). It
knows its subscription only through ``Wakeful``, which holds no reference back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING

from shmd import _core, limits, protocol
from shmd.errors import ClosedError, TopicClosed, TopicRemoved
from shmd.seat import Sleeper, TopicSeat
from shmd.start import is_past, seek_first

if TYPE_CHECKING:
    from shmd.codec import Codec
    from shmd.errors import ShmdError
    from shmd.hub import Hub
    from shmd.notifier import TopicBells
    from shmd.session import Session
    from shmd.start import Seek

logger = logging.getLogger("shmd.client")


class Wakeful:
    """What the joined topics of one subscription share: who is hot, and the task to wake."""

    __slots__ = ("hot", "sleeper")

    def __init__(self) -> None:
        self.hot: deque[JoinedTopic] = deque()
        self.sleeper = Sleeper()


class JoinedTopic(TopicSeat):
    """A subscriber's seat. Neither hot nor asleep until ``join`` is through."""

    __slots__ = (
        *("_codec", "_from_start", "_grant", "_joined", "_joined_at", "_past", "_shared", "_tethered"),
        *("_until_closed", "asleep", "closed", "cursor", "failure"),
    )

    def __init__(
        self,
        hub: Hub,
        granted: protocol.SubscriberGranted,
        bells: TopicBells,
        shared: Wakeful,
        codec: Codec,
        *,
        tethered: bool,
        until_closed: bool,
    ) -> None:
        self._grant = granted
        self._from_start = granted.from_start
        self._shared = shared
        self._codec = codec
        self._tethered = tethered and granted.topic.when_full == "wait"
        self._until_closed = until_closed
        self._joined = self._past = self.closed = False
        self._joined_at = 0
        self.asleep = False
        self.failure: ShmdError | None = None
        super().__init__(hub, granted, bells, "subscriber")

    @property
    def tethered(self) -> bool:
        """Whether publishers wait for us, if they wait for anybody."""
        return self.info.when_full != "wait" or (self._tethered and self._has_tether())

    @property
    def end(self) -> ShmdError:
        """Why nothing comes after the log's last record, if it is ``removed`` or ``closed``."""
        if self.removed:
            return self.failure or TopicRemoved(f"topic {self.info.name!r} was removed")
        return TopicClosed(f"all publishers of topic {self.info.name!r} have gone, and all was read")

    def enter(self) -> None:
        self.cursor = self._make_cursor(self._grant, self._bells)

    async def join(self, seek: Seek) -> None:
        """Put the cursor in its place: before the first record of a topic that came while we watched, else where
        ``seek`` says. Then it is hot.
        """
        if self._from_start:
            self.cursor.seek_start()
            seek = seek_first
            self._joined = self.cursor.join()
        while not self._joined:
            # Not a step between the two: the cursor may be another after each turn of the loop.
            self._joined = seek(self.cursor) and self.cursor.join()
            if not self._joined:
                await asyncio.sleep(0)
        self._past = is_past(seek)
        self._joined_at = self.cursor.position
        if not self._from_start:
            await self._tell_joined()
        if self._until_closed:
            link = self._hub.link
            await link.request(self._watch_publishers(link.next_id()), protocol.Done)
        self._shared.hot.append(self)
        self._shared.sleeper.wake()

    def ring(self) -> None:
        shared = self._shared
        if self.asleep:
            self.asleep = False
            shared.hot.append(self)
        shared.sleeper.wake()

    def look_again(self) -> None:
        if self.asleep:
            self.asleep = False
            self._shared.hot.append(self)

    def leave(self) -> None:
        self.cursor.close()
        super().leave()

    # --- the daemon comes back ---

    def use_bells(self) -> None:
        self.cursor.space_fd = self._bells.space_fd

    async def resume(self, session: Session) -> None:
        await super().resume(session)
        await self._tether_again()
        await self._watch_publishers_again(session)

    async def reopen(self, session: Session) -> None:
        """Another slot, and its cursor right where ours stands: no gap, and nothing twice."""
        message = protocol.OpenSubscriber(id=session.next_id(), topic=self.info.name, tethered=self._tethered)
        granted, bells = await session.open(message, protocol.SubscriberGranted)
        cursor: _core.Cursor | None = None
        try:
            self.check_same(granted.topic)
            if self.released:
                raise ClosedError("it was closed meanwhile")
            cursor = self._make_cursor(granted, bells)
            if self._joined:
                await self._join_here(cursor)
        except BaseException as error:
            if cursor is not None:
                cursor.close()
            bells.close()
            session.close_handle(granted.id)
            if isinstance(error, ClosedError):
                return
            raise
        # Ours leaves only after the other has its tether: publishers wait for one of them at any time.
        old, self.cursor = self.cursor, cursor
        old.close()
        self._grant, self.handle = granted, granted.id
        self.swap_bells(bells)
        if self._joined:
            joined = protocol.Joined(id=session.next_id(), handle=self.handle)
            await session.request(joined, protocol.Done)
        await self._watch_publishers_again(session)

    def fail(self, error: ShmdError) -> None:
        self.failure = error
        self.gone()

    def untethered(self) -> None:
        """The daemon says so: we held publishers back for too long, and it will not give the tether back."""
        if self._tethered:
            self._tethered = False
            logger.warning(
                "the subscription to %r held publishers back for too long: they no longer wait for it", self.info.name
            )

    def publishers_gone(self) -> None:
        """The daemon says so: what they published is in the log by now."""
        self.closed = True
        self.ring()

    async def _tether_again(self) -> None:
        """The tether was taken from us because we were away. What was discarded since then counts as lost."""
        if not (self._joined and self._tethered) or self._has_tether():
            return
        logger.warning("the subscription to %r was away for too long: it may have lost records", self.info.name)
        with contextlib.suppress(ClosedError):
            await self._join_here(self.cursor)

    def _has_tether(self) -> bool:
        """As the slot says it; the cursor itself learns of a loss only when it moves."""
        incarnation, _, tethered, _, _ = self.log.slot_stat(self._grant.slot)
        return tethered and incarnation == self._grant.incarnation

    def _make_cursor(self, granted: protocol.SubscriberGranted, bells: TopicBells) -> _core.Cursor:
        return _core.Cursor(
            self.log,
            slot=granted.slot,
            incarnation=granted.incarnation,
            tethered=self._tethered,
            space_fd=bells.space_fd,
            decode=self._codec.decode,
            explain=self._codec.explain,
        )

    async def _join_here(self, cursor: _core.Cursor) -> None:
        """Have ``cursor`` go on where ours stands; or, if publishers went past there, at the oldest record, and what
        came before counts as lost. ``ClosedError`` if we are closed meanwhile, or the slot is somebody else's.
        """
        cursor.seek_position(self.cursor.position, self.cursor.next_seq)
        joined = cursor.join()
        while not joined:
            await asyncio.sleep(0)
            if self.released:
                raise ClosedError("it was closed meanwhile")
            joined = cursor.seek_seq(max(1, self.cursor.next_seq), limits.SEEK_STEPS) and cursor.join()

    async def _tell_joined(self) -> None:
        """Whoever waits for subscribers may publish from now on, and we miss nothing of it."""
        link = self._hub.link
        await link.request(protocol.Joined(id=link.next_id(), handle=self.handle), protocol.Done)

    def _watch_publishers(self, request_id: int) -> protocol.WatchPublishers:
        """A publisher whose records we have seen may be gone by now, and the daemon that knew it, too."""
        seen = self.cursor.position != self._joined_at or self.cursor.available
        return protocol.WatchPublishers(id=request_id, handle=self.handle, past=self._past or seen)

    async def _watch_publishers_again(self, session: Session) -> None:
        """What we asked for ended with the connection."""
        if self._until_closed and self._joined and not self.released:
            await session.request(self._watch_publishers(session.next_id()), protocol.Done)
