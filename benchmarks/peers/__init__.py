"""What is compared. One module per peer, each with the same four ends, each used the way its own manual advises.

An end is opened in the process that uses it, the far ones (``receiver``, ``answerer``) first. It then does what it is
for, as many times as it is told, and checks that what arrived last is what was sent. Each module has an ``open_peer``
that makes, in the parent, what one measurement needs, and takes it away afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from benchmarks.harness import Work
    from benchmarks.records import Payload


class CanSend(Protocol):
    """Records one way."""

    def sender(self, payload: Payload) -> AbstractAsyncContextManager[Work]: ...
    def receiver(self, payload: Payload) -> AbstractAsyncContextManager[Work]: ...


class CanCall(Protocol):
    """A record there, a record back; the caller returns each round trip's nanoseconds."""

    def caller(self, payload: Payload) -> AbstractAsyncContextManager[Work]: ...
    def answerer(self, payload: Payload) -> AbstractAsyncContextManager[Work]: ...
