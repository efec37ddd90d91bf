"""What is imported is needed: a program that imports shmd, and each command, goes without the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

import pytest

SLOW: Final = {"importlib.metadata", "email", "zipfile", "hashlib", "secrets", "tomllib", "ctypes", "multiprocessing"}
"""Of the standard library: milliseconds each, for what hardly anybody asks for."""
TERMINAL: Final = {"click", "rich", "uvloop"}
DAEMON: Final = {"shmd.daemon", "shmd.broker", "shmd.registry", "shmd.config", "shmd.roster", "shmd.listener"}
CLIENT: Final = {"shmd.client", "shmd.hub", "shmd.subscription"}
DISPLAYS: Final = {"shmd.cli.demo", "shmd.cli.torture"}


TELL: Final = """
import atexit, runpy, sys
before = set(sys.modules)
atexit.register(lambda: print("\\nimported:", *sorted(set(sys.modules) - before), file=sys.stderr))
"""
"""What the interpreter itself imports here, .pth files and coverage among that, does not count."""


def imported(what: str, *arguments: str) -> set[str]:
    """The modules that a program imports. It may fail: there is no daemon at the socket that is named."""
    done = subprocess.run(
        [sys.executable, "-c", TELL + what, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "SHMD_SOCKET": "/nonexistent/s"},
        capture_output=True,
        text=True,
        cwd="/",
    )
    return set(done.stderr.rpartition("imported: ")[2].split())


def imported_by_command(*arguments: str) -> set[str]:
    return imported("runpy.run_module('shmd', run_name='__main__', alter_sys=True)", *arguments)


def test_import_of_shmd_alone_imports_next_to_nothing() -> None:
    found = imported("import shmd")
    assert found & (SLOW | TERMINAL | DAEMON | CLIENT | {"asyncio", "msgspec", "msgpack", "dataclasses"}) == set()
    assert {name for name in found if name.startswith("shmd")} == {"shmd", "shmd.errors"}


def test_version_is_there_when_it_is_asked_for() -> None:
    assert "importlib.metadata" in imported("import shmd; shmd.__version__")


def test_client_imports_neither_the_daemon_nor_the_command_line() -> None:
    found = imported("import shmd; shmd.connect, shmd.Client, shmd.Segment, shmd.Cell")
    assert found & (SLOW | TERMINAL | DAEMON) == set()
    assert found >= {"asyncio", "shmd.client"}


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("segment", "--help"), ("lss",)], ids=" ".join)
def test_help_imports_no_command(arguments: tuple[str, ...]) -> None:
    found = imported_by_command(*arguments)
    assert {name for name in found if name.startswith("shmd")} <= {
        *("shmd", "shmd.__main__", "shmd.errors"),
        *("shmd.cli", "shmd.cli.group", "shmd.cli.status", "shmd.cli.output", "shmd.printable"),
        *("shmd.cli.segment", "shmd.cli.logs"),
    }
    assert "asyncio" not in found


@pytest.mark.parametrize(
    "command", [("ls",), ("stat", "t"), ("rm", "t"), ("pub", "t"), ("sub", "t"), ("segment", "ls")], ids=" ".join
)
def test_command_of_a_client_imports_neither_the_daemon_nor_other_commands(command: tuple[str, ...]) -> None:
    found = imported_by_command(*command)
    assert found & (SLOW | DAEMON | DISPLAYS | {"rich"}) == set()
    assert {"pub", "sub", "serve"} & {name.removeprefix("shmd.cli.") for name in found} <= set(command)
    assert "shmd.client" in found


def test_daemon_imports_no_client() -> None:
    found = imported_by_command("serve", "--help")
    assert found & (CLIENT | DISPLAYS | {"importlib.metadata", "tomllib"}) == set()
    assert "shmd.daemon" in found
