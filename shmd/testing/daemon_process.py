"""A real daemon as a subprocess of the test: its start, its end, and what it may leave.

Readiness is the daemon's own word (``READY=1`` on a notify socket), never a guess at how long starting takes. A daemon
that a test killed leaves its segments to its successor; ``close`` removes them, so that one failure does not bring down
the tests after it, and says which they were.
"""

from __future__ import annotations

import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shmd import inventory
from shmd.config import instance_id
from shmd.errors import UsageError

if TYPE_CHECKING:
    from shmd.inventory import Found

START_TIMEOUT_S: Final = 30.0
"""For a daemon to say that it is ready: it takes a fraction of a second, but machines that run tests are busy."""
STOP_TIMEOUT_S: Final = 30.0
"""For a daemon to end after SIGTERM, before it is killed and the test fails."""
SOCKET_PATH_BYTES_MAX: Final = 107
"""The kernel's limit on the path of a Unix socket, without its terminator."""

_PACKAGE_PARENT: Final = str(Path(__file__).resolve().parent.parent.parent)


class DaemonFailed(AssertionError):
    """A daemon under test did not start, ended by itself, or left something behind. The text includes its log."""


@dataclass
class DaemonProcess:
    """A ``python -m shmd serve`` subprocess. Made by ``start``, given back with ``close``."""

    process: subprocess.Popen[bytes]
    instance: str
    runtime_dir: Path
    socket_path: str
    ephemeral: bool = True
    _ended_by_test: bool = field(default=False, repr=False)
    _killed: bool = field(default=False, repr=False)

    @classmethod
    def start(
        cls,
        *arguments: str,
        instance: str | None = None,
        runtime_dir: Path | None = None,
        ephemeral: bool = True,
        timeout_s: float = START_TIMEOUT_S,
    ) -> DaemonProcess:
        """Start a daemon and wait until it is ready; ``arguments`` are further ones of ``shmd serve``.

        One that is not ``ephemeral`` leaves its topics to a successor when it is stopped, or else to ``close``.

        ``instance`` and ``runtime_dir`` default to fresh ones; give those of an earlier daemon to start its successor.
        ``DaemonFailed`` if it ends or is not ready within ``timeout_s`` seconds.
        """
        instance = instance or f"test-{secrets.token_hex(6)}"
        runtime_dir = runtime_dir or _short_temporary_directory()
        socket_path = str(runtime_dir / "control.sock")
        command = [sys.executable, "-m", "shmd", "serve", "--instance", instance]
        command += ["--runtime-dir", str(runtime_dir), "--socket", socket_path, *arguments]
        command += ["--ephemeral"] if ephemeral else []
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, (runtime_dir / "log").open("ab") as log:
            notify.bind(str(runtime_dir / "notify"))
            environment = os.environ | {"NOTIFY_SOCKET": str(runtime_dir / "notify"), "PYTHONPATH": _python_path()}
            process = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
            daemon = cls(process, instance, runtime_dir, socket_path, ephemeral)
            try:
                _wait_ready(process, notify, timeout_s)
            except BaseException as error:
                daemon.kill()
                if isinstance(error, DaemonFailed):
                    error.args = (f"{error}; its log:\n{daemon.log}",)
                daemon.remove_leftovers()
                raise
            finally:
                (runtime_dir / "notify").unlink(missing_ok=True)
        return daemon

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        """What the daemon, and others before it in this runtime directory, wrote so far; nothing once that is gone."""
        try:
            return (self.runtime_dir / "log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM, then wait. The exit status; ``DaemonFailed`` if it does not end within ``timeout_s`` seconds."""
        self._ended_by_test = True
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise DaemonFailed(f"the daemon did not end on SIGTERM; its log:\n{self.log}") from None

    def kill(self) -> None:
        """SIGKILL, then wait. Its segments stay for a successor, or for ``close``."""
        self._ended_by_test = self._killed = True
        self.process.kill()
        self.process.wait()

    def close(self) -> str:
        """Stop the daemon if it runs, and remove all that it left. Says what that was.

        ``DaemonFailed`` if it ended without being told to, with an error, or, ephemeral and not killed, left something.
        """
        status = self.process.poll()
        crashed = status is not None and not self._ended_by_test
        if status is None:
            status = self.stop()
        log = self.log
        leftovers = self.remove_leftovers()
        if crashed or (status != 0 and not self._killed):
            raise DaemonFailed(f"the daemon ended with status {status}; its log:\n{log}")
        if leftovers and self.ephemeral and not self._killed:
            raise DaemonFailed(f"the daemon left behind: {leftovers}; its log:\n{log}")
        return leftovers

    def remove_leftovers(self) -> str:
        """Remove what the ended daemon left: its instance's segments, and its runtime directory. What that was."""
        found = [f"shmid {segment.stat.id}" for segment in self._remove_segments()]
        files = (path for path in self.runtime_dir.rglob("*") if not path.is_dir() and path.name not in ("log", "lock"))
        found += sorted(str(path.relative_to(self.runtime_dir)) for path in (*files, *self.runtime_dir.rglob("fifo")))
        shutil.rmtree(self.runtime_dir, ignore_errors=True)
        return ", ".join(found)

    def _remove_segments(self) -> list[Found]:
        try:
            return inventory.remove_instance(instance_id(self.instance, os.getuid()))
        except UsageError:
            return []  # they are its running successor's


def _wait_ready(process: subprocess.Popen[bytes], notify: socket.socket, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    pidfd = os.pidfd_open(process.pid)
    try:
        while True:
            timeout = max(0.0, deadline - time.monotonic())
            readable, _, _ = select.select([notify.fileno(), pidfd], [], [], timeout)
            if notify.fileno() in readable and b"READY=1" in notify.recv(4096).split(b"\n"):
                return
            if pidfd in readable:
                raise DaemonFailed(f"the daemon ended with status {process.wait()} before it was ready")
            if not readable:
                raise DaemonFailed(f"the daemon was not ready after {timeout_s:g} s")
    finally:
        os.close(pidfd)


def _short_temporary_directory() -> Path:
    """A fresh directory whose sockets' paths the kernel accepts, also where TMPDIR is long."""
    directory = Path(tempfile.mkdtemp(prefix="shmd-"))
    if len(os.fsencode(directory / "control.sock")) > SOCKET_PATH_BYTES_MAX:
        directory.rmdir()
        directory = Path(tempfile.mkdtemp(prefix="shmd-", dir="/tmp"))
    return directory


def _python_path() -> str:
    """So that the daemon is of the same shmd as this process, whatever its working directory."""
    return os.pathsep.join(filter(None, [_PACKAGE_PARENT, os.environ.get("PYTHONPATH")]))
