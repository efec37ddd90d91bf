"""The C extension; everything else is in pyproject.toml.

SHMD_TEST_BUILD=1 compiles the failpoints in (tests load that build by path; it is never installed).
"""

import os

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel


class AbiWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "cp311", "abi3", platform


WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wno-missing-field-initializers"]
SOURCES = ["lock", "ctl", "bell", "append", "seek", "reader", "log", "cell", "failpoint", "_coremodule"]

setup(
    ext_modules=[
        Extension(
            "shmd._core",
            sources=[f"csrc/{name}.c" for name in SOURCES],
            depends=["csrc/shmd.h", "csrc/api.h", "csrc/layout.h", "csrc/atomics.h", "csrc/failpoint.h"],
            define_macros=[
                ("Py_LIMITED_API", "0x030B0000"),
                *([("SHMD_FAILPOINTS", "1")] if os.environ.get("SHMD_TEST_BUILD") else []),
            ],
            extra_compile_args=[
                "-std=c11",
                "-O2",
                "-fvisibility=hidden",
                *WARNINGS,
                *os.environ.get("SHMD_CFLAGS", "").split(),
            ],
            extra_link_args=os.environ.get("SHMD_LDFLAGS", "").split(),
            py_limited_api=True,
        )
    ],
    cmdclass={"bdist_wheel": AbiWheel},
)
