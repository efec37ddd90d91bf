"""What a program may want to know about its connection: ``client.events()``."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Literal, TypeAlias

from shmd import limits

EventKind: TypeAlias = Literal["disconnected", "reconnected", "closed"]


@dataclass(frozen=True, slots=True)
class ClientEvent:
    """``disconnected``: the daemon went away, for ``reason``; open publishers and subscriptions go on without it.
    ``reconnected``: it is back, and everything open is open there, too. ``closed``: by us; nothing comes after it.
    """

    kind: EventKind
    reason: str = ""
    resumed: bool = False
    """Of ``reconnected``: with the same slots and publisher numbers. Otherwise everything was opened anew."""


class EventStream:
    """An asynchronous iterator over the events since it was made; made by ``Client.events``.

    It ends after ``closed``. One that nobody reads keeps the last ``limits.CLIENT_EVENTS_MAX``.
    Cancelling a read loses nothing. For one task at a time.
    """

    def __init__(self, *, ended: bool) -> None:
        """Not for callers."""
        self._events: deque[ClientEvent] = deque(maxlen=limits.CLIENT_EVENTS_MAX)
        self._ended = ended
        self._came = asyncio.Event()

    def put(self, event: ClientEvent) -> None:
        """For the hub."""
        self._events.append(event)
        self._ended = event.kind == "closed"
        self._came.set()

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> ClientEvent:
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            self._came.clear()
            await self._came.wait()
        return self._events.popleft()
