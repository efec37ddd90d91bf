"""The control protocol, sans-IO: bytes to typed messages and back. One message per SEQPACKET packet, msgpack maps.

    client                                daemon
      │ hello ───────────────────────────▶ │   first, once
      │ ◀──────────────────────── welcome  │
      │ declare / publish / subscribe /    │   each request carries an ``id`` that the client chose;
      │ watch / list / stat / … ─────────▶ │   each reply echoes it
      │ ◀── topic-added, topic-removed, …  │   events carry no ``id``
      │ close ───────────────────────────▶ │
      │ bye ─────────────────────────────▶ │   last; without it the client is only *absent*, and may resume

The id of the request that opened something (publish, subscribe, watch) is that thing's **handle** from then on.

A client that lost its connection, for instance because the daemon was restarted, connects again and says so in its
``hello``. If it may **resume**, it has its number and its publishers and subscribers as before, goes on counting its
request ids, and asks for each handle's bells, which may be new. Watches end with the connection: it watches again.

``decode_request`` and ``decode_reply`` give a message or raise ``ProtocolError``, whatever the bytes are; nothing else.
The error names the field. Descriptors travel beside a packet, never in it; ``fds`` on a reply says how many to expect.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias, TypeVar, Union

import msgspec

from shmd import limits
from shmd.errors import ProtocolError, ShmdError

VERSION_MAJOR: Final = 1
"""Another major version is refused."""
VERSION_MINOR: Final = 0
"""Additions only: a peer of any minor version understands the rest."""

WhenFull: TypeAlias = Literal["discard-old", "wait"]
Lifetime: TypeAlias = Literal["os", "attached"]
Notifier: TypeAlias = Literal["eventfd"]

RequestId: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
TopicName: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.TOPIC_NAME_BYTES_MAX)]
ClientName: TypeAlias = Annotated[str, msgspec.Meta(max_length=limits.CLIENT_NAME_BYTES_MAX)]
U32: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
U63: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Mode: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=0o777)]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=limits.TOPIC_TIMEOUT_S_MAX)]
Id16: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """Base of all messages: a msgpack map whose ``type`` names the message."""


class TopicOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a client asks of a topic. None means: no opinion (matches what exists; the default when it is created)."""

    size_bytes: U63 | None = None
    when_full: WhenFull | None = None
    exclusive: bool | None = None
    mode: Mode | None = None
    lifetime: Lifetime | None = None
    """`os` (the default): stays until it is removed. `attached`: goes with its last participant."""
    idle_ttl_s: Seconds | None = None
    """Removed once it has had no participant for so long."""
    stall_timeout_s: Seconds | None = None
    """A subscriber that has held publishers back for so long without reading loses its tether, and is told."""


class TopicInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a participant needs to attach a topic and to check that it attached the right one."""

    name: TopicName
    topic_id: Id16
    log_id: U32
    log_key: U32
    ctl_id: U32
    ctl_key: U32
    size_bytes: U63
    when_full: WhenFull
    exclusive: bool
    mode: Mode
    uid: U32
    gid: U32
    created_ns: U63
    hostile: bool = False
    """Participants may have different uids: sleepers look again by themselves (DESIGN: doorbells)."""
    lifetime: Lifetime = "os"
    """`attached`: both keys are 0, for the segments are attached by their ids alone."""
    idle_ttl_s: Seconds | None = None
    stall_timeout_s: Seconds | None = None


class SubscriberStat(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    pid: int
    uid: int
    slot: int
    tethered: bool
    lag_bytes: int
    lost: int


class PublisherStat(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    pid: int
    uid: int
    publisher: int


class TopicStat(msgspec.Struct, frozen=True, kw_only=True):
    """One topic as ``client.stat`` shows it. Counters are since creation; ``records`` is how many the log holds now."""

    topic: TopicInfo
    head: int
    tail: int
    first_seq: int
    last_seq: int
    last_time_ns: int
    published: int
    published_bytes: int
    lock_owner_tid: int
    takeovers: int
    publishers: tuple[PublisherStat, ...]
    subscribers: tuple[SubscriberStat, ...]
    more_participants: int = 0
    """Participants left out because the message would have become too long."""


# --- requests: client to daemon ---------------------------------------------------------------------------------------


class Hello(_Message, frozen=True, kw_only=True, tag="hello"):
    id: RequestId
    major: U32
    minor: U32
    name: ClientName = ""
    ipc_namespace: U63 = 0
    pid_namespace: U63 = 0
    resume: U63 = 0
    """The number that this process's lost connection had; 0: begin anew."""


class Declare(_Message, frozen=True, kw_only=True, tag="declare"):
    """Make the topic exist with these options, or say why not. Reply: ``TopicReply``."""

    id: RequestId
    topic: TopicName
    options: TopicOptions = TopicOptions()


class OpenPublisher(_Message, frozen=True, kw_only=True, tag="publish"):
    """Declare and open for publishing. Reply: ``PublisherGranted`` with two descriptors (record bell, space bell)."""

    id: RequestId
    topic: TopicName
    options: TopicOptions = TopicOptions()


