"""System V shared-memory segments: create, attach, look at, change and remove them. Blocking, but never for long.

``sysv_ipc`` makes the system calls; this module is the only one that touches it, because it has edges:

- Its buffer says "writable" for a read-only attachment and dies with the mapping under it. All access goes through a
  ``_core.Mapping`` instead, which is honest about read-only and counts its exports, so that ``Segment.close`` can
  refuse (``BufferError``) while somebody still looks.
- Dropping its object does not detach. ``Segment.close`` does; one that is dropped unclosed warns and closes itself.
- Creating fills the segment with spaces under the GIL, unless it is created read-only: so it is, and is then attached
  again for writing, with the first attachment held meanwhile (under ``kernel.shm_rmid_forced`` a segment without
  attachments vanishes).
- If it created but could not attach, it forgets the segment: ``create`` finds it by its key and removes it.
- Keys and sizes are truncated silently: both are checked here.
- Its errors carry no errno. Where the exception's class leaves a doubt, the kernel is asked again through ``_core``;
  messages are never matched.

A process attaches a segment once for reading and once for writing; further ``attach`` calls share that attachment,
and the last ``close`` gives it back. An id cannot come to mean another segment while the process is attached to it,
except in another IPC namespace; so attachments are kept by (namespace, id, access), and a cached one needs no other
check. A child made by fork inherits the attachments and this module's account of them alike: both stay true there.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import sysv_ipc

from shmd import _core, keys, limits
from shmd.errors import ClosedError, SegmentExists
from shmd.sysv import (
    ID_MAX,
    SegmentStat,
    SystemLimits,
    check_range,
    list_segments,
    random_key,
    refusal,
    stat,
    system_limits,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

__all__ = [
    "Segment",
    "SegmentStat",
    "SystemLimits",
    "attach",
    "create",
    "list_segments",
    "remove",
    "set_permissions",
    "share",
    "stat",
    "system_limits",
]

Place: TypeAlias = tuple[object, int, bool]
"""Where an attachment is of: (IPC namespace, id, read-only)."""
_SIZE_MAX: Final = 2**63 - 1
_UID_MAX: Final = 2**32 - 2
_ATTACH_ATTEMPTS: Final = 3
"""An attach that failed, though the kernel says that it would work now, met a change under way: it is tried again."""


class _Handle(Protocol):
    """An attachment, as ``sysv_ipc`` has it."""

    @property
    def address(self) -> int: ...
    def detach(self) -> object: ...


class _Attachment:
    """One shmat() of this process, shared by every ``Segment`` on it."""

    __slots__ = ("handle", "key", "place", "shares", "size_bytes")

    def __init__(self, place: Place, handle: _Handle, *, key: int, size_bytes: int) -> None:
        self.place = place
        self.handle = handle
        self.key = key
        self.size_bytes = size_bytes
        self.shares = 0

    def give_back(self) -> None:
        """One share of it; with the last one, detach."""
        self.shares -= 1
        if self.shares == 0:
            del _attachments[self.place]
            self.handle.detach()


_attachments: dict[Place, _Attachment] = {}
_lingering: list[tuple[_core.Mapping, _Attachment]] = []
"""Shares that were dropped under somebody's eyes; they are given back when nobody looks any more."""
_lock = threading.RLock()
# A fork while another thread holds the lock would leave it locked in the child for ever.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Segment:
    """An attached segment; made by ``create`` and ``attach``. A context manager that closes it."""

    def __init__(self, attachment: _Attachment) -> None:
        """Not for callers: ``create`` and ``attach`` count the share that this takes."""
        _, self.id, self.readonly = attachment.place
        self.key = attachment.key
        """0 if it was marked for removal when it was attached."""
        self.size_bytes = attachment.size_bytes
        self.mapping = _core.Mapping(attachment.handle.address, attachment.size_bytes, self.readonly)
        """This share's own buffer; ``close`` is refused while it has exports."""
        self._attachment: _Attachment | None = attachment
        self._buf: memoryview | None = None

    @property
    def buf(self) -> memoryview:
        """All bytes of the segment; read-only if it is attached so. ``close`` releases it.

        Raises ``ClosedError`` after ``close``.
        """
        if self._attachment is None:
            raise ClosedError(f"segment {self.id} was closed")
        if self._buf is None:
            self._buf = memoryview(self.mapping)
        return self._buf

    @property
    def closed(self) -> bool:
        return self._attachment is None

    def stat(self) -> SegmentStat:
        """What the kernel knows about it now. Works after ``close``, too, as long as the segment exists."""
        return stat(self.id)

    def close(self) -> None:
        """Give this share back; the last one detaches. Twice is fine.

        Raises ``BufferError``, and leaves the segment open, while something made from ``buf`` or ``mapping`` (a slice,
        a cast, an array, a ``_core.Log``) lives on.
        """
        with _lock:
            attachment = self._attachment
            if attachment is None:
                return
            if self.mapping.exports > (self._buf is not None):
                raise BufferError(f"segment {self.id} cannot be closed: something made from its buffer lives on")
            if self._buf is not None:
                self._buf.release()  # which raises if there are views of it
                self._buf = None
            self.mapping.invalidate()
            self._attachment = None
            attachment.give_back()
            _reap()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # After a failed constructor there is no attachment; at interpreter exit the kernel detaches by itself.
        attachment: _Attachment | None = getattr(self, "_attachment", None)
        if attachment is None or sys.is_finalizing():
            return
        warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        try:
            self.close()
        except BufferError:  # somebody still looks: detaching would be a crash
            _lingering.append((self.mapping, attachment))

    def __repr__(self) -> str:
        access = "closed" if self.closed else "read-only" if self.readonly else "read-write"
        return f"<Segment {self.id} key={self.key:#x} {self.size_bytes} bytes {access}>"


