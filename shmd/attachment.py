"""A topic's segments in this process: attached with no more access than the role needs, checked, and given back.

| role       | log        | ctl        |
|------------|------------|------------|
| looker     | read-only  | none       |
| subscriber | read-only  | read-write |
| publisher  | read-write | read-write |

An id or key can come to mean another segment; so ``_core.Log`` compares the topic id in the headers with what the
daemon said, and ``CorruptTopic`` comes instead of somebody else's bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict

from shmd import _core, segment

if TYPE_CHECKING:
    from shmd.protocol import TopicInfo

Role: TypeAlias = Literal["looker", "subscriber", "publisher"]


class Identity(TypedDict):
    """What the headers of a topic's segments must say."""

    name: str
    topic_id: bytes
    capacity: int
    flags: int


def identity_of(info: TopicInfo) -> Identity:
    flags = _core.FLAG_WAIT if info.when_full == "wait" else 0
    flags |= _core.FLAG_EXCLUSIVE if info.exclusive else 0
    flags |= _core.FLAG_FIFO if info.notifier == "fifo" else 0
    return {"name": info.name, "topic_id": info.topic_id, "capacity": info.size_bytes, "flags": flags}


class Attachment:
    """What one participant has attached of one topic. ``close`` gives it back; ``log`` is then unusable."""

    __slots__ = ("_segments", "info", "log")

    def __init__(self, info: TopicInfo, role: Role) -> None:
        """Attach. Raises ``SegmentError`` (as ``segment.attach``) or ``CorruptTopic``; then nothing stays attached."""
        self.info = info
        self._segments: list[segment.Segment] = []
        try:
            log = self._attach(info.log_id, readonly=role != "publisher")
            ctl = None if role == "looker" else self._attach(info.ctl_id, readonly=False)
            self.log = _core.Log(log, ctl, **identity_of(info))
        except BaseException:
            self._detach()
            raise

    def close(self) -> None:
        """Detach. ``BufferError``, and nothing changes, while an ``Appender`` or ``Cursor`` on ``log`` lives. Twice is
        fine.
        """
        self.log.close()
        self._detach()

    def _attach(self, shmid: int, *, readonly: bool) -> _core.Mapping:
        attached = segment.attach(shmid, readonly=readonly)
        self._segments.append(attached)
        return attached.mapping

    def _detach(self) -> None:
        while self._segments:
            self._segments.pop().close()
