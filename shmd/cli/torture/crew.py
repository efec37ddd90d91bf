"""The torture's processes: a daemon, publishers and subscribers, and what is done to them.

All of them are started in sessions of their own, so that Ctrl-C reaches only who started them. A participant that was
killed is replaced by one under a new number; a daemon by another of the same instance.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

import shmd
from shmd.cli.torture.participant import Orders

Kind: TypeAlias = Literal["publisher", "subscriber", "daemon"]

SOCKET_NAME: Final = "control.sock"
READY: Final = "listening"
"""A daemon says so."""
_PACKAGE_PARENT: Final = str(Path(shmd.__file__).resolve().parent.parent)


@dataclass
class Member:
    """One process. ``stopped_ns``: since when it is stopped by us, CLOCK_REALTIME; None: it runs."""

    kind: Kind
    number: int
    process: subprocess.Popen[bytes]
    output: Path
    orders: Orders | None = None
    stopped_ns: int | None = None
    killed: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind} {self.number}"

    @property
    def ready(self) -> bool:
        """Whether it takes part in every topic (a participant only)."""
        return self.orders is not None and self.orders.ready_path.exists()

    def finish(self) -> None:
        """Tell a participant that it shall finish."""
        if self.process.stdin is not None:
            self.process.stdin.close()

    def last_words(self) -> str:
        return self.output.read_text(errors="replace").strip()


@dataclass
class Crew:
    """Starts, kills, stops and continues; ``close`` leaves no process behind."""

    directory: Path
    instance: str
    topics: tuple[str, ...]
    members: list[Member] = field(default_factory=list)
    """Those alive, as far as we know."""
    past: list[Member] = field(default_factory=list)
    kills: int = 0
    stops: list[tuple[Member, int, int]] = field(default_factory=list)
    """(who, begin, end) of every stop, CLOCK_REALTIME in ns."""
    _numbers: int = 0

    @property
    def socket_path(self) -> str:
        return str(self.directory / SOCKET_NAME)

    def of_kind(self, kind: Kind) -> list[Member]:
        return [member for member in self.members if member.kind == kind]

    def start(self, kind: Kind, *, count: int = 0, number: int | None = None) -> Member:
        """A new process. A participant with a ``count`` ends after so many values."""
        if number is None:
            self._numbers += 1
            number = self._numbers
        if kind == "daemon":
            orders, words = None, ["shmd", "serve", "--instance", self.instance]
            words += ["--runtime-dir", str(self.directory), "--socket", self.socket_path]
        else:
            orders = Orders(self.socket_path, number, self.directory, count, self.topics)
            words = [f"shmd.cli.torture.{kind}", *orders.words()]
        output = self.directory / f"{number}.out"
        with output.open("wb") as file:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
                [sys.executable, "-m", *words],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": _python_path()},
            )
        self.members.append(Member(kind, number, process, output, orders))
        return self.members[-1]

    def kill(self, *victims: Member) -> None:
        """SIGKILL, to all before any is waited for."""
        for victim in victims:
            victim.killed = True
            victim.process.kill()
            self.kills += 1
        for victim in victims:
            self.bury(victim)

    def stop(self, victim: Member) -> None:
        """SIGSTOP, until ``resume``."""
        if victim.stopped_ns is None:
            victim.stopped_ns = time.time_ns()
            victim.process.send_signal(signal.SIGSTOP)

    def resume(self, victim: Member) -> None:
        """SIGCONT, if it is stopped."""
        if victim.stopped_ns is not None:
            victim.process.send_signal(signal.SIGCONT)
            self._note_stop(victim)

    def end(self, victim: Member, timeout_s: float) -> str | None:
        """SIGTERM to a daemon, then wait for its end. What was wrong with that, or None."""
        starting = READY not in victim.last_words()
        victim.process.terminate()
        wrong = self.wait(victim, timeout_s)
        # Before it has a handler, the signal kills it.
        return None if starting and victim.process.returncode == -signal.SIGTERM else wrong

    def wait(self, member: Member, timeout_s: float) -> str | None:
        """Wait for a member to end by itself. What was wrong with that, or None."""
        try:
            status = member.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return f"{member.name} did not end within {timeout_s:g} s: {member.last_words()}"
        self.bury(member)
        return f"{member.name} ended with status {status}: {member.last_words()}" if status else None

    def deaths(self) -> list[Member]:
        """Members that ended though nobody told them to."""
        return [member for member in self.members if member.process.poll() is not None]

    def bury(self, member: Member) -> None:
        member.process.wait()
        member.finish()
        self._note_stop(member)
        self.members.remove(member)
        self.past.append(member)

    def close(self) -> None:
        for member in list(self.members):
            member.process.kill()
        for member in list(self.members):
            self.bury(member)

    def _note_stop(self, member: Member) -> None:
        if member.stopped_ns is not None:
            self.stops.append((member, member.stopped_ns, time.time_ns()))
            member.stopped_ns = None


def _python_path() -> str:
    """So that all are of the same shmd as this process, whatever their working directory."""
    return os.pathsep.join(filter(None, [_PACKAGE_PARENT, os.environ.get("PYTHONPATH")]))
