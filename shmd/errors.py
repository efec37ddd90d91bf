"""Every error shmd raises, and whose fault each one is.

    ShmdError
    ├── UsageError                the caller's: fix the program
    │   ├── InvalidName           a topic, pattern or instance name that cannot be
    │   ├── InvalidOption         an option value that cannot be
    │   ├── ConcurrentUse         two tasks read one subscription
    │   ├── ClosedError           used after close(), by whoever closed it
    │   ├── ForkedError           used in a forked child, which only inherited it
    │   ├── EncodeError           the codec cannot pack this object
    │   └── RecordTooLarge        over the topic's record limit
    ├── WouldBlock                nobody's: raised by ``*_nowait``, and by what never waits
    │   ├── TopicFull             a `wait` topic has no room
    │   ├── TopicLocked           another publisher is in the critical section
    │   ├── NoRecord              nothing to read yet
    │   ├── NotifierFull          a segment's FIFO holds all the bytes that it can
    │   ├── SegmentLocked         another task or process holds the segment's lock
    │   ├── CellEmpty             nobody has stored a value yet
    │   └── CellBusy              others are storing values, too often or right now
    ├── RequestRefused            the daemon said no, and why
    │   ├── NoSuchTopic
    │   ├── TopicMismatch         exists with other options; names both values
    │   ├── TopicBusy             exclusive, and somebody else publishes
    │   ├── SegmentMismatch       a raw segment exists with other options; names both values
    │   ├── PermissionDenied      also a PermissionError
    │   ├── LimitExceeded         a quota or limit, with its name and value
    │   ├── VersionMismatch       the other side speaks another major version
    │   └── NamespaceMismatch     another IPC or PID namespace
    ├── DaemonUnavailable         nobody listens there
    ├── Disconnected              the daemon went away while a request was under way
    ├── TopicRemoved              somebody removed the topic under a participant
    ├── TopicClosed               nobody's: all publishers have gone, and all was read (``until_closed``)
    ├── NoSubscribers             nobody's: no subscriber is there, so nothing was published (``require_subscribers``)
    ├── ProtocolError             the peer broke the control protocol
    ├── CorruptTopic              shared memory holds what no publisher writes
    ├── CellMismatch              a segment holds something else there than this cell
    ├── DecodeError               a record's payload is not what the codec expects
    ├── ConfigError               the configuration file or environment
    └── SegmentError (OSError)    System V said no; ``errno`` is set
        ├── SegmentExists         EEXIST; also a FileExistsError
        ├── SegmentNotFound       ENOENT; also a FileNotFoundError
        ├── SegmentRemoved        EIDRM
        ├── SegmentAccessDenied   EACCES, EPERM; also a PermissionError
        ├── SegmentInvalid        EINVAL
        ├── SegmentLimit          ENOSPC
        └── SegmentNoMemory       ENOMEM

``except PermissionError`` catches both ways of being kept out: the daemon's rules and the kernel's.

Every error has a one-sentence message and, where there is something to do about it, a ``hint``. ``str()`` shows both.
Those that cross the control socket have a ``code``; ``ShmdError.from_wire`` makes the class again on the other side.
"""

from __future__ import annotations

import errno as _errno
from typing import ClassVar


class ShmdError(Exception):
    """Root of all errors shmd raises.

    ``message`` is one sentence, ``hint`` what to do about it (or None), ``code`` the word for it on the control socket.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message, self.hint))

    @staticmethod
    def from_wire(code: str, message: str, hint: str | None = None) -> ShmdError:
        """The error that a peer named by ``code``; an unknown code gives a plain ``RequestRefused``."""
        return _BY_CODE.get(code, RequestRefused)(message, hint)


class UsageError(ShmdError):
    """The calling program's fault."""

    code = "usage"


class InvalidName(UsageError):
    code = "invalid-name"


class InvalidOption(UsageError):
    code = "invalid-option"


class ConcurrentUse(UsageError):
    code = "concurrent-use"


class ClosedError(UsageError):
    code = "closed"


class ForkedError(UsageError):
    code = "forked"


class EncodeError(UsageError):
    code = "encode"


class RecordTooLarge(UsageError):
    code = "record-too-large"


class WouldBlock(ShmdError):
    """Nobody's fault: the operation would have had to wait, and does not (``*_nowait``, or one that never waits)."""

    code = "would-block"


class TopicFull(WouldBlock):
    code = "topic-full"


class TopicLocked(WouldBlock):
    code = "topic-locked"


class NoRecord(WouldBlock):
    code = "no-record"


class NotifierFull(WouldBlock):
    code = "notifier-full"


class SegmentLocked(WouldBlock):
    code = "segment-locked"


class CellEmpty(WouldBlock):
    code = "cell-empty"


class CellBusy(WouldBlock):
    code = "cell-busy"


class RequestRefused(ShmdError):
    """The daemon understood and refused."""

    code = "refused"


class NoSuchTopic(RequestRefused):
    code = "no-such-topic"


class TopicMismatch(RequestRefused):
    code = "topic-mismatch"


class TopicBusy(RequestRefused):
    code = "topic-busy"


class SegmentMismatch(RequestRefused):
    code = "segment-mismatch"


class PermissionDenied(RequestRefused, PermissionError):
    """The daemon's own rules keep this user out, as the kernel's do in ``SegmentAccessDenied``; ``errno`` is EACCES."""

    code = "permission-denied"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.errno = _errno.EACCES


class LimitExceeded(RequestRefused):
    code = "limit-exceeded"


class VersionMismatch(RequestRefused):
    code = "version-mismatch"


class NamespaceMismatch(RequestRefused):
    code = "namespace-mismatch"


class DaemonUnavailable(ShmdError):
    code = "daemon-unavailable"


class Disconnected(ShmdError):
    code = "disconnected"


class TopicRemoved(ShmdError):
    code = "topic-removed"


class TopicClosed(ShmdError):
    """A pipe's end of file: the publishers have gone, and what they published was read."""

    code = "topic-closed"


class NoSubscribers(ShmdError):
    """A pipe's EPIPE: nobody is there to read. Nothing was published."""

    code = "no-subscribers"


class ProtocolError(ShmdError):
    """The peer's fault: bytes that are no message, or a message that is out of order."""

    code = "protocol-error"


class CorruptTopic(ShmdError):
    """A publisher's fault, or a damaged segment's: the shared memory holds what no publisher writes."""

    code = "corrupt-topic"


class CellMismatch(ShmdError):
    """The program's fault, or another's that writes to the segment: wrong offset, wrong type, or overwritten."""

    code = "cell-mismatch"


class DecodeError(ShmdError):
    """A publisher's fault: the payload is not what this subscriber's codec or type expects."""

    code = "decode"


class ConfigError(ShmdError):
    code = "config"


class SegmentError(ShmdError, OSError):
    """System V refused; ``errno`` tells what, the class too, and the hint names the limit or the command to use."""

    code = "segment"
    default_errno: ClassVar[int] = 0

    def __init__(self, message: str, hint: str | None = None, errno: int | None = None) -> None:
        super().__init__(message, hint)
        self.errno = self.default_errno if errno is None else errno

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message, self.hint, self.errno))

    @staticmethod
    def from_errno(errno: int, message: str, hint: str | None = None) -> SegmentError:
        """The subclass for ``errno`` (a plain ``SegmentError`` for one that has none)."""
        return _BY_ERRNO.get(errno, SegmentError)(message, hint, errno)


class SegmentExists(SegmentError, FileExistsError):
    code = "segment-exists"
    default_errno = _errno.EEXIST


class SegmentNotFound(SegmentError, FileNotFoundError):
    code = "segment-not-found"
    default_errno = _errno.ENOENT


class SegmentRemoved(SegmentError):
    code = "segment-removed"
    default_errno = _errno.EIDRM


class SegmentAccessDenied(SegmentError, PermissionError):
    code = "segment-access-denied"
    default_errno = _errno.EACCES


class SegmentInvalid(SegmentError):
    code = "segment-invalid"
    default_errno = _errno.EINVAL


class SegmentLimit(SegmentError):
    code = "segment-limit"
    default_errno = _errno.ENOSPC


class SegmentNoMemory(SegmentError):
    code = "segment-no-memory"
    default_errno = _errno.ENOMEM


def _all_subclasses(cls: type[ShmdError]) -> list[type[ShmdError]]:
    return [cls, *(sub for child in cls.__subclasses__() for sub in _all_subclasses(child))]


_BY_CODE: dict[str, type[ShmdError]] = {cls.code: cls for cls in _all_subclasses(ShmdError)}
_BY_ERRNO: dict[int, type[SegmentError]] = {
    cls.default_errno: cls
    for cls in _all_subclasses(SegmentError)
    if issubclass(cls, SegmentError) and cls.default_errno
} | {_errno.EPERM: SegmentAccessDenied}
