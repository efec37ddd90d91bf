"""The roster: what a daemon remembers across its own death, and what everybody may read meanwhile.

One segment per instance, mode 0644. Its key follows from the instance's id. Somebody else may hold a segment with that
key, so there are several candidates; the daemon takes the one whose creator it is itself (``cuid`` cannot be forged)
and whose header names the instance, or else makes one at the first key that is free.

``Roster`` is the daemon's: the only writer, in the thread of its event loop, intents excepted, which the threads that
make topics note and the loop clears. ``RosterReader`` is anybody's, read-only: to it the rows are as hostile as all
shared memory, and may change while it looks.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import os
import queue
from typing import TYPE_CHECKING, Final

from shmd import _core, failpoint, limits, liveness, segment, sysv
from shmd import roster_layout as layout
from shmd.errors import ConfigError, LimitExceeded, SegmentError, SegmentExists, VersionMismatch
from shmd.roster_layout import FREE, LIVE, QUARANTINED, REMOVING, Header, IntentRow, ParticipantRow, TopicRow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

logger = logging.getLogger(__name__)

_MODE: Final = 0o644
_STATE_MASK: Final = (1 << layout.STATE_BITS) - 1
_open_here: Final[set[int]] = set()
"""Rosters that a daemon of this very process writes."""


def candidate_keys(instance_id: bytes) -> list[int]:
    """The keys that this instance's roster may have, the likeliest first."""
    digests = (
        hashlib.blake2b(instance_id + bytes([index]), digest_size=4).digest()
        for index in range(limits.ROSTER_CANDIDATES)
    )
    return [int.from_bytes(digest, "little") & segment.KEY_MAX or 1 for digest in digests]


class _Rows:
    """One table of rows in a roster."""

    def __init__(self, held: segment.Segment, at: int, size_bytes: int, count: int) -> None:
        self._held = held
        self._at = at
        self._size_bytes = size_bytes
        self.count = count

    def offset(self, index: int) -> int:
        return self._at + index * self._size_bytes

    def read(self) -> Iterator[tuple[int, int, bytes]]:
        """(index, state, row) of each that is not free."""
        for index in range(self.count):
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
        self.commit(index, LIVE)

    def commit(self, index: int, state: int) -> None:
        offset = self.offset(index)
        changes = _core.load_word(self._held.mapping, offset) >> layout.STATE_BITS
        changes = (changes + 1) % (1 << 64 - layout.STATE_BITS)
        _core.store_word(self._held.mapping, offset, changes << layout.STATE_BITS | state)


class _Tables:
    """A roster's three tables and its header."""

    def __init__(self, held: segment.Segment) -> None:
        self._held = held
        self._topics = _Rows(held, layout.TOPICS_AT, layout.TOPIC.size_bytes, limits.TOPICS_MAX)
        self._participants = _Rows(held, layout.PARTICIPANTS_AT, layout.PARTICIPANT.size_bytes, limits.PARTICIPANTS_MAX)
        self._intents = _Rows(held, layout.INTENTS_AT, layout.INTENT.size_bytes, limits.INTENTS_MAX)

    @property
    def id(self) -> int:
        return self._held.id

    @property
    def header(self) -> Header:
        return Header.unpack(bytes(self._held.buf[: layout.HEADER_BYTES]))

    def topics(self) -> list[TopicRow]:
        """Every topic noted, in whatever state."""
        return [TopicRow.unpack(state, row) for _, state, row in self._topics.read()]

    def participants(self) -> list[ParticipantRow]:
        """Every publisher, subscriber and kept slot noted."""
        rows = (ParticipantRow.unpack(row) for _, _, row in self._participants.read())
        return [row for row in rows if row is not None]

    def intents(self) -> list[IntentRow]:
        """Segments that a daemon was about to create and has not noted as a topic's."""
        return [IntentRow.unpack(row) for _, _, row in self._intents.read()]


class RosterReader(_Tables):
    """A roster as anybody may read it, with or without its daemon. A context manager that detaches."""

    def __init__(self, roster_id: int) -> None:
        """Attach it. ``SegmentError``; ``VersionMismatch`` for another layout; ``ConfigError`` if it is no roster."""
        held = segment.attach(roster_id, readonly=True)
        try:
            _check(held)
        except BaseException:
            held.close()
            raise
        super().__init__(held)

    def find_participant(self, topic_id: bytes, slot: int, incarnation: int) -> ParticipantRow | None:
        """Who sits in this slot of the topic, in this incarnation."""
        for row in self.participants():
            if (row.topic_id, row.slot, row.incarnation) == (topic_id, slot, incarnation) and row.kind != "publisher":
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


