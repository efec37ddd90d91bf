"""System V keys: 32 bits, which C has as a signed int and ``ipcs`` prints as an unsigned one.

Inside shmd, on the control socket and wherever one is shown, a key is what ``ipcs`` prints: from 0 (IPC_PRIVATE: none)
to 2³² - 1. C's negative ones are the upper half; ftok makes them of ids from 128 on.
"""

from __future__ import annotations

from typing import Final

KEY_MAX: Final = 2**32 - 1
CHOSEN_KEY_MAX: Final = 2**31 - 1
"""Of the keys that shmd itself chooses: those that are the same number in C."""


def is_key(number: object) -> bool:
    """Whether that can be a key, as C or as ``ipcs`` has it, that a segment is found by."""
    return type(number) is int and number != 0 and -(2**31) <= number <= KEY_MAX


def from_c(key: int) -> int:
    """A key as C or ``ipcs`` has it, as shmd has it."""
    return key & KEY_MAX


def to_c(key: int) -> int:
    """A key as shmd has it, as C has it."""
    return key - 2**32 if key > CHOSEN_KEY_MAX else key
