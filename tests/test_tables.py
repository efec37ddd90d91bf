"""Tables at any width: readable, and complete."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmd.cli.tables import Table, field_lines
from tests.test_printable import on_terminal

if TYPE_CHECKING:
    from tests.shell import Shell

LONG = "md.equities.nasdaq.level2.ABCD.derived.quantiles"
HEADINGS = ("~TOPIC", ">SIZE", "WHEN FULL", "EXCLUSIVE", "NOTIFIER", "MODE", ">UID", ">GID")


def topics() -> Table:
    table = Table(*HEADINGS)
    table.add("prices", "1 MiB", "discard-old", "no", "eventfd", "0600", 1000, 1000)
    table.add(LONG, "16 MiB", "wait", "yes", "fifo", "0640", 1000, 1000)
    return table


class TestTable:
    def test_wide_terminal_has_a_line_for_each_row(self) -> None:
        heading, first, second = topics().lines(200)
        assert heading.split() == ["TOPIC", "SIZE", "WHEN", "FULL", "EXCLUSIVE", "NOTIFIER", "MODE", "UID", "GID"]
        assert first.split() == ["prices", "1", "MiB", "discard-old", "no", "eventfd", "0600", "1000", "1000"]
        assert LONG in second
        assert heading.index("MODE") == second.index("0640")
        assert heading.index("SIZE") + len("SIZE") == second.index("16 MiB") + len("16 MiB")
        assert topics().lines() == [heading, first, second]

    def test_terminal_of_80_columns_folds_long_names_and_nothing_else(self) -> None:
        _, first, *second = topics().lines(80)
        assert first.split()[0] == "prices"
        assert len(second) > 1
        width = len(second[1])
        assert "".join(line[:width].strip() for line in second) == LONG
        assert second[0].split()[1:] == ["16", "MiB", "wait", "yes", "fifo", "0640", "1000", "1000"]

    def test_terminal_of_40_columns_has_a_block_for_each_row(self) -> None:
        assert topics().lines(40) == [
            "TOPIC      prices",
            "SIZE       1 MiB",
            "WHEN FULL  discard-old",
            "EXCLUSIVE  no",
            "NOTIFIER   eventfd",
            "MODE       0600",
            "UID        1000",
            "GID        1000",
            "",
            "TOPIC      md.equities.nasdaq.level2.ABC",
            "           D.derived.quantiles",
            "SIZE       16 MiB",
            "WHEN FULL  wait",
            "EXCLUSIVE  yes",
            "NOTIFIER   fifo",
            "MODE       0640",
            "UID        1000",
            "GID        1000",
        ]

    @given(
        st.lists(st.tuples(st.text(st.characters(codec="utf-8"), max_size=60), st.integers()), min_size=1, max_size=3),
        st.integers(30, 250),
    )
    def test_nothing_is_left_out_and_no_line_is_too_long(self, rows: list[tuple[str, int]], width: int) -> None:
        table = Table("~NAME", ">NUMBER", "A LONG HEADING")
        for name, number in rows:
            table.add(name, number, "x")
        lines = table.lines(width)
        assert all(len(line) <= max(width, 32) for line in lines)
        shown = "".join("".join(lines).split())
        for _, number in rows:
            assert str(number) in shown or len(str(number)) > width

    def test_wide_letters_take_two_columns_and_accents_none(self) -> None:
        table = Table("~NAME", "X")
        for name in ("東京", "abcd", "e\u0301e\u0301e\u0301e\u0301"):
            table.add(name, "|")
        assert table.lines()[1:] == ["東京  |", "abcd  |", "e\u0301e\u0301e\u0301e\u0301  |"]

    def test_cells_cannot_break_out_of_their_table(self) -> None:
        table = Table("~NAME")
        table.add("a\nb\x1b[2J")
        assert table.lines() == ["NAME", r"a\nb\x1b[2J"]

    def test_fields_fold_below_their_beginning(self) -> None:
        assert field_lines({"topic": "abcdef", "size": 5}, 20, label_columns=8) == ["topic   abcdef", "size    5"]
        assert field_lines({"topic": "x" * 20}, 24, label_columns=8) == ["topic   " + "x" * 16, "        xxxx"]


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_command_keeps_to_the_terminals_width_and_a_pipe_gets_all(shell: Shell, columns: str) -> None:
    shell.run("pub", LONG)
    shell.environment["COLUMNS"] = columns
    for command in (("ls",), ("stat", LONG)):
        lines = on_terminal(shell, *command).splitlines()
        assert max(map(len, lines)) <= int(columns)
        assert LONG in "".join("".join(lines).split()) or LONG[:16] in lines[1]
        assert LONG in shell.run(*command)
