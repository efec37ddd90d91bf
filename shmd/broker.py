"""The registry put to work: its events come from real connections, and its effects happen to real segments.

    Connection ──packet──▶ decode ──▶ Registry ──effects──▶ send, hang up, create, grant, ring, …
        ▲                                                                              │
        └──────────────────────────── replies and events, with bells ──────────────────┘

Everything runs in the event loop's thread and nothing waits, except that topics and segments are made by worker
threads. Raw segments are kept by the ``SegmentKeeper``. Effects are
performed at once and in order, before anything else can happen, so that the registry's picture holds when the next
event comes. What a peer sends cannot raise here: it becomes an event, and the registry answers.

Whatever a later daemon must know is written into the roster on the way: a topic once it is made, an incarnation before
it is granted, a participant before it is told, and each is struck out after it has ended. A kill between two steps thus
leaves too much in the roster, never too little, and adoption sorts it out.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from shmd import failpoint, fifo, limits, liveness, protocol, topic_store
from shmd.adoption import participant_row, topic_row
from shmd.errors import ProtocolError, RequestRefused, ShmdError
from shmd.listener import peer_credentials, peer_pidfd
from shmd.printable import printable
from shmd.registry import (
    AdmitPublisher,
    AwaitIdle,
    AwaitResume,
    ChangeSegment,
    CreateSegment,
    CreateTopic,
    DestroySegment,
    DestroyTopic,
    DismissPublisher,
    ForgetParticipant,
    GrantSlot,
    HangUp,
    IgnoreDeath,
    LookForStall,
    NoteParticipant,
    Rebind,
    ReleaseSlot,
    ReportSegment,
    ReportStat,
    RingBells,
    Send,
    StopDaemon,
    Untether,
)
from shmd.roster_layout import CLIENT_BITS
from shmd.segment_keeper import SegmentKeeper
from shmd.stalls import StallWatch
from shmd.transport import Connection
from shmd.units import format_size

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Iterable
    from pathlib import Path

    from shmd.adoption import Estate
    from shmd.bell_store import BellStore
    from shmd.policy import Credentials
    from shmd.registry import Effect, Registry
    from shmd.roster import Roster
    from shmd.topic_store import StoredTopic

logger = logging.getLogger(__name__)

_CREATORS: Final = 4
"""Worker threads that make topics: a small one need not wait for a large one."""


@dataclass(slots=True, eq=False)
class _Peer:
    """One connection. ``number`` is its client's, and changes when that turns out to be an earlier one."""

    number: int
    connection: Connection
    credentials: Credentials
    hello_timer: asyncio.TimerHandle


