"""The raw segments as the daemon holds them: made, adopted, looked at, changed and removed.

    note the intent ─▶ create segment (0600) and semaphore ─▶ pre-fault ─▶ set owner, group and mode, from when on
      others can attach ─▶ make bells (``segment_bells``) ─▶ detach

All bytes are the users', and the daemon touches none but to pre-fault them: the kernel has filled them with zeros. It
does not stay attached either, so that attachments and removal are as ``ipcs`` and every program expects. Two kinds of
segment would vanish by that, and those it keeps attached: of lifetime `attached` (marked removed at once, so that the
kernel frees it with its last user), and all under ``kernel.shm_rmid_forced``.

Not being attached, it cannot trust an id for ever. Whatever it does to a segment, it first compares what the kernel
says (``look``) with what it knows: key, creator and size, which nobody can change.

An adopted segment was made by another program. It is left as it is, until somebody who may asks for a change. Each
segment has a semaphore for its lock (``semaphore_store``).
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from shmd import failpoint, limits, memory, segment, segment_bells, segment_policy, semaphore_store, sysv
from shmd.errors import (
    SegmentAccessDenied,
    SegmentError,
    SegmentExists,
    SegmentInvalid,
    SegmentLimit,
    SegmentNotFound,
)
from shmd.protocol import SegmentInfo
from shmd.topic_store import prefault

if TYPE_CHECKING:
    import threading
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from shmd.policy import Credentials
    from shmd.roster_writer import Intent
    from shmd.segment_policy import SegmentSettings
    from shmd.semaphore import ListedSemaphore, Semaphore
    from shmd.sysv import SegmentStat

logger = logging.getLogger(__name__)


class StoredSegment:
    """One raw segment and its two bells. Made by ``create`` and ``restore``, given back by ``close``."""

    def __init__(self, info: SegmentInfo, bells: Sequence[int], held: segment.Segment | None) -> None:
        self.info = info
        self.bells = tuple(bells)
        """Notify bell and lock bell."""
        self._held = held

    def descriptors(self, *, readonly: bool) -> tuple[int, ...]:
        """What a grant comes with."""
        del readonly
        return self.bells

    def look(self) -> SegmentStat | None:
        """What the kernel knows of it now; None if it is gone, or marked for removal by somebody else."""
        return look(self.info)

    def change(self, uid: int, gid: int, mode: int) -> None:
        """Give it this owner, group and mode. ``SegmentError`` if the kernel does not let us."""
        segment.set_permissions(self.info.id, uid, gid, mode)
        self.seen(uid, gid, mode)

    def seen(self, uid: int, gid: int, mode: int) -> None:
        """These are its owner, group and mode."""
        self.info = msgspec.structs.replace(self.info, uid=uid, gid=gid, mode=mode)
        semaphore_store.follow(self.info)
        segment_bells.follow(self.info)

    def close(self, *, remove: bool) -> None:
        """Give everything back. With ``remove`` it is marked for removal, and goes with its last attachment."""
        if remove:
            remove_segment(self.info)
        if self._held is not None:
            self._held.close()
        for bell in self.bells:
            os.close(bell)


def look(info: SegmentInfo) -> SegmentStat | None:
    """What the kernel knows of the segment now; None if it is gone, or marked for removal by somebody else."""
    found = _stat(info.id)
    if found is None or found.removed != (info.lifetime == "attached"):
        return None
    known = (info.key, info.size_bytes, info.creator_uid)
    return found if (found.key, found.size_bytes, found.cuid) == known else None


def remove_segment(info: SegmentInfo) -> None:
    """Remove what is there of it, its semaphore and its FIFO. Fine if somebody was quicker."""
    there = look(info) is not None
    segment_bells.remove(info)
    if there or semaphore_store.is_ours(info):
        semaphore_store.remove(info.sem_id, info.sem_key)
    failpoint.reach("segment-semaphore-removed")
    if info.lifetime != "attached" and there:
        try:
            segment.remove(info.id)
        except SegmentError as error:
            logger.warning("%s", error)
    failpoint.reach("segment-removed")


def create(
    name: str,
    settings: SegmentSettings,
    declared_by: Credentials,
    stop: threading.Event,
    intent: Intent,
    fifo_root: Path,
) -> StoredSegment:
    """Make a segment. For a worker thread.

    Raises ``SegmentError`` (its key is taken; a System V limit), ``LimitExceeded`` (memory, descriptors),
    ``PermissionDenied`` (a FIFO for a group that the daemon is not in) or ``RequestRefused`` (``stop`` is set); then
    nothing is left.
    """
    sizes_bytes = (settings.size_bytes,)
    memory.check(sizes_bytes, segment_policy.WISH)
    with ExitStack() as undo:
        try:
            made = _create_segment(settings, intent, undo)
        except (SegmentInvalid, SegmentLimit) as error:
            raise sysv.shortage(error, sizes_bytes, segment_policy.WISH) from error
        failpoint.reach("segment-made")
        attached = settings.lifetime == "attached"
        lock = None
        if not attached:
            lock = semaphore_store.make(made.key, intent, made.key)
            undo.callback(semaphore_store.remove, lock.id, lock.key)
        prefault(made, stop)
        if attached:
            segment.remove(made.id)
            failpoint.reach("segment-keys-given-up")
        segment.set_permissions(made.id, settings.uid, settings.gid, settings.mode)
        found = sysv.stat(made.id)
        info = _info(name, found, settings, declared_by, lock, fifo_root)
        segment_bells.make_fifo(info, undo)
        bells = segment_bells.open_bells(info, undo)
        failpoint.reach("segment-ready")
        undo.pop_all()
        semaphore_store.follow(info)
        if attached or sysv.system_limits().shm_rmid_forced:
            return StoredSegment(info, bells, made)
        made.close()
        return StoredSegment(info, bells, None)


def adopt(
    name: str,
    settings: SegmentSettings,
    declared_by: Credentials,
    ours: Collection[int],
    intent: Intent,
    fifo_root: Path,
) -> StoredSegment | None:
    """Take over the segment that has the key, if there is one. ``ours``: ids of those that shmd knows already.

    Raises ``PermissionDenied`` (neither its owner nor its creator asks), ``SegmentExists`` (shmd's own), and
    ``SegmentInvalid`` (smaller than wished).
    """
    key = settings.key or 0
    found = next((stat for stat in sysv.list_segments() if stat.key == key), None)
    if found is None:
        return None
    segment_policy.check_adopter(declared_by, found.uid, found.cuid, key)
    if found.id in ours:
        raise SegmentExists(f"the segment with key {key:#x} is shmd's already", "open it by its name")
    if settings.size_bytes > found.size_bytes:
        raise SegmentInvalid(
            f"the segment with key {key:#x} has {found.size_bytes} bytes, not {settings.size_bytes}",
            "ask for no more, or leave size= out",
        )
    with ExitStack() as undo:
        lock: Semaphore | ListedSemaphore | None = semaphore_store.find(key, declared_by.uid)
        if lock is None:
            lock = semaphore_store.make(0, intent)
            undo.callback(semaphore_store.remove, lock.id, lock.key)
        info = _info(name, found, settings, declared_by, lock, fifo_root, adopted=True)
        segment_bells.make_fifo(info, undo)
        bells = segment_bells.open_bells(info, undo)
        undo.pop_all()
    semaphore_store.follow(info)
    return StoredSegment(info, bells, None)


def restore(info: SegmentInfo) -> StoredSegment:
    """Take back a segment that an earlier daemon made or adopted, with the owner, group and mode that it has now.

    ``SegmentNotFound`` if it is gone, ``LimitExceeded`` (descriptors); then nothing stays attached.
    """
    with ExitStack() as undo:
        held = None
        if info.lifetime == "attached":
            held = segment.attach(info.id, readonly=True)  # from here on the id cannot change its meaning
            undo.callback(held.close)
        found = look(info)
        if found is None:
            raise SegmentNotFound(f"segment {info.name!r} (id {info.id}) is gone", "somebody removed it")
        bells = segment_bells.open_bells(info, undo)
        undo.pop_all()
    stored = StoredSegment(info, bells, held)
    stored.seen(found.uid, found.gid, found.mode)
    return stored


def _create_segment(settings: SegmentSettings, intent: Intent, undo: ExitStack) -> segment.Segment:
    for _ in range(limits.KEY_ATTEMPTS_MAX):
        key = settings.key or sysv.random_key()
        intent.note_segment(key, 0)
        try:
            made = segment.create(settings.size_bytes, key=key)
        except SegmentExists:
            if settings.key is not None:
                raise
            continue
        undo.callback(made.close)
        undo.callback(_remove, made.id)
        return made
    raise SegmentExists(
        f"no free key among {limits.KEY_ATTEMPTS_MAX} random ones",
        "remove segments that nobody needs: ipcs -m, ipcrm -m ID",
    )


def _info(
    name: str,
    found: SegmentStat,
    settings: SegmentSettings,
    declared_by: Credentials,
    lock: Semaphore | ListedSemaphore | None,
    fifo_root: Path,
    *,
    adopted: bool = False,
) -> SegmentInfo:
    segment_id = secrets.token_bytes(16)
    return SegmentInfo(
        name=name,
        segment_id=segment_id,
        id=found.id,
        key=found.key,
        sem_id=-1 if lock is None else lock.id,
        sem_key=0 if lock is None else lock.key,
        size_bytes=found.size_bytes,
        mode=found.mode,
        uid=found.uid,
        gid=found.gid,
        creator_uid=found.cuid,
        creator_gid=found.cgid,
        declared_by=declared_by.uid,
        created_ns=time.time_ns(),
        adopted=adopted,
        lifetime=settings.lifetime,
        notifier=settings.notifier,
        fifo=segment_bells.path_of(segment_id, settings.notifier, fifo_root),
    )


def _stat(shmid: int) -> SegmentStat | None:
    try:
        return sysv.stat(shmid)
    except SegmentAccessDenied:  # somebody else's, which only the list shows to everybody
        return next((found for found in sysv.list_segments() if found.id == shmid), None)
    except SegmentError:
        return None


def _remove(shmid: int) -> None:
    try:
        segment.remove(shmid)
    except SegmentError as error:
        logger.warning("%s", error)
