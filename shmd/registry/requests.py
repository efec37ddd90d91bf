"""What each request does, one function a message. It checks first and raises; only then does it change anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from shmd import limits, names, policy, protocol
from shmd.errors import (
    LimitExceeded,
    NamespaceMismatch,
    NoSuchTopic,
    PermissionDenied,
    ProtocolError,
    TopicBusy,
    VersionMismatch,
)
from shmd.registry import quotas, segments
from shmd.registry.effects import (
    AdmitPublisher,
    CreateTopic,
    ForgetParticipant,
    HangUp,
    LookForStall,
    ReportStat,
    SlotHolder,
    StopDaemon,
)
from shmd.registry.endings import watch_publishers
from shmd.registry.entities import Creation, Kept, Publisher, SegmentUse, Subscriber, Watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmd.registry.entities import Client, Identity, Seat, Topic
    from shmd.registry.state import State


def handle(state: State, client: Client, message: protocol.Request) -> None:
    """Do what ``message`` asks. A ``ShmdError`` says why not; then nothing has changed."""
    _HANDLERS[type(message)](state, client, message)


# --- hello ------------------------------------------------------------------------------------------------------------


def _hello(state: State, client: Client, message: protocol.Hello) -> None:
    identity = state.identity
    try:
        _check_hello(identity, message)
    except (VersionMismatch, NamespaceMismatch) as error:
        state.refuse(client, message.id, error)
        state.hang_up(client, error.message)
        return
    resumed = False
    former = state.find_client(message.resume) if message.resume else None
    if former is not None and former.credentials.is_same_process(client.credentials):
        if message.id in former.handles:
            raise ProtocolError(f"id {message.id} is in use", "go on counting where the lost connection ended")
        resumed = state.rejoin(client, former)
        client = former if resumed else client
    client.welcome, client.name, client.pid_namespace = True, message.name, message.pid_namespace
    welcome = protocol.Welcome(
        id=message.id,
        major=protocol.VERSION_MAJOR,
        minor=protocol.VERSION_MINOR,
        client=client.number,
        instance=identity.instance,
        instance_id=identity.instance_id,
        ipc_namespace=identity.ipc_namespace,
        pid=identity.credentials.pid,
        roster_id=identity.roster_id,
        resumed=resumed,
        settling=bool(state.absent),
    )
    state.send(client, welcome)


def _check_hello(identity: Identity, message: protocol.Hello) -> None:
    if message.major != protocol.VERSION_MAJOR:
        raise VersionMismatch(
            f"this daemon speaks version {protocol.VERSION_MAJOR} of the control protocol, not {message.major}",
            "use the same release of shmd on both sides",
        )
    ours, theirs = identity.ipc_namespace, message.ipc_namespace
    if ours and theirs and ours != theirs:
        raise NamespaceMismatch(
            f"the client is in IPC namespace {theirs}, the daemon in {ours}: they cannot share segments",
            "let the client's container share the daemon's (--ipc=host, or --ipc=container:NAME), "
            f"or run it there with: nsenter --ipc -t {identity.credentials.pid}",
        )


def _bye(state: State, client: Client, message: protocol.Bye) -> None:
    state.release(client)
    state.send(client, protocol.Done(id=message.id))
    state.effects.append(HangUp(client.number, ""))


def _stop(state: State, client: Client, message: protocol.Stop) -> None:
    daemon, peer = state.identity.credentials, client.credentials
    if peer.uid not in (policy.ROOT_UID, daemon.uid):
        raise PermissionDenied(
            f"uid {peer.uid} may not stop this daemon, which uid {daemon.uid} runs", "ask that user, or root"
        )
    state.send(client, protocol.Done(id=message.id))
    state.effects.append(StopDaemon(client.number))


# --- topics: declare, list, look at, remove ---------------------------------------------------------------------------


def _declare(state: State, client: Client, message: protocol.Declare) -> None:
    if topic := _ensure_topic(state, client, message, policy.READ):
        state.send(client, protocol.TopicReply(id=message.id, topic=topic.info))


def _ensure_topic(
    state: State, client: Client, message: protocol.Declare | protocol.OpenPublisher, want: int
) -> Topic | None:
    """The topic; None if it has to be made first, for which the request waits from now on."""
    name = message.topic
    if name in state.topics:
        topic = state.topic(client, name, want)
        policy.check_match(message.options, topic.info)
        return topic
    settings = policy.resolve(message.options, client.credentials, state.identity.credentials)
    policy.check_creator(client.credentials, state.ownership(settings), want)
    quotas.check_topic(state, settings.size_bytes)
    creation = Creation(name, settings, (client.number, message.id), client.credentials.uid)
    state.creations[name] = creation
    state.enqueue(creation, client, message)
    state.effects.append(CreateTopic(name, settings, client.credentials.uid))
    return None


def _list_topics(state: State, client: Client, message: protocol.ListTopics) -> None:
    names.check_pattern(message.pattern)
    infos = [topic.info for topic in state.topics_readable_by(client, message.pattern)]
    rest = [info for info in infos if info.name > message.after]
    page = tuple(rest[: limits.PAGE_ENTRIES_MAX])
    following = page[-1].name if len(rest) > len(page) else None
    state.send(client, protocol.TopicList(id=message.id, topics=page, next=following))


def _stat_topic(state: State, client: Client, message: protocol.StatTopic) -> None:
    topic = state.topic(client, message.topic, policy.READ)
    publishers = tuple(_publisher_stat(publisher) for publisher in topic.publishers.values())
    state.effects.append(ReportStat(client.number, message.id, message.topic, publishers, _slot_holders(topic)))


def _publisher_stat(publisher: Publisher) -> protocol.PublisherStat:
    who = publisher.client
    return protocol.PublisherStat(
        name=who.name, pid=who.credentials.pid, uid=who.credentials.uid, publisher=publisher.number
    )


def _slot_holders(topic: Topic) -> tuple[SlotHolder, ...]:
    seated: list[Subscriber | Kept] = [*topic.subscribers.values(), *topic.kept.values()]
    return tuple(_slot_holder(who.client, who.seat) for who in seated)


def _slot_holder(who: Client, seat: Seat) -> SlotHolder:
    return SlotHolder(seat.slot, seat.incarnation, who.name, who.credentials.pid, who.credentials.uid)


def _peek(state: State, client: Client, message: protocol.Peek) -> None:
    topic = state.topic(client, message.topic, policy.READ)
    client.peeked.add(message.topic)
    state.send(client, protocol.TopicReply(id=message.id, topic=topic.info))


def _remove_topic(state: State, client: Client, message: protocol.RemoveTopic) -> None:
    topic = state.topic(client, message.topic, policy.NOTHING)
    if not policy.may_remove(client.credentials, topic.ownership, topic.declared_by):
        raise PermissionDenied(
            f"uid {client.credentials.uid} may not remove topic {message.topic!r}, "
            f"which uid {topic.ownership.uid} owns and uid {topic.declared_by} declared",
            "ask one of them, or root",
        )
    state.remove_topic(topic)
    state.send(client, protocol.Done(id=message.id))


# --- publishers -------------------------------------------------------------------------------------------------------


def _open_publisher(state: State, client: Client, message: protocol.OpenPublisher) -> None:
    state.check_handle_quota(client)
    topic = _ensure_topic(state, client, message, policy.READ | policy.WRITE)
    if topic is None:
        return
    _check_fellow_publishers(client, topic)
    state.check_participant_quota()
    publisher = Publisher(message.topic, state.next_publisher_number(), client)
    state.open_handle(client, message.id, publisher)
    if topic.info.notifier == "fifo":
        state.effects.append(AdmitPublisher(message.topic, publisher.number))
    state.note(client, message.id, topic.info.topic_id, "publisher", number=publisher.number)
    granted = protocol.PublisherGranted(id=message.id, topic=topic.info, publisher=publisher.number, fds=_bells(topic))
    state.send(client, granted, bells_of=message.topic)


def _check_fellow_publishers(client: Client, topic: Topic) -> None:
    fellow = next(iter(topic.publishers.values()), None)
    if fellow is None:
        return
    if topic.info.exclusive:
        raise TopicBusy(
            f"topic {topic.info.name!r} is exclusive, and {fellow.client} publishes to it",
            "it becomes free when that publisher is closed or its process ends",
        )
    if fellow.client.pid_namespace != client.pid_namespace:
        raise NamespaceMismatch(
            f"{fellow.client} publishes to topic {topic.info.name!r} from another PID namespace",
            "publishers of a shared topic lock by thread id: let their containers share one namespace (--pid=host)",
        )


def _wait_subscribers(state: State, client: Client, message: protocol.WaitSubscribers) -> None:
    topic = state.topic(client, message.topic, policy.READ)
    state.wait(topic.waits, client, message)
    _settle_waits(state, topic)


def _settle_waits(state: State, topic: Topic) -> None:
    for (number, request_id), wait in list(topic.waits.items()):
        if isinstance(wait, protocol.WaitSubscribers) and len(topic.joined) >= wait.count:
            client = state.clients[number]
            state.drop_pending(client, request_id)
            state.send(client, protocol.Done(id=request_id))


# --- subscribers ------------------------------------------------------------------------------------------------------


def _open_subscriber(state: State, client: Client, message: protocol.OpenSubscriber) -> None:
    state.check_handle_quota(client)
    topic = state.topic(client, message.topic, policy.READ)
    seat = state.take_kept(topic, client, message.watch) if message.watch else None
    from_start = seat is not None
    if seat is None:
        state.check_participant_quota()
        seat = topic.seats.take()
        if seat is None:
            raise LimitExceeded(
                f"topic {message.topic!r} has {state.quotas.subscribers_per_topic} subscribers, the limit for one",
                "close some subscriptions",
            )
        # No tether at position 0, where it would hold publishers up until the subscriber has found its start.
        state.grant_slot(topic, seat, live=False, tethered=False)
    had_before = 0 if from_start else topic.publishers_had - len(topic.publishers)
    state.open_handle(client, message.id, Subscriber(message.topic, seat, client, had_before))
    state.note(client, message.id, topic.info.topic_id, "subscriber", seat=seat, tethered=message.tethered)
    if from_start and message.watch:
        state.effects.append(ForgetParticipant(client.number, message.watch, topic.info.topic_id))
    granted = protocol.SubscriberGranted(
        id=message.id,
        topic=topic.info,
        slot=seat.slot,
        incarnation=seat.incarnation,
        from_start=from_start,
        fds=_bells(topic),
    )
    state.send(client, granted, bells_of=message.topic)
    if from_start:
        topic.joined.add((client.number, message.id))
        _settle_waits(state, topic)


def _joined(state: State, client: Client, message: protocol.Joined) -> None:
    subscriber = client.handles.get(message.handle)
    if isinstance(subscriber, Subscriber):
        topic = state.topics[subscriber.topic]
        topic.joined.add((client.number, message.handle))
        _settle_waits(state, topic)
    state.send(client, protocol.Done(id=message.id))


def _watch(state: State, client: Client, message: protocol.Watch) -> None:
    names.check_pattern(message.pattern)
    state.check_handle_quota(client)
    watch = Watch(message.pattern, message.tethered, client)
    client.handles[message.id] = watch
    state.watches[client.number, message.id] = watch
    for topic in state.topics_readable_by(client, message.pattern):
        state.send(client, protocol.TopicAdded(watch=message.id, topic=topic.info.name, existing=True))
    state.send(client, protocol.Done(id=message.id))


def _bells(topic: Topic) -> int:
    """How many descriptors a grant carries."""
    return 0 if topic.info.notifier == "fifo" else limits.BELLS_PER_GRANT


# --- handles ----------------------------------------------------------------------------------------------------------


def _close(state: State, client: Client, message: protocol.Close) -> None:
    if message.handle in client.handles:
        state.close_handle(client, message.handle)
    else:
        state.release_kept(client, message.handle)  # a watch of an earlier connection, not made again
    state.send(client, protocol.Done(id=message.id))


def _resume(state: State, client: Client, message: protocol.Resume) -> None:
    match client.handles.get(message.handle):
        case Publisher(topic=name) | Subscriber(topic=name):
            state.send(client, protocol.Resumed(id=message.id, fds=_bells(state.topics[name])), bells_of=name)
        case SegmentUse(segment=name):
            state.send(client, protocol.Resumed(id=message.id), segment=name)
        case _:
            raise NoSuchTopic(f"handle {message.handle} is gone, and its topic perhaps too", "open it anew")


def _report_stall(state: State, client: Client, message: protocol.ReportStall) -> None:
    topic = state.topic(client, message.topic, policy.READ | policy.WRITE)
    state.send(client, protocol.Done(id=message.id))
    if any(number == client.number for number, _ in topic.publishers):
        namespaces = frozenset(publisher.client.pid_namespace for publisher in topic.publishers.values())
        state.effects.append(LookForStall(message.topic, _slot_holders(topic), namespaces))


def _cancel(state: State, client: Client, message: protocol.Cancel) -> None:
    if message.target in client.pending:
        state.drop_pending(client, message.target)
    elif message.target in client.handles:
        state.close_handle(client, message.target)


_HANDLERS: Final[dict[type, Callable[[State, Client, Any], None]]] = {
    protocol.Hello: _hello,
    protocol.Declare: _declare,
    protocol.OpenPublisher: _open_publisher,
    protocol.OpenSubscriber: _open_subscriber,
    protocol.Joined: _joined,
    protocol.Peek: _peek,
    protocol.Watch: _watch,
    protocol.WatchPublishers: watch_publishers,
    protocol.Close: _close,
    protocol.ListTopics: _list_topics,
    protocol.StatTopic: _stat_topic,
    protocol.RemoveTopic: _remove_topic,
    protocol.WaitSubscribers: _wait_subscribers,
    protocol.Cancel: _cancel,
    protocol.Resume: _resume,
    protocol.ReportStall: _report_stall,
    protocol.OpenSegment: segments.open_segment,
    protocol.ListSegments: segments.list_segments,
    protocol.StatSegment: segments.stat_segment,
    protocol.SetSegment: segments.set_segment,
    protocol.RemoveSegment: segments.remove_segment,
    protocol.Bye: _bye,
    protocol.Stop: _stop,
}
