"""Programs and their outputs as documents show them, run as a reader would."""

from __future__ import annotations

import doctest
import re
import subprocess
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PROGRAM: Final = r"^```{language}\n(.*?)^```\n(?:\n*```text\n(.*?)^```$)?"
SESSION: Final = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STEP: Final = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


def programs(document: str, language: str) -> list[tuple[str, str]]:
    """Each block in this language, and the text block right behind it, which is its output."""
    return re.findall(PROGRAM.format(language=language), document, re.MULTILINE | re.DOTALL)


def output_of(command: list[str], environment: Mapping[str, str], cwd: Path) -> str:
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
