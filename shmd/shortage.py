"""What to say where memory will not do: the largest size that would fit, and what to do about it.

The limits are found out elsewhere (``sysv``: the kernel's; ``memory``: the cgroups' and the host's; ``registry``: the
daemon's own). For whoever asked for a topic only sizes count that a topic can have: a ``Wish`` says what was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shmd import units

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody asked for that takes memory.

    ``largest``: the largest size to ask for where its segment can have so many bytes; 0 if there is none.
    ``alternative``: what to use in place of memory, if there is something.
    """

    what: str
    largest: Callable[[int], int]
    alternative: str = ""


SEGMENT: Final = Wish("the segment", lambda room_bytes: max(0, room_bytes))
"""A segment of any size, by itself."""


def advice(wish: Wish, room_bytes: int, remedy: str) -> str:
    """The hint: what would fit where ``room_bytes`` are left, how to change that, and what else there is."""
    largest = wish.largest(room_bytes)
    fits = f"at most {_exact_size(largest)} fit" if largest else "no size fits"
    return f"{fits}; {remedy}" + (f"; or use {wish.alternative}" if wish.alternative else "")


def _exact_size(size_bytes: int) -> str:
    """As people write it, unless that rounds."""
    text = units.format_size(size_bytes)
    return text if units.parse_size(text) == size_bytes else f"{size_bytes} bytes"
