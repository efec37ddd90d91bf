"""What the registry asks the daemon to do, as values.

The daemon performs effects in the order given, before it feeds the next event in. The registry never asks how it went:
where that matters, the daemon tells it by an event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from shmd.policy import Credentials, TopicSettings
    from shmd.protocol import Outbound, PublisherStat, TopicInfo
    from shmd.registry.entities import ParticipantKind, Seat
    from shmd.segment_policy import SegmentSettings


@dataclass(frozen=True, slots=True)
class Send:
    """Send ``message``, with the bells of the topic ``bells_of`` or of the segment ``segment`` if one is named."""

    client: int
    message: Outbound
    bells_of: str | None = None
    segment: str | None = None


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the connection; the registry no longer counts on it. No ``reason``: as was to be expected."""

    client: int
    reason: str


@dataclass(frozen=True, slots=True)
class Rebind:
    """The connection so far known as ``connection`` is ``client``'s from now on, in place of an earlier one."""

    connection: int
    client: int


@dataclass(frozen=True, slots=True)
class AwaitResume:
    """Answer with ``resume_overdue`` when the time in which a client may come back is over."""

    client: int
    absence: int


@dataclass(frozen=True, slots=True)
class IgnoreDeath:
    """The client holds nothing any more, and will not come back: its process need not be watched."""

    client: int


@dataclass(frozen=True, slots=True)
class Participant:
    """One publisher, subscriber, kept slot or user of a segment, with all that a later daemon must know of it."""

    topic_id: bytes
    """Of its topic, or of its segment."""
    kind: ParticipantKind
    client: int
    handle: int
    credentials: Credentials
    name: str
    pid_namespace: int
    number: int = 0
    """Of a publisher."""
    seat: Seat | None = None
    tethered: bool = False


@dataclass(frozen=True, slots=True)
class NoteParticipant:
    """Write it down before anybody is told."""

    participant: Participant


@dataclass(frozen=True, slots=True)
class ForgetParticipant:
    client: int
    handle: int
    topic_id: bytes


@dataclass(frozen=True, slots=True)
class AdoptedTopic:
    """A topic that a former daemon left. No incarnation up to ``incarnation_max`` may be granted again.

    ``published``: whether it has ever had a record, and so a publisher.
    """

    info: TopicInfo
    declared_by: int
    incarnation_max: int
    published: bool


@dataclass(frozen=True, slots=True)
class CreateTopic:
    """Make segments and bells; answer with ``topic_created`` or ``topic_failed``."""

    topic: str
    settings: TopicSettings
    declared_by: int


@dataclass(frozen=True, slots=True)
class DestroyTopic:
    topic: str


@dataclass(frozen=True, slots=True)
class AwaitIdle:
    """Answer with ``topic_idle`` after ``after_s``: the topic has no participant as of now."""

    topic: str
    idleness: int
    after_s: float


@dataclass(frozen=True, slots=True)
class SlotHolder:
    """A slot and who sits there."""

    slot: int
    incarnation: int
    name: str
    pid: int
    uid: int


@dataclass(frozen=True, slots=True)
class LookForStall:
    """A publisher of the topic waits; answer with ``stalled`` if a subscriber is to lose its tether for it.

    ``pid_namespaces``: those of its publishers, in whose terms the lock names its owner.
    """

    topic: str
    subscribers: tuple[SlotHolder, ...]
    pid_namespaces: frozenset[int]


@dataclass(frozen=True, slots=True)
class Untether:
    topic: str
    slot: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class GrantSlot:
    """Give the slot to a new subscriber, its cursor at position 0.

    ``live``: that is where it begins, so that it counts as a subscriber at once, and holds publishers back there if
    ``tethered``. Otherwise it counts from when it has found its place.
    """

    topic: str
    slot: int
    incarnation: int
    live: bool
    tethered: bool


@dataclass(frozen=True, slots=True)
class ReleaseSlot:
    topic: str
    slot: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class AdmitPublisher:
    """One is about to be granted; it needs a FIFO of its own. On topics that have them only."""

    topic: str
    number: int


@dataclass(frozen=True, slots=True)
class DismissPublisher:
    topic: str
    number: int


@dataclass(frozen=True, slots=True)
class RingBells:
    """Wake everybody who sleeps on this topic: one who could have woken them is gone."""

    topic: str


@dataclass(frozen=True, slots=True)
class ReportStat:
    """Answer ``request_id`` with what the segments tell about the topic and about these participants."""

    client: int
    request_id: int
    topic: str
    publishers: tuple[PublisherStat, ...]
    subscribers: tuple[SlotHolder, ...]


@dataclass(frozen=True, slots=True)
class CreateSegment:
    """Make the segment, or adopt it; answer with ``segment_created`` or ``segment_failed``."""

    segment: str
    settings: SegmentSettings
    declared_by: Credentials


@dataclass(frozen=True, slots=True)
class DestroySegment:
    """Remove what is there of the segment: somebody may have been quicker."""

    segment: str


@dataclass(frozen=True, slots=True)
class ChangeSegment:
    """Give the segment this owner, group and mode; tell by ``segment_seen``, and answer ``request_id``."""

    client: int
    request_id: int
    segment: str
    uid: int
    gid: int
    mode: int


@dataclass(frozen=True, slots=True)
class ReportSegment:
    """Answer ``request_id`` with what the kernel knows about the segment."""

    client: int
    request_id: int
    segment: str


@dataclass(frozen=True, slots=True)
class StopDaemon:
    """``client``, who may, has asked for it."""

    client: int


Effect: TypeAlias = (
    Send
    | HangUp
    | Rebind
    | AwaitResume
    | IgnoreDeath
    | NoteParticipant
    | ForgetParticipant
    | CreateTopic
    | DestroyTopic
    | AwaitIdle
    | LookForStall
    | Untether
    | GrantSlot
    | ReleaseSlot
    | AdmitPublisher
    | DismissPublisher
    | RingBells
    | ReportStat
    | CreateSegment
    | DestroySegment
    | ChangeSegment
    | ReportSegment
    | StopDaemon
)
