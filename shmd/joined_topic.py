"""One topic of a subscription: its grant, its cursor, and whether it sleeps.

A joined topic is either *hot* (there may be something to read) or *asleep* (armed: the next record rings its bell). It
knows its subscription only through ``Wakeful``, which holds no reference back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from shmd import _core, protocol
from shmd.hub import Seat, Sleeper
from shmd.start import seek_first

if TYPE_CHECKING:
    from shmd.codec import Codec
    from shmd.hub import Hub
    from shmd.session import Bells
    from shmd.start import Seek


class Wakeful:
    """What the joined topics of one subscription share: who is hot, and the task to wake."""

    __slots__ = ("hot", "sleeper")

    def __init__(self) -> None:
        self.hot: deque[JoinedTopic] = deque()
        self.sleeper = Sleeper()


class JoinedTopic(Seat):
    """A subscriber's seat. Neither hot nor asleep until ``join`` is through."""

    __slots__ = ("_codec", "_granted", "_shared", "_tethered", "asleep", "cursor")

    def __init__(
        self,
        hub: Hub,
        granted: protocol.SubscriberGranted,
        bells: Bells,
        shared: Wakeful,
        codec: Codec,
        *,
        tethered: bool,
    ) -> None:
        self._granted = granted
        self._shared = shared
        self._codec = codec
        self._tethered = tethered and granted.topic.when_full == "wait"
        self.asleep = False
        super().__init__(hub, granted, bells, "subscriber")

    def enter(self) -> None:
        self.cursor = _core.Cursor(
            self.log,
            slot=self._granted.slot,
            incarnation=self._granted.incarnation,
            tethered=self._tethered,
            space_fd=self._bells.space_fd,
            decode=self._codec.decode,
            explain=self._codec.explain,
        )

    async def join(self, seek: Seek) -> None:
        """Put the cursor in its place: before the first record of a topic that came while we watched, else where
        ``seek`` says. Then it is hot.
        """
        if self._granted.from_start:
            self.cursor.seek_start()
            seek = seek_first
        elif not seek(self.cursor):
            await self._seek_on(seek)
        while not self.cursor.join():
            await self._seek_on(seek)
        if not self._granted.from_start:
            await self._tell_joined()
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

    async def _tell_joined(self) -> None:
        """Whoever waits for subscribers may publish from now on, and we miss nothing of it."""
        session = self._hub.session
        await session.request(protocol.Joined(id=session.next_id(), handle=self.handle), protocol.Done)

    async def _seek_on(self, seek: Seek) -> None:
        await asyncio.sleep(0)
        while not seek(self.cursor):  # noqa: ASYNC110 - no event tells when a scan is through, only trying does
            await asyncio.sleep(0)
