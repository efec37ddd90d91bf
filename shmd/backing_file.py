"""The file behind a segment with ``backing="file"``, mapped into this process: its kernel's view, as ``segment`` is of
System V's.

The daemon opens the file and passes a descriptor, for reading or for both; whoever holds one for writing can write to
the file, and truncate it, too, by which all who have it mapped would die of SIGBUS. So it is kept here, and nobody is
given it: it is needed to ask the kernel (``stat``) and to have the bytes written to the disk (``sync``).

A process maps a file once for reading and once for writing, however often it asks, by ``segment``'s own account.
"""

from __future__ import annotations

import errno
import functools
import mmap
import os
from typing import TYPE_CHECKING, Any, Final

from shmd import segment
from shmd.errors import SegmentRemoved
from shmd.sysv import SegmentStat, refusal

if TYPE_CHECKING:
    from shmd.segment import Segment

NO_ID: Final = -1
"""A file has no System V id."""


class MappedFile:
    """One mmap() of this process. ``detach`` ends it, for ``segment``."""

    def __init__(self, fd: int, size_bytes: int, readonly: bool) -> None:
        """``SegmentNoMemory``, ``SegmentAccessDenied``."""
        protection = mmap.PROT_READ if readonly else mmap.PROT_READ | mmap.PROT_WRITE
        import ctypes

        address = _libc().mmap(None, size_bytes, protection, mmap.MAP_SHARED, fd, 0)
        if address == ctypes.c_void_p(-1).value:
            raise refusal(ctypes.get_errno(), f"map a file of {size_bytes} bytes")
        self.address: int = address
        self._size_bytes = size_bytes

    def detach(self) -> None:
        _libc().munmap(self.address, self._size_bytes)


@functools.cache
def _libc() -> Any:
    """With ctypes, which is imported for those who have files."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


def attach(fd: int, size_bytes: int, *, readonly: bool) -> Segment:
    """Map the file behind ``fd``, or share this process's mapping of it. ``fd`` stays the caller's.

    ``SegmentRemoved`` if it is shorter than that: beyond a file's end there is no memory, but SIGBUS.
    """
    found = os.fstat(fd)
    if found.st_size < size_bytes:
        raise SegmentRemoved(f"the file has {found.st_size} bytes, not {size_bytes}: somebody has truncated it")
    where = ("file", found.st_dev, found.st_ino)
    return segment.share((where, NO_ID, readonly), lambda: MappedFile(fd, size_bytes, readonly), size_bytes)


def stat(fd: int) -> SegmentStat:
    """What the kernel knows about the file, in the words of a segment's: no id or key (-1, 0), and nobody counts
    attachments (-1) or pids (0).
    """
    found = os.fstat(fd)
    return SegmentStat(
        id=NO_ID,
        key=0,
        size_bytes=found.st_size,
        uid=found.st_uid,
        gid=found.st_gid,
        cuid=found.st_uid,
        cgid=found.st_gid,
        mode=found.st_mode & 0o777,
        removed=found.st_nlink == 0,
        attachments=-1,
        creator_pid=0,
        last_pid=0,
        attach_time=int(found.st_atime),
        detach_time=0,
        change_time=int(found.st_ctime),
        rss_bytes=found.st_blocks * 512,
    )


def sync(fd: int) -> None:
    """Return when all that was written to the file, through whichever mapping, is on the disk. Blocks; ``OSError``."""
    os.fdatasync(fd)


def allocate(fd: int, size_bytes: int) -> None:
    """Make the file so long, with room for it on the disk: else a full disk would be found out by SIGBUS.

    ``SegmentLimit`` if there is no room, with how much there is.
    """
    try:
        os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        disk = os.fstatvfs(fd)
        raise refusal(
            errno.ENOSPC if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else error.errno or errno.EIO,
            f"make a file of {size_bytes} bytes, where {disk.f_bavail * disk.f_frsize} are free",
        ) from error
