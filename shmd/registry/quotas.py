"""Whether there is room for one more topic or segment: counts, and the bytes of all of them together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmd.errors import LimitExceeded

if TYPE_CHECKING:
    from shmd.registry.state import State


def check_topic(state: State, size_bytes: int) -> None:
    """``LimitExceeded`` if a topic of this capacity would be one too many."""
    if len(state.topics) + len(state.creations) >= state.quotas.topics:
        raise LimitExceeded(f"this daemon keeps {state.quotas.topics} topics at most", "remove some")
    _check_bytes(state, "topic", size_bytes + state.identity.topic_overhead_bytes)


def check_segment(state: State, size_bytes: int) -> None:
    """``LimitExceeded`` if a segment of this size would be one too many."""
    segments = state.segments
    if len(segments.existing) + len(segments.creations) >= state.quotas.segments:
        raise LimitExceeded(f"this daemon keeps {state.quotas.segments} segments at most", "remove some")
    _check_bytes(state, "segment", size_bytes)


def _check_bytes(state: State, what: str, needed: int) -> None:
    overhead = state.identity.topic_overhead_bytes
    used = sum(topic.info.size_bytes + overhead for topic in state.topics.values())
    used += sum(creation.settings.size_bytes + overhead for creation in state.creations.values())
    used += sum(segment.charge_bytes for segment in state.segments.existing.values())
    used += sum(creation.settings.size_bytes for creation in state.segments.creations.values())
    free = max(0, state.quotas.total_bytes - used)
    if needed > free:
        raise LimitExceeded(
            f"the {what} needs {needed} bytes, and {free} of the limit of {state.quotas.total_bytes} are free",
            "remove some topics or segments, or serve with a higher --max-bytes",
        )
