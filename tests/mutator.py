"""Writes into shared memory what nobody writes: bytes and words at random, from a seed, where they hurt most."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING, Final

from shmd import _core, segment
from shmd import roster_layout as layout
from shmd.errors import SegmentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shmd.protocol import TopicInfo

NASTY: Final = tuple(
    value % 2**64
    for power in (0, 3, 7, 8, 12, 16, 30, 31, 32, 33, 34, 35, 62, 63, 64)
    for value in (2**power - 8, 2**power - 1, 2**power, 2**power + 8)
)
_NAN: Final = int.from_bytes(struct.pack("<d", float("nan")), "little")
_INFINITY: Final = int.from_bytes(struct.pack("<d", float("inf")), "little")
_LAYOUT: Final = _core.layout()
_SLOTS: Final = 6
_ROWS: Final = 12
"""How many slots, and rows of each of the roster's tables, are aimed at: those in use are the first."""


def _words(table: dict[str, tuple[int, int]], at: int = 0) -> list[int]:
    return [at + offset for offset, _ in table.values()]


_LOG_WORDS: Final = _words(_LAYOUT["log"])
_CTL_WORDS: Final = _words(_LAYOUT["ctl"]) + [
    word for slot in range(_SLOTS) for word in _words(_LAYOUT["slot"], _core.HEADER_BYTES + slot * _core.SLOT_BYTES)
]
_TABLES: Final = ((layout.TOPIC, layout.TOPICS_AT), (layout.PARTICIPANT, layout.PARTICIPANTS_AT))
_ROSTER_WORDS: Final = _words(layout.HEADER.table) + [
    word
    for fields, at in (*_TABLES, (layout.INTENT, layout.INTENTS_AT))
    for row in range(_ROWS)
    for word in _words(fields.table, at + row * fields.size_bytes)
]


class Mutator:
    """Attached, writable, to whatever it is told to damage."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._held: dict[int, segment.Segment] = {}
        self._targets: list[Callable[[], None]] = []
        self.count = 0

    def aim(self, topics: Iterable[TopicInfo] = (), roster_ids: Iterable[int] = ()) -> None:
        """At these from now on. One that is gone already is left out."""
        topics, roster_ids = list(topics), list(roster_ids)
        wanted = {shmid for info in topics for shmid in (info.log_id, info.ctl_id)}.union(roster_ids)
        for shmid in self._held.keys() - wanted:
            self._held.pop(shmid).close()
        self._targets = []
        for info in topics:
            if self._attach(info.log_id) and self._attach(info.ctl_id):
                self._targets += [self._log(info.log_id)] * 3 + [self._words(info.ctl_id, _CTL_WORDS)]
        self._targets += [self._words(shmid, _ROSTER_WORDS) for shmid in roster_ids if self._attach(shmid)]

    def mutate(self) -> None:
        """One mutation, somewhere. Counts only if there is anything to damage."""
        if self._targets:
            self._random.choice(self._targets)()
            self.count += 1

    def close(self) -> None:
        while self._held:
            self._held.popitem()[1].close()

    def _attach(self, shmid: int) -> bool:
        if shmid not in self._held:
            try:
                self._held[shmid] = segment.attach(shmid, readonly=False)
            except SegmentError:
                return False
        return True

    def _log(self, shmid: int) -> Callable[[], None]:
        """Words of the header, or of the records around head and tail."""
        buf = self._held[shmid].buf

        def damage() -> None:
            if self._random.random() < 0.4:
                self._damage(buf, self._random.choice(_LOG_WORDS))
                return
            ring = len(buf) - _core.HEADER_BYTES
            end = self._random.choice(("head", "tail"))
            position = _word(buf, _LAYOUT["log"][end][0]) + 8 * self._random.randrange(-16, 17)
            self._damage(buf, _core.HEADER_BYTES + position % ring)

        return damage

    def _words(self, shmid: int, words: list[int]) -> Callable[[], None]:
        buf = self._held[shmid].buf
        return lambda: self._damage(buf, self._random.choice(words))

    def _damage(self, buf: memoryview, at: int) -> None:
        """One of: flip bits of a byte, anywhere or here; move a word a little; store a nasty or a random one."""
        chance = self._random.random()
        if chance < 0.4:
            at = self._random.randrange(len(buf)) if chance < 0.1 else min(at + self._random.randrange(8), len(buf) - 1)
            buf[at] ^= self._random.randrange(1, 256)
            return
        width = self._random.choice((4, 8))
        at = min(at, len(buf) - width)
        value = _word(buf, at) + self._random.choice((-8, 8, 1, -1, SIZE, -SIZE))
        if chance > 0.6:
            value = self._random.choice((*NASTY, _NAN, _INFINITY, self._random.getrandbits(64)))
        buf[at : at + width] = (value % 2**64).to_bytes(8, "little")[:width]


SIZE: Final = _core.HEADER_BYTES


def _word(buf: memoryview, at: int) -> int:
    return int.from_bytes(buf[at : at + 8], "little")
