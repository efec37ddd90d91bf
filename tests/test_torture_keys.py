"""The keys of ``shmd torture``: a real process at a real terminal."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING

import pytest

from shmd.cli.torture.keys import ACTS
from shmd.cli.torture.view import ACTS_SHOWN
from tests.shell import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Iterator


class Terminal:
    """``shmd torture`` at a terminal of its own: what it shows, and keys that somebody presses."""

    def __init__(self) -> None:
        self.fd, other = os.openpty()
        self.settings = termios.tcgetattr(other)
        self.shown = ""
        self._other = other
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shmd", "torture", "--duration", "1h", "--seed", "5"],
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "200", "LINES": "50"},
        )

    def press(self, key: str) -> None:
        os.write(self.fd, key.encode())

    def await_text(self, pattern: str) -> str:
        """Wait until it has shown this since the last time; what it was."""
        until = time.monotonic() + TIMEOUT_S
        while (found := re.search(pattern, self.shown)) is None:
            assert select.select([self.fd], [], [], until - time.monotonic())[0], self.shown[-2000:]
            self.shown += os.read(self.fd, 65_536).decode(errors="replace")
        self.shown = self.shown[found.end() :]
        return found[0]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()  # it kills its own before it goes
            while self.process.poll() is None:
                if select.select([self.fd], [], [], 0.05)[0]:
                    os.read(self.fd, 65_536)
        os.close(self.fd)
        os.close(self._other)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


def test_torture_kills_whom_the_pressed_key_names(terminal: Terminal) -> None:
    terminal.await_text("press d p s a to kill")
    for key, act in ACTS.items():
        terminal.press("x" + key * ACTS_SHOWN)  # x means nothing
        terminal.await_text("last: " + ", ".join([act] * ACTS_SHOWN))  # which chance alone does not draw for all four
    terminal.process.send_signal(signal.SIGINT)
    terminal.await_text(r"\d+ kills, 0 lost, 0 torn, 0 leaked")
    while terminal.process.poll() is None:
        if select.select([terminal.fd], [], [], 0.05)[0]:
            terminal.shown += os.read(terminal.fd, 65_536).decode(errors="replace")
    assert terminal.process.returncode == 0, terminal.shown
    assert termios.tcgetattr(terminal._other) == terminal.settings
