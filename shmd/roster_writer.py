"""One segment of a roster, as its daemon writes it: the only writer, in the thread of its event loop.

Intents are excepted: threads that make topics and segments note them, and the loop clears them.
"""

from __future__ import annotations

import heapq
import logging
import os
import queue
from typing import TYPE_CHECKING

from shmd import _core, failpoint, liveness
from shmd import roster_layout as layout
from shmd.errors import LimitExceeded
from shmd.roster_layout import (
    FREE,
    INTENT_SEGMENT,
    INTENT_TOPIC,
    QUARANTINED,
    REMOVING,
    IntentRow,
    ParticipantRow,
    SegmentRow,
    TopicRow,
)
from shmd.roster_reader import Rows, Tables

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from shmd import segment
    from shmd.roster_layout import Header

logger = logging.getLogger(__name__)


class _FreeRows:
    """Which rows of a table are free. The lowest are taken first: memory of rows that nobody needs is never touched."""

    def __init__(self, count: int, taken: set[int]) -> None:
        self._count = count
        self._next = max(taken, default=-1) + 1
        self._given_back = [index for index in range(self._next) if index not in taken]  # sorted, hence a heap

    def take(self, what: str) -> int:
        if self._given_back:
            return heapq.heappop(self._given_back)
        if self._next == self._count:
            raise LimitExceeded(
                f"the roster has {self._count} {what}, damaged ones included", "see shmd fsck; remove some"
            )
        self._next += 1
        return self._next - 1

    def give_back(self, index: int) -> None:
        heapq.heappush(self._given_back, index)


class Intent:
    """That something is about to be created: to note it is for the creating thread, all else for the loop's.

    A context manager that clears it.
    """

    def __init__(self, rows: Rows, free: queue.SimpleQueue[int], cleared: Callable[[], object]) -> None:
        self._rows = rows
        self._free = free
        self._cleared = cleared
        self._index: int | None = None

    def note_topic(self, log_key: int, ctl_key: int) -> None:
        """Segments with these keys, instead of any before. Waits for a row if all are taken."""
        self._note(INTENT_TOPIC, log_key, ctl_key)

    def note_segment(self, key: int, semaphore_key: int) -> None:
        """A segment and a semaphore with these keys (0: none), instead of any before. Waits for a row, too."""
        self._note(INTENT_SEGMENT, key, semaphore_key)

    def _note(self, kind: int, first_key: int, second_key: int) -> None:
        if self._index is None:
            self._index = self._free.get()
        self._rows.commit(self._index, FREE)
        row = IntentRow(kind=kind, first_key=first_key, second_key=second_key, pid=os.getpid())
        self._rows.write(self._index, row.pack())
        failpoint.reach("intent-noted")

    def clear(self) -> None:
        """What was created is noted as what it is, or gone."""
        if self._index is not None:
            self._rows.commit(self._index, FREE)
            self._free.put(self._index)
        failpoint.reach("intent-cleared")
        self._cleared()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.clear()