class OpenSubscriber(_Message, frozen=True, kw_only=True, tag="subscribe"):
    """Open an existing topic for reading. Reply: ``SubscriberGranted`` with the same two descriptors.

    ``watch`` is the handle of the client's own watch that announced the topic, if one did: where that watch was waiting
    when the topic was created, the grant comes with a cursor already standing at position 0. ``tethered`` is the wish
    to hold publishers back; it has no effect on a `discard-old` topic.
    """

    id: RequestId
    topic: TopicName
    watch: RequestId | None = None
    tethered: bool = True


class Joined(_Message, frozen=True, kw_only=True, tag="joined"):
    """The subscriber ``handle`` stands where it begins: whatever is published from now on reaches it.

    Only now does it count for ``WaitSubscribers``: the grant alone came before it found its place. One that was granted
    ``from_start`` counts from the grant. Reply: ``Done``, also when there is no such handle (any more).
    """

    id: RequestId
    handle: RequestId


class Peek(_Message, frozen=True, kw_only=True, tag="peek"):
    """Attach an existing topic's log to look at its newest record: no slot, no bells. Reply: ``TopicReply``."""

    id: RequestId
    topic: TopicName


class Watch(_Message, frozen=True, kw_only=True, tag="watch"):
    """Announce every topic that matches ``pattern`` (and that this peer may read), now and in future.

    First one ``TopicAdded`` with ``existing=True`` for each that exists, then the reply ``Done``, then one for each
    that is created. ``tethered``: for topics created later, a slot and cursor at position 0 are kept for this watch
    until the client opens it (`OpenSubscriber.watch`) or goes away.
    """

    id: RequestId
    pattern: TopicName
    tethered: bool = True


class Close(_Message, frozen=True, kw_only=True, tag="close"):
    """Give back what ``handle`` stands for. Reply: ``Done``, also when there is no such handle (any more)."""

    id: RequestId
    handle: RequestId


class Resume(_Message, frozen=True, kw_only=True, tag="resume"):
    """The bells, as they are now, of a publisher or subscriber that this client holds since an earlier connection.

    Reply: ``Resumed`` with two descriptors; refused with ``no-such-topic`` if the handle or its topic is gone.
    """

    id: RequestId
    handle: RequestId


class Bye(_Message, frozen=True, kw_only=True, tag="bye"):
    """Give everything back at once, and do not wait for this client to resume. Reply: ``Done``, then a hang-up."""

    id: RequestId


class ReportStall(_Message, frozen=True, kw_only=True, tag="stall"):
    """A publisher of this client has waited long for room, or for the lock, and the daemon shall look who is to blame.

    It does what the topic's ``stall_timeout_s`` and a proof of death allow. Reply: ``Done`` once it has looked.
    """

    id: RequestId
    topic: TopicName


class Stop(_Message, frozen=True, kw_only=True, tag="stop"):
    """End the daemon; topics stay as their lifetimes say. For its own user and root. Reply: ``Done``, and a hang-up."""

    id: RequestId


class ListTopics(_Message, frozen=True, kw_only=True, tag="list"):
    """Topics matching ``pattern`` after the name ``after``, in order of name. Reply: ``TopicList``."""

    id: RequestId
    pattern: TopicName = ">"
    after: Annotated[str, msgspec.Meta(max_length=limits.TOPIC_NAME_BYTES_MAX)] = ""


class StatTopic(_Message, frozen=True, kw_only=True, tag="stat"):
    """Reply: ``StatReply``."""

    id: RequestId
    topic: TopicName


class RemoveTopic(_Message, frozen=True, kw_only=True, tag="remove"):
    """Remove the topic and its segments; participants get ``TopicRemoved``. Reply: ``Done``."""

    id: RequestId
    topic: TopicName


class WaitSubscribers(_Message, frozen=True, kw_only=True, tag="wait-subscribers"):
    """Reply ``Done`` as soon as at least ``count`` subscribers have joined the topic. ``Cancel`` ends the wait."""

    id: RequestId
    topic: TopicName
    count: Annotated[int, msgspec.Meta(ge=0, le=limits.SUBSCRIBERS_PER_TOPIC_MAX)]


class Cancel(_Message, frozen=True, kw_only=True, tag="cancel"):
    """Forget the request ``target``: no reply to it will come if none was sent, and what it opened is closed.

    Has no reply itself.
    """

    id: RequestId
    target: RequestId


# --- replies and events: daemon to client -----------------------------------------------------------------------------


class Welcome(_Message, frozen=True, kw_only=True, tag="welcome"):
    id: RequestId
    major: U32
    minor: U32
    client: U63
    instance: str
    instance_id: Id16
    ipc_namespace: U63
    pid: int
    roster_id: U32
    """Id of the segment that says who takes part in what; to be attached read-only."""
    resumed: bool = False
    """``client`` is the number asked for, with all publishers and subscribers that it still holds."""


class Done(_Message, frozen=True, kw_only=True, tag="done"):
    id: RequestId


