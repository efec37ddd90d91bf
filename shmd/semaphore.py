"""A segment's lock: a System V semaphore set of one, worth 1 when it is free. Shared with C programs, never waited for.

    struct sembuf take = {0, -1, SEM_UNDO}, give = {0, 1, SEM_UNDO};   /* the classic recipe: this is all C needs */

Each change is made with ``SEM_UNDO``: the kernel takes it back when the process ends, however it ends, so that a lock
is free again the moment its owner is dead. That account is kept for each *process*: a thread that ends gives nothing
back, and a child made by fork inherits nothing, so here it cannot release what its parent holds.

``sysv_ipc`` makes the system calls, and has edges that this module keeps away:

- With a time-out it may wait for ever (its wheels lack ``semtimedop``). Here it never waits: ``block`` is always False.
- It opens by key only. ``attach`` compares the id, so that a key that has come to mean another set is found out.
- Its errors carry no errno: where the class leaves a doubt, the kernel is asked again through ``_core``.

A program that sets the value as it likes can make the lock worthless, for those who may change it; it cannot make
anybody here hang or crash. Values above 1 are taken as they come, and a release here never makes one.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sysv_ipc

from shmd import _core, keys, limits
from shmd.errors import ForkedError, SegmentError, SegmentExists, SegmentInvalid, UsageError
from shmd.sysv import ID_MAX, check_range, random_key

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ListedSemaphore",
    "Semaphore",
    "SemaphoreStat",
    "adopt",
    "attach",
    "create",
    "list_semaphores",
    "remove",
    "set_permissions",
    "stat",
]

_UID_MAX: Final = 2**32 - 2
_PROC_SEM: Final = Path("/proc/sysvipc/sem")
_PROC_LIMITS: Final = Path("/proc/sys/kernel/sem")


@dataclass(frozen=True, slots=True)
class SemaphoreStat:
    """One semaphore set, and the value of its first semaphore. Times are whole seconds since the epoch, 0 for never."""

    id: int
    key: int
    semaphores: int
    """In the set; those made here have one."""
    uid: int
    gid: int
    cuid: int
    """The creator's uid; nobody can change it."""
    cgid: int
    mode: int
    value: int
    """1: free; 0: somebody holds it."""
    waiting: int
    """Processes that wait in ``semop``: programs written in C."""
    last_pid: int
    """Who changed the value last: the owner, while it is 0."""
    operated_time: int
    change_time: int

    @property
    def owner_pid(self) -> int | None:
        """Who holds the lock; None if it is free."""
        return self.last_pid if self.value == 0 else None


@dataclass(frozen=True, slots=True)
class ListedSemaphore:
    """A row of /proc/sysvipc/sem, which tells no value."""

    id: int
    key: int
    semaphores: int
    uid: int
    gid: int
    cuid: int
    cgid: int
    mode: int
    operated_time: int
    change_time: int


class Semaphore:
    """The lock, as one user of one process sees it. ``held`` by this object, or not."""

    __slots__ = ("_handle", "_pid", "held", "id", "key")

    def __init__(self, handle: sysv_ipc.Semaphore) -> None:
        """Not for callers: ``attach`` and ``create`` make one."""
        handle.block = False
        handle.undo = True
        self._handle = handle
        self._pid = os.getpid()
        self.held = False
        """Whether this object holds the lock."""
        self.id: int = handle.id
        self.key: int = keys.from_c(handle.key)

    def try_acquire(self) -> bool:
        """Take the lock if it is free now; the kernel gives it back when this process ends.

        Raises ``SegmentRemoved`` (the set was), ``SegmentAccessDenied`` (its mode was changed), ``ForkedError``, and
        ``UsageError`` if this object holds it already.
        """
        self.check_process()
        if self.held:
            raise UsageError(f"semaphore {self.id} is held already by whoever wants to take it")
        self.held = self._change(-1)
        return self.held

    def release(self) -> None:
        """Give the lock back. ``UsageError`` if this object does not hold it; ``SegmentRemoved``, ``ForkedError``."""
        self.check_process()
        if not self.held:
            raise UsageError(f"semaphore {self.id} is not held by whoever wants to release it")
        self.held = False
        # Free already: somebody set it to 1, as programs do that initialise a semaphore each time they start. That made
        # the kernel forget what it was to undo, too. Adding ours would make it 2, which lets two in.
        if self._ask(lambda: self._handle.value) == 0:
            self._change(+1)

    def stat(self) -> SemaphoreStat:
        """What the kernel knows about it now. Raises ``SegmentRemoved`` or ``SegmentAccessDenied``."""
        try:
            return stat(self.id)
        except SegmentInvalid as error:
            raise _refusal(errno.EIDRM, f"look at semaphore {self.id}") from error

    def check_process(self) -> None:
        """``ForkedError`` in a forked child: what its parent holds, it does not."""
        if os.getpid() != self._pid:
            raise ForkedError(
                "this lock was opened before the fork: it is the parent's", "open the segment again in the child"
            )

    def _change(self, delta: int) -> bool:
        """One semop, never waiting. False if it would have had to."""
        try:
            self._ask(self._handle.acquire if delta < 0 else self._handle.release)
        except sysv_ipc.BusyError:
            return False
        return True

    def _ask(self, call: Callable[[], int]) -> int:
        """Call sysv_ipc, and say why if that fails. ``BusyError`` passes."""
        try:
            return call()
        except sysv_ipc.BusyError:
            raise
        except (sysv_ipc.Error, ValueError, MemoryError, OSError) as error:
            number = _stat_errno(self.id) or _errno_of(error)
            # The set was there once, so an id that is none now is one that was removed.
            raise _refusal(errno.EIDRM if number == errno.EINVAL else number, f"use semaphore {self.id}") from error

    def __repr__(self) -> str:
        return f"<Semaphore {self.id} key={self.key:#x}{' held' if self.held else ''}>"


