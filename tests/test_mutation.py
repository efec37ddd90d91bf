"""Shared memory that anything may stand in, under processes that use it: an error or a wrong value at worst.

A daemon, publishers, subscribers, one that only looks and one on a topic of its own run on a core under
AddressSanitizer and UndefinedBehaviorSanitizer, while this process writes into logs, ctls and the roster (``mutator``).
What is damaged is removed and made anew by whoever finds out, so that there is always something in use to damage.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import time
from typing import TYPE_CHECKING, Final

import pytest
import sysv_ipc

import shmd
from shmd import _core, roster, segment, sysv, topic_store
from shmd.config import DaemonConfig
from tests.core_builds import ROOT, SANITIZED, sanitized_environment
from tests.mutation_child import REFUSED, SIZE
from tests.mutator import Mutator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.may_block

MUTATIONS: Final = 3_000
MUTATIONS_CI: Final = 20_000
MUTATIONS_SOAK: Final = 1_000_000
BURST: Final = 10
"""Mutations between two signs of life of a participant."""
ROUND: Final = 250
"""Mutations between two checks of everybody."""
ROUNDS: Final = 4
ROUNDS_CI: Final = 20
"""Rounds between two deaths of the daemon."""
TIMEOUT_S: Final = 7200 if os.environ.get("SHMD_SOAK", "0") != "0" else 600
CREW: Final = ("publisher", "publisher", "subscriber", "subscriber", "looker", "bystander")
WATCHDOG_S: Final = 60
FORBIDDEN: Final = (b"Traceback", b"Sanitizer", b"runtime error", b"unexpected:")
"""What nobody may have written to its standard error."""


class Child:
    """One process of ``mutation_child``. Everything it owes it must give within ``WATCHDOG_S``, or it hangs."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, errors: Path) -> None:
        self.process = process
        self.name = name
        self._errors = errors

    @classmethod
    async def start(cls, directory: Path, name: str, role: str, *arguments: str) -> Child:
        errors = directory / f"{name}.stderr"
        with errors.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.mutation_child", role, *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=sanitized_environment(),
            )
        return cls(process, name, errors)

    async def line(self) -> str:
        """The next line that it says; empty if it has ended."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(WATCHDOG_S):
                return (await self.process.stdout.readline()).decode().strip()
        except TimeoutError:
            for how in (signal.SIGUSR1, signal.SIGUSR2):  # so that it says where it hangs, and then each of its tasks
                self.process.send_signal(how)
                await asyncio.sleep(1)
            pytest.fail(f"{self.name} hangs: {self.errors()}")

    async def ask(self, order: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(order.encode() + b"\n")
        answer = await self.line()
        assert answer, f"{self.name} ended: {self.errors()}"
        return answer

    async def ended(self) -> int:
        try:
            async with asyncio.timeout(WATCHDOG_S):
                return await self.process.wait()
        except TimeoutError:
            pytest.fail(f"{self.name} does not end: {self.errors()}")

    async def end(self) -> None:
        """Told to, it ends without an error."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"end\n")
        assert await self.ended() == 0, self.errors()

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def errors(self) -> str:
        return self._errors.read_text(errors="replace")[-8000:]

    def check(self) -> None:
        """It said nothing that it must not."""
        text = self._errors.read_bytes()
        for forbidden in FORBIDDEN:
            assert forbidden not in text, f"{self.name}: {self.errors()}"


