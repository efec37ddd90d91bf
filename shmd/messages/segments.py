"""Messages about raw segments: requests, replies, events; before them what they tell about a segment."""

from __future__ import annotations

from typing import Annotated

import msgspec

from shmd import limits
from shmd.messages.words import (
    U32,
    U63,
    Backing,
    Descriptors,
    Id16,
    Lifetime,
    Message,
    Mode,
    Notifier,
    RequestId,
    SegmentKey,
    Sync,
    SystemVId,
    TopicName,
)


class SegmentOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a client asks of a segment. None means: no opinion (matches what exists; the default when it is created)."""

    size_bytes: U63 | None = None
    """Needed where it is created. One that exists may be larger."""
    mode: Mode | None = None
    key: SegmentKey | None = None
    """By default a random one."""
    adopt: bool = False
    """If a segment has this ``key`` that no daemon made: take that. For its owner, its creator and root."""
    backing: Backing | None = None
    """`memory` (the default), or `file`: one in the daemon's state directory, which survives a reboot."""
    sync: Sync | None = None
    """Of a file: what a power failure may cost (``file_store``)."""
    lifetime: Lifetime | None = None
    """`os` (the default): stays until it is removed. `attached`: goes with its last user, and has no key."""
    notifier: Notifier | None = None


class SegmentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a user needs to attach a segment and to check that it attached the right one. ``name`` is shmd's alone."""

    name: TopicName
    segment_id: Id16
    id: SystemVId
    """-1 for a file."""
    key: U32
    """0 for a file, and for one of lifetime `attached`."""
    sem_id: SystemVId = -1
    """Of the semaphore that goes with it; -1: none does."""
    sem_key: U32 = 0
    size_bytes: U63
    mode: Mode
    uid: U32
    gid: U32
    creator_uid: U32
    creator_gid: U32
    declared_by: U32
    """The uid that had it made, or adopted."""
    created_ns: U63
    """When shmd made it, or adopted it."""
    adopted: bool = False
    backing: Backing = "memory"
    sync: Sync = "none"
    path: Annotated[str, msgspec.Meta(max_length=2 * limits.STATE_DIR_BYTES_MAX)] = ""
    """Of a file; empty for memory."""
    lifetime: Lifetime = "os"
    notifier: Notifier = "eventfd"
    fifo: Annotated[str, msgspec.Meta(max_length=limits.FIFO_DIR_BYTES_MAX)] = ""
    """`fifo`: absolute path of its notify bell, of which each byte wakes one of those who wait; else empty."""


class SegmentCounters(msgspec.Struct, frozen=True, kw_only=True):
    """All of ``struct shmid_ds``, as ``SegmentStat`` in ``sysv`` has it."""

    id: int
    key: int
    size_bytes: int
    uid: int
    gid: int
    cuid: int
    cgid: int
    mode: int
    removed: bool
    attachments: int
    creator_pid: int
    last_pid: int
    attach_time: int
    detach_time: int
    change_time: int


class OpenSegment(Message, frozen=True, kw_only=True, tag="segment"):
    """Open the segment, having it made if there is none and ``create`` is set.

    ``exclusive`` wants it not to exist before. Reply: ``SegmentGranted`` with two descriptors (notify bell, lock bell),
    and a third one if the segment is a file: that, opened as was asked for.
    """

    id: RequestId
    segment: TopicName
    options: SegmentOptions = SegmentOptions()
    create: bool = True
    exclusive: bool = False
    readonly: bool = False


class ListSegments(Message, frozen=True, kw_only=True, tag="segments"):
    """Segments matching ``pattern`` after the name ``after``, in order of name. Reply: ``SegmentList``."""

    id: RequestId
    pattern: TopicName = ">"
    after: Annotated[str, msgspec.Meta(max_length=limits.TOPIC_NAME_BYTES_MAX)] = ""


class StatSegment(Message, frozen=True, kw_only=True, tag="stat-segment"):
    """Reply: ``SegmentStatReply``."""

    id: RequestId
    segment: TopicName


class SetSegment(Message, frozen=True, kw_only=True, tag="set-segment"):
    """Give the segment another owner, group or mode; None leaves it. Reply: ``Done``."""

    id: RequestId
    segment: TopicName
    uid: U32 | None = None
    gid: U32 | None = None
    mode: Mode | None = None


class RemoveSegment(Message, frozen=True, kw_only=True, tag="remove-segment"):
    """Remove the segment, as ``IPC_RMID`` does, and forget its name. Users get ``SegmentGone``. Reply: ``Done``.

    ``segment_id``: only if it still is this very segment.
    """

    id: RequestId
    segment: TopicName
    segment_id: Id16 | None = None


class SegmentGranted(Message, frozen=True, kw_only=True, tag="segment-granted"):
    id: RequestId
    segment: SegmentInfo
    readonly: bool
    fds: Descriptors = 2


class SegmentList(Message, frozen=True, kw_only=True, tag="segment-list"):
    id: RequestId
    segments: tuple[SegmentInfo, ...]
    next: str | None = None
    """Name to ask after for the next page; None: this was the last."""


class SegmentStatReply(Message, frozen=True, kw_only=True, tag="segment-stat"):
    id: RequestId
    segment: SegmentInfo
    counters: SegmentCounters


class SegmentGone(Message, frozen=True, kw_only=True, tag="segment-gone"):
    """The segment was removed, by whomever. Sent to every client that has it open."""

    segment: TopicName
    segment_id: Id16
