"""One publisher's wait for room or for the lock: how long to sleep, when to look again, and when to complain.

It sleeps on the bell, and tells the daemon every ``limits.STALL_REPORT_S`` that it still waits. After a while, and then
less and less often, it looks by itself, and frees the topic of a subscriber that is dead: a daemon does that within a
millisecond, but it may be away, or stopped.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shmd import limits, protocol

if TYPE_CHECKING:
    from shmd.hub import Hub
    from shmd.publisher import PublisherSeat


class Patience:
    """Made when a record could not be appended at once; it lasts until it is."""

    __slots__ = ("_began", "_hub", "_look_at", "_report_at", "_seat", "_tries")

    def __init__(self, hub: Hub, seat: PublisherSeat) -> None:
        self._hub = hub
        self._seat = seat
        self._tries = 0
        self._began = hub.loop.time()
        self._look_at = self._began + limits.RECHECK_DISCONNECTED_MIN_S
        self._report_at = self._began + limits.STALL_REPORT_S

    async def wait_for_room(self) -> None:
        """Until there may be some."""
        hub, seat = self._hub, self._seat
        self._report()
        if not seat.appender.arm_space():
            await asyncio.sleep(0)
            return
        if (self._is_overdue() or hub.away) and hub.bystander.free_dead(seat.log, seat.info.topic_id):
            seat.ring_space()
        wake_at = min(self._look_at, self._report_at)
        if seat.appender.unheard:
            wake_at = min(wake_at, hub.loop.time() + limits.RECHECK_UNHEARD_S)
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

    def _is_overdue(self) -> bool:
        """Whether the next look is due; the one after it comes after an eighth of the time waited, as in ``Doze``."""
        now = self._hub.loop.time()
        if now < self._look_at:
            return False
        pause_s = max(limits.RECHECK_DISCONNECTED_MIN_S, (now - self._began) * (limits.RECHECK_DISCONNECTED_GROWTH - 1))
        self._look_at = now + min(pause_s, limits.RECHECK_DISCONNECTED_MAX_S)
        return True

    def _report(self) -> None:
        now = self._hub.loop.time()
        if now >= self._report_at:
            self._report_at = now + limits.STALL_REPORT_S
            link = self._hub.link
            link.post(protocol.ReportStall(id=link.next_id(), topic=self._seat.info.name))
