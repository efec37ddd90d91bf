"""A service manager played by a test: it takes notifications, keeps descriptors, and hands them to the next daemon."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

MESSAGE_BYTES = 4096
TIMEOUT_S = 60.0
"""Longer than any message takes."""
_LAUNCH = """
import os, sys
fds, names = [int(fd) for fd in sys.argv[1].split()], sys.argv[2]
for n, fd in enumerate(fds):
    os.dup2(fd, 1000 + n)
for n in range(len(fds)):
    os.dup2(1000 + n, 3 + n)
os.closerange(3 + len(fds), 2000)
variables = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": names}
os.execve(sys.executable, [sys.executable, "-m", "shmd", *sys.argv[3:]], os.environ | variables)
"""
"""Descriptors come from 3 on, and the variables name the process that they are for."""


class ServiceManager:
    """Its notify socket, and what was stored: (name, descriptor) in order. A context manager that closes all."""

    def __init__(self, directory: Path) -> None:
        self.address = os.fspath(directory / "manager")
        self.stored: list[tuple[str, int]] = []
        self.states: list[str] = []
        """Every other message, as it came."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.settimeout(TIMEOUT_S)

    def receive(self) -> str:
        """Wait for the next message, do what it asks for, and return it."""
        raw, fds, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, 8)
        message = raw.decode()
        fields = dict(line.split("=", 1) for line in message.splitlines())
        if "FDSTORE" in fields:
            self.stored += [(fields["FDNAME"], fd) for fd in fds]
        elif "FDSTOREREMOVE" in fields:
            self.drop(fields["FDNAME"])
        return message

    def receive_until(self, message: str) -> None:
        while not self.receive().startswith(message):
            pass

    def drop(self, name: str) -> None:
        for stored in [each for each in self.stored if each[0] == name]:
            self.stored.remove(stored)
            os.close(stored[1])

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Run ``shmd`` with these arguments and all that is stored, in the reverse order, as systemd does."""
        fds, names = [fd for _, fd in self.stored[::-1]], ":".join(name for name, _ in self.stored[::-1])
        command = [sys.executable, "-c", _LAUNCH, " ".join(map(str, fds)), names, *arguments]
        root = str(Path(__file__).parent.parent)
        environment = os.environ | {"NOTIFY_SOCKET": self.address, "PYTHONPATH": root}
        process = subprocess.Popen(command, env=environment, pass_fds=fds)
        self.receive_until("READY=1")
        return process

    def close(self) -> None:
        for name in {name for name, _ in self.stored}:
            self.drop(name)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()


def eventfd_id(fd: int) -> str:
    """What tells two eventfds apart, whatever their numbers."""
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return next(line for line in text.splitlines() if line.startswith("eventfd-id"))
