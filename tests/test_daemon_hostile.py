"""Peers that mean no good: the daemon answers with an error or hangs up on that one peer, and nothing else changes."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from shmd import limits, protocol
from shmd.errors import ProtocolError
from shmd.protocol import (
    Hello,
    ListSegments,
    ListTopics,
    OpenPublisher,
    OpenSubscriber,
    RemoveSegment,
    RemoveTopic,
    SegmentList,
    TopicList,
    TopicOptions,
    Watch,
)
from shmd.testing.resources import sysvipc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from shmd.testing import DaemonProcess, StartDaemon

HELLO = protocol.encode(Hello(id=2**50, major=1, minor=0, name="hostile"))
PATIENCE_S = 60.0


class Peer:
    """A blocking connection of a test process, so that it can be as rude as the kernel allows."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(daemon.socket_path)

    def receive(self) -> protocol.Outbound | None:
        """None if the daemon has hung up."""
        try:
            packet, fds, _, _ = socket.recv_fds(self.sock, limits.MESSAGE_BYTES_MAX, 8)
        except ConnectionResetError:
            return None
        for fd in fds:
            os.close(fd)
        return protocol.decode_reply(packet) if packet else None

    def ask(self, message: protocol.Request) -> protocol.Outbound:
        self.sock.send(protocol.encode(message))
        while True:
            reply = self.receive()
            assert reply is not None, "the daemon hung up"
            if getattr(reply, "id", None) == message.id:
                return reply

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()


class Witness(Peer):
    """A well-behaved client: whatever others do, it is served and keeps what it has."""

    def __init__(self, daemon: DaemonProcess) -> None:
        super().__init__(daemon)
        self._ids = 1000
        assert isinstance(self.ask(Hello(id=1, major=1, minor=0, name="witness")), protocol.Welcome)
        assert isinstance(self.ask(OpenPublisher(id=2, topic="witness")), protocol.PublisherGranted)
        assert isinstance(self.ask(OpenSubscriber(id=3, topic="witness")), protocol.SubscriberGranted)

    def new_id(self) -> int:
        self._ids += 1
        return self._ids

    def is_undisturbed(self) -> None:
        reply = self.ask(protocol.StatTopic(id=self.new_id(), topic="witness"))
        assert isinstance(reply, protocol.StatReply)
        assert [publisher.name for publisher in reply.stat.publishers] == ["witness"]
        assert [subscriber.slot for subscriber in reply.stat.subscribers] == [0]

    def remove_all_but_its_own(self) -> None:
        while True:
            reply = self.ask(ListTopics(id=self.new_id()))
            assert isinstance(reply, TopicList)
            strange = [info.name for info in reply.topics if info.name != "witness"]
            found = self.ask(ListSegments(id=self.new_id()))
            assert isinstance(found, SegmentList)
            if not strange and not found.segments:
                return
            for name in strange:
                self.ask(RemoveTopic(id=self.new_id(), topic=name))
            for info in found.segments:
                self.ask(RemoveSegment(id=self.new_id(), segment=info.name))


@pytest.fixture
def daemon(shmd_start: StartDaemon) -> DaemonProcess:
    return shmd_start("--max-bytes", "16MiB")


@pytest.fixture
def witness(daemon: DaemonProcess) -> Iterator[Witness]:
    with Witness(daemon) as client:
        yield client


def descriptors(daemon: DaemonProcess) -> int:
    return len(open_files(daemon))


def open_files(daemon: DaemonProcess) -> list[str]:
    """What the daemon's descriptors are."""
    links = []
    for fd in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(fd))
    return sorted(links)


def rss_bytes(daemon: DaemonProcess) -> int:
    return int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def segments(daemon: DaemonProcess) -> int:
    return sum(int(row["cpid"]) == daemon.pid for row in sysvipc("shm"))


def packed(**fields: Any) -> bytes:
    return msgspec.msgpack.encode(fields)


