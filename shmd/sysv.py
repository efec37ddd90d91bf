"""System V shared memory as the kernel tells it: what exists, which limits hold, and what an errno means here."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shmd import _core, keys
from shmd.errors import SegmentError, SegmentInvalid
from shmd.shortage import SEGMENT, advice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmd.shortage import Wish

ID_MAX: Final = 2**31 - 1
_SHM_DEST: Final = 0o1000
_PROC_SHM: Final = Path("/proc/sysvipc/shm")
_PROC_LIMITS: Final = Path("/proc/sys/kernel")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_SHMMNI_MAX: Final = 32_768
"""IPCMNI: an id has no room for more."""


@dataclass(frozen=True, slots=True)
class SegmentStat:
    """One segment: all of ``struct shmid_ds``. Times are whole seconds since the epoch, 0 for never."""

    id: int
    key: int
    """As ipcs prints it, unsigned; 0 once the segment is marked for removal."""
    size_bytes: int
    uid: int
    gid: int
    cuid: int
    """The creator's uid; nobody can change it."""
    cgid: int
    mode: int
    """Permission bits only."""
    removed: bool
    """Marked for removal: it goes with its last attachment."""
    attachments: int
    creator_pid: int
    last_pid: int
    attach_time: int
    detach_time: int
    change_time: int
    rss_bytes: int | None = None
    """Memory it occupies now; known to ``list_segments`` only."""

    @property
    def allocated_bytes(self) -> int:
        """The size rounded up to whole pages, as the kernel keeps it."""
        return _pages(self.size_bytes) * _PAGE_BYTES


@dataclass(frozen=True, slots=True)
class SystemLimits:
    """System V limits of this IPC namespace, from /proc/sys/kernel."""

    shmmax: int
    """Bytes in one segment."""
    shmmni: int
    """Segments."""
    shmall: int
    """Pages in all segments together."""
    shm_rmid_forced: bool
    """Segments go with their last attachment or their creator: nothing outlives the process that made it."""


def stat(shmid: int) -> SegmentStat:
    """What the kernel knows about a segment. Raises ``SegmentAccessDenied`` (no read bit) or ``SegmentInvalid``."""
    check_range("id", shmid, 0, ID_MAX)
    try:
        key, size_bytes, uid, gid, cuid, cgid, mode, *rest = _core.shm_stat(shmid)
    except OSError as error:
        raise refusal(error.errno or errno.EINVAL, f"look at segment {shmid}") from error
    key = keys.from_c(key)
    return SegmentStat(shmid, key, size_bytes, uid, gid, cuid, cgid, mode & 0o777, bool(mode & _SHM_DEST), *rest)


def list_segments() -> list[SegmentStat]:
    """Every segment of this IPC namespace, whoever owns it. Takes about 4 µs each."""
    lines = _PROC_SHM.read_text(encoding="ascii").splitlines()
    return [_parse_row(line) for line in lines[1:]]


def system_limits() -> SystemLimits:
    """The System V limits in force here."""
    shmmax, shmmni, shmall, forced = (
        int((_PROC_LIMITS / name).read_text(encoding="ascii"))
        for name in ("shmmax", "shmmni", "shmall", "shm_rmid_forced")
    )
    return SystemLimits(shmmax=shmmax, shmmni=shmmni, shmall=shmall, shm_rmid_forced=bool(forced))


def _parse_row(line: str) -> SegmentStat:
    key, shmid, perms, *numbers = line.split()
    size, cpid, lpid, attachments, uid, gid, cuid, cgid, atime, dtime, ctime, rss = map(int, numbers[:12])
    mode = int(perms, 8)
    return SegmentStat(
        id=int(shmid),
        key=keys.from_c(int(key)),
        size_bytes=size,
        uid=uid,
        gid=gid,
        cuid=cuid,
        cgid=cgid,
        mode=mode & 0o777,
        removed=bool(mode & _SHM_DEST),
        attachments=attachments,
        creator_pid=cpid,
        last_pid=lpid,
        attach_time=atime,
        detach_time=dtime,
        change_time=ctime,
        rss_bytes=rss,
    )


def random_key() -> int:
    """One that is probably free."""
    import secrets  # which loads OpenSSL; a client needs no key

    return secrets.randbelow(keys.CHOSEN_KEY_MAX) + 1


def check_range(what: str, value: int, lowest: int, highest: int) -> None:
    """``SegmentInvalid`` unless ``value`` is an integer in the range: sysv_ipc would truncate it."""
    if type(value) is int and lowest <= value <= highest:
        return
    raise SegmentInvalid(f"{value!r} cannot be a segment's {what}", f"an integer from {lowest} to {highest}")


def refusal(number: int, doing: str, size_bytes: int = 0) -> SegmentError:
    """The error for errno ``number`` from ``doing`` something, and what to do about it; ``size_bytes`` if creating."""
    return SegmentError.from_errno(number, f"cannot {doing}: {os.strerror(number)}", _hint(number, size_bytes))


def shortage(error: SegmentError, sizes_bytes: Sequence[int], wish: Wish) -> SegmentError:
    """``error``, with which the kernel refused to create one of these segments, for whoever wished for all of them.

    To be asked when none of them exists (any more). ``wish`` is about the first.
    """
    number = error.errno or error.default_errno
    hint = _shortage_hint(number, sizes_bytes, wish) or error.hint
    return SegmentError.from_errno(number, error.message, hint)


def _hint(number: int, size_bytes: int) -> str | None:
    if size_bytes and (hint := _shortage_hint(number, (size_bytes,), SEGMENT)):
        return hint
    return {
        errno.EEXIST: "take another key, or let a random one be chosen",
        errno.EINVAL: "there is none with this id: it was removed, or it is in another IPC namespace",
        errno.EIDRM: "it was removed",
        errno.EACCES: "ask its owner for the permission bits; see them with: ipcs -m -p, ipcs -m -c",
        errno.EPERM: "only its owner and its creator may do that",
        errno.ENOMEM: "free memory, or raise the process's address-space limit: ulimit -v",
    }.get(number)


def _shortage_hint(number: int, sizes_bytes: Sequence[int], wish: Wish) -> str | None:
    """Which limit stands in the way of these segments, and what to do about it. None: none does."""
    current = system_limits()
    if number == errno.EINVAL and max(sizes_bytes) > current.shmmax:
        remedy = f"raise it with: sysctl kernel.shmmax={max(sizes_bytes)}"
        return f"kernel.shmmax is {current.shmmax} bytes: {advice(wish, current.shmmax, remedy)}"
    if number != errno.ENOSPC:
        return None
    segments = list_segments()
    if len(segments) + len(sizes_bytes) > current.shmmni:
        return f"{len(segments)} segments exist and kernel.shmmni is {current.shmmni}; {_more_segments(current.shmmni)}"
    used, (first, *others) = sum(_pages(found.size_bytes) for found in segments), map(_pages, sizes_bytes)
    room_bytes = max(0, current.shmall - used - sum(others)) * _PAGE_BYTES
    remedy = f"raise it with: sysctl kernel.shmall={used + first + sum(others)}"
    return f"{used} pages are in use and kernel.shmall is {current.shmall}: {advice(wish, room_bytes, remedy)}"


def _more_segments(shmmni: int) -> str:
    if shmmni >= _SHMMNI_MAX:
        return "that is all the kernel can have: remove some (ipcs -m, ipcrm -m ID)"
    return f"raise it with: sysctl kernel.shmmni={min(2 * shmmni, _SHMMNI_MAX)}"


def _pages(size_bytes: int) -> int:
    return -(-size_bytes // _PAGE_BYTES)
