"""What the compiler does not check about csrc/: a linter of this project's own rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

CSRC: Final = Path(__file__).parent.parent / "csrc"
SOURCES: Final = sorted([*CSRC.glob("*.c"), *CSRC.glob("*.h")])

# C's words, the vocabulary of atomics.h, and names given to an order. `fence_self` orders nothing between processes.
ORDERING: Final = re.compile(
    r"\bmemory_order_(?:acquire|release|acq_rel|seq_cst)\b"
    r"|\b(?:load|store|add|cas|fence)_(?:acquire|release|seq)\b"
    r"|\b[A-Z_]+_ORDER\b"
)
SYNC: Final = re.compile(r"\bSYNC: \S+ .*\S")
LINES_ABOVE: Final = 3
FORBIDDEN: Final = {
    "volatile orders nothing between processors; use atomics.h": re.compile(r"\bvolatile\b"),
    "the core never waits": re.compile(r"\b(?:u|nano|clock_nano)?sleep\b"),
}


def without_comments(text: str) -> str:
    """The same lines, with comments and string literals blanked out."""
    comment_or_string = r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"'
    return re.sub(comment_or_string, lambda match: re.sub(r"[^\n]", " ", match[0]), text, flags=re.DOTALL)


def without_macros(code: str) -> str:
    """The same lines, with #define directives blanked out: where a name is defined, nothing is accessed yet."""
    define = r"^[ \t]*#[ \t]*define\b(?:.*\\\n)*.*"
    return re.sub(define, lambda match: re.sub(r"[^\n]", " ", match[0]), code, flags=re.MULTILINE)


def unexplained_orderings(text: str) -> list[int]:
    """Line numbers of acquire, release and seq_cst accesses without a SYNC comment on the line or the three above."""
    lines, code = text.splitlines(), without_macros(without_comments(text)).splitlines()
    return [
        number
        for number, line in enumerate(code, 1)
        if ORDERING.search(line) and not any(map(SYNC.search, lines[max(0, number - 1 - LINES_ABOVE) : number]))
    ]


def forbidden(text: str) -> list[str]:
    """What the code (not its comments) says that no source of the core may say."""
    code = without_comments(text)
    return [reason for reason, pattern in FORBIDDEN.items() if pattern.search(code)]


def test_linter_finds_what_it_looks_for() -> None:
    assert unexplained_orderings("x = 1;\ny = load_acquire(&p);\n") == [2]
    assert unexplained_orderings("/* SYNC: */\ny = load_seq(&p);\n") == [2]
    assert unexplained_orderings("/* SYNC: pairs with f */\n\n\ny = load_acquire(&p);\nz = cas_seq(&q);\n") == [5]
    assert unexplained_orderings("/* load_acquire */ y = load_relaxed(&p); fence_self();\n") == []
    assert unexplained_orderings("#define A(p) \\\n    load_acquire(p)\n#define B_ORDER memory_order_release\n") == []
    assert unexplained_orderings("atomic_store_explicit(&p, 1, B_ORDER);\n") == [1]
    assert len(forbidden("volatile int x; nanosleep(&t, 0);")) == 2
    assert forbidden('/* volatile */ const char *word = "sleep"; __asm__ __volatile__("");') == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
class TestSource:
    def test_acquire_and_release_name_their_partner(self, source: Path) -> None:
        assert unexplained_orderings(source.read_text()) == []

    def test_source_says_nothing_forbidden(self, source: Path) -> None:
        assert forbidden(source.read_text()) == []

    def test_only_the_binding_knows_python(self, source: Path) -> None:
        assert ("Python.h" in source.read_text()) == (source.name == "_coremodule.c")


def test_core_is_all_there() -> None:
    """A glob that finds nothing checks nothing."""
    assert {"_coremodule.c", "atomics.h", "layout.h"} <= {path.name for path in SOURCES}
