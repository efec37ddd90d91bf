"""Publishing: pack, append, and wait only where there is a reason to.

``publish`` on a topic with room is one call into C and never suspends, but for a turn of the loop every so many records
or milliseconds. Every suspension comes before the append, never after: a publish that is cancelled has not happened.

Whoever finds no room (a `wait` topic) or a busy lock, or is due to yield, joins a line, and nobody overtakes: records
of tasks that share a publisher are appended in the order in which the tasks came.
"""

from __future__ import annotations

import asyncio
import contextlib
from copy import copy
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from shmd import _core, limits, protocol
from shmd.errors import ClosedError, InvalidOption, NoSubscribers, TopicFull, TopicLocked, TopicRemoved, UsageError
from shmd.hub import forked_error, give_back_dropped
from shmd.patience import Patience
from shmd.seat import Sleeper, TopicSeat
from shmd.topic_options import options_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer

    from shmd.codec import Codec
    from shmd.errors import ShmdError
    from shmd.hub import Hub
    from shmd.notifier import TopicBells
    from shmd.session import Session

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")

_TURN_PARTS: Final = 2
"""The appender calls out after half a turn: the loop may have come round meanwhile, which ``_begin_turn`` finds out."""


class PublisherSeat(TopicSeat):
    """The publisher's end of the log. ``append``, ``append_many`` and ``reserve`` raise ``error`` instead, once there
    is one, and ``NoSubscribers``, where they are required and there are none.
    """

    __slots__ = (
        "_burial_at",
        "_required",
        "append",
        "append_many",
        "appender",
        "error",
        "number",
        "reserve",
        "sleeper",
    )

    def __init__(
        self, hub: Hub, granted: protocol.PublisherGranted, bells: TopicBells, *, require_subscribers: bool
    ) -> None:
        self.number = granted.publisher
        self.sleeper = Sleeper()
        self.error: ShmdError | None = None
        self._required = require_subscribers
        self._burial_at = 0.0
        super().__init__(hub, granted, bells, "publisher")

    def enter(self) -> None:
        self.appender = _core.Appender(
            self.log,
            publisher=self.number,
            bell_fd=self._bells.record_fd,
            yield_records=limits.YIELD_RECORDS // _TURN_PARTS,
            yield_s=limits.YIELD_S / _TURN_PARTS,
        )
        self.append: Callable[[Buffer], int] = self._requiring(self.appender.append)
        self.append_many: Callable[[list[Buffer]], int] = self._requiring(self.appender.append_many)
        self.reserve: Callable[[int], _core.Reservation | int] = self._requiring(self.appender.reserve)

    def ring(self) -> None:
        self.sleeper.wake()

    def ring_space(self) -> None:
        """Wake the others who wait for room."""
        self.log.ring_publishers(self._bells.space_fd)

    def gone(self) -> None:
        if self.error is None:
            self._end(TopicRemoved(f"topic {self.info.name!r} was removed", "open a publisher again to create it anew"))
        super().gone()

    def leave(self) -> None:
        self.appender.close()
        self._end(ClosedError(f"this publisher of {self.info.name!r} was closed"))
        self.sleeper.wake()
        super().leave()

    def use_bells(self) -> None:
        self.appender.bell_fd = self._bells.record_fd

    async def reopen(self, session: Session) -> None:
        """Another lease on the same topic. Records keep our number, which nobody else gets: the topic is the same."""
        peek = protocol.Peek(id=session.next_id(), topic=self.info.name)
        self.check_same((await session.request(peek, protocol.TopicReply)).topic)
        message = protocol.OpenPublisher(id=session.next_id(), topic=self.info.name, options=options_of(self.info))
        granted, bells = await session.open(message, protocol.PublisherGranted)
        if self.released or granted.topic.topic_id != self.info.topic_id:
            bells.close()
            session.close_handle(granted.id)
            self.check_same(granted.topic)
            return
        self.handle = granted.id
        self.appender.fifo = granted.publisher  # by which its FIFO is found from now on
        self.swap_bells(bells)

    def fail(self, error: ShmdError) -> None:
        self._end(error)
        self.ring()

    def forked(self) -> None:
        super().forked()
        self._end(forked_error())

    def check(self) -> None:
        """Raise why nothing can be published any more, if so."""
        if self.error is not None:
            raise copy(self.error)

    def _end(self, error: ShmdError) -> None:
        self.error = error
        self.append = self.append_many = self.reserve = self._refuse

    def _refuse(self, payload: object) -> int:
        raise copy(cast("ShmdError", self.error))

    def _requiring(self, publish: Callable[[A], R]) -> Callable[[A], R]:
        """``publish``, which first looks for subscribers if they are required: whoever need not look pays nothing."""
        if not self._required:
            return publish

        def publish_to_somebody(what: A) -> R:
            self._check_subscribers()
            return publish(what)

        return publish_to_somebody

    def _check_subscribers(self) -> None:
        hub, log = self._hub, self.log
        if hub.away and hub.loop.time() >= self._burial_at:
            self._burial_at = hub.loop.time() + limits.RECHECK_DISCONNECTED_MIN_S
            hub.bystander.bury_dead(log, self.info.topic_id)
        if not log.has_subscribers():
            raise NoSubscribers(
                f"nobody subscribes to topic {self.info.name!r}: nothing was published",
                "await wait_for_subscribers() before, or publish without require_subscribers",
            )


