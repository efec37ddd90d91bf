"""Tables as the commands print them."""

from __future__ import annotations

from typing import Final

import click
from rich.console import Console
from rich.table import Table

WIDTH_UNLIMITED: Final = 4096
"""In columns: wider than any table here."""


def table(*columns: str) -> Table:
    """Plain columns; ``>`` before a name aligns it right."""
    made = Table(box=None, pad_edge=False, header_style=None)
    for column in columns:
        made.add_column(column.removeprefix(">"), justify="right" if column[0] == ">" else "left", overflow="fold")
    return made


def print_table(table: Table) -> None:
    """At the terminal's width; in full width where there is no terminal, since a program may cut the columns apart."""
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(table, width=console.width if console.is_terminal else WIDTH_UNLIMITED, crop=False)
    click.echo(captured.get(), nl=False)
