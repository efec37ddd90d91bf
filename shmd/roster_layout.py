"""What lies in a roster, byte for byte; docs/memory-layout.md says the same.

    0x0000   header        who writes it, and how often it was started
             topics        one row each
             participants  one row each: publishers, subscribers, and slots kept for a watch
             intents       keys of segments and semaphores that are being made
             segments      raw segments, one row each

The header says how many rows of the tables, intents excepted, were ever used; nobody looks beyond those, for a look
would allocate their memory. Every row begins with a word of state: 8 bits say what it is, the others count its changes.
A row is written while it is ``FREE`` and then committed by one store of that word, so that a daemon killed anywhere
leaves a row that is there or is not, and a reader that finds the same word before and after copying a row has one that
was never half written. All is little-endian, of fixed width, and padded by hand.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, TypeAlias

from shmd import limits

MAGIC: Final = int.from_bytes(b"SHMDROS1", "little")
VERSION_MAJOR: Final = 2
VERSION_MINOR: Final = 0
VERSION: Final = VERSION_MAJOR << 16 | VERSION_MINOR

FREE: Final = 0
LIVE: Final = 1
REMOVING: Final = 2
"""A topic or raw segment that is being removed."""
QUARANTINED: Final = 3
"""A topic whose segments are not what the row says: left alone, never trusted."""
STATE_BITS: Final = 8

LASTING: Final = 1
TRANSIENT: Final = 2
"""Kinds of segment: see ``roster``."""
CLIENT_BITS: Final = 32
"""A client's number is the daemon's generation and its own count: no two daemons of an instance give the same."""
GENERATION_MAX: Final = 2**31 - 1
"""A daemon's generation is the upper half of its clients' numbers, of 64 bits with a sign to spare."""
PUBLISHERS_NUMBERED_MAX: Final = 2**32 - 1
"""A record's header keeps 32 bits of its publisher's number."""

HEADER_BYTES: Final = 4096
_NAME_BYTES: Final = 256
_CLIENT_NAME_BYTES: Final = limits.CLIENT_NAME_BYTES_MAX
_FLAG_WAIT: Final = 1
_FLAG_EXCLUSIVE: Final = 2
_FLAG_ATTACHED: Final = 4
_FLAG_ADOPTED: Final = 1
_FLAG_FILE: Final = 2
_FLAG_FIFO: Final = 8


class Fields:
    """A struct whose fields have names: ``{field: (offset, size)}``, packed into ``size_bytes``."""

    def __init__(self, size_bytes: int, formats: dict[str, tuple[int, str]]) -> None:
        self.size_bytes = size_bytes
        self.table = {name: (offset, struct.calcsize("<" + code)) for name, (offset, code) in formats.items()}
        layout, end = "<", 0
        for offset, code in formats.values():
            layout += f"{offset - end}x{code}"
            end = offset + struct.calcsize("<" + code)
        self._struct = struct.Struct(f"{layout}{size_bytes - end}x")

    def pack(self, *values: object) -> bytes:
        return self._struct.pack(*values)

    def unpack(self, raw: bytes) -> dict[str, Any]:
        """By field's name."""
        return dict(zip(self.table, self._struct.unpack(raw), strict=True))


HEADER: Final = Fields(
    HEADER_BYTES,
    {
        "magic": (0, "Q"),
        "version": (8, "I"),
        "header_bytes": (12, "I"),
        "instance_id": (16, "16s"),
        "topic_rows": (32, "I"),
        "participant_rows": (36, "I"),
        "intent_rows": (40, "I"),
        "kind": (44, "I"),
        "pid": (48, "Q"),
        "start_time": (56, "Q"),
        "pid_namespace": (64, "Q"),
        "time_namespace": (72, "Q"),
        "generation": (80, "Q"),
        "publishers_numbered": (88, "Q"),
        "lasting": (96, "Q"),
        "topics_high": (104, "Q"),
        "participants_high": (112, "Q"),
        "segment_rows": (120, "I"),
        "instance": (128, "64s"),
        "segments_high": (192, "Q"),
    },
)
TOPIC: Final = Fields(
    512,
    {
        "state": (0, "Q"),
        "log_id": (8, "I"),
        "log_key": (12, "I"),
        "ctl_id": (16, "I"),
        "ctl_key": (20, "I"),
        "size_bytes": (24, "Q"),
        "flags": (32, "I"),
        "mode": (36, "I"),
        "uid": (40, "I"),
        "gid": (44, "I"),
        "declared_by": (48, "I"),
        "incarnation_max": (56, "Q"),
        "created_ns": (64, "Q"),
        "idle_ttl_s": (72, "d"),
        "stall_timeout_s": (80, "d"),
        "topic_id": (88, "16s"),
        "name": (256, f"{_NAME_BYTES}s"),
    },
)
PARTICIPANT: Final = Fields(
    192,
    {
        "state": (0, "Q"),
        "client": (8, "Q"),
        "handle": (16, "Q"),
        "topic_id": (24, "16s"),
        "kind": (40, "I"),
        "slot": (44, "I"),
        "incarnation": (48, "I"),
        "publisher": (52, "I"),
        "tethered": (56, "I"),
        "uid": (60, "I"),
        "gid": (64, "I"),
        "pid": (68, "I"),
        "start_time": (72, "Q"),
        "pid_namespace": (80, "Q"),
        "name": (128, f"{_CLIENT_NAME_BYTES}s"),
    },
)
INTENT: Final = Fields(
    64, {"state": (0, "Q"), "kind": (8, "I"), "first_key": (12, "I"), "second_key": (16, "I"), "pid": (20, "I")}
)
INTENT_TOPIC: Final = 1
INTENT_SEGMENT: Final = 2
SEGMENT: Final = Fields(
    512,
    {
        "state": (0, "Q"),
        "id": (8, "i"),
        "key": (12, "I"),
        "sem_id": (16, "i"),
        "sem_key": (20, "I"),
        "size_bytes": (24, "Q"),
        "flags": (32, "I"),
        "mode": (36, "I"),
        "uid": (40, "I"),
        "gid": (44, "I"),
        "creator_uid": (48, "I"),
        "creator_gid": (52, "I"),
        "declared_by": (56, "I"),
        "created_ns": (64, "Q"),
        "segment_id": (72, "16s"),
        "name": (256, f"{_NAME_BYTES}s"),
    },
)