def create(size_bytes: int, *, mode: int = 0o600, key: int | None = None) -> Segment:
    """Create a segment of ``size_bytes`` zero bytes, owned by the caller, and attach it for writing.

    ``key`` None takes a random free one. Raises ``SegmentExists`` if ``key`` is taken, ``SegmentInvalid`` (size, key or
    mode that cannot be), ``SegmentLimit`` and ``SegmentNoMemory``; then nothing was created.
    """
    check_range("size", size_bytes, 1, _SIZE_MAX)
    check_range("mode", mode, 0, 0o777)
    if key is not None:
        check_range("key", key, 1, keys.KEY_MAX)
        return _create(size_bytes, mode, key)
    for _ in range(limits.KEY_ATTEMPTS_MAX):
        try:
            return _create(size_bytes, mode, random_key())
        except SegmentExists:
            continue
    raise SegmentExists(
        f"no free key among {limits.KEY_ATTEMPTS_MAX} random ones",
        "remove segments that nobody needs: ipcs -m, ipcrm -m ID",
    )


def attach(shmid: int, *, readonly: bool) -> Segment:
    """Attach the segment with this id, or share this process's attachment of it.

    Raises ``SegmentAccessDenied``, ``SegmentInvalid`` (no such segment in this IPC namespace) or ``SegmentNoMemory``.
    """
    check_range("id", shmid, 0, ID_MAX)
    with _lock:
        _reap()
        place = (_ipc_namespace(), shmid, readonly)
        attachment = _attachments.get(place) or _attach(place)
        return _share(attachment)


def share(place: Place, attach: Callable[[], _Handle], size_bytes: int) -> Segment:
    """The same for memory that is not System V's: what ``attach`` maps, or this process's mapping of it."""
    with _lock:
        _reap()
        attachment = _attachments.get(place)
        if attachment is None:
            attachment = _attachments[place] = _Attachment(place, attach(), key=0, size_bytes=size_bytes)
        return _share(attachment)


def set_permissions(shmid: int, uid: int, gid: int, mode: int) -> None:
    """Give the segment this owner, group and mode (permission bits). For its owner and creator; needs no read bit.

    Raises ``SegmentAccessDenied`` or ``SegmentInvalid``.
    """
    check_range("id", shmid, 0, ID_MAX)
    check_range("uid", uid, 0, _UID_MAX)
    check_range("gid", gid, 0, _UID_MAX)
    check_range("mode", mode, 0, 0o777)
    try:
        _core.shm_set(shmid, uid, gid, mode)
    except OSError as error:
        raise refusal(error.errno or errno.EINVAL, f"change permissions of segment {shmid}") from error


