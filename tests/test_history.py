"""The history checker on good histories, and on doctored ones, each of which breaks one law."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmd.cli.torture.history import (
    Attempt,
    LogWriter,
    MalformedHistory,
    Published,
    Receipt,
    Received,
    TopicHistory,
    Value,
    load,
)
from shmd.cli.torture.laws import check, longest_pause_ns

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    Mutation: TypeAlias = Callable[[random.Random, TopicHistory], None]

WRITERS = 3


def good(chance: random.Random, *, wait: bool) -> TopicHistory:
    """What a broker without a fault lets happen: pieces of values in some order, readers that come and go."""
    history = TopicHistory("t", wait, [Published(writer) for writer in range(WRITERS)])
    log: list[Value] = []
    for _ in range(chance.randrange(10, 40)):
        _publish(chance.choice(history.published), log, chance.randrange(1, 4))
    for story in history.published[1:]:
        _die(story, log, chance)
    _publish(history.published[0], log, 1)  # by one who lives, so that the last record is an acknowledged one
    history.published[0].ended = True
    for reader in range(3):
        joined = chance.randrange(len(log) // 2)
        ended = reader == 0 or chance.random() < 0.5
        last = len(log) if ended else chance.randrange(joined, len(log))
        history.received.append(Received(100 + reader, joined, _read(chance, log[:last], joined, wait=wait), [], ended))
    return history


def _publish(story: Published, log: list[Value], count: int) -> None:
    n = story.attempts[-1].n + story.attempts[-1].count if story.attempts else 1
    log.extend(Value(story.writer, n + offset) for offset in range(count))
    story.attempts.append(Attempt(n, count, len(log)))


def _die(story: Published, log: list[Value], chance: random.Random) -> None:
    """Killed in a publish: before it, or after it but before the answer was noted."""
    if chance.random() < 0.5:
        _publish(story, log, chance.randrange(1, 4))
        story.attempts[-1] = replace(story.attempts[-1], seq=None)
    elif chance.random() < 0.5:
        n = story.attempts[-1].n + story.attempts[-1].count if story.attempts else 1
        story.attempts.append(Attempt(n, 2, None))


def _read(chance: random.Random, log: list[Value], joined: int, *, wait: bool) -> list[Receipt]:
    receipts, lost = [], 0
    for index in range(joined, len(log)):
        if not wait and not lost and index < len(log) - 1 and chance.random() < 0.2:
            lost += 1
            continue
        receipts.append(Receipt(index + 1, 50 + log[index].writer, log[index], lost))
        lost = 0
    return receipts


def middle(chance: random.Random, history: TopicHistory) -> tuple[list[Receipt], int]:
    """The receipts of the reader that saw the end, and the place of one that is neither the first nor the last."""
    receipts = history.received[0].receipts
    return receipts, chance.randrange(1, len(receipts) - 1)


def drop_in_the_middle(chance: random.Random, history: TopicHistory) -> None:
    receipts, place = middle(chance, history)
    del receipts[place]


def drop_the_first(chance: random.Random, history: TopicHistory) -> None:
    del history.received[0].receipts[0]


def drop_the_last(chance: random.Random, history: TopicHistory) -> None:
    del history.received[0].receipts[-1]


def deliver_twice(chance: random.Random, history: TopicHistory) -> None:
    receipts, place = middle(chance, history)
    receipts.insert(place, receipts[place])


def deliver_a_value_again(chance: random.Random, history: TopicHistory) -> None:
    receipts, place = middle(chance, history)
    receipts[place] = receipts[place]._replace(value=receipts[place - 1].value)


def swap_two(chance: random.Random, history: TopicHistory) -> None:
    """Of which one was acknowledged. Two that were not can stand either way, as far as one reader can tell."""
    receipts = history.received[0].receipts
    acknowledged = {attempt.seq for story in history.published for attempt in story.attempts}
    place = chance.choice([at for at in range(1, len(receipts)) if receipts[at].seq in acknowledged])
    first, second = receipts[place - 1], receipts[place]
    receipts[place - 1], receipts[place] = first._replace(value=second.value), second._replace(value=first.value)


def overstate_the_loss(chance: random.Random, history: TopicHistory) -> None:
    receipts, place = middle(chance, history)
    receipts[place] = receipts[place]._replace(lost=receipts[place].lost + 1)


def lose_and_say_so(chance: random.Random, history: TopicHistory) -> None:
    receipts, place = middle(chance, history)
    receipts[place + 1] = receipts[place + 1]._replace(lost=receipts[place + 1].lost + 1 + receipts[place].lost)
    del receipts[place]


def tear(chance: random.Random, history: TopicHistory) -> None:
    history.received[0].torn.append(7)


def invent(chance: random.Random, history: TopicHistory) -> None:
    receipts, place = middle(chance, history)
    receipts[place] = receipts[place]._replace(value=Value(0, 10_000))


def forget_a_publication(chance: random.Random, history: TopicHistory) -> None:
    """Received, but its publisher never began it."""
    del history.published[0].attempts[-1]


def acknowledge_another_number(chance: random.Random, history: TopicHistory) -> None:
    story = history.published[0]
    attempt = story.attempts[-1]
    assert attempt.seq is not None
    story.attempts[-1] = replace(attempt, seq=attempt.seq - 1)


def skip_a_number(chance: random.Random, history: TopicHistory) -> None:
    """The log has a hole that everybody agrees on: numbers that belong to no publication."""
    story, last = history.published[0], history.published[0].attempts[-1]
    assert last.seq is not None
    story.attempts[-1] = replace(last, seq=last.seq + 100)
    for received in history.received:
        if received.ended:
            received.receipts[-1] = received.receipts[-1]._replace(seq=last.seq + 100, lost=100)


def go_on_without_an_answer(chance: random.Random, history: TopicHistory) -> None:
    attempts = history.published[0].attempts
    attempts[-1] = replace(attempts[-1], seq=None)


def split_a_piece(chance: random.Random, history: TopicHistory) -> None:
    """A dying publisher's piece, of which one half came through and the other did not."""
    story = Published(77, [Attempt(1, 2, None)])
    end = history.published[0].attempts[-1]
    assert end.seq is not None
    history.published.append(story)
    history.published[0].attempts[-1] = replace(end, seq=end.seq + 1)
    for received in history.received:
        if received.ended:
            last = received.receipts[-1]
            torn = last._replace(number=99, value=Value(77, 1))
            received.receipts[-1:] = [torn, last._replace(seq=last.seq + 1, lost=0)]


