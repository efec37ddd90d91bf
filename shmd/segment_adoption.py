"""Raw segments, as the roster notes them, and what a starting daemon makes of those that the one before it noted.

A segment has no header, all bytes being its users': that it is the one that was noted is seen from its id, key,
creator and size, as the kernel tells them. One that is not there any more was removed by somebody who may, and is
forgotten.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from shmd import failpoint, segment_store
from shmd.errors import SegmentError
from shmd.protocol import SegmentInfo
from shmd.roster_layout import REMOVING, SegmentRow

if TYPE_CHECKING:
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
        file=False,
        attached=info.lifetime == "attached",
        fifo=False,
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


def segment_info(row: SegmentRow) -> SegmentInfo:
    """The raw segment that a row notes."""
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
    )


def adopt_segments(roster: Roster, stored: dict[str, StoredSegment]) -> None:
    """Take back every raw segment that is still there, into ``stored``, and finish what was being removed."""
    for row in sorted(roster.segments(), key=lambda row: row.name):
        info = segment_info(row)
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
