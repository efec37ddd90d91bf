"""docs/memory-layout.md says what the core was compiled to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from shmd import _core, registry

DOCUMENT: Final = Path(__file__).parent.parent / "docs" / "memory-layout.md"
SECTION: Final = re.compile(r"^## [^\n]*`(\w+)`\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
ROW: Final = re.compile(r"^\| `(\w+)` \| (\w+) \| (\d+) \|", re.MULTILINE)


def documented_layout() -> dict[str, dict[str, tuple[int, int]]]:
    """Struct → field → (offset, size), from the document's tables."""
    return {
        struct: {field: (int(offset, 0), int(size)) for field, offset, size in ROW.findall(body)}
        for struct, body in SECTION.findall(DOCUMENT.read_text())
    }


def test_document_lists_every_field_with_its_offset_and_size() -> None:
    compiled = {name: fields for name, fields in documented_layout().items() if not name.startswith("roster_")}
    assert compiled == _core.layout()


def test_fields_do_not_overlap() -> None:
    for fields in _core.layout().values():
        end = 0
        for offset, size in sorted(fields.values()):
            assert offset >= end
            end = offset + size


def test_document_names_the_version_and_the_sizes_of_this_layout() -> None:
    text = DOCUMENT.read_text()
    assert f"version is {_core.LAYOUT_MAJOR}.{_core.LAYOUT_MINOR}." in text
    assert f"| log | {_core.HEADER_BYTES} + capacity |" in text
    assert f"| ctl | {_core.HEADER_BYTES} + {_core.SLOT_BYTES} × slots |" in text
    assert _core.ctl_size_bytes(3) == _core.HEADER_BYTES + 3 * _core.SLOT_BYTES


def test_record_frame_is_as_documented() -> None:
    """The payload follows the header; the trailer is one more u32."""
    assert f"The payload follows at {_core.RECORD_HEADER_BYTES}," in DOCUMENT.read_text()
    assert _core.RECORD_OVERHEAD_BYTES == _core.RECORD_HEADER_BYTES + 4


def test_registry_gives_every_incarnation_that_a_slot_word_can_hold() -> None:
    """The registry is pure and cannot ask the core."""
    assert registry.INCARNATION_MAX == _core.INCARNATION_MAX
