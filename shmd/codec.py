"""What a record's payload means: objects to bytes and back.

| codec     | `type` | packs                                   | unpacks to                                       |
|-----------|--------|-----------------------------------------|--------------------------------------------------|
| "msgpack" | None   | what msgpack knows, and aware datetimes | None bool int float str bytes list dict datetime |
| "msgpack" | a type | instances of it                         | an instance of it, checked field by field        |
| "raw"     | None   | any contiguous buffer, as it is         | bytes                                            |

Payloads come from other processes: whatever the bytes are, a record has a value or raises ``DecodeError``. Both
functions are the library's own where they can be, since another Python frame costs a fifth of a publish; so they
raise what the library raises, and ``Codec.refusal`` and ``Codec.explain`` turn that into an ``EncodeError`` or
``DecodeError``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgpack
import msgspec

from shmd.errors import DecodeError, EncodeError, InvalidOption

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from typing_extensions import Buffer

    T = TypeVar("T")

CodecName: TypeAlias = Literal["msgpack", "raw"]


@dataclass(frozen=True, slots=True)
class Codec:
    """One pair of functions, each of which may raise any ``Exception``, and what to raise instead of it.

    Apart, so that both functions can be C's own, with no Python frame around each record.
    """

    encode: Callable[[Any], Buffer]
    decode: Callable[[bytes], Any]
    expected: str = "bytes"
    """What a payload should be, for ``explain``."""

    def explain(self, payload: bytes, error: Exception) -> DecodeError:
        """What to raise when ``decode(payload)`` raised ``error``."""
        return DecodeError(f"a payload of {len(payload)} bytes is not {self.expected}: {_reason(error)}")

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
    # One packer for the codec's life: it keeps its buffer, and empties it by itself after an error. What msgpack packs
    # msgspec unpacks in half of msgpack's own time; a test holds the two together over all values.
    pack = msgpack.Packer(datetime=True, use_bin_type=True, autoreset=True).pack
    return Codec(pack, msgspec.msgpack.Decoder(ext_hook=_extension).decode, "a msgpack value")


def _extension(code: int, data: memoryview) -> msgpack.ExtType:
    return msgpack.ExtType(code, bytes(data))


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

    return Codec(encode, decode_checked, name)


def _encode_raw(value: Buffer) -> Buffer:
    return value if type(value) is bytes else memoryview(value).cast("B")


def _reason(error: Exception) -> str:
    # Some of msgpack's errors have no text.
    return str(error) or type(error).__name__
