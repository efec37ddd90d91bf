"""The test build of the C core, with failpoints: where it is, and how a child process comes to use it.

``make test`` builds it; a bare pytest run builds it by itself, once.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORE = ROOT / "build/failpoints/shmd/_core.abi3.so"


def build() -> Path:
    """Path of the test build, made now if it is not there."""
    if not CORE.exists():
        command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "build/failpoints"]
        command += ["--build-temp", "build/failpoints/temp"]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"SHMD_TEST_BUILD": "1"}, check=True)
    return CORE


def names() -> list[str]:
    """Of all failpoints of the test build."""
    core = build()
    command = [sys.executable, "-m", "tests.failpoint_core"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert found, f"{core} has no failpoints"
    return found


def use() -> None:
    """Make ``shmd._core`` the test build in this process; before anything of shmd that needs the core is imported."""
    assert "shmd._core" not in sys.modules
    import shmd.errors  # noqa: F401 - the package first; the core imports this

    loader = importlib.machinery.ExtensionFileLoader("shmd._core", str(CORE))
    spec = importlib.util.spec_from_loader("shmd._core", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["shmd._core"] = module
    loader.exec_module(module)
    sys.modules["shmd"]._core = module  # type: ignore[attr-defined]


if __name__ == "__main__":
    use()
    print(*sys.modules["shmd._core"].failpoints())  # noqa: T201 - the answer to whoever runs this
