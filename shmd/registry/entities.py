"""Clients, topics and what ties them together.

    Client ── handles ──▶ Publisher | Subscriber | Watch | SegmentUse   by the id of the request that opened it
       │                      │            │         ┊          │
       ├─ kept ───▶ Topic ────┴────────────┴─────────┘        Segment   seats kept for a watch since it was created
       │            publishers, subscribers, kept, waits      users     by (client, request id)
       └─ pending ▶ Creation.waiting, Topic.waits                       what waits for a creation, or for subscribers

A pair (client, request id) names a waiting request and whatever it opened, in both directions, so that close, cancel
and a client's departure are each a look-up.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, Literal, TypeAlias, TypeVar

from shmd import limits

if TYPE_CHECKING:
    from shmd.policy import Credentials, Ownership, TopicSettings
    from shmd.protocol import Request, TopicInfo
    from shmd.segment_policy import SegmentSettings

INCARNATION_MAX: Final = 2**30 - 1
"""A slot's word keeps 30 bits of it; a slot that has used them all is never given out again."""
PUBLISHER_NUMBER_MAX: Final = 2**32 - 1
"""A record's header keeps 32 bits of it."""

S = TypeVar("S", bound="TopicSettings | SegmentSettings")
Key: TypeAlias = tuple[int, int]
"""(client, request id)."""
ParticipantKind: TypeAlias = Literal["publisher", "subscriber", "kept", "segment"]
"""``kept``: a slot and cursor that wait for the client of a watch to open the topic. ``segment``: a segment's user."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """How much of everything one daemon gives out."""

    clients: int = limits.CLIENTS_MAX
    clients_per_uid: int = limits.CLIENTS_PER_UID_MAX
    topics: int = limits.TOPICS_MAX
    segments: int = limits.SEGMENTS_MAX
    total_bytes: int = limits.TOTAL_BYTES_DEFAULT
    file_bytes: int = limits.FILE_BYTES_DEFAULT
    subscribers_per_topic: int = limits.SUBSCRIBERS_PER_TOPIC_MAX
    handles_per_client: int = limits.HANDLES_PER_CLIENT_MAX
    requests_per_client: int = limits.REQUESTS_PER_CLIENT_MAX
    participants: int = limits.PARTICIPANTS_MAX
    protocol_errors: int = limits.PROTOCOL_ERRORS_MAX


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this daemon is. ``topic_overhead_bytes``: what a topic's segments take beyond its capacity."""

    instance: str
    instance_id: bytes
    credentials: Credentials
    ipc_namespace: int
    topic_overhead_bytes: int
    roster_id: int


@dataclass(frozen=True, slots=True)
class Seat:
    """A slot of a topic's ctl segment, and the incarnation that holds it."""

    slot: int
    incarnation: int


class Seats:
    """The slots of one topic. The lowest free one goes first: publishers scan up to the highest ever granted."""

    def __init__(self, count: int, incarnation_max: int = 0, taken: frozenset[int] = frozenset()) -> None:
        """``incarnation_max``: none up to it is given out again."""
        self._free = [slot for slot in range(count) if slot not in taken] if incarnation_max < INCARNATION_MAX else []
        self._incarnations = [incarnation_max] * count

    def take(self) -> Seat | None:
        """A slot with an incarnation that it never had before; None if all are taken."""
        if not self._free:
            return None
        slot = heapq.heappop(self._free)
        self._incarnations[slot] += 1
        return Seat(slot, self._incarnations[slot])

    def give_back(self, seat: Seat) -> None:
        if max(seat.incarnation, self._incarnations[seat.slot]) < INCARNATION_MAX:
            heapq.heappush(self._free, seat.slot)


@dataclass(frozen=True, slots=True)
class Publisher:
    topic: str
    number: int
    client: Client


@dataclass(frozen=True, slots=True)
class Subscriber:
    """``published_before``: how many publishers the topic had had, and lost, when this was granted."""

    topic: str
    seat: Seat
    client: Client
    published_before: int = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """A seat kept for a watch from the topic's creation until the client opens it."""

    seat: Seat
    client: Client


@dataclass(frozen=True, slots=True)
class Watch:
    pattern: str
    tethered: bool
    client: Client


@dataclass(frozen=True, slots=True)
class SegmentUse:
    """A raw segment that a client has open."""

    segment: str
    client: Client


Handle: TypeAlias = Publisher | Subscriber | Watch | SegmentUse


@dataclass(slots=True, eq=False)
class Client:
    """One process's connection, or what it holds until it connects again.

    ``pending``: its unanswered requests, each with the queue in which it has the place (client, id). ``kept``: by the
    watch's handle, topics in which it has a seat. ``absences``: how often its connection was lost.
    """

    number: int
    credentials: Credentials
    welcome: bool = False
    name: str = ""
    pid_namespace: int = 0
    protocol_errors: int = 0
    absences: int = 0
    handles: dict[int, Handle] = field(default_factory=dict)
    pending: dict[int, dict[Key, Request]] = field(default_factory=dict)
    kept: dict[int, set[str]] = field(default_factory=dict)
    peeked: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return f"{self.name!r} (pid {self.credentials.pid}, uid {self.credentials.uid})"


@dataclass(slots=True)
class Creation(Generic[S]):
    """What the daemon is making. ``creator`` is the request that caused it, the first of ``waiting``."""

    name: str
    settings: S
    creator: Key
    declared_by: int
    waiting: dict[Key, Request] = field(default_factory=dict)


@dataclass(slots=True)
class Topic:
    """One that exists. ``declared_by``: the uid that had it created. ``idleness``: how often it has become idle.

    ``publishers_had``: how many publishers it has had, those it has now among them; whoever came and went under a
    former daemon counts as one if there are records. ``endings``: by the keys of connected subscribers that want to be
    told of their end, more than how many publishers the topic must have had by then.
    """

    info: TopicInfo
    ownership: Ownership
    declared_by: int
    seats: Seats
    publishers: dict[Key, Publisher] = field(default_factory=dict)
    subscribers: dict[Key, Subscriber] = field(default_factory=dict)
    joined: set[Key] = field(default_factory=set)
    kept: dict[Key, Kept] = field(default_factory=dict)
    waits: dict[Key, Request] = field(default_factory=dict)
    endings: dict[Key, int] = field(default_factory=dict)
    publishers_had: int = 0
    idleness: int = 0

    @property
    def idle(self) -> bool:
        """Whether nobody takes part."""
        return not (self.publishers or self.subscribers or self.kept)