def remove(shmid: int) -> None:
    """Mark the segment for removal: its key is free at once, its memory when the last process has detached.

    For its owner and creator. Removing one that is marked already is fine. Raises ``SegmentAccessDenied`` or
    ``SegmentInvalid``.
    """
    check_range("id", shmid, 0, ID_MAX)
    try:
        sysv_ipc.remove_shared_memory(shmid)
    except sysv_ipc.PermissionsError as error:
        raise refusal(errno.EPERM, f"remove segment {shmid}") from error
    except sysv_ipc.ExistentialError as error:
        raise refusal(_stat_errno(shmid) or errno.EIDRM, f"remove segment {shmid}") from error


def _create(size_bytes: int, mode: int, key: int) -> Segment:
    doing = f"create a segment of {size_bytes} bytes"
    try:
        first = sysv_ipc.SharedMemory(keys.to_c(key), sysv_ipc.IPC_CREX, mode=0o400, size=size_bytes)
    except sysv_ipc.ExistentialError as error:
        raise refusal(errno.EEXIST, f"{doing} with key {key:#x}") from error
    except (sysv_ipc.Error, ValueError, MemoryError, OSError) as error:
        _remove_orphan(key)
        raise refusal(_create_errno(error), doing, size_bytes) from error
    try:
        # Until it is ready it is the owner's alone, and writable even if ``mode`` will not be.
        set_permissions(first.id, os.geteuid(), os.getegid(), 0o600)
        segment = attach(first.id, readonly=False)
        try:
            set_permissions(first.id, os.geteuid(), os.getegid(), mode)
        except BaseException:
            segment.close()
            raise
    except BaseException:
        sysv_ipc.remove_shared_memory(first.id)
        raise
    finally:
        first.detach()
    return segment


def _attach(place: Place) -> _Attachment:
    _, shmid, readonly = place
    handle = _shmat(shmid, readonly)
    try:
        found = stat(shmid)  # from here on the id cannot change its meaning: we are attached
    except BaseException:
        handle.detach()
        raise
    attachment = _attachments[place] = _Attachment(place, handle, key=found.key, size_bytes=found.size_bytes)
    return attachment


def _shmat(shmid: int, readonly: bool) -> sysv_ipc.SharedMemory:
    refused = errno.EAGAIN
    for _ in range(_ATTACH_ATTEMPTS):
        try:
            return sysv_ipc.attach(shmid, None, sysv_ipc.SHM_RDONLY if readonly else 0)
        except (sysv_ipc.Error, ValueError, MemoryError, OSError):
            refused = _core.shm_errno(shmid, readonly)
            if refused:
                break
    raise refusal(refused or errno.EAGAIN, f"attach segment {shmid} {'read-only' if readonly else 'read-write'}")


def _reap() -> None:
    """Give back what lingers and nobody looks at any more."""
    for mapping, attachment in list(_lingering):
        if not mapping.exports:
            _lingering.remove((mapping, attachment))
            mapping.invalidate()
            attachment.give_back()


def _share(attachment: _Attachment) -> Segment:
    segment = Segment(attachment)
    attachment.shares += 1
    return segment


def _ipc_namespace() -> int:
    return os.stat("/proc/thread-self/ns/ipc").st_ino


def _remove_orphan(key: int) -> None:
    """Remove what we created with ``key`` but could not attach; nobody knows of it."""
    for found in list_segments():
        if found.key == key and found.creator_pid == os.getpid() and found.attachments == 0:
            sysv_ipc.remove_shared_memory(found.id)


def _create_errno(error: Exception) -> int:
    """The errno behind what sysv_ipc raised from creating; with IPC_CREX each class has one meaning."""
    if isinstance(error, OSError):
        return error.errno or errno.ENOSPC
    if isinstance(error, sysv_ipc.PermissionsError):
        return errno.EACCES
    return errno.ENOMEM if isinstance(error, MemoryError) else errno.EINVAL


def _stat_errno(shmid: int) -> int:
    try:
        _core.shm_stat(shmid)
    except OSError as error:
        return error.errno or 0
    return 0