def share_a_publisher_number(chance: random.Random, history: TopicHistory) -> None:
    receipts = history.received[0].receipts
    writers = {receipt.value.writer for receipt in receipts}
    if len(writers) == 1:  # give the second writer a record, consistently
        receipts.append(receipts[-1]._replace(seq=receipts[-1].seq + 1, lost=0, value=Value(88, 1)))
        history.published.append(Published(88, [Attempt(1, 1, receipts[-1].seq)]))
    history.received[0].receipts = [receipt._replace(number=1) for receipt in receipts]


def receive_before_joining(chance: random.Random, history: TopicHistory) -> None:
    history.received[0].joined_after = None


ALWAYS: dict[Mutation, set[str]] = {
    drop_in_the_middle: {"missing"},
    drop_the_last: {"missing"},
    deliver_twice: {"duplicate"},
    deliver_a_value_again: {"duplicate"},
    swap_two: {"order"},
    overstate_the_loss: {"missing"},
    tear: {"torn"},
    invent: {"invented"},
    forget_a_publication: {"invented"},
    acknowledge_another_number: {"duplicate"},
    skip_a_number: {"invented"},
    go_on_without_an_answer: {"unended"},
    split_a_piece: {"torn"},
    share_a_publisher_number: {"number"},
    receive_before_joining: {"order"},
}
"""Each mutation, and the law it must be found to break."""
ON_WAIT: dict[Mutation, set[str]] = ALWAYS | {drop_the_first: {"missing"}, lose_and_say_so: {"lost"}}


@given(st.randoms(use_true_random=False), st.booleans())
def test_checker_passes_what_can_be_true(chance: random.Random, wait: bool) -> None:
    assert check([good(chance, wait=wait)]) == []


@pytest.mark.parametrize("mutation", ON_WAIT, ids=lambda mutation: mutation.__name__)
@given(st.randoms(use_true_random=False))
def test_checker_names_the_law_that_is_broken_on_a_wait_topic(mutation: Mutation, chance: random.Random) -> None:
    history = good(chance, wait=True)
    doctored = copy.deepcopy(history)
    mutation(chance, doctored)
    assert ON_WAIT[mutation] <= {violation.law for violation in check([doctored])}