def create(*, mode: int = 0o600, key: int | None = None) -> Semaphore:
    """Create a set of one, worth 1, owned by the caller. ``key`` None takes a random free one.

    Raises ``SegmentExists`` if ``key`` is taken, ``SegmentInvalid`` (key or mode that cannot be), ``SegmentLimit``
    and ``SegmentNoMemory``; then nothing was created.
    """
    check_range("mode", mode, 0, 0o777)
    if key is not None:
        check_range("key", key, 1, keys.KEY_MAX)
        return _create(mode, key)
    for _ in range(limits.KEY_ATTEMPTS_MAX):
        try:
            return _create(mode, random_key())
        except SegmentExists:
            continue
    raise SegmentExists(
        f"no free key among {limits.KEY_ATTEMPTS_MAX} random ones",
        "remove semaphores that nobody needs: ipcs -s, ipcrm -s ID",
    )


def attach(key: int, semid: int) -> Semaphore:
    """The semaphore set that has this key and this id.

    Raises ``SegmentAccessDenied`` (the read and write bits are needed) or ``SegmentRemoved`` (what has the key now is
    another set, or none).
    """
    check_range("key", key, 1, keys.KEY_MAX)
    check_range("id", semid, 0, ID_MAX)
    try:
        handle = sysv_ipc.Semaphore(keys.to_c(key))
    except (sysv_ipc.Error, ValueError, MemoryError, OSError) as error:
        raise _refusal(_errno_of(error), f"use semaphore {semid}") from error
    if handle.id != semid:
        raise _refusal(errno.EIDRM, f"use semaphore {semid}: its key {key:#x} belongs to another")
    return Semaphore(handle)


def adopt(key: int, uid: int) -> ListedSemaphore:
    """The set that exists under ``key``, made by another program, if ``uid`` is its owner or creator; uid 0 may always.

    Its value is left as it is: a program written by the classic recipe may be about to initialise it. Raises
    ``SegmentNotFound``, ``SegmentAccessDenied``, or ``SegmentInvalid`` if it is a set of several.
    """
    check_range("key", key, 1, keys.KEY_MAX)
    found = next((found for found in list_semaphores() if found.key == key), None)
    if found is None:
        raise _refusal(errno.ENOENT, f"adopt the semaphore with key {key:#x}")
    if uid not in (0, found.uid, found.cuid):
        raise _refusal(errno.EPERM, f"adopt semaphore {found.id} for uid {uid}")
    if found.semaphores != 1:
        raise SegmentInvalid(
            f"semaphore set {found.id} has {found.semaphores} semaphores", "a segment's lock is a set of one"
        )
    return found


def stat(semid: int) -> SemaphoreStat:
    """What the kernel knows about a set. Raises ``SegmentAccessDenied`` (no read bit) or ``SegmentInvalid``."""
    check_range("id", semid, 0, ID_MAX)
    try:
        key, semaphores, uid, gid, cuid, cgid, mode, *rest = _core.sem_stat(semid)
    except OSError as error:
        raise _refusal(error.errno or errno.EINVAL, f"look at semaphore {semid}") from error
    key = keys.from_c(key)
    return SemaphoreStat(semid, key, semaphores, uid, gid, cuid, cgid, mode & 0o777, *rest)


