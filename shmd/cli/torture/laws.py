"""Whether what publishers did and what subscribers saw can both be true: the laws that no history may break.

| law       | on every topic                                                                               |
|-----------|----------------------------------------------------------------------------------------------|
| torn      | a value arrives whole, and what was published in one piece is in one piece                   |
| order     | a record is the same value to everybody; each publisher's stand in the order of publication  |
| duplicate | a value is one record, and nobody gets a record twice                                        |
| invented  | every record was published                                                                   |
| missing   | received + lost = published, from where a subscriber joined to where it ended                |
| number    | a publisher number is one publisher's                                                        |
| unended   | whoever goes on had an answer                                                                |
| lost      | on `wait` topics: nothing is lost                                                            |

What each participant's lifetime covers is all that it is held to: of a killed publisher the last piece, not
acknowledged, may be there or not; a killed subscriber answers for what it got before.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from shmd.cli.torture.history import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from shmd.cli.torture.history import Published, Receipt, Received, TopicHistory

_SHOWN_MAX: Final = 20
"""Violations of one law on one topic that are told; a broken law is broken often."""


class Violation(NamedTuple):
    """A law, and how it was broken."""

    law: str
    topic: str
    what: str

    def __str__(self) -> str:
        return f"{self.law} on {self.topic}: {self.what}"


def check(histories: Iterable[TopicHistory]) -> list[Violation]:
    """Every law that the histories break; none: all of them can be true."""
    found: list[Violation] = []
    for history in histories:
        told: dict[str, int] = defaultdict(int)
        for law, what in _Checker(history).run():
            told[law] += 1
            if told[law] <= _SHOWN_MAX:
                found.append(Violation(law, history.name, what))
    return found


class _Checker:
    """The laws of one topic."""

    def __init__(self, history: TopicHistory) -> None:
        self._history = history
        self._order: dict[int, Value] = {}
        self._places: dict[Value, int] = {}
        self._writers: dict[int, int] = {}

    def run(self) -> Iterator[tuple[str, str]]:
        for published in self._history.published:
            yield from self._place_acknowledged(published)
        for received in self._history.received:
            yield from self._follow(received)
        yield from self._check_unacknowledged()
        yield from self._check_each_writers_order()
        yield from self._check_nothing_between()
        yield from self._check_ends()

    def _place(self, seq: int, value: Value, who: str) -> Iterator[tuple[str, str]]:
        known = self._order.setdefault(seq, value)
        if known != value:
            yield (
                "order",
                f"record {seq} is value {known.n} of {known.writer}, but {who} says {value.n} of {value.writer}",
            )
        place = self._places.setdefault(value, seq)
        if place != seq:
            yield "duplicate", f"{value} is record {place}, but to {who} it is {seq}"

    def _place_acknowledged(self, story: Published) -> Iterator[tuple[str, str]]:
        expected, last = 1, 0
        for index, attempt in enumerate(story.attempts):
            if attempt.n != expected:
                yield "order", f"publisher {story.writer} went from value {expected - 1} to {attempt.n}"
            expected = attempt.n + attempt.count
            if attempt.seq is None:
                if story.ended or index < len(story.attempts) - 1:
                    yield "unended", f"publisher {story.writer} went on without an answer for value {attempt.n}"
                continue
            first = attempt.seq - attempt.count + 1
            if first <= last:
                yield "order", f"publisher {story.writer} got record {first} for value {attempt.n}, after record {last}"
            last = attempt.seq
            for offset in range(attempt.count):
                yield from self._place(first + offset, Value(story.writer, attempt.n + offset), "its publisher")

    def _follow(self, story: Received) -> Iterator[tuple[str, str]]:
        who = f"subscriber {story.reader}"
        for seq in story.torn:
            yield "torn", f"{who} got record {seq} with another checksum than its value's"
        if story.receipts and story.joined_after is None:
            yield "order", f"{who} got record {story.receipts[0].seq} before it had joined"
        expected, exact = (story.joined_after or 0) + 1, False
        for receipt in story.receipts:
            yield from self._follow_one(who, receipt, expected, exact=exact)
            yield from self._place(receipt.seq, receipt.value, who)
            expected, exact = receipt.seq + 1, True

    def _follow_one(self, who: str, receipt: Receipt, expected: int, *, exact: bool) -> Iterator[tuple[str, str]]:
        """``exact``: this record is preceded by one. The first may be older than what was there after the join."""
        claimed = receipt.seq - receipt.lost
        if exact and receipt.seq < expected:
            yield "duplicate", f"{who} got record {receipt.seq} after record {expected - 1}"
        elif claimed > expected or (exact and claimed != expected):
            missing = receipt.seq - expected
            yield (
                "missing",
                f"{who} got record {receipt.seq} after {expected - 1}, told of {receipt.lost} not {missing}",
            )
        if self._history.wait and receipt.lost:
            yield "lost", f"{who} lost {receipt.lost} records before record {receipt.seq}"
        writer = self._writers.setdefault(receipt.number, receipt.value.writer)
        if writer != receipt.value.writer:
            yield "number", f"publisher number {receipt.number} is {writer}'s and {receipt.value.writer}'s"

    def _check_unacknowledged(self) -> Iterator[tuple[str, str]]:
        """What was received was published, and what was published in one piece is in one piece."""
        begun: set[Value] = set()
        for story in self._history.published:
            for attempt in story.attempts:
                values = [Value(story.writer, attempt.n + offset) for offset in range(attempt.count)]
                begun.update(values)
                firsts = {self._places[value] - offset for offset, value in enumerate(values) if value in self._places}
                for first in firsts:
                    for offset, value in enumerate(values):
                        if self._order.get(first + offset, value) != value:
                            yield "torn", f"values {attempt.n} to {values[-1].n} of {story.writer} are not in one piece"
        for value, seq in self._places.items():
            if value not in begun:
                yield "invented", f"record {seq} is value {value.n} of {value.writer}, which nobody published"

    def _check_each_writers_order(self) -> Iterator[tuple[str, str]]:
        last: dict[int, tuple[int, int]] = {}
        for (writer, n), seq in sorted(self._places.items()):
            before_n, before_seq = last.get(writer, (0, 0))
            if seq < before_seq:
                yield "order", f"values {before_n} and {n} of {writer} are records {before_seq} and {seq}"
            last[writer] = n, seq

    def _check_nothing_between(self) -> Iterator[tuple[str, str]]:
        """Every number is an acknowledged record's, or one that a dying publisher may have taken."""
        acknowledged = self._history.acknowledged
        in_flight = sum(
            attempt.count for story in self._history.published for attempt in story.attempts if attempt.seq is None
        )
        last = max(self._order, default=0)
        if last < acknowledged:
            yield "duplicate", f"{acknowledged} records were acknowledged, but the last has number {last}"
        if last > acknowledged + in_flight:
            yield "invented", f"the last record is {last}; {acknowledged} acknowledged, {in_flight} perhaps: no more"

    def _check_ends(self) -> Iterator[tuple[str, str]]:
        last = max(self._order, default=0)
        for story in self._history.received:
            got = story.receipts[-1].seq if story.receipts else story.joined_after or 0
            if story.ended and got < last:
                yield "missing", f"subscriber {story.reader} ended after record {got} of {last}"


