"""One grant in use, and the one who sleeps on its bell.

A seat outlives the connection that it was granted by. After the daemon has come back it is **resumed**: the same grant,
with the bells of the new daemon; or, if the daemon does not know this client any more, it is **reopened**: another
grant, of the same topic. Either way whoever uses the seat notices nothing; a topic that is gone it reports as removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmd import limits, protocol
from shmd.attachment import Attachment
from shmd.errors import NoSuchTopic

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from shmd import _core
    from shmd.attachment import Role
    from shmd.errors import ShmdError
    from shmd.hub import Hub
    from shmd.notifier import Bells, Granted, TopicBells, TopicGranted
    from shmd.session import Session


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


class Doze:
    """How long the next sleep may last where bells may fail to come: longer and longer as long as nothing happens."""

    __slots__ = ("_next_s", "_progress")

    def __init__(self) -> None:
        self._next_s = limits.RECHECK_DISCONNECTED_MIN_S
        self._progress = -1

    def next_s(self, progress: int) -> float:
        """``progress`` is whatever changes when something happened since the last time."""
        if progress != self._progress:
            self._progress = progress
            self._next_s = limits.RECHECK_DISCONNECTED_MIN_S
        now_s = self._next_s
        self._next_s = min(limits.RECHECK_DISCONNECTED_GROWTH * now_s, limits.RECHECK_DISCONNECTED_MAX_S)
        return now_s


class Seat:
    """One grant in use, of a topic or of a segment. A subclass says what a bell does (``ring``), how to use other bells
    (``use_bells``), how to get another grant (``reopen``), and how to end (``leave``).
    """

    __slots__ = ("_bells", "_hub", "client", "handle", "name", "released", "removed", "role")

    def __init__(self, hub: Hub, granted: Granted, bells: Bells, name: str, role: str) -> None:
        """``name`` and ``role`` say in messages what this is."""
        self._hub = hub
        self._bells = bells
        self.name = name
        self.role = role
        self.client = hub.link.welcome.client
        self.handle = granted.id
        self.removed = False
        self.released = False

    @property
    def drained(self) -> bool:
        """Whether our bells have to be emptied: FIFOs have."""
        return False

    def heeded(self) -> list[tuple[int, Callable[[], object]]]:
        """Bells that are for us, each with what it does."""
        raise NotImplementedError

    def ring_others(self) -> None:
        """Wake those who wait for what we do."""
        raise NotImplementedError

    def ring(self) -> None:
        """The bell rang, what we have was removed, or the daemon went or came: look again."""
        raise NotImplementedError

    def use_bells(self) -> None:
        """``_bells`` are others from now on."""
        raise NotImplementedError

    def leave(self) -> None:
        """Detach. ``BufferError``, and nothing changes, while somebody else still uses the memory. Twice is fine."""
        raise NotImplementedError

    def unregister(self) -> None:
        """Have the hub forget this seat and its bells."""
        raise NotImplementedError

    async def reopen(self, session: Session) -> None:
        """Take part anew, with a daemon that knows nothing of this grant. ``NoSuchTopic`` or ``SegmentNotFound`` if it
        does not know what we have, either.
        """
        raise NotImplementedError

    async def resume(self, session: Session) -> None:
        """Go on with the same grant at a daemon that came back. ``NoSuchTopic`` if it has not got it any more."""
        message = protocol.Resume(id=session.next_id(), handle=self.handle)
        self.swap_bells(await session.renew(message, self._bells))

    def swap_bells(self, bells: Bells) -> None:
        """Use ``bells`` from now on, close the old ones, and have everybody look again: ours may have been rung in
        vain, and we may have rung in vain for those who had the new ones before us.
        """
        if self.released:
            bells.close()
            return
        self._hub.ignore_bells(self)
        self._bells, old = bells, self._bells
        self.use_bells()
        self._hub.heed_bells(self)
        old.close()
        self.ring_others()
        self.ring()

    def gone(self) -> None:
        """What we have was removed."""
        self.removed = True
        self.ring()

    def fail(self, error: ShmdError) -> None:
        """The daemon does not let us go on."""
        raise NotImplementedError

    def untethered(self) -> None:
        """Publishers no longer wait for us. For a subscriber's seat."""

    def publishers_gone(self) -> None:
        """All publishers have gone. For a subscriber's seat that asked to be told."""

    def release(self) -> asyncio.Future[Any] | None:
        """Give everything back and tell the daemon; the future says when it knows. None if that was done before.

        ``BufferError``, and nothing changes, while somebody else still uses the memory.
        """
        self._hub.check_process()
        if self.released:
            return None
        self.leave()
        self.released = True
        self.unregister()
        self._bells.close()
        return self._hub.link.close_handle(self.handle)

    def forked(self) -> None:
        """In a forked child: this seat is the parent's. Only our copies of its descriptors go."""
        self._bells.close()


class TopicSeat(Seat):
    """One grant of a topic in use: its log and ctl, attached. A subclass says also how to begin (``enter``), and gives
    back in ``leave`` what it has made of ``log``.
    """

    __slots__ = ("_attachment", "info")
    _bells: TopicBells

    def __init__(self, hub: Hub, granted: TopicGranted, bells: TopicBells, role: Role) -> None:
        """Attach, and begin. If that raises, ``bells`` and the handle are still the caller's."""
        super().__init__(hub, granted, bells, granted.topic.name, role)
        self.info = granted.topic
        self._attachment = Attachment(granted.topic, role)
        try:
            self.enter()
        except BaseException:
            self._attachment.close()
            raise
        hub.seat_taken(self)

    @property
    def log(self) -> _core.Log:
        return self._attachment.log

    @property
    def drained(self) -> bool:
        return self.info.notifier == "fifo"

    @property
    def listening_fd(self) -> int:
        """The bell that is for us."""
        return self._bells.listening_fd

    def heeded(self) -> list[tuple[int, Callable[[], object]]]:
        return [(self._bells.listening_fd, self.ring)]

    @property
    def ringing_fd(self) -> int:
        """What we ring others with: readers for records, publishers for room."""
        return self._bells.record_fd if self.role == "publisher" else self._bells.space_fd

    def ring_others(self) -> None:
        if self.role == "publisher":
            self.log.ring_readers(self.ringing_fd)
        else:
            self.log.ring_publishers(self.ringing_fd)

    def enter(self) -> None:
        """Make what is needed of ``log``."""
        raise NotImplementedError

    def leave(self) -> None:
        self._attachment.close()

    def unregister(self) -> None:
        self._hub.seat_left(self)

    def check_same(self, topic: protocol.TopicInfo) -> None:
        """``NoSuchTopic`` if what has our topic's name now is another topic."""
        if topic.topic_id != self.info.topic_id:
            raise NoSuchTopic(f"topic {self.info.name!r} is no longer the one that was opened here")
