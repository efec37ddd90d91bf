"""Who may do what, and what a topic becomes when a client leaves options open. Pure functions.

The daemon answers by the kernel's own rule (``ipcperms`` in ipc/util.c), so that it never promises what ``shmat`` then
denies, nor the other way round:

    owner bits   to the segment's uid, and to its creator's uid (``cuid``: the daemon's user, for ever)
    group bits   to members of the segment's gid, and to members of its creator's gid (``cgid``)
    other bits   to the rest
    everything   to root (strictly CAP_IPC_OWNER: a root that lacks it hears no from the kernel, not from here)

Exactly one class applies: an owner whom the owner bits deny is not helped by the group's.

A topic is two segments. ``mode`` is the log's. Subscribers only need to read the log, but write their cursors into the
ctl segment, so there every class that may read may write too (``ctl_mode``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shmd import limits, units
from shmd.errors import InvalidOption, LimitExceeded, PermissionDenied, TopicMismatch

if TYPE_CHECKING:
    from shmd.protocol import Lifetime, Notifier, TopicInfo, TopicOptions, WhenFull

NOTHING: Final = 0
"""Wanted by one who only refers to a topic."""
READ: Final = 0o4
WRITE: Final = 0o2
ROOT_UID: Final = 0

_OWNER_SHIFT: Final = 6
_GROUP_SHIFT: Final = 3
_READ_BITS: Final = 0o444
_WRITE_BITS: Final = 0o222
_EXECUTE_BITS: Final = 0o111


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who a peer is, as the kernel says (``SO_PEERCRED``, ``SO_PEERGROUPS``); ``groups`` are its supplementary ones."""

    uid: int
    gid: int
    pid: int
    groups: frozenset[int] = frozenset()
    start_time: int = 0
    """Of the process, in clock ticks since boot; 0: not known."""

    def is_same_process(self, other: Credentials) -> bool:
        """Whether both are of one process, as far as the kernel tells: one whose pid it hides (0) is never the same."""
        return 0 < self.pid == other.pid and self.start_time == other.start_time and self.uid == other.uid

    def in_group(self, gid: int) -> bool:
        return gid == self.gid or gid in self.groups


@dataclass(frozen=True, slots=True)
class Ownership:
    """What the kernel looks at when somebody attaches a segment. ``creator_*`` can never be changed."""

    uid: int
    gid: int
    mode: int
    creator_uid: int
    creator_gid: int


@dataclass(frozen=True, slots=True)
class TopicSettings:
    """A topic to be created: every option decided."""

    size_bytes: int
    when_full: WhenFull
    exclusive: bool
    uid: int
    gid: int
    mode: int
    hostile: bool
    lifetime: Lifetime = "os"
    idle_ttl_s: float | None = None
    stall_timeout_s: float | None = None
    notifier: Notifier = "eventfd"


def may(peer: Credentials, ownership: Ownership, want: int) -> bool:
    """Whether the kernel lets ``peer`` attach for ``want`` (``READ``, ``WRITE`` or both)."""
    if peer.uid == ROOT_UID:
        return True
    granted = ownership.mode
    if peer.uid in (ownership.uid, ownership.creator_uid):
        granted >>= _OWNER_SHIFT
    elif peer.in_group(ownership.gid) or peer.in_group(ownership.creator_gid):
        granted >>= _GROUP_SHIFT
    return want & ~granted == 0


def may_remove(peer: Credentials, ownership: Ownership, declared_by: int) -> bool:
    """Whether ``peer`` may remove a topic: root, owner and creator (as for IPC_RMID), and the uid that had it made."""
    return peer.uid in (ROOT_UID, ownership.uid, ownership.creator_uid, declared_by)


def ctl_mode(mode: int) -> int:
    """The ctl segment's mode for a log of ``mode``: whoever may read may write."""
    readers = mode & _READ_BITS
    return readers | readers >> 1


def is_hostile(uid: int, mode: int, daemon_uid: int) -> bool:
    """Whether two participants may have different uids, root aside."""
    return uid != daemon_uid or mode & 0o077 != 0


