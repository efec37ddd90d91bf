"""The codec: what goes in comes out, and whatever the bytes are, a value or DecodeError."""

from __future__ import annotations

import array
import contextlib
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmd.codec import Codec, make_codec
from shmd.errors import DecodeError, EncodeError, InvalidOption


class Price(msgspec.Struct):
    symbol: str
    price: float


class Tick(msgspec.Struct, tag=True):
    count: int


class Stop(msgspec.Struct, tag=True):
    reason: str


@dataclass
class Point:
    x: int
    y: int


def decode(codec: Codec, payload: bytes) -> Any:
    """As ``Record.value`` does it."""
    try:
        return codec.decode(payload)
    except Exception as error:
        raise codec.explain(payload, error) from error


def encode(codec: Codec, value: object) -> bytes:
    """As a publisher does it: the library's own errors become EncodeError."""
    try:
        return bytes(codec.encode(value))
    except Exception as error:
        raise codec.refusal(value, error) from error


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.just(UTC))
)
keys = st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary() | st.booleans()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=30)


@given(values)
def test_msgpack_gives_back_any_value_that_it_takes(value: object) -> None:
    codec = make_codec()
    assert decode(codec, encode(codec, value)) == value


@given(st.binary())
def test_msgpack_decodes_any_bytes_to_a_value_or_decode_error(payload: bytes) -> None:
    for codec in (make_codec(), make_codec(type=Price), make_codec(type=Point)):
        with contextlib.suppress(DecodeError):
            decode(codec, payload)


@given(values, st.data())
def test_msgpack_refuses_every_truncated_payload(value: object, data: st.DataObject) -> None:
    codec = make_codec()
    payload = encode(codec, value)
    cut = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(DecodeError):
        decode(codec, payload[:cut])


@given(values, st.binary(min_size=1))
def test_msgpack_refuses_bytes_after_the_value(value: object, rest: bytes) -> None:
    codec = make_codec()
    payload = encode(codec, value)
    with pytest.raises(DecodeError, match="trailing"):
        decode(codec, payload + rest)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"\xdd\xff\xff\xff\xff", id="array of 4 G"),
        pytest.param(b"\xdf\xff\xff\xff\xff\x01\x01", id="map of 4 G"),
        pytest.param(b"\xc6\xff\xff\xff\xff", id="bytes of 4 GiB"),
        pytest.param(b"\xc9\xff\xff\xff\xff\x01", id="extension of 4 GiB"),
        pytest.param(b"\x91" * 100_000 + b"\x01", id="nested 100,000 deep"),
        pytest.param(b"\x81" * 100_000, id="keys nested 100,000 deep"),
        pytest.param(b"\x81\x81\x01\x01\x01", id="key that cannot be one"),
        pytest.param(b"\xc1", id="reserved"),
        pytest.param(b"\xa2\xff\xfe", id="text that is none"),
        pytest.param(b"\xc7\x0c\xff" + b"\xff" * 12, id="time that is none"),
        pytest.param(b"\xd7\xff" + b"\xff" * 8, id="nanoseconds over a second"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_msgpack_refuses_hostile_payload_and_then_works_on(payload: bytes) -> None:
    codec = make_codec()
    with pytest.raises(DecodeError):
        decode(codec, payload)
    assert decode(codec, b"\x2a") == 42


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(2**64, id="65 bits"),
        pytest.param(-(2**63) - 1, id="65 bits, negative"),
        pytest.param({1, 2}, id="set"),
        pytest.param(object(), id="object"),
        pytest.param("\ud800", id="surrogate"),
        pytest.param(datetime(2024, 1, 1), id="naive datetime"),
        pytest.param(_nested(5000), id="nested 5,000 deep"),
        pytest.param([1, {"a": object()}], id="object inside"),
    ],
)
def test_msgpack_refuses_value_and_packs_the_next_one_whole(value: object) -> None:
    codec = make_codec()
    with pytest.raises(EncodeError, match=f"a {type(value).__name__} cannot be packed: ."):
        encode(codec, value)
    assert decode(codec, encode(codec, [1, 2])) == [1, 2]


def test_msgpack_keeps_nan_and_infinity() -> None:
    codec = make_codec()
    assert math.isnan(decode(codec, encode(codec, math.nan)))
    assert decode(codec, encode(codec, [math.inf, -math.inf])) == [math.inf, -math.inf]


def test_msgpack_keeps_extension_types() -> None:
    codec = make_codec()
    value = msgpack.ExtType(5, b"five")
    assert decode(codec, encode(codec, value)) == value


def test_msgpack_gives_aware_datetimes_in_utc() -> None:
    codec = make_codec()
    moment = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=timezone(timedelta(hours=2)))
    decoded = decode(codec, encode(codec, moment))
    assert decoded == moment
    assert decoded.utcoffset() == timedelta(0)


@given(st.builds(Price, st.text(), st.floats(allow_nan=False)))
def test_typed_gives_back_instances(price: Price) -> None:
    codec = make_codec(type=Price)
    assert decode(codec, encode(codec, price)) == price


def test_typed_takes_dataclasses_and_unions() -> None:
    points, events = make_codec(type=Point), make_codec(type=Tick | Stop)  # type: ignore[arg-type]
    assert decode(points, encode(points, Point(1, 2))) == Point(1, 2)
    assert [decode(events, encode(events, event)) for event in (Tick(3), Stop("end"))] == [Tick(3), Stop("end")]


def test_typed_refuses_to_pack_what_is_of_another_type() -> None:
    with pytest.raises(EncodeError, match="a dict cannot be published where records are of type Price"):
        encode(make_codec(type=Price), {"symbol": "ABCD", "price": 1.0})


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"symbol": "ABCD"}, "price"),
        ({"symbol": "ABCD", "price": "1.0"}, "price"),
        ({"symbol": 5, "price": 1.0}, "symbol"),
        ([1, 2], "object"),
    ],
)
def test_typed_refuses_payload_and_names_the_field(value: object, why: str) -> None:
    plain, typed = make_codec(), make_codec(type=Price)
    with pytest.raises(DecodeError, match=why):
        decode(typed, encode(plain, value))


def test_typed_packs_what_untyped_readers_understand() -> None:
    assert decode(make_codec(), encode(make_codec(type=Price), Price("ABCD", 1.5))) == {"symbol": "ABCD", "price": 1.5}


@given(st.binary())
def test_raw_passes_bytes_through(payload: bytes) -> None:
    codec = make_codec("raw")
    for form in (payload, bytearray(payload), memoryview(payload)):
        assert decode(codec, encode(codec, form)) == payload


def test_raw_takes_arrays_of_items() -> None:
    numbers = array.array("d", [1.0, 2.0])
    assert encode(make_codec("raw"), numbers) == numbers.tobytes()


@pytest.mark.parametrize("value", ["text", 5, None, [1], memoryview(b"abcd")[::2]])
def test_raw_refuses_what_is_no_contiguous_buffer(value: object) -> None:
    with pytest.raises(EncodeError):
        encode(make_codec("raw"), value)


@pytest.mark.parametrize("kind", [list[int], 5, "Price", lambda: 0])
def test_make_codec_refuses_what_is_no_type_of_records(kind: Any) -> None:
    with pytest.raises(InvalidOption, match="records cannot be of type"):
        make_codec(type=kind)


def test_make_codec_refuses_unknown_codec_and_raw_with_type() -> None:
    with pytest.raises(InvalidOption, match="there is no codec 'json'"):
        make_codec("json")  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="type= goes with"):
        make_codec("raw", Price)
