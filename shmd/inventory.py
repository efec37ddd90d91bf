"""Every segment that shmd made on this host, with or without a daemon: what it is, whose, and who still needs it.

A segment is known by the magic in its header, where we may read it, and by the rosters, which everybody may. A raw
segment has no header, and is known by its roster alone; one that was adopted is not shmd's. A roster
is believed about segments of its own creator only, so nobody can make a stranger's segment look needed, or like shmd's.

| state    | it means                                                                                                |
|----------|---------------------------------------------------------------------------------------------------------|
| alive    | its daemon runs, or somebody is attached                                                                |
| kept     | its daemon does not run, but noted it: the next one of that instance takes it over                      |
| orphaned | no roster notes it, and nobody is attached: nothing will ever find it again                             |

Segments are listed before rosters are read: whatever a daemon makes is noted before it exists, so a segment that is on
the list and in no roster is not one in the making.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from shmd import _core, fifo, liveness, roster_layout, segment, semaphore_store, sysv
from shmd.errors import ConfigError, SegmentError, UsageError, VersionMismatch
from shmd.roster_reader import RosterReader

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from shmd.roster_layout import Header, ParticipantRow, SegmentRow, TopicRow
    from shmd.sysv import SegmentStat

Kind: TypeAlias = Literal["log", "ctl", "roster", "segment", "unreadable"]
State: TypeAlias = Literal["alive", "kept", "orphaned"]

_KINDS: Final[dict[bytes, Kind]] = {b"SHMDLOG1": "log", b"SHMDCTL1": "ctl", b"SHMDROS1": "roster"}
_LAYOUT: Final = _core.layout()
_SLOT_LIVE: Final = 1 << 32
_SLOT_INCARNATION_SHIFT: Final = 34


@dataclass(frozen=True, slots=True)
class Found:
    """One segment of shmd. ``instance`` and ``topic`` (or a raw segment's name) are empty where nothing tells them."""

    stat: SegmentStat
    kind: Kind
    state: State
    instance: str = ""
    instance_id: bytes = b""
    topic: str = ""
    topic_id: bytes = b""


@dataclass(frozen=True, slots=True)
class FoundRoster:
    """A roster as it was read, and whether its daemon runs (which is believed until its death is proven)."""

    stat: SegmentStat
    header: Header
    running: bool
    topics: tuple[TopicRow, ...]
    participants: tuple[ParticipantRow, ...]
    segments: tuple[SegmentRow, ...]
    """Raw ones, adopted ones left out."""
    intended_keys: frozenset[int]
    semaphores: tuple[tuple[int, int], ...]
    """Id and key of those that the instance made for raw segments."""

    @property
    def transient(self) -> bool:
        """Whether it notes what goes with its processes, as it does itself."""
        return self.header.kind == roster_layout.TRANSIENT

    def notes(self, stat: SegmentStat) -> bool:
        """Whether this roster says that the segment is one of its instance's."""
        ids = {(row.log_id, row.log_key) for row in self.topics} | {(row.ctl_id, row.ctl_key) for row in self.topics}
        ids |= {(row.id, row.key) for row in self.segments}
        known = any(stat.id == shmid and stat.key in (key, 0) for shmid, key in ids) or stat.key in self.intended_keys
        return stat.cuid == self.stat.cuid and (known or stat.id == self.stat.id)


@dataclass(frozen=True, slots=True)
class Inventory:
    """What was found, and by which rosters."""

    segments: tuple[Found, ...] = ()
    rosters: tuple[FoundRoster, ...] = ()

    def of(self, instance_id: bytes) -> Inventory:
        """One instance's share."""
        return Inventory(
            tuple(found for found in self.segments if found.instance_id == instance_id),
            tuple(roster for roster in self.rosters if roster.header.instance_id == instance_id),
        )


def take() -> Inventory:
    """Look at every segment of this IPC namespace, and at none for longer than it takes to read its header."""
    stats = sysv.list_segments()
    rosters = tuple(roster for stat in stats if (roster := _read_roster(stat)) is not None)
    segments = [found for stat in stats if (found := _recognise(stat, rosters)) is not None]
    logs = {found.topic_id: found for found in segments if found.kind == "log"}
    return Inventory(tuple(_complete(found, logs.get(found.topic_id)) for found in segments), rosters)


def live_slots(ctl_id: int) -> set[tuple[int, int]]:
    """(slot, incarnation) of every subscriber that a ctl segment says is there. ``SegmentError`` if it is gone."""
    at, high_at = _LAYOUT["slot"]["word"][0], _LAYOUT["ctl"]["slot_high"][0]
    with segment.attach(ctl_id, readonly=True) as held:
        high = min(
            int.from_bytes(held.buf[high_at : high_at + 4], "little"),
            (held.size_bytes - _core.HEADER_BYTES) // _core.SLOT_BYTES,
        )
        words = [
            _core.load_word(held.mapping, _core.HEADER_BYTES + slot * _core.SLOT_BYTES + at) for slot in range(high)
        ]
    return {(slot, word >> _SLOT_INCARNATION_SHIFT) for slot, word in enumerate(words) if word & _SLOT_LIVE}


def reclaim(found: Found) -> None:
    """Remove an orphan. ``UsageError`` if it is none (any more); ``SegmentError`` if we may not."""
    now = sysv.stat(found.stat.id)
    same = (now.key, now.cuid, now.creator_pid, now.size_bytes) == (
        found.stat.key,
        found.stat.cuid,
        found.stat.creator_pid,
        found.stat.size_bytes,
    )
    if found.state != "orphaned" or not same or now.attachments:
        raise UsageError(f"segment {found.stat.id} is no orphan, or no longer", "look again")
    segment.remove(found.stat.id)


def remove_instance(instance_id: bytes, instance_dir: Path | None = None) -> list[Found]:
    """Remove all that the rosters of an instance note, and all that says it is the instance's; and the FIFOs of its
    topics, if ``instance_dir`` tells where to look. Which segments that were.

    What is marked removed already is left to those who are still attached: it goes with them.
    For an instance whose daemon does not run: ``UsageError`` if it may. ``SegmentError`` for what we may not remove.
    """
    mine = take().of(instance_id)
    for roster in mine.rosters:
        if roster.running:
            raise UsageError(
                f"the daemon of instance {roster.header.instance!r} runs (pid {roster.header.pid})",
                "say where it listens (--socket), or stop it",
            )
    for roster in mine.rosters:
        for semid, key in roster.semaphores:
            semaphore_store.remove(semid, key, roster.stat.cuid)
    there = [found for found in mine.segments if not found.stat.removed]
    removed = sorted(there, key=lambda found: found.kind == "roster")  # the rosters last: they know the rest
    for found in removed:
        segment.remove(found.stat.id)
    if instance_dir is not None:
        remove_fifos(instance_dir)
    return removed


def remove_fifos(instance_dir: Path) -> list[Path]:
    """Those of an instance whose daemon does not run. Which directories and FIFOs that were."""
    return fifo.sweep(fifo.root_of(instance_dir), keep=())


def _read_roster(stat: SegmentStat) -> FoundRoster | None:
    if stat.size_bytes != roster_layout.ROSTER_BYTES:
        return None
    try:
        reader = RosterReader(stat.id)
    except (ConfigError, SegmentError, VersionMismatch):
        return None
    with reader:
        header = reader.header
        return FoundRoster(
            stat,
            header,
            _runs(header),
            tuple(reader.topics()),
            tuple(reader.participants()),
            tuple(row for row in reader.segments() if not row.adopted),
            frozenset(key for row in reader.intents() for key in row.segment_keys),
            tuple((row.sem_id, row.sem_key) for row in reader.segments() if semaphore_store.is_ours(row)),
        )


def _runs(header: Header) -> bool:
    if header.pid == liveness.UNKNOWN:
        return False
    if (header.pid_namespace, header.time_namespace) != liveness.namespaces():
        return True
    return not liveness.is_dead(liveness.Process(header.pid, header.start_time))


def _recognise(stat: SegmentStat, rosters: tuple[FoundRoster, ...]) -> Found | None:
    magic, instance_id, topic_id, name = _read_header(stat)
    noting = next((roster for roster in rosters if roster.notes(stat)), None)
    kind = _KINDS.get(magic)
    if kind is None and noting is None:
        return None
    rows = noting.topics if noting is not None else ()
    row = next((row for row in rows if stat.id in (row.log_id, row.ctl_id)), None)
    raw = next((row for row in noting.segments if stat.id == row.id), None) if noting is not None else None
    if noting is not None:
        instance_id = noting.header.instance_id
    state: State = "orphaned"
    if stat.attachments or stat.removed or (noting and noting.running):
        state = "alive"
    elif rows or raw is not None or (noting is not None and stat.id != noting.stat.id):
        state = "kept"
    if raw is not None:
        kind, name, topic_id = "segment", raw.name, raw.segment_id
    return Found(
        stat,
        kind or ("unreadable" if row is None else "log" if stat.id == row.log_id else "ctl"),
        state,
        next((roster.header.instance for roster in rosters if roster.header.instance_id == instance_id), ""),
        instance_id,
        row.name if row else name,
        row.topic_id if row else topic_id,
    )


def _complete(found: Found, log: Found | None) -> Found:
    """A ctl segment says only which topic it belongs to; the topic's log, which instance."""
    if log is None or found.instance_id or found.stat.cuid != log.stat.cuid:
        return found
    return replace(found, instance=log.instance, instance_id=log.instance_id, topic=log.topic)


def _read_header(stat: SegmentStat) -> tuple[bytes, bytes, bytes, str]:
    """(magic, instance id, topic id, topic's name); empty where we may not read, or there is none."""
    with contextlib.suppress(SegmentError), segment.attach(stat.id, readonly=True) as held:
        header = bytes(held.buf[: _core.HEADER_BYTES])
        kind = _KINDS.get(header[:8])
        if len(header) == _core.HEADER_BYTES and kind is not None:
            fields = roster_layout.HEADER.table if kind == "roster" else _LAYOUT[kind]
            return header[:8], *_identity(header, fields, named=kind == "log")
    return b"", b"", b"", ""


def _identity(header: bytes, fields: dict[str, tuple[int, int]], *, named: bool) -> tuple[bytes, bytes, str]:
    def read(name: str) -> bytes:
        offset, size = fields.get(name, (0, 0))
        return header[offset : offset + size]

    text = read("name").partition(b"\0")[0].decode("utf-8", "replace") if named else ""
    return read("instance_id"), read("topic_id"), text


def in_order(segments: Iterable[Found]) -> list[Found]:
    """In the order in which people look for them."""
    return sorted(segments, key=lambda found: (found.instance, found.topic, found.kind, found.stat.id))
