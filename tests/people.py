"""Other users of the host, and the system's daemon under a user of its own, for tests of who can do what to whom.

Each acts in a forked child: forked, not executed, since a stranger may not read the directory that Python lies in.
Needs root (``children.needs_root``), and ``may_block``: a daemon that starts may. The ids belong to nobody in the user
database.

    with SystemDaemon.start() as daemon, acting(CAROL, lambda say: flood(daemon.socket_path, say)) as carol:
        assert carol.hear() == "flooding"
        assert as_person(BOB, lambda: ask(daemon.socket_path)) == "answered"
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import secrets
import shutil
import signal
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from shmd import inventory
from shmd.config import DaemonConfig, instance_id
from shmd.daemon import Daemon
from tests.children import in_child, load_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from typing import Self

T = TypeVar("T")

HEAR_TIMEOUT_S = 60.0
"""How long a test waits for another process to say something, before that counts as a failure."""


@dataclass(frozen=True)
class Person:
    """A user. ``groups`` are supplementary."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


STAFF_GID = 61_100
ALICE = Person("alice", 61_001, 61_001, (STAFF_GID,))
BOB = Person("bob", 61_002, 61_002, (STAFF_GID,))
CAROL = Person("carol", 61_003, 61_003)
"""In no group with anybody."""
SYSTEM = Person("shmd", 60_990, 60_990)
"""Whom the daemon runs as."""


def become(person: Person) -> None:
    """Give up root. In a child only."""
    load_all()
    os.chdir("/")
    os.setgroups(person.groups)
    os.setresgid(person.gid, person.gid, person.gid)
    os.setresuid(person.uid, person.uid, person.uid)


def as_person(person: Person, function: Callable[[], T]) -> T:
    """What ``function`` returns when ``person`` calls it. ``AssertionError`` with its traceback if it raises."""

    def call() -> T:
        become(person)
        return function()

    return in_child(call)


class Acting:
    """A forked child of ``person``. ``act`` gets a function by which it says something, for ``hear``."""

    def __init__(self, person: Person, act: Callable[[Callable[[object], None]], object]) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self._ended = False
        self.pid = os.fork()
        if self.pid == 0:
            self._ours.close()
            _act(theirs, person, act)
        theirs.close()

    def hear(self) -> Any:
        """The next thing it says. ``AssertionError`` if it fails, ends, or is silent for ``HEAR_TIMEOUT_S``."""
        assert self._ours.poll(HEAR_TIMEOUT_S), "the child says nothing"
        try:
            failed, what = self._ours.recv()
        except EOFError:
            raise AssertionError("the child ended without another word") from None
        assert not failed, f"in the child:\n{what}"
        return what

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; SIGKILL waits for the end. Twice is fine."""
        if not self._ended:
            os.kill(self.pid, number)
            if number == signal.SIGKILL:
                self.join()

    def join(self) -> None:
        """Wait for its end."""
        if not self._ended:
            os.waitpid(self.pid, 0)
            self._ended = True
            self._ours.close()


@contextlib.contextmanager
def acting(person: Person, act: Callable[[Callable[[object], None]], object]) -> Iterator[Acting]:
    """``person`` does ``act(say)`` beside the block, and is killed when it ends."""
    child = Acting(person, act)
    try:
        yield child
    finally:
        child.kill()


class SystemDaemon:
    """A daemon that serves all users, run by ``SYSTEM``; made by ``start``. Its log is in ``log``."""

    def __init__(self, directory: Path, instance: str, options: dict[str, Any]) -> None:
        self.directory = directory
        self.instance = instance
        self.socket_path = str(directory / "control.sock")
        self._options = options
        self._child: Acting | None = None

    @classmethod
    def start(cls, **options: Any) -> Self:
        """``options`` are ``DaemonConfig``'s. Serves when this returns; ``AssertionError`` if it does not start."""
        directory = Path(tempfile.mkdtemp(prefix="shmd-"))
        directory.chmod(0o755)
        os.chown(directory, SYSTEM.uid, SYSTEM.gid)
        daemon = cls(directory, f"test-{secrets.token_hex(6)}", options)
        try:
            daemon.serve()
        except BaseException:
            daemon.close()
            raise
        return daemon

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def log(self) -> str:
        """What it, and those before it here, logged so far."""
        return (self.directory / "log").read_text(errors="replace")

    def serve(self) -> None:
        """Start the successor of one that ended. ``AssertionError`` if it does not start."""
        assert self._child is None
        self._child = Acting(SYSTEM, self._run)
        assert self._child.hear() == "serving"

    def kill(self, number: int = signal.SIGKILL) -> None:
        """SIGKILL by default; then ``serve`` starts a successor."""
        if self._child is not None:
            self._child.kill(number)
            if number == signal.SIGKILL:
                self._child = None

    def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        if self._child is not None:
            self._child.kill(signal.SIGTERM)
            self._child.join()
            self._child = None

    def close(self) -> None:
        """End it, and remove all that its instance left."""
        self.kill(signal.SIGCONT)
        self.kill()
        inventory.remove_instance(instance_id(self.instance, SYSTEM.uid))
        shutil.rmtree(self.directory, ignore_errors=True)

    def _run(self, say: Callable[[object], None]) -> None:
        os.umask(0o077)
        logging.basicConfig(filename=self.directory / "log", level=logging.INFO, force=True)
        config = DaemonConfig(
            instance=self.instance,
            runtime_dir=self.directory,
            socket_path=Path(self.socket_path),
            **{"state_dir": self.directory / "state"} | self._options,
        )

        async def serve() -> None:
            async with Daemon(config) as daemon:
                loop = asyncio.get_running_loop()
                serving = loop.create_task(daemon.serve_forever())
                loop.add_signal_handler(signal.SIGTERM, serving.cancel)
                say("serving")
                with contextlib.suppress(asyncio.CancelledError):
                    await serving

        asyncio.run(serve())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()


def _act(theirs: Connection, person: Person, act: Callable[[Callable[[object], None]], object]) -> None:
    """In the child; never returns."""
    status = 1
    try:
        become(person)
        act(lambda what: theirs.send((False, what)))
        status = 0
    except BaseException:
        with contextlib.suppress(OSError):
            theirs.send((True, traceback.format_exc()))
    finally:
        os._exit(status)
