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
EXAMPLES: Final = {"pubsub.py": "prices {'sym': 'ABCD', 'px': 101.25}\n"}


def test_every_example_has_a_test() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)
    assert PROGRAMS
    assert SESSIONS


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_prints_what_it_should_each_time(name: str, user_environment: dict[str, str], tmp_path: Path) -> None:
    for _ in range(2):
        assert output_of([sys.executable, str(ROOT / "examples" / name)], user_environment, tmp_path) == EXAMPLES[name]


@pytest.mark.parametrize(("program", "expected"), PROGRAMS, ids=range(len(PROGRAMS)))
def test_readme_program_prints_what_it_says(
    program: str, expected: str, user_environment: dict[str, str], tmp_path: Path
) -> None:
    assert_shows(expected, output_of([sys.executable, "-c", program], user_environment, tmp_path))


@pytest.mark.parametrize("session", SESSIONS, ids=range(len(SESSIONS)))
def test_readme_session_goes_as_it_says(session: str, user_environment: dict[str, str], tmp_path: Path) -> None:
    follow(session, user_environment, tmp_path)


def test_readme_can_be_followed_twice_with_the_same_daemon(user_environment: dict[str, str], tmp_path: Path) -> None:
    for _ in range(2):
        for session in SESSIONS:
            follow(session, user_environment, tmp_path)
        for program, expected in PROGRAMS:
            assert_shows(expected, output_of([sys.executable, "-c", program], user_environment, tmp_path))


def test_readme_starts_a_daemon_before_anything_that_needs_one() -> None:
    assert README.index("```sh\nshmd serve\n```") < min(map(README.index, ("```console", "```python")))


def follow(session: str, environment: dict[str, str], directory: Path) -> None:
    """Type each line."""
    steps = STEP.findall(session)
    assert steps
    for typed, expected in steps:
        assert_shows(expected, output_of(["bash", "-c", typed], environment, directory))