class Intent:
    """A note that two segments are about to be created: ``note`` is for the creating thread, ``clear`` for the loop."""

    def __init__(self, rows: _Rows, free: queue.SimpleQueue[int], index: int) -> None:
        self._rows = rows
        self._free = free
        self._index = index

    def note(self, log_key: int, ctl_key: int) -> None:
        """These are the keys, instead of any before."""
        self._rows.commit(self._index, FREE)
        self._rows.write(self._index, IntentRow(log_key=log_key, ctl_key=ctl_key, pid=os.getpid()).pack())
        failpoint.reach("intent-noted")

    def clear(self) -> None:
        """The segments are noted as a topic's, or gone."""
        self._rows.commit(self._index, FREE)
        self._free.put(self._index)
        failpoint.reach("intent-cleared")


class Roster(_Tables):
    """The roster of a running daemon. Made by ``open_roster``, given back by ``close``."""

    def __init__(self, held: segment.Segment, previous: Header | None) -> None:
        super().__init__(held)
        self.previous = previous
        """The header as the daemon before this one left it; None if there was none."""
        topics, participants = list(self._topics.read()), list(self._participants.read())
        self._topic_index = {TopicRow.unpack(state, row).topic_id: index for index, state, row in topics}
        self._free_topics = _free(self._topics, {index for index, _, _ in topics})
        self._participant_index: dict[tuple[int, int, bytes], int] = {}
        for index, _, raw in participants:
            if row := ParticipantRow.unpack(raw):
                self._participant_index[row.key] = index
        self._free_participants = _free(self._participants, set(self._participant_index.values()))
        self._free_intents: queue.SimpleQueue[int] = queue.SimpleQueue()
        taken = {index for index, _, _ in self._intents.read()}
        for index in _free(self._intents, taken):
            self._free_intents.put(index)
        _open_here.add(self.id)

    # --- topics ---

    def note_topic(self, row: TopicRow) -> None:
        """A topic came into being. ``LimitExceeded`` if there is no row left."""
        if not self._free_topics:
            raise LimitExceeded(
                f"the roster has {limits.TOPICS_MAX} topics, damaged ones included", "see shmd fsck; remove some"
            )
        index = heapq.heappop(self._free_topics)
        self._topics.write(index, row.pack())
        self._topic_index[row.topic_id] = index
        failpoint.reach("topic-noted")

    def begin_removal(self, topic_id: bytes) -> None:
        """Its segments are about to be removed; whatever happens, they shall be."""
        self._topics.commit(self._topic_index[topic_id], REMOVING)
        failpoint.reach("removal-noted")

    def quarantine(self, topic_id: bytes) -> None:
        """Its segments are not what they should be: nobody shall use or remove them unasked."""
        self._topics.commit(self._topic_index[topic_id], QUARANTINED)

    def forget_topic(self, topic_id: bytes) -> None:
        index = self._topic_index.pop(topic_id)
        self._topics.commit(index, FREE)
        heapq.heappush(self._free_topics, index)
        failpoint.reach("topic-forgotten")

    def raise_incarnation(self, topic_id: bytes, incarnation: int) -> None:
        """An incarnation is about to be granted: no later daemon may grant it, or one below."""
        offset = self._topics.offset(self._topic_index[topic_id]) + layout.TOPIC.table["incarnation_max"][0]
        if _core.load_word(self._held.mapping, offset) < incarnation:
            _core.store_word(self._held.mapping, offset, incarnation)

    # --- participants ---

    def note_participant(self, row: ParticipantRow) -> None:
        """Somebody takes part, from when it is told so. The registry never admits more than there are rows."""
        if row.publisher:
            self._raise_header("publishers_numbered", row.publisher)
        index = heapq.heappop(self._free_participants)
        self._participants.write(index, row.pack())
        self._participant_index[row.key] = index
        failpoint.reach("participant-noted")

    def forget_participant(self, client: int, handle: int, topic_id: bytes) -> None:
        index = self._participant_index.pop((client, handle, topic_id))
        self._participants.commit(index, FREE)
        heapq.heappush(self._free_participants, index)
        failpoint.reach("participant-forgotten")

    # --- intents ---

    def intent(self) -> Intent:
        """A row for an intent; waits for one if all are taken. For any thread."""
        return Intent(self._intents, self._free_intents, self._free_intents.get())

    def clear_intents(self) -> None:
        """All that an earlier daemon intended is settled."""
        for index, _, _ in list(self._intents.read()):
            self._intents.commit(index, FREE)
            self._free_intents.put(index)

    # --- its beginning and end ---

    def close(self, *, remove: bool) -> None:
        """Detach; with ``remove``, or if it notes no topic, the segment goes too."""
        _open_here.discard(self.id)
        self._store_header("pid", liveness.UNKNOWN)
        if remove or not self._topic_index:
            try:
                segment.remove(self.id)
            except SegmentError as error:
                logger.warning("the roster cannot be removed: %s", error)
        self._held.close()

    def take_over(self) -> int:
        """From now on this process writes. The generation: how many daemons of the instance there have been."""
        me = liveness.process(os.getpid())
        pid_namespace, time_namespace = liveness.namespaces()
        self._store_header("pid", liveness.UNKNOWN)
        self._store_header("start_time", me.start_time)
        self._store_header("pid_namespace", pid_namespace)
        self._store_header("time_namespace", time_namespace)
        generation = self.header.generation + 1
        self._store_header("generation", generation)
        self._store_header("pid", me.pid)
        failpoint.reach("generation-raised")
        return generation

    def _raise_header(self, field: str, value: int) -> None:
        if _core.load_word(self._held.mapping, layout.HEADER.table[field][0]) < value:
            self._store_header(field, value)

    def _store_header(self, field: str, value: int) -> None:
        _core.store_word(self._held.mapping, layout.HEADER.table[field][0], value)


