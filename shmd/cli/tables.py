"""Tables as the commands print them: no wider than the terminal, and nothing is left out for that.

Where a table is too wide, the cells that may be long (names, marked ``~``) go over several lines; where that does not
do, each row becomes a block with a line for each column. Where there is no terminal a table is as wide as it is, since
a program may cut the columns apart.
"""

from __future__ import annotations

import os
import unicodedata
from typing import TYPE_CHECKING, Final

from shmd.cli.output import STDOUT, is_terminal, say
from shmd.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_GAP: Final = "  "
_COLUMNS_USUAL: Final = 80
"""Where a terminal does not know."""
_FOLDED_MIN: Final = 16
"""Columns that a folded cell keeps at least: less cannot be read."""


class Table:
    """Rows under headings. Before a heading ``>`` aligns the column right, ``~`` lets it fold."""

    def __init__(self, *columns: str) -> None:
        self._right = [column[0] == ">" for column in columns]
        self._folds = [column[0] == "~" for column in columns]
        self._rows = [[column.lstrip(">~") for column in columns]]

    def add(self, *cells: object) -> None:
        self._rows.append([printable(str(cell)) for cell in cells])

    def __len__(self) -> int:
        """How many rows."""
        return len(self._rows) - 1

    def lines(self, width: int | None = None) -> list[str]:
        """For so many columns; None: as many as it takes."""
        widths = [max(map(_columns, column)) for column in zip(*self._rows, strict=True)]
        if width is not None and not self._fit(widths, width):
            return list(self._blocks(width))
        return [line for row in self._rows for line in self._row_lines(row, widths)]

    def _fit(self, widths: list[int], width: int) -> bool:
        """Fold what folds, the widest first, until ``widths`` fit. Whether they do."""
        excess = sum(widths) + len(_GAP) * (len(widths) - 1) - width
        while excess > 0:
            at = max(range(len(widths)), key=lambda n: widths[n] if self._folds[n] else 0)
            if not self._folds[at] or widths[at] <= _FOLDED_MIN:
                return False
            widths[at] -= 1
            excess -= 1
        return True

    def _row_lines(self, row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
        pieces = [_fold(cell, width) for cell, width in zip(row, widths, strict=True)]
        for n in range(max(map(len, pieces))):
            cells = [cell[n] if n < len(cell) else "" for cell in pieces]
            aligned = (_align(*each) for each in zip(cells, widths, self._right, strict=True))
            yield _GAP.join(aligned).rstrip()

    def _blocks(self, width: int) -> Iterator[str]:
        headings, *rows = self._rows
        for n, row in enumerate(rows):
            if n:
                yield ""
            yield from field_lines(dict(zip(headings, row, strict=True)), width)


def field_lines(fields: Mapping[str, object], width: int | None = None, *, label_columns: int = 0) -> list[str]:
    """A line for each field, or several where a value is long."""
    label_columns = max(label_columns, *(len(label) + len(_GAP) for label in fields))
    room = None if width is None else max(width - label_columns, _FOLDED_MIN)
    lines = []
    for label, value in fields.items():
        text = printable(str(value))
        for n, piece in enumerate(_fold(text, room or max(_columns(text), 1))):
            lines.append(f"{'' if n else label:<{label_columns}}{piece}".rstrip())
    return lines


def print_table(table: Table) -> None:
    say("\n".join(table.lines(terminal_columns())))


def print_fields(fields: Mapping[str, object], *, label_columns: int = 16) -> None:
    say("\n".join(field_lines(fields, terminal_columns(), label_columns=label_columns)))


def terminal_columns() -> int | None:
    """How wide the terminal is, or $COLUMNS says it is; None if standard output goes elsewhere."""
    if not is_terminal(STDOUT):
        return None
    said = os.environ.get("COLUMNS", "")
    columns = int(said) if said.isdecimal() else os.get_terminal_size(STDOUT).columns
    return columns or _COLUMNS_USUAL


def _columns(text: str) -> int:
    """How many columns of a terminal it takes: letters of East Asia two, accents that stand for themselves none."""
    return len(text) if text.isascii() else sum(map(_char_columns, text))


def _char_columns(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _align(cell: str, width: int, right: bool) -> str:
    padding = " " * (width - _columns(cell))
    return padding + cell if right else cell + padding


def _fold(text: str, width: int) -> list[str]:
    """Cut into pieces of at most ``width`` columns; one piece at least."""
    pieces, piece, used = [], "", 0
    for char in text:
        columns = _char_columns(char)
        if used + columns > width and piece:
            pieces.append(piece)
            piece, used = "", 0
        piece, used = piece + char, used + columns
    return [*pieces, piece]
