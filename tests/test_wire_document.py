"""docs/wire-protocol.md describes every message, field, type, bound, error code and limit of the control protocol."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any, Final, get_args, get_origin

import msgspec
import pytest

from shmd import errors, limits, messages, protocol
from shmd.messages import words

DOCUMENT: Final = (Path(__file__).parent.parent / "docs" / "wire-protocol.md").read_text()
SECTION: Final = re.compile(r"^### `([\w-]+)`[^\n]*\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
ROW: Final = re.compile(r"^\| `(\w+)` \| ([^|]+?) \| ([^|]+?) \|", re.MULTILINE)
CODE_ROW: Final = re.compile(r"^\| `([\w-]+)` \| `(\w+)` \|", re.MULTILINE)
LIMIT_ROW: Final = re.compile(r"^\| `([A-Z_]+)` \| ([\d.]+) \|", re.MULTILINE)

TYPES: Final = [name for name, value in vars(messages).items() if isinstance(value, type)]
NAMED: Final = {
    "id": words.RequestId,
    "name": words.TopicName,
    "client name": words.ClientName,
    "u32": words.U32,
    "u63": words.U63,
    "mode": words.Mode,
    "seconds": words.Seconds,
    "id16": words.Id16,
    "fds": words.Descriptors,
}


def type_text(annotation: Any) -> str:
    """How the document writes this type."""
    for name, named in NAMED.items():
        if annotation == named:
            return name
    if get_origin(annotation) is typing.Annotated:
        base, meta = get_args(annotation)[:2]
        bounds = {key: getattr(meta, key) for key in ("ge", "le", "lt", "max_length") if getattr(meta, key) is not None}
        return f"{base.__name__} " + ", ".join(f"{key} {value}" for key, value in bounds.items())
    if get_origin(annotation) is tuple:
        return f"array of {type_text(get_args(annotation)[0])}"
    if get_origin(annotation) is typing.Literal:
        return " or ".join(f'"{word}"' for word in get_args(annotation))
    if type(None) in get_args(annotation):
        rest = [arm for arm in get_args(annotation) if arm is not type(None)]
        assert len(rest) == 1
        return f"{type_text(rest[0])} or nil"
    if issubclass(annotation, msgspec.Struct):
        return f"map `{annotation.__name__}`"
    return str(annotation.__name__)


def default_text(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    if isinstance(default, msgspec.Struct):
        return "`{}`"
    if default is None or isinstance(default, bool):
        return f"`{ {None: 'nil', True: 'true', False: 'false'}[default] }`"
    return f'`"{default}"`' if isinstance(default, str) else f"`{default}`"


def rows_of(message: type[msgspec.Struct]) -> list[tuple[str, str, str]]:
    return [(field.name, type_text(field.type), default_text(field)) for field in fields_of(message)]


def fields_of(message: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    hints = typing.get_type_hints(message, include_extras=True)
    return tuple(
        msgspec.structs.FieldInfo(
            name=field.name,
            encode_name=field.encode_name,
            type=hints[field.name],
            default=field.default,
            default_factory=field.default_factory,
        )
        for field in msgspec.structs.fields(message)
    )


def heading_of(message: type[msgspec.Struct]) -> str:
    """A message goes by its type on the wire, a part of one by its class."""
    return str(message.__struct_config__.tag or message.__name__)


def documented() -> dict[str, list[tuple[str, str, str]]]:
    return {heading: ROW.findall(body) for heading, body in SECTION.findall(DOCUMENT)}


@pytest.mark.parametrize("name", TYPES)
def test_document_describes_every_field_of_every_message(name: str) -> None:
    message = getattr(messages, name)
    assert documented()[heading_of(message)] == rows_of(message)


def test_document_describes_no_message_that_is_not() -> None:
    headings = [heading for heading, _ in SECTION.findall(DOCUMENT)]
    assert sorted(headings) == sorted(heading_of(getattr(messages, name)) for name in TYPES)


def test_document_gives_every_error_code_its_class() -> None:
    codes = CODE_ROW.findall(DOCUMENT)
    assert codes
    assert [(code, getattr(errors, name).code) for code, name in codes] == [(code, code) for code, _ in codes]
    refusals = {cls.code for cls in errors.RequestRefused.__subclasses__()} | {errors.RequestRefused.code}
    assert refusals <= {code for code, _ in codes}, "all that a daemon refuses with"


def test_document_gives_limits_as_they_are() -> None:
    rows = LIMIT_ROW.findall(DOCUMENT)
    assert rows
    assert {name: float(value) for name, value in rows} == {name: float(getattr(limits, name)) for name, _ in rows}


def test_document_tells_the_version() -> None:
    assert f"version is {protocol.VERSION_MAJOR}.{protocol.VERSION_MINOR}." in DOCUMENT
