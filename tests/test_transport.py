"""Connections on real sockets, with peers that behave, lie, flood, stall and vanish."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from typing import TYPE_CHECKING

import pytest
import uvloop

from shmd import limits
from shmd.errors import DaemonUnavailable, LimitExceeded, ProtocolError, UsageError
from shmd.transport import Connection, connect
from tests.children import become_stranger, in_child, needs_root

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    Handler = Callable[[bytes, list[int]], None]


class End:
    """A connection under test, and all that came out of it."""

    def __init__(self, sock: socket.socket, fds_max: int = 0, *, backpressure: bool = False) -> None:
        self.packets: asyncio.Queue[tuple[bytes, list[int]]] = asyncio.Queue()
        self.closed: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.handle: Handler = lambda packet, fds: self.packets.put_nowait((packet, fds))
        self.connection = Connection(
            asyncio.get_running_loop(),
            sock,
            self._on_packet,
            self.closed.set_result,
            fds_max=fds_max,
            backpressure=backpressure,
        )

    def _on_packet(self, packet: bytes, fds: list[int]) -> None:
        self.handle(packet, fds)

    async def get(self) -> bytes:
        packet, fds = await self.packets.get()
        assert fds == []
        return packet


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@pytest.fixture
async def ends() -> AsyncIterator[tuple[End, End]]:
    """A daemon's end, which takes no descriptors, and a client's, which takes some."""
    ours, theirs = pair()
    ends = End(ours), End(theirs, fds_max=limits.DESCRIPTORS_PER_MESSAGE_MAX)
    yield ends
    for end in ends:
        end.connection.close()
        await end.closed


@pytest.fixture
async def end_and_peer() -> AsyncIterator[tuple[End, socket.socket]]:
    """An end under test that takes no descriptors, and a plain blocking socket for a peer."""
    ours, theirs = pair()
    end = End(ours)
    with theirs:
        yield end, theirs
        end.connection.close()
        await end.closed


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def same_file(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)


def receive(sock: socket.socket, fds_max: int = 0) -> tuple[bytes, list[int]]:
    packet, fds, _, _ = socket.recv_fds(sock, limits.MESSAGE_BYTES_MAX, fds_max)
    return packet, fds


def stuff(end: End, packet: bytes = bytes(1000), fds: Sequence[int] = ()) -> int:
    """Send until something has to wait; how many packets that took."""
    count = 0
    while not end.connection._queue:
        end.connection.send(packet, fds)
        count += 1
    return count


async def turns(count: int = 3) -> None:
    """Let the loop look at its descriptors a few times."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.both_loops
