"""All that the registry remembers, and the few ways in which it changes: both ends of every link together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from shmd import names, policy, protocol
from shmd.errors import LimitExceeded, NoSuchTopic, PermissionDenied, TopicRemoved
from shmd.registry import segments
from shmd.registry.effects import (
    AwaitIdle,
    AwaitResume,
    DestroyTopic,
    DismissPublisher,
    Effect,
    ForgetParticipant,
    GrantSlot,
    HangUp,
    IgnoreDeath,
    NoteParticipant,
    Participant,
    Rebind,
    ReleaseSlot,
    RingBells,
    Send,
    Untether,
)
from shmd.registry.endings import settle_endings
from shmd.registry.entities import PUBLISHER_NUMBER_MAX, Client, Kept, Publisher, SegmentUse, Subscriber, Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmd.errors import ShmdError
    from shmd.policy import TopicSettings
    from shmd.protocol import Request, TopicInfo
    from shmd.registry.entities import Creation, Identity, Key, ParticipantKind, Quotas, Seat, Topic

_USE: Final = {policy.READ: "read", policy.READ | policy.WRITE: "publish to"}


class State:
    """Everything that the registry knows, and the effects collected since the last ``take_effects``."""

    def __init__(self, identity: Identity, quotas: Quotas) -> None:
        self.identity = identity
        self.quotas = quotas
        self.clients: dict[int, Client] = {}
        """Those that are connected."""
        self.absent: dict[int, Client] = {}
        """Those that are not, but hold something until they say bye, or their process is proven dead."""
        self.topics: dict[str, Topic] = {}
        self.creations: dict[str, Creation[TopicSettings]] = {}
        self.segments = segments.Segments()
        self.watches: dict[Key, Watch] = {}
        self.effects: list[Effect] = []
        self.publishers_numbered = 0
        self.participants = 0
        self._clients_of_uid: dict[int, int] = {}
        self._to_ring: dict[str, None] = {}
        self._deserted: dict[str, None] = {}

    def take_effects(self) -> list[Effect]:
        """What to perform, in order; the next call begins anew."""
        for name in self._deserted:
            if (topic := self.topics.get(name)) and topic.idle:
                self._became_idle(topic)
        # Bells last, and once each: whoever wakes must find the slots as they now are.
        effects = self.effects + [RingBells(name) for name in self._to_ring if name in self.topics]
        self.effects, self._to_ring, self._deserted = [], {}, {}
        return effects

    # --- effects ---

    def send(
        self, client: Client, message: protocol.Outbound, bells_of: str | None = None, segment: str | None = None
    ) -> None:
        self.effects.append(Send(client.number, message, bells_of, segment))

    def refuse(self, client: Client, request_id: int, error: ShmdError) -> None:
        self.send(client, protocol.refusal(request_id, error))

    def hang_up(self, client: Client, reason: str) -> None:
        self.depart(client)
        self.effects.append(HangUp(client.number, reason))

    def ring(self, name: str) -> None:
        self._to_ring[name] = None

    # --- clients ---

    def add_client(self, number: int, credentials: policy.Credentials) -> None:
        """``LimitExceeded`` if there are too many. Absent ones count as well: they hold as much as the others."""
        uid, quotas = credentials.uid, self.quotas
        if len(self.clients) + len(self.absent) >= quotas.clients:
            raise LimitExceeded(f"this daemon serves {quotas.clients} clients at most", "close some connections")
        count = self._clients_of_uid.get(uid, 0)
        if count >= quotas.clients_per_uid:
            raise LimitExceeded(f"uid {uid} has {count} clients, the limit for one user", "close some connections")
        self.clients[number] = Client(number, credentials)
        self._clients_of_uid[uid] = count + 1

    def adopt_client(self, client: Client) -> None:
        """One that an earlier daemon knew."""
        self.absent[client.number] = client
        self._clients_of_uid[client.credentials.uid] = self._clients_of_uid.get(client.credentials.uid, 0) + 1

    def find_client(self, number: int) -> Client | None:
        """Connected or absent."""
        return self.clients.get(number) or self.absent.get(number)

    def depart(self, client: Client) -> None:
        """Its connection is lost. What it takes part in with its own hands stays; what the daemon does for it ends."""
        del self.clients[client.number]
        client.absences += 1
        client.peeked.clear()
        for request_id in list(client.pending):
            self.drop_pending(client, request_id)
        for request_id, handle in list(client.handles.items()):
            if isinstance(handle, Watch):
                del client.handles[request_id], self.watches[client.number, request_id]
            elif isinstance(handle, Publisher):
                self.ring(handle.topic)  # it may have died between its commit and its bell
            elif isinstance(handle, Subscriber):
                self.topics[handle.topic].endings.pop((client.number, request_id), None)
        self.absent[client.number] = client
        if not self.forget_empty(client):
            self.effects.append(AwaitResume(client.number, client.absences))

    def rejoin(self, client: Client, former: Client) -> bool:
        """``client``, just connected, is ``former`` and takes its place. False: that held nothing, and is gone."""
        if former.number in self.clients:
            self.hang_up(former, "its process resumed on another connection")
        if self.absent.pop(former.number, None) is None:
            return False
        self._uncount(self.clients.pop(client.number))
        former.credentials = client.credentials
        self.clients[former.number] = former
        self.effects.append(Rebind(client.number, former.number))
        return True

    def release(self, client: Client) -> None:
        """It said bye, or is dead: everything it holds can move on."""
        for request_id in list(client.pending):
            self.drop_pending(client, request_id)
        for request_id, handle in list(client.handles.items()):
            if isinstance(handle, Publisher):
                self.ring(handle.topic)
            self.close_handle(client, request_id)
        for watch in list(client.kept):
            self.release_kept(client, watch)
        self.clients.pop(client.number, None)
        self.absent[client.number] = client
        self.forget_empty(client)

    def forget_empty(self, client: Client) -> bool:
        """Forget an absent client that holds nothing (any more). Whether it did."""
        if client.handles or client.kept or client.number not in self.absent:
            return False
        del self.absent[client.number]
        self._uncount(client)
        self.effects.append(IgnoreDeath(client.number))
        return True

    def _uncount(self, client: Client) -> None:
        uid = client.credentials.uid
        self._clients_of_uid[uid] -= 1
        if not self._clients_of_uid[uid]:
            del self._clients_of_uid[uid]

    # --- requests that wait ---

    def enqueue(self, creation: Creation[Any], client: Client, message: Request) -> None:
        """Keep ``message`` until what it names is there or has failed."""
        self.wait(creation.waiting, client, message)

    def wait(self, queue: dict[Key, Request], client: Client, message: Request) -> None:
        queue[client.number, message.id] = message
        client.pending[message.id] = queue

    def drop_pending(self, client: Client, request_id: int) -> None:
        del client.pending.pop(request_id)[client.number, request_id]

    # --- handles ---

    def check_handle_quota(self, client: Client) -> None:
        if len(client.handles) >= self.quotas.handles_per_client:
            raise LimitExceeded(f"one client may hold {self.quotas.handles_per_client} handles", "close some")

    def check_participant_quota(self) -> None:
        if self.participants >= self.quotas.participants:
            raise LimitExceeded(
                f"this daemon keeps account of {self.quotas.participants} publishers, subscribers and segments' users",
                "close some",
            )

    def next_publisher_number(self) -> int:
        if self.publishers_numbered >= PUBLISHER_NUMBER_MAX:
            raise LimitExceeded("this instance has numbered all publishers it can", "start another --instance")
        self.publishers_numbered += 1
        return self.publishers_numbered

    def open_handle(self, client: Client, request_id: int, handle: Publisher | Subscriber) -> None:
        """``client`` takes part in the topic from now on."""
        topic, key = self.topics[handle.topic], (client.number, request_id)
        client.handles[request_id] = handle
        if isinstance(handle, Publisher):
            topic.publishers[key] = handle
            topic.publishers_had += 1
        else:
            topic.subscribers[key] = handle
        self.participants += 1

    def note(
        self,
        client: Client,
        request_id: int,
        topic_id: bytes,
        kind: ParticipantKind,
        *,
        number: int = 0,
        seat: Seat | None = None,
        tethered: bool = False,
    ) -> None:
        """Let it be written down who takes part, before anybody is told."""
        participant = Participant(
            topic_id=topic_id,
            kind=kind,
            client=client.number,
            handle=request_id,
            credentials=client.credentials,
            name=client.name,
            pid_namespace=client.pid_namespace,
            number=number,
            seat=seat,
            tethered=tethered,
        )
        self.effects.append(NoteParticipant(participant))

    def close_handle(self, client: Client, request_id: int) -> None:
        handle, key = client.handles.pop(request_id), (client.number, request_id)
        match handle:
            case Publisher():
                topic = self.topics[handle.topic]
                del topic.publishers[key]
                if topic.info.notifier == "fifo":
                    self.effects.append(DismissPublisher(topic.info.name, handle.number))
                settle_endings(self, topic)
                self._parted(topic, key)
            case Subscriber():
                topic = self.topics[handle.topic]
                del topic.subscribers[key]
                topic.joined.discard(key)
                topic.endings.pop(key, None)
                self._release(topic, handle.seat)
                self._parted(topic, key)
            case Watch():
                del self.watches[key]
                self.release_kept(client, request_id)
            case SegmentUse():
                segments.leave(self, key, handle)

    def _release(self, topic: Topic, seat: Seat) -> None:
        topic.seats.give_back(seat)
        self.effects.append(ReleaseSlot(topic.info.name, seat.slot, seat.incarnation))
        self.ring(topic.info.name)  # publishers may have waited for this one

    def _parted(self, topic: Topic, key: Key) -> None:
        self.participants -= 1
        self.effects.append(ForgetParticipant(*key, topic.info.topic_id))
        self._deserted[topic.info.name] = None

    # --- slots ---

    def grant_slot(self, topic: Topic, seat: Seat, *, live: bool, tethered: bool) -> None:
        """Where the log gives up its oldest records, no tether holds anybody back."""
        tethered = tethered and topic.info.when_full == "wait"
        self.effects.append(GrantSlot(topic.info.name, seat.slot, seat.incarnation, live, tethered))

    def keep_seat(self, topic: Topic, watch: Watch, request_id: int) -> None:
        """Keep a seat for the watch, if there is one left, with a cursor that waits for the very first record."""
        if self.participants >= self.quotas.participants or not (seat := topic.seats.take()):
            return
        self.add_kept(topic, watch.client, request_id, seat)
        self.grant_slot(topic, seat, live=True, tethered=watch.tethered)
        self.note(watch.client, request_id, topic.info.topic_id, "kept", seat=seat, tethered=watch.tethered)

    def add_kept(self, topic: Topic, client: Client, watch: int, seat: Seat) -> None:
        topic.kept[client.number, watch] = Kept(seat, client)
        client.kept.setdefault(watch, set()).add(topic.info.name)
        self.participants += 1

    def take_kept(self, topic: Topic, client: Client, watch: int) -> Seat | None:
        """The seat kept for the watch; the caller makes a subscriber of it, and nobody else's row is noted any more."""
        key = (client.number, watch)
        if (kept := topic.kept.pop(key, None)) is None:
            return None
        self._unlink_kept(topic.info.name, client, watch)
        self.participants -= 1
        return kept.seat

    def release_kept(self, client: Client, watch: int) -> None:
        """Give back all seats kept for the watch."""
        for name in client.kept.pop(watch, ()):
            topic = self.topics[name]
            self._release(topic, topic.kept.pop((client.number, watch)).seat)
            self._parted(topic, (client.number, watch))

    def _unlink_kept(self, name: str, client: Client, watch: int) -> None:
        client.kept[watch].discard(name)
        if not client.kept[watch]:
            del client.kept[watch]

    def untether(self, topic: Topic, seat: Seat) -> None:
        self.effects.append(Untether(topic.info.name, seat.slot, seat.incarnation))
        self.ring(topic.info.name)

    # --- topics ---

    def ownership(self, what: TopicInfo | policy.TopicSettings) -> policy.Ownership:
        daemon = self.identity.credentials
        return policy.Ownership(what.uid, what.gid, what.mode, creator_uid=daemon.uid, creator_gid=daemon.gid)

    def topic(self, client: Client, name: str, want: int) -> Topic:
        """The topic, if it exists and ``client`` may use it so. ``NoSuchTopic``, ``PermissionDenied``."""
        topic = self.topics.get(name)
        if topic is None:
            hint = "declare it, or publish to it, first" if want else "shmd ls lists those that there are"
            raise NoSuchTopic(f"there is no topic {name!r}", hint)
        if not policy.may(client.credentials, topic.ownership, want):
            owner = topic.ownership
            raise PermissionDenied(
                f"uid {client.credentials.uid} may not {_USE[want]} topic {name!r}, "
                f"which has uid {owner.uid}, gid {owner.gid} and mode {owner.mode:04o}",
                "join its group, or have it created with another mode",
            )
        return topic

    def desert(self, topic: Topic) -> None:
        """It may have no participant: see to it when the event is dealt with."""
        self._deserted[topic.info.name] = None

    def _became_idle(self, topic: Topic) -> None:
        topic.idleness += 1
        if topic.info.lifetime == "attached":
            self.remove_topic(topic)
        elif topic.info.idle_ttl_s is not None:
            self.effects.append(AwaitIdle(topic.info.name, topic.idleness, topic.info.idle_ttl_s))

    def remove_topic(self, topic: Topic) -> None:
        """Forget it and everybody's part in it, and tell all whom it concerns."""
        name = topic.info.name
        audience = {watch.client.number for _, watch in self.watches_of(topic)}
        audience |= {client.number for client in self.clients.values() if name in client.peeked}
        audience |= {number for number, _ in [*topic.publishers, *topic.subscribers]}
        for number, request_id in topic.waits:
            client = self.clients[number]
            del client.pending[request_id]
            self.refuse(client, request_id, TopicRemoved(f"topic {name!r} was removed"))
        del self.topics[name]
        self.effects.append(DestroyTopic(name))
        self._dissolve(topic)
        for number in sorted(audience & self.clients.keys()):
            self.clients[number].peeked.discard(name)
            self.send(self.clients[number], protocol.TopicGone(topic=name, topic_id=topic.info.topic_id))

    def _dissolve(self, topic: Topic) -> None:
        """End everybody's part in a topic that is gone."""
        clients = [kept.client for kept in topic.kept.values()]
        for (_, watch), kept in topic.kept.items():
            self._unlink_kept(topic.info.name, kept.client, watch)
        participants: dict[Key, Publisher | Subscriber] = {**topic.publishers, **topic.subscribers}
        for (_, request_id), participant in participants.items():
            del participant.client.handles[request_id]
            clients.append(participant.client)
        for key in [*participants, *topic.kept]:
            self.participants -= 1
            self.effects.append(ForgetParticipant(*key, topic.info.topic_id))
        for client in clients:
            self.forget_empty(client)

    def topics_readable_by(self, client: Client, pattern: str) -> list[Topic]:
        """In order of name."""
        return [
            topic
            for name, topic in sorted(self.topics.items())
            if names.matches(pattern, name) and policy.may(client.credentials, topic.ownership, policy.READ)
        ]

    def watches_of(self, topic: Topic) -> Iterator[tuple[int, Watch]]:
        """(request id, watch) of all that this topic is announced to."""
        for (_, request_id), watch in self.watches.items():
            if names.matches(watch.pattern, topic.info.name) and policy.may(
                watch.client.credentials, topic.ownership, policy.READ
            ):
                yield request_id, watch
