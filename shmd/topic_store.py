"""The topics' segments and bells, as the daemon holds them.

Making a topic is slow, for its memory is touched in advance: memory is charged to whoever touches it first, and a
client shall not be killed for the size of somebody's topic. So ``create`` is for a worker thread, touches a chunk at a
time and gives up between two when it is told to. All else is quick and belongs to the event loop's thread.

    create segments (0600, random keys) ─▶ pre-fault ─▶ format ─▶ log: attach read-only, drop the writable mapping
      ─▶ make bells ─▶ set owner, group and mode, from when on others can attach

The daemon keeps the log read-only, since all that it ever wants from it are numbers, and the ctl writable, to give and
take slots. It trusts neither: both are written by others.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from shmd import _core, limits, notifier, policy, segment
from shmd.errors import LimitExceeded, RequestRefused, SegmentError
from shmd.protocol import SubscriberStat, TopicInfo, TopicStat

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Sequence

    from shmd.policy import TopicSettings
    from shmd.protocol import PublisherStat
    from shmd.registry import SlotHolder

logger = logging.getLogger(__name__)

CTL_BYTES: Final = _core.ctl_size_bytes(limits.SUBSCRIBERS_PER_TOPIC_MAX)
OVERHEAD_BYTES: Final = _core.HEADER_BYTES + CTL_BYTES
"""What a topic takes beyond its capacity."""


class StoredTopic:
    """One topic: its two segments, attached, and its two bells. Made by ``create``, given back by ``close``."""

    def __init__(
        self, info: TopicInfo, log: _core.Log, segments: Sequence[segment.Segment], bells: Sequence[int]
    ) -> None:
        self.info = info
        self.log = log
        self.bells = tuple(bells)
        """Record bell and space bell."""
        self._segments = tuple(segments)

    def ring(self) -> None:
        """Wake all who sleep on this topic, for records or for room."""
        for bell in self.bells:
            notifier.ring(bell)

    def stat(self, publishers: Sequence[PublisherStat], holders: Iterable[SlotHolder]) -> TopicStat:
        """The counters and the participants, those that lag most first, as many as fit. ``CorruptTopic``."""
        subscribers = sorted(map(self._subscriber_stat, holders), key=lambda subscriber: -subscriber.lag_bytes)
        shown = limits.PAGE_ENTRIES_MAX
        return TopicStat(
            topic=self.info,
            publishers=tuple(publishers[:shown]),
            subscribers=tuple(subscribers[:shown]),
            more_participants=max(0, len(publishers) - shown) + max(0, len(subscribers) - shown),
            **self.log.stat(),
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
            held.close()
        for bell in self.bells:
            os.close(bell)


def create(name: str, settings: TopicSettings, instance_id: bytes, stop: threading.Event) -> StoredTopic:
    """Make a topic; blocks for about half a second per GiB.

    Raises ``SegmentError``, ``LimitExceeded`` (descriptors), and ``RequestRefused`` once ``stop`` is set; then nothing
    is left behind.
    """
    with ExitStack() as undo:
        log_writable = _create_segment(_core.HEADER_BYTES + settings.size_bytes, undo, stop)
        ctl = _create_segment(CTL_BYTES, undo, stop)
        topic_id, created_ns = secrets.token_bytes(16), time.time_ns()
        flags = _flags(settings)
        _core.log_format(
            log_writable.mapping,
            capacity=settings.size_bytes,
            flags=flags,
            instance_id=instance_id,
            topic_id=topic_id,
            created_ns=created_ns,
            name=name,
        )
        _core.ctl_format(ctl.mapping, slots=limits.SUBSCRIBERS_PER_TOPIC_MAX, topic_id=topic_id)
        log = segment.attach(log_writable.id, readonly=True)
        undo.callback(log.close)
        log_writable.close()
        core = _core.Log(
            log.mapping, ctl.mapping, name=name, topic_id=topic_id, capacity=settings.size_bytes, flags=flags
        )
        undo.callback(core.close)
        bells = _make_bells(undo)
        info = TopicInfo(
            name=name,
            topic_id=topic_id,
            log_id=log.id,
            log_key=log.key,
            ctl_id=ctl.id,
            ctl_key=ctl.key,
            size_bytes=settings.size_bytes,
            when_full=settings.when_full,
            exclusive=settings.exclusive,
            mode=settings.mode,
            uid=settings.uid,
            gid=settings.gid,
            created_ns=created_ns,
            hostile=settings.hostile,
        )
        segment.set_permissions(ctl.id, settings.uid, settings.gid, policy.ctl_mode(settings.mode))
        segment.set_permissions(log.id, settings.uid, settings.gid, settings.mode)
        undo.pop_all()
        return StoredTopic(info, core, [log, ctl], bells)


def _flags(settings: TopicSettings) -> int:
    wait = _core.FLAG_WAIT if settings.when_full == "wait" else 0
    return wait | (_core.FLAG_EXCLUSIVE if settings.exclusive else 0)


def _create_segment(size_bytes: int, undo: ExitStack, stop: threading.Event) -> segment.Segment:
    made = segment.create(size_bytes)
    undo.callback(made.close)
    undo.callback(_remove, made.id)
    for offset in range(0, size_bytes, limits.PREFAULT_CHUNK_BYTES):
        if stop.is_set():
            raise RequestRefused("the daemon is stopping", "try again when it is back")
        made.mapping.prefault(offset, min(limits.PREFAULT_CHUNK_BYTES, size_bytes - offset))
    return made


def _remove(shmid: int) -> None:
    # While we are attached the id means our segment; its owner may have removed it already.
    try:
        segment.remove(shmid)
    except SegmentError as error:
        logger.warning("%s", error)


def _make_bells(undo: ExitStack) -> list[int]:
    bells = []
    for _ in range(limits.DESCRIPTORS_PER_MESSAGE_MAX):
        try:
            bell = notifier.make_bell()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            raise LimitExceeded(
                f"the daemon is out of descriptors: {error.strerror}", "raise its LimitNOFILE="
            ) from None
        undo.callback(os.close, bell)
        bells.append(bell)
    return bells
