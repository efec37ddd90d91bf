"""The way to a daemon's socket: found and connected to once, or again and again until a daemon appears."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shmd import limits, places
from shmd.errors import DaemonUnavailable, Disconnected
from shmd.hub import Hub

if TYPE_CHECKING:
    import os


async def connect(
    path: str | os.PathLike[str] | None,
    instance: str | None,
    name: str,
    *,
    timeout_s: float,
    request_timeout_s: float,
    wait: bool,
) -> Hub:
    """A hub whose link is connected. Arguments and errors are those of ``client.connect``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    pause_s = limits.RECONNECT_MIN_S
    while True:
        try:
            hub = Hub(places.find_socket(path, instance), name, request_timeout_s)
            await hub.connect(deadline - loop.time() if wait else timeout_s)
            return hub
        except (DaemonUnavailable, Disconnected) as error:
            left_s = deadline - loop.time()
            if not (wait and left_s > 0 and _may_come(error)):
                raise
        await asyncio.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, limits.APPEARANCE_PAUSE_MAX_S)


def _may_come(error: DaemonUnavailable | Disconnected) -> bool:
    """Whether a daemon that appears would help: none was found, nobody listens, or the one that did went away."""
    return error.__cause__ is None or isinstance(error.__cause__, FileNotFoundError | ConnectionError)
