"""One segment of a roster, as anybody may read it: its rows, and who is proven dead by them.

To a reader the rows are as hostile as all shared memory, and may change while it looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shmd import _core, limits, liveness, segment
from shmd import roster_layout as layout
from shmd.errors import ConfigError, SegmentError, VersionMismatch
from shmd.roster_layout import FREE, LIVE, Header, IntentRow, ParticipantRow, SegmentRow, TopicRow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

_STATE_MASK: Final = (1 << layout.STATE_BITS) - 1


class Rows:
    """One table of rows in a roster. ``high_at``: where the header says how many of them were ever used."""

    def __init__(
        self, held: segment.Segment, at: int, size_bytes: int, count: int, *, high_at: int | None = None
    ) -> None:
        self._held = held
        self._at = at
        self._size_bytes = size_bytes
        self._high_at = high_at
        self.count = count

    def offset(self, index: int) -> int:
        return self._at + index * self._size_bytes

    def read(self) -> Iterator[tuple[int, int, bytes]]:
        """(index, state, row) of each that is not free. Rows that nobody ever used are not looked at: a look would
        allocate their memory.
        """
        used = self.count if self._high_at is None else _core.load_word(self._held.mapping, self._high_at)
        for index in range(min(used, self.count)):
            if row := self._read(index):
                yield index, *row

    def _read(self, index: int) -> tuple[int, bytes] | None:
        offset = self.offset(index)
        for _ in range(limits.ROSTER_READ_ATTEMPTS):
            word = _core.load_word(self._held.mapping, offset)
            if word & _STATE_MASK == FREE:
                return None
            row = bytes(self._held.buf[offset : offset + self._size_bytes])
            if _core.load_word(self._held.mapping, offset) == word:
                return word & _STATE_MASK, row
        return None

    def write(self, index: int, row: bytes) -> None:
        """Fill a free row and commit it."""
        offset = self.offset(index)
        self._held.buf[offset + 8 : offset + self._size_bytes] = row[8:]
        if self._high_at is not None and _core.load_word(self._held.mapping, self._high_at) <= index:
            _core.store_word(self._held.mapping, self._high_at, index + 1)
        self.commit(index, LIVE)

    def commit(self, index: int, state: int) -> None:
        offset = self.offset(index)
        changes = _core.load_word(self._held.mapping, offset) >> layout.STATE_BITS
        changes = (changes + 1) % (1 << 64 - layout.STATE_BITS)
        _core.store_word(self._held.mapping, offset, changes << layout.STATE_BITS | state)


class Tables:
    """The four tables of one segment, and its header."""

    def __init__(self, held: segment.Segment) -> None:
        self._held = held
        at = {name: layout.HEADER.table[name][0] for name in ("topics_high", "participants_high", "segments_high")}
        self._topics = Rows(
            held, layout.TOPICS_AT, layout.TOPIC.size_bytes, limits.TOPICS_MAX, high_at=at["topics_high"]
        )
        self._participants = Rows(
            *(held, layout.PARTICIPANTS_AT, layout.PARTICIPANT.size_bytes, limits.PARTICIPANTS_MAX),
            high_at=at["participants_high"],
        )
        self._intents = Rows(held, layout.INTENTS_AT, layout.INTENT.size_bytes, limits.INTENTS_MAX)
        self._segments = Rows(
            held, layout.SEGMENTS_AT, layout.SEGMENT.size_bytes, limits.SEGMENTS_MAX, high_at=at["segments_high"]
        )

    @property
    def id(self) -> int:
        return self._held.id

    @property
    def header(self) -> Header:
        return read_header(self._held)

    def topics(self) -> list[TopicRow]:
        """Every topic noted, in whatever state."""
        return [TopicRow.unpack(state, row) for _, state, row in self._topics.read()]

    def participants(self) -> list[ParticipantRow]:
        """Every publisher, subscriber, kept slot and user of a segment noted."""
        rows = (ParticipantRow.unpack(row) for _, _, row in self._participants.read())
        return [row for row in rows if row is not None]

    def intents(self) -> list[IntentRow]:
        """What a daemon was about to create and has not noted as a topic's or as a raw segment."""
        return [IntentRow.unpack(row) for _, _, row in self._intents.read()]

    def segments(self) -> list[SegmentRow]:
        """Every raw segment noted, in whatever state."""
        return [SegmentRow.unpack(state, row) for _, state, row in self._segments.read()]


class RosterReader(Tables):
    """A segment of a roster, with or without its daemon. A context manager that detaches."""

    def __init__(self, roster_id: int) -> None:
        """Attach it. ``SegmentError``; ``VersionMismatch`` for another layout; ``ConfigError`` if it is no roster."""
        held = segment.attach(roster_id, readonly=True)
        try:
            check(held)
        except BaseException:
            held.close()
            raise
        super().__init__(held)

    def lasting(self) -> RosterReader | None:
        """The lasting segment that belongs to this transient one, if there is one now. The caller closes it."""
        header = self.header
        if header.lasting == 0:
            return None
        try:
            found = RosterReader(header.lasting - 1)
        except (ConfigError, SegmentError, VersionMismatch):
            return None
        if found.header.instance_id == header.instance_id and found._held.stat().cuid == self._held.stat().cuid:
            return found
        found.close()
        return None

    def find_participant(self, topic_id: bytes, slot: int, incarnation: int) -> ParticipantRow | None:
        """Who sits in this slot of the topic, in this incarnation, by this segment or its lasting one."""
        seat = (topic_id, slot, incarnation)
        if (row := self._who_sits(seat)) is not None or (lasting := self.lasting()) is None:
            return row
        with lasting:  # whose own word for a lasting one is not taken: a damaged one might say itself
            return lasting._who_sits(seat)

    def _who_sits(self, seat: tuple[bytes, int, int]) -> ParticipantRow | None:
        for row in self.participants():
            if (row.topic_id, row.slot, row.incarnation) == seat and row.kind in ("subscriber", "kept"):
                return row
        return None

    def proves_dead(self, topic_id: bytes, slot: int, incarnation: int) -> bool:
        """Whether the process that sits in this slot is proven dead. Not from another namespace than the daemon's."""
        header = self.header
        if (header.pid_namespace, header.time_namespace) != liveness.namespaces():
            return False
        row = self.find_participant(topic_id, slot, incarnation)
        return row is not None and liveness.is_dead(liveness.Process(row.pid, row.start_time))

    def close(self) -> None:
        """Detach. Twice is fine."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()


def read_header(held: segment.Segment) -> Header:
    return Header.unpack(bytes(held.buf[: layout.HEADER_BYTES]))


def check(held: segment.Segment) -> None:
    """``ConfigError`` if this is no roster, ``VersionMismatch`` if it is one of another major version."""
    if held.size_bytes < layout.HEADER_BYTES or _core.load_word(held.mapping, 0) != layout.MAGIC:
        raise ConfigError(f"segment {held.id} is no roster")
    major = read_header(held).version >> 16
    if major != layout.VERSION_MAJOR:
        raise VersionMismatch(
            f"the roster (segment {held.id}) has layout version {major}, this is shmd for {layout.VERSION_MAJOR}",
            "end it with the version that made it (shmd stop, shmd purge); or, if it is but damaged, end the processes"
            f" that use it, and ipcrm -m {held.id}",
        )
    if held.size_bytes != layout.ROSTER_BYTES:
        raise ConfigError(f"segment {held.id} of {held.size_bytes} bytes is no roster, which has {layout.ROSTER_BYTES}")
