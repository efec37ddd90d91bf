"""Programs in C that know nothing of shmd, compiled for the tests."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import IO, Final

HERE: Final = Path(__file__).parent


def compile_classic(name: str, directory: Path) -> Path:
    """The program tests/``name``.c, made in ``directory``."""
    program = directory / name
    subprocess.run(["gcc", "-Wall", "-Wextra", "-O2", "-o", program, HERE / f"{name}.c"], check=True)
    return program


class ClassicLock:
    """Runs ``classic_lock`` (see its source)."""

    def __init__(self, directory: Path) -> None:
        self.program = compile_classic("classic_lock", directory)

    def hold(self, key: int) -> subprocess.Popen[bytes]:
        """A process that holds the lock, until its input is closed or it is killed."""
        holder = subprocess.Popen(
            [self.program, "hold", str(key)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert _pipe(holder.stdout).readline() == b"held\n"
        return holder

    def start_counting(self, key: int, shmid: int, count: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([self.program, "count", str(key), str(shmid), str(count)])

    def set(self, key: int, value: int) -> None:
        """SETVAL. The set is made if it does not exist."""
        subprocess.run([self.program, "set", str(key), str(value)], check=True)


def end(holder: subprocess.Popen[bytes]) -> None:
    """Let a holder give the lock back, and wait for it."""
    _pipe(holder.stdin).close()
    _pipe(holder.stdout).close()
    holder.wait()


def kill(holder: subprocess.Popen[bytes]) -> None:
    """kill -9, and wait until it is dead."""
    holder.kill()
    end(holder)


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream
