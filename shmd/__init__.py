"""shmd: msgpack records between processes through System V shared memory, for asyncio.

    import shmd

    async with shmd.connect() as client:
        publisher = await client.publisher("prices")
        await publisher.publish({"sym": "ABCD", "px": 101.25})

        async with client.subscribe("prices", start="all") as subscription:
            async for record in subscription:
                print(record.seq, record.value)

Errors are in ``shmd.errors``, and here under the same names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from shmd.errors import (
    CellBusy,
    CellEmpty,
    CellMismatch,
    ClosedError,
    ConcurrentUse,
    ConfigError,
    CorruptTopic,
    DaemonUnavailable,
    DecodeError,
    Disconnected,
    EncodeError,
    ForkedError,
    InvalidName,
    InvalidOption,
    LimitExceeded,
    NamespaceMismatch,
    NoRecord,
    NoSubscribers,
    NoSuchTopic,
    NotifierFull,
    PermissionDenied,
    ProtocolError,
    RecordTooLarge,
    RequestRefused,
    SegmentAccessDenied,
    SegmentError,
    SegmentExists,
    SegmentInvalid,
    SegmentLimit,
    SegmentLocked,
    SegmentMismatch,
    SegmentNoMemory,
    SegmentNotFound,
    SegmentRemoved,
    ShmdError,
    TopicBusy,
    TopicClosed,
    TopicFull,
    TopicLocked,
    TopicMismatch,
    TopicRemoved,
    UsageError,
    VersionMismatch,
    WouldBlock,
)

if TYPE_CHECKING:
    from shmd._core import Record
    from shmd.cell import Cell
    from shmd.client import Client, connect
    from shmd.client_events import ClientEvent
    from shmd.protocol import PublisherStat, SegmentInfo, SubscriberStat, TopicInfo, TopicStat
    from shmd.publisher import Publisher
    from shmd.raw_segment import Segment
    from shmd.segment_lock import SegmentLock
    from shmd.subscription import Subscription
    from shmd.sysv import SegmentStat

    __version__: str

__all__ = [
    "Cell",
    "CellBusy",
    "CellEmpty",
    "CellMismatch",
    "Client",
    "ClientEvent",
    "ClosedError",
    "ConcurrentUse",
    "ConfigError",
    "CorruptTopic",
    "DaemonUnavailable",
    "DecodeError",
    "Disconnected",
    "EncodeError",
    "ForkedError",
    "InvalidName",
    "InvalidOption",
    "LimitExceeded",
    "NamespaceMismatch",
    "NoRecord",
    "NoSubscribers",
    "NoSuchTopic",
    "NotifierFull",
    "PermissionDenied",
    "ProtocolError",
    "Publisher",
    "PublisherStat",
    "Record",
    "RecordTooLarge",
    "RequestRefused",
    "Segment",
    "SegmentAccessDenied",
    "SegmentError",
    "SegmentExists",
    "SegmentInfo",
    "SegmentInvalid",
    "SegmentLimit",
    "SegmentLock",
    "SegmentLocked",
    "SegmentMismatch",
    "SegmentNoMemory",
    "SegmentNotFound",
    "SegmentRemoved",
    "SegmentStat",
    "ShmdError",
    "SubscriberStat",
    "Subscription",
    "TopicBusy",
    "TopicClosed",
    "TopicFull",
    "TopicInfo",
    "TopicLocked",
    "TopicMismatch",
    "TopicRemoved",
    "TopicStat",
    "UsageError",
    "VersionMismatch",
    "WouldBlock",
    "__version__",
    "connect",
]

# Imported when first asked for: the daemon imports this package too, and must not come to depend on the client.
_HOMES: Final = {
    "Cell": "shmd.cell",
    "Client": "shmd.client",
    "ClientEvent": "shmd.client_events",
    "connect": "shmd.client",
    "Publisher": "shmd.publisher",
    "PublisherStat": "shmd.protocol",
    "Record": "shmd._core",
    "Segment": "shmd.raw_segment",
    "SegmentInfo": "shmd.protocol",
    "SegmentStat": "shmd.sysv",
    "SegmentLock": "shmd.segment_lock",
    "SubscriberStat": "shmd.protocol",
    "Subscription": "shmd.subscription",
    "TopicInfo": "shmd.protocol",
    "TopicStat": "shmd.protocol",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "__version__"})


def _version() -> str:
    """Of the installed package: reading it takes longer than importing all of shmd, and hardly anybody asks."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("shmd")
    except PackageNotFoundError:  # a checkout that nobody installed
        return "0+unknown"
