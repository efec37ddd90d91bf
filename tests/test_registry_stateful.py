"""The registry against a plain model: any events in any order, and after each the two must agree.

The model knows nothing of queues or seats. It keeps one dictionary of what each live handle stands for, one set of
unanswered requests, and what the replies that came must have meant. ``World`` (broker_rules) checks every effect. What
an absent client holds stays in the dictionary until it says bye, or its process dies; its watches do not.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from shmd import names, policy, protocol
from shmd.errors import ProtocolError, RequestRefused
from shmd.policy import Ownership
from shmd.protocol import (
    Cancel,
    Close,
    Declare,
    Done,
    OpenPublisher,
    OpenSubscriber,
    PublisherGranted,
    Refused,
    RemoveTopic,
    SubscriberGranted,
    TopicAdded,
    TopicGone,
    TopicOptions,
    WaitSubscribers,
    Watch,
)
from shmd.registry import Quotas
from tests.broker_rules import DAEMON, OVERHEAD_BYTES, World

TOPICS = ["a.x", "a.y", "b"]
PATTERNS = [">", "a.*", "b", "a.x"]
UIDS = [0, DAEMON.uid, 1000, 1001]
QUOTAS = Quotas(
    clients=6,
    clients_per_uid=4,
    topics=2,
    total_bytes=3 * (65536 + OVERHEAD_BYTES),
    subscribers_per_topic=4,
    handles_per_client=4,
    requests_per_client=3,
    protocol_errors=3,
)

options = st.builds(
    TopicOptions,
    size_bytes=st.sampled_from([None, 4096, 65536]),
    when_full=st.sampled_from([None, "wait", "discard-old"]),
    exclusive=st.sampled_from([None, True, False]),
    mode=st.sampled_from([None, 0o600, 0o640, 0o660, 0o666, 0o622]),
    notifier=st.sampled_from([None, None, "eventfd", "fifo"]),
)
topic_names = st.sampled_from(TOPICS)
# Few, so that live ones are used again; Cancel and Close find them as well.
request_ids = st.integers(1, 12)


@dataclass(frozen=True)
class Opened:
    """What a handle stands for; ``life`` is the id of the very topic, since a name may come to mean another."""

    kind: str
    topic: str
    life: bytes
    slot: int = -1
    exclusive: bool = False
    pattern: str = ""
    had_before: int = 0


class RegistryMachine(RuleBasedStateMachine):
    clients: ClassVar[Bundle[int]] = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.world = World(QUOTAS)
        self.uids: dict[int, int] = {}
        self.opened: dict[tuple[int, int], Opened] = {}
        self.pending: dict[tuple[int, int], str] = {}
        self.absent: dict[int, int] = {}
        self.read: dict[int, int] = {}
        self.publisher_numbers: set[int] = set()
        self.asked: dict[tuple[int, int], protocol.Request] = {}
        self.had: dict[bytes, int] = {}
        self.endings: dict[tuple[int, int], int] = {}

    # --- events ---

    @initialize(target=clients)
    def begin(self) -> Any:
        """With a topic for everybody, or most runs would end before anybody takes part in one."""
        client = self._welcome(self.world.connect(DAEMON.uid), DAEMON.uid)
        self._send(client, Declare(id=2**41, topic=TOPICS[0], options=TopicOptions(size_bytes=4096, mode=0o666)))
        self.world.topic_made(TOPICS[0])
        self._hear()
        return client

    @rule(target=clients, uid=st.sampled_from(UIDS))
    def connect(self, uid: int) -> Any:
        known = [*self.uids.values(), *self.absent.values()]
        crowded = len(known) >= QUOTAS.clients or known.count(uid) >= QUOTAS.clients_per_uid
        number = self.world.connect(uid)
        assert (number not in self.world.replies) == crowded
        return multiple() if crowded else self._welcome(number, uid)

    @rule(client=consumes(clients))
    def leave(self, client: int) -> None:
        if client in self.world.replies:
            uid = self.uids[client]
            self._gone(client)
            self.world.leave(client)
            self._absent(client, uid)
            self._hear()

    @rule(client=clients)
    def say_bye(self, client: int) -> None:
        if client in self.world.replies:
            self._released(client)
            self.world.send(client, protocol.Bye(id=2**50))
            assert client not in self.world.replies
            self._hear()

    @precondition(lambda self: self.absent)
    @rule(target=clients, data=st.data())
    def resume(self, data: st.DataObject) -> Any:
        client = data.draw(st.sampled_from(sorted(self.absent)))
        uid = self.absent[client]
        if len(self.uids) + len(self.absent) >= QUOTAS.clients:
            return multiple()
        if [*self.uids.values(), *self.absent.values()].count(uid) >= QUOTAS.clients_per_uid:
            return multiple()
        assert self.world.resume(client, uid=uid, request_id=2**42).resumed
        self.uids[client] = self.absent.pop(client)
        self.read[client] = len(self.world.replies[client])
        self._hear()
        return client

    @precondition(lambda self: self.absent)
    @rule(data=st.data())
    def resume_is_overdue(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(sorted(self.absent)))
        self.world.resume_overdue(client)
        self._absent(client, self.absent.pop(client))
        self._hear()

    @precondition(lambda self: not self.world.creating)
    @rule()
    def restart(self) -> None:
        uids = self.uids | self.absent
        for client in list(self.uids):
            self._gone(client)
        self.absent.clear()
        self.world.restart()
        self._forget_who_published()
        for client, uid in uids.items():
            self._absent(client, uid)
        self._hear()

    @rule(client=clients)
    def speak_garbage(self, client: int) -> None:
        self.world.perform(self.world.registry.protocol_error(client, ProtocolError("garbage")))
        self._hear()

    @rule(
        client=clients,
        request_id=request_ids,
        topic=topic_names,
        options=options,
        publish=st.booleans(),
        made_at_once=st.booleans(),
    )
    def declare_or_publish(
        self, client: int, request_id: int, topic: str, options: TopicOptions, publish: bool, made_at_once: bool
    ) -> None:
        self._send(client, (OpenPublisher if publish else Declare)(id=request_id, topic=topic, options=options))
        if made_at_once and topic in self.world.creating:
            self.world.topic_made(topic)
            self._hear()

    @rule(client=clients, request_id=request_ids, topic=topic_names, watch=st.none() | request_ids)
    def subscribe(self, client: int, request_id: int, topic: str, watch: int | None) -> None:
        self._send(client, OpenSubscriber(id=request_id, topic=topic, watch=watch))

    @precondition(lambda self: self.world.replies and self.world.topics)
    @rule(data=st.data(), count=st.integers(1, 3))
    def publish(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            if not self.world.replies:
                return  # the one before was an offence too many of the last client
            client, topic = self._some_client(data), self._some_topic(data)
            self._send(client, OpenPublisher(id=self._unused_id(client), topic=topic))

    @precondition(lambda self: self.world.replies and self.world.topics)
    @rule(data=st.data(), past=st.booleans())
    def subscribe_until_closed(self, data: st.DataObject, past: bool) -> None:
        client = self._some_client(data)
        handle = self._unused_id(client)
        self._send(client, OpenSubscriber(id=handle, topic=self._some_topic(data)))
        self._watch_publishers(client, 100, handle, past=past)

    @rule(client=clients, request_id=st.integers(100, 110), handle=request_ids)
    def join(self, client: int, request_id: int, handle: int) -> None:
        self._send(client, protocol.Joined(id=request_id, handle=handle))

    @rule(topic=topic_names)
    def write(self, topic: str) -> None:
        info = self.world.topics.get(topic)
        if info is not None and self.had.get(info.topic_id):
            self.world.written.add(topic)

    @rule(client=clients, request_id=st.integers(100, 110), handle=request_ids)
    def watch_publishers_of_anything(self, client: int, request_id: int, handle: int) -> None:
        self._watch_publishers(client, request_id, handle, past=True)

    @precondition(lambda self: self._connected("subscriber"))
    @rule(data=st.data(), request_id=st.integers(100, 110), past=st.booleans())
    def watch_publishers(self, data: st.DataObject, request_id: int, past: bool) -> None:
        client, handle = data.draw(st.sampled_from(self._connected("subscriber")))
        self._watch_publishers(client, request_id, handle, past=past)

    @precondition(lambda self: self._connected("publisher"))
    @rule(data=st.data(), request_id=st.integers(100, 110))
    def close_publisher(self, data: st.DataObject, request_id: int) -> None:
        client, handle = data.draw(st.sampled_from(self._connected("publisher")))
        self.close(client, request_id, handle)

    @rule(client=clients, request_id=request_ids, pattern=st.sampled_from(PATTERNS), tethered=st.booleans())
    def watch(self, client: int, request_id: int, pattern: str, tethered: bool) -> None:
        self._send(client, Watch(id=request_id, pattern=pattern, tethered=tethered))

    @rule(client=clients, request_id=request_ids, topic=topic_names, count=st.integers(0, 3))
    def wait(self, client: int, request_id: int, topic: str, count: int) -> None:
        self._send(client, WaitSubscribers(id=request_id, topic=topic, count=count))

    @rule(
        client=clients,
        request_id=request_ids,
        topic=topic_names,
        kind=st.sampled_from([protocol.Peek, protocol.StatTopic, RemoveTopic]),
    )
    def look_or_remove(self, client: int, request_id: int, topic: str, kind: type[protocol.Peek]) -> None:
        self._send(client, kind(id=request_id, topic=topic))

    @rule(client=clients, request_id=st.integers(100, 110), other=request_ids)
    def close(self, client: int, request_id: int, other: int) -> None:
        if client in self.world.replies:
            self.opened.pop((client, other), None)
        self._send(client, Close(id=request_id, handle=other))

    @rule(client=clients, request_id=st.integers(100, 110), other=request_ids)
    def cancel(self, client: int, request_id: int, other: int) -> None:
        if client in self.world.replies:
            if (client, other) in self.pending:
                del self.pending[client, other]
            else:
                self.opened.pop((client, other), None)
        self._send(client, Cancel(id=request_id, target=other))

    @precondition(lambda self: self.world.creating)
    @rule(data=st.data(), succeeds=st.booleans())
    def creation_ends(self, data: st.DataObject, succeeds: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.creating)))
        if succeeds:
            self.world.topic_made(name)
        else:
            self.world.topic_failed(name, RequestRefused("no memory"))
        self._hear()

    @precondition(lambda self: self.world.living)
    @rule(data=st.data())
    def process_dies(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.world.living)))
        self._released(number)
        self.world.process_died(number)
        self._hear()

    # --- the model ---

    def _welcome(self, number: int, uid: int) -> int:
        self.uids[number] = uid
        self.read[number] = 0
        self._send(number, protocol.Hello(id=2**40, major=1, minor=0, pid_namespace=1 + uid % 2))
        return number

    def _some_client(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.world.replies)))

    def _some_topic(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.world.topics)))

    def _unused_id(self, client: int) -> int:
        """One of ``request_ids`` that means nothing now."""
        return next(number for number in range(1, 99) if (client, number) not in self.opened | self.pending)

    def _connected(self, kind: str) -> list[tuple[int, int]]:
        """Keys of all that connected clients have opened of this kind."""
        return sorted(key for key, what in self.opened.items() if what.kind == kind and key[0] in self.world.replies)

    def _watch_publishers(self, client: int, request_id: int, handle: int, *, past: bool) -> None:
        subscriber = self.opened.get((client, handle))
        if client in self.world.replies and subscriber is not None and subscriber.kind == "subscriber":
            self.endings[client, handle] = 0 if past else subscriber.had_before
        self._send(client, protocol.WatchPublishers(id=request_id, handle=handle, past=past))

    def _send(self, client: int, message: protocol.Request) -> None:
        if client not in self.world.replies:
            assert self.world.registry.request(client, message) == []
            return
        key = (client, message.id)
        live = key in self.opened or key in self.pending
        answers_before = len(self.world.replies[client])
        if not live and not isinstance(message, Cancel):
            self.asked[key] = message
            self.pending[key] = getattr(message, "topic", "")
        self.world.perform(self.world.registry.request(client, message))
        if live and client in self.world.replies:
            answer = self.world.replies[client][answers_before]
            assert isinstance(answer, Refused)
            assert answer.code == ProtocolError.code
            self.read[client] = answers_before + 1
        if isinstance(message, protocol.StatTopic) and not live:
            self._stat_is_answered(key)
        self._hear()

    def _stat_is_answered(self, key: tuple[int, int]) -> None:
        # Its answer comes from the segments, which only a daemon has; World has checked the effect.
        if any(getattr(effect, "request_id", None) == key[1] for effect in self.world.log):
            self.pending.pop(key, None)

    def _hear(self) -> None:
        """Let the model learn from every message that was not heard yet."""
        for client in [number for number in self.uids if number not in self.world.replies]:
            uid = self.uids[client]
            self._gone(client)
            self._absent(client, uid)
        for effect in self.world.log:
            name = getattr(effect, "topic", None)
            if type(effect).__name__ == "DestroyTopic":
                self._topic_gone(str(name))
        for client, replies in self.world.replies.items():
            for message in replies[self.read[client] :]:
                self._learn(client, message)
            self.read[client] = len(replies)

    def _learn(self, client: int, message: protocol.Outbound) -> None:
        if isinstance(message, TopicAdded):
            self._check_added(client, message)
            return
        if isinstance(message, protocol.PublishersGone):
            self._check_ended(client, message)
            return
        if isinstance(message, TopicGone | protocol.Untethered | protocol.SegmentGone):
            return
        key = (client, message.id)
        if message.id == 0:
            return  # about a packet that could not be read
        assert key in self.pending or isinstance(message, Refused), "an answer that nobody asked for"
        self.pending.pop(key, None)
        if isinstance(message, PublisherGranted):
            assert message.publisher not in self.publisher_numbers
            self.publisher_numbers.add(message.publisher)
            info = message.topic
            self._check_may(client, info, policy.READ | policy.WRITE)
            if info.exclusive:
                assert not self._exclusive_holders(info.topic_id), "two exclusive publishers"
            self.opened[key] = Opened("publisher", info.name, info.topic_id, exclusive=info.exclusive)
            self.had[info.topic_id] = self.had.get(info.topic_id, 0) + 1
        elif isinstance(message, SubscriberGranted):
            info = message.topic
            self._check_may(client, info, policy.READ)
            assert self.world.slots[info.name, message.slot][0] == message.incarnation
            gone_before = self.had.get(info.topic_id, 0) - len(self._publishers(info.topic_id))
            had_before = 0 if message.from_start else gone_before
            self.opened[key] = Opened("subscriber", info.name, info.topic_id, slot=message.slot, had_before=had_before)
        elif isinstance(message, Done) and isinstance(asked := self.asked[key], Watch):
            self.opened[key] = Opened("watch", "", b"", pattern=asked.pattern)

    def _check_added(self, client: int, message: TopicAdded) -> None:
        info = self.world.topics.get(message.topic)
        asked = self.asked[client, message.watch]
        assert isinstance(asked, Watch)
        assert names.matches(asked.pattern, message.topic)
        if info is not None:
            self._check_may(client, info, policy.READ)

    def _check_ended(self, client: int, message: protocol.PublishersGone) -> None:
        had_before = self.endings.pop((client, message.handle))
        subscriber = self.opened[client, message.handle]
        assert (subscriber.kind, subscriber.topic) == ("subscriber", message.topic)
        assert self.had[subscriber.life] > had_before

    def _publishers(self, life: bytes) -> list[tuple[int, int]]:
        return [key for key, what in self.opened.items() if what.kind == "publisher" and what.life == life]

    def _forget_who_published(self) -> None:
        """What a new daemon knows of publishers: those that it finds noted, and whether there are records."""
        self.endings.clear()
        had_before = {info.topic_id: int(name in self.world.written) for name, info in self.world.topics.items()}
        self.had = {life: had + len(self._publishers(life)) for life, had in had_before.items()}
        for key, what in self.opened.items():
            if what.kind == "subscriber":
                self.opened[key] = dataclasses.replace(what, had_before=had_before[what.life])

    def _check_may(self, client: int, info: protocol.TopicInfo, want: int) -> None:
        uid = self.uids[client]
        ownership = Ownership(info.uid, info.gid, info.mode, DAEMON.uid, DAEMON.gid)
        assert policy.may(policy.Credentials(uid, uid, 0), ownership, want)

    def _exclusive_holders(self, life: bytes) -> list[int]:
        return [client for (client, _), what in self.opened.items() if what.exclusive and what.life == life]

    def _gone(self, client: int) -> None:
        del self.uids[client]
        del self.read[client]
        for key in [key for key in self.pending if key[0] == client]:
            del self.pending[key]
        for key in [key for key, what in self.opened.items() if key[0] == client and what.kind == "watch"]:
            del self.opened[key]
        self.endings = {key: had for key, had in self.endings.items() if key[0] != client}

    def _absent(self, client: int, uid: int) -> None:
        """It is not connected; if it holds something, the registry remembers it."""
        if client in self.world.living:
            self.absent[client] = uid
        else:
            assert not [key for key in self.opened if key[0] == client]

    def _released(self, client: int) -> None:
        """It holds nothing any more."""
        self.absent.pop(client, None)
        if client in self.uids:
            self._gone(client)
        for key in [key for key in self.opened if key[0] == client]:
            del self.opened[key]

    def _topic_gone(self, name: str) -> None:
        live = {info.topic_id for info in self.world.topics.values()}
        for key, what in list(self.opened.items()):
            if what.topic == name and what.life not in live:
                del self.opened[key]
        for client in [client for client in self.absent if client not in self.world.living]:
            del self.absent[client]

    # --- what must hold after every step ---

    @invariant()
    def every_subscriber_has_a_slot_of_its_own(self) -> None:
        places = [(what.topic, what.slot) for what in self.opened.values() if what.kind == "subscriber"]
        assert len(places) == len(set(places))
        assert set(places) <= self.world.slots.keys()

    @invariant()
    def slots_are_held_by_subscribers_and_watches_only(self) -> None:
        subscribers = {(what.topic, what.slot) for what in self.opened.values() if what.kind == "subscriber"}
        watches = [what for what in self.opened.values() if what.kind == "watch"]
        for topic in {place[0] for place in self.world.slots}:
            kept = sum(1 for place in self.world.slots if place[0] == topic and place not in subscribers)
            life = self.world.topics[topic].topic_id
            noted = [note for note in self.world.notes.values() if note.kind == "kept" and note.topic_id == life]
            assert kept == len(noted)
            known = {note.client for note in noted}
            assert (
                kept <= sum(names.matches(watch.pattern, topic) for watch in watches)
                or known & self.world.absences.keys()
            )

    @invariant()
    def everybody_is_told_of_the_end_when_it_has_come(self) -> None:
        for key, had_before in self.endings.items():
            life = self.opened[key].life if key in self.opened else b""
            assert not life or self._publishers(life) or self.had.get(life, 0) <= had_before

    @invariant()
    def every_exclusive_topic_has_one_publisher_at_most(self) -> None:
        for info in self.world.topics.values():
            assert len(self._exclusive_holders(info.topic_id)) <= 1

    @invariant()
    def nobody_waits_for_a_topic_that_is_neither_there_nor_in_the_making(self) -> None:
        for topic in self.pending.values():
            assert topic in self.world.creating or topic in self.world.topics

    @invariant()
    def quotas_hold(self) -> None:
        infos, creations = self.world.topics.values(), self.world.creating.values()
        sizes = [info.size_bytes for info in infos] + [creation.settings.size_bytes for creation in creations]
        assert len(sizes) <= QUOTAS.topics
        assert sum(sizes) + len(sizes) * OVERHEAD_BYTES <= QUOTAS.total_bytes
        for client in self.uids:
            assert sum(key[0] == client for key in self.opened) <= QUOTAS.handles_per_client
            assert sum(key[0] == client for key in self.pending) <= QUOTAS.requests_per_client

    def teardown(self) -> None:
        """When everybody has left and died, nothing is held any more."""
        for client in list(self.world.replies):
            self.world.leave(client)
        for name in list(self.world.creating):
            self.world.topic_made(name)
        for number in list(self.world.living):
            self.world.process_died(number)
        assert not self.world.notes
        assert not self.world.slots
        assert not self.world.creating
        root = self.world.client(0)
        for name in list(self.world.topics):
            assert isinstance(self.world.ask(root, RemoveTopic(id=self.world.new_id(), topic=name)), Done)
        assert not self.world.topics


TestRegistryMachine = RegistryMachine.TestCase
