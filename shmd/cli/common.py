"""What the commands share: the options that find a daemon, running a coroutine under signals, and printing."""

from __future__ import annotations

import asyncio
import re
import signal
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

import shmd
from shmd.cli.output import complain
from shmd.cli.status import Interrupted
from shmd.errors import ShmdError
from shmd.units import parse_size, parse_time

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from contextlib import AbstractAsyncContextManager

F = TypeVar("F", bound="Callable[..., Any]")
T = TypeVar("T")

_FOR_EVER_S: Final = 365 * 86_400.0
"""For a command that waits until somebody ends it."""
_ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def size(text: str) -> int:
    """An option's ``64KiB`` in bytes."""
    return _parsed(parse_size, text)


def time(text: str) -> float:
    """An option's ``500ms`` in seconds."""
    return _parsed(parse_time, text)


def mode(text: str) -> int:
    """An option's ``640`` as permission bits."""
    if not re.fullmatch("0?[0-7]{3}", text):
        raise click.BadParameter(f"{text!r} is not a mode: write three octal digits, like 640")
    return int(text, 8)


def _parsed(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ShmdError as error:
        raise click.BadParameter(str(error)) from None


def daemon_options(command: F) -> F:
    """The options that say which daemon a command talks to."""
    command = click.option("--instance", metavar="NAME", help="Another daemon than the default one.")(command)
    return click.option("--socket", "socket_path", metavar="PATH", help="Its control socket; also $SHMD_SOCKET.")(
        command
    )


def wait_option(command: F) -> F:
    return click.option("--wait", is_flag=True, help="If there is no daemon yet, wait for one.")(command)


def connect(
    socket_path: str | None, instance: str | None, name: str, *, wait: bool = False
) -> AbstractAsyncContextManager[shmd.Client]:
    """A client of the daemon that the ``daemon_options`` stand for, shown in ``stat`` as ``name``."""
    if wait:
        return shmd.connect(socket_path, instance=instance, name=name, wait=True, timeout_s=_FOR_EVER_S)
    return shmd.connect(socket_path, instance=instance, name=name)


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, one object to a line.")(command)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` to its end. SIGINT, SIGTERM and SIGHUP, unless ignored, cancel it and then raise ``Interrupted``."""
    import uvloop  # not before there is something to run

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_cancelled_by_signals(main))


async def _cancelled_by_signals(main: Coroutine[Any, Any, T]) -> T:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(main)
    received: list[int] = []

    def end(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in _ENDING_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, end, number)
    try:
        return await task
    except asyncio.CancelledError:
        if received:
            raise Interrupted(received[0]) from None
        raise


async def remove_each(removals: Iterable[tuple[Callable[[str], Coroutine[Any, Any, None]], str]]) -> None:
    """Remove everything that can be removed; then raise the error, if there was one, of the last that could not."""
    failures: list[ShmdError] = []
    for remove, name in removals:
        try:
            await remove(name)
        except ShmdError as error:
            failures.append(error)
    for failure in failures[:-1]:
        complain(str(failure))
    if failures:
        raise failures[-1]


async def readable(fd: int) -> None:
    """Wait until there is something to read, or for a pidfd: until the process has ended."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