BAD_PACKETS = {
    "one byte": b"\xc1",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "zeros": bytes(1000),
    "truncated": HELLO[:-3],
    "trailing bytes": HELLO + b"\x00",
    "not a map": msgspec.msgpack.encode([1, 2, 3]),
    "no type": packed(id=1),
    "unknown type": packed(type="sudo", id=1),
    "a reply": protocol.encode(protocol.Done(id=1)),
    "missing field": packed(type="publish", id=1),
    "wrong type of id": packed(type="list", id="1"),
    "negative id": packed(type="list", id=-1),
    "huge id": packed(type="list", id=2**64 - 1),
    "wrong type of topic": packed(type="publish", id=1, topic=["t"]),
    "wrong type of options": packed(type="publish", id=1, topic="t", options="wait"),
    "unknown policy": packed(type="publish", id=1, topic="t", options={"when_full": "panic"}),
    "deep arrays": b"\x91" * 60_000,
    "deep maps": b"\x81\xa1a" * 20_000,
    "deep unknown field": b"\x83\xa4type\xa4list\xa2id\x01\xa1x" + b"\x91" * 60_000 + b"\x01",
    "promised array": b"\xdd\xff\xff\xff\xff",
    "promised bytes": b"\xc6\xff\xff\xff\xff",
    "not UTF-8": b"\x82\xa4type\xa4list\xa2id\xa2\xff\xfe",
    "long quote": packed(type="x" * 60_000, id=1),
    "hello again": HELLO,
}


@pytest.mark.parametrize("packet", BAD_PACKETS.values(), ids=BAD_PACKETS.keys())
def test_bad_packet_is_answered_with_the_protocol_error_until_the_peer_is_hung_up_on(
    daemon: DaemonProcess, witness: Witness, packet: bytes
) -> None:
    before = descriptors(daemon)
    with Peer(daemon) as peer:
        peer.sock.send(HELLO)
        assert isinstance(peer.receive(), protocol.Welcome)
        for _ in range(limits.PROTOCOL_ERRORS_MAX):
            peer.sock.send(packet)
            reply = peer.receive()
            assert isinstance(reply, protocol.Refused), reply
            assert reply.code == ProtocolError.code
            assert reply.message
        assert peer.receive() is None
        witness.is_undisturbed()
        assert descriptors(daemon) <= before
    assert "Traceback" not in daemon.log


@pytest.mark.parametrize(
    "message",
    [
        ListTopics(id=1),
        OpenPublisher(id=1, topic="t"),
        RemoveTopic(id=1, topic="witness"),
        protocol.Cancel(id=1, target=2),
    ],
    ids=lambda message: type(message).__name__,
)
def test_request_before_hello_is_refused_and_has_no_effect(
    daemon: DaemonProcess, witness: Witness, message: protocol.Request
) -> None:
    with Peer(daemon) as peer:
        reply = peer.ask(message)
        assert isinstance(reply, protocol.Refused)
        assert reply.code == ProtocolError.code
        witness.is_undisturbed()
        assert isinstance(peer.ask(Hello(id=5, major=1, minor=0)), protocol.Welcome)


@pytest.mark.parametrize("size_bytes", [limits.MESSAGE_BYTES_MAX + 1, 3 * limits.MESSAGE_BYTES_MAX])
def test_oversized_packet_ends_that_connection_alone(daemon: DaemonProcess, witness: Witness, size_bytes: int) -> None:
    with Peer(daemon) as peer:
        peer.sock.send(HELLO)
        assert isinstance(peer.receive(), protocol.Welcome)
        peer.sock.send(bytes(size_bytes))
        assert peer.receive() is None
    witness.is_undisturbed()


def test_descriptors_sent_to_the_daemon_are_not_taken(daemon: DaemonProcess, witness: Witness) -> None:
    before = descriptors(daemon)
    with Peer(daemon) as peer, open(os.devnull) as gift:
        socket.send_fds(peer.sock, [HELLO], [gift.fileno()] * 50)
        peer.receive()
        witness.is_undisturbed()
        assert descriptors(daemon) <= before + 1
    witness.is_undisturbed()


