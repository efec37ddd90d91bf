"""A registry with a world around it: what its effects do to clients, topics and slots, checked as they come.

``World`` performs effects the way a daemon would, only in dictionaries, and asserts what must hold for each of them:
nobody who has gone is spoken to, a slot has one holder, an incarnation never returns, bells go with their topics, and
what is noted is exactly what was granted. ``restart`` begins a new registry with nothing but the notes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from shmd import protocol
from shmd.errors import ShmdError
from shmd.policy import Credentials
from shmd.registry import (
    AdmitPublisher,
    AdoptedTopic,
    AwaitIdle,
    AwaitResume,
    ChangeSegment,
    CreateSegment,
    CreateTopic,
    DestroySegment,
    DestroyTopic,
    DismissPublisher,
    ForgetParticipant,
    GrantSlot,
    HangUp,
    Identity,
    IgnoreDeath,
    LookForStall,
    NoteParticipant,
    Participant,
    Quotas,
    Rebind,
    Registry,
    ReleaseSlot,
    ReportSegment,
    ReportStat,
    RingBells,
    Send,
    StopDaemon,
    Untether,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmd.registry import Effect

OVERHEAD_BYTES = 100
_GRANTS = protocol.PublisherGranted | protocol.SubscriberGranted | protocol.SegmentGranted | protocol.Resumed
_COUNTERS = protocol.SegmentCounters.__struct_fields__
DAEMON = Credentials(uid=500, gid=500, pid=77)
IDENTITY = Identity(
    instance="test",
    instance_id=bytes(range(16)),
    credentials=DAEMON,
    ipc_namespace=4,
    topic_overhead_bytes=OVERHEAD_BYTES,
    roster_id=88,
)


@dataclass
class World:
    """One registry and all that it was told and has done. ``replies`` are the messages each client got, in order."""

    quotas: Quotas = field(default_factory=Quotas)
    replies: dict[int, list[protocol.Outbound]] = field(default_factory=dict)
    creating: dict[str, CreateTopic] = field(default_factory=dict)
    topics: dict[str, protocol.TopicInfo] = field(default_factory=dict)
    slots: dict[tuple[str, int], tuple[int, bool]] = field(default_factory=dict)
    living: dict[int, Credentials] = field(default_factory=dict)
    """Clients whose death the registry wants to hear of."""
    absences: dict[int, int] = field(default_factory=dict)
    idle: dict[str, tuple[int, float]] = field(default_factory=dict)
    notes: dict[tuple[int, int, bytes], Participant] = field(default_factory=dict)
    publishers_with_fifos: set[tuple[str, int]] = field(default_factory=set)
    stalls: list[LookForStall] = field(default_factory=list)
    making: dict[str, CreateSegment] = field(default_factory=dict)
    """Segments, as ``creating`` has topics."""
    segments: dict[str, protocol.SegmentInfo] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    """Topics whose logs hold records, as a restarted daemon would find them."""
    stopped: bool = False
    log: list[Effect] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.registry = Registry(IDENTITY, self.quotas)
        self._numbers = 0
        self._ids = 0
        self._topics_made = 0
        self._segments_made = 0
        self._publishers_numbered = 0
        self._last_incarnation: dict[tuple[str, int], int] = {}
        self._declared_by: dict[str, int] = {}

    # --- events ---

    def connect(
        self, uid: int = DAEMON.uid, *, gid: int | None = None, groups: Iterable[int] = (), pid: int | None = None
    ) -> int:
        """A connection that has not said hello."""
        self._numbers += 1
        number = self._numbers
        self.replies[number] = []
        pid = 9000 + number if pid is None else pid
        credentials = Credentials(uid, uid if gid is None else gid, pid, frozenset(groups), start_time=pid)
        self.living[number] = credentials
        self.perform(self.registry.client_connected(number, credentials))
        return number

    def client(
        self, uid: int = DAEMON.uid, *, name: str = "", pid_namespace: int = 1, groups: Iterable[int] = ()
    ) -> int:
        """A client that is welcome."""
        number = self.connect(uid, groups=groups)
        hello = protocol.Hello(
            id=self.new_id(),
            major=1,
            minor=0,
            name=name,
            ipc_namespace=IDENTITY.ipc_namespace,
            pid_namespace=pid_namespace,
        )
        (welcome,) = self.send(number, hello)
        assert isinstance(welcome, protocol.Welcome)
        return number

    def resume(
        self, number: int, *, uid: int = DAEMON.uid, pid: int | None = None, request_id: int | None = None
    ) -> protocol.Welcome:
        """Connect again, from the process that client ``number`` was, and ask for its place."""
        connection = self.connect(uid, pid=9000 + number if pid is None else pid)
        hello = protocol.Hello(id=request_id or self.new_id(), major=1, minor=0, pid_namespace=1, resume=number)
        self.perform(self.registry.request(connection, hello))
        welcome = self.replies[connection if connection in self.replies else number][-1]
        assert isinstance(welcome, protocol.Welcome)
        assert (welcome.client == number) == welcome.resumed
        return welcome

    def restart(self) -> None:
        """Kill the daemon, and start another that knows what is noted."""
        self.registry = Registry(IDENTITY, self.quotas)
        self.replies, self.creating, self.absences, self.idle, self.stalls, self.making = {}, {}, {}, {}, [], {}
        noted = list(self.notes.values())
        self.living = {participant.client: participant.credentials for participant in noted}
        seats = {(participant.topic_id, participant.seat) for participant in noted}
        topics = []
        for name, info in self.topics.items():
            granted = [last for (life, _), last in self._last_incarnation.items() if life == info.topic_id.hex()]
            topics.append(AdoptedTopic(info, self._declared_by[name], max(granted, default=0), name in self.written))
        assert {(self.topics[name].topic_id, slot) for name, slot in self.slots} == {
            (topic_id, seat.slot) for topic_id, seat in seats if seat is not None
        }
        self.perform(self.registry.adopt(topics, noted, self._publishers_numbered, self.segments.values()))

    def new_id(self) -> int:
        self._ids += 1
        return self._ids

    def send(self, number: int, message: protocol.Request) -> list[protocol.Outbound]:
        """What that client hears because of ``message``."""
        heard = len(self.replies[number])
        self.perform(self.registry.request(number, message))
        return self.replies.get(number, [])[heard:]

    def ask(self, number: int, message: protocol.Request) -> protocol.Outbound:
        """The one answer to ``message``, topics being made at once."""
        heard = len(self.replies[number])
        self.send(number, message)
        self.finish_creations()
        answers = [reply for reply in self.replies[number][heard:] if getattr(reply, "id", None) == message.id]
        assert len(answers) == 1, answers
        return answers[0]

    def refused(self, number: int, message: protocol.Request) -> ShmdError:
        """The error that ``message`` is answered with."""
        reply = self.ask(number, message)
        assert isinstance(reply, protocol.Refused), reply
        return ShmdError.from_wire(reply.code, reply.message, reply.hint)

    def leave(self, number: int) -> None:
        del self.replies[number]
        self.perform(self.registry.client_left(number))

    def finish_creations(self) -> None:
        while self.creating or self.making:
            if self.creating:
                self.topic_made(next(iter(self.creating)))
            else:
                self.segment_made(next(iter(self.making)))

    def topic_made(self, name: str) -> None:
        creation = self.creating.pop(name)
        settings = creation.settings
        self._declared_by[name] = creation.declared_by
        self._topics_made += 1
        info = protocol.TopicInfo(
            name=name,
            topic_id=self._topics_made.to_bytes(16, "little"),
            log_id=1,
            log_key=1,
            ctl_id=2,
            ctl_key=2,
            size_bytes=settings.size_bytes,
            when_full=settings.when_full,
            exclusive=settings.exclusive,
            mode=settings.mode,
            uid=settings.uid,
            gid=settings.gid,
            created_ns=1,
            hostile=settings.hostile,
            lifetime=settings.lifetime,
            idle_ttl_s=settings.idle_ttl_s,
            stall_timeout_s=settings.stall_timeout_s,
            notifier=settings.notifier,
            fifo_dir="/run/shmd/fifo/t" if settings.notifier == "fifo" else "",
        )
        self.topics[name] = info
        self.perform(self.registry.topic_created(name, info))

    def _sent_bells(self, message: protocol.Outbound, topic: protocol.TopicInfo) -> None:
        """Descriptors go with grants, or a FIFO is there before them."""
        over_fifos = topic.notifier == "fifo"
        assert getattr(message, "fds", None) == (0 if over_fifos else 2)
        if over_fifos and isinstance(message, protocol.PublisherGranted):
            assert (topic.name, message.publisher) in self.publishers_with_fifos

    def topic_failed(self, name: str, error: ShmdError) -> None:
        del self.creating[name]
        self.perform(self.registry.topic_failed(name, error))

    def segment_made(self, name: str, found: protocol.SegmentInfo | None = None) -> None:
        """``found``: one that is adopted."""
        creation = self.making.pop(name)
        settings = creation.settings
        self._segments_made += 1
        info = found or protocol.SegmentInfo(
            name=name,
            segment_id=self._segments_made.to_bytes(16, "big"),
            id=self._segments_made,
            key=0 if settings.lifetime == "attached" else settings.key or 1000 + self._segments_made,
            size_bytes=settings.size_bytes,
            mode=settings.mode,
            uid=settings.uid,
            gid=settings.gid,
            creator_uid=DAEMON.uid,
            creator_gid=DAEMON.gid,
            declared_by=creation.declared_by.uid,
            created_ns=1,
            lifetime=settings.lifetime,
        )
        self.segments[name] = info
        self.perform(self.registry.segment_created(info))

    def segment_failed(self, name: str, error: ShmdError) -> None:
        del self.making[name]
        self.perform(self.registry.segment_failed(name, error))

    def segment_lost(self, name: str) -> None:
        self.perform(self.registry.segment_lost(name))

    def process_died(self, number: int) -> None:
        del self.living[number]
        self.perform(self.registry.process_died(number))

    def resume_overdue(self, number: int) -> None:
        self.perform(self.registry.resume_overdue(number, self.absences[number]))

    def topic_idle(self, name: str) -> None:
        self.perform(self.registry.topic_idle(name, self.idle.pop(name)[0]))

    # --- effects ---

    def perform(self, effects: list[Effect]) -> None:
        self.log = effects
        for effect in effects:
            match effect:
                case Send(number, message, bells_of, segment):
                    protocol.encode(message)
                    assert ((bells_of or segment) is not None) == isinstance(message, _GRANTS)
                    assert bells_of is None or bells_of in self.topics
                    if bells_of is not None:
                        self._sent_bells(message, self.topics[bells_of])
                    assert segment is None or segment in self.segments
                    self.replies[number].append(message)
                case HangUp(number):
                    del self.replies[number]
                case CreateTopic(name):
                    assert name not in self.topics
                    assert name not in self.creating
                    self.creating[name] = effect
                case DestroyTopic(name):
                    del self.topics[name]
                    self.written.discard(name)
                    self.slots = {place: holder for place, holder in self.slots.items() if place[0] != name}
                    self.publishers_with_fifos = {who for who in self.publishers_with_fifos if who[0] != name}
                case GrantSlot(name, slot, incarnation, live, tethered):
                    assert live or not tethered
                    self._granted(name, slot, incarnation, tethered)
                case ReleaseSlot(name, slot, incarnation):
                    assert self.slots.pop((name, slot))[0] == incarnation
                case AdmitPublisher(name, publisher):
                    assert self.topics[name].notifier == "fifo"
                    assert (name, publisher) not in self.publishers_with_fifos
                    self.publishers_with_fifos.add((name, publisher))
                case DismissPublisher(name, publisher):
                    self.publishers_with_fifos.remove((name, publisher))
                case RingBells(name):
                    assert name in self.topics
                case ReportStat(number, _, name):
                    assert name in self.topics
                    assert number in self.replies
                case Rebind(connection, number):
                    assert number not in self.replies
                    self.replies[number] = self.replies.pop(connection)
                    assert self.living.pop(connection) == self.living[number]
                case AwaitResume(number, absence):
                    assert number in self.living
                    self.absences[number] = absence
                case IgnoreDeath(number):
                    self.living.pop(number, None)
                    assert not [key for key in self.notes if key[0] == number]
                case NoteParticipant(participant):
                    self._noted(participant)
                case ForgetParticipant(number, handle, topic_id):
                    del self.notes[number, handle, topic_id]
                case AwaitIdle(name, idleness, after_s):
                    assert name in self.topics
                    self.idle[name] = (idleness, after_s)
                case Untether(name, slot, incarnation):
                    if self.slots.get((name, slot), (0, False))[0] == incarnation:
                        self.slots[name, slot] = (incarnation, False)
                case LookForStall(name):
                    assert name in self.topics
                    self.stalls.append(effect)
                case CreateSegment() | DestroySegment() | ChangeSegment() | ReportSegment():
                    self._perform_on_segment(effect)
                case StopDaemon(_):
                    self.stopped = True

    def _perform_on_segment(self, effect: CreateSegment | DestroySegment | ChangeSegment | ReportSegment) -> None:
        match effect:
            case CreateSegment(name):
                assert name not in self.segments
                assert name not in self.making
                self.making[name] = effect
            case DestroySegment(name):
                del self.segments[name]
            case ChangeSegment(number, request_id, name, uid, gid, mode):
                self.segments[name] = msgspec.structs.replace(self.segments[name], uid=uid, gid=gid, mode=mode)
                assert self.registry.segment_seen(name, uid, gid, mode) == []
                self.replies[number].append(protocol.Done(id=request_id))
            case ReportSegment(number, request_id, name):
                info, counters = (
                    self.segments[name],
                    msgspec.convert(dict.fromkeys(_COUNTERS, 0) | {"removed": False}, protocol.SegmentCounters),
                )
                reply = protocol.SegmentStatReply(id=request_id, segment=info, counters=counters)
                self.replies[number].append(reply)

    def _noted(self, participant: Participant) -> None:
        key = (participant.client, participant.handle, participant.topic_id)
        assert key not in self.notes
        if participant.kind == "segment":
            (name,) = [name for name, info in self.segments.items() if info.segment_id == participant.topic_id]
        else:
            (name,) = [name for name, info in self.topics.items() if info.topic_id == participant.topic_id]
        if participant.seat is not None:
            assert self.slots[name, participant.seat.slot][0] == participant.seat.incarnation
        assert participant.client in self.living
        self.notes[key] = participant
        self._publishers_numbered = max(self._publishers_numbered, participant.number)

    def _granted(self, name: str, slot: int, incarnation: int, tethered: bool) -> None:
        info = self.topics[name]
        assert (name, slot) not in self.slots, "a slot was given away twice"
        assert not tethered or info.when_full == "wait"
        assert 0 <= slot < self.quotas.subscribers_per_topic
        life = (info.topic_id.hex(), slot)
        assert incarnation > self._last_incarnation.get(life, 0), "an incarnation came back"
        self._last_incarnation[life] = incarnation
        self.slots[name, slot] = (incarnation, tethered)
