"""The options of a raw segment, as people write them, to what the daemon is asked for; and ``ftok``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias, get_args

from shmd import keys, protocol, units
from shmd.errors import InvalidOption
from shmd.protocol import Backing, Lifetime, Notifier, Sync

if TYPE_CHECKING:
    from collections.abc import Iterable

FtokId: TypeAlias = int | str


def make_segment_options(
    *,
    size: int | str | None,
    mode: int | None,
    key: int | None,
    ftok: tuple[str | os.PathLike[str], FtokId] | None,
    adopt: bool,
    backing: Backing | None,
    sync: Sync | None,
    lifetime: Lifetime | None,
    notifier: Notifier | None,
) -> protocol.SegmentOptions:
    """See ``Client.segment``. ``InvalidOption`` for what cannot be."""
    _check_word("backing", backing, get_args(Backing))
    _check_word("sync", sync, get_args(Sync))
    _check_word("lifetime", lifetime, get_args(Lifetime))
    _check_word("notifier", notifier, get_args(Notifier))
    if mode is not None and not (type(mode) is int and 0 <= mode <= 0o777):
        raise InvalidOption(f"mode cannot be {mode!r}", "give permission bits like 0o640")
    if key is not None and ftok is not None:
        raise InvalidOption("a segment has one key", "give key= or ftok=, not both")
    if ftok is not None:
        key = make_key(*ftok)
    if key is not None and not keys.is_key(key):
        raise InvalidOption(
            f"a segment's key cannot be {key!r}", f"an integer from 1 to {keys.KEY_MAX:#x}, or C's negative ones"
        )
    return protocol.SegmentOptions(
        size_bytes=None if size is None else units.parse_size(size),
        mode=mode,
        key=None if key is None else keys.from_c(key),
        adopt=adopt,
        backing=backing,
        sync=sync,
        lifetime=lifetime,
        notifier=notifier,
    )


def make_key(path: str | os.PathLike[str], project: FtokId) -> int:
    """The key that ftok(3) makes in C of ``path``, which must exist, and ``project``, from 1 to 255 or one character.

    ``InvalidOption`` for others, and for a file that cannot be looked at. (Ids from 128 on make negative keys in C.)
    """
    number = ord(project) if isinstance(project, str) and len(project) == 1 else project
    if not (type(number) is int and 1 <= number <= (127 if isinstance(project, str) else 255)):
        raise InvalidOption(f"ftok cannot use the id {project!r}", "an integer from 1 to 255, or one ASCII character")
    try:
        found = os.stat(path)
    except OSError as error:
        raise InvalidOption(
            f"ftok cannot use {os.fspath(path)!r}: {error.strerror}", "name a file that exists and stays"
        ) from None
    return number << 24 | (found.st_dev & 0xFF) << 16 | found.st_ino & 0xFFFF


def _check_word(option: str, value: str | None, words: Iterable[str]) -> None:
    if value is not None and value not in words:
        raise InvalidOption(f"{option} cannot be {value!r}", "use " + " or ".join(f'"{word}"' for word in words))
