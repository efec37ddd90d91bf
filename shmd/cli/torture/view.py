"""The torture on a screen: a live table on a terminal, a line a second elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING, Final, TypeAlias

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from shmd.cli.tables import Table
from shmd.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shmd.cli.torture.chaos import Chaos, Outcome
    from shmd.cli.torture.crew import Member

    Show: TypeAlias = Callable[[str], None]

LINE_INTERVAL_S: Final = 1.0
ACTS_SHOWN: Final = 5


@contextlib.contextmanager
def showing(chaos: Chaos, total: Outcome) -> Iterator[Show]:
    """A function to be told each act. ``total``: of the sessions before this one."""
    console = Console()
    acts: deque[str] = deque(maxlen=ACTS_SHOWN)
    if not console.is_terminal:
        yield _lines(chaos, total)
        return
    with Live(console=console, auto_refresh=False) as live:

        def show(act: str) -> None:
            acts.append(act)
            lines = [*_table(chaos).lines(console.width), summary(chaos, total), "last: " + ", ".join(acts), HELP]
            live.update(Text("\n".join(lines)), refresh=True)

        yield show


HELP: Final = "press d p s a to kill the daemon, a publisher, a subscriber, all; Ctrl-C to end"


def summary(chaos: Chaos, total: Outcome) -> str:
    """What was done so far."""
    rounds, kills = total.rounds + chaos.outcome.rounds, total.kills + chaos.crew.kills
    return f"seed {total.seed}: {rounds} rounds, {kills} kills, {len(total.broken) + len(total.leaked)} broken"


def _lines(chaos: Chaos, total: Outcome) -> Show:
    due = time.monotonic()

    def show(act: str) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + LINE_INTERVAL_S
            click.echo(f"{summary(chaos, total)}; {act}")

    return show


def _table(chaos: Chaos) -> Table:
    shown = Table("PROCESS", ">PID", "STATE", ">LOG")
    for member in sorted(chaos.crew.members, key=lambda member: (member.kind, member.number)):
        shown.add(member.name, member.process.pid, _state(member), _log_size(member))
    return shown


def _state(member: Member) -> str:
    if member.stopped_ns is not None:
        return "stopped"
    return "running" if member.orders is None or member.ready else "starting"


def _log_size(member: Member) -> str:
    if member.orders is None or not member.orders.log_path.exists():
        return ""
    return format_size(member.orders.log_path.stat().st_size)
