"""C programs on the installed C library, compiled with sanitizers: a leak or a stray access ends them with an error."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

ROOT: Final = Path(__file__).parent.parent
SANITIZERS: Final = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
STRICT: Final = "-std=c11 -D_DEFAULT_SOURCE -Wall -Wextra -Wconversion -Werror"


def run(*command: str | os.PathLike[str], **environment: str) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(command, env=os.environ | environment, text=True, stdout=-1, stderr=subprocess.STDOUT)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def install_library(prefix: Path, **variables: str) -> None:
    """``make -C csrc install`` into ``prefix``."""
    settings = {"PREFIX": str(prefix), "OUT": str(prefix / "build"), **variables}
    run("make", "-s", "-C", ROOT / "csrc", "install", *(f"{name}={value}" for name, value in settings.items()))


def failure(number: int) -> str:
    """How ``drive.c`` answers with this errno."""
    return str(-number)


@dataclass(frozen=True)
class CPrograms:
    """The library, the examples and ``tests/c/drive.c``, under ``directory``."""

    directory: Path

    @classmethod
    def make(cls, directory: Path) -> Self:
        programs = cls(directory)
        install_library(directory / "prefix", CFLAGS=f"{SANITIZERS} -Werror")
        run("make", "-s", "-C", ROOT / "examples" / "c", f"OUT={directory}", f"CFLAGS={SANITIZERS} -Werror",
            f"TREE={directory / 'prefix'}", "INSTALLED=no")  # fmt: skip
        include, library = directory / "prefix" / "include", directory / "prefix" / "lib" / "libshmd.a"
        drive = ROOT / "tests" / "c" / "drive.c"
        flags = f"{STRICT} {SANITIZERS}".split()
        run("cc", *flags, f"-I{include}", drive, library, "-pthread", "-o", programs["drive"])
        return programs

    def __getitem__(self, name: str) -> Path:
        return self.directory / name

    def start(self, name: str, *arguments: str | os.PathLike[str], socket_path: str = "") -> Program:
        return Program(self[name], *arguments, socket_path=socket_path)

    def drive(self, socket_path: str, *, expected: str = "0") -> Program:
        """A connected ``drive``."""
        program = self.start("drive")
        program.ask(f"connect {socket_path}", expected)
        return program


class Program:
    """A running C program. ``end`` it: it must succeed, unless the test killed it."""

    def __init__(self, *command: str | os.PathLike[str], socket_path: str = "") -> None:
        environment = os.environ | {"SHMD_SOCKET": socket_path}
        self.process = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True, bufsize=1, env=environment)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input, self._output = self.process.stdin, self.process.stdout

    def line(self) -> str:
        """The next line of its output; "" at its end."""
        return self._output.readline().rstrip("\n")

    def say(self, line: str) -> None:
        self._input.write(line + "\n")

    def ask(self, line: str, expected: str | None = None) -> str:
        """What ``drive`` answers. Must begin with the word ``expected``."""
        self.say(line)
        answer = self.line()
        if expected is not None:
            assert answer.split(maxsplit=1)[:1] == [expected], f"{line}: {answer or self.end()}"
        return answer

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is dead."""
        self.process.kill()
        self.process.communicate()

    def end(self, status: int = 0) -> str:
        """Close its input and wait for it; what else it said. ``AssertionError`` if it ended with another status."""
        output, errors = self.process.communicate()
        assert self.process.returncode == status, f"status {self.process.returncode}\n{output}\n{errors}"
        return output + errors

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        if error is not None:
            self.kill()
        elif self.process.returncode is None:
            self.end()
