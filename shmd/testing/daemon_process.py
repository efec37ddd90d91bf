"""A real daemon as a subprocess of the test: its start, its end, and what it may leave.

Readiness is the daemon's own word (``READY=1`` on a notify socket), never a guess at how long starting takes. A daemon
that a test killed leaves its segments to its successor; ``close`` removes them, so that one failure does not bring down
the tests after it, and says which they were.
"""

from __future__ import annotations

import contextlib
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
from typing import Final

from shmd.testing.resources import sysvipc

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
    _earlier_segments: frozenset[int] = field(repr=False)
    _ended_by_test: bool = field(default=False, repr=False)
    _killed: bool = field(default=False, repr=False)

    @classmethod
    def start(
        cls,
        *arguments: str,
        instance: str | None = None,
        runtime_dir: Path | None = None,
        timeout_s: float = START_TIMEOUT_S,
    ) -> DaemonProcess:
        """Start a daemon and wait until it is ready; ``arguments`` are further ones of ``shmd serve``.

        ``instance`` and ``runtime_dir`` default to fresh ones; give those of an earlier daemon to start its successor.
        ``DaemonFailed`` if it ends or is not ready within ``timeout_s`` seconds.
        """
        instance = instance or f"test-{secrets.token_hex(6)}"
        runtime_dir = runtime_dir or _short_temporary_directory()
        socket_path = str(runtime_dir / "control.sock")
        earlier = frozenset(int(row["shmid"]) for row in sysvipc("shm"))
        command = [sys.executable, "-m", "shmd", "serve", "--instance", instance]
        command += ["--runtime-dir", str(runtime_dir), "--socket", socket_path, *arguments]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, (runtime_dir / "log").open("ab") as log:
            notify.bind(str(runtime_dir / "notify"))
            environment = os.environ | {"NOTIFY_SOCKET": str(runtime_dir / "notify"), "PYTHONPATH": _python_path()}
            process = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
            daemon = cls(process, instance, runtime_dir, socket_path, earlier)
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
        """What the daemon wrote to standard output and standard error so far."""
        return (self.runtime_dir / "log").read_text(errors="replace")

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
        """Stop the daemon if it runs, and remove all that it left. Says what it removed that a killed daemon may leave.

        ``DaemonFailed`` if it ended without being told to, with an error, or left something though it was not killed.
        """
        status = self.process.poll()
        crashed = status is not None and not self._ended_by_test
        if status is None:
            status = self.stop()
        log = self.log
        leftovers = self.remove_leftovers()
        if crashed or (status != 0 and not self._killed):
            raise DaemonFailed(f"the daemon ended with status {status}; its log:\n{log}")
        if leftovers and not self._killed:
            raise DaemonFailed(f"the daemon left behind: {leftovers}; its log:\n{log}")
        return leftovers

    def remove_leftovers(self) -> str:
        """Remove what the ended daemon left: segments that it made, and its runtime directory. What that was."""
        import sysv_ipc

        found = []
        for row in sysvipc("shm"):
            shmid, creator = int(row["shmid"]), int(row["cpid"])
            if creator == self.pid and shmid not in self._earlier_segments:
                found.append(f"shmid {shmid}")
                with contextlib.suppress(sysv_ipc.Error):
                    sysv_ipc.remove_shared_memory(shmid)
        files = (path for path in self.runtime_dir.rglob("*") if not path.is_dir() and path.name not in ("log", "lock"))
        found += sorted(str(path.relative_to(self.runtime_dir)) for path in files)
        shutil.rmtree(self.runtime_dir, ignore_errors=True)
        return ", ".join(found)


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
