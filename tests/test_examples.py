"""What the README and examples/ show is what happens.

In the README a ```python block is a program, and a ```text block right behind it is its output. A ```console block is a
shell session: lines that begin with `$ ` are typed, what follows is what appears, where `...` stands for anything.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from shmd.testing import DaemonProcess

ROOT: Final = Path(__file__).parent.parent
README: Final = (ROOT / "README.md").read_text()
PROGRAM: Final = re.compile(r"^```python\n(.*?)^```\n(?:\n*```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
SESSION: Final = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STEP: Final = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)

PROGRAMS: Final = PROGRAM.findall(README)
SESSIONS: Final = SESSION.findall(README)
EXAMPLES: Final = {"pubsub.py": "1 prices {'sym': 'ABCD', 'px': 101.25}\n"}


@pytest.fixture
def environment(shmd_daemon: DaemonProcess, tmp_path: Path) -> dict[str, str]:
    """A user's: the daemon where clients look for it, and `shmd` and `python3` on the PATH."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, arguments in {"shmd": "-m shmd", "python3": ""}.items():
        command = commands / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        command.chmod(0o755)
    return os.environ | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "SHMD_SOCKET": shmd_daemon.socket_path,
    }


def output_of(command: list[str], environment: dict[str, str], cwd: Path) -> str:
    """Both streams of a command that must succeed."""
    done = subprocess.run(
        command, env=environment, cwd=cwd, text=True, stdin=subprocess.DEVNULL, stdout=-1, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def assert_shows(expected: str, output: str) -> None:
    """Equal, but for `...` and runs of blanks."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(expected, output, flags), f"expected\n{expected}\ngot\n{output}"


def test_every_example_has_a_test() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)
    assert PROGRAMS
    assert SESSIONS


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_prints_what_it_should(name: str, environment: dict[str, str], tmp_path: Path) -> None:
    assert output_of([sys.executable, str(ROOT / "examples" / name)], environment, tmp_path) == EXAMPLES[name]


@pytest.mark.parametrize(("program", "expected"), PROGRAMS, ids=range(len(PROGRAMS)))
def test_readme_program_prints_what_it_says(
    program: str, expected: str, environment: dict[str, str], tmp_path: Path
) -> None:
    assert_shows(expected, output_of([sys.executable, "-c", program], environment, tmp_path))


@pytest.mark.parametrize("session", SESSIONS, ids=range(len(SESSIONS)))
def test_readme_session_goes_as_it_says(session: str, environment: dict[str, str], tmp_path: Path) -> None:
    steps = STEP.findall(session)
    assert steps
    for typed, expected in steps:
        assert_shows(expected, output_of(["bash", "-c", typed], environment, tmp_path))