@pytest.mark.parametrize("mutation", ALWAYS, ids=lambda mutation: mutation.__name__)
@given(st.randoms(use_true_random=False))
def test_checker_names_the_law_that_is_broken_on_a_discarding_topic(mutation: Mutation, chance: random.Random) -> None:
    history = good(chance, wait=False)
    mutation(chance, history)
    assert ALWAYS[mutation] <= {violation.law for violation in check([history])}


@given(st.randoms(use_true_random=False), st.booleans())
def test_history_survives_its_way_through_logs(chance: random.Random, wait: bool) -> None:
    """Written by the participants, each to its own file, with a last line cut off; read back, it is the same."""
    history = good(chance, wait=wait)
    with tempfile.TemporaryDirectory() as directory:
        logs = {story.writer: Path(directory, f"p{story.writer}") for story in history.published}
        logs |= {story.reader: Path(directory, f"s{story.reader}") for story in history.received}
        for story in history.published:
            _write_published(logs[story.writer], story)
        for seen in history.received:
            _write_received(logs[seen.reader], seen)
        loaded = load(logs, {"t": wait})
    history.published = [story for story in history.published if story.attempts]
    assert loaded == [history]


def _write_published(path: Path, story: Published) -> None:
    with LogWriter(path) as log:
        for attempt in story.attempts:
            log.begin("t", attempt.n, attempt.count)
            if attempt.seq is not None:
                log.acknowledge("t", attempt.seq, attempt.time_ns)
        if story.ended:
            log.end("t")
    with path.open("ab") as file:
        file.write(b"A t 1")  # torn


def _write_received(path: Path, story: Received) -> None:
    with LogWriter(path) as log:
        assert story.joined_after is not None
        log.join("t", story.joined_after)
        for receipt in story.receipts:
            log.receive("t", receipt)
        if story.ended:
            log.end("t")


@pytest.mark.parametrize("line", [b"X t 1", b"A t 1 2", b"B t", b"R t 1", b"", b"J t x", b"B elsewhere 1 1", b"\xff t"])
def test_load_names_the_line_that_no_participant_writes(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"J t 0\n" + line + b"\n")
    with pytest.raises(MalformedHistory, match="line 2"):
        load({1: path}, {"t": True})


def test_load_takes_a_participant_that_died_before_its_first_word(tmp_path: Path) -> None:
    assert load({1: tmp_path / "absent"}, {"t": True}) == [TopicHistory("t", wait=True)]


def test_checker_allows_only_an_unanswered_publish_to_be_absent() -> None:
    history = TopicHistory("t", True, [Published(1, [Attempt(1, 1, 1), Attempt(2, 1, None)])], [])
    receipts = [Receipt(1, 5, Value(1, 1), 0)]
    history.received.append(Received(2, 0, receipts, ended=True))
    assert check([history]) == []
    receipts.append(Receipt(2, 5, Value(1, 2), 0))
    assert check([history]) == []
    receipts.append(Receipt(3, 5, Value(1, 3), 0))
    assert {violation.law for violation in check([history])} == {"invented"}


def test_longest_pause_leaves_out_when_somebody_was_stopped() -> None:
    published = Published(1, [Attempt(1, 1, 1, 100), Attempt(2, 1, 2, 200), Attempt(3, 1, 3, 900)])
    received = Received(2, 0, [Receipt(1, 1, Value(1, 1), 0, 100, 340)])
    histories = [TopicHistory("t", True, [published], [received])]
    assert longest_pause_ns(histories, lambda topic, participant: []) == 700
    assert longest_pause_ns(histories, lambda topic, participant: [(150, 1000)][participant - 1 :]) == 240
    assert longest_pause_ns(histories, lambda topic, participant: [(700, 850), (250, 600)]) == 150
    assert longest_pause_ns([], lambda topic, participant: []) == 0


def test_longest_pause_is_not_how_far_a_reader_lags() -> None:
    receipts = [Receipt(n, 1, Value(1, n), 0, 100 + n, 1000 * n) for n in range(1, 9)]
    histories = [TopicHistory("t", False, [], [Received(2, 0, receipts)])]
    assert longest_pause_ns(histories, lambda topic, participant: []) == 1000
