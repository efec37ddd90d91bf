"""Cancel a coroutine at each place where it waits, one after the other, in both ways in which that can happen."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, get_args

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable

T = TypeVar("T")

How: TypeAlias = Literal["waiting", "answered"]
"""Cancelled while what it waits for is still to come; or when that has come already, but the task has not run yet."""


class Interrupted:
    """Awaits ``inner``, and cancels its own task at the ``step``-th suspension. ``reached``: whether there was one."""

    def __init__(self, inner: Awaitable[Any], step: int, how: How) -> None:
        self._inner = inner
        self._step = step
        self._how = how
        self.reached = False

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        steps = self._inner.__await__()
        to_send: Any = None
        for number in itertools.count(1):
            try:
                waited_for = steps.send(to_send)
            except StopIteration as stop:
                return stop.value
            if number == self._step:
                self.reached = True
                if self._how == "answered" and waited_for is not None:
                    # Our callback comes before the task's own, so that the task is cancelled when it is about to run.
                    waited_for.add_done_callback(lambda _: task.cancel())
                else:
                    task.cancel()
            try:
                to_send = yield waited_for
            except BaseException as error:
                try:
                    waited_for = steps.throw(error)
                except StopIteration as stop:
                    return stop.value
                to_send = yield waited_for
        raise AssertionError


async def interruptions(
    make: Callable[[], Awaitable[T]], hows: Iterable[How] = get_args(How)
) -> AsyncIterator[tuple[str, T | None]]:
    """Run ``make()`` again and again, cancelled at its first suspension, at its second, and so on to its last; in each
    of the ways in which that can happen, or in those of ``hows``.

    Gives ("cancelled", None) or ("done", result) after each run; one that swallows its cancellation is done.
    """
    for how in hows:
        for step in itertools.count(1):
            interrupted = Interrupted(make(), step, how)

            async def run(interrupted: Interrupted = interrupted) -> Any:
                return await interrupted

            task = asyncio.create_task(run())
            await asyncio.wait([task])
            if task.cancelled():
                yield "cancelled", None
            else:
                yield "done", task.result()
            if not interrupted.reached:
                break
