"""The client: connect to a daemon, and from there topics, publishers, subscriptions and raw segments.

    async with shmd.connect() as client:
        publisher = await client.publisher("prices")
        await publisher.publish({"sym": "ABCD", "px": 101.25})

Whatever opens something (``connect``, ``publisher``, ``subscribe``, ``segment``) gives an ``Opener``: await it, or
enter it with ``async with``. All methods belong to the loop that ``connect`` ran in; any number of tasks may call them
at a time. Cancelling one gives back whatever it had opened by then.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from shmd import connecting, limits, names, protocol
from shmd.client_events import EventStream
from shmd.client_segments import ClientSegments
from shmd.codec import make_codec
from shmd.errors import InvalidOption, NoSuchTopic, SegmentInvalid, SegmentNotFound, SegmentRemoved
from shmd.hub import give_back_dropped
from shmd.opener import Opener
from shmd.publisher import Publisher, PublisherSeat
from shmd.start import parse_start
from shmd.subscription import Subscription
from shmd.topic_options import make_options

if TYPE_CHECKING:
    import os
    from types import TracebackType
    from typing import Self

    from typing_extensions import TypeForm

    from shmd import _core
    from shmd.codec import Codec, CodecName
    from shmd.hub import Hub
    from shmd.protocol import Lifetime, Notifier, TopicInfo, TopicStat, WhenFull
    from shmd.start import Seek, Start

T = TypeVar("T")


def connect(
    path: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    instance: str | None = None,
    timeout_s: float = limits.CONNECT_TIMEOUT_S,
    wait: bool = False,
    request_timeout_s: float = limits.REQUEST_TIMEOUT_S,
) -> Opener[Client]:
    """Connect to the daemon at the socket ``path``, or of ``instance``, or the first that there is.

    Without ``path``: ``$SHMD_SOCKET``, else the first ``control.sock`` that exists in ``$XDG_RUNTIME_DIR/shmd``,
    ``/run/user/UID/shmd``, ``/tmp/shmd-UID`` and ``/run/shmd`` (for root in the last and the first); directories that
    another user owns or may write to are left out. ``name`` is what ``stat`` shows (by default the program's).

    Where there is no daemon it fails at once; with ``wait=True`` it tries again until ``timeout_s`` seconds are over,
    for programs that are started together with their daemon. A daemon that is there has ``timeout_s`` seconds to
    answer. ``request_timeout_s`` is how long a later request waits for its answer, and for the daemon if that is away.

    Raises ``DaemonUnavailable``, which says where it looked, ``Disconnected``, ``VersionMismatch``,
    ``NamespaceMismatch``, ``LimitExceeded``.
    """
    opening = _connect(path, name, instance, timeout_s, request_timeout_s, wait=wait)
    return Opener(opening, "shmd.connect(...)", "client")


async def _connect(
    path: str | os.PathLike[str] | None, name: str | None, instance: str | None, timeout_s: float,
    request_timeout_s: float, *, wait: bool,
) -> Client:  # fmt: skip
    hello_name = Path(sys.argv[0]).name[: limits.CLIENT_NAME_BYTES_MAX] if name is None else name
    if len(hello_name) > limits.CLIENT_NAME_BYTES_MAX:
        raise InvalidOption(f"{name!r} is too long for a client's name", f"{limits.CLIENT_NAME_BYTES_MAX} characters")
    return Client(
        await connecting.connect(
            path, instance, hello_name, timeout_s=timeout_s, request_timeout_s=request_timeout_s, wait=wait
        )
    )


class Client(ClientSegments):
    """One connection to a daemon, and all that was opened through it. Made by ``connect``."""

    def __init__(self, hub: Hub) -> None:
        """Not for callers: see ``connect``."""
        self._hub = hub
        self._codec: Codec = make_codec()

    @property
    def state(self) -> Literal["connected", "disconnected", "closed"]:
        """``"disconnected"``: the daemon went away; publishers and subscriptions go on, requests wait for it."""
        if self._hub.closed:
            return "closed"
        return "disconnected" if self._hub.away else "connected"

    def events(self) -> EventStream:
        """The events of this connection from now on, as an asynchronous iterator that ends with ``closed``.

        Nobody needs it: publishers and subscriptions outlive the daemon without help. For any number of readers.
        """
        self._hub.check_process()
        stream = EventStream(ended=self._hub.closed)
        self._hub.streams.add(stream)
        return stream

    @property
    def instance(self) -> str:
        """The daemon's instance."""
        return self._hub.link.welcome.instance

    @property
    def daemon_pid(self) -> int:
        """The daemon's process, as it was when we heard of it last."""
        return self._hub.link.welcome.pid

    async def topic(
        self,
        name: str,
        *,
        size: int | str | None = None,
        when_full: WhenFull | None = None,
        exclusive: bool | None = None,
        mode: int | None = None,
        lifetime: Lifetime | None = None,
        idle_ttl: float | str | None = None,
        stall_timeout: float | str | None = None,
        notifier: Notifier | None = None,
    ) -> TopicInfo:
        """Declare a topic: create it if there is none of this name.

        ``size`` is its ring, in bytes or like ``"16MiB"``, rounded up to a power of two (1 MiB); ``when_full`` is
        ``"discard-old"`` (the default) or ``"wait"``; ``exclusive`` allows one publisher only (False); ``mode`` are its
        permission bits. ``lifetime`` is ``"os"`` (the default: until it is removed) or ``"attached"`` (until its last
        participant is gone). Times are in seconds or like ``"10s"``: after ``idle_ttl`` without any participant it is
        removed, and a subscriber that holds publishers back for ``stall_timeout`` without reading on no longer does
        (by default neither ever happens). ``notifier`` is ``"eventfd"`` (the default) or ``"fifo"``, for participants
        that cannot be sent descriptors. None means: as it is, or the default. ``TopicMismatch`` names both values
        where it exists with others; ``InvalidName``, ``InvalidOption``, ``PermissionDenied``, ``LimitExceeded``,
        ``Disconnected``.
        """
        options = make_options(size, when_full, exclusive, mode, lifetime, idle_ttl, stall_timeout, notifier)
        message = protocol.Declare(id=self._next_id(), topic=names.check_topic(name), options=options)
        return (await self._hub.link.request(message, protocol.TopicReply)).topic

    @overload
    def publisher(
        self, topic: str, *, size: int | str | None = ..., when_full: WhenFull | None = ...,
        exclusive: bool | None = ..., mode: int | None = ..., lifetime: Lifetime | None = ...,
        idle_ttl: float | str | None = ..., stall_timeout: float | str | None = ..., notifier: Notifier | None = ...,
        type: None = ..., codec: CodecName = ..., require_subscribers: bool = ...,
    ) -> Opener[Publisher[Any]]: ...  # fmt: skip

    @overload
    def publisher(
        self, topic: str, *, size: int | str | None = ..., when_full: WhenFull | None = ...,
        exclusive: bool | None = ..., mode: int | None = ..., lifetime: Lifetime | None = ...,
        idle_ttl: float | str | None = ..., stall_timeout: float | str | None = ..., notifier: Notifier | None = ...,
        type: type[T], codec: CodecName = ..., require_subscribers: bool = ...,
    ) -> Opener[Publisher[T]]: ...  # fmt: skip

    @overload
    def publisher(
        self, topic: str, *, size: int | str | None = ..., when_full: WhenFull | None = ...,
        exclusive: bool | None = ..., mode: int | None = ..., lifetime: Lifetime | None = ...,
        idle_ttl: float | str | None = ..., stall_timeout: float | str | None = ..., notifier: Notifier | None = ...,
        type: TypeForm[T], codec: CodecName = ..., require_subscribers: bool = ...,
    ) -> Opener[Publisher[T]]: ...  # fmt: skip

    def publisher(
        self,
        topic: str,
        *,
        size: int | str | None = None,
        when_full: WhenFull | None = None,
        exclusive: bool | None = None,
        mode: int | None = None,
        lifetime: Lifetime | None = None,
        idle_ttl: float | str | None = None,
        stall_timeout: float | str | None = None,
        notifier: Notifier | None = None,
        type: Any = None,
        codec: CodecName = "msgpack",
        require_subscribers: bool = False,
    ) -> Opener[Publisher[Any]]:
        """Declare ``topic`` (see ``topic`` for its options) and open it for publishing.

        ``codec`` is ``"msgpack"`` or ``"raw"`` (bytes); ``type`` a ``msgspec.Struct`` class whose instances are
        published, or another type that msgspec knows, such as ``int | str``.
        Raises as ``topic`` does, and ``TopicBusy`` where an exclusive topic has a publisher.

        ``require_subscribers`` makes it a pipe's writing end: while no subscriber has joined the topic, and as soon as
        the last has left or died, publishing raises ``NoSubscribers``, and nothing is published. To begin, await
        ``wait_for_subscribers``. Each publish then looks at the subscribers' slots, in nanoseconds; one that was not
        told to close is found dead by the daemon, or, while that is away, by the publisher itself.
        """
        options = make_options(size, when_full, exclusive, mode, lifetime, idle_ttl, stall_timeout, notifier)
        opening = self._open_publisher(topic, make_codec(codec, type), options, require_subscribers=require_subscribers)
        return Opener(opening, "client.publisher(...)", "publisher")

    @overload
    def subscribe(
        self, topic: str, *, start: Start = ..., tethered: bool = ..., type: None = ..., codec: CodecName = ...,
        spin: float = ..., until_closed: bool = ...,
    ) -> Opener[Subscription[Any]]: ...  # fmt: skip

    @overload
    def subscribe(
        self, topic: str, *, start: Start = ..., tethered: bool = ..., type: type[T], codec: CodecName = ...,
        spin: float = ..., until_closed: bool = ...,
    ) -> Opener[Subscription[T]]: ...  # fmt: skip

    @overload
    def subscribe(
        self, topic: str, *, start: Start = ..., tethered: bool = ..., type: TypeForm[T], codec: CodecName = ...,
        spin: float = ..., until_closed: bool = ...,
    ) -> Opener[Subscription[T]]: ...  # fmt: skip

    def subscribe(
        self,
        topic: str,
        *,
        start: Start = "new",
        tethered: bool = True,
        type: Any = None,
        codec: CodecName = "msgpack",
        spin: float = 0.0,
        until_closed: bool = False,
    ) -> Opener[Subscription[Any]]:
        """Subscribe to a topic, or to all that match a pattern (``*`` one token, ``>`` the rest).

        Joins the topics that exist before it returns, each at ``start``: ``"new"``, ``"last"``, ``"all"``, a sequence
        number (one already discarded starts at the oldest, and ``lost`` counts the rest) or an aware datetime. Topics
        created later are joined from their first record. ``tethered`` holds publishers of a `wait` topic back.
        ``spin`` is for how many seconds a read looks again on every turn of the loop before it sleeps: latency for
        CPU.

        ``until_closed`` reads the topic like a pipe: once it has had a publisher, and all its publishers have closed or
        are proven dead, and all that they published was read, ``async for`` ends and the other reads raise
        ``TopicClosed``. A topic without a publisher is waited for. With ``"new"`` only publishers count that are there
        when this returns, or come later; otherwise also those that came and went before, so that ``"all"`` reads what
        they left and ends. (If they left nothing, only the daemon of that time knew of them.) Whoever is merely cut off
        from the daemon has not gone; while the daemon is away nobody is told that anybody has. For a name, not a
        pattern (``InvalidOption``).

        Raises ``InvalidName``, ``InvalidOption``, ``PermissionDenied``, ``LimitExceeded``, ``Disconnected``. With a
        pattern, topics that may not be read are left out.
        """
        if not 0 <= spin < float("inf"):
            raise InvalidOption(f"spin cannot be {spin} seconds", "0 to never spin, else a small number like 0.001")
        names.check_pattern(topic)
        if until_closed and names.is_pattern(topic):
            raise InvalidOption(
                f"a subscription to the pattern {topic!r} cannot end with the publishers: topics may always come",
                "subscribe to each topic by its name",
            )
        opening = self._open_subscription(
            topic,
            parse_start(start),
            make_codec(codec, type),
            tethered=tethered,
            until_closed=until_closed,
            spin_s=spin,
        )
        return Opener(opening, "client.subscribe(...)", "subscription")

    @overload
    async def latest(self, topic: str, *, type: None = ..., codec: CodecName = ...) -> _core.Record[Any] | None: ...

    @overload
    async def latest(self, topic: str, *, type: type[T], codec: CodecName = ...) -> _core.Record[T] | None: ...

    @overload
    async def latest(self, topic: str, *, type: TypeForm[T], codec: CodecName = ...) -> _core.Record[T] | None: ...

    async def latest(
        self,
        topic: str,
        *,
        type: Any = None,
        codec: CodecName = "msgpack",
    ) -> _core.Record[Any] | None:
        """The newest record of ``topic``; None if there is no record, or no topic. Takes nothing from any subscription.

        A request to the daemon the first time, afterwards a memory read (for the ``limits.LATEST_TOPICS_MAX`` topics
        last asked for, and those that are open here). Raises ``PermissionDenied``, ``CorruptTopic``, ``Disconnected``.
        """
        chosen = self._codec if type is None and codec == "msgpack" else make_codec(codec, type)
        self._hub.check_open()
        log = self._hub.find_log(topic)
        if log is None:
            log = await self._look(names.check_topic(topic))
        return None if log is None else log.newest(chosen.decode, chosen.explain)

    async def topics(self, pattern: str = ">") -> list[TopicInfo]:
        """All topics that match ``pattern`` and that this user may read, in the order of their names."""
        names.check_pattern(pattern)
        found: list[TopicInfo] = []
        after: str | None = ""
        while after is not None:
            message = protocol.ListTopics(id=self._next_id(), pattern=pattern, after=after)
            page = await self._hub.link.request(message, protocol.TopicList)
            found.extend(page.topics)
            after = page.next
        return found

    async def stat(self, topic: str) -> TopicStat | None:
        """Counters and participants of ``topic``; None if there is none. Raises ``PermissionDenied``,
        ``Disconnected``.
        """
        message = protocol.StatTopic(id=self._next_id(), topic=names.check_topic(topic))
        try:
            return (await self._hub.link.request(message, protocol.StatReply)).stat
        except NoSuchTopic:
            return None

    async def remove(self, topic: str) -> None:
        """Remove ``topic``. Its participants get ``TopicRemoved``, subscribers after what they have not read yet.

        Raises ``NoSuchTopic``, ``PermissionDenied``, ``Disconnected``.
        """
        message = protocol.RemoveTopic(id=self._next_id(), topic=names.check_topic(topic))
        await self._hub.link.request(message, protocol.Done)

    async def stop_daemon(self) -> None:
        """Tell the daemon to end; it then hangs up. Its topics stay, as their lifetimes say.

        For the daemon's own user and root (``PermissionDenied``). Raises ``Disconnected``.
        """
        await self._hub.link.request(protocol.Stop(id=self._next_id()), protocol.Done)

    async def close(self) -> None:
        """Close everything that was opened through this client, and hang up. Twice is fine.

        Cancelled meanwhile, it is closed all the same. ``BufferError`` within a ``reserve`` block; then that publisher
        stays.
        """
        await self._hub.close()

    async def _open_publisher(
        self, topic: str, codec: Codec, options: protocol.TopicOptions, *, require_subscribers: bool
    ) -> Publisher[Any]:
        hub = self._hub
        message = protocol.OpenPublisher(id=self._next_id(), topic=names.check_topic(topic), options=options)
        granted, bells = await hub.link.open(message, protocol.PublisherGranted)
        with hub.taking(granted, bells):
            seat = PublisherSeat(hub, granted, bells, require_subscribers=require_subscribers)
        return Publisher(hub, seat, codec)

    async def _open_subscription(
        self, pattern: str, seek: Seek, codec: Codec, *, tethered: bool, until_closed: bool, spin_s: float
    ) -> Subscription[Any]:
        self._hub.check_open()
        subscription: Subscription[Any] = Subscription(
            self._hub, pattern, seek, codec, tethered=tethered, until_closed=until_closed, spin_s=spin_s
        )
        try:
            await subscription.open()
        except BaseException:
            subscription.release()
            raise
        return subscription

    async def _look(self, topic: str) -> _core.Log | None:
        message = protocol.Peek(id=self._next_id(), topic=topic)
        try:
            info = (await self._hub.link.request(message, protocol.TopicReply)).topic
            self._hub.check_open()
            return self._hub.looks.keep(info)
        except (NoSuchTopic, SegmentInvalid, SegmentNotFound, SegmentRemoved):
            return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        hub: Hub | None = getattr(self, "_hub", None)
        if hub is not None and not (hub.closed or hub.forked):
            give_back_dropped(self, hub.loop, hub.drop)

    def __repr__(self) -> str:
        return f"<Client of instance {self.instance!r}, {self.state}>"
