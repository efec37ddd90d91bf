"""The test build of the C core, with failpoints. Run as a program, it prints their names."""

from __future__ import annotations

import subprocess
import sys

from tests.core_builds import FAILPOINTS, ROOT

__all__ = ["ROOT", "build", "names", "use"]

build = FAILPOINTS.build
use = FAILPOINTS.use


def names() -> list[str]:
    """Of all failpoints of the test build."""
    core = build()
    command = [sys.executable, "-m", "tests.failpoint_core"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert found, f"{core} has no failpoints"
    return found


if __name__ == "__main__":
    use()
    print(*sys.modules["shmd._core"].failpoints())  # noqa: T201 - the answer to whoever runs this
