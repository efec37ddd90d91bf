"""Who may import whom. Every module of shmd stands in this table; what the table does not allow fails."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import shmd

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE: Final = Path(shmd.__file__).parent

LAYERS: Final = {
    # 0: words
    "errors": 0,
    "failpoint": 0,
    "limits": 0,
    # 1: pure
    "messages": 1,
    "keys": 1,
    "names": 1,
    "policy": 1,
    "printable": 1,
    "protocol": 1,
    "registry": 1,
    "segment_policy": 1,
    "shortage": 1,
    "units": 1,
    # 2: resources of the operating system
    "_core": 2,
    "adoption": 2,
    "attachment": 2,
    "backing_file": 2,
    "bell_store": 2,
    "cell": 2,
    "cell_types": 2,
    "codec": 2,
    "config": 2,
    "file_store": 2,
    "inventory": 2,
    "liveness": 2,
    "memory": 2,
    "notifier": 2,
    "places": 2,
    "topic_bells": 2,
    "fifo": 2,
    "roster": 2,
    "roster_layout": 2,
    "roster_reader": 2,
    "roster_writer": 2,
    "segment": 2,
    "segment_adoption": 2,
    "segment_bells": 2,
    "segment_store": 2,
    "semaphore": 2,
    "semaphore_store": 2,
    "systemd": 2,
    "sysv": 2,
    "topic_store": 2,
    # 3: the event loop
    "listener": 3,
    "transport": 3,
    # 4: the two ends
    "broker": 4,
    "daemon": 4,
    "segment_keeper": 4,
    "stalls": 4,
    "bystander": 4,
    "client": 4,
    "client_events": 4,
    "client_segments": 4,
    "connecting": 4,
    "hub": 4,
    "joined_topic": 4,
    "link": 4,
    "looks": 4,
    "opener": 4,
    "patience": 4,
    "publisher": 4,
    "raw_segment": 4,
    "retake": 4,
    "seat": 4,
    "segment_options": 4,
    "segment_seat": 4,
    "segment_lock": 4,
    "session": 4,
    "start": 4,
    "subscription": 4,
    "topic_options": 4,
    # 5: edges
    "__main__": 5,
    "cli": 5,
    "testing": 5,
}
"""A module, or a package with all that is in it, and its layer. It may import from its own layer and those below."""
DAEMON_END: Final = {"broker", "daemon", "segment_keeper", "stalls"}
CLIENT_END: Final = {name for name, layer in LAYERS.items() if layer == 4} - DAEMON_END
FOR_EDGES: Final = {"config", "daemon", "errors", "inventory", "keys", "limits", "places", "printable", "units"}
"""What edges use beside the public API (``import shmd``): its words, what runs a daemon, what needs none."""
WORLD: Final = {
    *("asyncio", "ctypes", "fcntl", "multiprocessing", "os", "pathlib", "random", "resource", "secrets", "select"),
    *("selectors", "signal", "socket", "subprocess", "tempfile", "threading", "time"),
}
"""What a pure module has told to it instead."""
THIRD_PARTY: Final = {
    0: frozenset[str](),
    1: {"msgspec"},
    2: {"msgpack", "msgspec", "numpy", "sysv_ipc"},
    3: frozenset[str](),
    4: {"msgspec", "numpy"},
    5: {"click", "msgpack", "msgspec", "pytest", "pytest_asyncio", "rich", "sysv_ipc", "uvloop"},
}


@dataclass(frozen=True)
class Import:
    """``name`` is the dotted module; ``types_only``: under ``if TYPE_CHECKING``."""

    name: str
    types_only: bool


def imports(source: str) -> Iterator[Import]:
    tree = ast.parse(source)
    type_checking = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for statement in branch.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node in type_checking)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "shmd":
                for alias in node.names:
                    known = alias.name in LAYERS or (PACKAGE / f"{alias.name}.py").exists()
                    yield Import(f"shmd.{alias.name}" if known else "shmd", node in type_checking)
            else:
                yield Import(str(node.module), node in type_checking)


def violations(module: str, source: str) -> list[str]:
    """What ``source``, as the content of shmd's ``module``, imports that it must not."""
    if module not in LAYERS:
        return [f"{module} is not in the table of layers"]
    layer = LAYERS[module]
    found = []
    for imported in imports(source):
        top, _, rest = imported.name.partition(".")
        if top == "shmd":
            found += _shmd_violations(module, layer, rest.partition(".")[0])
        elif top in sys.stdlib_module_names:
            if (layer <= 1 and top in WORLD) or (layer == 2 and top == "asyncio"):
                found.append(f"{module} (layer {layer}) imports {top}")
        elif not imported.types_only and top not in THIRD_PARTY[layer]:
            found.append(f"{module} (layer {layer}) imports {top}")
    return found


