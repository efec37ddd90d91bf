"""Text that others chose, made fit for a terminal.

A client's name, a record's value, the name that a foreign program wrote into its shared memory: each may hold control
characters, and a terminal obeys those. It can be told to hide lines, to rewrite what was shown before, to answer as if
the operator had typed. So whatever goes to a terminal goes through here; what a program reads (a pipe, ``--json``, the
Python API) stays exact.

Everything counts that Python does not call printable: C0 and C1 controls, DEL, marks that turn the direction of text,
what nobody sees, and surrogates. Letters and signs of all languages stay as they are.
"""

from __future__ import annotations

from typing import Final

_BMP: Final = 0x10000


def printable(text: str, *, keep: str = "") -> str:
    """``text`` with escapes in the place of what a terminal might obey (``\\x1b``, ``\\u202e``), save those to keep."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escape(char) for char in text)


def printable_json(text: str) -> str:
    """JSON text, lines of it too, that means the same: escapes as JSON has them."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else _escape_json(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _escape_json(char: str) -> str:
    if ord(char) < _BMP:
        return f"\\u{ord(char):04x}"
    return "".join(f"\\u{unit:04x}" for unit in memoryview(char.encode("utf-16-le")).cast("H"))
