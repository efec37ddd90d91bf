"""The command ``shmd`` as a shell runs it: real processes, real pipes, against the test's own daemon."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

TIMEOUT_S = 60


@dataclass
class Shell:
    """Starts ``shmd`` commands; ``close`` kills those that still run."""

    socket_path: str
    environment: dict[str, str] = field(default_factory=dict)
    """Variables beside those of the test."""
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """A command with pipes for its three streams, unless ``options`` (of Popen) say otherwise."""
        environment = os.environ | {"SHMD_SOCKET": self.socket_path, "PYTHONUNBUFFERED": ""} | self.environment
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(
            [sys.executable, "-m", "shmd", *arguments], **{"env": environment, **pipes, **options}
        )
        self._processes.append(process)
        return process

    def run(self, *arguments: str, stdin: bytes = b"", status: int = 0) -> str:
        """Run a command to its end, which must be ``status``: its standard output, or its errors if that is not 0."""
        process = self.start(*arguments)
        output, errors = process.communicate(stdin, TIMEOUT_S)
        assert process.returncode == status, errors.decode()
        assert b"Traceback" not in errors
        if status:
            return errors.decode()
        assert errors == b""
        return output.decode()

    def publish(self, topic: str, *values: object, options: Iterable[str] = ()) -> None:
        self.run("pub", topic, *options, stdin=json_lines(values))

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):  # what a dead process never read
                        stream.close()


def json_lines(values: Iterable[object]) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def parse_lines(text: str | bytes) -> list[Any]:
    data = text.encode() if isinstance(text, str) else text
    return [json.loads(line) for line in data.splitlines()]  # a str's would also split at U+2028
