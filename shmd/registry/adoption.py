"""How a registry begins that has a past: with the topics and participants that an earlier daemon noted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmd.registry import segments
from shmd.registry.effects import AwaitResume
from shmd.registry.entities import Client, Publisher, Seats, SegmentUse, Subscriber, Topic

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmd.protocol import SegmentInfo
    from shmd.registry.effects import AdoptedTopic, Participant
    from shmd.registry.state import State


def adopt(
    state: State,
    topics: Iterable[AdoptedTopic],
    participants: Iterable[Participant],
    publishers_numbered: int,
    segment_infos: Iterable[SegmentInfo],
) -> None:
    """Take over what was, every client absent. Each participant's topic or segment is one of those given, each seat its
    own.
    """
    state.publishers_numbered = publishers_numbered
    participants = list(participants)
    by_id = {}
    for adopted in topics:
        info = adopted.info
        taken = frozenset(
            participant.seat.slot
            for participant in participants
            if participant.seat is not None and participant.topic_id == info.topic_id
        )
        seats = Seats(state.quotas.subscribers_per_topic, adopted.incarnation_max, taken)
        had = int(adopted.published)
        topic = Topic(info, state.ownership(info), adopted.declared_by, seats, publishers_had=had)
        state.topics[info.name] = by_id[info.topic_id] = topic
    segments.adopt(state, segment_infos)
    used = {segment.info.segment_id: segment for segment in state.segments.existing.values()}
    had_before = {topic_id: topic.publishers_had for topic_id, topic in by_id.items()}
    for participant in participants:
        client, topic_id = _client(state, participant), participant.topic_id
        if participant.kind == "segment":
            segment = used[topic_id]
            segments.enter(state, segment, participant.handle, SegmentUse(segment.info.name, client))
        else:
            _seat(state, by_id[topic_id], client, participant, had_before[topic_id])
    for client in state.absent.values():
        client.absences = 1
        state.effects.append(AwaitResume(client.number, client.absences))
    for topic in by_id.values():
        state.ring(topic.info.name)
        state.desert(topic)
    for name in list(state.segments.existing):
        segments.desert(state, name)


def _client(state: State, participant: Participant) -> Client:
    client = state.absent.get(participant.client)
    if client is None:
        client = Client(participant.client, participant.credentials, True, participant.name, participant.pid_namespace)
        state.adopt_client(client)
    return client


def _seat(state: State, topic: Topic, client: Client, participant: Participant, had_before: int) -> None:
    name, seat = topic.info.name, participant.seat
    if seat is None:
        state.open_handle(client, participant.handle, Publisher(name, participant.number, client))
    elif participant.kind == "kept":
        state.add_kept(topic, client, participant.handle, seat)
    else:
        state.open_handle(client, participant.handle, Subscriber(name, seat, client, had_before))
        topic.joined.add((client.number, participant.handle))
