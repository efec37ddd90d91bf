"""What the demo's processes tell the one that shows the table, as records of a topic of their own."""

from __future__ import annotations

from typing import Final

import msgspec

DATA_TOPIC: Final = "demo.host"
REPORT_TOPIC: Final = "demo.reports"
REPORT_INTERVAL_S: Final = 0.25
END: Final = {"kind": "end"}
"""The last record of the data topic. It is never lost: nothing comes after it that could displace it."""


class Sent(msgspec.Struct, frozen=True, tag="sent"):
    """The publisher's word: ``records`` published so far, the end record included."""

    name: str
    records: int
    final: bool = False


class Received(msgspec.Struct, frozen=True, tag="received"):
    """A subscriber's word. Latencies are from commit to being handed out, in nanoseconds, since it started."""

    name: str
    records: int
    lost: int
    p50_ns: int
    p99_ns: int
    max_ns: int
    final: bool = False


Report = Sent | Received
