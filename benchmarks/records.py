"""What is sent: one small record and two larger ones, the same for every peer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Payload:
    """A record to send, over and over, and how many of them warm a connection up."""

    name: str
    size_bytes: int
    value: dict[str, Any]
    warm_up: int


SMALL: Final = Payload("small", 45, {"id": 123, "ts": 1.5, "sym": "ABCD", "px": 101.25, "qty": 300}, 4_000)
KIB: Final = Payload("1 KiB", 1024, {"id": 123, "data": bytes(1024)}, 4_000)
LARGE: Final = Payload("64 KiB", 65_536, {"id": 123, "data": bytes(65_536)}, 400)
PAYLOADS: Final = (SMALL, KIB, LARGE)


class WrongRecord(Exception):
    """What arrived is not what was sent: the peer, or its benchmark, is broken."""

    def __init__(self, got: object) -> None:
        super().__init__(f"received {got!r:.100}, which is not the record that was sent")


def check(got: object, payload: Payload) -> None:
    """The last record of a run must be the one sent: a peer that drops or mangles records is not measured."""
    if got != payload.value:
        raise WrongRecord(got)
