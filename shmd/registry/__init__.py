"""The broker as a pure state machine; ``machine`` tells how it works."""

from shmd.registry.effects import (
    AwaitDeath,
    CreateTopic,
    DestroyTopic,
    Effect,
    GrantSlot,
    HangUp,
    IgnoreDeath,
    ReleaseSlot,
    ReportStat,
    RingBells,
    Send,
    SlotHolder,
)
from shmd.registry.entities import INCARNATION_MAX, Identity, Quotas
from shmd.registry.machine import Registry

__all__ = [
    "INCARNATION_MAX",
    "AwaitDeath",
    "CreateTopic",
    "DestroyTopic",
    "Effect",
    "GrantSlot",
    "HangUp",
    "Identity",
    "IgnoreDeath",
    "Quotas",
    "Registry",
    "ReleaseSlot",
    "ReportStat",
    "RingBells",
    "Send",
    "SlotHolder",
]
