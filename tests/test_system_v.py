"""docs/system-v.md is true: its programs print what it says, its flags are those of the headers, its errors come.

In a table of errors each row ends with a call, maybe with a condition before it, and ``system_v.c`` makes that call
under that condition. A row that nobody makes says so, with the reason.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from shmd.errors import SegmentError
from shmd.testing.resources import sysvipc
from tests.snippets import assert_shows, output_of, programs
from tests.system_v_claims import CLAIMS

HERE: Final = Path(__file__).parent
DOCUMENT: Final = (HERE.parent / "docs" / "system-v.md").read_text()
SECTION: Final = re.compile(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
ERROR_ROW: Final = re.compile(r"^\| `((?:E|SIG)[A-Z0-9]+)` \| (.*?) \| (?:(.*?): )?`(.*)` \|$", re.MULTILINE)
UNMADE_ROW: Final = re.compile(r"^\| `(E[A-Z0-9]+)` \| .* \| not tested: .+ \|$", re.MULTILINE)
NAME_ROW: Final = re.compile(r"^\| `(?:E|SIG)[A-Z0-9]+` \|.*\|.*\|$", re.MULTILINE)
CLASS_ROW: Final = re.compile(r"^\| (`E[^|]*`) \| `(Segment\w+)`", re.MULTILINE)
FLAG_ROW: Final = re.compile(r"^\| ((?:`[A-Z_0-9a-z]+`(?:, )?)+) \|(?: `([^`]*)` \|)? (.*) \|$", re.MULTILINE)
FLAG: Final = re.compile(r"`([A-Z][A-Z_0-9a-z]+)`")
PROGRAM_NAME: Final = re.compile(r"/\* (\w+)\.c:")
CALLS: Final = ["ftok", "shmget", "shmat", "shmdt", "shmctl", "semget", "semop", "semctl", "mkfifo", "pipe", "mmap"]
HEADERS: Final = ["fcntl", "stdio", "sys/ipc", "sys/mman", "sys/sem", "sys/shm", "unistd", "linux/mman"]
UNABLE: Final = 77

SECTIONS: Final = dict(SECTION.findall(DOCUMENT))


@dataclass(frozen=True)
class Row:
    """One line of a table of errors."""

    section: str
    name: str
    condition: str
    call: str


ROWS: Final = [
    Row(section, name, condition, call.replace(r"\|", "|"))
    for section in CALLS
    for name, _, condition, call in ERROR_ROW.findall(SECTIONS[section])
]
ROW_IDS: Final = [f"{row.section}-{row.name}-{n}" for n, row in enumerate(ROWS)]
C_PROGRAMS: Final = {call: programs(SECTIONS[call], "c")[0] for call in CALLS}
PYTHON_PROGRAMS: Final = [(call, *program) for call in CALLS for program in programs(SECTIONS[call], "python")]


@dataclass(frozen=True)
class Flag:
    """One line of a table of flags, with a value where the table has one."""

    name: str
    value: str
    meaning: str


FLAGS: Final = [
    Flag(name, value, meaning)
    for names, value, meaning in FLAG_ROW.findall(DOCUMENT)
    for name in FLAG.findall(names)
    if not re.match(r"E[A-Z0-9]+$|SIG|NULL", name)
]


def gcc(*arguments: str | Path) -> str:
    """What gcc has to say about a compilation that must succeed."""
    done = subprocess.run(["gcc", "-Wall", "-Wextra", "-O1", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def compile_program(program: str, directory: Path) -> Path:
    """A C program of the document, compiled in ``directory`` under the name that its first line gives."""
    named = PROGRAM_NAME.match(program)
    assert named is not None, program
    source = directory / f"{named[1]}.c"
    source.write_text(program)
    compiled = directory / named[1]
    assert gcc("-o", compiled, source) == ""
    return compiled


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that makes the calls of all rows."""
    directory = tmp_path_factory.mktemp("rows")
    made = [(row.condition, row.call) for row in ROWS]
    made += [(claim.condition, f"({claim.holds}) ? 0 : -1") for claim in CLAIMS]
    calls = (f"static long call_{n}(void) {{ return (long)({call}); }}" for n, (_, call) in enumerate(made))
    rows = (f'    {{"{condition}", call_{n}}},' for n, (condition, _) in enumerate(made))
    text = "\n".join([*calls, "static const struct row rows[] = {", *rows, "};", ""])
    (directory / "rows.h").write_text(text)
    gcc("-w", "-I", directory, "-o", directory / "system_v", HERE / "system_v.c")
    return directory / "system_v"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory to run a program in."""
    place = tmp_path / "place"
    place.mkdir()
    return place


def make(maker: Path, number: int, condition: str, place: Path) -> str:
    """What came of a call: an errno as a number, 0, or the name of a signal."""
    done = subprocess.run([maker, str(number)], cwd=place, capture_output=True, text=True)
    if done.returncode == UNABLE:
        pytest.skip(f"cannot bring about {condition!r} here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def objects() -> set[tuple[str, str]]:
    """What there is in this IPC namespace, the daemon's own included."""
    return {("segment", row["shmid"]) for row in sysvipc("shm")} | {("set", row["semid"]) for row in sysvipc("sem")}