class Refused(_Message, frozen=True, kw_only=True, tag="refused"):
    """``code`` is that of a class in ``errors``; id 0 where the request could not be read."""

    id: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    code: str
    message: str
    hint: str | None = None


class TopicReply(_Message, frozen=True, kw_only=True, tag="topic"):
    id: RequestId
    topic: TopicInfo


class PublisherGranted(_Message, frozen=True, kw_only=True, tag="publisher"):
    id: RequestId
    topic: TopicInfo
    publisher: U32
    """The number this publisher writes into its records; unique within the instance's life."""
    fds: Annotated[int, msgspec.Meta(ge=0, le=limits.DESCRIPTORS_PER_MESSAGE_MAX)] = 2


class SubscriberGranted(_Message, frozen=True, kw_only=True, tag="subscriber"):
    id: RequestId
    topic: TopicInfo
    slot: Annotated[int, msgspec.Meta(ge=0, lt=limits.SUBSCRIBERS_PER_TOPIC_MAX)]
    incarnation: U32
    from_start: bool
    """The cursor already stands (tethered, if asked for) at position 0: this watch waited for the topic's creation."""
    fds: Annotated[int, msgspec.Meta(ge=0, le=limits.DESCRIPTORS_PER_MESSAGE_MAX)] = 2


class Resumed(_Message, frozen=True, kw_only=True, tag="resumed"):
    id: RequestId
    fds: Annotated[int, msgspec.Meta(ge=0, le=limits.DESCRIPTORS_PER_MESSAGE_MAX)] = 2


class TopicList(_Message, frozen=True, kw_only=True, tag="topics"):
    id: RequestId
    topics: tuple[TopicInfo, ...]
    next: str | None = None
    """Name to ask after for the next page; None: this was the last."""


class StatReply(_Message, frozen=True, kw_only=True, tag="stat-reply"):
    id: RequestId
    stat: TopicStat


class TopicAdded(_Message, frozen=True, kw_only=True, tag="topic-added"):
    watch: RequestId
    topic: TopicName
    existing: bool


class TopicGone(_Message, frozen=True, kw_only=True, tag="topic-gone"):
    """The topic was removed. Sent to every client that has it open, watches it or peeked at it."""

    topic: TopicName
    topic_id: Id16


class Untethered(_Message, frozen=True, kw_only=True, tag="untethered"):
    """The subscriber ``handle`` of this client held publishers back for the topic's ``stall_timeout_s``, and no longer
    does: it keeps its slot, and may now lose records.
    """

    topic: TopicName
    handle: RequestId


Request: TypeAlias = Union[  # noqa: UP007 - msgspec needs a runtime union
    Hello,
    Declare,
    OpenPublisher,
    OpenSubscriber,
    Joined,
    Peek,
    Watch,
    Close,
    ListTopics,
    StatTopic,
    RemoveTopic,
    WaitSubscribers,
    Cancel,
    Resume,
    ReportStall,
    Bye,
    Stop,
]
Reply: TypeAlias = Union[  # noqa: UP007
    Welcome, Done, Refused, TopicReply, PublisherGranted, SubscriberGranted, Resumed, TopicList, StatReply
]
Event: TypeAlias = Union[TopicAdded, TopicGone, Untethered]  # noqa: UP007
Outbound: TypeAlias = Union[Reply, Event]  # noqa: UP007

_T = TypeVar("_T")
_QUOTE_MAX: Final = 200

_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_reply_decoder: msgspec.msgpack.Decoder[Outbound] = msgspec.msgpack.Decoder(Outbound)


def encode(message: Request | Outbound) -> bytes:
    """The packet for ``message``. ``ProtocolError`` if it is over ``limits.MESSAGE_BYTES_MAX``."""
    packet = _encoder.encode(message)
    if len(packet) > limits.MESSAGE_BYTES_MAX:
        raise ProtocolError(
            f"a {type(message).__name__} of {len(packet)} bytes is over the limit of {limits.MESSAGE_BYTES_MAX}"
        )
    return packet


def decode_request(packet: bytes) -> Request:
    """The request in ``packet``; ``ProtocolError``, naming the field, if there is none."""
    return _decode(_request_decoder, packet)


def decode_reply(packet: bytes) -> Outbound:
    """The reply or event in ``packet``; ``ProtocolError``, naming the field, if there is none."""
    return _decode(_reply_decoder, packet)


def _decode(decoder: msgspec.msgpack.Decoder[_T], packet: bytes) -> _T:
    if len(packet) > limits.MESSAGE_BYTES_MAX:
        raise ProtocolError(f"a packet of {len(packet)} bytes is over the limit of {limits.MESSAGE_BYTES_MAX}")
    try:
        return decoder.decode(packet)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # It quotes what it did not expect, which may be as long as the packet.
        raise ProtocolError(f"not a message of this protocol: {str(error)[:_QUOTE_MAX]}") from None


def refusal(request_id: int, error: ShmdError) -> Refused:
    """The reply that carries ``error`` to the peer."""
    return Refused(id=request_id, code=error.code, message=error.message, hint=error.hint)
