"""The roster: what a daemon remembers across its own death, and what everybody may read meanwhile.

What it notes shall live as long as what it is about, so it is in two segments, of one layout and mode 0644:

| segment   | notes                                                                | exists                            |
|-----------|----------------------------------------------------------------------|-----------------------------------|
| transient | what goes with its processes, and who takes part in it               | while daemon or client lives      |
| lasting   | what outlives its processes (``_outlives``), and who takes part      | while it notes anything           |
|           | in it; and intents, since segments in the making have keys           |                                   |

The transient one is marked removed (``IPC_RMID``) before it is formatted, and every client keeps it attached: it
survives the daemon as long as any client does, and the kernel frees it with the last. Its header tells where the
lasting one is. Its id never changes while a daemon lives, so clients learn it once.

A starting daemon looks for both among the segments of its instance's keys and those that are marked removed. It takes
only what its own uid created (``cuid`` cannot be forged) and what names the instance:

1. If any of them names a writer that is not proven dead, or has another layout, the daemon refuses to start.
2. One with a key and without a header was being made when its maker died: it is removed.
3. One with a key is the lasting one. If there are several, that of the likeliest key; the others are left alone.
4. One that is marked removed and calls itself transient is the transient one, the youngest if there are several.
5. A transient one that is not found is made: nobody lives who could have kept it, so there is nothing it could tell.
   The lasting one is made as soon as there is something to note in it.

``Roster`` is the daemon's; ``RosterReader`` (``roster_reader``) is anybody's.
"""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from shmd import _core, failpoint, keys, limits, liveness, segment, sysv
from shmd import roster_layout as layout
from shmd.errors import ConfigError, SegmentError, SegmentExists, SegmentInvalid, SegmentRemoved
from shmd.roster_layout import LASTING, TRANSIENT, Header
from shmd.roster_reader import check, read_header
from shmd.roster_writer import RosterWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmd.roster_layout import IntentRow, ParticipantRow, SegmentRow, TopicRow
    from shmd.roster_writer import Intent
    from shmd.sysv import SegmentStat

logger = logging.getLogger(__name__)

_MODE: Final = 0o644
_open_here: Final[set[bytes]] = set()
"""Instances that have a daemon in this very process."""


def _outlives(row: TopicRow | SegmentRow) -> bool:
    """Whether what the row notes outlives its processes: then it is noted in the lasting segment.

    A semaphore does, whatever becomes of its segment.
    """
    return not row.attached or getattr(row, "sem_key", 0) != 0


def candidate_keys(instance_id: bytes) -> list[int]:
    """The keys that a segment of this instance's roster may have, the likeliest first."""
    digests = (
        hashlib.blake2b(instance_id + bytes([index]), digest_size=4).digest()
        for index in range(limits.ROSTER_CANDIDATES)
    )
    return [int.from_bytes(digest, "little") & keys.CHOSEN_KEY_MAX or 1 for digest in digests]


