"""The chaos: rounds of kills, stops and restarts at random, and afterwards the account.

    begin ──▶ step, step, step … ──▶ finish ──▶ Outcome
              each ``step`` does one act to somebody; ``wait`` revives what is due

What is done to whom is drawn from the seed; what the processes do meanwhile is theirs. At the end everybody is
continued and told to finish, and one more publisher, the finisher, publishes the last value of each topic: a subscriber
that still lives must see it.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import os
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import shmd
from shmd.cli.torture import leaks
from shmd.cli.torture.crew import Crew, Kind, Member
from shmd.cli.torture.history import load
from shmd.cli.torture.laws import check, longest_pause_ns
from shmd.cli.torture.values import FINISHER
from shmd.errors import DaemonUnavailable, Disconnected, ShmdError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path


Act: TypeAlias = Literal[
    "kill publisher",
    "kill subscriber",
    "kill daemon",
    "kill all",
    "restart daemon",
    "stop publisher",
    "stop subscriber",
    "stop daemon",
]

Notifier: TypeAlias = Literal["eventfd", "fifo"]
Mixture: TypeAlias = Literal["eventfd", "fifo", "both"]

TOPICS: Final = {"torture.wait": True, "torture.discard": False}
"""Name → whether it is a `wait` topic."""
TOPIC_SIZE: Final = "64KiB"
"""Small: full, lapped and wrapped around all the time."""
WEIGHTS: Final[dict[Act, int]] = {
    "kill publisher": 5,
    "kill subscriber": 5,
    "kill daemon": 4,
    "kill all": 1,
    "restart daemon": 2,
    "stop publisher": 2,
    "stop subscriber": 2,
    "stop daemon": 1,
}
STOP_S_MAX: Final = 0.3
DAEMON_AWAY_S_MAX: Final = 0.5
"""How long a stop lasts, and how long the daemon stays away: short beside the time after which a client is given up."""
GAP_S_MAX: Final = 0.2
"""Between one act and the next."""
RETRY_S: Final = 0.02
"""Between one look and the next at somebody who is waited for."""
PATIENCE_S: Final = 60.0
"""For whoever is told to do something to have done it; then it hangs."""


@dataclass
class Outcome:
    """The account. ``broken``: laws that the history breaks, and processes that did what nobody told them to."""

    seed: int
    rounds: int = 0
    kills: int = 0
    published: int = 0
    received: int = 0
    lost: int = 0
    torn: int = 0
    broken: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    pause_s: float = 0.0
    """The longest for which somebody got nowhere who was not stopped, nor waited for somebody who was."""

    @property
    def ok(self) -> bool:
        return not self.broken and not self.leaked

    def add(self, other: Outcome) -> None:
        for name in ("rounds", "kills", "published", "received", "lost", "torn", "broken", "leaked"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.pause_s = max(self.pause_s, other.pause_s)

    def __str__(self) -> str:
        return f"{self.kills} kills, {self.lost} lost, {self.torn} torn, {len(self.leaked)} leaked"


class Chaos:
    """One run. A context manager, after which no process and no segment of it is left, whatever happened."""

    def __init__(
        self,
        directory: Path,
        seed: int,
        *,
        publishers: int = 2,
        subscribers: int = 2,
        notifiers: Mixture = "both",
    ) -> None:
        """``directory``: fresh, on a short path. With ``both`` notifiers the seed says which topic has which."""
        self.crew = Crew(directory, f"torture-{os.getpid()}-{seed}", tuple(TOPICS))
        self.outcome = Outcome(seed)
        self._chance = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
        self._strength: dict[Kind, int] = {"publisher": publishers, "subscriber": subscribers}
        self._declare = functools.partial(_declare, notifiers=_mix(notifiers, seed))
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._dues = 0

    def begin(self) -> None:
        """Start everybody, and wait until they all take part."""
        self.crew.start("daemon")
        self._ask(self._declare)
        self._fill_up()
        self._await("take part", lambda: all(member.ready for member in self._participants()))

    def step(self) -> Act:
        """One round: an act drawn at random. Says which."""
        return self.act(self._chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0])

    def act(self, act: Act) -> Act:
        """Do this to somebody who is drawn at random."""
        verb, _, whom = act.partition(" ")
        self.outcome.rounds += 1
        {"kill": self._kill, "restart": self._restart, "stop": self._stop}[verb](whom)
        self._fill_up()
        return act

    def gap_s(self) -> float:
        """How long to wait before the next round."""
        return self._chance.uniform(0, GAP_S_MAX)

    def wait(self, seconds: float) -> None:
        """Let them run for so long; does what becomes due meanwhile."""
        until = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                heapq.heappop(self._due)[2]()
            for member in self.crew.deaths():
                self._tell(self.crew.wait(member, 0) or f"{member.name} ended, though nobody told it to")
                self._fill_up()
            if now >= until:
                return
            time.sleep(max(0.0, min([until, *(due for due, _, _ in self._due[:1])]) - now))

    def finish(self) -> Outcome:
        """Have everybody end, check what they did and saw, and what they left."""
        while self._due:
            heapq.heappop(self._due)[2]()
        self._fill_up()
        self._await("take part", lambda: all(member.ready for member in self._participants()))
        for publisher in self.crew.of_kind("publisher"):
            publisher.finish()
        for publisher in self.crew.of_kind("publisher"):
            self._tell(self.crew.wait(publisher, PATIENCE_S))
        self._tell(self.crew.wait(self.crew.start("publisher", count=1, number=FINISHER), PATIENCE_S))
        for subscriber in self.crew.of_kind("subscriber"):
            self._tell(self.crew.wait(subscriber, PATIENCE_S))
        self._check()
        self._look_for_leaks()
        return self.outcome

    def close(self) -> None:
        self.crew.close()
        leaks.remove_all(self.crew.instance)

    def __enter__(self) -> Chaos:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    # --- acts ---

    def _kill(self, whom: str) -> None:
        victims = self.crew.members if whom == "all" else self._one(whom)
        daemon_dies = any(victim.kind == "daemon" for victim in victims)
        self.crew.kill(*victims)
        if daemon_dies:
            self._later(self._chance.uniform(0, DAEMON_AWAY_S_MAX), self._ensure_daemon)

    def _restart(self, whom: str) -> None:
        for daemon in self._one(whom):
            self.crew.resume(daemon)
            self._tell(self.crew.end(daemon, PATIENCE_S))
            self._later(self._chance.uniform(0, DAEMON_AWAY_S_MAX), self._ensure_daemon)

    def _stop(self, whom: str) -> None:
        for victim in self._one(whom):
            self.crew.stop(victim)
            self._later(self._chance.uniform(0, STOP_S_MAX), functools.partial(self._resume, victim))

    def _resume(self, victim: Member) -> None:
        if victim in self.crew.members:
            self.crew.resume(victim)

    def _one(self, whom: str) -> list[Member]:
        candidates = [member for member in self.crew.members if member.kind == whom]
        return [self._chance.choice(candidates)] if candidates else []

    def _later(self, seconds: float, what: Callable[[], object]) -> None:
        self._dues += 1
        heapq.heappush(self._due, (time.monotonic() + seconds, self._dues, what))

    # --- who is there ---

    def _participants(self) -> list[Member]:
        return [member for member in self.crew.members if member.kind != "daemon"]

    def _fill_up(self) -> None:
        for kind, strength in self._strength.items():
            for _ in range(strength - len(self.crew.of_kind(kind))):
                self.crew.start(kind)

    def _ensure_daemon(self) -> None:
        if not self.crew.of_kind("daemon"):
            self.crew.start("daemon")

    # --- the account ---

    def _await(self, what: str, done: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE_S
        while not done():
            self.wait(RETRY_S)
            if time.monotonic() > until:
                raise ChaosFailed(f"not everybody did {what} within {PATIENCE_S:g} s: {self._last_words()}")

    def _tell(self, what: str | None) -> None:
        if what is not None:
            self.outcome.broken.append(what)

    def _last_words(self) -> str:
        return "\n".join(f"{member.name}: {member.last_words()}" for member in self.crew.members)

    def _check(self) -> None:
        members = [member for member in (*self.crew.past, *self.crew.members) if member.orders is not None]
        logs = {member.number: member.orders.log_path for member in members if member.orders is not None}
        histories = load(logs, TOPICS)
        outcome = self.outcome
        outcome.kills = self.crew.kills
        outcome.published = sum(history.acknowledged for history in histories)
        outcome.received = sum(history.receipts for history in histories)
        violations = check(histories)
        outcome.torn = sum(violation.law == "torn" for violation in violations)
        outcome.lost = len(violations) - outcome.torn
        outcome.broken += map(str, violations)
        outcome.pause_s = longest_pause_ns(histories, self._excluded) / 1e9

    def _excluded(self, topic: str, number: int) -> list[tuple[int, int]]:
        """Its own stops, those of publishers, who may hold the lock, and on a `wait` topic those of subscribers."""
        return [
            (begin, end)
            for member, begin, end in self.crew.stops
            if member.number == number or member.kind == "publisher" or (TOPICS[topic] and member.kind == "subscriber")
        ]

    def _look_for_leaks(self) -> None:
        """While a daemon runs, after a restart (which must come to the same), and after all was removed."""
        self._ensure_daemon()
        self._ask(_nothing)
        outcome, instance = self.outcome, self.crew.instance
        outcome.leaked += leaks.in_shared_memory(instance, len(TOPICS))
        (daemon,) = self.crew.of_kind("daemon")
        before = leaks.descriptors(daemon.process.pid)
        self._tell(self.crew.end(daemon, PATIENCE_S))
        daemon = self.crew.start("daemon")
        self._ask(_nothing)
        after = leaks.descriptors(daemon.process.pid)
        if before != after:
            outcome.leaked.append(f"descriptors, set against a fresh daemon's: {leaks.difference(after, before)}")
        outcome.leaked += leaks.in_shared_memory(instance, len(TOPICS))
        self._ask(_remove)
        self._tell(self.crew.end(daemon, PATIENCE_S))
        outcome.leaked += leaks.segments(instance)
        outcome.leaked += leaks.fifos(self.crew.directory)

    def _ask(self, what: Callable[[shmd.Client], Coroutine[Any, Any, None]]) -> None:
        """Do something as a client, as soon as there is a daemon."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return asyncio.run(_with_client(self.crew.socket_path, what))
            except (DaemonUnavailable, Disconnected) as error:
                if self.crew.deaths() or time.monotonic() > until:
                    raise ChaosFailed(f"there is no daemon: {error}; {self._last_words()}") from error
                time.sleep(RETRY_S)


class ChaosFailed(ShmdError):
    """The run could not be brought to its end: somebody hangs."""

    code = "chaos"


async def _with_client(socket_path: str, what: Callable[[shmd.Client], Coroutine[Any, Any, None]]) -> None:
    async with shmd.connect(socket_path, name="torture") as client:
        await what(client)


async def _nothing(client: shmd.Client) -> None:
    """To be connected says enough."""


def _mix(notifiers: Mixture, seed: int) -> dict[str, Notifier]:
    both: tuple[Notifier, Notifier] = ("eventfd", "fifo")
    return {
        topic: both[(seed + number) % 2] if notifiers == "both" else notifiers for number, topic in enumerate(TOPICS)
    }


async def _declare(client: shmd.Client, notifiers: dict[str, Notifier]) -> None:
    for topic, wait in TOPICS.items():
        await client.topic(
            topic, size=TOPIC_SIZE, when_full="wait" if wait else "discard-old", notifier=notifiers[topic]
        )


async def _remove(client: shmd.Client) -> None:
    for topic in await client.topics():
        await client.remove(topic.name)