class TestPackets:
    async def test_packets_arrive_whole_and_in_order_both_ways(self, ends: tuple[End, End]) -> None:
        one, other = ends
        sent = [b"x", b"hello", bytes(limits.MESSAGE_BYTES_MAX)]
        for packet in sent:
            one.connection.send(packet)
            other.connection.send(packet[::-1])
        assert [await other.get() for _ in sent] == sent
        assert [await one.get() for _ in sent] == [packet[::-1] for packet in sent]

    @pytest.mark.parametrize("size", [0, limits.MESSAGE_BYTES_MAX + 1])
    async def test_packet_that_cannot_be_is_refused_and_the_connection_lives(
        self, ends: tuple[End, End], size: int
    ) -> None:
        one, other = ends
        with pytest.raises(UsageError, match=str(size)):
            one.connection.send(bytes(size))
        one.connection.send(b"next")
        assert await other.get() == b"next"

    async def test_packets_for_a_slow_peer_wait_in_order(self, end_and_peer: tuple[End, socket.socket]) -> None:
        end, peer = end_and_peer
        for number in range(limits.SEND_QUEUE_MESSAGES_MAX):
            end.connection.send(b"%d" % number)
        peer.setblocking(False)
        received: list[bytes] = []
        while len(received) < limits.SEND_QUEUE_MESSAGES_MAX:
            with contextlib.suppress(BlockingIOError):
                while True:
                    received.append(peer.recv(100))
            await asyncio.sleep(0)
        assert received == [b"%d" % number for number in range(limits.SEND_QUEUE_MESSAGES_MAX)]

    async def test_packet_does_not_overtake_one_that_waits(self, end_and_peer: tuple[End, socket.socket]) -> None:
        """The peer has just made room, but the loop had no turn yet."""
        end, peer = end_and_peer
        count = stuff(end, b"early")
        for _ in range(count - 1):
            assert peer.recv(100) == b"early"
        end.connection.send(b"late")
        await turns()
        assert [peer.recv(100), peer.recv(100)] == [b"early", b"late"]

    async def test_peer_that_never_reads_is_hung_up_on(self, end_and_peer: tuple[End, socket.socket]) -> None:
        end, _ = end_and_peer
        stuff(end)
        for _ in range(limits.SEND_QUEUE_MESSAGES_MAX - 1):
            end.connection.send(b"more")
        assert not end.connection.closed
        end.connection.send(b"too much")
        assert end.connection.closed
        assert isinstance(await end.closed, LimitExceeded)

    async def test_flood_of_one_peer_does_not_starve_another(self, end_and_peer: tuple[End, socket.socket]) -> None:
        end, flooder = end_and_peer
        order: list[str] = []
        ours, quiet = pair()
        for peer in (flooder, quiet):
            peer.setblocking(False)
        loop = asyncio.get_running_loop()
        served = loop.create_future()

        def on_quiet(packet: bytes, fds: list[int]) -> None:
            order.append("quiet")
            served.set_result(None)

        def on_flood(packet: bytes, fds: list[int]) -> None:
            if not order:
                quiet.send(b"hello")
            order.append("flood")
            if not served.done():
                flooder.send(packet)  # there is always more

        end.handle = on_flood
        other = Connection(loop, ours, on_quiet, lambda _: None)
        flooder.send(b"flood")
        await served
        assert limits.PACKETS_PER_WAKE <= order.index("quiet") <= 2 * limits.PACKETS_PER_WAKE
        other.close()
        quiet.close()
        await turns()

    async def test_peer_that_asks_without_reading_answers_is_not_listened_to(self) -> None:
        ours, peer = pair()
        end = End(ours, backpressure=True)
        asked = answered = 0

        def answer(packet: bytes, fds: list[int]) -> None:
            nonlocal answered
            answered += 1
            end.connection.send(packet)

        end.handle = answer
        peer.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                peer.send(b"%d" % asked)
                asked += 1
                await asyncio.sleep(0)
        assert len(end.connection._queue) == 1
        received: list[bytes] = []
        while len(received) < asked:
            with contextlib.suppress(BlockingIOError):
                received.append(peer.recv(100))
            await asyncio.sleep(0)
        assert received == [b"%d" % number for number in range(asked)]
        assert answered == asked
        stuff(end)
        peer.close()
        assert await end.closed is None  # noticed though nothing was being read

    async def test_oversized_packet_ends_the_connection(self, end_and_peer: tuple[End, socket.socket]) -> None:
        end, peer = end_and_peer
        peer.send(bytes(limits.MESSAGE_BYTES_MAX + 1))
        error = await end.closed
        assert isinstance(error, ProtocolError)
        assert str(limits.MESSAGE_BYTES_MAX) in str(error)
        assert end.packets.empty()


