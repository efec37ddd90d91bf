"""Who is dead. One proof, the same everywhere; whatever it does not prove is alive.

A process is a pid and the time at which it started, since pids are used again. It is dead if

- ``pidfd_open`` knows no such process, or
- its pidfd is readable (a zombie runs no more instructions), or
- a process of that pid started at another time.

Nothing else proves anything: a hung-up socket, a heartbeat that is late, or a ``/proc`` that does not show the process
(``hidepid``) happen to the living as well. Where the start time cannot be read it is 0, unknown, and compares as equal.

Pids mean something within one PID namespace, and start times within one time namespace. Whoever takes them from another
process compares ``namespaces()`` first.
"""

from __future__ import annotations

import errno
import os
import select
from dataclasses import dataclass
from typing import Final

UNKNOWN: Final = 0
"""A pid of another PID namespace, or a start time that nobody may see."""
PID_MAX: Final = 2**22
"""The kernel's own limit (PID_MAX_LIMIT)."""
_STAT_BYTES_MAX: Final = 4096
_START_TIME_FIELD: Final = 22
"""Of /proc/PID/stat, counted from 1; the second, in parentheses, may itself hold anything."""
_NO_SUCH_PROCESS: Final = (errno.ESRCH, errno.EINVAL, errno.ENOENT)
"""The last two: the number is now a thread of some process, so the process that it was is no more."""


@dataclass(frozen=True, slots=True)
class Process:
    """``start_time``: clock ticks since boot."""

    pid: int
    start_time: int = UNKNOWN


def process(pid: int) -> Process:
    """The process that has this pid now."""
    return Process(pid, start_time(pid))


def start_time(pid: int) -> int:
    """When the process started, or ``UNKNOWN``: there is none, or /proc does not show it."""
    fields = _stat_fields(pid)
    return int(fields[_START_TIME_FIELD - 3]) if fields else UNKNOWN


def is_stopped(tid: int) -> bool:
    """Whether /proc says that this thread is stopped, by a signal or a debugger."""
    return _stat_fields(tid)[:1] in ([b"T"], [b"t"])


def _stat_fields(tid: int) -> list[bytes]:
    """The fields of /proc/TID/stat from the third on; none if it cannot be read."""
    try:
        # Opened non-blocking, though /proc never blocks: so it may be read in an event loop.
        fd = os.open(f"/proc/{tid}/stat", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        return os.read(fd, _STAT_BYTES_MAX).rpartition(b")")[2].split()
    except OSError:  # it died meanwhile
        return []
    finally:
        os.close(fd)


def open_pidfd(process: Process) -> int | None:
    """A descriptor that becomes readable when the process dies; None if it is dead already.

    ``OSError`` if that cannot be told: no descriptors left (EMFILE, ENFILE), or a pid that is ``UNKNOWN`` (EINVAL).
    """
    if process.pid <= UNKNOWN:
        raise OSError(errno.EINVAL, "its pid is of another namespace")
    if process.pid > PID_MAX:
        return None  # from damaged memory: no process ever has it
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError as error:
        if error.errno in _NO_SUCH_PROCESS:
            return None
        raise
    # Asked in this order, an answer about a later process of that pid proves the death of the first all the same.
    found = start_time(process.pid)
    reused = UNKNOWN not in (found, process.start_time) and found != process.start_time
    if reused or has_ended(pidfd):
        os.close(pidfd)
        return None
    return pidfd


def has_ended(pidfd: int) -> bool:
    """Whether the process behind this pidfd is dead, be it a zombie."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def is_dead(process: Process) -> bool:
    """Whether the process is proven dead. False proves nothing."""
    try:
        pidfd = open_pidfd(process)
    except OSError:
        return False
    if pidfd is None:
        return True
    os.close(pidfd)
    return False


def has_no_thread(tid: int) -> bool:
    """Whether ``tid`` is no thread of any process of this PID namespace. /proc may hide one; this does not ask it."""
    try:
        os.sched_getscheduler(tid)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def namespaces() -> tuple[int, int]:
    """(PID namespace, time namespace) of this process: those within which its ``Process`` values mean something."""
    return _namespace("pid"), _namespace("time")


def _namespace(kind: str) -> int:
    try:
        return os.stat(f"/proc/thread-self/ns/{kind}").st_ino
    except OSError:
        return UNKNOWN
