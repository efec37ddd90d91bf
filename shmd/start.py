"""Where a subscription begins: ``start=`` as people write it, to a function that moves a cursor there."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, TypeAlias

from shmd import _core, limits
from shmd.errors import InvalidOption

Start: TypeAlias = Literal["new", "last", "all"] | int | datetime
Seek: TypeAlias = Callable[[_core.Cursor], bool]
"""Moves the cursor; False: not there yet, give others a turn and call again."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX: Final = 2**63 - 1
"""Of sequence numbers and of nanoseconds (in the year 2262): the C core takes 64 bits."""


def seek_first(cursor: _core.Cursor) -> bool:
    """To a topic's very first record. If that is gone already, to the oldest, and what came before counts as lost."""
    return cursor.seek_seq(1, limits.SEEK_STEPS)


def parse_start(start: Start) -> Seek:
    """The function for "new" (what comes from now on), "last" (the newest record, then on), "all" (what is still there,
    then on), a sequence number, or an aware datetime (the first record at or after it). ``InvalidOption`` otherwise."""
    match start:
        case "new":
            return _core.Cursor.seek_new
        case "last":
            return _core.Cursor.seek_last
        case "all":
            return _core.Cursor.seek_all
        case datetime():
            return _seek_time(start)
        case int() if not isinstance(start, bool) and 1 <= start <= _MAX:
            return lambda cursor: cursor.seek_seq(start, limits.SEEK_STEPS)
    raise InvalidOption(
        f"a subscription cannot start at {start!r}",
        'use "new", "last", "all", a sequence number from 1, or an aware datetime',
    )


def is_past(seek: Seek) -> bool:
    """Whether it goes to what was published before, if there is some, rather than to what comes from now on."""
    return seek is not _core.Cursor.seek_new


def _seek_time(moment: datetime) -> Seek:
    if moment.tzinfo is None:
        raise InvalidOption(f"{moment!r} has no time zone", "say which: datetime.now(timezone.utc), or .astimezone()")
    time_ns = min(max(0, (moment - _EPOCH) // timedelta(microseconds=1) * 1000), _MAX)
    return lambda cursor: cursor.seek_time(time_ns, limits.SEEK_STEPS)