TOPICS_AT: Final = HEADER_BYTES
PARTICIPANTS_AT: Final = TOPICS_AT + limits.TOPICS_MAX * TOPIC.size_bytes
INTENTS_AT: Final = PARTICIPANTS_AT + limits.PARTICIPANTS_MAX * PARTICIPANT.size_bytes
SEGMENTS_AT: Final = INTENTS_AT + limits.INTENTS_MAX * INTENT.size_bytes
ROSTER_BYTES: Final = SEGMENTS_AT + limits.SEGMENTS_MAX * SEGMENT.size_bytes

ParticipantKind: TypeAlias = Literal["publisher", "subscriber", "kept", "segment"]
_KINDS: Final[tuple[ParticipantKind, ...]] = ("publisher", "subscriber", "kept", "segment")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Who writes the roster: process, its namespaces, and how many daemons of the instance there were before it."""

    version: int
    kind: int
    instance_id: bytes
    instance: str
    pid: int
    start_time: int
    pid_namespace: int
    time_namespace: int
    generation: int
    publishers_numbered: int
    lasting: int
    """0, or 1 + the id of the lasting segment that belongs to this transient one."""

    @property
    def counts(self) -> bool:
        """Whether these are numbers of daemons and publishers that can have been."""
        return self.generation < GENERATION_MAX and self.publishers_numbered <= PUBLISHERS_NUMBERED_MAX

    def pack(self) -> bytes:
        """Of a roster without rows, and without the magic, which is stored last."""
        return HEADER.pack(
            *(0, self.version, HEADER_BYTES, self.instance_id),
            *(limits.TOPICS_MAX, limits.PARTICIPANTS_MAX, limits.INTENTS_MAX, self.kind),
            *(self.pid, self.start_time, self.pid_namespace, self.time_namespace),
            *(self.generation, self.publishers_numbered, self.lasting, 0, 0, limits.SEGMENTS_MAX),
            *(self.instance.encode(), 0),
        )

    @classmethod
    def unpack(cls, raw: bytes) -> Header:
        values = HEADER.unpack(raw)
        return cls(
            **{field.name: values[field.name] for field in fields(cls)} | {"instance": _text(values["instance"])}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicRow:
    """One topic: what its segments are, and what the client that had it made asked for. ``state`` as above."""

    state: int = LIVE
    log_id: int
    log_key: int
    ctl_id: int
    ctl_key: int
    size_bytes: int
    wait: bool
    exclusive: bool
    attached: bool
    fifo: bool = False
    mode: int
    uid: int
    gid: int
    declared_by: int
    incarnation_max: int = 0
    created_ns: int
    idle_ttl_s: float | None
    stall_timeout_s: float | None
    topic_id: bytes
    name: str

    def pack(self) -> bytes:
        """With state ``FREE``."""
        flags = _FLAG_WAIT * self.wait | _FLAG_EXCLUSIVE * self.exclusive | _FLAG_ATTACHED * self.attached
        flags |= _FLAG_FIFO * self.fifo
        return TOPIC.pack(
            *(FREE, self.log_id, self.log_key, self.ctl_id, self.ctl_key, self.size_bytes, flags, self.mode),
            *(self.uid, self.gid, self.declared_by, self.incarnation_max, self.created_ns),
            *(self.idle_ttl_s or 0.0, self.stall_timeout_s or 0.0, self.topic_id, self.name.encode()),
        )

    @classmethod
    def unpack(cls, state: int, raw: bytes) -> TopicRow:
        values = TOPIC.unpack(raw)
        flags = values.pop("flags")
        values |= {
            "state": state,
            "wait": bool(flags & _FLAG_WAIT),
            "exclusive": bool(flags & _FLAG_EXCLUSIVE),
            "attached": bool(flags & _FLAG_ATTACHED),
            "fifo": bool(flags & _FLAG_FIFO),
            "idle_ttl_s": values["idle_ttl_s"] or None,
            "stall_timeout_s": values["stall_timeout_s"] or None,
            "name": _text(values["name"]),
        }
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantRow:
    """One publisher, subscriber, slot kept for a watch or use of a raw segment, and the process that holds it."""

    client: int
    handle: int
    topic_id: bytes
    """Of its topic, or of its segment."""
    kind: ParticipantKind
    slot: int = 0
    incarnation: int = 0
    publisher: int = 0
    tethered: bool = False
    uid: int
    gid: int
    pid: int
    start_time: int
    pid_namespace: int
    name: str

    @property
    def key(self) -> tuple[int, int, bytes]:
        """No two rows have the same."""
        return self.client, self.handle, self.topic_id

    def pack(self) -> bytes:
        """With state ``FREE``."""
        return PARTICIPANT.pack(
            *(FREE, self.client, self.handle, self.topic_id, _KINDS.index(self.kind) + 1),
            *(self.slot, self.incarnation, self.publisher, self.tethered),
            *(self.uid, self.gid, self.pid, self.start_time, self.pid_namespace, self.name.encode()),
        )

    @classmethod
    def unpack(cls, raw: bytes) -> ParticipantRow | None:
        """None if no daemon wrote this."""
        values = PARTICIPANT.unpack(raw)
        kind = values.pop("kind")
        del values["state"]
        if not 1 <= kind <= len(_KINDS):
            return None
        values |= {"kind": _KINDS[kind - 1], "tethered": bool(values["tethered"]), "name": _text(values["name"])}
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class IntentRow:
    """What the daemon ``pid`` was about to create.

    With kind ``INTENT_TOPIC`` two segments, log and ctl; with ``INTENT_SEGMENT`` a segment and a semaphore. 0: none.
    """

    kind: int
    first_key: int
    second_key: int
    pid: int

    @property
    def segment_keys(self) -> tuple[int, ...]:
        """Keys of shared memory."""
        keys = (self.first_key, self.second_key) if self.kind == INTENT_TOPIC else (self.first_key,)
        return tuple(key for key in keys if key)

    @property
    def semaphore_key(self) -> int:
        """0: none is to be made."""
        return self.second_key if self.kind == INTENT_SEGMENT else 0

    def pack(self) -> bytes:
        """With state ``FREE``."""
        return INTENT.pack(FREE, self.kind, self.first_key, self.second_key, self.pid)

    @classmethod
    def unpack(cls, raw: bytes) -> IntentRow:
        values = INTENT.unpack(raw)
        return cls(**{field.name: values[field.name] for field in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRow:
    """One raw segment: what and whose it is. ``state`` as above."""

    state: int = LIVE
    id: int
    key: int
    sem_id: int = -1
    """-1: no semaphore goes with it."""
    sem_key: int = 0
    size_bytes: int
    adopted: bool
    file: bool
    attached: bool
    fifo: bool
    mode: int
    uid: int
    gid: int
    creator_uid: int
    creator_gid: int
    declared_by: int
    created_ns: int
    segment_id: bytes
    name: str

    def pack(self) -> bytes:
        """With state ``FREE``."""
        flags = _FLAG_ADOPTED * self.adopted | _FLAG_FILE * self.file
        flags |= _FLAG_ATTACHED * self.attached | _FLAG_FIFO * self.fifo
        return SEGMENT.pack(
            *(FREE, self.id, self.key, self.sem_id, self.sem_key, self.size_bytes, flags, self.mode),
            *(self.uid, self.gid, self.creator_uid, self.creator_gid, self.declared_by, self.created_ns),
            *(self.segment_id, self.name.encode()),
        )

    @classmethod
    def unpack(cls, state: int, raw: bytes) -> SegmentRow:
        values = SEGMENT.unpack(raw)
        flags = values.pop("flags")
        values |= {
            "state": state,
            "adopted": bool(flags & _FLAG_ADOPTED),
            "file": bool(flags & _FLAG_FILE),
            "attached": bool(flags & _FLAG_ATTACHED),
            "fifo": bool(flags & _FLAG_FIFO),
            "name": _text(values["name"]),
        }
        return cls(**values)


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "ignore")
