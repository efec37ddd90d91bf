"""When a topic ends for a subscriber that reads it like a pipe: it has had a publisher, and has none left.

A publisher is there until it is closed or its process is proven dead. One whose connection is lost, perhaps because the
daemon was restarted, only is absent, and ends nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmd import protocol
from shmd.registry.entities import Subscriber

if TYPE_CHECKING:
    from shmd.registry.entities import Client, Topic
    from shmd.registry.state import State


def watch_publishers(state: State, client: Client, message: protocol.WatchPublishers) -> None:
    """Have the end told to a subscriber of this client; perhaps at once."""
    subscriber = client.handles.get(message.handle)
    state.send(client, protocol.Done(id=message.id))
    if isinstance(subscriber, Subscriber):
        topic = state.topics[subscriber.topic]
        topic.endings[client.number, message.handle] = 0 if message.past else subscriber.published_before
        settle_endings(state, topic)


def settle_endings(state: State, topic: Topic) -> None:
    """Tell those for whom the topic has come to its end."""
    if topic.publishers:
        return
    for (number, handle), had_before in list(topic.endings.items()):
        if topic.publishers_had > had_before:
            del topic.endings[number, handle]
            state.send(state.clients[number], protocol.PublishersGone(topic=topic.info.name, handle=handle))
