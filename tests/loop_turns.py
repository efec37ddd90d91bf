"""Waiting in tests without sleeping: turns of the loop, until something holds. The watchdog ends what never comes."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], Any]) -> None:
    """Turn the loop until ``condition``, a function or a coroutine function, says so."""
    while True:
        holds = condition()
        if await holds if inspect.isawaitable(holds) else holds:
            return
        await asyncio.sleep(0)


async def started(task: asyncio.Task[Any]) -> None:
    """Give ``task`` turns enough to come to where it waits."""
    await turns()
    assert not task.done()