def _shmd_violations(module: str, layer: int, target: str) -> list[str]:
    if target == module:
        return []
    if layer == 5:
        allowed = not target or target in FOR_EDGES or LAYERS.get(target) == 5
    else:
        ends_meet = (module in DAEMON_END and target in CLIENT_END) or (module in CLIENT_END and target in DAEMON_END)
        allowed = target in LAYERS and LAYERS[target] <= layer and not ends_meet
    return [] if allowed else [f"{module} (layer {layer}) imports shmd{'.' if target else ''}{target}"]


def modules() -> list[tuple[str, Path]]:
    """(name in the table, file) of every module but the package's own, which is the public API."""
    files = sorted(PACKAGE.rglob("*.py"))
    return [
        (file.relative_to(PACKAGE).parts[0].removesuffix(".py"), file)
        for file in files
        if file.parent != PACKAGE or file.name != "__init__.py"
    ]


@pytest.mark.parametrize(("module", "file"), modules(), ids=lambda value: str(value).rpartition("shmd/")[2])
def test_module_imports_only_what_its_layer_may(module: str, file: Path) -> None:
    assert violations(module, file.read_text(encoding="utf-8")) == []


def test_table_names_only_what_exists() -> None:
    existing = {module for module, _ in modules()} | {"_core"}
    assert LAYERS.keys() == existing


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nobody_knows_it", "import re"),
        ("errors", "from shmd import names"),
        ("limits", "import msgspec"),
        ("protocol", "import os"),
        ("registry", "from time import monotonic"),
        ("registry", "import asyncio"),
        ("registry", "from shmd import segment"),
        ("policy", "from shmd.transport import Connection"),
        ("policy", "if TYPE_CHECKING:\n    from shmd.daemon import Daemon"),
        ("segment", "def f():\n    import asyncio"),
        ("segment", "if TYPE_CHECKING:\n    import asyncio"),
        ("notifier", "from shmd.transport import Connection"),
        ("transport", "from shmd.client import connect"),
        ("transport", "from shmd import Client"),
        ("client", "from shmd.daemon import Daemon"),
        ("client", "import uvloop"),
        ("subscription", "from shmd import broker"),
        ("daemon", "from shmd.client import connect"),
        ("broker", "import shmd"),
        ("cli", "from shmd.client import Client"),
        ("cli", "from shmd import _core"),
        ("testing", "import shmd.segment"),
        ("testing", "import hypothesis"),
    ],
)
def test_checker_finds_what_is_not_allowed(module: str, source: str) -> None:
    assert violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("registry", "from shmd.registry.state import State\nimport heapq\nfrom shmd import names"),
        ("daemon", "import asyncio, os\nfrom shmd.registry import Registry"),
        ("codec", "if TYPE_CHECKING:\n    from typing_extensions import Buffer"),
        ("cli", "import shmd\nfrom shmd import connect\nfrom shmd.daemon import Daemon\nimport click"),
    ],
)
def test_checker_lets_pass_what_is_allowed(module: str, source: str) -> None:
    assert violations(module, source) == []
