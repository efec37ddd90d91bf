"""What a record's payload means: objects to bytes and back.

| codec     | `type` | packs                                   | unpacks to                                       |
|-----------|--------|-----------------------------------------|--------------------------------------------------|
| "msgpack" | None   | what msgpack knows, and aware datetimes | None bool int float str bytes list dict datetime |
| "msgpack" | a type | instances of it                         | an instance of it, checked field by field        |
| "raw"     | None   | any contiguous buffer, as it is         | bytes                                            |

Payloads come from other processes: whatever the bytes are, ``decode`` gives a value or raises ``DecodeError``.
``encode`` is the library's own bound method where it can be, since another Python frame costs a fifth of a publish; so
it raises what the library raises, and the publisher asks ``Codec.refusal`` to turn that into an ``EncodeError``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgpack
import msgspec

from shmd.errors import DecodeError, EncodeError, InvalidOption

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from typing_extensions import Buffer

    T = TypeVar("T")

CodecName: TypeAlias = Literal["msgpack", "raw"]
_TIMESTAMPS_AS_DATETIME: Final = 3


@dataclass(frozen=True, slots=True)
class Codec:
    """One pair of functions. ``encode`` may raise any ``Exception``; ``decode`` only ``DecodeError``."""

    encode: Callable[[Any], Buffer]
    decode: Callable[[bytes], Any]

    @staticmethod
    def refusal(value: object, error: Exception) -> EncodeError:
        """What to raise when ``encode(value)`` raised ``error``."""
        if isinstance(error, EncodeError):
            return error
        return EncodeError(f"a {type(value).__qualname__} cannot be packed: {_reason(error)}")


def make_codec(codec: CodecName = "msgpack", type: type[Any] | None = None) -> Codec:
    """The codec of that name, for objects of ``type`` if one is given. ``InvalidOption`` if there is none."""
    if codec == "msgpack":
        return _make_msgpack() if type is None else _make_typed(type)
    if codec != "raw":
        raise InvalidOption(f"there is no codec {codec!r}", 'use "msgpack" or "raw"')
    if type is not None:
        raise InvalidOption('type= goes with codec="msgpack" only', "a raw record is bytes: leave out one of the two")
    return Codec(_encode_raw, bytes)


def _make_msgpack() -> Codec:
    # One packer for the codec's life: it keeps its buffer, and empties it by itself after an error.
    return Codec(msgpack.Packer(datetime=True, use_bin_type=True, autoreset=True).pack, _decode_msgpack)


def _decode_msgpack(payload: bytes) -> Any:
    # unpackb checks for bytes that follow, which costs a kept Unpacker more than unpackb costs over it.
    try:
        return msgpack.unpackb(payload, timestamp=_TIMESTAMPS_AS_DATETIME, strict_map_key=False)
    except Exception as error:
        raise _no_value(payload, "a msgpack value", error) from error


def _make_typed(kind: type[T]) -> Codec:
    try:
        isinstance(None, kind)
        decode_checked = msgspec.msgpack.Decoder(kind).decode
    except TypeError as error:
        raise InvalidOption(
            f"records cannot be of type {kind!r}: {error}",
            "use a msgspec.Struct class, a dataclass, or a union of tagged ones",
        ) from error
    encode_any = msgspec.msgpack.Encoder().encode
    name = getattr(kind, "__qualname__", str(kind))

    def encode(value: T) -> bytes:
        if not isinstance(value, kind):
            raise EncodeError(f"a {type(value).__qualname__} cannot be published where records are of type {name}")
        return encode_any(value)

    def decode(payload: bytes) -> T:
        try:
            return decode_checked(payload)
        except Exception as error:
            raise _no_value(payload, name, error) from error

    return Codec(encode, decode)


def _encode_raw(value: Buffer) -> Buffer:
    return value if type(value) is bytes else memoryview(value).cast("B")


def _no_value(payload: bytes, expected: str, error: Exception) -> DecodeError:
    return DecodeError(f"a payload of {len(payload)} bytes is not {expected}: {_reason(error)}")


def _reason(error: Exception) -> str:
    # Some of msgpack's errors have no text, and one has the rest of the payload.
    if isinstance(error, msgpack.ExtraData):
        return f"{len(error.extra)} bytes follow it"
    return str(error) or type(error).__name__
