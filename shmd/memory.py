"""How much memory this process may still take, before it takes it.

Touching memory beyond what its cgroup or the host has gets a process killed, without any error before. So whoever is to
pre-fault a segment asks here first, and again for each step, for others take memory as well.

    /proc/self/cgroup: which cgroup ─┐
                                     ├─▶ its directory, and all above ─▶ limit - usage + page cache   (each)
    /proc/self/mountinfo: where ─────┘                                   MemAvailable                 (the host)

Both versions of cgroups are known; a host may have both. Page cache counts as free, since the kernel gives it up first.
Swap does not: shared memory that is swapped out is of no use to anybody. What cannot be read, or is no number, is no
limit.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from shmd import limits
from shmd.errors import LimitExceeded
from shmd.shortage import advice

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shmd.shortage import Wish

PROC: Final = Path("/proc")
_UNLIMITED: Final = 2**62
"""What version 1 writes for "no limit" is a little less than 2**63; no machine has a quarter of that."""
_PAGE_CACHE: Final = ({"inactive_file", "active_file"}, {"total_inactive_file", "total_active_file"})
_PAGE_TABLES_DIVISOR: Final = 512
"""Mapping a page takes 8 bytes, charged to the same cgroup."""


@dataclass(frozen=True, slots=True)
class Bound:
    """One limit on this process's memory, and what it leaves."""

    name: str
    limit_bytes: int
    free_bytes: int
    path: Path | None = None
    """The file that sets it."""


def check(sizes_bytes: Sequence[int], wish: Wish, proc: Path = PROC) -> None:
    """``LimitExceeded`` if segments of these sizes would take more memory than there is. ``wish`` is about the first.

    It names the tightest limit, its value, the largest size that would fit, and what to do.
    """
    tightest = _tightest(proc)
    needed = _charge(sum(sizes_bytes))
    with _lock:
        room = _room(tightest)
    if tightest is None or needed <= room:
        return
    largest_room = room - room // _PAGE_TABLES_DIVISOR - sum(sizes_bytes[1:])
    raise LimitExceeded(
        f"{wish.what} needs {needed} bytes of memory, and {max(0, room)} are left by {tightest.name}, "
        f"which is {tightest.limit_bytes} bytes",
        advice(wish, largest_room, _remedy(tightest, needed - room)),
    )


@contextlib.contextmanager
def claim(size_bytes: int, proc: Path = PROC) -> Iterator[None]:
    """Touch so many bytes in this block. ``LimitExceeded`` if that would be too much, also with what other threads have
    claimed and may not have touched yet.
    """
    global _claimed_bytes
    needed = _charge(size_bytes)
    tightest = _tightest(proc)
    with _lock:
        room = _room(tightest)
        if tightest is not None and needed > room:
            raise LimitExceeded(
                f"memory ran out meanwhile: {max(0, room)} bytes are left by {tightest.name}, "
                f"which is {tightest.limit_bytes} bytes",
                _remedy(tightest, needed - room),
            )
        _claimed_bytes += needed
    try:
        yield
    finally:
        with _lock:
            _claimed_bytes -= needed


_lock = threading.Lock()
_claimed_bytes = 0
"""What threads of this process are about to touch. Guarded by the lock."""


def bounds(proc: Path = PROC) -> Iterator[Bound]:
    """All limits in force: of this process's cgroups, from the innermost outwards, and of the host."""
    for kind, directory in _directories(proc, tuple(_lines(proc / "self/cgroup"))):
        if bound := _bound_of(kind, directory):
            yield bound
    info = dict(_pairs(proc / "meminfo", r"(\w+):\s+([0-9]{1,15}) kB"))
    if "MemTotal" in info and "MemAvailable" in info:
        yield Bound("the host's memory (MemTotal)", info["MemTotal"] * 1024, info["MemAvailable"] * 1024)


def _tightest(proc: Path) -> Bound | None:
    return min(bounds(proc), key=lambda bound: bound.free_bytes, default=None)


def _room(bound: Bound | None) -> int:
    return 0 if bound is None else bound.free_bytes - limits.MEMORY_SPARED_BYTES - _claimed_bytes


def _charge(size_bytes: int) -> int:
    return size_bytes + size_bytes // _PAGE_TABLES_DIVISOR


def _remedy(bound: Bound, missing_bytes: int) -> str:
    if bound.path is None:
        return "free memory on this host (see: free -m)"
    enough = bound.limit_bytes + missing_bytes
    return f"raise it with: echo {enough} > {bound.path} (of a systemd unit: MemoryMax=)"


# --- cgroups ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mount:
    kind: str
    root: PurePosixPath
    """The cgroup that is mounted there."""
    point: Path


def _cgroup_mounts(proc: Path) -> Iterator[_Mount]:
    for line in _lines(proc / "self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind, options = before.split(" "), *_kind_and_options(after)
        if len(fields) >= 5 and (kind == "cgroup2" or (kind == "cgroup" and "memory" in options)):
            yield _Mount(kind, PurePosixPath(_unescape(fields[3])), Path(_unescape(fields[4])))


def _kind_and_options(text: str) -> tuple[str, list[str]]:
    words = text.split(" ")
    return words[0], words[2].split(",") if len(words) > 2 else []


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


@functools.lru_cache(maxsize=1)
def _directories(proc: Path, groups: tuple[str, ...]) -> list[tuple[str, Path]]:
    """(kind, directory) of each cgroup in ``groups``, the lines of /proc/self/cgroup, that may limit memory, and of all
    above. Kept, for a process is rarely moved, and its list of mounts may be long.
    """
    mounts = {mount.kind: mount for mount in reversed(list(_cgroup_mounts(proc)))}
    found = []
    for line in groups:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        kind = "cgroup2" if number == "0" and not controllers else "cgroup"
        if kind in mounts and (kind == "cgroup2" or "memory" in controllers.split(",")):
            found += [(kind, directory) for directory in _upwards(mounts[kind], PurePosixPath(path))]
    return found


def _upwards(mount: _Mount, cgroup: PurePosixPath) -> Iterator[Path]:
    """The cgroup's directory and all above it that can be seen from here."""
    below = cgroup.relative_to(mount.root) if cgroup.is_relative_to(mount.root) else PurePosixPath()
    if ".." in below.parts:  # a cgroup outside of our cgroup namespace
        below = PurePosixPath()
    yield mount.point / below
    for parent in below.parents:
        yield mount.point / parent


def _bound_of(kind: str, directory: Path) -> Bound | None:
    limit_name, usage_name = ("memory.max", "memory.current") if kind == "cgroup2" else (
        "memory.limit_in_bytes", "memory.usage_in_bytes"
    )  # fmt: skip
    limit, usage = _number(directory / limit_name), _number(directory / usage_name)
    if limit is None or usage is None or limit >= _UNLIMITED:
        return None
    stat = dict(_pairs(directory / "memory.stat", r"(\w+) ([0-9]{1,19})"))
    cache = sum(stat.get(name, 0) for name in _PAGE_CACHE[kind == "cgroup"])
    return Bound(f"{limit_name} of {directory}", limit, limit - usage + min(cache, usage), directory / limit_name)


# --- files ------------------------------------------------------------------------------------------------------------


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    match = re.fullmatch(r"([0-9]{1,20})\s*", "".join(_lines(path)))
    return None if match is None else int(match[1])


def _pairs(path: Path, pattern: str) -> Iterator[tuple[str, int]]:
    for line in _lines(path):
        if match := re.fullmatch(pattern, line):
            yield match[1], int(match[2])