class Roster:
    """The roster of a running daemon: both segments as one. Made by ``open_roster``, given back by ``close``."""

    def __init__(self, transient: RosterWriter, lasting: RosterWriter | None) -> None:
        self._transient = transient
        self._lasting = lasting
        transient.point_at(lasting)
        _open_here.add(transient.header.instance_id)

    @property
    def id(self) -> int:
        """Of the transient segment, which tells where the other is."""
        return self._transient.id

    @property
    def header(self) -> Header:
        return self._transient.header

    def topics(self) -> list[TopicRow]:
        """Every topic noted, in whatever state."""
        return [row for part in self._parts() for row in part.topics()]

    def participants(self) -> list[ParticipantRow]:
        """Every publisher, subscriber, kept slot and user of a segment noted."""
        return [row for part in self._parts() for row in part.participants()]

    def intents(self) -> list[IntentRow]:
        """What a daemon was about to create and has not noted as a topic's or as a raw segment."""
        return [row for part in self._parts() for row in part.intents()]

    def segments(self) -> list[SegmentRow]:
        """Every raw segment noted, in whatever state."""
        return [row for part in self._parts() for row in part.segments()]

    # --- topics ---

    def note_topic(self, row: TopicRow) -> None:
        """A topic came into being. ``LimitExceeded`` if there is no row left; ``SegmentError``, ``ConfigError``."""
        part = self._require_lasting() if _outlives(row) else self._transient
        part.note_topic(row)
        failpoint.reach("topic-noted")

    def begin_removal(self, topic_id: bytes) -> None:
        """Its segments are about to be removed; whatever happens, they shall be."""
        self._part_of(topic_id).begin_removal(topic_id)
        failpoint.reach("removal-noted")

    def quarantine(self, topic_id: bytes) -> None:
        """Its segments are not what they should be: nobody shall use or remove them unasked."""
        self._part_of(topic_id).quarantine(topic_id)

    def forget_topic(self, topic_id: bytes) -> None:
        self._part_of(topic_id).forget_topic(topic_id)
        failpoint.reach("topic-forgotten")
        self._settle()

    def raise_incarnation(self, topic_id: bytes, incarnation: int) -> None:
        """An incarnation is about to be granted: no later daemon may grant it, or one below."""
        self._part_of(topic_id).raise_incarnation(topic_id, incarnation)

    # --- raw segments ---

    def note_segment(self, row: SegmentRow) -> None:
        """A raw segment came into being, or was adopted. ``LimitExceeded``, ``SegmentError``, ``ConfigError``."""
        part = self._require_lasting() if _outlives(row) else self._transient
        part.note_segment(row)
        failpoint.reach("segment-noted")

    def begin_segment_removal(self, segment_id: bytes) -> None:
        """It is about to be removed; whatever happens, it shall be."""
        self._part_of(segment_id).begin_segment_removal(segment_id)
        failpoint.reach("segment-removal-noted")

    def forget_segment(self, segment_id: bytes) -> None:
        self._part_of(segment_id).forget_segment(segment_id)
        failpoint.reach("segment-forgotten")
        self._settle()

    # --- participants ---

    def note_participant(self, row: ParticipantRow) -> None:
        """Somebody takes part, from when it is told so. The registry never admits more than there are rows."""
        if row.publisher:
            for part in self._parts():
                part.number_publisher(row.publisher)
        self._part_of(row.topic_id).note_participant(row)
        failpoint.reach("participant-noted")

    def forget_participant(self, client: int, handle: int, topic_id: bytes) -> None:
        """Its topic, or its segment, may be forgotten already."""
        key = (client, handle, topic_id)
        part = next(part for part in self._parts() if part.has_participant(key))
        part.forget_participant(key)
        failpoint.reach("participant-forgotten")
        self._settle()

    # --- intents ---

    def intent(self) -> Intent:
        """For what is about to be made. ``SegmentError`` or ``ConfigError`` if it could not be noted."""
        return self._require_lasting().intent(self._settle)

    def clear_intents(self) -> None:
        """All that an earlier daemon intended is settled."""
        for part in self._parts():
            part.clear_intents()
        self._settle()

    # --- its beginning and end ---

    def take_over(self) -> int:
        """From now on this process writes. The generation: how many daemons of the instance there have been."""
        headers = [part.header for part in self._parts()]
        generation = max(header.generation for header in headers) + 1
        for part in self._parts():
            part.sign(generation, max(header.publishers_numbered for header in headers))
        return generation

    def close(self, *, remove: bool) -> None:
        """Detach; with ``remove``, or if it notes nothing, the lasting segment goes, too."""
        for part in self._parts():
            part.resign()
        if self._lasting is not None and (remove or not self._lasting.notes_anything):
            self._end_lasting()
        _open_here.discard(self.header.instance_id)
        for part in self._parts():
            part.close()

    # --- the two segments ---

    def _parts(self) -> tuple[RosterWriter, ...]:
        return (self._transient,) if self._lasting is None else (self._transient, self._lasting)

    def _part_of(self, topic_id: bytes) -> RosterWriter:
        return next(part for part in self._parts() if part.has(topic_id))

    def _require_lasting(self) -> RosterWriter:
        if self._lasting is None:
            self._lasting = _make_lasting(self.header)
            self._transient.point_at(self._lasting)
            failpoint.reach("lasting-roster-named")
        return self._lasting

    def _settle(self) -> None:
        """The lasting segment goes as soon as nothing needs it."""
        if self._lasting is not None and self._lasting.idle:
            self._end_lasting()

    def _end_lasting(self) -> None:
        lasting, self._lasting = self._lasting, None
        if lasting is not None:
            self._transient.point_at(None)
            failpoint.reach("lasting-roster-unnamed")
            _remove(lasting.id)
            lasting.close()


def open_roster(instance: str, instance_id: bytes) -> Roster:
    """The instance's roster, found or made; ``take_over`` comes next.

    The caller holds the instance's lock. ``ConfigError`` if another daemon writes it all the same, ``VersionMismatch``
    if its layout is another, ``SegmentError`` if it can be neither found nor made.
    """
    with ExitStack() as undo:
        found = [one for stat in _candidates(instance_id) if (one := _look(stat, instance_id, undo)) is not None]
        for one in found:
            _refuse_second(one.header, instance)
            _refuse_damaged(one, instance)
        for one in found:
            if one.blank:
                _remove(one.held.id)
        lasting, transient = _choose_lasting(found), _choose_transient(found)
        roster = Roster(
            _make_transient(instance, instance_id) if transient is None else RosterWriter(transient.held),
            None if lasting is None else RosterWriter(lasting.held),
        )
        undo.pop_all()
    for one in found:
        if one not in (lasting, transient):
            one.held.close()
    return roster


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """A segment that may be of the roster, attached."""

    held: segment.Segment
    removed: bool
    header: Header

    @property
    def blank(self) -> bool:
        """Its maker died before it could format it."""
        return self.header.version == 0


