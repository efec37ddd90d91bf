"""Bells that survive their daemon: the service manager keeps duplicates, and hands them to the next one.

A client that sleeps while the daemon is restarted then sleeps on the bell that everybody goes on ringing. Nothing
depends on it: where there is no manager, or it did not keep a bell, the topic gets new ones, and clients swap them.

Each bell is stored under a name of its own that follows from its topic's id, since the manager hands descriptors out in
an order of its own. What comes back is believed only if it is all of a topic's bells, each once, and each a bell.

The manager may be slow to take its mail, and the daemon's loop does not wait for it: one thread delivers, in order.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shmd import limits, systemd

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from shmd.systemd import InheritedDescriptor

logger = logging.getLogger(__name__)

_KINDS: Final = ("record", "space")
"""A topic's bells, in the order in which its participants get them."""
_NAME: Final = re.compile(rf"bell-([0-9a-f]{{32}})-({'|'.join(_KINDS)})")
_EVENTFD: Final = "anon_inode:[eventfd]"


def is_stored_bell(inherited: InheritedDescriptor) -> bool:
    """Whether its name is one that ``BellStore`` gives."""
    return _NAME.fullmatch(inherited.name) is not None


class BellStore:
    """The bells in the manager's descriptor store. Belongs to the loop's thread; only ``close`` waits."""

    def __init__(self, inherited: Iterable[InheritedDescriptor] = (), environ: Mapping[str, str] = os.environ) -> None:
        """``inherited``: what the manager kept, ``is_stored_bell`` each; closed unless somebody takes it."""
        self._environ = environ
        self._reachable = bool(environ.get("NOTIFY_SOCKET"))
        self._stored: set[bytes] = set()
        """Topics of which the manager has a bell, as far as we know."""
        self._inherited: dict[bytes, list[tuple[str, int]]] = {}
        for one in inherited:
            if name := _NAME.fullmatch(one.name):
                self._inherited.setdefault(bytes.fromhex(name[1]), []).append((name[2], one.fd))
        self._stored.update(self._inherited)
        self._courier = ThreadPoolExecutor(1, thread_name_prefix="shmd-bells")
        self._room = threading.Semaphore(limits.STORE_MESSAGES_MAX)

    def take(self, topic_id: bytes) -> list[int] | None:
        """The topic's bells, now the caller's to close; None if there are none, or none that can be trusted."""
        found = self._inherited.pop(topic_id, [])
        bells = dict(found)
        if len(found) == len(bells) == len(_KINDS) and all(map(_is_bell, bells.values())):
            return [bells[kind] for kind in _KINDS]
        for _, fd in found:
            os.close(fd)
        if found:
            logger.warning("what the service manager kept are not the bells of topic %s", topic_id.hex())
            self.forget(topic_id)
        return None

    def settle(self, topics: Collection[bytes]) -> None:
        """These topics were adopted. What the manager keeps for others goes."""
        for topic_id in self._stored - set(topics):
            self.forget(topic_id)
            for _, fd in self._inherited.pop(topic_id, ()):
                os.close(fd)

    def keep(self, topic_id: bytes, bells: Sequence[int]) -> None:
        """Have the manager keep the topic's bells, if it does not already."""
        if topic_id in self._stored or len(bells) != len(_KINDS):
            return
        for name, bell in zip(_names(topic_id), bells, strict=True):
            try:
                duplicate = os.dup(bell)  # when its turn comes the topic may be gone, and the number mean another file
            except OSError as error:
                logger.warning("no bell of topic %s is stored: %s", topic_id.hex(), error.strerror)
                return
            if not self._send(name, duplicate):
                os.close(duplicate)
                return
            self._stored.add(topic_id)

    def forget(self, topic_id: bytes) -> None:
        """The topic is gone: the manager need not keep its bells."""
        if topic_id in self._stored:
            self._stored.discard(topic_id)
            for name in _names(topic_id):
                self._send(name, None)

    def close(self) -> None:
        """Close what nobody took, and deliver what is under way; blocks until the manager took it, or is given up."""
        for found in self._inherited.values():
            for _, fd in found:
                os.close(fd)
        self._inherited.clear()
        self._courier.shutdown()

    def _send(self, name: str, fd: int | None) -> bool:
        """Store ``fd``, which is then ours to close, or without one remove what has the name. Whether it is under way.

        What is not, is not missed: a bell that was not stored is swapped, and one too many goes at the next start.
        """
        if not (self._reachable and self._room.acquire(blocking=False)):
            return False
        self._courier.submit(self._deliver, name, fd)
        return True

    def _deliver(self, name: str, fd: int | None) -> None:
        """In the courier's thread. A manager that did not take a message once is not waited for again."""
        try:
            if self._reachable and fd is not None:
                self._reachable = systemd.store_descriptors(name, [fd], self._environ)
            elif self._reachable:
                self._reachable = systemd.remove_descriptors(name, self._environ)
        finally:
            if fd is not None:
                os.close(fd)
            self._room.release()


def _names(topic_id: bytes) -> list[str]:
    return [f"bell-{topic_id.hex()}-{kind}" for kind in _KINDS]


def _is_bell(fd: int) -> bool:
    """Whether this is an eventfd whose counter stands at 1: at 0, where a hostile participant may have brought it, a
    ring wakes nobody.
    """
    try:
        if os.readlink(f"/proc/self/fd/{fd}") != _EVENTFD:
            return False
        fields = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{fd}").read_text("ascii").splitlines())
    except (OSError, ValueError):
        return False
    return int(fields.get("eventfd-count", "0"), 16) == 1
