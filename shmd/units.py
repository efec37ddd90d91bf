"""Sizes and times as people write them: ``"16MiB"`` to bytes, ``"500ms"`` to seconds, and back for messages."""

from __future__ import annotations

import math
import re
from typing import Final

from shmd.errors import InvalidOption

_NUMBER: Final = r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*"
_SIZE: Final = re.compile(_NUMBER + r"([KMGT]i?B?|B)?\s*", re.IGNORECASE | re.ASCII)
_TIME: Final = re.compile(_NUMBER + r"(ms|us|s|m|min|h|d)?\s*", re.IGNORECASE | re.ASCII)
_POWERS: Final = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DECIMAL: Final = {"KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000, "TB": 1_000_000_000_000}
_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str | int) -> int:
    """Bytes from ``65536``, ``"64KiB"``, ``"64K"`` (binary) or ``"64kB"`` (decimal). ``InvalidOption`` otherwise."""
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise InvalidOption(f"a size cannot be {text}", 'write it like 65536 or "64KiB"')
        return text
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise InvalidOption(f"{text!r} is not a size", 'write it like 65536 or "64KiB"')
    unit = (match[2] or "").upper()
    factor = _DECIMAL.get(unit) or _POWERS[unit.removesuffix("B").removesuffix("I")]
    return int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


def parse_time(text: str | float) -> float:
    """Seconds from ``2.5``, ``"500ms"``, ``"10s"``, ``"5m"``. ``InvalidOption`` otherwise."""
    if isinstance(text, int | float) and not isinstance(text, bool) and 0 <= text < math.inf:
        return float(text)
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise InvalidOption(f"{text!r} is not a time", 'write it like 2.5 or "500ms"')
    return float(match[1]) * _SECONDS[(match[2] or "").lower()]


def format_size(size_bytes: int) -> str:
    """``16777216`` as ``"16 MiB"``; three significant digits."""
    value, unit = float(size_bytes), "B"
    for bigger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, bigger
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