def set_permissions(semid: int, uid: int, gid: int, mode: int) -> None:
    """Give the set this owner, group and mode (permission bits). For its owner and creator; needs no read bit.

    Raises ``SegmentAccessDenied`` or ``SegmentInvalid``.
    """
    check_range("id", semid, 0, ID_MAX)
    check_range("uid", uid, 0, _UID_MAX)
    check_range("gid", gid, 0, _UID_MAX)
    check_range("mode", mode, 0, 0o777)
    try:
        _core.sem_set(semid, uid, gid, mode)
    except OSError as error:
        raise _refusal(error.errno or errno.EINVAL, f"change permissions of semaphore {semid}") from error


def remove(semid: int) -> None:
    """Remove the set, at once: whoever waits for it gets ``SegmentRemoved``. For its owner and creator.

    Raises ``SegmentAccessDenied`` or ``SegmentInvalid``.
    """
    check_range("id", semid, 0, ID_MAX)
    try:
        sysv_ipc.remove_semaphore(semid)
    except sysv_ipc.ExistentialError as error:
        raise _refusal(_stat_errno(semid) or errno.EIDRM, f"remove semaphore {semid}") from error
    except (sysv_ipc.Error, OSError) as error:
        raise _refusal(_errno_of(error), f"remove semaphore {semid}") from error


def list_semaphores() -> list[ListedSemaphore]:
    """Every semaphore set of this IPC namespace, whoever owns it."""
    lines = _PROC_SEM.read_text(encoding="ascii").splitlines()
    return [_parse_row(line) for line in lines[1:]]


def _parse_row(line: str) -> ListedSemaphore:
    key, semid, perms, *numbers = line.split()
    semaphores, uid, gid, cuid, cgid, operated, changed = map(int, numbers[:7])
    return ListedSemaphore(
        id=int(semid),
        key=keys.from_c(int(key)),
        semaphores=semaphores,
        uid=uid,
        gid=gid,
        cuid=cuid,
        cgid=cgid,
        mode=int(perms, 8) & 0o777,
        operated_time=operated,
        change_time=changed,
    )


def _create(mode: int, key: int) -> Semaphore:
    doing = f"create a semaphore with key {key:#x}"
    try:
        handle = sysv_ipc.Semaphore(keys.to_c(key), sysv_ipc.IPC_CREX, mode=0o600, initial_value=0)
    except sysv_ipc.ExistentialError as error:
        raise _refusal(errno.EEXIST, doing) from error
    except (sysv_ipc.Error, ValueError, MemoryError, OSError) as error:
        raise _refusal(_errno_of(error), doing) from error
    try:
        # Made 0, and freed by a semop: programs that open it by the classic recipe wait for its first one (sem_otime).
        handle.release()
        set_permissions(handle.id, os.geteuid(), os.getegid(), mode)
    except BaseException:
        handle.remove()
        raise
    return Semaphore(handle)


def _errno_of(error: Exception) -> int:
    """The errno behind what sysv_ipc raised."""
    if isinstance(error, OSError):
        return error.errno or errno.ENOSPC
    if isinstance(error, sysv_ipc.PermissionsError):
        return errno.EACCES
    if isinstance(error, sysv_ipc.ExistentialError):
        return errno.EIDRM
    return errno.ENOMEM if isinstance(error, MemoryError) else errno.EINVAL


def _stat_errno(semid: int) -> int:
    try:
        _core.sem_stat(semid)
    except OSError as error:
        return error.errno or 0
    return 0


def _refusal(number: int, doing: str) -> SegmentError:
    """The error for errno ``number`` from ``doing`` something, and what to do about it."""
    return SegmentError.from_errno(number, f"cannot {doing}: {os.strerror(number)}", _hint(number))


def _hint(number: int) -> str | None:
    if number == errno.ENOSPC:
        return _full_hint()
    return {
        errno.EEXIST: "take another key, or let a random one be chosen",
        errno.ENOENT: "there is none with this key; see them with: ipcs -s",
        errno.EINVAL: "there is none with this id: it was removed, or it is in another IPC namespace",
        errno.EIDRM: "it is gone, as after ipcrm -s; remove the segment and create it anew to have a lock again",
        errno.EACCES: "ask its owner for the read and write bits; see them with: ipcs -s -c",
        errno.EPERM: "only its owner and its creator may do that",
        errno.ENOMEM: "free memory",
    }.get(number)


def _full_hint() -> str:
    per_set, in_all, per_call, sets = map(int, _PROC_LIMITS.read_text(encoding="ascii").split())
    found = list_semaphores()
    if len(found) >= sets:
        used, sets = f"{len(found)} sets exist and SEMMNI is {sets}", 2 * sets
    else:
        used, sets = f"{sum(one.semaphores for one in found)} semaphores exist and SEMMNS is {in_all}", sets
        in_all *= 2
    return f'{used}; raise it with: sysctl kernel.sem="{per_set} {in_all} {per_call} {sets}"'
