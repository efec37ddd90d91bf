"""The demo's publisher process: samples /proc at the rate that was asked for, and publishes every sample.

Usage: python -m shmd.cli.demo.publisher SOCKET NAME RATE DURATION_S SUBSCRIBERS. It ends after DURATION_S seconds or
when its standard input ends, whichever is first; its last record says that it is the last.
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import shmd
from shmd.cli.common import run
from shmd.cli.demo.procfs import samples
from shmd.cli.demo.reports import DATA_TOPIC, END, REPORT_INTERVAL_S, REPORT_TOPIC, Sent
from shmd.cli.streams import InputReader

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH_RECORDS_MAX: Final = 64
"""Samples taken without a turn of the loop: a millisecond or two."""
TICK_S: Final = 0.001
"""The shortest sleep: faster rates publish several samples at a time."""


class Pace:
    """How many records are due at ``rate`` per second; a ``rate`` of 0 is as fast as possible."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._start = now

    def due(self, now: float, sent: int) -> int:
        """How many to publish now, having ``sent`` so many."""
        if not self._rate:
            return BATCH_RECORDS_MAX
        return max(0, min(int((now - self._start) * self._rate) + 1 - sent, BATCH_RECORDS_MAX))

    def wait_s(self, now: float, sent: int) -> float:
        """Until the next is due."""
        return max(TICK_S, self._start + sent / self._rate - now) if self._rate else 0.0


async def publish(socket_path: str, name: str, rate: float, duration_s: float, subscribers: int) -> None:
    async with (
        shmd.connect(socket_path, name="demo publisher") as client,
        client.publisher(DATA_TOPIC) as publisher,
        client.publisher(REPORT_TOPIC, type=Sent) as reports,
    ):
        await publisher.wait_for_subscribers(subscribers)
        stopped = asyncio.ensure_future(InputReader(sys.stdin.fileno()).read())
        report = partial(Sent, name)
        sent = await _publish_samples(publisher, reports, report, Pace(rate, _now()), stopped, duration_s)
        stopped.cancel()
        await publisher.publish(END)
        await reports.publish(report(sent + 1, final=True))


async def _publish_samples(
    publisher: shmd.Publisher[Any],
    reports: shmd.Publisher[Sent],
    report: Callable[[int], Sent],
    pace: Pace,
    stopped: asyncio.Future[bytes],
    duration_s: float,
) -> int:
    start = report_due = _now()
    sent, source = 0, samples()
    while (now := _now()) < start + duration_s and not stopped.done():
        if due := pace.due(now, sent):
            await publisher.publish_many(list(islice(source, due)))
            sent += due
        if now >= report_due:
            await reports.publish(report(sent))
            report_due = now + REPORT_INTERVAL_S
        if not pace.due(now, sent):
            await asyncio.wait([stopped], timeout=min(pace.wait_s(now, sent), start + duration_s - now))
    return sent


def _now() -> float:
    return asyncio.get_running_loop().time()


if __name__ == "__main__":
    run(publish(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])))
