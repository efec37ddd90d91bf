"""The bells of one topic as the daemon holds them: two eventfds for all, or a FIFO for each participant.

| notifier | a grant carries   | a participant needs | what the daemon rings        |
|----------|-------------------|---------------------|------------------------------|
| eventfd  | both descriptors  | nothing more        | both, whoever sleeps         |
| fifo     | no descriptors    | a FIFO of its own   | those that are marked asleep |
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from shmd import failpoint, fifo, notifier, policy
from shmd.errors import LimitExceeded, PermissionDenied

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from shmd import _core
    from shmd.protocol import TopicInfo

logger = logging.getLogger(__name__)


class TopicBells(Protocol):
    """What both kinds can do. None of it waits, and none raises but as told."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """To be sent with each grant."""

    def ring(self, log: _core.Log) -> None:
        """Wake all who sleep, for records or for room."""

    def admit(self, name: str) -> None:
        """Somebody is about to take part; ``name`` is as ``fifo`` gives it."""

    def dismiss(self, name: str) -> None:
        """Nobody of this name takes part any more."""

    def settle(self, names: Collection[str]) -> None:
        """These take part, as an earlier daemon noted, and nobody else."""

    def close(self, *, remove: bool) -> None:
        """Give descriptors back; with ``remove`` what lies in the file system goes, too."""


def make(info: TopicInfo, stored: Sequence[int] | None = None, *, adopted: bool = False) -> TopicBells:
    """The bells of a topic, whose eventfds may have been ``stored`` and are taken over.

    ``LimitExceeded`` (descriptors), ``PermissionDenied``, ``OSError``; then none are left but the stored ones.
    """
    try:
        return _Fifos(info, adopted=adopted) if info.notifier == "fifo" else _Eventfds(stored)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise LimitExceeded(f"the daemon is out of descriptors: {error.strerror}", "raise its LimitNOFILE=") from None


class _Eventfds:
    def __init__(self, stored: Sequence[int] | None) -> None:
        if stored:
            self.descriptors = tuple(stored)
            return
        with ExitStack() as undo:
            bells = notifier.make_bells(undo)
            undo.pop_all()
        self.descriptors = tuple(bells)

    def ring(self, log: _core.Log) -> None:
        for bell in self.descriptors:
            notifier.ring(bell)

    def admit(self, name: str) -> None:
        """All share the same."""

    def dismiss(self, name: str) -> None:
        """As above."""

    def settle(self, names: Collection[str]) -> None:
        """As above."""

    def close(self, *, remove: bool) -> None:
        for bell in self.descriptors:
            os.close(bell)


class _Fifos:
    """``info.fifo_dir`` holds one FIFO for each participant, who opens it by its name."""

    descriptors: tuple[int, ...] = ()

    def __init__(self, info: TopicInfo, *, adopted: bool) -> None:
        self._path = Path(info.fifo_dir)
        self._gid = info.gid
        self._mode = policy.ctl_mode(info.mode)
        fifo.make_directory(self._path)
        failpoint.reach("fifo-directory-made")
        try:
            if not adopted:
                self._try_out()
            self._fd = fifo.open_directory(self._path)
        except BaseException:
            if not adopted:
                fifo.remove_directory(self._path)
            raise

    def _try_out(self) -> None:
        """Whether the group may be what it shall be shows when the topic is made, not when somebody is let in."""
        probe = self._path / "try"
        fifo.make(probe, self._gid, self._mode)
        fifo.remove(probe)

    def ring(self, log: _core.Log) -> None:
        if not (log.ring_readers(self._fd) and log.ring_publishers(self._fd)):
            logger.warning("topic %s: not everybody could be woken, for want of descriptors", log.name)

    def admit(self, name: str) -> None:
        try:
            fifo.make(self._path / name, self._gid, self._mode)
        except (OSError, PermissionDenied) as error:  # whoever was to have it will say so
            logger.error("cannot make the FIFO %s: %s", self._path / name, error)
        failpoint.reach("fifo-made")

    def dismiss(self, name: str) -> None:
        try:
            fifo.remove(self._path / name)
        except OSError as error:
            logger.error("cannot remove the FIFO %s: %s", self._path / name, error)
        failpoint.reach("fifo-removed")

    def settle(self, names: Collection[str]) -> None:
        try:
            fifo.settle(self._path, names, self._gid, self._mode)
        except (OSError, PermissionDenied) as error:
            logger.error("the FIFOs in %s cannot be put in order: %s", self._path, error)
        failpoint.reach("fifos-settled")

    def close(self, *, remove: bool) -> None:
        os.close(self._fd)
        if remove:
            try:
                fifo.remove_directory(self._path)
            except OSError as error:
                logger.error("cannot remove the FIFOs in %s: %s", self._path, error)
            failpoint.reach("fifos-removed")
