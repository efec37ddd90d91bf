"""The log against a plain Python model: Hypothesis drives both, on rings so small that everything wraps."""

from __future__ import annotations

import contextlib

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shmd import _core
from tests.local_topic import drain, local_topic

CAPACITY = 4096
OVERHEAD = _core.RECORD_OVERHEAD_BYTES
SIZE_MAX = CAPACITY // 4 - OVERHEAD


def ring_bytes(payload: bytes) -> int:
    return (OVERHEAD + len(payload) + 7) // 8 * 8


class ModelLog:
    """What the log should be: (position, payload) of every record ever, and where the kept ones begin."""

    def __init__(self) -> None:
        self.tail = 0
        self.head = 0
        self.ends: list[tuple[int, int, bytes]] = []
        """For record seq at index seq - 1: where its padding or itself starts, where it ends, its payload."""

    def place(self, payloads: list[bytes]) -> list[tuple[int, int, bytes]]:
        placed, at = [], self.tail
        for payload in payloads:
            start, size = at, ring_bytes(payload)
            if at % CAPACITY + size > CAPACITY:
                at += CAPACITY - at % CAPACITY
            placed.append((start, at + size, payload))
            at += size
        return placed

    def head_for(self, end: int) -> int:
        """The first boundary at or above what must be given up."""
        boundaries = [self.head]
        for start, stop, payload in self.ends:
            if stop <= self.head:
                continue
            if stop - ring_bytes(payload) != start:
                boundaries.append(stop - ring_bytes(payload))
            boundaries.append(stop)
        return next(b for b in boundaries if b >= end - CAPACITY)

    def append(self, payloads: list[bytes], floor: int | None) -> bool:
        """False: full, because a tethered cursor stands at ``floor``."""
        placed = self.place(payloads)
        end = placed[-1][1]
        if end - self.head > CAPACITY:
            head = self.head_for(end)
            if floor is not None and head > floor:
                return False
            self.head = head
        self.ends += placed
        self.tail = end
        return True


class ModelReader:
    def __init__(self, cursor: _core.Cursor, seq: int, position: int) -> None:
        self.cursor = cursor
        self.next_seq = seq
        self.position = position


payload_sizes = st.one_of(st.integers(0, 64), st.integers(0, SIZE_MAX), st.just(SIZE_MAX))
payloads_of_any_size = st.builds(lambda size, byte: bytes([byte]) * size, payload_sizes, st.integers(0, 255))


class LogMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.readers: dict[int, ModelReader] = {}
        self.model = ModelLog()

    @initialize(wait=st.booleans(), exclusive=st.booleans())
    def open(self, wait: bool, exclusive: bool) -> None:
        self.wait = wait
        self.topic = self.stack.enter_context(local_topic(CAPACITY, wait=wait, exclusive=exclusive))
        self.appender = self.topic.appender()

    def floor(self) -> int | None:
        positions = [reader.position for reader in self.readers.values()]
        return min(positions) if self.wait and positions else None

    @rule(payloads=st.lists(payloads_of_any_size, min_size=1, max_size=4))
    def append(self, payloads: list[bytes]) -> None:
        if sum(map(ring_bytes, payloads)) > CAPACITY // 4:
            payloads = payloads[:1]
        expected = self.model.append(payloads, self.floor())
        one = len(payloads) == 1
        seq = self.appender.append(payloads[0]) if one else self.appender.append_many(payloads)
        assert seq == (len(self.model.ends) if expected else _core.FULL)

    @rule(slot=st.integers(0, 3), start=st.sampled_from(["new", "last", "all"]))
    def join(self, slot: int, start: str) -> None:
        if slot in self.readers:
            self.readers.pop(slot).cursor.close()
        cursor = self.topic.cursor(slot)
        assert getattr(cursor, f"seek_{start}")()
        assert cursor.join()
        kept = [(seq, at) for seq, at in self.kept() if at >= self.model.head]
        if start == "all":
            seq, position = (kept[0][0], self.model.head) if kept else (len(self.model.ends) + 1, self.model.tail)
        elif start == "last" and self.model.ends:
            seq = len(self.model.ends)
            position = self.model.ends[-1][1] - ring_bytes(self.model.ends[-1][2])
        else:
            seq, position = len(self.model.ends) + 1, self.model.tail
        assert cursor.position == position
        self.readers[slot] = ModelReader(cursor, seq, position)

    def kept(self) -> list[tuple[int, int]]:
        """(seq, where it starts) of all records that are still there."""
        return [
            (seq, end - ring_bytes(payload))
            for seq, (_, end, payload) in enumerate(self.model.ends, 1)
            if end - ring_bytes(payload) >= self.model.head
        ]

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), bytes_max=st.integers(0, 2 * CAPACITY))
    def read(self, data: st.DataObject, bytes_max: int) -> None:
        reader = self.readers[data.draw(st.sampled_from(sorted(self.readers)))]
        for record in drain(reader.cursor, bytes_max):
            first_kept = self.kept()[0][0]
            lost = max(0, first_kept - reader.next_seq)
            assert (record.lost, record.seq) == (lost, reader.next_seq + lost)
            assert record.raw == self.model.ends[record.seq - 1][2]
            reader.next_seq = record.seq + 1
        assert reader.next_seq == len(self.model.ends) + 1
        assert reader.cursor.position == self.model.tail
        reader.position = self.model.tail

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.readers.pop(data.draw(st.sampled_from(sorted(self.readers)))).cursor.close()

    @rule(seq=st.integers(1, 80))
    def seek_seq(self, seq: int) -> None:
        cursor = self.topic.cursor(4, tethered=False)
        while not cursor.seek_seq(seq, 7):
            pass
        assert cursor.join()
        records = drain(cursor)
        kept = self.kept()
        wanted = [k for k, _ in kept if k >= seq]
        assert [r.seq for r in records] == wanted
        if records:
            assert records[0].lost == max(0, kept[0][0] - seq)
            assert not any(r.lost for r in records[1:])
        cursor.close()

    @invariant()
    def looks_right_from_outside(self) -> None:
        if not hasattr(self, "topic"):
            return
        stat = self.topic.log.stat()
        kept = self.kept()
        assert (stat["head"], stat["tail"]) == (self.model.head, self.model.tail)
        assert stat["published"] == stat["last_seq"] == len(self.model.ends)
        assert stat["first_seq"] == (kept[0][0] if kept else 0)
        newest = self.topic.log.newest(bytes)
        assert (newest.raw if newest else None) == (self.model.ends[-1][2] if self.model.ends else None)
        for slot, reader in self.readers.items():
            _, live, tethered, lag, _ = self.topic.log.slot_stat(slot)
            assert (live, tethered, lag) == (True, self.wait, self.model.tail - reader.position)

    def teardown(self) -> None:
        self.stack.close()


TestLog = LogMachine.TestCase
