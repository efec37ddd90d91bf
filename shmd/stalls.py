"""Who keeps a topic's publishers waiting, and what may be done about it.

A publisher that has waited long says so, again and again (``ReportStall``). Each time the daemon looks: either a
subscriber's cursor is in the way, or a thread holds the lock. It says so in its log, once per stall, by name; and

- a subscriber that has not moved for the topic's ``stall_timeout`` loses its tether;
- a lock whose owner is proven to be no thread of any process is marked as the kernel marks the locks of the dead.

To be slow or stopped is no crime: beyond that nothing is taken from anybody.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shmd import liveness
from shmd.errors import ShmdError

if TYPE_CHECKING:
    from shmd.registry import LookForStall
    from shmd.topic_store import StoredTopic

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Stall:
    """Who is in the way, where, and since when. ``place`` is a cursor's position, or nothing for a lock."""

    culprit: tuple[int, int]
    place: int
    since: float
    told: bool = False


class StallWatch:
    """What was seen at earlier looks, by topic."""

    def __init__(self) -> None:
        self._readers: dict[str, _Stall] = {}
        self._owners: dict[str, _Stall] = {}

    def look(self, effect: LookForStall, topic: StoredTopic, now: float) -> tuple[int, int] | None:
        """Look who is in the way. (slot, incarnation) of a subscriber whose time is up; None if there is none."""
        try:
            self._look_at_lock(effect, topic, now)
            return self._look_at_slowest(effect, topic, now)
        except ShmdError as error:
            logger.warning("topic %s stalls, and why cannot be seen: %s", effect.topic, error)
            return None

    def forget(self, name: str) -> None:
        """The topic is gone."""
        self._readers.pop(name, None)
        self._owners.pop(name, None)

    def _look_at_slowest(self, effect: LookForStall, topic: StoredTopic, now: float) -> tuple[int, int] | None:
        slowest = topic.log.slowest()
        if slowest is None:
            self._readers.pop(effect.topic, None)
            return None
        lag_bytes = topic.log.slot_stat(slowest[0])[3]
        stall = _update(self._readers, effect.topic, slowest, topic.log.stat()["tail"] - lag_bytes, now)
        if not stall.told:
            stall.told = True
            who = next((who for who in effect.subscribers if (who.slot, who.incarnation) == slowest), None)
            name, pid = (who.name, who.pid) if who else ("nobody known", 0)
            state = ", which is stopped" if who and liveness.is_stopped(who.pid) else ""
            logger.warning(
                "topic %s: publishers wait for slot %d, %r (pid %d%s), %d bytes behind",
                *(effect.topic, slowest[0], name, pid, state, lag_bytes),
            )
        timeout_s = topic.info.stall_timeout_s
        if timeout_s is None or now - stall.since < timeout_s:
            return None
        logger.warning("topic %s: slot %d has not read for %g s and is untethered", effect.topic, slowest[0], timeout_s)
        del self._readers[effect.topic]
        return slowest

    def _look_at_lock(self, effect: LookForStall, topic: StoredTopic, now: float) -> None:
        tid = topic.log.stat()["lock_owner_tid"]
        if not tid:
            self._owners.pop(effect.topic, None)
            return
        stall = _update(self._owners, effect.topic, (tid, 0), topic.log.stat()["tail"], now)
        if stall.since == now or stall.told:
            return  # seen once, it may have been an append like any other
        if effect.pid_namespaces == {liveness.namespaces()[0]} and liveness.has_no_thread(tid):
            if topic.declare_owner_dead(tid):
                logger.warning("topic %s: thread %d died with the lock, which is free again", effect.topic, tid)
                topic.ring()
            return
        stall.told = True
        state = ", which is stopped" if liveness.is_stopped(tid) else ""
        logger.warning("topic %s: publishers wait for thread %d%s, which holds the lock", effect.topic, tid, state)


def _update(stalls: dict[str, _Stall], name: str, culprit: tuple[int, int], place: int, now: float) -> _Stall:
    """The stall that this is: the one known, or a new one that begins now."""
    known = stalls.get(name)
    if known is None or (known.culprit, known.place) != (culprit, place):
        known = stalls[name] = _Stall(culprit, place, now)
    return known
