"""Who may do what with a raw segment, and what it becomes when a client leaves options open. Pure functions.

The rule for access is the kernel's, as for topics (``policy``). Beyond it: whoever had the segment made has its owner's
rights with shmd (change, remove), and an adopted segment is changed and removed only as far as the kernel lets the
daemon's user do that, who is neither its owner nor its creator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shmd import policy
from shmd.errors import InvalidOption, PermissionDenied, SegmentInvalid, SegmentMismatch
from shmd.policy import Ownership
from shmd.shortage import Wish

if TYPE_CHECKING:
    from shmd.policy import Credentials
    from shmd.protocol import Backing, Lifetime, Notifier, SegmentInfo, SegmentOptions, Sync

SIZE_MAX: Final = 2**63 - 1
WISH: Final = Wish(
    "the segment", lambda room_bytes: max(0, room_bytes), 'a file, which needs no memory: backing="file"'
)
FILE_WISH: Final = Wish("the file", lambda room_bytes: max(0, room_bytes))


@dataclass(frozen=True, slots=True)
class SegmentSettings:
    """A segment to be created, or, with ``adopt``, to be taken over if there is one: every option decided."""

    size_bytes: int
    """0: as it is found."""
    uid: int
    gid: int
    mode: int
    key: int | None = None
    adopt: bool = False
    create: bool = True
    """False: only ever adopted."""
    backing: Backing = "memory"
    sync: Sync = "none"
    lifetime: Lifetime = "os"
    notifier: Notifier = "eventfd"


def ownership(info: SegmentInfo) -> Ownership:
    """What the kernel looks at when somebody attaches the segment."""
    return Ownership(info.uid, info.gid, info.mode, creator_uid=info.creator_uid, creator_gid=info.creator_gid)


def resolve(options: SegmentOptions, creator: Credentials, daemon: Credentials, *, create: bool) -> SegmentSettings:
    """What a new segment becomes that ``creator`` asks ``daemon`` for. ``InvalidOption``, ``SegmentInvalid``."""
    if options.adopt and options.key is None:
        raise InvalidOption("only a segment with a known key can be adopted", "give key= or ftok=")
    if options.backing == "file" and (options.key is not None or options.lifetime == "attached"):
        raise InvalidOption(
            "a segment that is a file has no System V key, and stays until it is removed",
            "leave out key= and lifetime=",
        )
    if options.backing != "file" and options.sync not in (None, "none"):
        raise InvalidOption(
            f"sync={options.sync!r} is for files: memory has no disk", 'leave it out, or backing="file"'
        )
    if options.lifetime == "attached" and options.key is not None:
        raise InvalidOption(
            'a segment of lifetime "attached" has no key: nobody finds it by one', "leave out key=, or lifetime="
        )
    size_bytes = options.size_bytes or 0
    if create and (options.size_bytes is not None or not options.adopt) and not 1 <= size_bytes <= SIZE_MAX:
        raise SegmentInvalid(
            "a new segment needs a size of at least 1 byte" if options.size_bytes is None else
            f"a segment cannot have {size_bytes} bytes",
            'give size=, like 65536 or "64KiB"',
        )  # fmt: skip
    return SegmentSettings(
        size_bytes=size_bytes,
        uid=daemon.uid,
        gid=creator.gid,
        mode=policy.resolve_mode(options.mode, creator, daemon),
        key=options.key,
        adopt=options.adopt,
        create=create,
        backing=options.backing or "memory",
        sync=options.sync or "none",
        lifetime=options.lifetime or "os",
        notifier=options.notifier or "eventfd",
    )


def check_match(options: SegmentOptions, info: SegmentInfo) -> None:
    """``SegmentMismatch``, naming both values, unless the existing segment is as ``options`` want it.

    A size may be smaller than what there is; a larger one is ``SegmentInvalid``, as the kernel's EINVAL.
    """
    if options.size_bytes is not None and options.size_bytes > info.size_bytes:
        raise SegmentInvalid(
            f"segment {info.name!r} has {info.size_bytes} bytes, not {options.size_bytes}",
            "ask for no more, or leave size= out to take it as it is; a segment cannot grow",
        )
    for option in ("mode", "key", "backing", "sync", "lifetime", "notifier"):
        want, have = getattr(options, option), getattr(info, option)
        if want is not None and want != have:
            raise SegmentMismatch(
                f"segment {info.name!r} exists with {option} {policy.show(option, have)}, "
                f"not {policy.show(option, want)}",
                "leave the option out to take the segment as it is, or remove the segment first",
            )


def check_may(peer: Credentials, info: SegmentInfo, want: int) -> None:
    """``PermissionDenied``, which tells neither key nor id, unless the kernel lets ``peer`` use the segment so."""
    if not policy.may(peer, ownership(info), want):
        use = "write to" if want & policy.WRITE else "read"
        raise PermissionDenied(
            f"uid {peer.uid} may not {use} segment {info.name!r}, "
            f"which has uid {info.uid}, gid {info.gid} and mode {info.mode:04o}",
            "join its group, or have its owner change the mode",
        )


def check_control(peer: Credentials, info: SegmentInfo, daemon: Credentials, what: str) -> None:
    """``PermissionDenied`` unless ``peer`` may ``what`` (change, remove) the segment, and the daemon can."""
    if not policy.may_remove(peer, ownership(info), info.declared_by):
        raise PermissionDenied(
            f"uid {peer.uid} may not {what} segment {info.name!r}, "
            f"which uid {info.uid} owns and uid {info.declared_by} declared",
            "ask one of them, or root",
        )
    if daemon.uid not in (policy.ROOT_UID, info.uid, info.creator_uid):
        raise PermissionDenied(
            f"the daemon's user (uid {daemon.uid}) neither owns nor created segment {info.name!r}, which it adopted, "
            f"and cannot {what} it",
            f"its owner can: ipcs -m, ipcrm -m {info.id}",
        )


def check_adopter(adopter: Credentials, uid: int, creator_uid: int, key: int) -> None:
    """``PermissionDenied`` unless ``adopter`` owns or created the segment that it wants to have adopted, or is root."""
    if adopter.uid not in (policy.ROOT_UID, uid, creator_uid):
        raise PermissionDenied(
            f"uid {adopter.uid} neither owns nor created the segment with key {key:#x}", "ask its owner to adopt it"
        )
