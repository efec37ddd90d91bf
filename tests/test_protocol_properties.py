"""Any bytes give a message or the protocol error, nothing else; and every message survives its way."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shmd import protocol
from shmd.errors import ProtocolError

REQUESTS: tuple[type[Any], ...] = get_args(protocol.Request)
OUTBOUND: tuple[type[Any], ...] = (*get_args(protocol.Reply), *get_args(protocol.Event))

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
field_names = st.sampled_from(sorted({name for message in REQUESTS + OUTBOUND for name in message.__struct_fields__}))
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(field_names | st.text(max_size=8), inner, max_size=6),
    max_leaves=20,
)
tags = st.sampled_from([message.__struct_config__.tag for message in REQUESTS + OUTBOUND])
nearly_messages = st.builds(lambda tag, fields: {"type": tag, **fields}, tags, st.dictionaries(field_names, trees))


def _for_type(annotation: msgspec.inspect.Type) -> st.SearchStrategy[Any]:
    """Values that the field's type allows, from what msgspec itself knows of it."""
    match annotation:
        case msgspec.inspect.IntType(gt, ge, lt, le):
            lowest = ge if ge is not None else -(2**63) if gt is None else gt + 1
            highest = le if le is not None else 2**64 - 1 if lt is None else lt - 1
            return st.integers(lowest, highest)
        case msgspec.inspect.FloatType(gt, ge, lt, le):
            return st.floats(gt if ge is None else ge, lt if le is None else le, exclude_min=gt is not None)
        case msgspec.inspect.StrType(shortest, longest):
            return st.text(
                st.characters(exclude_categories=["Cs"]), min_size=shortest or 0, max_size=min(longest or 30, 30)
            )
        case msgspec.inspect.BytesType(shortest, longest):
            return st.binary(min_size=shortest or 0, max_size=longest if longest is not None else 30)
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.LiteralType(values):
            return st.sampled_from(values)
        case msgspec.inspect.UnionType(types):
            return st.one_of([_for_type(each) for each in types])
        case msgspec.inspect.VarTupleType(item):
            return st.lists(_for_type(item), max_size=3).map(tuple)
        case msgspec.inspect.StructType(struct):
            return _for_struct(struct)
        case msgspec.inspect.Metadata(inner):
            return _for_type(inner)
    raise NotImplementedError(annotation)


def _for_struct(struct: type[Any]) -> st.SearchStrategy[Any]:
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    return st.builds(struct, **{field.name: _for_type(field.type) for field in info.fields})


def _decodes_or_refuses(raw: bytes) -> None:
    for decode, types in ((protocol.decode_request, REQUESTS), (protocol.decode_reply, OUTBOUND)):
        try:
            message = decode(raw)
        except ProtocolError as error:
            protocol.encode(protocol.refusal(0, error))
        else:
            assert isinstance(message, types)


@given(st.binary(max_size=300))
@example(b"\xc1")
@example(b"\x81\xa4type")
def test_any_bytes_give_a_message_or_the_protocol_error(raw: bytes) -> None:
    _decodes_or_refuses(raw)


@given(trees)
def test_any_msgpack_gives_a_message_or_the_protocol_error(tree: Any) -> None:
    _decodes_or_refuses(msgspec.msgpack.encode(tree))


@given(nearly_messages)
def test_any_nearly_right_map_gives_a_message_or_the_protocol_error(fields: dict[str, Any]) -> None:
    _decodes_or_refuses(msgspec.msgpack.encode(fields))


@given(st.data())
def test_any_damaged_message_gives_a_message_or_the_protocol_error(data: st.DataObject) -> None:
    raw = bytearray(protocol.encode(data.draw(_for_struct(data.draw(st.sampled_from(REQUESTS + OUTBOUND))))))
    for _ in range(data.draw(st.integers(1, 4))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    _decodes_or_refuses(bytes(raw[: data.draw(st.integers(0, len(raw)))]))


@given(st.sampled_from([b"\x91", b"\x81\xa1a", b"\x81\xa7options", b"\xdc\x00\x01"]), st.integers(1, 16_000))
def test_any_depth_gives_a_message_or_the_protocol_error(nest: bytes, depth: int) -> None:
    _decodes_or_refuses(nest * depth)
    _decodes_or_refuses(nest * depth + b"\xc0")


@pytest.mark.parametrize("message_type", REQUESTS)
@given(data=st.data())
def test_request_survives_its_way(message_type: type[Any], data: st.DataObject) -> None:
    message = data.draw(_for_struct(message_type))
    assert protocol.decode_request(protocol.encode(message)) == message


@pytest.mark.parametrize("message_type", OUTBOUND)
@given(data=st.data())
def test_reply_survives_its_way(message_type: type[Any], data: st.DataObject) -> None:
    message = data.draw(_for_struct(message_type))
    assert protocol.decode_reply(protocol.encode(message)) == message
