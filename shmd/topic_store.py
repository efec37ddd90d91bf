"""The topics' segments and bells, as the daemon holds them.

Making a topic is slow, for its memory is touched in advance: memory is charged to whoever touches it first, and a
client shall not be killed for the size of somebody's topic. So ``create`` is for a worker thread, touches a chunk at a
time and gives up between two when it is told to. All else is quick and belongs to the event loop's thread.

    note the intent ─▶ create segments (0600, random keys) ─▶ pre-fault ─▶ format ─▶ log: attach read-only, drop the
      writable mapping ─▶ make bells ─▶ set owner, group and mode, from when on others can attach

A topic of lifetime `attached` gives its keys up as soon as its segments are attached (``IPC_RMID``): by their ids they
can still be attached, and the kernel frees them with the last process that is.

``adopt`` takes back what an earlier daemon made. It believes the roster about what should be there, the kernel about
what is, and the segments nothing: their headers must agree with both.

The daemon keeps the log read-only, since all that it ever wants from it are numbers, and the ctl writable, to give and
take slots. It trusts neither: both are written by others.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from shmd import _core, failpoint, fifo, limits, liveness, memory, policy, segment, sysv, topic_bells
from shmd.attachment import identity_of
from shmd.errors import (
    CorruptTopic,
    RequestRefused,
    SegmentError,
    SegmentExists,
    SegmentInvalid,
    SegmentLimit,
)
from shmd.protocol import PublisherStat, SubscriberStat, TopicInfo, TopicStat
from shmd.shortage import Wish

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from shmd.policy import TopicSettings
    from shmd.registry import SlotHolder
    from shmd.roster_writer import Intent
    from shmd.topic_bells import TopicBells

logger = logging.getLogger(__name__)
_Participant = TypeVar("_Participant", PublisherStat, SubscriberStat)

CTL_BYTES: Final = _core.ctl_size_bytes(limits.SUBSCRIBERS_PER_TOPIC_MAX)
OVERHEAD_BYTES: Final = _core.HEADER_BYTES + CTL_BYTES
"""What a topic takes beyond its capacity."""


_WISH: Final = Wish("the topic", lambda room_bytes: policy.largest_capacity(room_bytes - _core.HEADER_BYTES))


def log_bytes(capacity: int) -> int:
    """The size of the log segment of a topic of this capacity."""
    return _core.HEADER_BYTES + capacity


class StoredTopic:
    """One topic: its two segments, attached, and its bells. Made by ``create``, given back by ``close``."""

    def __init__(self, info: TopicInfo, log: _core.Log, segments: Sequence[segment.Segment], bells: TopicBells) -> None:
        self.info = info
        self.log = log
        self.bells = bells
        self._segments = tuple(segments)

    def ring(self) -> None:
        """Wake all who sleep on this topic, for records or for room."""
        self.bells.ring(self.log)

    def held_slots(self) -> list[tuple[int, int]]:
        """(slot, incarnation) of all that are granted, as the ctl has it."""
        words = ((slot, self.log.slot_stat(slot)[0]) for slot in range(limits.SUBSCRIBERS_PER_TOPIC_MAX))
        return [(slot, incarnation) for slot, incarnation in words if incarnation]

    def has_records(self) -> bool:
        """Whether anything was ever published to it."""
        return self.log.stat()["tail"] > 0

    def exists(self) -> bool:
        """Whether its log is still there: attached by somebody, or not removed."""
        try:
            segment.stat(self.info.log_id)
        except SegmentError:
            return False
        return True

    def declare_owner_dead(self, tid: int) -> bool:
        """Free the lock of a thread that is proven to be none any more. Whether it still held it."""
        with segment.attach(self.info.log_id, readonly=False) as writable:
            log = _core.Log(writable.mapping, None, **identity_of(self.info))
            try:
                return log.declare_owner_dead(tid)
            finally:
                log.close()

    def stat(self, publishers: Sequence[PublisherStat], holders: Iterable[SlotHolder]) -> TopicStat:
        """The counters and the participants, those that lag most first, as many as fit. ``CorruptTopic``."""
        subscribers = sorted(map(self._subscriber_stat, holders), key=lambda subscriber: -subscriber.lag_bytes)
        shown = limits.PAGE_ENTRIES_MAX
        counters = self.log.stat()
        return TopicStat(
            topic=self.info,
            publishers=tuple(map(_mark_stopped, publishers[:shown])),
            subscribers=tuple(map(_mark_stopped, subscribers[:shown])),
            more_participants=max(0, len(publishers) - shown) + max(0, len(subscribers) - shown),
            lock_owner_stopped=liveness.is_stopped(counters["lock_owner_tid"]),
            **counters,
        )

    def _subscriber_stat(self, holder: SlotHolder) -> SubscriberStat:
        _, _, tethered, lag_bytes, lost = self.log.slot_stat(holder.slot)
        return SubscriberStat(
            name=holder.name,
            pid=holder.pid,
            uid=holder.uid,
            slot=holder.slot,
            tethered=tethered,
            lag_bytes=lag_bytes,
            lost=lost,
        )

    def close(self, *, remove: bool) -> None:
        """Detach, close the bells, and with ``remove`` let the segments go with their last attachment."""
        self.log.close()
        for held in self._segments:
            if remove:
                _remove(held.id)
                failpoint.reach("log-removed")
            held.close()
        self.bells.close(remove=remove)


def _mark_stopped(who: _Participant) -> _Participant:
    return msgspec.structs.replace(who, stopped=True) if liveness.is_stopped(who.pid) else who


def create(
    name: str,
    settings: TopicSettings,
    instance_id: bytes,
    stop: threading.Event,
    fifo_root: Path,
    intent: Intent,
) -> StoredTopic:
    """Make a topic; blocks for about half a second per GiB.

    ``intent`` is kept up to date; the caller clears it. Raises ``SegmentError``, ``LimitExceeded`` (memory,
    descriptors), ``PermissionDenied`` (FIFOs for a group that the daemon is not in), and ``RequestRefused`` once
    ``stop`` is set; then nothing is left behind.
    """
    sizes_bytes = (log_bytes(settings.size_bytes), CTL_BYTES)
    memory.check(sizes_bytes, _WISH)
    with ExitStack() as undo:
        try:
            log_writable, ctl = _create_segments(settings, intent, undo)
        except (SegmentInvalid, SegmentLimit) as error:
            raise sysv.shortage(error, sizes_bytes, _WISH) from error
        keys = log_writable.key, ctl.key
        if settings.lifetime == "attached":
            keys = 0, 0
            segment.remove(log_writable.id)
            segment.remove(ctl.id)
            failpoint.reach("keys-given-up")
        for made in (log_writable, ctl):
            prefault(made, stop)
        info = _info(name, settings, (log_writable.id, ctl.id), keys, fifo_root)
        identity = identity_of(info)
        _core.log_format(log_writable.mapping, instance_id=instance_id, created_ns=info.created_ns, **identity)
        _core.ctl_format(ctl.mapping, slots=limits.SUBSCRIBERS_PER_TOPIC_MAX, topic_id=info.topic_id)
        failpoint.reach("topic-formatted")
        log = segment.attach(log_writable.id, readonly=True)
        undo.callback(log.close)
        log_writable.close()
        core = _core.Log(log.mapping, ctl.mapping, **identity)
        undo.callback(core.close)
        bells = topic_bells.make(info)
        undo.callback(bells.close, remove=True)
        segment.set_permissions(ctl.id, settings.uid, settings.gid, policy.ctl_mode(settings.mode))
        segment.set_permissions(log.id, settings.uid, settings.gid, settings.mode)
        failpoint.reach("topic-made")
        undo.pop_all()
        return StoredTopic(info, core, [log, ctl], bells)


def adopt(info: TopicInfo, bells: Sequence[int] | None) -> StoredTopic:
    """Take back a topic that an earlier daemon made, with ``bells`` if that left any, else with new ones.

    Raises ``CorruptTopic`` if its segments are not what ``info`` says, ``SegmentInvalid`` if one is gone, and
    ``LimitExceeded`` (descriptors); then nothing stays attached.
    """
    with ExitStack() as undo:
        for bell in bells or ():
            undo.callback(os.close, bell)
        log = _attach(info.log_id, info.log_key, log_bytes(info.size_bytes), undo, readonly=True)
        ctl = _attach(info.ctl_id, info.ctl_key, CTL_BYTES, undo, readonly=False)
        core = _core.Log(log.mapping, ctl.mapping, **identity_of(info))
        undo.callback(core.close)
        core.stat()  # damage shows here
        held = topic_bells.make(info, bells, adopted=True)
        undo.pop_all()
        return StoredTopic(info, core, [log, ctl], held)


def _info(
    name: str, settings: TopicSettings, ids: tuple[int, int], keys: tuple[int, int], fifo_root: Path
) -> TopicInfo:
    topic_id = secrets.token_bytes(16)
    return TopicInfo(
        name=name,
        topic_id=topic_id,
        log_id=ids[0],
        log_key=keys[0],
        ctl_id=ids[1],
        ctl_key=keys[1],
        size_bytes=settings.size_bytes,
        when_full=settings.when_full,
        exclusive=settings.exclusive,
        mode=settings.mode,
        uid=settings.uid,
        gid=settings.gid,
        created_ns=time.time_ns(),
        hostile=settings.hostile,
        lifetime=settings.lifetime,
        idle_ttl_s=settings.idle_ttl_s,
        stall_timeout_s=settings.stall_timeout_s,
        notifier=settings.notifier,
        fifo_dir=str(fifo.topic_dir(fifo_root, topic_id)) if settings.notifier == "fifo" else "",
    )


def _create_segments(
    settings: TopicSettings, intent: Intent, undo: ExitStack
) -> tuple[segment.Segment, segment.Segment]:
    """Log and ctl, attached for writing, with keys that were noted before they existed."""
    for _ in range(limits.KEY_ATTEMPTS_MAX):
        log_key, ctl_key = (sysv.random_key() for _ in range(2))
        intent.note_topic(log_key, ctl_key)
        with ExitStack() as attempt:
            try:
                log = _create_segment(log_bytes(settings.size_bytes), log_key, attempt)
                failpoint.reach("log-made")
                ctl = _create_segment(CTL_BYTES, ctl_key, attempt)
            except SegmentExists:
                continue
            failpoint.reach("ctl-made")
            undo.push(attempt.pop_all())
            return log, ctl
    raise SegmentExists(
        f"no free keys among {limits.KEY_ATTEMPTS_MAX} random pairs",
        "remove segments that nobody needs: ipcs -m, ipcrm -m ID",
    )


def _create_segment(size_bytes: int, key: int, undo: ExitStack) -> segment.Segment:
    made = segment.create(size_bytes, key=key)
    undo.callback(made.close)
    undo.callback(_remove, made.id)
    return made


def prefault(made: segment.Segment, stop: threading.Event) -> None:
    """Touch all memory of a segment, as long as there is some. ``LimitExceeded``; ``RequestRefused`` after ``stop``."""
    for offset in range(0, made.size_bytes, limits.PREFAULT_CHUNK_BYTES):
        if stop.is_set():
            raise RequestRefused("the daemon is stopping", "try again when it is back")
        chunk_bytes = min(limits.PREFAULT_CHUNK_BYTES, made.size_bytes - offset)
        with memory.claim(chunk_bytes) if chunk_bytes >= limits.MEMORY_CLAIM_MIN_BYTES else nullcontext():
            made.mapping.prefault(offset, chunk_bytes)


def _attach(shmid: int, key: int, size_bytes: int, undo: ExitStack, *, readonly: bool) -> segment.Segment:
    held = segment.attach(shmid, readonly=readonly)
    undo.callback(held.close)
    found = held.stat()
    wanted = (os.geteuid(), key, size_bytes)
    if (found.cuid, found.key, found.size_bytes) != wanted:
        raise CorruptTopic(
            f"segment {shmid} (creator's uid, key, size) is {(found.cuid, found.key, found.size_bytes)}, not {wanted}"
        )
    return held


def _remove(shmid: int) -> None:
    # While we are attached the id means our segment; its owner may have removed it already.
    try:
        segment.remove(shmid)
    except SegmentError as error:
        logger.warning("%s", error)
