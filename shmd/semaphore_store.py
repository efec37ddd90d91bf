"""The semaphores that go with raw segments: each segment's lock, as the daemon keeps it.

A new segment gets a semaphore with the segment's own key, so that C programs find both with one ``ftok``; if that key
is taken among semaphores, one with a random key. An adopted segment keeps the set that its program made under its key,
which then stays that program's; if there is none, it gets one with a random key. So a semaphore is somebody else's
exactly if its segment is adopted and has the same key.

A segment of lifetime `attached` gets none: the kernel has nothing of the kind for semaphores, and who would remove it
when the daemon and its last user have died?

Owner, group and mode follow the segment's: who may write to it may take its lock, since ``semop`` needs the write bit.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

from shmd import failpoint, limits, semaphore, sysv
from shmd.errors import SegmentAccessDenied, SegmentError, SegmentExists, SegmentInvalid, SegmentNotFound

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmd.protocol import SegmentInfo
    from shmd.roster_layout import IntentRow, SegmentRow
    from shmd.roster_writer import Intent
    from shmd.semaphore import ListedSemaphore, SemaphoreStat

logger = logging.getLogger(__name__)


def make(segment_key: int, intent: Intent, wished_key: int = 0) -> semaphore.Semaphore:
    """The semaphore of a segment in the making: with ``wished_key``, if that is free. The caller's alone as yet.

    ``segment_key`` is what the intent notes with it. Raises ``SegmentLimit`` or ``SegmentNoMemory``.
    """
    keys = [wished_key] if wished_key else []
    keys += [sysv.random_key() for _ in range(limits.KEY_ATTEMPTS_MAX)]
    for key in keys:
        intent.note_segment(segment_key, key)
        with contextlib.suppress(SegmentExists):
            made = semaphore.create(key=key)
            failpoint.reach("segment-semaphore-made")
            return made
    raise SegmentExists(f"no free key among {len(keys)}", "remove semaphores that nobody needs: ipcs -s, ipcrm -s ID")


def find(key: int, uid: int) -> ListedSemaphore | None:
    """The set that another program made under an adopted segment's key, if it serves as a lock and is ``uid``'s."""
    try:
        return semaphore.adopt(key, uid)
    except (SegmentNotFound, SegmentInvalid):
        return None


def is_ours(segment: SegmentInfo | SegmentRow) -> bool:
    """Whether its semaphore was made by a daemon, and not by the program whose segment was adopted."""
    return segment.sem_id >= 0 and not (segment.adopted and segment.sem_key == segment.key)


def follow(info: SegmentInfo) -> None:
    """Give the semaphore its segment's owner, group and mode, if it is ours. What the kernel refuses is logged."""
    if is_ours(info):
        try:
            semaphore.set_permissions(info.sem_id, info.uid, info.gid, info.mode)
        except SegmentError as error:
            logger.warning("segment %s: its lock keeps its permissions: %s", info.name, error)


def remove(semid: int, key: int, creator_uid: int | None = None) -> None:
    """Remove the semaphore, if that is what it still is (and made by ``creator_uid``). Fine if somebody was quicker."""
    if semid < 0 or not _is_there(semid, key, creator_uid):
        return
    try:
        semaphore.remove(semid)
    except SegmentError as error:
        logger.warning("%s", error)


def _is_there(semid: int, key: int, creator_uid: int | None) -> bool:
    """Compared with its key, since an id can come to mean another set."""
    found: SemaphoreStat | ListedSemaphore | None
    try:
        found = semaphore.stat(semid)
    except SegmentAccessDenied:  # somebody took our read bit away; the list shows everything to everybody
        found = next((listed for listed in semaphore.list_semaphores() if listed.id == semid), None)
    except SegmentError:
        return False
    return found is not None and found.key == key and creator_uid in (None, found.cuid)


def remove_half_made(intents: Iterable[IntentRow], noted: Iterable[int]) -> None:
    """Remove semaphores of this user that were being made when their daemon died.

    That it made one is seen from its last change: the daemon's, which freed it; or none, if it died before.
    """
    made_by = {intent.semaphore_key: intent.pid for intent in intents if intent.semaphore_key}
    kept = set(noted)
    for found in semaphore.list_semaphores() if made_by else ():
        if found.key not in made_by or found.cuid != os.geteuid() or found.id in kept:
            continue
        with contextlib.suppress(SegmentError):
            now = semaphore.stat(found.id)
            if now.last_pid == made_by[found.key] or (now.operated_time, now.value) == (0, 0):
                logger.info("semaphore %d was half made when the last daemon ended, and is removed", found.id)
                semaphore.remove(found.id)
