"""The connection that outlives connections: one daemon after the other, behind one socket path.

    request ──▶ wait until connected ──▶ session.request ──▶ reply
                    ▲                          │
                    └── the daemon went away ──┘   and again, under another id

    session lost ──▶ pause, connect, hello(resume=our number) ──▶ the owner resumes what is open ──▶ connected

Requests may be repeated, as long as their time is not over, since nearly all come to the same if they are carried out
twice. What the first one may have opened is closed when the daemon is back: until then its handle is an
*orphan*, as is that of everything closed while nobody was there to hear it.

Pauses between attempts double up to a limit, and each is drawn at random from 0 to its length, so that a thousand
clients do not come back at once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, overload

import msgspec

from shmd import limits, protocol, transport
from shmd.errors import ClosedError, DaemonUnavailable, Disconnected, RequestRefused, ShmdError, VersionMismatch
from shmd.session import Session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from shmd.notifier import SegmentBells, TopicBells
    from shmd.session import Answer, G

logger = logging.getLogger("shmd.client")

R = TypeVar("R", bound=protocol.Reply)
T = TypeVar("T")

_OPENS: Final = (protocol.OpenPublisher, protocol.OpenSubscriber, protocol.OpenSegment)
_ONCE: Final = (protocol.RemoveTopic, protocol.RemoveSegment, protocol.Stop)
"""Carried out twice, they would hit another topic, or another daemon."""


class Owner(Protocol):
    """Whose link it is."""

    def topic_added(self, event: protocol.TopicAdded) -> None: ...
    def topic_gone(self, event: protocol.TopicGone) -> None: ...
    def untethered(self, event: protocol.Untethered) -> None: ...
    def segment_gone(self, event: protocol.SegmentGone) -> None: ...
    def publishers_gone(self, event: protocol.PublishersGone) -> None: ...

    def link_lost(self, reason: Exception | None) -> None:
        """The daemon went away."""

    async def link_found(self, session: Session, welcome: protocol.Welcome) -> None:
        """A daemon is there again: take up through ``session`` whatever was open. If that raises ``Disconnected`` it is
        called again with the next one.
        """

    def link_restored(self, *, resumed: bool) -> None:
        """All is as before."""


class Link:
    """A client's way to its daemon. Made unconnected; ``connect`` comes first, ``shut`` and ``close`` last."""

    session: Session
    """The connection, alive or dead; there is none before the first."""
    welcome: protocol.Welcome
    """What the daemon said last of itself and of us."""

    def __init__(self, path: Path, name: str, owner: Owner, request_timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._path = path
        self._name = name
        self._owner = owner
        self.request_timeout_s = request_timeout_s
        self._ids = itertools.count(1)
        self._ready = asyncio.Event()
        self._closed = False
        self._orphans: set[int] = set()
        self._reconnecting: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether requests are carried out now; otherwise they wait."""
        return self._ready.is_set() and not self._closed and self.session.connected

    async def connect(self, timeout_s: float) -> protocol.Welcome:
        """For the first time. Raises why it cannot be."""
        self.session, self.welcome = await self._shake_hands(timeout_s, resume=0)
        self._ready.set()
        return self.welcome

    def next_id(self) -> int:
        """A request id that was never used."""
        return next(self._ids)

    async def request(self, message: protocol.Request, reply_type: type[R], *, for_ever: bool = False) -> R:
        """Send ``message`` and wait for its reply, also for a daemon that is away now.

        Raises what the daemon refused with, ``Disconnected`` if there was none in time, ``DaemonUnavailable`` if it did
        not answer in time, ``ProtocolError``. If cancelled, the daemon undoes whatever the request opened.
        """

        async def exchange(message: protocol.Request, timeout_s: float | None) -> R:
            return await self.session.request(message, reply_type, timeout_s=timeout_s)

        return await self._persist(message, None if for_ever else self.request_timeout_s, exchange)

    @overload
    async def open(self, message: protocol.Request, reply_type: type[G]) -> tuple[G, TopicBells]: ...

    @overload
    async def open(
        self, message: protocol.Request, reply_type: type[protocol.SegmentGranted]
    ) -> tuple[protocol.SegmentGranted, SegmentBells]: ...

    async def open(self, message: protocol.Request, reply_type: type[Any]) -> tuple[Any, Any]:
        """The same for a request that is granted with bells. The caller closes them, and the handle."""

        async def exchange(message: protocol.Request, timeout_s: float | None) -> tuple[Any, Any]:
            granted: tuple[Any, Any] = await self.session.open(message, reply_type, timeout_s=timeout_s)
            return granted

        return await self._persist(message, self.request_timeout_s, exchange)

    def post(self, message: protocol.Request) -> None:
        """Send ``message`` if there is a daemon now, and do not wait for the answer."""
        if self.connected:
            self.session.post(message)

    def close_handle(self, handle: int) -> asyncio.Future[Answer]:
        """Give ``handle`` back. It is on its way when this returns, or goes as soon as there is a daemon again; wait
        for the future to know that it arrived (``Disconnected``: it did not, so far).
        """
        closing = self.session.close_handle(handle)
        closing.add_done_callback(lambda closed: self._note_orphan(closed, handle))
        return closing

    def shut(self) -> set[asyncio.Future[Any]]:
        """Connect no more: whoever waits for that gets ``ClosedError``. What still has to end."""
        self._closed = True
        self._ready.set()
        if self._reconnecting is None or self._reconnecting.done():
            return set()
        self._reconnecting.cancel()
        return {self._reconnecting}

    async def say_bye(self) -> None:
        """Have the daemon give everything back; it does not wait for us to resume, then."""
        bye = protocol.Bye(id=self.next_id())
        await self.session.request(bye, protocol.Done, timeout_s=self.request_timeout_s)

    def close(self) -> None:
        """Hang up, for good. Twice is fine."""
        self.shut()
        if hasattr(self, "session"):
            self.session.post(protocol.Bye(id=self.next_id()))
            self.session.close()

    def abandon(self) -> None:
        """In a forked child: our copy of the parent's socket goes, and nobody hears of it."""
        if hasattr(self, "session"):
            self.session.abandon()

    # --- requests ---

    async def _persist(
        self,
        message: protocol.Request,
        timeout_s: float | None,
        exchange: Callable[[Any, float | None], Awaitable[T]],
    ) -> T:
        deadline = None if timeout_s is None else self._loop.time() + timeout_s
        while True:
            if not self.connected:
                await self._until_connected(deadline)
            try:
                return await exchange(message, None if deadline is None else deadline - self._loop.time())
            except Disconnected:
                self._orphans.add(message.id)
                self._check_open()
                if isinstance(message, _ONCE) or getattr(message, "exclusive", False):
                    raise  # or the second attempt might find what the first one made
            except (asyncio.CancelledError, DaemonUnavailable):
                # The session has cancelled it, but nobody answers that: a daemon killed now may never hear of it.
                if isinstance(message, _OPENS):
                    self.close_handle(message.id)
                raise
            if not isinstance(message, protocol.Watch):  # whose id is the subscription's for good
                message = msgspec.structs.replace(message, id=self.next_id())

    async def _until_connected(self, deadline: float | None) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                while not self.connected:
                    self._check_open()
                    # Lost, but we are not told yet, or else on the way to another.
                    await (asyncio.sleep(0) if self._ready.is_set() else self._ready.wait())
        except TimeoutError:
            raise Disconnected(
                f"there is no connection to the daemon at {self._path}", "it is tried again and again: is one running?"
            ) from None

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this client was closed", "connect() again")

    def _note_orphan(self, closing: asyncio.Future[Answer], handle: int) -> None:
        if not closing.cancelled() and isinstance(closing.exception(), Disconnected):
            self._orphans.add(handle)

    # --- what the session tells ---

    def topic_added(self, event: protocol.TopicAdded) -> None:
        self._owner.topic_added(event)

    def topic_gone(self, event: protocol.TopicGone) -> None:
        self._owner.topic_gone(event)

    def untethered(self, event: protocol.Untethered) -> None:
        self._owner.untethered(event)

    def segment_gone(self, event: protocol.SegmentGone) -> None:
        self._owner.segment_gone(event)

    def publishers_gone(self, event: protocol.PublishersGone) -> None:
        self._owner.publishers_gone(event)

    def disconnected(self, session: Session, reason: Exception | None) -> None:
        # One that is lost while it is still being made concerns only whoever makes it.
        if self._ready.is_set() and not self._closed and session is self.session:
            self._ready.clear()
            self._reconnecting = self._loop.create_task(self._reconnect())
            self._owner.link_lost(reason)

    # --- the way back ---

    async def _reconnect(self) -> None:
        refused = ""
        for pause_s in _pauses():
            await asyncio.sleep(pause_s)
            try:
                resumed = await self._restore()
            except (ShmdError, OSError) as error:
                if isinstance(error, RequestRefused) and str(error) != refused:
                    refused = str(error)
                    logger.error("the daemon is back, but refuses us: %s", refused)
                continue
            except Exception as error:  # a defect; it must not end the attempts, nor fill the log
                if repr(error) != refused:
                    refused = repr(error)
                    logger.exception("the daemon is back, but we cannot resume")
                continue
            if self.session.connected:
                self._ready.set()
                self._owner.link_restored(resumed=resumed)
                return

    async def _restore(self) -> bool:
        """One attempt. Whether the daemon knew us."""
        number = self.welcome.client
        session, self.welcome = await self._shake_hands(limits.CONNECT_TIMEOUT_S, resume=number)
        self.session = session
        try:
            await self._owner.link_found(session, self.welcome)
            await self._close_orphans()
        except BaseException:
            session.close()
            raise
        return self.welcome.resumed

    async def _close_orphans(self) -> None:
        for handle in list(self._orphans):
            async with asyncio.timeout(self.request_timeout_s):  # a daemon that is stuck is left for another attempt
                await self.session.close_handle(handle)
            self._orphans.discard(handle)

    async def _shake_hands(self, timeout_s: float, *, resume: int) -> tuple[Session, protocol.Welcome]:
        session = Session(await transport.connect(self._path, timeout_s), self, self._ids)
        try:
            hello = protocol.Hello(
                id=self.next_id(),
                major=protocol.VERSION_MAJOR,
                minor=protocol.VERSION_MINOR,
                name=self._name,
                ipc_namespace=_namespace("ipc"),
                pid_namespace=_namespace("pid"),
                resume=resume,
            )
            welcome = await session.request(hello, protocol.Welcome, timeout_s=timeout_s)
            if welcome.major != protocol.VERSION_MAJOR:
                raise VersionMismatch(f"the daemon speaks version {welcome.major}, we speak {protocol.VERSION_MAJOR}")
        except BaseException:
            session.close()
            raise
        return session, welcome


def _pauses() -> Iterator[float]:
    """How long to wait before each attempt."""
    longest_s = limits.RECONNECT_MIN_S
    while True:
        yield random.uniform(0, longest_s)  # noqa: S311 - nobody gains from guessing it
        longest_s = min(2 * longest_s, limits.RECONNECT_MAX_S)


def _namespace(kind: str) -> int:
    """This process's namespace as a number; 0 where it cannot be told."""
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino
    except OSError:
        return 0
