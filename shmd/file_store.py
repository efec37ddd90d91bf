"""Segments that are files, as the daemon holds them: they survive a reboot.

    <state dir>/segments/<segment id>.data    the bytes, all of them the users'
    <state dir>/segments/<segment id>.json    name, options and owner: the file's ``SegmentInfo``

The second file is the truth. It is written last when a segment is made, by renaming a complete one into its place, and
goes first when it is removed; what lies there without one is half made or half removed, and a starting daemon deletes
it. The roster, which a reboot clears, only keeps account of who uses them, and of the semaphores for
their locks, which a reboot clears, too. (A removal waits for no disk: a power
failure right after it may undo it.)

What survives what, by ``sync``: the death of any process, the daemon's too, loses nothing, for the kernel has the
bytes; nor does an orderly shutdown. When power fails, or the kernel, the disk has

    none       what the kernel happened to have written, after half a minute at most, as it is configured by default
    interval   at least what was written ``limits.FILE_SYNC_INTERVAL_S`` before, for the daemon has it synced as often
    always     at least what was notified: nobody is woken before the bytes are on the disk

and always what a ``sync()`` that returned had found. The disk gets single pages, in any order, so that what was being
written meanwhile may be there in part.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from shmd import backing_file, failpoint, segment_bells, semaphore_store
from shmd.errors import ConfigError, SegmentAccessDenied, SegmentError, SegmentNotFound
from shmd.protocol import SegmentInfo
from shmd.sysv import refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmd.policy import Credentials
    from shmd.roster_writer import Intent
    from shmd.segment_policy import SegmentSettings
    from shmd.sysv import SegmentStat

logger = logging.getLogger(__name__)

_DIRECTORY: Final = "segments"
_DATA: Final = ".data"
_INFO: Final = ".json"
_NEW: Final = ".new"


class StoredFile:
    """One such segment: its two bells, and the file, opened for reading and for both. Given back by ``close``."""

    def __init__(self, info: SegmentInfo, bells: Sequence[int], reading: int, writing: int) -> None:
        self.info = info
        self.bells = tuple(bells)
        self._reading = reading
        self._writing = writing

    def descriptors(self, *, readonly: bool) -> tuple[int, ...]:
        """What a grant comes with."""
        return *self.bells, self._reading if readonly else self._writing

    def look(self) -> SegmentStat | None:
        """What the kernel knows of the file now; None if somebody deleted or truncated it.

        Owner, group and mode are as the daemon keeps them: a file's own may be less, where its user is not root.
        """
        found = backing_file.stat(self._reading)
        if found.removed or found.size_bytes < self.info.size_bytes:
            return None
        info = self.info
        return replace(found, uid=info.uid, gid=info.gid, mode=info.mode, cuid=info.creator_uid, cgid=info.creator_gid)

    def change(self, uid: int, gid: int, mode: int) -> None:
        """Give it this owner, group and mode. ``SegmentError``."""
        info = msgspec.structs.replace(self.info, uid=uid, gid=gid, mode=mode)
        _own(self._writing, info)
        _write_info(Path(self.info.path).parent, info)
        self.info = info
        semaphore_store.follow(info)
        segment_bells.follow(info)

    def seen(self, uid: int, gid: int, mode: int) -> None:
        """These are its owner, group and mode."""
        self.info = msgspec.structs.replace(self.info, uid=uid, gid=gid, mode=mode)

    def sync(self) -> None:
        """Have its bytes written to the disk. For a worker thread."""
        with contextlib.suppress(OSError):  # closed meanwhile
            backing_file.sync(self._reading)

    def close(self, *, remove: bool) -> None:
        """Give everything back. With ``remove`` the file is deleted; who has it mapped keeps it."""
        if remove:
            remove_file(self.info)
        for fd in (*self.bells, self._reading, self._writing):
            os.close(fd)


def create(
    name: str, settings: SegmentSettings, declared_by: Credentials, state_dir: Path, intent: Intent, fifo_root: Path
) -> StoredFile:
    """Make a file of zeros. For a worker thread.

    Raises ``SegmentError`` (the disk is full; the directory cannot be used), ``LimitExceeded`` (descriptors) or
    ``PermissionDenied`` (a FIFO for a group that the daemon is not in); then nothing is left.
    """
    segment_id = secrets.token_bytes(16)
    directory = state_dir / _DIRECTORY
    with ExitStack() as undo:
        data = directory / f"{segment_id.hex()}{_DATA}"
        info = SegmentInfo(
            name=name,
            segment_id=segment_id,
            id=backing_file.NO_ID,
            key=0,
            size_bytes=settings.size_bytes,
            mode=settings.mode,
            uid=settings.uid,
            gid=settings.gid,
            creator_uid=os.geteuid(),
            creator_gid=os.getegid(),
            declared_by=declared_by.uid,
            created_ns=time.time_ns(),
            backing="file",
            sync=settings.sync,
            path=str(data),
            notifier=settings.notifier,
            fifo=segment_bells.path_of(segment_id, settings.notifier, fifo_root),
        )
        try:
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            fd = os.open(data, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except PermissionError as error:
            hint = "it is the daemon's user who has to write there: shmd serve --state-dir chooses another directory"
            raise SegmentAccessDenied(f"cannot make a file in {directory}: {error.strerror}", hint) from error
        except OSError as error:
            raise refusal(error.errno or 0, f"make a file in {directory}") from error
        undo.callback(data.unlink, missing_ok=True)
        undo.callback(os.close, fd)
        failpoint.reach("file-made")
        backing_file.allocate(fd, settings.size_bytes)
        _own(fd, info)
        os.fsync(fd)
        undo.callback(_info_path(directory, info).unlink, missing_ok=True)
        _write_info(directory, info)
        failpoint.reach("file-described")
        info = with_semaphore(info, intent)
        undo.callback(semaphore_store.remove, info.sem_id, info.sem_key)
        segment_bells.make_fifo(info, undo)
        stored = restore(info)
        undo.pop_all().callback(os.close, fd)
        os.close(fd)
        return stored


def with_semaphore(info: SegmentInfo, intent: Intent) -> SegmentInfo:
    """With a new semaphore for its lock. ``SegmentError``."""
    lock = semaphore_store.make(0, intent)
    info = msgspec.structs.replace(info, sem_id=lock.id, sem_key=lock.key)
    semaphore_store.follow(info)
    return info


def restore(info: SegmentInfo) -> StoredFile:
    """Take back a file that is there. ``SegmentNotFound`` if it is not, or too short; ``LimitExceeded``."""
    with ExitStack() as undo:
        fds = []
        for flags in (os.O_RDONLY, os.O_RDWR):
            try:
                fd = os.open(info.path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError as error:
                raise SegmentNotFound(f"the file {info.path} cannot be opened: {error.strerror}") from error
            undo.callback(os.close, fd)
            fds.append(fd)
        if os.fstat(fds[0]).st_size < info.size_bytes:
            raise SegmentNotFound(f"the file {info.path} is shorter than {info.size_bytes} bytes")
        bells = segment_bells.open_bells(info, undo)
        undo.pop_all()
        return StoredFile(info, bells, *fds)


def find(state_dir: Path) -> list[SegmentInfo]:
    """Every segment that is a file, by name; what is half made or half removed is deleted. ``ConfigError``."""
    directory = state_dir / _DIRECTORY
    found: dict[str, SegmentInfo] = {}
    try:
        paths = sorted(directory.iterdir()) if directory.is_dir() else []
    except OSError as error:
        raise ConfigError(f"cannot look into {directory}: {error.strerror}", "choose another --state-dir") from error
    for path in paths:
        if path.suffix == _NEW or (path.suffix == _INFO and not path.with_suffix(_DATA).exists()):
            path.unlink(missing_ok=True)
        elif path.suffix == _INFO and (info := _read_info(path)) is not None:
            found[info.segment_id.hex()] = info
    for path in paths:
        if path.suffix == _DATA and path.stem not in found and not path.with_suffix(_INFO).exists():
            logger.info("%s was half made or half removed when the last daemon ended, and is deleted", path)
            path.unlink(missing_ok=True)
    failpoint.reach("files-found")
    return sorted(found.values(), key=lambda info: info.name)


def remove_file(info: SegmentInfo) -> None:
    """Delete it, what tells of it first, its semaphore and its FIFO. Fine if somebody was quicker."""
    semaphore_store.remove(info.sem_id, info.sem_key)
    segment_bells.remove(info)
    data = Path(info.path)
    try:
        _info_path(data.parent, info).unlink(missing_ok=True)
        failpoint.reach("file-forgotten")
        data.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s cannot be deleted: %s", data, error.strerror)


def _read_info(path: Path) -> SegmentInfo | None:
    """None, and a word in the log, if no daemon wrote this: it is left alone."""
    try:
        info = msgspec.json.decode(path.read_bytes(), type=SegmentInfo)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        logger.error("%s is left alone: %s", path, error)
        return None
    if info.backing != "file" or info.segment_id.hex() != path.stem:
        logger.error("%s is left alone: it describes something else", path)
        return None
    return msgspec.structs.replace(info, path=str(path.with_suffix(_DATA)), sem_id=-1, sem_key=0)


def _info_path(directory: Path, info: SegmentInfo) -> Path:
    return directory / f"{info.segment_id.hex()}{_INFO}"


def _write_info(directory: Path, info: SegmentInfo) -> None:
    """Whole or not at all, and on the disk when this returns."""
    final = _info_path(directory, info)
    new = final.with_suffix(_NEW)
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(info))
            file.flush()
            os.fsync(file.fileno())
        new.rename(final)
        _sync_directory(directory)
    except OSError as error:
        raise refusal(error.errno or 0, f"write {final}") from error


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _own(fd: int, info: SegmentInfo) -> None:
    """Give the file this owner, group and mode, as far as we may: only root gives files away.

    A right that would be the wrong group's, or owner's, is left out; who has it is passed a descriptor all the same.
    """
    mode = info.mode
    try:
        os.fchown(fd, info.uid, info.gid)
    except OSError:
        with contextlib.suppress(OSError):
            os.fchown(fd, -1, info.gid)
        found = os.fstat(fd)
        mode &= 0o707 if found.st_gid != info.gid else 0o777
    try:
        os.fchmod(fd, mode)
    except OSError as error:
        raise SegmentError.from_errno(
            error.errno or 0, f"cannot set the mode of {info.path}: {error.strerror}"
        ) from error
