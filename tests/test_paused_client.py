"""A client that stands still for longer than it may take to resume, and then goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import shmd
from shmd import limits
from shmd.config import DaemonConfig
from shmd.daemon import Daemon
from tests.loop_turns import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# A daemon that starts and ends in this loop touches the file system, on purpose.
pytestmark = pytest.mark.may_block

SMALL = limits.TOPIC_SIZE_BYTES_MIN
PATH = {"PYTHONPATH": str(Path(__file__).parent.parent)}
READER = """
import asyncio, json, sys, shmd
async def main():
    async with shmd.connect(sys.argv[1], name="paused") as client, client.subscribe("t") as subscription:
        print("ready", flush=True)
        async for record in subscription:
            print(json.dumps([record.value, record.lost]), flush=True)
asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def paused_reader(socket_path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Subscribed to ``t``, and stopped in its sleep."""
    reader = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", READER, str(socket_path)), stdout=subprocess.PIPE, env=os.environ | PATH
    )
    assert reader.stdout is not None
    assert await reader.stdout.readline() == b"ready\n"
    reader.send_signal(signal.SIGSTOP)
    await asyncio.to_thread(os.waitid, os.P_PID, reader.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        yield reader
    finally:
        with contextlib.suppress(ProcessLookupError):
            reader.kill()
        await reader.wait()


def publish_until_full(publisher: shmd.Publisher[Any]) -> int:
    for count in range(10_000):
        try:
            publisher.publish_nowait("filler")
        except shmd.TopicFull:
            return count
    raise AssertionError("nothing holds the publisher back")


async def test_client_paused_beyond_its_resume_time_loses_its_tether_and_moves_no_cursor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slot stays its own, since it is not dead; but what it holds there no longer counts, and who sits beside it
    does not notice that it goes on.
    """
    monkeypatch.setattr(limits, "RESUME_S", 0.05)
    config = DaemonConfig(runtime_dir=tmp_path, total_bytes=64 << 20)
    async with Daemon(config) as first:
        async with shmd.connect(first.socket_path) as client:
            await client.topic("t", size=SMALL, when_full="wait")
        async with paused_reader(first.socket_path) as paused:
            await first.close()
            async with Daemon(DaemonConfig(runtime_dir=tmp_path, ephemeral=True)) as second:
                await _go_past(second, paused)


async def _go_past(daemon: Daemon, paused: asyncio.subprocess.Process) -> None:
    async with (
        shmd.connect(daemon.socket_path) as client,
        client.publisher("t") as publisher,
        client.subscribe("t") as beside,
    ):

        async def tethered() -> bool:
            stat = await client.stat("t")
            assert stat is not None
            return any(who.tethered for who in stat.subscribers if who.name == "paused")

        async def untethered() -> bool:
            return not await tethered()

        await until(untethered)
        sent = 0
        for _ in range(5):  # several times round the ring: the paused one's place is overwritten
            sent += publish_until_full(publisher)
            assert len(await beside.get_many(limits.GET_MANY_MAX)) > 0
        held_back = publish_until_full(publisher)  # by the one beside, from here on
        sent += held_back
        slots = {slot: publisher._seat.log.slot_stat(slot) for slot in range(2)}
        paused.send_signal(signal.SIGCONT)
        lines = await _read_until_it_waits(paused, sent)
        assert sum(lost for _, lost in lines) + len(lines) == sent
        (its_slot,) = [slot for slot in slots if publisher._seat.log.slot_stat(slot) != slots[slot]]
        assert publisher._seat.log.slot_stat(1 - its_slot) == slots[1 - its_slot]
        assert len(await beside.get_many(limits.GET_MANY_MAX)) == held_back
        await until(tethered)  # it has resumed, and may hold publishers back again
        await publisher.publish("last")
        assert paused.stdout is not None
        assert json.loads(await paused.stdout.readline()) == ["last", 0]


async def _read_until_it_waits(paused: asyncio.subprocess.Process, sent: int) -> list[tuple[str, int]]:
    """What it reads until it has accounted for all that was ``sent``."""
    lines: list[tuple[str, int]] = []
    assert paused.stdout is not None
    while sum(lost + 1 for _, lost in lines) < sent:
        value, lost = json.loads(await paused.stdout.readline())
        lines.append((value, lost))
    return lines