@pytest.mark.both_loops
class TestDescriptors:
    async def test_descriptors_arrive_with_their_packet_and_are_not_inherited(
        self, ends: tuple[End, End], pipe: tuple[int, int]
    ) -> None:
        daemon, client = ends
        daemon.connection.send(b"before")
        daemon.connection.send(b"with", pipe)
        daemon.connection.send(b"after")
        assert await client.packets.get() == (b"before", [])
        packet, fds = await client.packets.get()
        assert packet == b"with"
        assert [same_file(ours, theirs) for ours, theirs in zip(pipe, fds, strict=True)] == [True, True]
        assert not any(os.get_inheritable(fd) for fd in fds)
        assert await client.packets.get() == (b"after", [])
        for fd in fds:
            os.close(fd)

    async def test_sender_may_close_its_descriptors_while_the_packet_waits(
        self, end_and_peer: tuple[End, socket.socket], pipe: tuple[int, int]
    ) -> None:
        end, peer = end_and_peer
        count = stuff(end)
        borrowed = os.dup(pipe[0])
        end.connection.send(b"last", [borrowed])
        os.close(borrowed)
        for _ in range(count):
            receive(peer)
            await turns()
        packet, fds = receive(peer, 1)
        assert packet == b"last"
        assert same_file(fds[0], pipe[0])
        os.close(fds[0])

    async def test_waiting_descriptors_are_closed_with_the_connection(
        self, end_and_peer: tuple[End, socket.socket], pipe: tuple[int, int]
    ) -> None:
        """The leak check of every test counts descriptors."""
        end, _ = end_and_peer
        stuff(end)
        end.connection.send(b"last", pipe)
        end.connection.close()
        assert await end.closed is None

    async def test_daemon_takes_no_descriptors(
        self, end_and_peer: tuple[End, socket.socket], pipe: tuple[int, int]
    ) -> None:
        end, peer = end_and_peer
        socket.send_fds(peer, [b"take these"], pipe)
        assert isinstance(await end.closed, ProtocolError)
        assert end.packets.empty()

    async def test_client_takes_no_more_descriptors_than_it_said(self, pipe: tuple[int, int]) -> None:
        ours, peer = pair()
        end = End(ours, fds_max=1)
        with peer:
            socket.send_fds(peer, [b"one"], pipe[:1])
            _, fds = await end.packets.get()
            os.close(*fds)
            socket.send_fds(peer, [b"two"], pipe)
            assert isinstance(await end.closed, ProtocolError)
        assert end.packets.empty()

    async def test_descriptors_left_unread_are_bounded(
        self, end_and_peer: tuple[End, socket.socket], pipe: tuple[int, int]
    ) -> None:
        end, peer = end_and_peer
        sent = 3 * limits.DESCRIPTOR_PACKETS_UNREAD_MAX
        for number in range(sent):
            end.connection.send(b"%d" % number, pipe[:1])
        peer.setblocking(False)
        at_once = 0
        received: list[bytes] = []
        while len(received) < sent:
            burst = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet, fds = receive(peer, 1)
                    os.close(*fds)
                    received.append(packet)
                    burst += 1
            at_once = max(at_once, burst)
            await asyncio.sleep(0)
        assert received == [b"%d" % number for number in range(sent)]
        assert at_once <= limits.DESCRIPTOR_PACKETS_UNREAD_MAX

    async def test_running_out_of_descriptors_ends_this_connection_only(
        self, end_and_peer: tuple[End, socket.socket], pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        end, _ = end_and_peer
        stuff(end)
        duplicates: list[int] = []

        def dup(fd: int) -> int:
            if duplicates:
                raise OSError(24, "Too many open files")
            duplicates.append(os.open(os.devnull, os.O_RDONLY))
            return duplicates[0]

        with monkeypatch.context() as patch:
            patch.setattr(os, "dup", dup)
            end.connection.send(b"last", pipe)
        assert isinstance(await end.closed, OSError)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(duplicates[0])

    @needs_root
    @pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
    def test_sender_whose_user_has_too_many_in_flight_waits_until_they_are_read(
        self, loop_factory: Callable[[], asyncio.AbstractEventLoop]
    ) -> None:
        """Descriptors under way count against RLIMIT_NOFILE of the sender's user; the kernel says ETOOMANYREFS."""
        connections, packets = 12, limits.DESCRIPTOR_PACKETS_UNREAD_MAX

        async def overload() -> tuple[int, bool]:
            pairs = [pair() for _ in range(connections)]
            ends = [End(ours) for ours, _ in pairs]
            for end in ends:
                for _ in range(packets):
                    end.connection.send(b"fd", [0])
            waited = any(end.connection._queue for end in ends)
            received = 0
            for _, peer in pairs:
                peer.setblocking(False)
            while received < connections * packets:
                for _, peer in pairs:
                    with contextlib.suppress(BlockingIOError):
                        os.close(*receive(peer, 1)[1])
                        received += 1
                await asyncio.sleep(0)
            return received, waited

        def as_stranger() -> tuple[int, bool]:
            become_stranger()
            resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                return runner.run(overload())

        assert in_child(as_stranger) == (connections * packets, True)


@pytest.mark.both_loops
class TestEnd:
    async def test_peer_that_closes_is_noticed(self, end_and_peer: tuple[End, socket.socket]) -> None:
        end, peer = end_and_peer
        peer.send(b"bye")
        peer.close()
        assert await end.get() == b"bye"
        assert await end.closed is None
        assert end.connection.closed

    async def test_empty_packet_is_the_end(self, end_and_peer: tuple[End, socket.socket]) -> None:
        end, peer = end_and_peer
        peer.send(b"")
        assert await end.closed is None

    async def test_last_words_of_a_peer_that_read_nothing_are_heard(
        self, end_and_peer: tuple[End, socket.socket]
    ) -> None:
        """It closes with our packet unread: ECONNRESET comes before what it had sent."""
        end, peer = end_and_peer
        end.connection.send(b"unread")
        peer.send(b"one")
        peer.send(b"two")
        peer.close()
        assert [await end.get(), await end.get()] == [b"one", b"two"]
        assert await end.closed is None

    async def test_last_words_are_heard_after_sending_failed(self, end_and_peer: tuple[End, socket.socket]) -> None:
        end, peer = end_and_peer
        peer.send(b"refused, because")
        peer.close()
        end.connection.send(b"request")
        end.connection.send(b"request")
        assert await end.get() == b"refused, because"
        assert await end.closed is None

    async def test_waiting_packets_are_dropped_when_the_peer_goes(
        self, end_and_peer: tuple[End, socket.socket], pipe: tuple[int, int]
    ) -> None:
        end, peer = end_and_peer
        stuff(end)
        end.connection.send(b"last", pipe)
        peer.close()
        assert await end.closed is None

    async def test_close_is_reported_once_and_from_the_loop(self) -> None:
        ours, peer = pair()
        reports: list[Exception | None] = []
        connection = Connection(asyncio.get_running_loop(), ours, lambda *_: None, reports.append)
        connection.close()
        connection.close()
        assert reports == []
        await turns()
        assert reports == [None]
        connection.send(b"into the void")
        await turns()
        assert reports == [None]
        assert peer.recv(10) == b""
        peer.close()

    async def test_nothing_is_read_after_close(self, end_and_peer: tuple[End, socket.socket]) -> None:
        end, peer = end_and_peer
        handled: list[bytes] = []

        def close(packet: bytes, fds: list[int]) -> None:
            handled.append(packet)
            end.connection.close()

        end.handle = close
        peer.send(b"first")
        peer.send(b"second")
        assert await end.closed is None
        assert handled == [b"first"]

    async def test_exception_from_a_handler_ends_this_connection_and_is_reported(
        self, end_and_peer: tuple[End, socket.socket]
    ) -> None:
        end, peer = end_and_peer
        contexts: list[BaseException] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context["exception"]))

        def fail(packet: bytes, fds: list[int]) -> None:
            raise ValueError("broken handler")

        end.handle = fail
        peer.send(b"one")
        peer.send(b"two")
        assert str(await end.closed) == "broken handler"
        assert [str(error) for error in contexts] == ["broken handler"]


