"""What the README and examples/ show is what happens.

In the README a ```python block is a program, and a ```text block right behind it is its output. A ```console block is a
shell session: lines that begin with `$ ` are typed, what follows is what appears, where `...` stands for anything.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import pytest

from tests.snippets import SESSION, STEP, assert_shows, output_of, programs

ROOT: Final = Path(__file__).parent.parent
README: Final = (ROOT / "README.md").read_text()

PROGRAMS: Final = programs(README, "python")
SESSIONS: Final = SESSION.findall(README)
EXAMPLES: Final = {"pubsub.py": "1 prices {'sym': 'ABCD', 'px': 101.25}\n"}


def test_every_example_has_a_test() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)
    assert PROGRAMS
    assert SESSIONS


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_prints_what_it_should(name: str, user_environment: dict[str, str], tmp_path: Path) -> None:
    assert output_of([sys.executable, str(ROOT / "examples" / name)], user_environment, tmp_path) == EXAMPLES[name]


@pytest.mark.parametrize(("program", "expected"), PROGRAMS, ids=range(len(PROGRAMS)))
def test_readme_program_prints_what_it_says(
    program: str, expected: str, user_environment: dict[str, str], tmp_path: Path
) -> None:
    assert_shows(expected, output_of([sys.executable, "-c", program], user_environment, tmp_path))


@pytest.mark.parametrize("session", SESSIONS, ids=range(len(SESSIONS)))
def test_readme_session_goes_as_it_says(session: str, user_environment: dict[str, str], tmp_path: Path) -> None:
    steps = STEP.findall(session)
    assert steps
    for typed, expected in steps:
        assert_shows(expected, output_of(["bash", "-c", typed], user_environment, tmp_path))
