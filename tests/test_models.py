"""The models hold, their mutants fail, and the script that says so notices when they do not."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

MODELS: Final = Path(__file__).parent.parent / "docs" / "models"
RUN: Final = MODELS / "run"
TIMEOUT_S: Final = 600

needs_spin = pytest.mark.skipif(shutil.which("spin") is None, reason="spin is not installed (apt-get install spin)")


def run(*arguments: str | Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", RUN, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=None if path is None else {"PATH": path},
        check=False,
    )


def changed(name: str, directory: Path, old: str, new: str) -> Path:
    text = (MODELS / name).read_text()
    assert old in text
    path = directory / name
    path.write_text(text.replace(old, new))
    return path


@needs_spin
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("model", sorted(MODELS.glob("*.pml")), ids=lambda path: path.stem)
def test_model_holds_and_its_mutants_fail(model: Path) -> None:
    text = model.read_text()
    result = run(model)
    assert result.returncode == 0, result.stdout + result.stderr
    assert set(re.findall(r"fails +-D(\w+)", result.stdout)) == set(re.findall(r"^#ifn?def (MUTANT_\w+)", text, re.M))
    states = re.search(r" holds .*: ([0-9.e+]+) states", result.stdout)
    documented = re.search(r"^ \*   small: .* ([0-9,]+) states", text, re.M)
    assert states is not None
    assert documented is not None
    assert float(states[1]) == pytest.approx(int(documented[1].replace(",", "")), rel=0.01)


@needs_spin
def test_run_reports_a_model_that_does_not_hold(tmp_path: Path) -> None:
    broken = changed("bell.pml", tmp_path, "        ring();\n", "        skip;\n")
    result = run(broken)
    assert result.returncode == 1
    assert "does not hold" in result.stderr


@needs_spin
def test_run_reports_a_mutant_that_does_not_fail(tmp_path: Path) -> None:
    harmless = changed("bell.pml", tmp_path, "#ifdef MUTANT_LOOK_FIRST", "#ifdef NEVER")
    result = run(harmless)
    assert result.returncode == 1
    assert "-DMUTANT_LOOK_FIRST: this mutant should fail" in result.stderr


@needs_spin
def test_run_reports_a_model_that_is_none(tmp_path: Path) -> None:
    damaged = changed("bell.pml", tmp_path, "proctype reader", "proctype")
    result = run(damaged)
    assert result.returncode == 1
    assert "syntax error" in result.stderr


def test_run_names_the_tool_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "dirname").symlink_to(shutil.which("dirname") or "dirname")
    result = run(path=str(tmp_path))
    assert result.returncode == 2
    assert "apt-get install spin" in result.stderr


def test_readme_lists_every_model() -> None:
    listed = re.findall(r"^\| \[(\w+\.pml)\]", (MODELS / "README.md").read_text(), re.M)
    assert listed == sorted(path.name for path in MODELS.glob("*.pml"))
