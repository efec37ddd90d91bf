"""One publisher's wait for room or for the lock: how long to sleep, when to look again, and when to complain.

Connected, it sleeps on the bell, and tells the daemon every ``limits.STALL_REPORT_S`` that it still waits. While the
daemon is away it looks again by itself, and frees the topic of a subscriber that is dead.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shmd import limits, protocol
from shmd.seat import Doze

if TYPE_CHECKING:
    from shmd.hub import Hub
    from shmd.publisher import PublisherSeat


class Patience:
    """Made when a record could not be appended at once; it lasts until it is."""

    __slots__ = ("_doze", "_hub", "_report_at", "_seat", "_tries")

    def __init__(self, hub: Hub, seat: PublisherSeat) -> None:
        self._hub = hub
        self._seat = seat
        self._doze = Doze()
        self._tries = 0
        self._report_at = hub.loop.time() + limits.STALL_REPORT_S

    async def wait_for_room(self) -> None:
        """Until there may be some."""
        hub, seat = self._hub, self._seat
        self._report()
        if not seat.appender.arm_space():
            await asyncio.sleep(0)
            return
        if hub.away and hub.bystander.free_dead(seat.log, seat.info.topic_id):
            seat.ring_space()
        wake_at = self._report_at
        recheck_s = hub.recheck_s(self._doze, 0, hostile=seat.info.hostile)
        if seat.appender.unheard:
            recheck_s = min(limits.RECHECK_UNHEARD_S, recheck_s or limits.RECHECK_UNHEARD_S)
        if recheck_s is not None:
            wake_at = min(wake_at, hub.loop.time() + recheck_s)
        await seat.sleeper.sleep(hub.loop, wake_at)

    async def back_off(self) -> None:
        """A busy lock: its owner runs, and needs nanoseconds; or does not run, and needs the core more than we do."""
        self._report()
        if self._tries < limits.LOCK_TURNS:
            await asyncio.sleep(0)
        else:
            doublings = min(self._tries - limits.LOCK_TURNS, 16)
            await asyncio.sleep(min(limits.LOCK_BACKOFF_MIN_S * 2**doublings, limits.LOCK_BACKOFF_MAX_S))
        self._tries += 1

    def _report(self) -> None:
        now = self._hub.loop.time()
        if now >= self._report_at:
            self._report_at = now + limits.STALL_REPORT_S
            link = self._hub.link
            link.post(protocol.ReportStall(id=link.next_id(), topic=self._seat.info.name))
