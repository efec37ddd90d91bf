"""What messages are made of: the base of all, and the types of their fields, each with its bounds."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

from shmd import keys, limits

WhenFull: TypeAlias = Literal["discard-old", "wait"]
Lifetime: TypeAlias = Literal["os", "attached"]
Notifier: TypeAlias = Literal["eventfd", "fifo"]
Backing: TypeAlias = Literal["memory", "file"]
Sync: TypeAlias = Literal["none", "interval", "always"]
RequestId: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
TopicName: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.TOPIC_NAME_BYTES_MAX)]
ClientName: TypeAlias = Annotated[str, msgspec.Meta(max_length=limits.CLIENT_NAME_BYTES_MAX)]
U32: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
U63: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Mode: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=0o777)]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=limits.TOPIC_TIMEOUT_S_MAX)]
SegmentKey: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=keys.KEY_MAX)]
"""Unsigned, as ``ipcs`` prints it; 0 is IPC_PRIVATE."""
SystemVId: TypeAlias = Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)]
"""-1: there is none."""
Id16: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Descriptors: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=limits.DESCRIPTORS_PER_MESSAGE_MAX)]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """Base of all messages: a msgpack map whose ``type`` names the message."""
