"""What the torture's publishers and subscribers have in common: their command line, their client, their end.

A participant is told to finish by the end of its standard input, which also comes if the driver dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import shmd
from shmd.cli.common import run
from shmd.cli.streams import InputReader
from shmd.cli.torture.history import LogWriter
from shmd.errors import DaemonUnavailable, Disconnected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

_RETRY_S: Final = 0.02
"""Between attempts to connect to a daemon that is not there."""


@dataclass(frozen=True)
class Orders:
    """A participant's command line: SOCKET NUMBER DIRECTORY COUNT TOPIC...; ``count`` 0 is no end."""

    socket_path: str
    number: int
    directory: Path
    count: int
    topics: tuple[str, ...]

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        socket_path, number, directory, count, *topics = arguments
        return cls(socket_path, int(number), Path(directory), int(count), tuple(topics))

    def words(self) -> list[str]:
        return [self.socket_path, str(self.number), str(self.directory), str(self.count), *self.topics]

    @property
    def log_path(self) -> Path:
        return self.directory / f"{self.number}.log"

    @property
    def ready_path(self) -> Path:
        """Exists once the participant takes part in every topic."""
        return self.directory / f"{self.number}.ready"


def take_part(main: Callable[[Orders, LogWriter, asyncio.Future[bytes]], Awaitable[None]]) -> None:
    """The body of a participant's process. The future is done when it shall finish."""
    orders = Orders.parse(sys.argv[1:])
    with LogWriter(orders.log_path) as log:
        run(_take_part(main, orders, log))


async def _take_part(
    main: Callable[[Orders, LogWriter, asyncio.Future[bytes]], Awaitable[None]], orders: Orders, log: LogWriter
) -> None:
    finish = asyncio.ensure_future(InputReader(sys.stdin.fileno()).read())
    try:
        await main(orders, log, finish)
    finally:
        finish.cancel()


@contextlib.asynccontextmanager
async def opened(
    orders: Orders, name: str, open_one: Callable[[shmd.Client, str], Awaitable[Any]]
) -> AsyncIterator[tuple[shmd.Client, dict[str, Any]]]:
    """A client with one thing opened per topic, however often the daemon goes away meanwhile.

    All at once: a subscriber whose second topic waits for a daemon would not read its first, and hold publishers up.
    """
    while True:
        try:
            client = await shmd.connect(orders.socket_path, name=f"torture {name} {orders.number}")
        except (DaemonUnavailable, Disconnected):
            await asyncio.sleep(_RETRY_S)
            continue
        async with client:
            try:
                things = await asyncio.gather(*(open_one(client, topic) for topic in orders.topics))
            except Disconnected:
                continue
            orders.ready_path.touch()
            yield client, dict(zip(orders.topics, things, strict=True))
            return
