"""The broker, as a pure state machine: an event in, a list of effects out.

    connection ──▶ client_connected, client_left, hello_overdue ─┐
    packet     ──▶ request, protocol_error ──────────────────────┼──▶ Registry ──▶ [Effect, …] ──▶ daemon
    resources  ──▶ topic_created, topic_failed ──────────────────┤
               ──▶ segment_created, segment_failed, _seen, _lost ┤
    clocks     ──▶ resume_overdue, topic_idle, stalled ──────────┤
    process    ──▶ process_died ─────────────────────────────────┤
    roster     ──▶ adopt ────────────────────────────────────────┘

It knows no clock, socket or segment: what happens out there comes in by events, and what shall happen goes out as
effects, to be performed in order before the next event. That makes it deterministic, and testable against a model.

Two rules serve all requests:

- **Checked before changed.** A handler raises before it touches the state; ``_attempt`` turns that into the refusal.
- **Queued behind a creation.** Making a topic or segment takes time (its memory is pre-faulted). A request that names
  one in the making is kept and tried again, in order, when it is there or has failed. So is the request that caused it.

A client whose connection is lost is **absent**: the data plane goes on without a connection, so all that it holds stays
its own until it says bye or its process is proven dead (``process_died``). If it does not resume in time its
subscribers only lose their tethers. A former daemon's clients, as the roster tells of them, begin absent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmd import limits, names, protocol
from shmd.errors import LimitExceeded, ProtocolError, ShmdError
from shmd.registry import segments
from shmd.registry.adoption import adopt
from shmd.registry.effects import HangUp, IgnoreDeath, Send
from shmd.registry.entities import Seat, Seats, Subscriber, Topic
from shmd.registry.requests import handle
from shmd.registry.state import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmd.policy import Credentials
    from shmd.registry.effects import AdoptedTopic, Effect, Participant
    from shmd.registry.entities import Client, Creation, Identity, Quotas

_GIVES_BACK = (protocol.Cancel, protocol.Close, protocol.Bye)
"""Admitted however many requests are under way: one at its limit must be able to give back, and none of these waits."""


class Registry:
    """Clients, topics and who takes part in what. Every event method returns the effects to perform."""

    def __init__(self, identity: Identity, quotas: Quotas) -> None:
        self._state = State(identity, quotas)

    def adopt(
        self,
        topics: Iterable[AdoptedTopic],
        participants: Iterable[Participant],
        publishers_numbered: int,
        segments: Iterable[protocol.SegmentInfo] = (),
    ) -> list[Effect]:
        """What the daemon before this one left; comes before all other events."""
        adopt(self._state, topics, participants, publishers_numbered, segments)
        return self._state.take_effects()

    # --- events: connections ------------------------------------------------------------------------------------------

    def client_connected(self, number: int, credentials: Credentials) -> list[Effect]:
        """A connection was accepted; ``number`` was never used before."""
        try:
            self._state.add_client(number, credentials)
        except LimitExceeded as error:
            return [Send(number, protocol.refusal(0, error)), IgnoreDeath(number), HangUp(number, error.message)]
        return []

    def hello_overdue(self, number: int) -> list[Effect]:
        """The time to say hello is over."""
        client = self._state.clients.get(number)
        if client is not None and not client.welcome:
            self._state.hang_up(client, f"no hello within {limits.HELLO_TIMEOUT_S:g} s")
        return self._state.take_effects()

    def client_left(self, number: int) -> list[Effect]:
        """The connection is gone, whoever ended it."""
        if client := self._state.clients.get(number):
            self._state.depart(client)
        return self._state.take_effects()

    def resume_overdue(self, number: int, absence: int) -> list[Effect]:
        """``RESUME_S`` have passed since ``AwaitResume``. What was kept for watches that were not made again goes."""
        state = self._state
        client = state.find_client(number)
        if client is not None and client.absences == absence:
            for watch in [watch for watch in client.kept if watch not in client.handles]:
                state.release_kept(client, watch)
            if number in state.absent and not state.forget_empty(client):
                for subscriber in client.handles.values():
                    if isinstance(subscriber, Subscriber):
                        state.untether(state.topics[subscriber.topic], subscriber.seat)
        return state.take_effects()

    def process_died(self, number: int) -> list[Effect]:
        """The process of a client, connected or absent, is proven dead."""
        state = self._state
        if client := state.find_client(number):
            connected = number in state.clients
            state.release(client)
            if connected:
                state.effects.append(HangUp(number, ""))
        return state.take_effects()

    # --- events: what clients say -------------------------------------------------------------------------------------

    def request(self, number: int, message: protocol.Request) -> list[Effect]:
        """A well-formed request. Ignored if the client has been hung up on."""
        if client := self._state.clients.get(number):
            try:
                self._admit(client, message)
            except ProtocolError as error:
                self._offence(client, message.id, error)
            except LimitExceeded as error:
                self._state.refuse(client, message.id, error)
            else:
                self._attempt(client, message)
        return self._state.take_effects()

    def protocol_error(self, number: int, error: ProtocolError) -> list[Effect]:
        """A packet that was no request."""
        if client := self._state.clients.get(number):
            self._offence(client, 0, error)
        return self._state.take_effects()

    # --- events: resources --------------------------------------------------------------------------------------------

    def topic_created(self, name: str, info: protocol.TopicInfo) -> list[Effect]:
        """``CreateTopic`` succeeded. Watches get their slots before anybody learns that the topic is there."""
        state = self._state
        creation = state.creations.pop(name)
        topic = Topic(info, state.ownership(info), creation.declared_by, Seats(state.quotas.subscribers_per_topic))
        state.topics[name] = topic
        watches = list(state.watches_of(topic))
        for request_id, watch in watches:
            state.keep_seat(topic, watch, request_id)
        for request_id, watch in watches:
            self._state.send(watch.client, protocol.TopicAdded(watch=request_id, topic=name, existing=False))
        declared = any(isinstance(message, protocol.Declare) for message in creation.waiting.values())
        self._attempt_waiting(creation)
        if topic.info.lifetime == "os" or not declared:  # one that was only declared waits for its first participant
            state.desert(topic)
        return state.take_effects()

    def topic_idle(self, name: str, idleness: int) -> list[Effect]:
        """The time for which a topic may be without participants (``AwaitIdle``) is over."""
        topic = self._state.topics.get(name)
        if topic is not None and topic.idle and topic.idleness == idleness:
            self._state.remove_topic(topic)
        return self._state.take_effects()

    def stalled(self, name: str, slot: int, incarnation: int) -> list[Effect]:
        """Whoever sits in this slot has held publishers back for longer than the topic allows."""
        state = self._state
        if topic := state.topics.get(name):
            seat = Seat(slot, incarnation)
            state.untether(topic, seat)
            for (_, request_id), subscriber in topic.subscribers.items():
                if subscriber.seat == seat and subscriber.client.number in state.clients:
                    state.send(subscriber.client, protocol.Untethered(topic=name, handle=request_id))
        return state.take_effects()

    def topic_failed(self, name: str, error: ShmdError) -> list[Effect]:
        """``CreateTopic`` failed and left nothing behind. Who else waits may try with options of its own."""
        return self._creation_failed(self._state.creations.pop(name), error)

    def segment_created(self, info: protocol.SegmentInfo) -> list[Effect]:
        """``CreateSegment`` succeeded."""
        self._attempt_waiting(segments.created(self._state, info))
        segments.desert(self._state, info.name)
        return self._state.take_effects()

    def segment_failed(self, name: str, error: ShmdError) -> list[Effect]:
        """``CreateSegment`` failed and left nothing behind. Who else waits may try with options of its own."""
        return self._creation_failed(self._state.segments.creations.pop(name), error)

    def segment_seen(self, name: str, uid: int, gid: int, mode: int) -> list[Effect]:
        """Somebody gave the segment this owner, group and mode."""
        segments.seen(self._state, name, uid, gid, mode)
        return self._state.take_effects()

    def segment_lost(self, name: str) -> list[Effect]:
        """Somebody removed the segment, without asking the daemon."""
        if segment := self._state.segments.existing.get(name):
            segments.remove(self._state, segment)
        return self._state.take_effects()

    # --- shared by all requests ---------------------------------------------------------------------------------------

    def _admit(self, client: Client, message: protocol.Request) -> None:
        is_hello = isinstance(message, protocol.Hello)
        if is_hello and client.welcome:
            raise ProtocolError("hello comes once", "connect again to begin anew")
        if not is_hello and not client.welcome:
            raise ProtocolError(f"{type(message).__name__} came before Hello", "say hello first")
        if message.id in client.handles or message.id in client.pending:
            raise ProtocolError(f"id {message.id} is in use", "give every request an id of its own")
        under_way, limit = len(client.pending), self._state.quotas.requests_per_client
        if under_way >= limit and not isinstance(message, _GIVES_BACK):
            raise LimitExceeded(f"{under_way} requests are under way, the limit for one client", "await some replies")

    def _attempt(self, client: Client, message: protocol.Request) -> None:
        try:
            if creation := self._find_creation(message):
                self._state.enqueue(creation, client, message)
            else:
                handle(self._state, client, message)
        except ShmdError as error:
            self._state.refuse(client, message.id, error)

    def _find_creation(self, message: protocol.Request) -> Creation[Any] | None:
        """Of what the message names. ``InvalidName``."""
        if (topic := getattr(message, "topic", None)) is not None:
            return self._state.creations.get(names.check_topic(topic))
        if (segment := getattr(message, "segment", None)) is not None:
            return self._state.segments.creations.get(names.check_segment(segment))
        return None

    def _creation_failed(self, creation: Creation[Any], error: ShmdError) -> list[Effect]:
        number, request_id = creation.creator
        if creation.waiting.pop(creation.creator, None):
            client = self._state.clients[number]
            del client.pending[request_id]
            self._state.refuse(client, request_id, error)
        self._attempt_waiting(creation)
        return self._state.take_effects()

    def _attempt_waiting(self, creation: Creation[Any]) -> None:
        for (number, request_id), message in creation.waiting.items():
            client = self._state.clients[number]
            del client.pending[request_id]
            self._attempt(client, message)

    def _offence(self, client: Client, request_id: int, error: ProtocolError) -> None:
        client.protocol_errors += 1
        self._state.refuse(client, request_id, error)
        if client.protocol_errors >= self._state.quotas.protocol_errors:
            self._state.hang_up(client, f"{client.protocol_errors} protocol errors, the last: {error.message}")