def longest_pause_ns(
    histories: Iterable[TopicHistory], excluded: Callable[[str, int], Sequence[tuple[int, int]]]
) -> int:
    """The longest time for which a participant that lived got nowhere: between two answers to a publisher, or to the
    arrival of a record from that of the one before, if it was there by then, or else from its publication.
    ``excluded``: by topic and participant, times in which it, or somebody whom it must wait for, was stopped.
    """
    longest = 0
    for history in histories:
        for story in history.published:
            apart = sorted(excluded(history.name, story.writer))
            times = [attempt.time_ns for attempt in story.attempts if attempt.seq is not None]
            longest = max(longest, *(_without(a, b, apart) for a, b in itertools.pairwise(times)), 0)
        for seen in history.received:
            apart = sorted(excluded(history.name, seen.reader))
            before = 0
            for receipt in seen.receipts:
                longest = max(longest, _without(max(before, receipt.sent_ns), receipt.received_ns, apart))
                before = receipt.received_ns
    return longest


def _without(start: int, end: int, apart: Sequence[tuple[int, int]]) -> int:
    """The longest stretch of ``start`` … ``end`` outside the times ``apart``, which are sorted."""
    longest = 0
    for begin, until in apart:
        if until > start and begin < end:
            longest = max(longest, begin - start)
            start = max(start, until)
    return max(longest, end - start)
