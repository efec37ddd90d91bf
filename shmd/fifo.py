"""FIFOs on disk: where they lie, whose they are, and how one is made, opened and removed.

    INSTANCE_DIR/fifo/        0711, as the next: who knows a name may go on, nobody may look around
        t-TOPIC_ID/           one topic's
            r3                of the subscriber in slot 3
            p17               of publisher 17
        s-SEGMENT_ID          a raw segment's

Only the daemon may write in these directories, so what has such a name is what the daemon made. A FIFO belongs to the
daemon's user and the given group; whoever may use what it is for may read and write it. It is there, with all its
permissions, before anybody is told of it, and making it again repairs it.

A FIFO is opened for reading and writing at once, without blocking: so opening waits for nobody, there is no end of file
when the last writer goes, and no ``SIGPIPE`` when the last reader does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from typing import TYPE_CHECKING, Final

from shmd import limits
from shmd.errors import LimitExceeded, PermissionDenied

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_ROOT_NAME: Final = "fifo"
_OURS: Final = re.compile(r"[ts]-[0-9a-f]{32}")
_DIRECTORY_MODE: Final = 0o711
_FLAGS: Final = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY


def root_of(instance_dir: Path) -> Path:
    """Where an instance's FIFOs are, or will be."""
    return instance_dir.absolute() / _ROOT_NAME


def topic_dir(root: Path, topic_id: bytes) -> Path:
    """Where a topic's are. ``LimitExceeded`` if that is too long to be told to clients."""
    return _short(root / f"t-{topic_id.hex()}", "a topic's FIFOs")


def segment_path(root: Path, segment_id: bytes) -> Path:
    """A raw segment's. ``LimitExceeded`` likewise."""
    return _short(root / f"s-{segment_id.hex()}", "a segment's FIFO")


def _short(path: Path, whose: str) -> Path:
    length = len(os.fsencode(path))
    if length > limits.FIFO_DIR_BYTES_MAX:
        raise LimitExceeded(
            f"the path of {whose} has {length} bytes, and the limit is {limits.FIFO_DIR_BYTES_MAX}",
            "serve with a shorter --runtime-dir, or use the notifier eventfd",
        )
    return path


def reader_name(slot: int) -> str:
    return f"r{slot}"


def publisher_name(number: int) -> str:
    return f"p{number}"


# --- for the daemon ---------------------------------------------------------------------------------------------------


def make_directory(path: Path) -> None:
    """With the root, if that is missing. Fine if it is there; something else in its place is removed."""
    make_root(path.parent)
    make_root(path)


def make_root(path: Path) -> None:
    """The root alone; likewise."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(path.lstat().st_mode):
            path.unlink()
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    path.chmod(_DIRECTORY_MODE)  # whatever the umask says


def make(path: Path, gid: int, mode: int) -> None:
    """Make a FIFO of this group and mode, or repair what is left of one. ``PermissionDenied``, ``OSError``."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISFIFO(path.lstat().st_mode):
            _remove_stray(path)
    made = False
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path, 0)
        made = True
    if path.lstat().st_gid != gid:
        _give(path, gid, mode, made=made)
    path.chmod(mode)


def _give(path: Path, gid: int, mode: int, *, made: bool) -> None:
    try:
        os.chown(path, -1, gid, follow_symlinks=False)
    except PermissionError:
        if mode >> 3 & 7 == mode & 7:
            return  # the group may do what everybody may: it does not matter which it is
        if made:
            path.unlink()
        raise PermissionDenied(
            f"the daemon's user is no member of group {gid}, so it cannot give FIFOs to it",
            "make it a member, or use the notifier eventfd",
        ) from None


def remove(path: Path) -> None:
    """Fine if there is none."""
    path.unlink(missing_ok=True)


def remove_directory(path: Path) -> None:
    """A directory of FIFOs, with what is in it. Fine if there is none."""
    for name in _names(path):
        _remove_stray(path / name)
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()


def settle(path: Path, names: Collection[str], gid: int, mode: int) -> None:
    """Have exactly these FIFOs in the directory."""
    make_directory(path)
    for name in sorted(set(_names(path)) - set(names)):
        _remove_stray(path / name)
    for name in names:
        make(path / name, gid, mode)


def sweep(root: Path, keep: Collection[Path]) -> list[Path]:
    """Remove what is of topics and segments that are not to be kept, and the root if nothing is left. Which."""
    swept = [root / name for name in _names(root) if _OURS.fullmatch(name) and root / name not in keep]
    for path in swept:
        _remove_stray(path)
    remove_empty(root)
    return swept


def remove_empty(root: Path) -> None:
    """Remove the root if there are no FIFOs any more."""
    with contextlib.suppress(OSError):
        root.rmdir()


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _remove_stray(path: Path) -> None:
    """Whatever it is: only our own user could have put it there."""
    if stat.S_ISDIR(path.lstat().st_mode):
        remove_directory(path)
    else:
        path.unlink()


# --- for everybody ----------------------------------------------------------------------------------------------------


def open_directory(path: str | Path) -> int:
    """A descriptor to open FIFOs relative to, no more. ``PermissionDenied``, ``LimitExceeded``."""
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise _refusal(str(path), error) from error


def open_fifo(name: str | Path, directory_fd: int | None = None, *, shrink: bool = True) -> int:
    """Open one to be rung through, and to ring. ``PermissionDenied``, also for what is no FIFO; ``LimitExceeded``.

    ``shrink`` it to one page: not where bytes are counted, for a page that was read in part takes no more.
    """
    try:
        fd = os.open(name, _FLAGS, dir_fd=directory_fd)
    except OSError as error:
        raise _refusal(str(name), error) from error
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise PermissionDenied(f"{str(name)!r} is no FIFO", "something else was put in its place: restart the daemon")
    if shrink:
        with contextlib.suppress(OSError):  # a wish: what is in it says no more than that it is not empty
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, limits.FIFO_BYTES)
    return fd


def take_one(fd: int) -> bool:
    """Take one byte out. False if there is none. Does not wait."""
    try:
        return len(os.read(fd, 1)) == 1
    except BlockingIOError:
        return False


def put(fd: int, count: int) -> bool:
    """Put ``count`` bytes in, at most ``limits.NOTIFY_COUNT_MAX``. False if they do not all fit: none is."""
    try:
        return os.write(fd, bytes(count)) == count
    except BlockingIOError:
        return False


def drain(fd: int) -> None:
    """Take out what is in it, up to ``limits.FIFO_BYTES``. Does not wait."""
    with contextlib.suppress(BlockingIOError):
        os.read(fd, limits.FIFO_BYTES)


def _refusal(name: str, error: OSError) -> PermissionDenied | LimitExceeded:
    message = f"cannot open {name!r}, through which this participant would be woken: {error.strerror}"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return LimitExceeded(message, "raise the limit of open files: ulimit -n")
    if error.errno == errno.ENOENT:
        return PermissionDenied(message, "the daemon's runtime directory must be at the same path here; or use eventfd")
    return PermissionDenied(message, "it is for those whom the mode of its topic or segment lets in; or use eventfd")
