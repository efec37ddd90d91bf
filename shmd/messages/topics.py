"""Messages about topics: requests first, then replies, then events; before them what they tell about a topic."""

from __future__ import annotations

from typing import Annotated

import msgspec

from shmd import limits
from shmd.messages.words import (
    U32,
    U63,
    Descriptors,
    Id16,
    Lifetime,
    Message,
    Mode,
    Notifier,
    RequestId,
    Seconds,
    TopicName,
    WhenFull,
)


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
    notifier: Notifier | None = None
    """How sleepers are woken: `eventfd` (the default), or `fifo`, for those who cannot be sent descriptors."""


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
    notifier: Notifier = "eventfd"
    fifo_dir: Annotated[str, msgspec.Meta(max_length=limits.FIFO_DIR_BYTES_MAX)] = ""
    """`fifo`: absolute path of the directory in which each participant has one, ``r`` and its slot or ``p`` and its
    number.
    """


class SubscriberStat(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    pid: int
    uid: int
    slot: int
    tethered: bool
    lag_bytes: int
    lost: int
    stopped: bool = False
    """Its process is stopped, by a signal or a debugger, as the daemon sees it; so too the next two."""


class PublisherStat(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    pid: int
    uid: int
    publisher: int
    stopped: bool = False


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
    lock_owner_stopped: bool = False


class Declare(Message, frozen=True, kw_only=True, tag="declare"):
    """Make the topic exist with these options, or say why not. Reply: ``TopicReply``."""

    id: RequestId
    topic: TopicName
    options: TopicOptions = TopicOptions()


class OpenPublisher(Message, frozen=True, kw_only=True, tag="publish"):
    """Declare and open for publishing. Reply: ``PublisherGranted`` with two descriptors (record bell, space bell), or
    with none if the topic's notifier is `fifo`: then the publisher's FIFO is there.
    """

    id: RequestId
    topic: TopicName
    options: TopicOptions = TopicOptions()


class OpenSubscriber(Message, frozen=True, kw_only=True, tag="subscribe"):
    """Open an existing topic for reading. Reply: ``SubscriberGranted`` with the same two descriptors, or a FIFO.

    ``watch`` is the handle of the client's own watch that announced the topic, if one did: where that watch was waiting
    when the topic was created, the grant comes with a cursor already standing at position 0. ``tethered`` is the wish
    to hold publishers back; it has no effect on a `discard-old` topic.
    """

    id: RequestId
    topic: TopicName
    watch: RequestId | None = None
    tethered: bool = True


class Joined(Message, frozen=True, kw_only=True, tag="joined"):
    """The subscriber ``handle`` stands where it begins: whatever is published from now on reaches it.

    Only now does it count for ``WaitSubscribers``: the grant alone came before it found its place. One that was granted
    ``from_start`` counts from the grant. Reply: ``Done``, also when there is no such handle (any more).
    """

    id: RequestId
    handle: RequestId


class WatchPublishers(Message, frozen=True, kw_only=True, tag="watch-publishers"):
    """Tell the subscriber ``handle`` by ``PublishersGone``, once, when its topic has had a publisher and has none left.

    Publishers count that were there when the subscriber was granted its slot, or came later; with ``past`` also those
    that had gone before. Reply: ``Done``, also when there is no such handle (any more). It ends with the connection.
    """

    id: RequestId
    handle: RequestId
    past: bool = False


class Peek(Message, frozen=True, kw_only=True, tag="peek"):
    """Attach an existing topic's log to look at its newest record: no slot, no bells. Reply: ``TopicReply``."""

    id: RequestId
    topic: TopicName


class Watch(Message, frozen=True, kw_only=True, tag="watch"):
    """Announce every topic that matches ``pattern`` (and that this peer may read), now and in future.

    First one ``TopicAdded`` with ``existing=True`` for each that exists, then the reply ``Done``, then one for each
    that is created. ``tethered``: for topics created later, a slot and cursor at position 0 are kept for this watch
    until the client opens it (`OpenSubscriber.watch`) or goes away.
    """

    id: RequestId
    pattern: TopicName
    tethered: bool = True


class ReportStall(Message, frozen=True, kw_only=True, tag="stall"):
    """A publisher of this client has waited long for room, or for the lock, and the daemon shall look who is to blame.

    It does what the topic's ``stall_timeout_s`` and a proof of death allow. Reply: ``Done`` once it has looked.
    """

    id: RequestId
    topic: TopicName


class ListTopics(Message, frozen=True, kw_only=True, tag="list"):
    """Topics matching ``pattern`` after the name ``after``, in order of name. Reply: ``TopicList``."""

    id: RequestId
    pattern: TopicName = ">"
    after: Annotated[str, msgspec.Meta(max_length=limits.TOPIC_NAME_BYTES_MAX)] = ""


class StatTopic(Message, frozen=True, kw_only=True, tag="stat"):
    """Reply: ``StatReply``."""

    id: RequestId
    topic: TopicName


class RemoveTopic(Message, frozen=True, kw_only=True, tag="remove"):
    """Remove the topic and its segments; participants get ``TopicRemoved``. Reply: ``Done``."""

    id: RequestId
    topic: TopicName


class WaitSubscribers(Message, frozen=True, kw_only=True, tag="wait-subscribers"):
    """Reply ``Done`` as soon as at least ``count`` subscribers have joined the topic. ``Cancel`` ends the wait."""

    id: RequestId
    topic: TopicName
    count: Annotated[int, msgspec.Meta(ge=0, le=limits.SUBSCRIBERS_PER_TOPIC_MAX)]


class TopicReply(Message, frozen=True, kw_only=True, tag="topic"):
    id: RequestId
    topic: TopicInfo


class PublisherGranted(Message, frozen=True, kw_only=True, tag="publisher"):
    id: RequestId
    topic: TopicInfo
    publisher: U32
    """The number this publisher writes into its records; unique within the instance's life."""
    fds: Descriptors = 2


class SubscriberGranted(Message, frozen=True, kw_only=True, tag="subscriber"):
    id: RequestId
    topic: TopicInfo
    slot: Annotated[int, msgspec.Meta(ge=0, lt=limits.SUBSCRIBERS_PER_TOPIC_MAX)]
    incarnation: U32
    from_start: bool
    """The cursor already stands (tethered, if asked for) at position 0: this watch waited for the topic's creation."""
    fds: Descriptors = 2


class TopicList(Message, frozen=True, kw_only=True, tag="topics"):
    id: RequestId
    topics: tuple[TopicInfo, ...]
    next: str | None = None
    """Name to ask after for the next page; None: this was the last."""


class StatReply(Message, frozen=True, kw_only=True, tag="stat-reply"):
    id: RequestId
    stat: TopicStat


class TopicAdded(Message, frozen=True, kw_only=True, tag="topic-added"):
    watch: RequestId
    topic: TopicName
    existing: bool


class TopicGone(Message, frozen=True, kw_only=True, tag="topic-gone"):
    """The topic was removed. Sent to every client that has it open, watches it or peeked at it."""

    topic: TopicName
    topic_id: Id16


class PublishersGone(Message, frozen=True, kw_only=True, tag="publishers-gone"):
    """All publishers have closed or are proven dead: what the subscriber ``handle`` of this client finds in the log
    when it hears of it is all that they published.
    """

    topic: TopicName
    handle: RequestId


class Untethered(Message, frozen=True, kw_only=True, tag="untethered"):
    """The subscriber ``handle`` of this client held publishers back for the topic's ``stall_timeout_s``, and no longer
    does: it keeps its slot, and may now lose records.
    """

    topic: TopicName
    handle: RequestId