@pytest.mark.both_loops
class TestConnect:
    async def test_client_connects_and_talks(self, tmp_path: Path) -> None:
        with listening(tmp_path / "s") as server, await connect(tmp_path / "s") as sock, server.accept()[0] as peer:
            sock.send(b"hello")
            assert peer.recv(10) == b"hello"
            assert sock.getblocking() is False
            assert sock.get_inheritable() is False

    async def test_client_is_told_that_there_is_no_socket(self, tmp_path: Path) -> None:
        with pytest.raises(DaemonUnavailable, match=r"no such socket.*shmd serve"):
            await connect(tmp_path / "s")

    async def test_client_is_told_that_nobody_listens(self, tmp_path: Path) -> None:
        with listening(tmp_path / "s"):
            pass
        with pytest.raises(DaemonUnavailable, match="nobody listens"):
            await connect(tmp_path / "s")

    async def test_client_is_told_of_a_socket_of_another_kind(self, tmp_path: Path) -> None:
        with listening(tmp_path / "s", socket.SOCK_STREAM), pytest.raises(DaemonUnavailable, match="another kind"):
            await connect(tmp_path / "s")

    async def test_client_is_told_of_a_path_too_long(self, tmp_path: Path) -> None:
        with pytest.raises(DaemonUnavailable, match="too long"):
            await connect(tmp_path / ("s" * 108))

    async def test_client_gives_up_on_a_full_backlog_in_time(self, tmp_path: Path) -> None:
        """EAGAIN, which asyncio's sock_connect takes for "under way" and then for success."""
        path = tmp_path / "s"
        with listening(path, backlog=0), await connect(path), pytest.raises(DaemonUnavailable, match="not accept"):
            await connect(path, timeout_s=0.05)

    async def test_client_gets_through_when_the_backlog_empties(self, tmp_path: Path) -> None:
        with listening(tmp_path / "s", backlog=0) as server, await connect(tmp_path / "s"):
            waiting = asyncio.ensure_future(connect(tmp_path / "s"))
            await turns()
            assert not waiting.done()
            server.accept()[0].close()
            (await waiting).close()

    async def test_cancelled_client_leaves_nothing_open(self, tmp_path: Path) -> None:
        with listening(tmp_path / "s", backlog=0), await connect(tmp_path / "s"):
            waiting = asyncio.ensure_future(connect(tmp_path / "s"))
            await turns()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting


@contextlib.contextmanager
def listening(path: Path, kind: int = socket.SOCK_SEQPACKET, backlog: int = 8) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind(os.fspath(path))
        server.listen(backlog)
        yield server
