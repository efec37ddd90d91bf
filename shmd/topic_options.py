"""The options of a topic, as people write them, to what the daemon is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from shmd import limits, protocol, units
from shmd.errors import InvalidOption
from shmd.protocol import Lifetime, Notifier, WhenFull

if TYPE_CHECKING:
    from collections.abc import Iterable


def make_options(
    size: int | str | None,
    when_full: WhenFull | None,
    exclusive: bool | None,
    mode: int | None,
    lifetime: Lifetime | None,
    idle_ttl: float | str | None,
    stall_timeout: float | str | None,
    notifier: Notifier | None = None,
) -> protocol.TopicOptions:
    """See ``Client.topic``. ``InvalidOption`` for what cannot be."""
    _check_word("when_full", when_full, get_args(WhenFull))
    _check_word("lifetime", lifetime, get_args(Lifetime))
    _check_word("notifier", notifier, get_args(Notifier))
    if mode is not None and not (type(mode) is int and 0 <= mode <= 0o777):
        raise InvalidOption(f"mode cannot be {mode!r}", "give permission bits like 0o640")
    return protocol.TopicOptions(
        size_bytes=None if size is None else units.parse_size(size),
        when_full=when_full,
        exclusive=exclusive,
        mode=mode,
        lifetime=lifetime,
        idle_ttl_s=_seconds("idle_ttl", idle_ttl),
        stall_timeout_s=_seconds("stall_timeout", stall_timeout),
        notifier=notifier,
    )


def options_of(info: protocol.TopicInfo) -> protocol.TopicOptions:
    """What to ask for to get a topic like this one."""
    return protocol.TopicOptions(
        size_bytes=info.size_bytes,
        when_full=info.when_full,
        exclusive=info.exclusive,
        mode=info.mode,
        lifetime=info.lifetime,
        idle_ttl_s=info.idle_ttl_s,
        stall_timeout_s=info.stall_timeout_s,
        notifier=info.notifier,
    )


def _check_word(option: str, value: str | None, words: Iterable[str]) -> None:
    if value is not None and value not in words:
        raise InvalidOption(f"{option} cannot be {value!r}", "use " + " or ".join(f'"{word}"' for word in words))


def _seconds(option: str, time: float | str | None) -> float | None:
    if time is None:
        return None
    time_s = units.parse_time(time)
    if not 0 < time_s <= limits.TOPIC_TIMEOUT_S_MAX:
        raise InvalidOption(
            f"{option} cannot be {time!r}",
            f"more than 0 and at most {limits.TOPIC_TIMEOUT_S_MAX:.0f} s; leave it out for none",
        )
    return time_s
