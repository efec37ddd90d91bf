"""Names of topics and segments, patterns and instance names: what may be said, and what matches what.

A topic, and a segment, is ``tokens.with.dots``; a token is one or more of the characters in ``_TOKEN``.
A pattern may use ``*`` for exactly one token and, at the end, ``>`` for one or more (as in NATS).
"""

from __future__ import annotations

import re
from typing import Final

from shmd import limits
from shmd.errors import InvalidName

_TOKEN: Final = re.compile(r"[A-Za-z0-9_:@$+-]+")
_INSTANCE: Final = re.compile(r"[A-Za-z0-9_-]+")
_ALLOWED: Final = "letters, digits and _ : @ $ + - , in tokens separated by single dots"


def check_topic(name: str) -> str:
    """``name`` itself if it can name a topic, else ``InvalidName``."""
    _check_tokens(name, "name a topic", wildcards=False)
    return name


def check_segment(name: str) -> str:
    """``name`` itself if it can name a raw segment, else ``InvalidName``. A topic may have the same name."""
    _check_tokens(name, "name a segment", wildcards=False)
    return name


def check_pattern(pattern: str) -> str:
    """``pattern`` itself if it is a name or a pattern of names, else ``InvalidName``."""
    _check_tokens(pattern, "stand for names", wildcards=True)
    return pattern


def check_instance(name: str) -> str:
    """``name`` itself if it can name an instance, else ``InvalidName``."""
    if not _INSTANCE.fullmatch(name) or len(name) > limits.INSTANCE_NAME_BYTES_MAX:
        raise InvalidName(
            f"{name!r} cannot name an instance",
            f"use 1 to {limits.INSTANCE_NAME_BYTES_MAX} letters, digits, _ and -",
        )
    return name


def is_pattern(name: str) -> bool:
    """Whether ``name`` has wildcards."""
    return any(token in ("*", ">") for token in name.split("."))


def matches(pattern: str, topic: str) -> bool:
    """Whether ``topic`` is one that ``pattern`` stands for. Both are taken to be valid."""
    wanted, tokens = pattern.split("."), topic.split(".")
    for position, want in enumerate(wanted):
        if want == ">":
            return len(tokens) > position
        if position >= len(tokens) or want not in ("*", tokens[position]):
            return False
    return len(wanted) == len(tokens)


def _check_tokens(name: str, what: str, *, wildcards: bool) -> None:
    if not 0 < len(name) <= limits.TOPIC_NAME_BYTES_MAX:
        raise InvalidName(f"a name of {len(name)} characters cannot {what}", f"use 1 to {limits.TOPIC_NAME_BYTES_MAX}")
    parts = name.split(".")
    for position, part in enumerate(parts):
        if _TOKEN.fullmatch(part):
            continue
        if wildcards and (part == "*" or (part == ">" and position == len(parts) - 1)):
            continue
        hint = f"use {_ALLOWED}"
        if part in ("*", ">"):
            hint = "'>' may only be the last token" if wildcards else "wildcards are for patterns only"
        raise InvalidName(f"{name!r} cannot {what}: token {part!r}", hint)
