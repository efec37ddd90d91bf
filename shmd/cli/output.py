"""What commands say. Words for people go through ``printable``; JSON is exact, and on a terminal in escapes that mean
the same.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import click

from shmd.printable import printable, printable_json

if TYPE_CHECKING:
    from collections.abc import Mapping

STDOUT: Final = 1
_STDERR: Final = 2


def say(text: str = "") -> None:
    """Lines for people, on standard output."""
    click.echo(printable(text, keep="\n"))


def complain(text: str) -> None:
    """One line, whatever it quotes, on standard error; an error to the journal, where that is one."""
    click.echo(f"{'<3>' if is_journal() else 'shmd: '}{printable(text)}", err=True)


def say_json(value: Any) -> None:
    """One object, on a line of its own."""
    text = to_json(value)
    click.echo(printable_json(text) if is_terminal(STDOUT) else text)


def to_json(value: Any) -> str:
    """One line of JSON; what JSON has no word for becomes a string."""
    import msgspec

    return msgspec.json.encode(value, enc_hook=str).decode()


def is_journal(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether standard error is the journal's. $JOURNAL_STREAM says which that is; others inherit the variable."""
    said = environ.get("JOURNAL_STREAM")
    try:
        found = os.fstat(_STDERR) if said else None
    except OSError:
        return False
    return found is not None and said == f"{found.st_dev}:{found.st_ino}"


def is_terminal(fd: int) -> bool:
    """Whether a person looks at what is written there; False for what is closed."""
    try:
        return os.isatty(fd)
    except OSError:
        return False