def test_thousands_of_hostile_packets_leave_the_daemon_as_it_was(
    daemon: DaemonProcess, witness: Witness, soak: bool
) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    descriptors_before, segments_before = descriptors(daemon), segments(daemon)
    fuzzer = Fuzzer(daemon, random.Random(seed))
    fuzzer.run(packets=1000)  # what a daemon takes once, for good, it has taken then
    memory_before = rss_bytes(daemon)
    for _ in range(500 if soak else 20):
        fuzzer.run(packets=1000)
        witness.is_undisturbed()
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        witness.remove_all_but_its_own()  # and whatever of theirs the daemon is only now getting to
        if descriptors(daemon) <= descriptors_before and segments(daemon) <= segments_before:
            break
    witness.is_undisturbed()
    assert "Traceback" not in daemon.log, daemon.log[daemon.log.index("Traceback") :]
    assert descriptors(daemon) <= descriptors_before, "\n".join([*open_files(daemon), daemon.log[-8000:]])
    assert segments(daemon) == segments_before
    assert rss_bytes(daemon) - memory_before < 16 << 20
    assert fuzzer.answers > 500
    assert fuzzer.hang_ups > 100


class Fuzzer:
    """Sends what no client would. It reads its answers, lest the daemon stop reading it."""

    def __init__(self, daemon: DaemonProcess, rng: random.Random) -> None:
        self.answers = 0
        self.hang_ups = 0
        self._daemon = daemon
        self._rng = rng

    def run(self, packets: int) -> None:
        peers: list[Peer] = []  # a few at a time, so that what one has opened meets what another wants
        try:
            self._run(packets, peers)
        finally:
            for peer in peers:
                peer.close()

    def _run(self, packets: int, peers: list[Peer]) -> None:
        for _ in range(packets):
            if (len(peers) < 5 and self._rng.random() < 0.2) or not peers:
                peers.append(self._connect())
            peer = self._rng.choice(peers)
            if self._rng.random() < 0.01 or not self._talk(peer, self._packet()):
                peers.remove(peer)
                peer.close()

    def _connect(self) -> Peer:
        peer = Peer(self._daemon)
        peer.sock.setblocking(False)
        if self._rng.random() < 0.9:
            peer.sock.send(HELLO)
        return peer

    def _talk(self, peer: Peer, packet: bytes) -> bool:
        """Whether the connection is still there."""
        while True:
            try:
                peer.sock.send(packet)
            except BlockingIOError:
                # The daemon does not read who does not read: one of the two is possible now.
                select.select([peer.sock], [peer.sock], [], PATIENCE_S)
                if not self._drain(peer):
                    return False
            except (BrokenPipeError, ConnectionResetError):
                self.hang_ups += 1
                return False
            else:
                return self._drain(peer)

    def _drain(self, peer: Peer) -> bool:
        while True:
            try:
                packet, fds, _, _ = socket.recv_fds(peer.sock, limits.MESSAGE_BYTES_MAX, 8)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                packet, fds = b"", []
            for fd in fds:
                os.close(fd)
            if not packet:
                self.hang_ups += 1
                return False
            protocol.decode_reply(packet)
            self.answers += 1

    def _packet(self) -> bytes:
        # Mostly well-formed: the rest soon ends a connection, and a short life opens little.
        kinds = [self._garbage, self._damaged, self._nearly, self._valid]
        (make,) = self._rng.choices(kinds, weights=[1, 2, 2, 15])
        return make()

    def _garbage(self) -> bytes:
        size = self._rng.choice([1, 2, 10, 100, 5000, limits.MESSAGE_BYTES_MAX, limits.MESSAGE_BYTES_MAX + 1])
        shape = self._rng.choice(["random", "deep", "zeros"])
        if shape == "random":
            return self._rng.randbytes(size)
        return (b"\x91" if shape == "deep" else b"\x00") * size

    def _damaged(self) -> bytes:
        raw = bytearray(self._valid())
        for _ in range(self._rng.randrange(1, 4)):
            raw[self._rng.randrange(len(raw))] = self._rng.randrange(256)
        return bytes(raw[: self._rng.randrange(1, len(raw) + 1)]) if self._rng.random() < 0.3 else bytes(raw)

    def _nearly(self) -> bytes:
        values: list[object] = [
            None,
            True,
            -1,
            0,
            1,
            2**53,
            2**64 - 1,
            1.5,
            "",
            "t",
            "x" * 300,
            b"",
            [],
            {},
            [[]],
            {"mode": 0o777},
        ]
        keys = [
            "id",
            "topic",
            "options",
            "pattern",
            "handle",
            "count",
            "target",
            "major",
            "minor",
            "watch",
            "after",
            "segment",
        ]
        types = [
            "hello",
            "declare",
            "publish",
            "subscribe",
            "peek",
            "watch",
            "close",
            "list",
            "stat",
            "cancel",
            "segment",
            7,
        ]
        fields = {self._rng.choice(keys): self._rng.choice(values) for _ in range(self._rng.randrange(5))}
        return msgspec.msgpack.encode({"type": self._rng.choice(types), **fields})

    def _valid(self) -> bytes:
        """A well-formed request, most often senseless."""
        request_id, other = self._rng.randrange(1, 20), self._rng.randrange(1, 20)
        topic = self._rng.choice(["a", "b.c", "a.>", "..", "x" * 255, "\x00", "nobody"])
        options = TopicOptions(
            size_bytes=self._rng.choice([None, 0, 1, 4096, 70_000, 2**40, 2**63 - 1]),
            when_full=self._rng.choice([None, "wait", "discard-old"]),
            exclusive=self._rng.choice([None, True, False]),
            mode=self._rng.choice([None, 0o600, 0o666, 0o222, 0]),
        )
        segment_options = protocol.SegmentOptions(
            size_bytes=self._rng.choice([None, 0, 1, 4096, 70_000, 2**40, 2**63 - 1]),
            mode=self._rng.choice([None, 0o600, 0o666, 0o222, 0]),
            key=self._rng.choice([None, None, 1, 2**31 - 1]),
            adopt=self._rng.random() < 0.3,
            backing=self._rng.choice([None, "memory", "file"]),
            sync=self._rng.choice([None, None, "interval"]),
            lifetime=self._rng.choice([None, "os", "attached"]),
        )
        create, exclusive, readonly = (self._rng.random() < chance for chance in (0.8, 0.2, 0.5))
        messages: list[protocol.Request] = [
            protocol.OpenSegment(
                id=request_id,
                segment=topic,
                options=segment_options,
                create=create,
                exclusive=exclusive,
                readonly=readonly,
            ),
            protocol.ListSegments(id=request_id, pattern=topic, after=topic),
            protocol.StatSegment(id=request_id, segment=topic),
            protocol.SetSegment(id=request_id, segment=topic, gid=other, mode=segment_options.mode),
            protocol.RemoveSegment(id=request_id, segment=topic),
            Hello(id=request_id, major=self._rng.choice([1, 1, 1, 2]), minor=0, ipc_namespace=other % 2),
            protocol.Declare(id=request_id, topic=topic, options=options),
            OpenPublisher(id=request_id, topic=topic, options=options),
            OpenSubscriber(id=request_id, topic=topic, watch=other),
            protocol.Joined(id=request_id, handle=other),
            protocol.Peek(id=request_id, topic=topic),
            Watch(id=request_id, pattern=topic),
            protocol.Close(id=request_id, handle=other),
            ListTopics(id=request_id, pattern=topic, after=topic),
            protocol.StatTopic(id=request_id, topic=topic),
            RemoveTopic(id=request_id, topic=topic),
            protocol.WaitSubscribers(id=request_id, topic=topic, count=other),
            protocol.Cancel(id=request_id, target=other),
        ]
        return protocol.encode(self._rng.choice(messages))
