"""One of the demo's subscriber processes: counts what it gets, what it lost, and how long each record was under way.

Usage: python -m shmd.cli.demo.subscriber SOCKET NAME RATE. A RATE above 0 makes it slow: it takes so many records a
second at most. It ends after the record that says it is the last. When its standard input ends it stops being slow, and
ends also if nothing comes any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import shmd
from shmd.cli.common import run
from shmd.cli.demo.latency import Latencies
from shmd.cli.demo.reports import DATA_TOPIC, END, REPORT_INTERVAL_S, REPORT_TOPIC, Received
from shmd.cli.streams import InputReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SLOW_RECORDS: Final = 32
"""A slow subscriber takes so many, then sleeps."""
FAST_RECORDS: Final = 256
SILENCE_S: Final = 2.0
"""Nothing for so long after standard input ended: the publisher will not say its last word."""


class Tally:
    """What one subscriber can say about its records."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._records = 0
        self._lost = 0
        self._latencies = Latencies()

    def add(self, records: list[shmd.Record[Any]]) -> None:
        now_ns = time.time_ns()
        for record in records:
            self._latencies.add(now_ns - record.time_ns)
            self._lost += record.lost
        self._records += len(records)

    def report(self, *, final: bool = False) -> Received:
        percentile, max_ns = self._latencies.percentile_ns, self._latencies.max_ns
        return Received(self._name, self._records, self._lost, percentile(50), percentile(99), max_ns, final)


async def subscribe(socket_path: str, name: str, rate: float) -> None:
    tally = Tally(name)
    async with (
        shmd.connect(socket_path, name=f"demo {name}") as client,
        client.publisher(REPORT_TOPIC, type=Received) as reports,
        client.subscribe(DATA_TOPIC, start="all") as subscription,
    ):
        async with _reporting(reports, tally), _input_end() as hurry:
            async for records in _batches(subscription, rate, hurry):
                tally.add(records)
        await reports.publish(tally.report(final=True))


async def _batches(
    subscription: shmd.Subscription[Any], rate: float, hurry: asyncio.Future[bytes]
) -> AsyncIterator[list[shmd.Record[Any]]]:
    while True:
        timeout_s = SILENCE_S if hurry.done() else REPORT_INTERVAL_S
        records = await subscription.get_many(SLOW_RECORDS if rate else FAST_RECORDS, timeout=timeout_s)
        yield records
        ended = records[-1].value == END if records else timeout_s == SILENCE_S
        if ended:
            return
        if rate and not hurry.done():
            await asyncio.wait([hurry], timeout=len(records) / rate)


@contextlib.asynccontextmanager
async def _reporting(reports: shmd.Publisher[Received], tally: Tally) -> AsyncIterator[None]:
    async def report() -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            await reports.publish(tally.report())

    task = asyncio.create_task(report())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def _input_end() -> AsyncIterator[asyncio.Future[bytes]]:
    future = asyncio.ensure_future(InputReader(sys.stdin.fileno()).read())
    try:
        yield future
    finally:
        future.cancel()


if __name__ == "__main__":
    run(subscribe(sys.argv[1], sys.argv[2], float(sys.argv[3])))