class Arena:
    """A crew of participants, and one daemon after the other."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.mutator = Mutator(seed)
        self.refusals: list[str] = []
        self._directory = directory
        self._seed = seed
        self._instance = f"mutation-{secrets.token_hex(6)}"
        config = DaemonConfig(runtime_dir=directory, instance=self._instance)
        self._socket = str(config.socket_path)
        self._roster_keys = set(roster.candidate_keys(config.instance_id()))
        self._crew: list[Child] = []
        self._daemons: list[Child] = []
        self._client: shmd.Client | None = None
        self._errors_allowed = True
        self._began = time.monotonic()
        self.errors: dict[str, int] = {}

    async def start_daemon(self) -> bool:
        """Whether it listens. If not, it has said why in a sentence."""
        name = f"daemon-{len(self._daemons)}"
        daemon = await Child.start(self._directory, name, "daemon", str(self._directory), self._instance)
        self._daemons.append(daemon)
        word = await daemon.line()
        if word != "listening":
            assert word.startswith("refused: "), f"{word}: {daemon.errors()}"
            assert await daemon.ended() == REFUSED
            self.refusals.append(word)
            self._tell(word)
            return False
        self._tell(name)
        self._client = await shmd.connect(self._socket, name="mutator")
        self._errors_allowed = True
        for child in self._crew:
            await child.ask(f"meet {daemon.process.pid}")
        self._tell("met")
        return True

    async def start_crew(self) -> None:
        for number, role in enumerate(CREW):
            child = await Child.start(self._directory, f"{role}-{number}", role, self._socket, str(self._seed + number))
            self._crew.append(child)
        for child in self._crew:
            assert await child.line() == "ready", child.errors()

    async def end_crew(self) -> None:
        """A roster that is marked removed, and so damaged that no daemon starts, goes with those who use it."""
        for child in self._crew:
            await child.end()
            child.check()
        self._crew.clear()

    async def rounds(self, count: int, *, daemon: bool = True) -> None:
        for _ in range(count):
            for number in range(ROUND // BURST):
                await self._burst(self._crew[number % len(self._crew)], daemon=daemon)
            self._tell("round")
            await self._check(daemon=daemon)
            self._tell("check")

    def _tell(self, what: str) -> None:
        """When what was over: of a run that fails, whether it hung or was slow."""
        print(f"{time.monotonic() - self._began:7.2f} s {self.mutator.count:8d} {what}")  # noqa: T201 - shown on failure

    async def _burst(self, child: Child, *, daemon: bool) -> None:
        if daemon:
            assert self._client is not None
            self.mutator.aim(await self._client.topics("m.>"), self._roster_ids(self._client))
        for _ in range(BURST):
            self.mutator.mutate()
        assert await child.ask("ping") == "pong"

    def _roster_ids(self, client: shmd.Client) -> list[int]:
        """Both segments. The lasting one by its key: what the other says of it may be damage, and name anything."""
        lasting = [found.id for found in sysv.list_segments() if found.key in self._roster_keys and not found.removed]
        return [client._hub.link.welcome.roster_id, *lasting]

    async def _check(self, *, daemon: bool) -> None:
        """Everybody lives, can be cancelled, and has said nothing wrong; the bystander is as well as ever."""
        for child in self._crew:
            answer = await child.ask("check")
            if child.name.startswith("bystander"):
                assert answer == "fine" or self._errors_allowed, answer
                self._errors_allowed = answer != "fine"
            else:
                self.errors[child.name] = sum(json.loads(answer)["errors"].values())
        if daemon and self._client is not None:
            for info in await self._client.topics():
                await self._client.stat(info.name)
        for child in (*self._crew, *(self._daemons[-1:] if daemon else ())):
            assert child.process.returncode is None, child.errors()
            child.check()

    async def kill_daemon(self) -> None:
        await self._daemons[-1].kill()
        await self._forget_daemon()

    async def stop_daemon(self) -> None:
        self._daemons[-1].process.terminate()
        assert await self._daemons[-1].ended() == 0, self._daemons[-1].errors()
        self._daemons[-1].check()
        await self._forget_daemon()

    async def _forget_daemon(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    def sweep(self) -> None:
        """Remove all that its daemons left: they may no longer know."""
        self.mutator.aim()
        pids = {daemon.process.pid for daemon in self._daemons}
        for found in sysv.list_segments():
            if found.creator_pid in pids and not found.removed:
                segment.remove(found.id)

    async def close(self) -> None:
        self.mutator.close()
        await self._forget_daemon()
        for child in (*self._crew, *self._daemons):
            await child.kill()
        self.sweep()


@pytest.fixture
async def arena(tmp_path_factory: pytest.TempPathFactory, random_seed: int) -> AsyncIterator[Arena]:
    SANITIZED.build()
    arena = Arena(tmp_path_factory.mktemp("m"), random_seed)
    yield arena
    await arena.close()


@pytest.fixture
def strangers() -> Iterator[Callable[[], bool]]:
    """Segments of the same user that are nobody's business, of the sizes that shmd's have. Whether all are there."""
    made: list[int] = []
    for size_bytes in (_core.HEADER_BYTES + SIZE, topic_store.CTL_BYTES, 4096):
        private = sysv_ipc.SharedMemory(sysv_ipc.IPC_PRIVATE, sysv_ipc.IPC_CREX, size=size_bytes)
        private.detach()
        with segment.create(size_bytes) as stranger:
            made += [private.id, stranger.id]
    yield lambda: not any(sysv.stat(shmid).removed for shmid in made)
    for shmid in made:
        segment.remove(shmid)


@pytest.mark.timeout(TIMEOUT_S)
async def test_participants_survive_whatever_stands_in_shared_memory(
    arena: Arena, strangers: Callable[[], bool], soak: bool, random_seed: int
) -> None:
    wanted = MUTATIONS_SOAK if soak else MUTATIONS_CI if os.environ.get("CI") else MUTATIONS
    print(f"seed {random_seed}")  # noqa: T201 - repeats it
    assert await arena.start_daemon()
    await arena.start_crew()
    while True:
        await arena.rounds(ROUNDS if wanted == MUTATIONS else ROUNDS_CI)
        await arena.kill_daemon()
        await arena.rounds(1, daemon=False)
        if await arena.start_daemon():
            await arena.rounds(1)
            await arena.stop_daemon()
        assert strangers()
        arena.sweep()
        if arena.mutator.count >= wanted:
            break
        if not await arena.start_daemon():
            await arena.end_crew()
            assert await arena.start_daemon()
            await arena.start_crew()
    print(f"{arena.mutator.count} mutations, {arena.errors} errors, {len(arena.refusals)} refusals")  # noqa: T201
    assert all(count for name, count in arena.errors.items() if not name.startswith("looker")), arena.errors
