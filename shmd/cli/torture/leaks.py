"""What the torture may not leave: slots of the dead, segments that no roster notes, and in the end anything at all."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from shmd import inventory
from shmd.config import instance_id
from shmd.errors import SegmentInvalid

if TYPE_CHECKING:
    from pathlib import Path

    from shmd.inventory import FoundRoster

STANDARD_ERROR: Final = 2
SETTLED_S: Final = 0.1
GRACE_S: Final = 5.0
"""A daemon notices a death when its loop gets round to it; what stays so long is a leak."""


def in_shared_memory(instance: str, topics: int) -> list[str]:
    """What is left of the dead while the instance's daemon runs, all participants having gone, with so many topics."""
    until = time.monotonic() + GRACE_S
    while (found := _look(instance, topics)) and time.monotonic() < until:
        time.sleep(0.02)
    return found


def descriptors(pid: int) -> list[str]:
    """What a process has open beside its standard streams, sorted, without what tells two of a kind apart.

    As soon as it stays the same from one look to the next: the last client may just be hanging up.
    """
    until = time.monotonic() + GRACE_S
    found = _descriptors(pid)
    while time.monotonic() < until:
        time.sleep(SETTLED_S)
        before, found = found, _descriptors(pid)
        if before == found:
            break
    return found


def _descriptors(pid: int) -> list[str]:
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if int(name) > STANDARD_ERROR:
                found.append(os.readlink(f"/proc/{pid}/fd/{name}").partition(":[")[0])
    return sorted(found)


def difference(before: list[str], after: list[str]) -> str:
    """What there is more of, and less of."""
    more, less = Counter(after) - Counter(before), Counter(before) - Counter(after)
    changes = [f"+{count} {name}" for name, count in more.items()] + [
        f"-{count} {name}" for name, count in less.items()
    ]
    return ", ".join(changes)


def segments(instance: str) -> list[str]:
    """All segments of an instance."""
    return [f"{found.kind} {found.stat.id} of {found.topic!r}" for found in _own(instance).segments]


def remove_all(instance: str) -> None:
    """Every segment of an instance whose daemon is dead."""
    inventory.remove_instance(instance_id(instance, os.geteuid()))


def _own(instance: str) -> inventory.Inventory:
    return inventory.take().of(instance_id(instance, os.geteuid()))


def _look(instance: str, topics: int) -> list[str]:
    mine = _own(instance)
    found = [
        f"segment {one.stat.id} ({one.kind}), which is orphaned" for one in mine.segments if one.state == "orphaned"
    ]
    if len(mine.segments) != 2 * topics + len(mine.rosters):
        found.append(f"{len(mine.segments)} segments for {topics} topics")
    if sorted(roster.transient for roster in mine.rosters) != [False, True][not topics :]:
        found.append(f"{len(mine.rosters)} rosters")
    for roster in mine.rosters:
        found += [f"{row.kind} {row.name!r} (pid {row.pid}) in the roster" for row in roster.participants]
        found += _slots(roster)
    return found


def _slots(roster: FoundRoster) -> list[str]:
    found = []
    for topic in roster.topics:
        try:
            held = inventory.live_slots(topic.ctl_id)
        except SegmentInvalid:
            continue
        found += [f"slot {slot} of {topic.name} (incarnation {incarnation})" for slot, incarnation in sorted(held)]
    return found


def fifos(directory: Path) -> list[str]:
    """Whatever lies where FIFOs did, below the runtime directory."""
    return [f"left behind: {path}" for path in directory.glob("**/fifo/**")]
