"""What a process holds, as the operating system tells it, and what of that is new.

Leaks are found by comparing before and after: System V segments and semaphores, this process's descriptors, its
descendants, files in given directories. System V objects are the host's, not the process's, so those that another
living process tree made meanwhile are not blamed on this one; and since a process's last resources go when the kernel
gets round to it, a difference must last ``LEAK_GRACE_S`` before it counts.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvloop

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LEAK_GRACE_S: Final = 2.0
"""How long a difference must last before it is called a leak."""


@dataclass(frozen=True)
class Leaks:
    """What is there that was not there before; each entry is one line for a human."""

    segments: tuple[str, ...] = ()
    semaphores: tuple[str, ...] = ()
    descriptors: tuple[str, ...] = ()
    processes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def __str__(self) -> str:
        return "; ".join(f"{kind}: {', '.join(found)}" for kind, found in vars(self).items() if found)


@dataclass(frozen=True)
class Resources:
    """What this process and its descendants hold now, as the operating system tells it."""

    segments: Mapping[int, int]
    """System V segment id → pid of its creator, of the whole IPC namespace."""
    semaphores: frozenset[int]
    descriptors: Mapping[int, str]
    processes: Mapping[int, str]
    files: frozenset[str]
    directories: tuple[Path, ...]

    @classmethod
    def now(cls, *directories: Path) -> Resources:
        """A snapshot. Files are counted below ``directories`` only."""
        _open_process_wide_descriptors()
        return cls(
            segments={int(row["shmid"]): int(row["cpid"]) for row in sysvipc("shm")},
            semaphores=frozenset(int(row["semid"]) for row in sysvipc("sem")),
            descriptors=_descriptors(),
            processes=_descendants(),
            files=frozenset(str(path) for directory in directories for path in directory.rglob("*")),
            directories=directories,
        )

    def leaks(self) -> Leaks:
        """What there is now beyond this snapshot, gone neither at once nor within ``LEAK_GRACE_S``."""
        deadline = time.monotonic() + LEAK_GRACE_S
        while leaks := self._compare(Resources.now(*self.directories)):
            if time.monotonic() > deadline:
                break
            gc.collect()
            time.sleep(0.02)
        return leaks

    def _compare(self, after: Resources) -> Leaks:
        return Leaks(
            segments=tuple(
                f"shmid {shmid} made by pid {creator}"
                for shmid, creator in after.segments.items()
                if shmid not in self.segments and not _belongs_to_others(creator, after.processes)
            ),
            semaphores=tuple(f"semid {semid}" for semid in sorted(after.semaphores - self.semaphores)),
            descriptors=tuple(
                f"{fd} → {target}" for fd, target in after.descriptors.items() if self.descriptors.get(fd) != target
            ),
            processes=tuple(f"{pid} ({name})" for pid, name in after.processes.items() if pid not in self.processes),
            files=tuple(sorted(after.files - self.files)),
        )


@contextlib.contextmanager
def assert_no_leaks(*directories: Path) -> Iterator[None]:
    """Fail with ``AssertionError`` if the block leaves anything behind; silent if the block itself raises.

    Checked: System V segments and semaphores, this process's descriptors, its descendants, files in ``directories``.
    """
    before = Resources.now(*directories)
    yield
    if leaks := before.leaks():
        raise AssertionError(f"left behind: {leaks}")


def sysvipc(kind: str) -> list[dict[str, str]]:
    """The rows of /proc/sysvipc/``kind`` by column name."""
    header, *rows = Path("/proc/sysvipc", kind).read_text().splitlines()
    return [dict(zip(header.split(), row.split(), strict=True)) for row in rows]


@functools.cache
def _open_process_wide_descriptors() -> None:
    """libuv opens a pipe with a process's first event loop and keeps it; open it before anything is counted."""
    uvloop.new_event_loop().close()


def _descriptors() -> dict[int, str]:
    exempt = _multiprocessing_tracker()[1]
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listdir itself had open
            if int(name) != exempt:
                found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def _descendants() -> dict[int, str]:
    """Pid → name of every process below this one, zombies included."""
    parents: dict[int, tuple[int, str]] = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            comm, _, rest = Path("/proc", name, "stat").read_text(errors="replace").rpartition(")")
            parents[int(name)] = (int(rest.split()[1]), comm.partition("(")[2])
    me, exempt = os.getpid(), _multiprocessing_tracker()[0]

    def is_below(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid][0]
            if pid == me:
                return True
        return False

    return {pid: name for pid, (_, name) in parents.items() if pid != exempt and is_below(pid)}


def _belongs_to_others(pid: int, descendants: Mapping[int, str]) -> bool:
    return pid != os.getpid() and pid not in descendants and Path("/proc", str(pid)).exists()


def _multiprocessing_tracker() -> tuple[int | None, int | None]:
    """Pid and descriptor of multiprocessing's resource tracker, which is meant to stay until the interpreter ends."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    tracker = getattr(module, "_resource_tracker", None)
    return getattr(tracker, "_pid", None), getattr(tracker, "_fd", None)
