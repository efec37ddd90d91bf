"""Whether there is room for one more topic or segment: counts, and the bytes of all of them together.

Files are counted apart: they take the disk's room, and are what to turn to when memory will not do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmd import policy, segment_policy
from shmd.errors import LimitExceeded
from shmd.shortage import Wish, advice

if TYPE_CHECKING:
    from shmd.registry.state import State
    from shmd.segment_policy import SegmentSettings


def check_topic(state: State, size_bytes: int) -> None:
    """``LimitExceeded`` if a topic of this capacity would be one too many."""
    if len(state.topics) + len(state.creations) >= state.quotas.topics:
        raise LimitExceeded(f"this daemon keeps {state.quotas.topics} topics at most", "remove some")
    overhead = state.identity.topic_overhead_bytes
    wish = Wish("the topic", lambda room_bytes: policy.largest_capacity(room_bytes - overhead))
    _check_bytes(state, size_bytes + overhead, wish)


def check_segment(state: State, settings: SegmentSettings) -> None:
    """``LimitExceeded`` if a segment like this would be one too many."""
    segments = state.segments
    if len(segments.existing) + len(segments.creations) >= state.quotas.segments:
        raise LimitExceeded(f"this daemon keeps {state.quotas.segments} segments at most", "remove some")
    if settings.backing == "file":
        _check_file_bytes(state, settings.size_bytes)
    else:
        _check_bytes(state, settings.size_bytes, segment_policy.WISH)


def _check_file_bytes(state: State, needed: int) -> None:
    segments = state.segments
    infos = (segment.info for segment in segments.existing.values())
    wishes = (creation.settings for creation in segments.creations.values())
    used = sum(what.size_bytes for group in (infos, wishes) for what in group if what.backing == "file")
    free = max(0, state.quotas.file_bytes - used)
    if needed > free:
        raise LimitExceeded(
            f"the file needs {needed} bytes, and {free} of the limit of {state.quotas.file_bytes} are free",
            advice(segment_policy.FILE_WISH, free, "remove some segments that are files, or set a higher file_bytes"),
        )


def _check_bytes(state: State, needed: int, wish: Wish) -> None:
    overhead = state.identity.topic_overhead_bytes
    used = sum(topic.info.size_bytes + overhead for topic in state.topics.values())
    used += sum(creation.settings.size_bytes + overhead for creation in state.creations.values())
    used += sum(segment.charge_bytes for segment in state.segments.existing.values())
    making = (creation.settings for creation in state.segments.creations.values())
    used += sum(settings.size_bytes for settings in making if settings.backing == "memory")
    free = max(0, state.quotas.total_bytes - used)
    if needed > free:
        raise LimitExceeded(
            f"{wish.what} needs {needed} bytes, and {free} of the limit of {state.quotas.total_bytes} are free",
            advice(wish, free, "remove some topics or segments, or serve with a higher --max-bytes"),
        )
