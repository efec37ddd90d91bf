"""The bells of a raw segment as the daemon holds them: a lock bell, and a notify bell, which may be a FIFO.

A segment's FIFO is there for whoever may read the segment. It belongs to the daemon's user, and has the segment's group
and, as a topic's (``policy.ctl_mode``), its mode. The daemon only holds it open: so nobody who opens it has to wait,
and what was written stays in it while nobody listens. Users open it anew, by its path, and share nothing with anybody
but the bytes.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from shmd import failpoint, fifo, notifier, policy
from shmd.errors import LimitExceeded, PermissionDenied

if TYPE_CHECKING:
    from contextlib import ExitStack

    from shmd.protocol import Notifier, SegmentInfo

logger = logging.getLogger(__name__)


def path_of(segment_id: bytes, kind: Notifier, root: Path) -> str:
    """Where its FIFO is; empty if it has none. ``LimitExceeded`` if that is too long to be told to clients."""
    return str(fifo.segment_path(root, segment_id)) if kind == "fifo" else ""


def make_fifo(info: SegmentInfo, undo: ExitStack) -> None:
    """For a new segment. ``PermissionDenied`` (for a group that the daemon is not in), ``OSError``."""
    if info.fifo:
        undo.callback(fifo.remove, Path(info.fifo))
        fifo.make_root(Path(info.fifo).parent)
        fifo.make(Path(info.fifo), info.gid, policy.ctl_mode(info.mode))
        failpoint.reach("segment-fifo-made")


def open_bells(info: SegmentInfo, undo: ExitStack) -> list[int]:
    """Notify bell and lock bell. A FIFO that is missing is made. ``LimitExceeded``, ``OSError``."""
    follow(info)
    bells = notifier.make_bells(undo)
    if info.fifo:
        try:
            opened = fifo.open_fifo(info.fifo, shrink=False)
        except PermissionDenied as error:  # which is our own: somebody plays with the directory
            logger.error("segment %s has no FIFO: %s", info.name, error)
        except LimitExceeded as error:
            raise LimitExceeded(error.message, "raise the daemon's LimitNOFILE=") from error
        else:
            os.dup2(opened, bells[0], inheritable=False)
            os.close(opened)
    return bells


def follow(info: SegmentInfo) -> None:
    """Have a FIFO, with the group and mode that the segment has. What the daemon cannot give to the group, nobody of
    the group can use.
    """
    if not info.fifo:
        return
    path, mode = Path(info.fifo), policy.ctl_mode(info.mode)
    try:
        fifo.make_root(path.parent)
        try:
            fifo.make(path, info.gid, mode)
        except PermissionDenied as error:
            logger.error("the FIFO of segment %s is not for its group: %s", info.name, error)
            fifo.make(path, os.getegid(), mode & 0o707)
    except OSError as error:
        logger.error("the FIFO of segment %s cannot be put in order: %s", info.name, error)


def remove(info: SegmentInfo) -> None:
    """Fine if there is none."""
    if not info.fifo:
        return
    try:
        fifo.remove(Path(info.fifo))
    except OSError as error:
        logger.error("cannot remove the FIFO of segment %s: %s", info.name, error)
    failpoint.reach("segment-fifo-removed")
