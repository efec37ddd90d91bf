"""Whether there is room for one more topic or segment: counts, and the bytes of all of them together.

Files are counted apart: they take the disk's room, and are what to turn to when memory will not do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmd.errors import LimitExceeded

if TYPE_CHECKING:
    from shmd.registry.state import State
    from shmd.segment_policy import SegmentSettings


def check_topic(state: State, size_bytes: int) -> None:
    """``LimitExceeded`` if a topic of this capacity would be one too many."""
    if len(state.topics) + len(state.creations) >= state.quotas.topics:
        raise LimitExceeded(f"this daemon keeps {state.quotas.topics} topics at most", "remove some")
    _check_bytes(state, "topic", size_bytes + state.identity.topic_overhead_bytes)


def check_segment(state: State, settings: SegmentSettings) -> None:
    """``LimitExceeded`` if a segment like this would be one too many."""
    segments = state.segments
    if len(segments.existing) + len(segments.creations) >= state.quotas.segments:
        raise LimitExceeded(f"this daemon keeps {state.quotas.segments} segments at most", "remove some")
    if settings.backing == "file":
        _check_file_bytes(state, settings.size_bytes)
    else:
        _check_bytes(state, "segment", settings.size_bytes)


def _check_file_bytes(state: State, needed: int) -> None:
    segments = state.segments
    used = sum(segment.info.size_bytes for segment in segments.existing.values() if segment.info.backing == "file")
    used += sum(
        creation.settings.size_bytes for creation in segments.creations.values() if creation.settings.backing == "file"
    )
    free = max(0, state.quotas.file_bytes - used)
    if needed > free:
        raise LimitExceeded(
            f"the file needs {needed} bytes, and {free} of the limit of {state.quotas.file_bytes} are free",
            "remove some segments that are files, or set a higher file_bytes",
        )


def _check_bytes(state: State, what: str, needed: int) -> None:
    overhead = state.identity.topic_overhead_bytes
    used = sum(topic.info.size_bytes + overhead for topic in state.topics.values())
    used += sum(creation.settings.size_bytes + overhead for creation in state.creations.values())
    used += sum(segment.charge_bytes for segment in state.segments.existing.values())
    used += sum(
        creation.settings.size_bytes
        for creation in state.segments.creations.values()
        if creation.settings.backing == "memory"
    )
    free = max(0, state.quotas.total_bytes - used)
    if needed > free:
        raise LimitExceeded(
            f"the {what} needs {needed} bytes, and {free} of the limit of {state.quotas.total_bytes} are free",
            "remove some topics or segments, serve with a higher --max-bytes, "
            'or keep segments in files: backing="file"',
        )
