"""Bells: eventfds that wake any number of sleepers, and the set of those that one event loop waits for.

A bell is an eventfd whose counter stands at 1 for ever. Ringing writes 0, which wakes every waiter and changes nothing,
so that a bell can neither overflow nor block (a counter that is counted up can do both, and any holder could bring it
there). Nobody ever reads it: each process watches it edge-triggered in an epoll instance of its own, so that one ring
is seen once by everybody. That private instance (``BellSet.fileno``) is what sits in the event loop, level-triggered:

    bell ── EPOLLET ──▶ BellSet's epoll ── add_reader ──▶ asyncio's or uvloop's epoll
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Final

from shmd import _core

if TYPE_CHECKING:
    from collections.abc import Callable

_EDGE: Final = select.EPOLLIN | select.EPOLLET


def make_bell() -> int:
    """A new bell: a descriptor that executed programs do not inherit. ``OSError`` (EMFILE) if there are none left."""
    return os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def ring(fd: int) -> None:
    """Wake everyone who waits for this bell, in every process. Never blocks."""
    os.eventfd_write(fd, 0)


class BellSet:
    """The bells that one event loop waits for. Put ``fileno()`` into the loop, with ``dispatch`` as its callback."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._fd = self._epoll.fileno()
        self._callbacks: dict[int, Callable[[], object]] = {}

    def add(self, fd: int, callback: Callable[[], object]) -> None:
        """Call ``callback`` from ``dispatch`` after each ring, and once at first: whoever rang before is not missed.

        Rings that come close together may be seen as one. ``FileExistsError`` if ``fd`` is in the set.
        """
        self._epoll.register(fd, _EDGE)
        self._callbacks[fd] = callback

    def add_quietly(self, fd: int, callback: Callable[[], object]) -> None:
        """The same without the call at first: only rings from now on count. Calls other bells' callbacks that are due.

        ``FileExistsError`` if ``fd`` is in the set.
        """
        seen: list[int] = []
        self.add(fd, lambda: seen.append(fd))
        # Whoever else holds the bell could have spoiled it, so that it is not even there at first.
        for _ in self._callbacks:
            if seen:
                break
            self.dispatch()
        self._callbacks[fd] = callback

    def discard(self, fd: int) -> None:
        """Forget the bell, before its descriptor is closed; its callback is not called again. Fine if it is unknown."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def fileno(self) -> int:
        """Readable as long as a bell has been rung that ``dispatch`` has not seen."""
        return self._epoll.fileno()

    def dispatch(self) -> None:
        """Call the callbacks of all bells rung since the last time. Does not wait.

        All are called, even if some raise; what they raised is raised afterwards.
        """
        callbacks = self._callbacks
        errors: list[Exception] | None = None
        for fd in _core.bells_rung(self._fd):
            callback = callbacks.get(fd)
            if callback is None:
                continue  # discarded by a callback before it
            try:
                callback()
            except Exception as error:
                errors = [*(errors or ()), error]
        if errors:
            raise errors[0] if len(errors) == 1 else ExceptionGroup("bells' callbacks failed", errors)

    def close(self) -> None:
        """Forget all bells (whose descriptors stay open: they are their owners'). Twice is fine."""
        self._callbacks.clear()
        self._epoll.close()