def open_roster(instance: str, instance_id: bytes) -> Roster:
    """The instance's roster, found or made; ``take_over`` comes next.

    The caller holds the instance's lock. ``ConfigError`` if another daemon writes it all the same, ``VersionMismatch``
    if its layout is another, ``SegmentError`` if it can be neither found nor made.
    """
    keys = candidate_keys(instance_id)
    found = {stat.key: stat for stat in sysv.list_segments() if stat.key in keys}
    for key in keys:
        if key in found and found[key].cuid == os.geteuid():
            held = segment.attach(found[key].id, readonly=False)
            try:
                if roster := _recognise(held, instance, instance_id):
                    return roster
            except BaseException:
                held.close()
                raise
            held.close()
    for key in keys:
        try:
            held = segment.create(layout.ROSTER_BYTES, mode=_MODE, key=key)
        except SegmentExists:
            continue
        failpoint.reach("roster-made")
        _format(held, instance, instance_id)
        return Roster(held, None)
    raise ConfigError(
        f"other programs hold all {len(keys)} keys that the roster of instance {instance!r} may have",
        f"remove one of these segments, or choose another --instance: {', '.join(map(hex, keys))}",
    )


def _recognise(held: segment.Segment, instance: str, instance_id: bytes) -> Roster | None:
    """The roster in a segment that we once created; None if it is something else."""
    if held.size_bytes == layout.ROSTER_BYTES and _core.load_word(held.mapping, 0) == 0:
        _format(held, instance, instance_id)  # its maker was killed before it could
        return Roster(held, None)
    try:
        _check(held)
    except ConfigError:
        return None
    header = Header.unpack(bytes(held.buf[: layout.HEADER_BYTES]))
    if header.instance_id != instance_id:
        return None
    writer = liveness.Process(header.pid, header.start_time)
    same_namespaces = (header.pid_namespace, header.time_namespace) == liveness.namespaces()
    ours = writer == liveness.process(os.getpid()) and held.id not in _open_here
    if header.pid != liveness.UNKNOWN and same_namespaces and not ours and not liveness.is_dead(writer):
        raise ConfigError(
            f"instance {instance!r} has a daemon already (pid {header.pid}), in another runtime directory",
            "stop it, or give this one another --instance",
        )
    return Roster(held, header)


def _format(held: segment.Segment, instance: str, instance_id: bytes) -> None:
    header = Header(
        version=layout.VERSION,
        instance_id=instance_id,
        instance=instance,
        pid=liveness.UNKNOWN,
        start_time=liveness.UNKNOWN,
        pid_namespace=0,
        time_namespace=0,
        generation=0,
        publishers_numbered=0,
    )
    held.buf[: layout.HEADER_BYTES] = header.pack()
    failpoint.reach("roster-formatted")
    _core.store_word(held.mapping, layout.HEADER.table["magic"][0], layout.MAGIC)


def _check(held: segment.Segment) -> None:
    """``ConfigError`` if this is no roster, ``VersionMismatch`` if it is one of another major version."""
    if held.size_bytes < layout.HEADER_BYTES or _core.load_word(held.mapping, 0) != layout.MAGIC:
        raise ConfigError(f"segment {held.id} is no roster")
    major = Header.unpack(bytes(held.buf[: layout.HEADER_BYTES])).version >> 16
    if major != layout.VERSION_MAJOR:
        raise VersionMismatch(
            f"the roster (segment {held.id}) has layout version {major}, this is shmd for {layout.VERSION_MAJOR}",
            "end it with the version that made it (shmd stop, shmd purge), or reboot",
        )
    if held.size_bytes != layout.ROSTER_BYTES:
        raise ConfigError(f"segment {held.id} of {held.size_bytes} bytes is no roster, which has {layout.ROSTER_BYTES}")


def _free(rows: _Rows, taken: set[int]) -> list[int]:
    """Sorted, hence a heap."""
    return [index for index in range(rows.count) if index not in taken]