class RosterWriter(Tables):
    """One segment, with an index of its rows."""

    def __init__(self, held: segment.Segment) -> None:
        super().__init__(held)
        self._topic_index: dict[bytes, int] = {}
        self._segment_index: dict[bytes, int] = {}
        self._participant_index: dict[tuple[int, int, bytes], int] = {}
        self._index_rows()
        self._free_topics = _FreeRows(self._topics.count, set(self._topic_index.values()))
        self._free_segments = _FreeRows(self._segments.count, set(self._segment_index.values()))
        self._free_participants = _FreeRows(self._participants.count, set(self._participant_index.values()))
        self._free_intents: queue.SimpleQueue[int] = queue.SimpleQueue()
        taken = {index for index, _, _ in self._intents.read()}
        self._intents_open = len(taken)
        for index in range(self._intents.count):
            if index not in taken:
                self._free_intents.put(index)

    def _index_rows(self) -> None:
        """Rows that no daemon wrote, or not so, are nobody's: they are free."""
        for index, state, raw in list(self._topics.read()):
            row = TopicRow.unpack(state, raw)
            if row.topic_id in self._topic_index:
                logger.error("the roster notes topic %r twice; its second row is dropped", row.name)
                self._topics.commit(index, FREE)
            else:
                self._topic_index[row.topic_id] = index
        for index, state, raw in list(self._segments.read()):
            segment_row = SegmentRow.unpack(state, raw)
            if segment_row.segment_id in self._segment_index:
                logger.error("the roster notes segment %r twice; its second row is dropped", segment_row.name)
                self._segments.commit(index, FREE)
            else:
                self._segment_index[segment_row.segment_id] = index
        for index, _, raw in list(self._participants.read()):
            participant = ParticipantRow.unpack(raw)
            if participant is None or participant.key in self._participant_index:
                logger.error("row %d of the roster's participants is damaged, and dropped", index)
                self._participants.commit(index, FREE)
            else:
                self._participant_index[participant.key] = index

    @property
    def notes_anything(self) -> bool:
        """Whether it notes a topic or a raw segment, in whatever state."""
        return bool(self._topic_index or self._segment_index)

    @property
    def idle(self) -> bool:
        """Whether it notes nothing, and nobody is about to note anything."""
        return not (self.notes_anything or self._participant_index or self._intents_open)

    def has(self, topic_id: bytes) -> bool:
        """Whether it notes this topic, or the raw segment of this id."""
        return topic_id in self._topic_index or topic_id in self._segment_index

    def has_participant(self, key: tuple[int, int, bytes]) -> bool:
        return key in self._participant_index

    # --- topics ---

    def note_topic(self, row: TopicRow) -> None:
        """``LimitExceeded`` if there is no row left."""
        index = self._free_topics.take("topics")
        self._topics.write(index, row.pack())
        self._topic_index[row.topic_id] = index

    def begin_removal(self, topic_id: bytes) -> None:
        self._topics.commit(self._topic_index[topic_id], REMOVING)

    def quarantine(self, topic_id: bytes) -> None:
        self._topics.commit(self._topic_index[topic_id], QUARANTINED)

    def forget_topic(self, topic_id: bytes) -> None:
        index = self._topic_index.pop(topic_id)
        self._topics.commit(index, FREE)
        self._free_topics.give_back(index)

    def raise_incarnation(self, topic_id: bytes, incarnation: int) -> None:
        offset = self._topics.offset(self._topic_index[topic_id]) + layout.TOPIC.table["incarnation_max"][0]
        self._raise_word(offset, incarnation)

    # --- raw segments ---

    def note_segment(self, row: SegmentRow) -> None:
        """``LimitExceeded`` if there is no row left."""
        index = self._free_segments.take("segments")
        self._segments.write(index, row.pack())
        self._segment_index[row.segment_id] = index

    def begin_segment_removal(self, segment_id: bytes) -> None:
        self._segments.commit(self._segment_index[segment_id], REMOVING)

    def forget_segment(self, segment_id: bytes) -> None:
        index = self._segment_index.pop(segment_id)
        self._segments.commit(index, FREE)
        self._free_segments.give_back(index)

    # --- participants ---

    def note_participant(self, row: ParticipantRow) -> None:
        index = self._free_participants.take("participants")
        self._participants.write(index, row.pack())
        self._participant_index[row.key] = index

    def forget_participant(self, key: tuple[int, int, bytes]) -> None:
        index = self._participant_index.pop(key)
        self._participants.commit(index, FREE)
        self._free_participants.give_back(index)

    # --- intents ---

    def intent(self, cleared: Callable[[], object]) -> Intent:
        """``cleared`` is called when it has been."""
        self._intents_open += 1

        def clear() -> None:
            self._intents_open -= 1
            cleared()

        return Intent(self._intents, self._free_intents, clear)

    def clear_intents(self) -> None:
        """All that an earlier daemon intended is settled."""
        for index, _, _ in list(self._intents.read()):
            self._intents.commit(index, FREE)
            self._free_intents.put(index)
            self._intents_open -= 1

    # --- the header ---

    def format(self, header: Header) -> None:
        """Make a roster of a segment of zeros; the magic comes last."""
        self._held.buf[: layout.HEADER_BYTES] = header.pack()
        failpoint.reach("roster-formatted")
        _core.store_word(self._held.mapping, layout.HEADER.table["magic"][0], layout.MAGIC)

    def sign(self, generation: int, publishers_numbered: int) -> None:
        """From now on this process writes; the pid comes last, so that it never names another process."""
        me = liveness.process(os.getpid())
        pid_namespace, time_namespace = liveness.namespaces()
        self.resign()
        self._store("start_time", me.start_time)
        self._store("pid_namespace", pid_namespace)
        self._store("time_namespace", time_namespace)
        self._store("generation", generation)
        self._store("publishers_numbered", publishers_numbered)
        self._store("pid", me.pid)
        failpoint.reach("generation-raised")

    def resign(self) -> None:
        """Nobody writes."""
        self._store("pid", liveness.UNKNOWN)

    def number_publisher(self, number: int) -> None:
        """A number is given out: no later daemon may give it, or one below."""
        self._raise_word(layout.HEADER.table["publishers_numbered"][0], number)

    def point_at(self, lasting: RosterWriter | None) -> None:
        """This, the transient segment, says where the lasting one is."""
        self._store("lasting", 0 if lasting is None else lasting.id + 1)

    def close(self) -> None:
        """Detach."""
        self._held.close()

    def _store(self, field: str, value: int) -> None:
        _core.store_word(self._held.mapping, layout.HEADER.table[field][0], value)

    def _raise_word(self, offset: int, value: int) -> None:
        if _core.load_word(self._held.mapping, offset) < value:
            _core.store_word(self._held.mapping, offset, value)
