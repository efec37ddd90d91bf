"""The exit statuses of commands; the table of them is in ``shmd.cli``."""

from __future__ import annotations

import os
from typing import Final

EXIT_FAILED: Final = 1
EXIT_UNAVAILABLE: Final = os.EX_UNAVAILABLE
EXIT_SIGNAL: Final = 128
"""Plus the signal's number: the exit status of a command that a signal ended."""


class Interrupted(Exception):
    """A signal ended the command; it has cleaned up."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal = signal_number
