"""The test build of the C core, with failpoints. Run as a program, it prints their names."""

from __future__ import annotations

import sys

from tests.core_builds import FAILPOINTS, ROOT

__all__ = ["ROOT", "build", "use"]

build = FAILPOINTS.build
use = FAILPOINTS.use

if __name__ == "__main__":
    use()
    print(*sys.modules["shmd._core"].failpoints())  # noqa: T201 - the answer to whoever runs this
