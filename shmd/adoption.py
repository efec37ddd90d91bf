"""What a starting daemon makes of what the one before it left.

    roster ─▶ topics being removed: finish ─▶ topics: verify, attach ─▶ raw segments: the same
           ─▶ slots that nobody has: release ─▶ participants of what is there
           ─▶ FIFOs: make what is missing, remove what nobody has ─▶ intents: remove half-made segments
           ─▶ bells: store new ones

Any step may be cut short by a kill, and is then done again by the next daemon: none of them depends on having been
done once only. Nothing is removed that the roster does not name and the kernel does not confirm as ours (``cuid``).
What does not match is reported and left as it is, quarantined, with its row.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from shmd import failpoint, fifo, names, policy, segment, semaphore_store, sysv, topic_store
from shmd.errors import (
    CorruptTopic,
    InvalidName,
    SegmentAccessDenied,
    SegmentInvalid,
    SegmentNotFound,
    SegmentRemoved,
    ShmdError,
)
from shmd.policy import Credentials
from shmd.protocol import TopicInfo
from shmd.registry import AdoptedTopic, Participant, Seat
from shmd.roster_layout import CLIENT_BITS, LIVE, QUARANTINED, REMOVING, ParticipantRow, TopicRow
from shmd.segment_adoption import adopt_segments

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmd.bell_store import BellStore
    from shmd.file_store import StoredFile
    from shmd.roster import Roster
    from shmd.segment_store import StoredSegment
    from shmd.topic_store import StoredTopic

logger = logging.getLogger(__name__)

_GONE = (SegmentInvalid, SegmentNotFound, SegmentRemoved)


@dataclass(slots=True)
class Estate:
    """What was there to adopt. ``stored`` are attached: whoever takes the estate closes them."""

    stored: dict[str, StoredTopic] = field(default_factory=dict)
    topics: list[AdoptedTopic] = field(default_factory=list)
    participants: list[Participant] = field(default_factory=list)
    segments: dict[str, StoredSegment | StoredFile] = field(default_factory=dict)
    """Not all of them attached; to be closed, too."""


def topic_row(info: TopicInfo, declared_by: int) -> TopicRow:
    """How the roster notes a topic."""
    return TopicRow(
        log_id=info.log_id,
        log_key=info.log_key,
        ctl_id=info.ctl_id,
        ctl_key=info.ctl_key,
        size_bytes=info.size_bytes,
        wait=info.when_full == "wait",
        exclusive=info.exclusive,
        attached=info.lifetime == "attached",
        fifo=info.notifier == "fifo",
        mode=info.mode,
        uid=info.uid,
        gid=info.gid,
        declared_by=declared_by,
        created_ns=info.created_ns,
        idle_ttl_s=info.idle_ttl_s,
        stall_timeout_s=info.stall_timeout_s,
        topic_id=info.topic_id,
        name=info.name,
    )


def topic_info(row: TopicRow, fifo_root: Path) -> TopicInfo:
    """The topic that a row notes."""
    return TopicInfo(
        name=row.name,
        topic_id=row.topic_id,
        log_id=row.log_id,
        log_key=row.log_key,
        ctl_id=row.ctl_id,
        ctl_key=row.ctl_key,
        size_bytes=row.size_bytes,
        when_full="wait" if row.wait else "discard-old",
        exclusive=row.exclusive,
        mode=row.mode,
        uid=row.uid,
        gid=row.gid,
        created_ns=row.created_ns,
        hostile=policy.is_hostile(row.uid, row.mode, os.geteuid()),
        lifetime="attached" if row.attached else "os",
        idle_ttl_s=row.idle_ttl_s,
        stall_timeout_s=row.stall_timeout_s,
        notifier="fifo" if row.fifo else "eventfd",
        fifo_dir=str(fifo.topic_dir(fifo_root, row.topic_id)) if row.fifo else "",
    )


def participant_row(participant: Participant) -> ParticipantRow:
    """How the roster notes a participant."""
    who, seat = participant.credentials, participant.seat
    return ParticipantRow(
        client=participant.client,
        handle=participant.handle,
        topic_id=participant.topic_id,
        kind=participant.kind,
        slot=seat.slot if seat else 0,
        incarnation=seat.incarnation if seat else 0,
        publisher=participant.number,
        tethered=participant.tethered,
        uid=who.uid,
        gid=who.gid,
        pid=who.pid,
        start_time=who.start_time,
        pid_namespace=participant.pid_namespace,
        name=participant.name,
    )


def _participant(row: ParticipantRow) -> Participant:
    return Participant(
        topic_id=row.topic_id,
        kind=row.kind,
        client=row.client,
        handle=row.handle,
        credentials=Credentials(row.uid, row.gid, row.pid, start_time=row.start_time),
        name=row.name,
        pid_namespace=row.pid_namespace,
        number=row.publisher,
        seat=Seat(row.slot, row.incarnation) if row.kind in ("subscriber", "kept") else None,
        tethered=row.tethered,
    )


def adopt(roster: Roster, bells: BellStore, fifo_root: Path, state_dir: Path) -> Estate:
    """Take back all that is still what the roster says, and clean up after the daemon that wrote it."""
    estate = Estate()
    try:
        for row in sorted(roster.topics(), key=lambda row: row.name):
            _adopt_topic(roster, row, estate, bells, fifo_root)
            failpoint.reach("topic-adopted")
        adopt_segments(roster, estate.segments, state_dir, fifo_root)
        _adopt_participants(roster, estate)
        _settle_fifos(roster, estate, fifo_root)
        _resolve_intents(roster)
        _settle_bells(bells, estate)
        failpoint.reach("adopted")
    except BaseException:
        held: list[StoredTopic | StoredSegment | StoredFile] = [*estate.stored.values(), *estate.segments.values()]
        for stored in held:
            stored.close(remove=False)
        raise
    return estate


# --- topics -----------------------------------------------------------------------------------------------------------


def _adopt_topic(roster: Roster, row: TopicRow, estate: Estate, bells: BellStore, fifo_root: Path) -> None:
    if row.state == REMOVING:
        _finish_removal(roster, row)
        return
    if row.state == QUARANTINED or row.name in estate.stored:
        logger.error("topic %s is left alone, as before: its segments %d and %d are damaged", *_named(row))
        return
    try:
        stored = topic_store.adopt(_checked(row, fifo_root), bells.take(row.topic_id))
    except _GONE:
        _settle_missing(roster, row)
    except (CorruptTopic, SegmentAccessDenied) as error:
        if not row.attached and _is_marked_removed(row):
            _settle_missing(roster, row)
            return
        logger.error("topic %s is not adopted, and its segments %d and %d are left alone: %s", *_named(row), error)
        roster.quarantine(row.topic_id)
    else:
        estate.stored[row.name] = stored
        estate.topics.append(AdoptedTopic(stored.info, row.declared_by, row.incarnation_max, stored.has_records()))


def _checked(row: TopicRow, fifo_root: Path) -> TopicInfo:
    """The topic that a row notes, if a daemon can have made it: ``CorruptTopic``."""
    info = topic_info(row, fifo_root)
    try:
        names.check_topic(row.name)
        if row.state != LIVE:
            raise CorruptTopic(f"its row has state {row.state}")
        # What a client could not decode must not be told to any.
        return msgspec.msgpack.decode(msgspec.msgpack.encode(info), type=TopicInfo)
    except (InvalidName, msgspec.ValidationError) as error:
        raise CorruptTopic(f"its row in the roster is damaged: {error}") from error


def _named(row: TopicRow) -> tuple[str, int, int]:
    return row.name, row.log_id, row.ctl_id


def _settle_missing(roster: Roster, row: TopicRow) -> None:
    """One of its segments is gone: without it nobody can use the other, and what is left of it goes, too."""
    if not row.attached:
        logger.warning("topic %s is gone: somebody removed one of its segments %d and %d", *_named(row))
    _finish_removal(roster, row)


def _finish_removal(roster: Roster, row: TopicRow) -> None:
    for shmid, size_bytes in _segments(row):
        if _is_ours(shmid, size_bytes, row):
            _remove(shmid)
    roster.forget_topic(row.topic_id)
    failpoint.reach("removal-finished")


def _segments(row: TopicRow) -> Iterable[tuple[int, int]]:
    log_bytes = topic_store.log_bytes(row.size_bytes)
    return (row.log_id, log_bytes), (row.ctl_id, topic_store.CTL_BYTES)


def _is_ours(shmid: int, size_bytes: int, row: TopicRow) -> bool:
    try:
        found = sysv.stat(shmid)
    except ShmdError:
        return False
    keys = {row.log_id: row.log_key, row.ctl_id: row.ctl_key}
    # A key of 0 is that of anything private; of ours it is one that was marked for removal, which loses its key.
    known = found.removed if found.key == 0 else found.key == keys[shmid]
    return known and (found.cuid, found.size_bytes) == (os.geteuid(), size_bytes)


def _is_marked_removed(row: TopicRow) -> bool:
    try:
        return any(sysv.stat(shmid).removed for shmid, size in _segments(row) if _is_ours(shmid, size, row))
    except ShmdError:
        return False


def _remove(shmid: int) -> None:
    try:
        segment.remove(shmid)
    except ShmdError as error:
        logger.warning("%s", error)


def _settle_bells(bells: BellStore, estate: Estate) -> None:
    topics = {topic.info.topic_id: topic.bells.descriptors for topic in estate.stored.values()}
    bells.settle(topics)
    for topic_id, made in topics.items():
        bells.keep(topic_id, made)


# --- participants -----------------------------------------------------------------------------------------------------


def _can_be(row: ParticipantRow, generation: int, handles: set[tuple[int, int]]) -> bool:
    """Whether an earlier daemon can have noted this: a client of its own, with a handle that opened one thing."""
    earlier = 0 < row.client >> CLIENT_BITS < generation
    if row.kind == "kept":
        return earlier
    alone = (row.client, row.handle) not in handles
    handles.add((row.client, row.handle))
    return earlier and alone


def _adopt_participants(roster: Roster, estate: Estate) -> None:
    generation = roster.header.generation
    stored = {topic.info.topic_id: topic for topic in estate.stored.values()}
    held = {topic_id: set(topic.held_slots()) for topic_id, topic in stored.items()}
    used = {segment.info.segment_id for segment in estate.segments.values()}
    # A seat that passes from a watch to a subscriber is noted twice for a moment; then the subscriber has it.
    handles: set[tuple[int, int]] = set()
    for row in sorted(roster.participants(), key=lambda row: row.kind == "kept"):
        known = _can_be(row, generation, handles)
        if known and (row.topic_id in used if row.kind == "segment" else _takes_part(row, held)):
            estate.participants.append(_participant(row))
        else:
            roster.forget_participant(*row.key)
    for topic_id, slots in held.items():
        for slot, incarnation in slots:  # granted to nobody who was told, or taken back and not yet forgotten
            stored[topic_id].log.slot_release(slot, incarnation)
    failpoint.reach("slots-reconciled")


def _takes_part(row: ParticipantRow, held: dict[bytes, set[tuple[int, int]]]) -> bool:
    """Whether its topic and its seat are there; the seat is nobody else's then."""
    seats = held.get(row.topic_id)
    if seats is None or row.kind == "publisher":
        return seats is not None
    seat = (row.slot, row.incarnation)
    if seat not in seats:
        return False
    seats.discard(seat)
    return True