def round_size(size_bytes: int) -> int:
    """The capacity for a wished size: the next power of two. ``InvalidOption``, ``LimitExceeded``."""
    if size_bytes < 1:
        raise InvalidOption(
            f"a topic cannot have {size_bytes} bytes", f"the smallest has {limits.TOPIC_SIZE_BYTES_MIN}"
        )
    if size_bytes > limits.TOPIC_SIZE_BYTES_MAX:
        raise LimitExceeded(
            f"a topic of {size_bytes} bytes is over the limit of {limits.TOPIC_SIZE_BYTES_MAX}",
            f"ask for {units.format_size(limits.TOPIC_SIZE_BYTES_MAX)} or less",
        )
    return max(limits.TOPIC_SIZE_BYTES_MIN, 1 << (size_bytes - 1).bit_length())


def largest_capacity(room_bytes: int) -> int:
    """The largest capacity of a topic whose ring may take so many bytes; 0 if there is none."""
    fits = min(limits.TOPIC_SIZE_BYTES_MAX, 1 << max(0, room_bytes).bit_length() >> 1)
    return fits if fits >= limits.TOPIC_SIZE_BYTES_MIN else 0


def resolve(options: TopicOptions, creator: Credentials, daemon: Credentials) -> TopicSettings:
    """What a new topic becomes that ``creator`` asks ``daemon`` for. ``InvalidOption``, ``LimitExceeded``.

    The owner is the daemon's user and the group the creator's primary one. Without an explicit mode the creator can use
    what it created: 0600 where it is the daemon's own user, else 0660.
    """
    mode = resolve_mode(options.mode, creator, daemon)
    return TopicSettings(
        size_bytes=round_size(limits.TOPIC_SIZE_BYTES_DEFAULT if options.size_bytes is None else options.size_bytes),
        when_full=options.when_full or "discard-old",
        exclusive=bool(options.exclusive),
        uid=daemon.uid,
        gid=creator.gid,
        mode=mode,
        hostile=is_hostile(daemon.uid, mode, daemon.uid),
        lifetime=options.lifetime or "os",
        idle_ttl_s=options.idle_ttl_s,
        stall_timeout_s=options.stall_timeout_s,
        notifier=options.notifier or "eventfd",
    )


def check_creator(creator: Credentials, ownership: Ownership, want: int, what: str = "topic") -> None:
    """``PermissionDenied`` if ``creator`` could not use the topic, or ``what`` it is, that it is about to create."""
    if not may(creator, ownership, want):
        raise PermissionDenied(
            f"mode {ownership.mode:04o} would keep its own creator (uid {creator.uid}) from using the {what}",
            f"the owner is the daemon's user (uid {ownership.uid}): give the rights to your group, as 0660 does",
        )


def check_match(options: TopicOptions, info: TopicInfo) -> None:
    """``TopicMismatch``, naming both values, unless the existing topic is as ``options`` want it."""
    wanted = {
        "size_bytes": None if options.size_bytes is None else round_size(options.size_bytes),
        "when_full": options.when_full,
        "exclusive": options.exclusive,
        "mode": options.mode,
        "lifetime": options.lifetime,
        "idle_ttl_s": options.idle_ttl_s,
        "stall_timeout_s": options.stall_timeout_s,
        "notifier": options.notifier,
    }
    for option, want in wanted.items():
        have = getattr(info, option)
        if want is not None and want != have:
            raise TopicMismatch(
                f"topic {info.name!r} exists with {option} {show(option, have)}, not {show(option, want)}",
                "leave the option out to take the topic as it is, or remove the topic first",
            )


def resolve_mode(mode: int | None, creator: Credentials, daemon: Credentials) -> int:
    """The permission bits of what ``creator`` has made; None leaves them open. ``InvalidOption``."""
    if mode is None:
        return 0o600 if creator.uid == daemon.uid else 0o660
    check_mode(mode)
    return mode


def check_mode(mode: int) -> None:
    """``InvalidOption`` for permission bits that nothing of the daemon's can have."""
    if mode & ~0o777 or mode & _EXECUTE_BITS:
        raise InvalidOption(
            f"mode {mode:04o} has bits that mean nothing for shared memory", "use read and write bits only"
        )
    if (mode & _WRITE_BITS) << 1 & ~mode:
        raise InvalidOption(
            f"mode {mode:04o} grants writing without reading",
            "attaching a segment needs the read bit: add it wherever the write bit is set",
        )
    if mode & 0o600 != 0o600:
        raise InvalidOption(
            f"mode {mode:04o} keeps the owner, the daemon's user, from using it",
            "the owner needs to read and write: add 0600",
        )


def show(option: str, value: object) -> str:
    """The value of an option, as people write it."""
    if option == "mode":
        return f"{value:04o}"
    return f"{value:#x}" if option == "key" else repr(value)
