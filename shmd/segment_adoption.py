"""Raw segments, as the roster notes them, and what a starting daemon makes of those that the one before it noted.

A segment has no header, all bytes being its users': that it is the one that was noted is seen from its id, key,
creator and size, as the kernel tells them. One that is not there any more was removed by somebody who may, and is
forgotten.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from shmd import failpoint, file_store, names, segment_bells, segment_store, semaphore_store
from shmd.errors import InvalidName, SegmentError, SegmentNotFound
from shmd.protocol import SegmentInfo
from shmd.roster_layout import REMOVING, SegmentRow

if TYPE_CHECKING:
    from pathlib import Path

    from shmd.file_store import StoredFile
    from shmd.protocol import Notifier
    from shmd.roster import Roster
    from shmd.segment_store import StoredSegment

logger = logging.getLogger(__name__)


def segment_row(info: SegmentInfo) -> SegmentRow:
    """How the roster notes a raw segment."""
    return SegmentRow(
        id=info.id,
        key=info.key,
        sem_id=info.sem_id,
        sem_key=info.sem_key,
        size_bytes=info.size_bytes,
        adopted=info.adopted,
        file=info.backing == "file",
        attached=info.lifetime == "attached",
        fifo=info.notifier == "fifo",
        mode=info.mode,
        uid=info.uid,
        gid=info.gid,
        creator_uid=info.creator_uid,
        creator_gid=info.creator_gid,
        declared_by=info.declared_by,
        created_ns=info.created_ns,
        segment_id=info.segment_id,
        name=info.name,
    )


def segment_info(row: SegmentRow, fifo_root: Path) -> SegmentInfo:
    """The raw segment that a row notes."""
    notifier: Notifier = "fifo" if row.fifo else "eventfd"
    return SegmentInfo(
        name=row.name,
        segment_id=row.segment_id,
        id=row.id,
        key=row.key,
        sem_id=row.sem_id,
        sem_key=row.sem_key,
        size_bytes=row.size_bytes,
        mode=row.mode,
        uid=row.uid,
        gid=row.gid,
        creator_uid=row.creator_uid,
        creator_gid=row.creator_gid,
        declared_by=row.declared_by,
        created_ns=row.created_ns,
        adopted=row.adopted,
        lifetime="attached" if row.attached else "os",
        notifier=notifier,
        fifo=segment_bells.path_of(row.segment_id, notifier, fifo_root),
    )


def adopt_segments(
    roster: Roster, stored: dict[str, StoredSegment | StoredFile], state_dir: Path, fifo_root: Path
) -> None:
    """Take back every raw segment that is still there, into ``stored``, and finish what was being removed."""
    _adopt_files(roster, stored, state_dir, fifo_root)
    for row in sorted(roster.segments(), key=lambda row: row.name):
        if row.file:
            continue
        info = _checked(row, fifo_root)
        if info is None or row.name in stored:
            logger.error("segment %r (id %d) is left alone: its row in the roster is damaged", row.name, row.id)
            roster.forget_segment(row.segment_id)
            continue
        if row.state == REMOVING:
            segment_store.remove_segment(info)
            roster.forget_segment(row.segment_id)
            continue
        try:
            stored[row.name] = segment_store.restore(info)
        except SegmentError as error:
            if not row.attached:
                logger.warning("segment %s (id %d) is gone: %s", row.name, row.id, error.message)
            segment_store.remove_segment(info)  # what may be left beside it
            roster.forget_segment(row.segment_id)
        failpoint.reach("segment-adopted")


def _checked(row: SegmentRow, fifo_root: Path) -> SegmentInfo | None:
    """The raw segment that a row notes; None if no daemon can have noted it."""
    info = segment_info(row, fifo_root)
    try:
        names.check_segment(row.name)
        # What a client could not decode must not be told to any.
        return msgspec.msgpack.decode(msgspec.msgpack.encode(info), type=SegmentInfo)
    except (InvalidName, msgspec.ValidationError):
        return None


def _adopt_files(
    roster: Roster, stored: dict[str, StoredSegment | StoredFile], state_dir: Path, fifo_root: Path
) -> None:
    """The state directory says which there are; the roster knows all of them, unless there was a reboot."""
    rows = {row.segment_id: row for row in roster.segments() if row.file}
    for found in file_store.find(state_dir):
        path = segment_bells.path_of(found.segment_id, found.notifier, fifo_root)
        described = msgspec.structs.replace(found, fifo=path)
        row = rows.pop(described.segment_id, None)
        try:
            if row is None:
                stored[described.name] = _adopt_file_anew(roster, described)
            else:
                info = msgspec.structs.replace(described, sem_id=row.sem_id, sem_key=row.sem_key)
                _adopt_file(roster, stored, row, info)
        except SegmentNotFound as error:
            logger.error("segment %s is left alone: %s", described.name, error.message)
        failpoint.reach("file-adopted")
    for row in rows.values():
        _forget_file(roster, row)


def _adopt_file_anew(roster: Roster, info: SegmentInfo) -> StoredFile:
    """Nobody uses it: no process lives that could."""
    with roster.intent() as intent:
        stored = file_store.restore(info)
        try:
            stored.info = file_store.with_semaphore(info, intent)
            roster.note_segment(segment_row(stored.info))
        except BaseException:
            stored.close(remove=False)
            raise
    return stored


def _adopt_file(
    roster: Roster, stored: dict[str, StoredSegment | StoredFile], row: SegmentRow, info: SegmentInfo
) -> None:
    if row.state == REMOVING:
        file_store.remove_file(info)
        _forget_file(roster, row)
        return
    try:
        stored[info.name] = file_store.restore(info)
    except SegmentNotFound:
        _forget_file(roster, row)
        raise


def _forget_file(roster: Roster, row: SegmentRow) -> None:
    semaphore_store.remove(row.sem_id, row.sem_key)
    roster.forget_segment(row.segment_id)
