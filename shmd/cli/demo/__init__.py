"""``shmd demo``: a daemon, a publisher, three subscribers, and an account of every record.

    this process      embedded daemon in a temporary runtime directory · table · closing account
      ├─ publisher    samples this host's /proc into the topic demo.host (`discard-old`: publishing never waits)
      ├─ fast-1, -2   subscribers that keep up
      └─ slow         a subscriber that takes a tenth of the rate, and is told what it lost

The processes report through a `wait` topic. A process is told to finish by the end of its standard input: the publisher
when the demo is interrupted, the subscribers once all is sent, and all of them if this process dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

import shmd
from shmd.cli.common import run, time
from shmd.cli.demo.board import Board
from shmd.cli.demo.reports import DATA_TOPIC, REPORT_TOPIC, Report
from shmd.cli.demo.view import shown
from shmd.cli.output import say, say_json
from shmd.config import DaemonConfig
from shmd.daemon import Daemon
from shmd.errors import ShmdError

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Mapping

    from shmd.cli.demo.view import Show

PUBLISHER: Final = "publisher"
FAST: Final = ("fast-1", "fast-2")
SLOW: Final = "slow"
SLOWNESS: Final = 10
"""The slow subscriber takes one record where the publisher sends so many,"""
SLOW_RATE_MAX: Final = 1000.0
"""and no more than this a second, where the publisher goes as fast as it can."""
DATA_SIZE: Final = "256KiB"
"""Of the data topic: a fraction of a second of records, so that the slow subscriber soon loses some."""
FINISH_TIMEOUT_S: Final = 10.0
"""For the last records to arrive after the demo was interrupted."""


class DemoFailed(ShmdError):
    """One of the demo's processes ended before its time, or the account does not add up."""

    code = "demo"


@click.command()
@click.option("--duration", type=time, metavar="TIME", default="10s", show_default=True, help="How long to publish.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0),
    metavar="N",
    default=10_000,
    show_default=True,
    help="Records per second; 0: as many as it can.",
)
@click.option("--json", "as_json", is_flag=True, help="Print only the closing account, as JSON.")
def demo(duration: float, rate: float, as_json: bool) -> None:
    """Publish this host's /proc to three subscribers, one of them slow, and account for every record.

    Needs nothing: starts a daemon of its own and cleans up. The exit status says whether the account adds up.
    """
    board = Board(PUBLISHER, [*FAST, SLOW])
    try:
        run(_demo(board, duration, rate, quiet=as_json))
    finally:
        if board.sent:
            say_json(board.account()) if as_json else say("\n".join(board.summary()))
    if not board.account()["exact"]:
        raise DemoFailed("the account does not add up")


async def _demo(board: Board, duration_s: float, rate: float, *, quiet: bool) -> None:
    slow_rate = min(rate / SLOWNESS, SLOW_RATE_MAX) if rate else SLOW_RATE_MAX
    async with _daemon() as socket_path, shmd.connect(socket_path, name="demo") as client:
        await client.topic(DATA_TOPIC, size=DATA_SIZE, when_full="discard-old")
        await client.topic(REPORT_TOPIC, when_full="wait")
        with shown(board, quiet=quiet) as show:
            async with client.subscribe(REPORT_TOPIC) as reports, contextlib.AsyncExitStack() as stack:
                processes: dict[str, Process] = {}
                for name, name_rate in [*((name, 0.0) for name in FAST), (SLOW, slow_rate)]:
                    subscriber = _process("subscriber", socket_path, name, name_rate)
                    processes[name] = await stack.enter_async_context(subscriber)
                publisher = _process("publisher", socket_path, PUBLISHER, rate, duration_s, len(processes))
                processes[PUBLISHER] = await stack.enter_async_context(publisher)
                await _see_through(processes, reports, board, show)


@contextlib.asynccontextmanager
async def _daemon() -> AsyncIterator[str]:
    """A daemon in this process, with nothing that outlives it. Gives its socket's path."""
    with tempfile.TemporaryDirectory(prefix="shmd-demo-") as directory:
        socket_path = Path(directory, "control.sock")
        config = DaemonConfig(
            instance=f"demo-{os.getpid()}", runtime_dir=Path(directory), socket_path=socket_path, ephemeral=True
        )
        async with Daemon(config) as daemon:
            serving = asyncio.create_task(daemon.serve_forever())
            try:
                yield str(socket_path)
            finally:
                serving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await serving


@contextlib.asynccontextmanager
async def _process(module: str, *arguments: object) -> AsyncIterator[Process]:
    """One of the demo's processes; killed at the end, should it still run. Ctrl-C does not reach it."""
    command = [sys.executable, "-m", f"shmd.cli.demo.{module}", *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, start_new_session=True)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        _end_input(process)
        await process.wait()


async def _see_through(
    processes: Mapping[str, Process], reports: shmd.Subscription[Any], board: Board, show: Show
) -> None:
    """Until every process has reported its end and ended. If cancelled: has them finish early, then is cancelled."""
    collected = asyncio.create_task(_collect(processes, reports, board, show))
    ended = asyncio.create_task(_all_end_well(processes))
    try:
        await asyncio.wait({collected, ended}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            ended.result()
        await collected
        await ended
    except asyncio.CancelledError:
        _end_input(processes[PUBLISHER])
        await asyncio.wait({collected}, timeout=FINISH_TIMEOUT_S)
        raise
    finally:
        for task in (collected, ended):
            task.cancel()
        await asyncio.gather(collected, ended, return_exceptions=True)


async def _collect(processes: Mapping[str, Process], reports: shmd.Subscription[Any], board: Board, show: Show) -> None:
    loop = asyncio.get_running_loop()
    async for record in reports:
        board.add(msgspec.convert(record.value, Report), record.time)
        show(loop.time())
        if board.sending_ended:
            for process in processes.values():
                _end_input(process)
        if board.complete:
            return


async def _all_end_well(processes: Mapping[str, Process]) -> None:
    async def wait(name: str, process: Process) -> None:
        if status := await process.wait():
            raise DemoFailed(f"the process {name} ended with status {status}")

    waiting = [asyncio.create_task(wait(name, process)) for name, process in processes.items()]
    try:
        for next_to_end in asyncio.as_completed(waiting):
            await next_to_end
    finally:
        for task in waiting:
            task.cancel()


def _end_input(process: Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