class Broker:
    """Connections, topics, and the registry between them. Belongs to the loop's thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        registry: Registry,
        roster: Roster,
        bells: BellStore,
        *,
        generation: int,
        instance_id: bytes,
        fifo_root: Path,
        state_dir: Path,
        on_stop: Callable[[str], object],
    ) -> None:
        """``fifo_root`` holds FIFOs of topics and segments, ``state_dir`` the segments that are files.
        ``on_stop`` is called with who it was when a client that may has asked the daemon to stop.
        """
        self._loop = loop
        self._registry = registry
        self._roster = roster
        self._bells = bells
        self._instance_id = instance_id
        self._fifo_root = fifo_root
        self._on_stop = on_stop
        self._numbers = itertools.count(generation << CLIENT_BITS | 1)
        self._peers: dict[int, _Peer] = {}
        self._topics: dict[str, StoredTopic] = {}
        self._segments = SegmentKeeper(registry, roster, self._perform, self._answer, state_dir, fifo_root)
        self._awaited: dict[int, int | None] = {}
        """Clients whose process's death is awaited: its pidfd, or None as long as there is none to be had."""
        self._timers: dict[int | str, asyncio.TimerHandle] = {}
        """Of absent clients, by number, and of idle topics, by name."""
        self._stalls = StallWatch()
        self._creators = ThreadPoolExecutor(_CREATORS, thread_name_prefix="shmd-create")
        self._creations: set[asyncio.Task[None]] = set()
        self._stop = threading.Event()

    def adopt(self, estate: Estate) -> None:
        """Take over what an earlier daemon left. Comes before ``accept``."""
        self._topics = estate.stored
        self._segments.adopt(estate.segments)
        numbered = self._roster.header.publishers_numbered
        for participant in estate.participants:
            if participant.client not in self._awaited:
                self._awaited[participant.client] = None
                who = participant.credentials
                self._await_death(participant.client, liveness.Process(who.pid, who.start_time))
        segments = [stored.info for stored in estate.segments.values()]
        self._perform(self._registry.adopt(estate.topics, estate.participants, numbered, segments))

    def accept(self, sock: socket.socket) -> None:
        """Serve a connection from now on."""
        credentials = peer_credentials(sock)
        number = next(self._numbers)
        peer: _Peer
        connection = Connection(
            self._loop,
            sock,
            lambda packet, _fds: self._packet_came(peer, packet),
            lambda reason: self._connection_ended(peer, reason),
            backpressure=True,
        )
        timer = self._loop.call_later(limits.HELLO_TIMEOUT_S, lambda: self._hello_is_due(peer))
        peer = self._peers[number] = _Peer(number, connection, credentials, timer)
        self._awaited[number] = pidfd = peer_pidfd(sock)
        if pidfd is None:
            self._await_death(number, liveness.Process(credentials.pid, credentials.start_time))
        else:
            self._loop.add_reader(pidfd, self._process_died, number)
        self._perform(self._registry.client_connected(number, credentials))

    def holdings(self) -> tuple[int, int]:
        """How many topics and raw segments there are."""
        return len(self._topics), self._segments.count()

    async def close(self, *, remove: bool) -> None:
        """Hang up on everybody and give everything back; with ``remove`` the topics' segments go, too."""
        self._stop.set()
        for peer in self._peers.values():
            peer.connection.close()
        if self._creations:
            await asyncio.wait(self._creations)
        self._creators.shutdown()
        await asyncio.sleep(0)  # the connections' last callbacks
        for number in list(self._awaited):
            self._ignore_death(number)
        for timer in self._timers.values():
            timer.cancel()
        while self._topics:
            self._leave_topic(self._topics.popitem()[1], remove=remove)
        self._segments.close(remove=remove)

    def _leave_topic(self, topic: StoredTopic, *, remove: bool) -> None:
        info = topic.info
        if remove:
            self._roster.begin_removal(info.topic_id)
        topic.close(remove=remove)
        if remove or (info.lifetime == "attached" and not topic.exists()):
            self._roster.forget_topic(info.topic_id)
            self._bells.forget(info.topic_id)

    # --- events -------------------------------------------------------------------------------------------------------

    def _packet_came(self, peer: _Peer, packet: bytes) -> None:
        try:
            message = protocol.decode_request(packet)
        except ProtocolError as error:
            effects = self._registry.protocol_error(peer.number, error)
        else:
            logger.debug("client %d: %r", peer.number, message)
            self._segments.look_at(message)
            effects = self._registry.request(peer.number, message)
        self._perform(effects)

    def _hello_is_due(self, peer: _Peer) -> None:
        self._perform(self._registry.hello_overdue(peer.number))

    def _connection_ended(self, peer: _Peer, reason: Exception | None) -> None:
        if reason is not None:
            logger.warning("client %d (pid %d) is cut off: %s", peer.number, peer.credentials.pid, _one_line(reason))
        peer.hello_timer.cancel()
        if self._peers.get(peer.number) is peer:  # else another connection has taken its place
            self._perform(self._registry.client_left(peer.number))
            del self._peers[peer.number]

    def _process_died(self, number: int) -> None:
        self._ignore_death(number)
        self._perform(self._registry.process_died(number))

    def _resume_is_overdue(self, number: int, absence: int) -> None:
        del self._timers[number]
        self._perform(self._registry.resume_overdue(number, absence))

    def _topic_is_idle(self, name: str, idleness: int) -> None:
        del self._timers[name]
        self._perform(self._registry.topic_idle(name, idleness))

    # --- effects ------------------------------------------------------------------------------------------------------

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send() | HangUp() | Rebind():
                    self._speak(effect)
                case AwaitResume(client, absence):
                    self._set_timer(client, limits.RESUME_S, self._resume_is_overdue, absence)
                case IgnoreDeath(client):
                    self._ignore_death(client)
                case AwaitIdle(topic, idleness, after_s):
                    self._set_timer(topic, after_s, self._topic_is_idle, idleness)
                case StopDaemon(client):
                    who = self._peers[client].credentials
                    self._on_stop(f"client {client} (pid {who.pid}, uid {who.uid}) asked for it")
                case CreateTopic():
                    self._start(self._create_topic(effect))
                case DestroyTopic(topic):
                    self._destroy(topic)
                case ReportStat():
                    self._report(effect)
                case LookForStall():
                    self._look_for_stall(effect)
                case CreateSegment():
                    self._start(self._segments.create(effect, self._loop, self._creators, self._stop))
                case DestroySegment() | ChangeSegment() | ReportSegment():
                    self._segments.perform(effect)
                case _:
                    self._change_seats(effect)

    def _speak(self, effect: Send | HangUp | Rebind) -> None:
        match effect:
            case Send(client, message, bells_of, segment):
                if isinstance(message, protocol.Welcome):
                    self._peers[client].hello_timer.cancel()  # or it would wake an idle daemon for nothing
                fds = self._segments.descriptors(segment, message) if segment else ()
                fds = self._topics[bells_of].bells.descriptors if bells_of else fds
                self._peers[client].connection.send(protocol.encode(message), fds)
            case HangUp(client, reason):
                if reason:
                    logger.warning("client %d is hung up on: %s", client, _one_line(reason))
                self._peers[client].connection.close()
            case Rebind(connection, client):
                peer = self._peers[client] = self._peers.pop(connection)
                peer.number = client
                self._ignore_death(connection)  # that of the client, which is the same process, is awaited

    def _change_seats(self, effect: Effect) -> None:
        match effect:
            case GrantSlot(topic, slot, incarnation, live, tethered):
                stored = self._topics[topic]
                self._roster.raise_incarnation(stored.info.topic_id, incarnation)
                stored.log.slot_grant(slot, incarnation, live=live, tethered=tethered)
                stored.bells.admit(fifo.reader_name(slot))
                failpoint.reach("slot-granted")
            case ReleaseSlot(topic, slot, incarnation):
                self._topics[topic].log.slot_release(slot, incarnation)
                self._topics[topic].bells.dismiss(fifo.reader_name(slot))
                failpoint.reach("slot-released")
            case Untether(topic, slot, incarnation):
                if self._topics[topic].log.slot_untether(slot, incarnation):
                    logger.info("topic %s: slot %d no longer holds publishers back", topic, slot)
            case NoteParticipant(participant):
                self._roster.note_participant(participant_row(participant))
            case ForgetParticipant(client, handle, topic_id):
                self._roster.forget_participant(client, handle, topic_id)
            case AdmitPublisher(topic, number):
                self._topics[topic].bells.admit(fifo.publisher_name(number))
            case DismissPublisher(topic, number):
                self._topics[topic].bells.dismiss(fifo.publisher_name(number))
            case RingBells(topic):
                self._topics[topic].ring()

    def _set_timer(self, key: int | str, after_s: float, callback: Callable[..., None], epoch: int) -> None:
        if earlier := self._timers.pop(key, None):
            earlier.cancel()
        self._timers[key] = self._loop.call_later(after_s, callback, key, epoch)

    def _destroy(self, name: str) -> None:
        topic = self._topics.pop(name)
        self._roster.begin_removal(topic.info.topic_id)
        topic.close(remove=True)
        failpoint.reach("segments-removed")
        self._roster.forget_topic(topic.info.topic_id)
        self._bells.forget(topic.info.topic_id)
        self._stalls.forget(name)

    def _look_for_stall(self, effect: LookForStall) -> None:
        culprit = self._stalls.look(effect, self._topics[effect.topic], self._loop.time())
        if culprit is not None:
            self._perform(self._registry.stalled(effect.topic, *culprit))

    def _report(self, effect: ReportStat) -> None:
        reply: protocol.Reply
        try:
            stat = self._topics[effect.topic].stat(effect.publishers, effect.subscribers)
            reply = protocol.StatReply(id=effect.request_id, stat=stat)
        except ShmdError as error:
            reply = protocol.refusal(effect.request_id, error)
        self._answer(effect.client, reply)

    def _answer(self, client: int, reply: protocol.Reply) -> None:
        self._peers[client].connection.send(protocol.encode(reply))

    def _start(self, creation: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(creation)
        self._creations.add(task)
        task.add_done_callback(self._creations.discard)

    async def _create_topic(self, effect: CreateTopic) -> None:
        name = effect.topic
        make = functools.partial(
            topic_store.create, name, effect.settings, self._instance_id, self._stop, self._fifo_root
        )
        try:
            with self._roster.intent() as intent:
                made = await self._loop.run_in_executor(self._creators, make, intent)
                self._note_topic(made, effect.declared_by)
        except ShmdError as error:
            logger.warning("topic %s cannot be made: %s", name, error)
            self._perform(self._registry.topic_failed(name, error))
        except Exception:
            logger.exception("topic %s cannot be made", name)
            refusal = RequestRefused("the daemon failed to make the topic", "its log says why")
            self._perform(self._registry.topic_failed(name, refusal))
        else:
            logger.info("topic %s of %s is made", name, format_size(effect.settings.size_bytes))
            self._topics[name] = made
            self._bells.keep(made.info.topic_id, made.bells.descriptors)
            self._perform(self._registry.topic_created(name, made.info))

    def _note_topic(self, made: StoredTopic, declared_by: int) -> None:
        try:
            self._roster.note_topic(topic_row(made.info, declared_by))
        except ShmdError:
            made.close(remove=True)
            raise

    def _await_death(self, number: int, process: liveness.Process) -> None:
        """Watch the process of a client, as soon as there is a descriptor for it."""
        if number not in self._awaited:
            return
        try:
            pidfd = liveness.open_pidfd(process)
        except OSError as error:
            # Out of descriptors, or (pid 0) a process of another PID namespace, which nothing here can prove dead.
            logger.warning("client %d (pid %d): its death cannot be watched: %s", number, process.pid, error.strerror)
            if process.pid != liveness.UNKNOWN:
                self._loop.call_later(limits.ACCEPT_PAUSE_S, self._await_death, number, process)
            return
        if pidfd is None:
            self._loop.call_soon(self._process_died, number)
        else:
            self._awaited[number] = pidfd
            self._loop.add_reader(pidfd, self._process_died, number)

    def _ignore_death(self, number: int) -> None:
        pidfd = self._awaited.pop(number, None)
        if pidfd is not None:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)


def _one_line(reason: object) -> str:
    """Fit for a log, though it may quote a peer: no control characters, no new lines."""
    return printable(str(reason))
