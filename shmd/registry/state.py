"""All that the registry remembers, and the few ways in which it changes: both ends of every link together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shmd import names, policy, protocol
from shmd.errors import LimitExceeded, NoSuchTopic, PermissionDenied, TopicRemoved
from shmd.registry.effects import (
    AwaitDeath,
    DestroyTopic,
    Effect,
    GrantSlot,
    HangUp,
    IgnoreDeath,
    ReleaseSlot,
    RingBells,
    Send,
)
from shmd.registry.entities import PUBLISHER_NUMBER_MAX, Client, Publisher, Subscriber, Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmd.errors import ShmdError
    from shmd.protocol import Request, TopicInfo
    from shmd.registry.entities import Creation, Identity, Key, Quotas, Seat, Topic

_USE: Final = {policy.READ: "read", policy.READ | policy.WRITE: "publish to"}


class State:
    """Everything that the registry knows, and the effects collected since the last ``take_effects``."""

    def __init__(self, identity: Identity, quotas: Quotas) -> None:
        self.identity = identity
        self.quotas = quotas
        self.clients: dict[int, Client] = {}
        self.leaseholders: dict[int, Client] = {}
        """Clients that left, but hold exclusive publishers until their process is proven dead."""
        self.topics: dict[str, Topic] = {}
        self.creations: dict[str, Creation] = {}
        self.watches: dict[Key, Watch] = {}
        self.effects: list[Effect] = []
        self._clients_of_uid: dict[int, int] = {}
        self._publishers_numbered = 0
        self._to_ring: dict[str, None] = {}

    def take_effects(self) -> list[Effect]:
        """What to perform, in order; the next call begins anew."""
        # Bells last, and once each: whoever wakes must find the slots as they now are.
        effects = self.effects + [RingBells(name) for name in self._to_ring if name in self.topics]
        self.effects, self._to_ring = [], {}
        return effects

    # --- effects ---

    def send(self, client: Client, message: protocol.Outbound, bells_of: str | None = None) -> None:
        self.effects.append(Send(client.number, message, bells_of))

    def refuse(self, client: Client, request_id: int, error: ShmdError) -> None:
        self.send(client, protocol.refusal(request_id, error))

    def hang_up(self, client: Client, reason: str) -> None:
        self.remove_client(client)
        self.effects.append(HangUp(client.number, reason))

    def grant_slot(self, topic: Topic, seat: Seat, *, tethered: bool) -> None:
        """Where the log gives up its oldest records, no tether holds anybody back."""
        tethered = tethered and topic.info.when_full == "wait"
        self.effects.append(GrantSlot(topic.info.name, seat.slot, seat.incarnation, tethered))

    # --- clients ---

    def add_client(self, number: int, credentials: policy.Credentials) -> None:
        """``LimitExceeded`` if there are too many."""
        uid, quotas = credentials.uid, self.quotas
        if len(self.clients) >= quotas.clients:
            raise LimitExceeded(f"this daemon serves {quotas.clients} clients at most", "close some connections")
        count = self._clients_of_uid.get(uid, 0)
        if count >= quotas.clients_per_uid:
            raise LimitExceeded(f"uid {uid} has {count} clients, the limit for one user", "close some connections")
        self.clients[number] = Client(number, credentials)
        self._clients_of_uid[uid] = count + 1

    def remove_client(self, client: Client) -> None:
        """Give back everything it holds, its leases excepted."""
        del self.clients[client.number]
        uid = client.credentials.uid
        self._clients_of_uid[uid] -= 1
        if not self._clients_of_uid[uid]:
            del self._clients_of_uid[uid]
        for request_id in list(client.pending):
            self.drop_pending(client, request_id)
        for request_id, handle in list(client.handles.items()):
            if isinstance(handle, Publisher):
                self._to_ring[handle.topic] = None  # it may have died between its commit and its bell
                if self.topics[handle.topic].info.exclusive:
                    self.leaseholders[client.number] = client
                    continue
            self.close_handle(client, request_id)
        if client.number in self.leaseholders:
            self.effects.append(AwaitDeath(client.number))

    def end_leases(self, client: Client) -> None:
        """Its process is dead: what it left behind can move on."""
        for request_id, handle in list(client.handles.items()):
            self.close_handle(client, request_id)
            if isinstance(handle, Publisher):
                self._to_ring[handle.topic] = None

    # --- requests that wait ---

    def enqueue(self, creation: Creation, client: Client, message: Request) -> None:
        """Keep ``message`` until the topic is there or has failed."""
        creation.waiting[client.number, message.id] = message
        client.pending[message.id] = creation.topic

    def drop_pending(self, client: Client, request_id: int) -> None:
        name = client.pending.pop(request_id)
        if creation := self.creations.get(name):
            del creation.waiting[client.number, request_id]
        else:
            del self.topics[name].waits[client.number, request_id]

    # --- handles ---

    def check_handle_quota(self, client: Client) -> None:
        if len(client.handles) >= self.quotas.handles_per_client:
            raise LimitExceeded(f"one client may hold {self.quotas.handles_per_client} handles", "close some")

    def next_publisher_number(self) -> int:
        if self._publishers_numbered >= PUBLISHER_NUMBER_MAX:
            raise LimitExceeded("this daemon has numbered all publishers it can", "restart it")
        self._publishers_numbered += 1
        return self._publishers_numbered

    def close_handle(self, client: Client, request_id: int) -> None:
        handle, key = client.handles.pop(request_id), (client.number, request_id)
        match handle:
            case Publisher():
                del self.topics[handle.topic].publishers[key]
            case Subscriber():
                del self.topics[handle.topic].subscribers[key]
                self.topics[handle.topic].joined.discard(key)
                self._release(handle.topic, handle.seat)
            case Watch():
                del self.watches[key]
                for name, seat in handle.seats.items():
                    self._release(name, seat)

    def _release(self, name: str, seat: Seat) -> None:
        self.topics[name].seats.give_back(seat)
        self.effects.append(ReleaseSlot(name, seat.slot, seat.incarnation))
        self._to_ring[name] = None  # publishers may have waited for this one

    # --- topics ---

    def ownership(self, what: TopicInfo | policy.TopicSettings) -> policy.Ownership:
        daemon = self.identity.credentials
        return policy.Ownership(what.uid, what.gid, what.mode, creator_uid=daemon.uid, creator_gid=daemon.gid)

    def check_topic_quotas(self, size_bytes: int) -> None:
        sizes = [topic.info.size_bytes for topic in self.topics.values()]
        sizes += [creation.settings.size_bytes for creation in self.creations.values()]
        if len(sizes) >= self.quotas.topics:
            raise LimitExceeded(f"this daemon keeps {self.quotas.topics} topics at most", "remove some")
        overhead = self.identity.topic_overhead_bytes
        free = self.quotas.total_bytes - sum(sizes) - len(sizes) * overhead
        needed = size_bytes + overhead
        if needed > free:
            raise LimitExceeded(
                f"the topic needs {needed} bytes, and {free} of the limit of {self.quotas.total_bytes} are free",
                "remove some topics, or serve with a higher --max-bytes",
            )

    def topic(self, client: Client, name: str, want: int) -> Topic:
        """The topic, if it exists and ``client`` may use it so. ``NoSuchTopic``, ``PermissionDenied``."""
        topic = self.topics.get(name)
        if topic is None:
            raise NoSuchTopic(f"there is no topic {name!r}", "declare it, or publish to it, first")
        if not policy.may(client.credentials, topic.ownership, want):
            owner = topic.ownership
            raise PermissionDenied(
                f"uid {client.credentials.uid} may not {_USE[want]} topic {name!r}, "
                f"which has uid {owner.uid}, gid {owner.gid} and mode {owner.mode:04o}",
                "join its group, or have it created with another mode",
            )
        return topic

    def remove_topic(self, topic: Topic) -> None:
        """Forget it and everybody's part in it, and tell all whom it concerns."""
        name = topic.info.name
        participants: dict[Key, Publisher | Subscriber] = {**topic.publishers, **topic.subscribers}
        audience = {watch.client.number for _, watch in self.watches_of(topic)}
        audience |= {client.number for client in self.clients.values() if name in client.peeked}
        audience |= {number for number, _ in participants}
        for (_, request_id), participant in participants.items():
            del participant.client.handles[request_id]
        for watch in self.watches.values():
            watch.seats.pop(name, None)
        for number, request_id in topic.waits:
            del self.clients[number].pending[request_id]
            self.refuse(self.clients[number], request_id, TopicRemoved(f"topic {name!r} was removed"))
        del self.topics[name]
        self.effects.append(DestroyTopic(name))
        self._forget_ended_leases()
        for number in sorted(audience & self.clients.keys()):
            self.clients[number].peeked.discard(name)
            self.send(self.clients[number], protocol.TopicGone(topic=name, topic_id=topic.info.topic_id))

    def _forget_ended_leases(self) -> None:
        for number in [number for number, client in self.leaseholders.items() if not client.handles]:
            del self.leaseholders[number]
            self.effects.append(IgnoreDeath(number))

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