def _candidates(instance_id: bytes) -> Iterator[SegmentStat]:
    """What this instance's roster may be in, the likeliest keys first."""
    mine = [stat for stat in sysv.list_segments() if stat.cuid == os.geteuid()]
    by_key = {stat.key: stat for stat in mine if not stat.removed}
    yield from (by_key[key] for key in candidate_keys(instance_id) if key in by_key)
    yield from (stat for stat in mine if stat.removed and stat.size_bytes == layout.ROSTER_BYTES)


def _look(stat: SegmentStat, instance_id: bytes, undo: ExitStack) -> _Found | None:
    """None if it is something else. ``VersionMismatch`` if it is the instance's, but of another layout."""
    try:
        held = segment.attach(stat.id, readonly=False)
    except (SegmentInvalid, SegmentRemoved):
        return None  # its last process has just ended
    undo.callback(held.close)
    magic = _core.load_word(held.mapping, 0) if held.size_bytes >= layout.HEADER_BYTES else None
    if magic == layout.MAGIC and read_header(held).instance_id == instance_id:
        check(held)
        return _Found(held, stat.removed, read_header(held))
    if magic == 0 and held.size_bytes == layout.ROSTER_BYTES and not stat.removed:
        return _Found(held, removed=False, header=_BLANK)
    held.close()
    return None


def _refuse_second(header: Header, instance: str) -> None:
    writer = liveness.Process(header.pid, header.start_time)
    same_namespaces = (header.pid_namespace, header.time_namespace) == liveness.namespaces()
    ours = writer == liveness.process(os.getpid()) and header.instance_id not in _open_here
    if header.pid != liveness.UNKNOWN and same_namespaces and not ours and not liveness.is_dead(writer):
        raise ConfigError(
            f"instance {instance!r} has a daemon already (pid {header.pid}), in another runtime directory",
            "stop it, or give this one another --instance",
        )


def _refuse_damaged(found: _Found, instance: str) -> None:
    if not (found.removed or found.header.counts):
        raise ConfigError(
            f"the roster (segment {found.held.id}) is damaged: it has lost count of its daemons or publishers",
            f"ipcrm -m {found.held.id} has instance {instance!r} begin anew; shmd fsck lists what it then lacks",
        )


def _choose_lasting(found: list[_Found]) -> _Found | None:
    lasting = [one for one in found if not (one.blank or one.removed)]
    for one in lasting[1:]:
        logger.error("segment %d is another roster of this instance, and is left alone", one.held.id)
    return lasting[0] if lasting else None


def _choose_transient(found: list[_Found]) -> _Found | None:
    transient = [one for one in found if one.removed and one.header.kind == TRANSIENT and one.header.counts]
    return max(transient, key=lambda one: one.header.generation, default=None)


_BLANK: Final = Header(
    version=0,
    kind=LASTING,
    instance_id=bytes(16),
    instance="",
    pid=liveness.UNKNOWN,
    start_time=liveness.UNKNOWN,
    pid_namespace=0,
    time_namespace=0,
    generation=0,
    publishers_numbered=0,
    lasting=0,
)


def _make_transient(instance: str, instance_id: bytes) -> RosterWriter:
    """Marked removed before anything is in it: a kill leaves nothing, or else a blank that its key betrays."""
    held = _create(instance, instance_id)
    failpoint.reach("transient-roster-made")
    try:
        segment.remove(held.id)
        failpoint.reach("transient-roster-marked")
        writer = RosterWriter(held)
        writer.format(
            replace(_BLANK, version=layout.VERSION, kind=TRANSIENT, instance_id=instance_id, instance=instance)
        )
    except BaseException:
        held.close()
        raise
    return writer


def _make_lasting(transient: Header) -> RosterWriter:
    """Written by whoever writes the transient one."""
    held = _create(transient.instance, transient.instance_id)
    failpoint.reach("lasting-roster-made")
    writer = RosterWriter(held)
    writer.format(replace(transient, kind=LASTING, lasting=0))
    return writer


def _create(instance: str, instance_id: bytes) -> segment.Segment:
    candidates = candidate_keys(instance_id)
    for key in candidates:
        try:
            return segment.create(layout.ROSTER_BYTES, mode=_MODE, key=key)
        except SegmentExists:
            continue
    raise ConfigError(
        f"other programs hold all {len(candidates)} keys that the roster of instance {instance!r} may have",
        f"remove one of these segments, or choose another --instance: {', '.join(map(hex, candidates))}",
    )


def _remove(shmid: int) -> None:
    try:
        segment.remove(shmid)
    except SegmentError as error:
        logger.warning("segment %d of the roster cannot be removed: %s", shmid, error)
