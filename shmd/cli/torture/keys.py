"""Single keys from a terminal, without waiting for them."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmd.cli.torture.chaos import Act

ACTS: Final[dict[str, Act]] = {
    "d": "kill daemon",
    "p": "kill publisher",
    "s": "kill subscriber",
    "a": "kill all",
}


class Keys:
    """What is pressed. Nothing, where standard input is no terminal."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    @classmethod
    @contextlib.contextmanager
    def of_terminal(cls) -> Iterator[Keys]:
        """Keys of standard input, one by one and without echo, until the block ends."""
        if sys.stdin is None or not sys.stdin.isatty():
            yield cls(None)
            return
        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd)
        try:
            tty.setcbreak(fd)
            yield cls(fd)
        finally:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)

    def pressed(self) -> list[Act]:
        """What the keys pressed since the last look mean; others mean nothing."""
        acts: list[Act] = []
        while self._fd is not None and select.select([self._fd], [], [], 0)[0]:
            data = os.read(self._fd, 64)
            if not data:  # the terminal is gone
                self._fd = None
            acts += [ACTS[key] for key in data.decode("ascii", "ignore") if key in ACTS]
        return acts