class Publisher(Generic[T]):
    """Publishes to one topic; made by ``Client.publisher``. Any number of tasks of its loop may use it at a time.

    It works on while the daemon is away. After ``close`` everything raises ``ClosedError``; after somebody removed the
    topic, ``TopicRemoved``.
    """

    def __init__(self, hub: Hub, seat: PublisherSeat, codec: Codec) -> None:
        """Not for callers: see ``Client.publisher``."""
        self._hub = hub
        self._seat = seat
        self._codec = codec
        self._encode = codec.encode
        self._appender = seat.appender
        self._in_line = 0
        self._turning = False
        self._turn = asyncio.Lock()
        hub.members.add(self)

    @property
    def topic(self) -> str:
        """The topic's name."""
        return self._seat.info.name

    @property
    def info(self) -> protocol.TopicInfo:
        """The topic's options and segments, as the daemon told them when this was opened."""
        return self._seat.info

    @property
    def number(self) -> int:
        """What ``Record.publisher`` says of this publisher's records; unique in the daemon's life."""
        return self._seat.number

    @property
    def record_size_max(self) -> int:
        """The largest payload, in bytes, after packing."""
        self._seat.check()
        return self._seat.log.record_size_max

    async def publish(self, value: T) -> int:
        """Publish one record; its sequence number.

        On a `wait` topic waits for room. Raises ``EncodeError``, ``RecordTooLarge``, ``TopicRemoved``, ``ClosedError``,
        ``CorruptTopic``, and with ``require_subscribers``, also while it waits, ``NoSubscribers``. If it raises, or is
        cancelled, it has not published.
        """
        try:
            payload = self._encode(value)
        except Exception as error:
            raise self._codec.refusal(value, error) from error
        if not self._in_line and not self._appender.due:
            seq = self._seat.append(payload)
            if seq > 0:
                return seq
        return await self._publish_in_line(lambda: self._seat.append(payload))

    def publish_nowait(self, value: T) -> int:
        """Publish one record now; its sequence number.

        Raises ``TopicFull`` or ``TopicLocked`` where ``publish`` would wait, and otherwise what it raises. It does not
        stand in line: it may overtake tasks that wait in ``publish``.
        """
        try:
            payload = self._encode(value)
        except Exception as error:
            raise self._codec.refusal(value, error) from error
        seq = self._seat.append(payload)
        if seq > 0:
            return seq
        raise self._blocked(seq)

    async def publish_many(self, values: Iterable[T]) -> int:
        """Publish records in one piece: all or none, one after the other, one bell. The last one's sequence number.

        At most ``limits.PUBLISH_MANY_MAX``, and together at most a quarter of the topic (``RecordTooLarge``). Without
        values it does nothing and returns 0. Waits, raises, and is cancelled as ``publish``.
        """
        payloads = await self._encode_all(values)
        if not payloads:
            self._seat.check()
            return 0
        if not self._in_line and not self._appender.due:
            seq = self._seat.append_many(payloads)
            if seq > 0:
                return seq
        return await self._publish_in_line(lambda: self._seat.append_many(payloads))

    @contextlib.contextmanager
    def reserve(self, size_bytes: int) -> Iterator[memoryview]:
        """Write one record in place: a context manager that gives a writable buffer of exactly ``size_bytes`` bytes.

        The record becomes visible, as raw payload (whatever ``codec`` is), when the block ends; if it raises, never.
        Until then nothing else can be published here (``ConcurrentUse``). For exclusive topics only
        (``InvalidOption``), where nobody else writes. Raises ``TopicFull``, ``RecordTooLarge``, and ``NoSubscribers``
        when the block begins; ``UsageError`` if views of the buffer outlive the block.
        """
        self._seat.check()
        if not self._seat.info.exclusive:
            raise InvalidOption(
                f"topic {self.topic!r} is not exclusive, so others may write where a reserved record would be",
                "declare it with exclusive=True, or use publish()",
            )
        reservation = self._seat.reserve(size_bytes)
        if isinstance(reservation, int):
            raise self._blocked(reservation)
        view = memoryview(reservation)
        try:
            yield view
            try:
                view.release()
                reservation.commit()
            except BufferError as error:
                raise UsageError(
                    "views of the reserved buffer outlived their block: nothing was published",
                    "delete or release them in it",
                ) from error
        finally:
            # The room stays taken under a view that lives on, and until it goes; so nothing of ours may live on.
            with contextlib.suppress(BufferError):
                view.release()
            del view, reservation

    async def wait_for_subscribers(self, count: int = 1) -> None:
        """Wait until at least ``count`` subscribers have the topic open. If the daemon is away, waits for it, too."""
        if not 0 <= count <= limits.SUBSCRIBERS_PER_TOPIC_MAX:
            raise InvalidOption(f"a topic cannot have {count} subscribers", f"0 to {limits.SUBSCRIBERS_PER_TOPIC_MAX}")
        self._seat.check()
        link = self._hub.link
        message = protocol.WaitSubscribers(id=link.next_id(), topic=self.topic, count=count)
        await link.request(message, protocol.Done, for_ever=True)

    async def close(self) -> None:
        """Give everything back; tasks that wait in ``publish`` get ``ClosedError``. Twice is fine.

        Returns when the daemon knows, so that an exclusive topic is free for the next publisher. ``BufferError``, and
        it stays open, within a ``reserve`` block.
        """
        closing = self.release()
        if closing is not None:
            await self._hub.told([closing])

    def release(self) -> asyncio.Future[Any] | None:
        """For the client: ``close`` without waiting."""
        closing = self._seat.release()
        self._hub.members.discard(self)
        return closing

    def forked(self) -> None:
        """For the client: nothing to add to what the seat does."""

    async def _encode_all(self, values: Iterable[T]) -> list[Buffer]:
        payloads: list[Buffer] = []
        encode = self._encode
        for value in values:
            if len(payloads) >= limits.PUBLISH_MANY_MAX:
                raise InvalidOption(
                    f"publish_many takes at most {limits.PUBLISH_MANY_MAX} records", "publish them in several pieces"
                )
            try:
                payloads.append(encode(value))
            except Exception as error:
                raise self._codec.refusal(value, error) from error
            if len(payloads) % limits.YIELD_RECORDS == 0:
                await asyncio.sleep(0)
        return payloads

    def _begin_turn(self) -> bool:
        """Due: perhaps only because nothing was published for a while. So once before it yields it goes on, and has the
        loop say when it comes round. False if it did not come round since the last time: now it must have its turn.
        """
        if self._turning:
            return False
        self._turning = True
        self._hub.loop.call_soon(self._turned)
        self._appender.turned()
        return True

    def _turned(self) -> None:
        self._turning = False

    async def _publish_in_line(self, append: Callable[[], int]) -> int:
        """Wait for our turn, then until ``append`` succeeds."""
        self._in_line += 1
        try:
            async with self._turn:
                if self._appender.due and not self._begin_turn():
                    await asyncio.sleep(0)
                    self._appender.turned()
                patience: Patience | None = None
                while True:
                    seq = append()
                    if seq > 0:
                        return seq
                    if patience is None:
                        patience = Patience(self._hub, self._seat)
                    await (patience.wait_for_room() if seq == _core.FULL else patience.back_off())
        finally:
            self._in_line -= 1

    def _blocked(self, result: int) -> TopicFull | TopicLocked:
        if result == _core.FULL:
            return TopicFull(
                f"topic {self.topic!r} has no room", "await publish(), which waits for the slowest subscriber"
            )
        return TopicLocked(f"another publisher of {self.topic!r} is just writing", "try again, or await publish()")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if not (self._seat.released or self._hub.forked):
            give_back_dropped(self, self._hub.loop, self._seat.release)

    def __repr__(self) -> str:
        return f"<Publisher {self.number} of {self.topic!r}{' closed' if self._seat.released else ''}>"
