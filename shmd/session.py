"""The client's end of the control connection: requests become coroutines, events become calls.

    request ──▶ pending[id] = future ──▶ packet                     packet ──▶ pending.pop(id).set_result(reply)
                       │                                            event  ──▶ loop.call_soon(events.topic_…)
                       └─ cancelled or overdue: a Cancel follows, and whatever the daemon opened is given back

Two orders matter. Events are passed on with ``call_soon``, so that a task whose reply came before them has run first:
it knows what it was granted when it is told that this was removed. And a request that is cancelled may have been
answered already, with descriptors; they are closed, whether they lie in the future that nobody will look at or come
later.

A session that lost its daemon fails what is pending, and says so once; it never connects again, a new one does.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, overload

from shmd import limits, notifier, protocol
from shmd.errors import DaemonUnavailable, Disconnected, ProtocolError, ShmdError
from shmd.transport import Connection

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from shmd.notifier import Bells, SegmentBells, TopicBells

logger = logging.getLogger("shmd.client")

R = TypeVar("R", bound=protocol.Reply)
G = TypeVar("G", protocol.PublisherGranted, protocol.SubscriberGranted)
Answer: TypeAlias = tuple[protocol.Reply, list[int]]


class Events(Protocol):
    """Who is told what the daemon says unasked."""

    def topic_added(self, event: protocol.TopicAdded) -> None: ...
    def topic_gone(self, event: protocol.TopicGone) -> None: ...
    def untethered(self, event: protocol.Untethered) -> None: ...
    def segment_gone(self, event: protocol.SegmentGone) -> None: ...
    def publishers_gone(self, event: protocol.PublishersGone) -> None: ...
    def disconnected(self, session: Session, reason: Exception | None) -> None: ...


class Session:
    """One connection to a daemon, from ``hello`` to its end. Belongs to the loop that it was made in."""

    def __init__(self, sock: socket.socket, events: Events, ids: Iterator[int] | None = None) -> None:
        """Takes ``sock`` over. ``ids``: those of an earlier session, to be counted on."""
        self._loop = asyncio.get_running_loop()
        self._events = events
        self._pending: dict[int, asyncio.Future[Answer]] = {}
        self._sock = sock
        self._ids = itertools.count(1) if ids is None else ids
        self._connection = Connection(
            self._loop, sock, self._on_packet, self._on_closed, fds_max=limits.DESCRIPTORS_PER_MESSAGE_MAX
        )

    @property
    def connected(self) -> bool:
        return not self._connection.closed

    def next_id(self) -> int:
        """A request id that was never used."""
        return next(self._ids)

    async def request(
        self, message: protocol.Request, reply_type: type[R], *, timeout_s: float | None = limits.REQUEST_TIMEOUT_S
    ) -> R:
        """Send ``message`` and wait for its reply.

        Raises what the daemon refused with, ``Disconnected``, ``DaemonUnavailable`` if it does not answer in time (None
        waits for ever), ``ProtocolError``. If cancelled, the daemon undoes whatever the request opened.
        """
        reply, fds = await self._exchange(message, timeout_s)
        if not isinstance(reply, reply_type) or fds:
            raise self._broken_with(message, reply, fds)
        return reply

    @overload
    async def open(
        self, message: protocol.Request, reply_type: type[G], *, timeout_s: float | None = ...
    ) -> tuple[G, TopicBells]: ...

    @overload
    async def open(
        self, message: protocol.Request, reply_type: type[protocol.SegmentGranted], *, timeout_s: float | None = ...
    ) -> tuple[protocol.SegmentGranted, SegmentBells]: ...

    async def open(
        self, message: protocol.Request, reply_type: type[Any], *, timeout_s: float | None = limits.REQUEST_TIMEOUT_S
    ) -> tuple[Any, Any]:
        """The same for a request that is granted with bells. The caller closes them, and the handle.

        ``PermissionDenied`` or ``LimitExceeded`` also for FIFOs that cannot be opened here; then the handle is closed.
        """
        reply, fds = await self._exchange(message, timeout_s)
        if not isinstance(reply, reply_type) or len(fds) != notifier.descriptors_of(reply):
            raise self._broken_with(message, reply, fds)
        try:
            return reply, notifier.take_bells(reply, fds)
        except BaseException:
            self.close_handle(reply.id)
            raise

    async def renew(self, message: protocol.Resume, former: Bells) -> Bells:
        """The bells that the daemon has now for a grant of before, in place of ``former``. The caller closes both."""
        reply, fds = await self._exchange(message, limits.REQUEST_TIMEOUT_S)
        if not isinstance(reply, protocol.Resumed) or len(fds) != former.descriptors:
            raise self._broken_with(message, reply, fds)
        return former.renewed(fds)

    def post(self, message: protocol.Request) -> None:
        """Send ``message``; its reply will be dropped."""
        self._connection.send(protocol.encode(message))

    def close_handle(self, handle: int) -> asyncio.Future[Answer]:
        """Give ``handle`` back. It is on its way when this returns; wait for the future to know that it arrived."""
        closing = self._send(protocol.Close(id=self.next_id(), handle=handle))
        closing.add_done_callback(_retrieve)
        return closing

    def close(self) -> None:
        """Hang up. Twice is fine."""
        self._connection.close()

    def abandon(self) -> None:
        """In a forked child: close our copy of the descriptor, and leave the loop alone, which is the parent's, too."""
        self._sock.close()

    async def _exchange(self, message: protocol.Request, timeout_s: float | None) -> Answer:
        answer = self._send(message)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except asyncio.CancelledError:
            self._give_up(message.id, answer)
            raise
        except TimeoutError:
            self._give_up(message.id, answer)
            raise DaemonUnavailable(
                f"the daemon did not answer a {type(message).__name__} within {timeout_s:g} s",
                "is it stopped? see its log",
            ) from None

    def _send(self, message: protocol.Request) -> asyncio.Future[Answer]:
        answer: asyncio.Future[Answer] = self._loop.create_future()
        if self._connection.closed:
            answer.set_exception(Disconnected("there is no connection to the daemon"))
            return answer
        self._pending[message.id] = answer
        self._connection.send(protocol.encode(message))
        return answer

    def _give_up(self, request_id: int, answer: asyncio.Future[Answer]) -> None:
        self._pending.pop(request_id, None)
        if answer.done() and not answer.cancelled() and answer.exception() is None:
            _close_all(answer.result()[1])
        if self.connected:
            self._connection.send(protocol.encode(protocol.Cancel(id=self.next_id(), target=request_id)))

    def _on_packet(self, packet: bytes, fds: list[int]) -> None:
        try:
            message = protocol.decode_reply(packet)
        except ProtocolError:
            _close_all(fds)
            raise
        if isinstance(message, protocol.TopicAdded):
            self._loop.call_soon(self._events.topic_added, message)
        elif isinstance(message, protocol.TopicGone):
            self._loop.call_soon(self._events.topic_gone, message)
        elif isinstance(message, protocol.Untethered):
            self._loop.call_soon(self._events.untethered, message)
        elif isinstance(message, protocol.SegmentGone):
            self._loop.call_soon(self._events.segment_gone, message)
        elif isinstance(message, protocol.PublishersGone):
            self._loop.call_soon(self._events.publishers_gone, message)
        else:
            self._on_reply(message, fds)
            return
        _close_all(fds)

    def _on_reply(self, message: protocol.Reply, fds: list[int]) -> None:
        request_id = message.id
        if request_id == 0 and len(self._pending) == 1:  # refused unread, as a hello is at the limit of clients
            (request_id,) = self._pending
        answer = self._pending.pop(request_id, None)
        if answer is None or answer.done():
            # Nobody waits any more: the request was cancelled, and so, on the daemon's side, is what it opened.
            _close_all(fds)
            if isinstance(message, protocol.Refused) and message.id == 0:
                logger.error("the daemon could not read a request: %s", message.message)
        elif isinstance(message, protocol.Refused):
            _close_all(fds)
            answer.set_exception(ShmdError.from_wire(message.code, message.message, message.hint))
        else:
            answer.set_result((message, fds))

    def _on_closed(self, reason: Exception | None) -> None:
        pending, self._pending = self._pending, {}
        for answer in pending.values():
            if not answer.done():
                error = Disconnected(
                    "the connection to the daemon ended before it answered", "the request may have been done"
                )
                error.__cause__ = reason
                answer.set_exception(error)
        self._events.disconnected(self, reason)

    def _broken_with(self, message: protocol.Request, reply: protocol.Reply, fds: list[int]) -> ProtocolError:
        _close_all(fds)
        self.close()
        return ProtocolError(
            f"the daemon broke the protocol: a {type(reply).__name__} with {len(fds)} descriptors "
            f"answers a {type(message).__name__}"
        )


def _retrieve(answer: asyncio.Future[Answer]) -> None:
    # Otherwise asyncio reports an exception that nobody looked at.
    if not answer.cancelled():
        answer.exception()


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
