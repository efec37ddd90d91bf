"""The documents name what exists."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Final

import pytest

import shmd
from tests.test_layering import LAYERS

ROOT: Final = Path(__file__).parent.parent
DESIGN: Final = (ROOT / "docs" / "design.md").read_text()
DOCUMENTS: Final = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK: Final = re.compile(r"\]\((?!https?:|#)([^)#]+)\)")
LAYER_ROW: Final = re.compile(r"^\| (\d)[^|]* \|[^|]*\| (.*) \|$", re.MULTILINE)
MODULE_ROW: Final = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)
C_ROW: Final = re.compile(r"^\| `(\w+\.[ch])` \|", re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = LINK.findall(document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def module_map() -> str:
    return DESIGN.partition("### Module map\n")[2].partition("\n## ")[0]


def test_layers_are_those_that_are_enforced() -> None:
    rows = LAYER_ROW.findall(DESIGN)
    documented = {module: int(layer) for layer, modules in rows for module in re.findall(r"`(\w+)`", modules)}
    assert documented == LAYERS


def test_module_map_lists_every_module() -> None:
    modules = {module.name for module in pkgutil.iter_modules(shmd.__path__)} - {"__main__"}
    assert set(MODULE_ROW.findall(module_map())) == modules | {"shmd"}
    for name in modules:
        importlib.import_module(f"shmd.{name}")


def test_module_map_lists_the_c_files_that_do_something() -> None:
    listed = set(C_ROW.findall(module_map()))
    sources = {path.name for path in (ROOT / "csrc").glob("*.[ch]")}
    other_halves = {f"{Path(name).stem}.{suffix}" for name in listed for suffix in "ch"}
    assert listed <= sources
    assert sources - listed - other_halves <= {"shmd.h"}, "the core's interface"
