"""Whether there is room for one more topic: their number, and the bytes of all of them together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmd import policy
from shmd.errors import LimitExceeded
from shmd.shortage import Wish, advice

if TYPE_CHECKING:
    from shmd.registry.state import State


def check_topic(state: State, size_bytes: int) -> None:
    """``LimitExceeded`` if a topic of this capacity would be one too many."""
    if len(state.topics) + len(state.creations) >= state.quotas.topics:
        raise LimitExceeded(f"this daemon keeps {state.quotas.topics} topics at most", "remove some")
    overhead = state.identity.topic_overhead_bytes
    wish = Wish("the topic", lambda room_bytes: policy.largest_capacity(room_bytes - overhead))
    _check_bytes(state, size_bytes + overhead, wish)


def _check_bytes(state: State, needed: int, wish: Wish) -> None:
    overhead = state.identity.topic_overhead_bytes
    used = sum(topic.info.size_bytes + overhead for topic in state.topics.values())
    used += sum(creation.settings.size_bytes + overhead for creation in state.creations.values())
    free = max(0, state.quotas.total_bytes - used)
    if needed > free:
        raise LimitExceeded(
            f"{wish.what} needs {needed} bytes, and {free} of the limit of {state.quotas.total_bytes} are free",
            advice(wish, free, "remove some topics, or serve with a higher --max-bytes"),
        )
