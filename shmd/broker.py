"""The registry put to work: its events come from real connections, and its effects happen to real segments.

    Connection ──packet──▶ decode ──▶ Registry ──effects──▶ send, hang up, create, grant, ring, …
        ▲                                                                              │
        └──────────────────────────── replies and events, with bells ──────────────────┘

Everything runs in the event loop's thread and nothing waits, except that topics are made by worker threads. Effects are
performed at once and in order, before anything else can happen, so that the registry's picture holds when the next
event comes. What a peer sends cannot raise here: it becomes an event, and the registry answers.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from shmd import limits, protocol, topic_store
from shmd.errors import ProtocolError, RequestRefused, ShmdError
from shmd.listener import peer_credentials
from shmd.registry import (
    AwaitDeath,
    CreateTopic,
    DestroyTopic,
    GrantSlot,
    HangUp,
    IgnoreDeath,
    ReleaseSlot,
    ReportStat,
    RingBells,
    Send,
)
from shmd.transport import Connection
from shmd.units import format_size

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from shmd.policy import Credentials
    from shmd.registry import Effect, Registry
    from shmd.topic_store import StoredTopic

logger = logging.getLogger(__name__)

_CREATORS: Final = 4
"""Worker threads that make topics: a small one need not wait for a large one."""


@dataclass(frozen=True, slots=True)
class _Peer:
    connection: Connection
    credentials: Credentials
    hello_timer: asyncio.TimerHandle


class Broker:
    """Connections, topics, and the registry between them. Belongs to the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, registry: Registry, instance_id: bytes) -> None:
        self._loop = loop
        self._registry = registry
        self._instance_id = instance_id
        self._numbers = itertools.count(1)
        self._peers: dict[int, _Peer] = {}
        self._topics: dict[str, StoredTopic] = {}
        self._awaited: dict[int, int | None] = {}
        """Clients whose process's death is awaited: its pidfd, or None as long as there is none to be had."""
        self._creators = ThreadPoolExecutor(_CREATORS, thread_name_prefix="shmd-create")
        self._creations: set[asyncio.Task[None]] = set()
        self._stop = threading.Event()

    def accept(self, sock: socket.socket) -> None:
        """Serve a connection from now on."""
        credentials = peer_credentials(sock)
        number = next(self._numbers)
        connection = Connection(
            self._loop,
            sock,
            partial(self._packet_came, number),
            partial(self._connection_ended, number),
            backpressure=True,
        )
        timer = self._loop.call_later(limits.HELLO_TIMEOUT_S, self._hello_is_due, number)
        self._peers[number] = _Peer(connection, credentials, timer)
        self._perform(self._registry.client_connected(number, credentials))

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
        while self._topics:
            self._topics.popitem()[1].close(remove=remove)

    # --- events -------------------------------------------------------------------------------------------------------

    def _packet_came(self, number: int, packet: bytes, _fds: list[int]) -> None:
        try:
            message = protocol.decode_request(packet)
        except ProtocolError as error:
            effects = self._registry.protocol_error(number, error)
        else:
            logger.debug("client %d: %r", number, message)
            effects = self._registry.request(number, message)
        self._perform(effects)

    def _hello_is_due(self, number: int) -> None:
        self._perform(self._registry.hello_overdue(number))

    def _connection_ended(self, number: int, reason: Exception | None) -> None:
        peer = self._peers[number]
        if reason is not None:
            logger.warning("client %d (pid %d) is cut off: %s", number, peer.credentials.pid, _one_line(reason))
        peer.hello_timer.cancel()
        self._perform(self._registry.client_left(number))
        del self._peers[number]

    def _process_died(self, number: int) -> None:
        self._ignore_death(number)
        self._perform(self._registry.process_died(number))

    # --- effects ------------------------------------------------------------------------------------------------------

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(client, message, bells_of):
                    if isinstance(message, protocol.Welcome):
                        self._peers[client].hello_timer.cancel()  # or it would wake an idle daemon for nothing
                    bells = self._topics[bells_of].bells if bells_of else ()
                    self._peers[client].connection.send(protocol.encode(message), bells)
                case HangUp(client, reason):
                    logger.warning("client %d is hung up on: %s", client, _one_line(reason))
                    self._peers[client].connection.close()
                case CreateTopic():
                    self._create(effect)
                case DestroyTopic(topic):
                    self._topics.pop(topic).close(remove=True)
                case GrantSlot(topic, slot, incarnation, tethered):
                    self._topics[topic].log.slot_grant(slot, incarnation, tethered=tethered)
                case ReleaseSlot(topic, slot, incarnation):
                    self._topics[topic].log.slot_release(slot, incarnation)
                case RingBells(topic):
                    self._topics[topic].ring()
                case ReportStat():
                    self._report(effect)
                case AwaitDeath(client):
                    self._awaited[client] = None
                    self._await_death(client, self._peers[client].credentials.pid)
                case IgnoreDeath(client):
                    self._ignore_death(client)

    def _report(self, effect: ReportStat) -> None:
        reply: protocol.Reply
        try:
            stat = self._topics[effect.topic].stat(effect.publishers, effect.subscribers)
            reply = protocol.StatReply(id=effect.request_id, stat=stat)
        except ShmdError as error:
            reply = protocol.refusal(effect.request_id, error)
        self._peers[effect.client].connection.send(protocol.encode(reply))

    def _create(self, effect: CreateTopic) -> None:
        task = self._loop.create_task(self._create_topic(effect))
        self._creations.add(task)
        task.add_done_callback(self._creations.discard)

    async def _create_topic(self, effect: CreateTopic) -> None:
        name = effect.topic
        try:
            made = await self._loop.run_in_executor(
                self._creators, topic_store.create, name, effect.settings, self._instance_id, self._stop
            )
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
            self._perform(self._registry.topic_created(name, made.info))

    def _await_death(self, number: int, pid: int) -> None:
        """Watch the process that the client was. Were its id in use again, that would only delay the good news."""
        if number not in self._awaited:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._loop.call_soon(self._process_died, number)
        except OSError as error:
            # Out of descriptors, or (pid 0) a process of another PID namespace, which nothing here can prove dead.
            logger.warning("client %d (pid %d) left, and its death cannot be watched: %s", number, pid, error.strerror)
            if pid > 0:
                self._loop.call_later(limits.ACCEPT_PAUSE_S, self._await_death, number, pid)
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
    return str(reason).encode("unicode_escape").decode("ascii")
