"""What publishers did and subscribers saw, and whether the two can both be true.

Every participant keeps a log: a file to which each event is appended by one write, so that a process killed anywhere
leaves all but, at worst, its last line. One line is one event on one topic:

    B topic n count                                         publisher: begins to publish values n to n + count - 1
    A topic seq time_ns                                     publisher: they are published, the last as record seq
    J topic last                                            subscriber: has joined; record ``last`` was the newest
    R topic seq number writer n lost sent_ns received_ns    subscriber: got a record whose value is whole
    T topic seq                                             subscriber: got a record whose value is torn
    E topic                                                 either: ended because it was told to

A value is known by its writer (the participant that published it) and ``n``, which every writer counts from 1;
``number`` is the publisher number that the record itself names.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Self

from shmd.errors import ShmdError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


class MalformedHistory(ShmdError):
    """A log that no participant writes."""

    code = "history"


class Value(NamedTuple):
    """What was published, by whom."""

    writer: int
    n: int


class Receipt(NamedTuple):
    """A record as one subscriber got it."""

    seq: int
    number: int
    value: Value
    lost: int
    sent_ns: int = 0
    received_ns: int = 0


@dataclass(frozen=True)
class Attempt:
    """Values ``n`` … ``n + count - 1``, published in one piece; ``seq`` is the last one's, None: not acknowledged."""

    n: int
    count: int
    seq: int | None
    time_ns: int = 0


@dataclass
class Published:
    """One publisher's story on one topic."""

    writer: int
    attempts: list[Attempt] = field(default_factory=list)
    ended: bool = False


@dataclass
class Received:
    """One subscriber's story on one topic. ``joined_after``: the newest record when it had joined; None: it has not."""

    reader: int
    joined_after: int | None = None
    receipts: list[Receipt] = field(default_factory=list)
    torn: list[int] = field(default_factory=list)
    ended: bool = False


@dataclass
class TopicHistory:
    """All stories of one topic. ``wait``: nothing may be lost on it."""

    name: str
    wait: bool
    published: list[Published] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)

    @property
    def acknowledged(self) -> int:
        """How many records publishers know to be published."""
        return sum(attempt.count for story in self.published for attempt in story.attempts if attempt.seq is not None)

    @property
    def receipts(self) -> int:
        """How many records subscribers got, all together."""
        return sum(len(story.receipts) for story in self.received)


class LogWriter:
    """A participant's log. Blocking, for a microsecond at a time."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def begin(self, topic: str, n: int, count: int) -> None:
        os.write(self._fd, b"B %s %d %d\n" % (topic.encode(), n, count))

    def acknowledge(self, topic: str, seq: int, time_ns: int) -> None:
        os.write(self._fd, b"A %s %d %d\n" % (topic.encode(), seq, time_ns))

    def join(self, topic: str, last: int) -> None:
        os.write(self._fd, b"J %s %d\n" % (topic.encode(), last))

    def receive(self, topic: str, receipt: Receipt) -> None:
        seq, number, (writer, n), lost, sent_ns, received_ns = receipt
        fields = (topic.encode(), seq, number, writer, n, lost, sent_ns, received_ns)
        os.write(self._fd, b"R %s %d %d %d %d %d %d %d\n" % fields)

    def tear(self, topic: str, seq: int) -> None:
        os.write(self._fd, b"T %s %d\n" % (topic.encode(), seq))

    def end(self, topic: str) -> None:
        os.write(self._fd, b"E %s\n" % topic.encode())

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()


def load(logs: Mapping[int, Path], topics: Mapping[str, bool]) -> list[TopicHistory]:
    """The history that these logs tell, by the number of the participant that wrote each. ``topics``: name → ``wait``.

    ``MalformedHistory`` names the line that cannot be, except that a log's last line may be cut off.
    """
    histories = {name: TopicHistory(name, wait) for name, wait in topics.items()}
    for participant, path in logs.items():
        published, received = _load_one(participant, path, topics)
        for topic, story in published.items():
            histories[topic].published.append(story)
        for topic, seen in received.items():
            histories[topic].received.append(seen)
    return list(histories.values())


def _load_one(participant: int, path: Path, topics: Iterable[str]) -> tuple[dict[str, Published], dict[str, Received]]:
    published = {topic: Published(participant) for topic in topics}
    received = {topic: Received(participant) for topic in topics}
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # what follows the last newline is torn
    for number, line in enumerate(lines, 1):
        try:
            kind, topic, *numbers = line.decode().split(" ")
            _add(kind, list(map(int, numbers)), published[topic], received[topic])
        except (KeyError, ValueError) as error:
            raise MalformedHistory(f"{path}, line {number}: {line!r} ({error})") from error
    return (
        {topic: story for topic, story in published.items() if story.attempts},
        {topic: seen for topic, seen in received.items() if seen != Received(participant)},
    )


def _add(kind: str, numbers: list[int], published: Published, received: Received) -> None:
    if kind == "B":
        n, count = numbers
        published.attempts.append(Attempt(n, count, None))
    elif kind == "A":
        seq, time_ns = numbers
        if not published.attempts:
            raise ValueError("nothing was begun")
        published.attempts[-1] = replace(published.attempts[-1], seq=seq, time_ns=time_ns)
    elif kind == "J":
        (received.joined_after,) = numbers
    elif kind == "R":
        seq, number, writer, n, lost, sent_ns, received_ns = numbers
        received.receipts.append(Receipt(seq, number, Value(writer, n), lost, sent_ns, received_ns))
    elif kind == "T":
        received.torn.extend(numbers)
    elif kind == "E":
        received.ended = received.joined_after is not None
        published.ended = not received.ended
    else:
        raise ValueError("no such event")
