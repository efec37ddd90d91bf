"""``shmd segment lock``, ``notify`` and ``wait``: taking turns at a segment, and waking each other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import click

from shmd.cli.common import connect, daemon_options, run, time
from shmd.cli.output import complain
from shmd.cli.status import EXIT_SIGNAL
from shmd.errors import SegmentLocked, ShmdError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmd import Segment

_EXIT_NOT_FOUND: Final = 127
_EXIT_NOT_EXECUTABLE: Final = 126
"""What a shell says of a command that it cannot run."""


class NotNotified(ShmdError):
    """Nobody rang in time."""

    code = "not-notified"


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--timeout", type=time, metavar="TIME", help="Give up after so long, like 500ms; 0: at once.")
@daemon_options
@click.pass_context
def lock(
    ctx: click.Context,
    name: str,
    command: tuple[str, ...],
    timeout: float | None,
    socket_path: str | None,
    instance: str | None,
) -> None:
    """Run COMMAND while holding the lock of the segment NAME, as flock does; end with its status.

    Options come before NAME: what follows it is COMMAND's.
    If this is killed meanwhile the kernel frees the lock, and COMMAND goes on without it.
    """
    ctx.exit(run(_run_locked(name, command, timeout, socket_path, instance)))


async def _run_locked(
    name: str, command: Sequence[str], timeout_s: float | None, socket_path: str | None, instance: str | None
) -> int:
    async with (
        connect(socket_path, instance, "shmd segment lock") as client,
        client.segment(name, create=False, readonly=True) as segment,
    ):
        await _acquire(segment, timeout_s)
        try:
            return await _run(command)
        finally:
            segment.lock().release()


async def _acquire(segment: Segment, timeout_s: float | None) -> None:
    if timeout_s == 0:
        segment.lock().acquire_nowait()
        return
    try:
        await segment.lock().acquire(timeout_s)
    except TimeoutError:
        holder = segment.lock().stat().owner_pid
        raise SegmentLocked(
            f"the lock of segment {segment.name!r} was not free within {timeout_s:g} s",
            f"process {holder} holds it" if holder else None,
        ) from None


async def _run(command: Sequence[str]) -> int:
    """Its exit status, as a shell gives it. It does not outlive us where we are told to end."""
    try:
        process = await asyncio.create_subprocess_exec(*command)
    except FileNotFoundError:
        complain(f"{command[0]}: there is no such command")
        return _EXIT_NOT_FOUND
    except PermissionError:
        complain(f"{command[0]}: it cannot be executed")
        return _EXIT_NOT_EXECUTABLE
    try:
        status = await process.wait()
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
    return status if status >= 0 else EXIT_SIGNAL - status


@click.command()
@click.argument("name")
@click.option(
    "--count", type=int, metavar="N", default=1, show_default=True, help="Where that is a FIFO: wake so many."
)
@daemon_options
def notify(name: str, count: int, socket_path: str | None, instance: str | None) -> None:
    """Wake everybody who waits for the segment NAME; or one of them, where its notifier is a FIFO."""
    run(_notify(name, count, socket_path, instance))


async def _notify(name: str, count: int, socket_path: str | None, instance: str | None) -> None:
    async with (
        connect(socket_path, instance, "shmd segment notify") as client,
        client.segment(name, create=False, readonly=True) as segment,
    ):
        segment.notify(count)


@click.command()
@click.argument("name")
@click.option("--timeout", type=time, metavar="TIME", help="Fail after so long, like 10s.")
@daemon_options
def wait(name: str, timeout: float | None, socket_path: str | None, instance: str | None) -> None:
    """Wait until somebody notifies the segment NAME, from now on; where its notifier is a FIFO, take one byte out."""
    run(_wait(name, timeout, socket_path, instance))


async def _wait(name: str, timeout_s: float | None, socket_path: str | None, instance: str | None) -> None:
    async with (
        connect(socket_path, instance, "shmd segment wait") as client,
        client.segment(name, create=False, readonly=True) as segment,
    ):
        try:
            async with asyncio.timeout(timeout_s):
                await segment.wait()
        except TimeoutError:
            raise NotNotified(f"nobody notified segment {name!r} within {timeout_s:g} s") from None
