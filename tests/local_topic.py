"""A topic without a daemon: two real segments, formatted here, for tests of the core itself."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from shmd import _core, segment

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOTS = 8


class LocalTopic:
    """``log`` is the checked view; ``appender()`` and ``cursor()`` open its ends; all are closed with the topic."""

    def __init__(self, capacity: int, flags: int, stack: contextlib.ExitStack) -> None:
        self.capacity, self.flags, self.topic_id = capacity, flags, os.urandom(16)
        self._stack = stack
        self.log_segment = self._create(_core.HEADER_BYTES + capacity)
        self.ctl_segment = self._create(_core.ctl_size_bytes(SLOTS))
        _core.log_format(
            self.log_segment.mapping,
            capacity=capacity,
            flags=flags,
            instance_id=bytes(16),
            topic_id=self.topic_id,
            created_ns=1,
            name="local",
        )
        _core.ctl_format(self.ctl_segment.mapping, slots=SLOTS, topic_id=self.topic_id)
        self.log = self.open_log(self.log_segment, self.ctl_segment)
        self.bell = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        stack.callback(os.close, self.bell)
        self._incarnation = 0

    def _create(self, size_bytes: int) -> segment.Segment:
        made = segment.create(size_bytes)
        self._stack.callback(segment.remove, made.id)
        self._stack.callback(made.close)
        return made

    def open_log(self, log: segment.Segment, ctl: segment.Segment | None) -> _core.Log:
        opened = _core.Log(
            log.mapping,
            None if ctl is None else ctl.mapping,
            name="local",
            topic_id=self.topic_id,
            capacity=self.capacity,
            flags=self.flags,
        )
        self._stack.callback(opened.close)
        return opened

    def appender(self, publisher: int = 1) -> _core.Appender:
        made = _core.Appender(self.log, publisher=publisher, bell_fd=self.bell, yield_records=256, yield_s=1.0)
        self._stack.callback(made.close)
        return made

    def cursor(self, slot: int = 0, *, tethered: bool = True, decode: Any = bytes) -> _core.Cursor:
        """Granted anew; not yet joined."""
        self._incarnation += 1
        self.log.slot_grant(slot, self._incarnation, live=False, tethered=False)
        made = _core.Cursor(
            self.log,
            slot=slot,
            incarnation=self._incarnation,
            tethered=tethered,
            space_fd=self.bell,
            decode=decode,
            explain=None,
        )
        self._stack.callback(made.close)
        return made


@contextlib.contextmanager
def local_topic(capacity: int = 4096, *, wait: bool = False, exclusive: bool = False) -> Iterator[LocalTopic]:
    flags = (_core.FLAG_WAIT if wait else 0) | (_core.FLAG_EXCLUSIVE if exclusive else 0)
    with contextlib.ExitStack() as stack:
        yield LocalTopic(capacity, flags, stack)


class PlainFeed(_core.Feed[bytes]):
    """A feed that ends when it is empty."""

    def __init__(self, *, yield_records: int = 1_000_000, yield_s: float = 3000.0) -> None:
        super().__init__(yield_records=yield_records, yield_s=yield_s)

    async def _step(self) -> _core.Record[bytes]:
        record = self.pop()
        if record is None:
            raise StopAsyncIteration
        return record


def drain(cursor: _core.Cursor, bytes_max: int = 65536) -> list[_core.Record[bytes]]:
    """Everything there is to read now."""
    feed = PlainFeed()
    while cursor.read(feed, bytes_max):
        pass
    return feed.take(feed.ready)
