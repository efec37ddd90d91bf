"""Builds of the C core for tests: what they are, where they lie, and how a process comes to use one.

``make test`` builds them; a bare pytest run builds a missing one by itself, once. Nothing installs them.

    python -m tests.core_builds NAME        # build it anew
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
_SANITIZERS: Final = "-fsanitize=address,undefined"


@dataclass(frozen=True)
class CoreBuild:
    """One build. ``options``: variables of the environment that setup.py reads."""

    name: str
    options: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return ROOT / "build" / self.name / "shmd/_core.abi3.so"

    def build(self, *, anew: bool = False) -> Path:
        """Path of the library, made now if it is not there."""
        if anew or not self.path.exists():
            library, objects = self.path.parent.parent, self.path.parent.parent / "temp"
            command = [sys.executable, "setup.py", "-q", "build_ext"]
            command += ["--build-lib", str(library), "--build-temp", str(objects)]
            subprocess.run(command, cwd=ROOT, env=os.environ | self.options, check=True)
        return self.path

    def use(self) -> None:
        """Make it ``shmd._core`` in this process; before anything of shmd that needs the core is imported."""
        assert "shmd._core" not in sys.modules
        import shmd.errors  # noqa: F401 - the package first; the core imports this

        loader = importlib.machinery.ExtensionFileLoader("shmd._core", str(self.path))
        spec = importlib.util.spec_from_loader("shmd._core", loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["shmd._core"] = module
        loader.exec_module(module)
        sys.modules["shmd"]._core = module  # type: ignore[attr-defined]


FAILPOINTS: Final = CoreBuild("failpoints", {"SHMD_TEST_BUILD": "1"})
"""With named instructions at which a process dies or stops (csrc/failpoint.h)."""
SANITIZED: Final = CoreBuild(
    "asan",
    {"SHMD_CFLAGS": f"-g -O1 {_SANITIZERS} -fno-sanitize-recover=undefined", "SHMD_LDFLAGS": _SANITIZERS},
)
"""Under AddressSanitizer and UndefinedBehaviorSanitizer: what they find ends it. See ``sanitized_environment``."""


def sanitized_environment() -> dict[str, str]:
    """For a process that uses ``SANITIZED``: the library must be loaded first of all, and judge every allocation."""
    found = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    return os.environ | {
        "LD_PRELOAD": found.stdout.strip(),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # Python never frees what it keeps to its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


if __name__ == "__main__":
    next(known for known in (FAILPOINTS, SANITIZED) if known.name == sys.argv[1]).build(anew=True)
