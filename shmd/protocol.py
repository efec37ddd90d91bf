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

from typing import Final, TypeVar

import msgspec

from shmd import limits
from shmd.errors import ProtocolError, ShmdError
from shmd.messages import (
    Backing,
    Bye,
    Cancel,
    Close,
    Declare,
    Done,
    Event,
    Hello,
    Joined,
    Lifetime,
    ListSegments,
    ListTopics,
    Notifier,
    OpenPublisher,
    OpenSegment,
    OpenSubscriber,
    Outbound,
    Peek,
    PublisherGranted,
    PublishersGone,
    PublisherStat,
    Refused,
    RemoveSegment,
    RemoveTopic,
    Reply,
    ReportStall,
    Request,
    Resume,
    Resumed,
    SegmentCounters,
    SegmentGone,
    SegmentGranted,
    SegmentInfo,
    SegmentList,
    SegmentOptions,
    SegmentStatReply,
    SetSegment,
    StatReply,
    StatSegment,
    StatTopic,
    Stop,
    SubscriberGranted,
    SubscriberStat,
    Sync,
    TopicAdded,
    TopicGone,
    TopicInfo,
    TopicList,
    TopicOptions,
    TopicReply,
    TopicStat,
    Untethered,
    WaitSubscribers,
    Watch,
    WatchPublishers,
    Welcome,
    WhenFull,
)

__all__ = [
    "VERSION_MAJOR",
    "VERSION_MINOR",
    "Backing",
    "Bye",
    "Cancel",
    "Close",
    "Declare",
    "Done",
    "Event",
    "Hello",
    "Joined",
    "Lifetime",
    "ListSegments",
    "ListTopics",
    "Notifier",
    "OpenPublisher",
    "OpenSegment",
    "OpenSubscriber",
    "Outbound",
    "Peek",
    "PublisherGranted",
    "PublisherStat",
    "PublishersGone",
    "Refused",
    "RemoveSegment",
    "RemoveTopic",
    "Reply",
    "ReportStall",
    "Request",
    "Resume",
    "Resumed",
    "SegmentCounters",
    "SegmentGone",
    "SegmentGranted",
    "SegmentInfo",
    "SegmentList",
    "SegmentOptions",
    "SegmentStatReply",
    "SetSegment",
    "StatReply",
    "StatSegment",
    "StatTopic",
    "Stop",
    "SubscriberGranted",
    "SubscriberStat",
    "Sync",
    "TopicAdded",
    "TopicGone",
    "TopicInfo",
    "TopicList",
    "TopicOptions",
    "TopicReply",
    "TopicStat",
    "Untethered",
    "WaitSubscribers",
    "Watch",
    "WatchPublishers",
    "Welcome",
    "WhenFull",
    "decode_reply",
    "decode_request",
    "encode",
    "refusal",
]

VERSION_MAJOR: Final = 1
"""Another major version is refused."""
VERSION_MINOR: Final = 0
"""Additions only: a peer of any minor version understands the rest."""

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
