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

    __slots__ = ("_call", "_name", "_opened", "_opening")

    def __init__(self, opening: Coroutine[Any, Any, T_co], call: str, name: str) -> None:
        """``opening`` opens it; an error says "``name`` = await ``call``"."""
        self._opening = opening
        self._call = call
        self._name = name
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

    # Who forgets to await it meets one of these. A type checker knows it anyway, and shall not see them.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):  # our own, too, of a copy that is not whole
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            raise AttributeError(self._how_to_open(f"there is no {name!r} yet"), name=name, obj=self)

        def __aiter__(self) -> Any:
            raise TypeError(self._how_to_open("there is nothing to iterate over yet"))

        def __anext__(self) -> Any:
            raise TypeError(self._how_to_open("there is nothing to iterate over yet"))

        def __enter__(self) -> Any:
            raise TypeError(self._how_to_open("`with` cannot wait for it"))

        def __exit__(self, *_exc_info: object) -> None:
            """Never called; without it Python would not get as far as ``__enter__``."""

    def _how_to_open(self, what: str) -> str:
        call, name = self._call, self._name
        return f"{call} opens nothing by itself, {what}: {name} = await {call}, or async with {call} as {name}"
