"""What the registry asks the daemon to do, as values.

The daemon performs effects in the order given, before it feeds the next event in. The registry never asks how it went:
where that matters, the daemon tells it by an event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from shmd.policy import TopicSettings
    from shmd.protocol import Outbound, PublisherStat


@dataclass(frozen=True, slots=True)
class Send:
    """Send ``message``, with the bells of the topic ``bells_of`` if one is named."""

    client: int
    message: Outbound
    bells_of: str | None = None


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the connection; what the peer left unread is lost. The registry has already forgotten the client."""

    client: int
    reason: str


@dataclass(frozen=True, slots=True)
class CreateTopic:
    """Make segments and bells; answer with ``topic_created`` or ``topic_failed``."""

    topic: str
    settings: TopicSettings


@dataclass(frozen=True, slots=True)
class DestroyTopic:
    topic: str


@dataclass(frozen=True, slots=True)
class GrantSlot:
    """Give the slot to a new subscriber, its cursor at position 0, holding publishers back there if ``tethered``."""

    topic: str
    slot: int
    incarnation: int
    tethered: bool


@dataclass(frozen=True, slots=True)
class ReleaseSlot:
    topic: str
    slot: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class RingBells:
    """Wake everybody who sleeps on this topic: one who could have woken them is gone."""

    topic: str


@dataclass(frozen=True, slots=True)
class SlotHolder:
    """A slot and who sits there, for ``ReportStat``."""

    slot: int
    incarnation: int
    name: str
    pid: int
    uid: int


@dataclass(frozen=True, slots=True)
class ReportStat:
    """Answer ``request_id`` with what the segments tell about the topic and about these participants."""

    client: int
    request_id: int
    topic: str
    publishers: tuple[PublisherStat, ...]
    subscribers: tuple[SlotHolder, ...]


@dataclass(frozen=True, slots=True)
class AwaitDeath:
    """Answer with ``process_died`` as soon as the process of this client, which has left, is proven dead."""

    client: int


@dataclass(frozen=True, slots=True)
class IgnoreDeath:
    """It no longer matters whether the process of this client lives."""

    client: int


Effect: TypeAlias = (
    Send
    | HangUp
    | CreateTopic
    | DestroyTopic
    | GrantSlot
    | ReleaseSlot
    | RingBells
    | ReportStat
    | AwaitDeath
    | IgnoreDeath
)
