"""Places at which a test kills the daemon, to see that the next one finds its way.

They stand where half of something is done: between the two of any pair of steps that only make sense together. In
production ``hook`` is None, and a failpoint is a comparison.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES: Final = (
    "transient-roster-made",
    "transient-roster-marked",
    "roster-formatted",
    "generation-raised",
    "lasting-roster-made",
    "lasting-roster-named",
    "lasting-roster-unnamed",
    "intent-noted",
    "log-made",
    "ctl-made",
    "topic-formatted",
    "fifo-directory-made",
    "keys-given-up",
    "topic-made",
    "topic-noted",
    "intent-cleared",
    "segment-made",
    "segment-semaphore-made",
    "file-made",
    "file-described",
    "segment-keys-given-up",
    "segment-fifo-made",
    "segment-ready",
    "segment-noted",
    "slot-granted",
    "fifo-made",
    "participant-noted",
    "slot-released",
    "fifo-removed",
    "participant-forgotten",
    "removal-noted",
    "log-removed",
    "fifos-removed",
    "segments-removed",
    "topic-forgotten",
    "removal-finished",
    "segment-removal-noted",
    "segment-fifo-removed",
    "segment-semaphore-removed",
    "segment-removed",
    "file-forgotten",
    "segment-forgotten",
    "files-found",
    "file-adopted",
    "segment-adopted",
    "intent-resolved",
    "topic-adopted",
    "slots-reconciled",
    "fifos-settled",
    "adopted",
)

hook: Callable[[str], None] | None = None
"""Called with the name at every failpoint that is passed."""


def reach(name: str) -> None:
    """This is the failpoint ``name``, one of ``NAMES``."""
    if hook is not None:
        hook(name)