class TestForm:
    @pytest.mark.parametrize("call", CALLS)
    def test_section_has_its_parts_in_order(self, call: str) -> None:
        text = SECTIONS[call]
        parts = [text.index(part) for part in ("| errno |", "### Traps", "### With shmd", "```c\n", "```python\n")]
        assert parts == sorted(parts)
        assert len(programs(text, "c")) == 1

    @pytest.mark.parametrize("call", CALLS)
    def test_every_error_is_made_or_says_why_not(self, call: str) -> None:
        named, made = NAME_ROW.findall(SECTIONS[call]), [row for row in ROWS if row.section == call]
        assert made
        assert len(named) == len(made) + len(UNMADE_ROW.findall(SECTIONS[call]))

    def test_classes_of_errors_are_those_of_the_errnos(self) -> None:
        shown = {
            errno_name: class_name
            for names, class_name in CLASS_ROW.findall(SECTIONS["shmget"])
            for errno_name in re.findall(r"E\w+", names)
        }
        classes = {name: type(SegmentError.from_errno(getattr(errno, name), "")).__name__ for name in shown}
        assert shown == classes
        assert {cls.__name__ for cls in SegmentError.__subclasses__()} <= set(shown.values())

    def test_every_program_shows_its_output(self) -> None:
        assert all(output for _, output in C_PROGRAMS.values())
        assert all(output for _, _, output in PYTHON_PROGRAMS)
        assert len(PYTHON_PROGRAMS) == DOCUMENT.count("```python\n")


class TestErrors:
    @pytest.mark.parametrize("number", range(len(ROWS)), ids=ROW_IDS)
    def test_call_fails_as_its_row_says(self, maker: Path, number: int, place: Path) -> None:
        name = ROWS[number].name
        outcome = make(maker, number, ROWS[number].condition, place)
        assert outcome == (name if name.startswith("SIG") else str(getattr(errno, name)))

    @pytest.mark.parametrize("number", range(len(CLAIMS)), ids=[claim.words for claim in CLAIMS])
    def test_what_is_said_in_words_is_so(self, maker: Path, number: int, place: Path) -> None:
        claim = CLAIMS[number]
        assert claim.words in " ".join(DOCUMENT.split())
        assert make(maker, len(ROWS) + number, claim.condition, place) == "0"


class TestFlags:
    def test_names_and_values_are_those_of_the_headers(self, tmp_path: Path) -> None:
        lines = ["#define _GNU_SOURCE", *(f"#include <{header}.h>" for header in HEADERS), "int main(void) {"]
        for flag in FLAGS:
            lines += [f"#ifdef {flag.name}"]
            lines += [f'_Static_assert({flag.name} == {flag.value}, "{flag.name}");'] if flag.value else []
            lines += ["#else", f'puts("{flag.name}");', "#endif"]
        source = tmp_path / "flags.c"
        source.write_text("\n".join([*lines, "return 0; }", ""]))
        gcc("-o", tmp_path / "flags", source)
        unknown = set(output_of([str(tmp_path / "flags")], os.environ, tmp_path).split())
        elsewhere = {flag.name for flag in FLAGS if "(x86 only)" in flag.meaning}
        assert unknown - elsewhere == {flag.name for flag in FLAGS if "(not in glibc's header)" in flag.meaning}
        assert len(FLAGS) > 70
        assert any(flag.value for flag in FLAGS)


class TestPrograms:
    @pytest.mark.parametrize("call", CALLS)
    def test_c_program_prints_what_it_says(self, call: str, tmp_path: Path, place: Path) -> None:
        program, expected = C_PROGRAMS[call]
        compiled = compile_program(program, tmp_path)
        assert compiled.name == call
        assert_shows(expected, output_of([str(compiled)], os.environ, place))
        assert list(place.iterdir()) == []

    @pytest.mark.parametrize(
        ("call", "program", "expected"),
        PYTHON_PROGRAMS,
        ids=[f"{call}-{n}" for n, (call, _, _) in enumerate(PYTHON_PROGRAMS)],
    )
    def test_python_program_prints_what_it_says(
        self, call: str, program: str, expected: str, user_environment: dict[str, str], tmp_path: Path, place: Path
    ) -> None:
        """The C program of its section is a command for it. Nothing is left behind, with the daemon still there."""
        if f'"{call}"' in program:
            compile_program(C_PROGRAMS[call][0], tmp_path / "bin")
        before = objects()
        assert_shows(expected, output_of([sys.executable, "-c", program], user_environment, place))
        assert objects() == before
        assert list(place.iterdir()) == []