# --- FIFOs ------------------------------------------------------------------------------------------------------------


def _settle_fifos(roster: Roster, estate: Estate, root: Path) -> None:
    """Those of damaged topics stay: who takes part in one goes on as long as it can."""
    names: dict[bytes, list[str]] = {topic.info.topic_id: [] for topic in estate.stored.values()}
    for participant in estate.participants:
        if participant.topic_id in names:  # else it is a segment's
            seat = participant.seat
            name = fifo.reader_name(seat.slot) if seat is not None else fifo.publisher_name(participant.number)
            names[participant.topic_id].append(name)
    for topic in estate.stored.values():
        topic.bells.settle(names[topic.info.topic_id])
    kept = {fifo.topic_dir(root, row.topic_id) for row in roster.topics() if row.fifo}
    kept |= {Path(segment.info.fifo) for segment in estate.segments.values() if segment.info.fifo}
    for path in fifo.sweep(root, kept):
        logger.info("removed the FIFOs of a topic or segment that is no more: %s", path)


# --- intents ----------------------------------------------------------------------------------------------------------


def _resolve_intents(roster: Roster) -> None:
    """Remove segments that were made for a topic, or as one of their own, that never came to be noted."""
    noted = {shmid for row in roster.topics() for shmid in (row.log_id, row.ctl_id)}
    noted |= {row.id for row in roster.segments()}
    made_by = {key: intent.pid for intent in roster.intents() for key in intent.segment_keys}
    for found in sysv.list_segments() if made_by else ():
        if (
            found.key != 0
            and made_by.get(found.key) == found.creator_pid
            and found.cuid == os.geteuid()
            and found.id not in noted
        ):
            logger.info("segment %d was half made when the last daemon ended, and is removed", found.id)
            _remove(found.id)
    semaphore_store.remove_half_made(roster.intents(), [row.sem_id for row in roster.segments()])
    failpoint.reach("intent-resolved")
    roster.clear_intents()
