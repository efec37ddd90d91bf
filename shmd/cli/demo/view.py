"""The demo on a screen: a live table on a terminal, a line a second elsewhere, nothing where a program reads."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, TypeAlias

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shmd.cli.demo.board import Board

    Show: TypeAlias = Callable[[float], None]

LINE_INTERVAL_S: Final = 1.0
TABLE_INTERVAL_S: Final = 0.25
TITLE: Final = "This host's /proc as a stream:"


@contextlib.contextmanager
def shown(board: Board, *, quiet: bool) -> Iterator[Show]:
    """A function of the time in seconds that shows ``board`` if it is time to."""
    console = Console()
    if quiet:
        yield lambda now_s: None
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:

            def show() -> None:
                lines = [TITLE, *board.table().lines(console.width)]
                live.update(Text("\n".join(lines)), refresh=True)

            yield _at_intervals(TABLE_INTERVAL_S, show)
            show()
    else:
        yield _at_intervals(LINE_INTERVAL_S, lambda: click.echo(board.line()))


def _at_intervals(interval_s: float, show: Callable[[], None]) -> Show:
    due_s = 0.0

    def show_if_due(now_s: float) -> None:
        nonlocal due_s
        if now_s >= due_s:
            due_s = now_s + interval_s
            show()

    return show_if_due
