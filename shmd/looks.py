"""Logs that ``client.latest`` keeps attached, so that asking again is a memory read.

Bounded: the one not asked for the longest goes first. The daemon tells when one of these topics is removed.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from shmd import limits
from shmd.attachment import Attachment

if TYPE_CHECKING:
    from shmd import _core
    from shmd.protocol import TopicInfo


class Looks:
    """Read-only attachments by topic name."""

    def __init__(self) -> None:
        self._attachments: OrderedDict[str, Attachment] = OrderedDict()

    def find(self, topic: str) -> _core.Log | None:
        """The log of ``topic`` if it is kept; it then counts as just used."""
        attachment = self._attachments.get(topic)
        if attachment is None:
            return None
        self._attachments.move_to_end(topic)
        return attachment.log

    def keep(self, info: TopicInfo) -> _core.Log:
        """Attach and keep a topic's log. Raises as ``Attachment`` does."""
        attachment = Attachment(info, "looker")
        if previous := self._attachments.pop(info.name, None):
            previous.close()
        self._attachments[info.name] = attachment
        if len(self._attachments) > limits.LATEST_TOPICS_MAX:
            self._attachments.popitem(last=False)[1].close()
        return attachment.log

    def drop(self, topic: str, topic_id: bytes) -> None:
        """The topic was removed; one of the same name with another id stays."""
        attachment = self._attachments.get(topic)
        if attachment is not None and attachment.info.topic_id == topic_id:
            del self._attachments[topic]
            attachment.close()

    def close(self) -> None:
        while self._attachments:
            self._attachments.popitem()[1].close()
