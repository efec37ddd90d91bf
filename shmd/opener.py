"""What ``connect()``, ``client.publisher()`` and ``client.subscribe()`` return: await it, or enter it.

client = await shmd.connect()        # then close it yourself
async with shmd.connect() as client: # closed at the end of the block
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType


class Closable(Protocol):
    async def close(self) -> None: ...


T = TypeVar("T", bound=Closable)
T_co = TypeVar("T_co", bound=Closable, covariant=True)


class Opener(Coroutine[Any, Any, T_co]):
    """A coroutine (``create_task``, ``gather`` and ``wait_for`` take it) that is an async context manager, too.

    To be used once. Nothing is opened before it is awaited or entered, and nothing stays open if that is cancelled.
    """

    __slots__ = ("_opened", "_opening")

    def __init__(self, opening: Coroutine[Any, Any, T_co]) -> None:
        self._opening = opening
        self._opened: T_co | None = None

    def __await__(self) -> Generator[Any, Any, T_co]:
        return self._opening.__await__()

    def send(self, value: Any) -> Any:
        return self._opening.send(value)

    def throw(self, *error: Any) -> Any:
        return self._opening.throw(*error)

    def close(self) -> None:
        """Part of the coroutine protocol: it will not be awaited after all."""
        self._opening.close()

    async def __aenter__(self) -> T_co:
        self._opened = await self._opening
        return self._opened

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._opened is not None:
            await self._opened.close()
