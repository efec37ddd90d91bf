"""What the torture publishes: values of many sizes that say who published them, and whether they are whole."""

from __future__ import annotations

import struct
import zlib
from typing import Final

from shmd.cli.torture.history import Value

FINISHER: Final = 0
"""The writer whose value is the last on its topic."""
_HEAD: Final = struct.Struct("<IIQ")
_FILLER: Final = bytes(range(256)) * 3
_FILLER_MAX: Final = 400
_STRIDE: Final = 7919
"""A prime, so that lengths that follow each other have nothing in common."""


def pack(value: Value) -> bytes:
    """The payload that stands for ``value``."""
    filler = _FILLER[value.n % 256 :][: (value.n + value.writer) * _STRIDE % _FILLER_MAX]
    return _HEAD.pack(_checksum(value, filler), value.writer, value.n) + filler


def unpack(payload: bytes) -> Value | None:
    """The value that ``payload`` stands for; None if it was torn."""
    if len(payload) < _HEAD.size:
        return None
    checksum, *fields = _HEAD.unpack_from(payload)
    value = Value(*fields)
    return value if checksum == _checksum(value, payload[_HEAD.size :]) else None


def _checksum(value: Value, filler: bytes) -> int:
    return zlib.crc32(filler, zlib.crc32(struct.pack("<IQ", *value)))
