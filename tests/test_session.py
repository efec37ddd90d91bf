"""The session against a scripted daemon: whatever it says and whenever, requests end and descriptors are closed."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest

from shmd import limits, protocol
from shmd.errors import DaemonUnavailable, Disconnected, NoSuchTopic, ProtocolError
from shmd.notifier import make_bell
from shmd.session import Session
from tests.loop_turns import turns

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.both_loops

INFO = protocol.TopicInfo(
    name="t", topic_id=bytes(16), log_id=1, log_key=2, ctl_id=3, ctl_key=4, size_bytes=4096, when_full="wait",
    exclusive=False, mode=0o600, uid=0, gid=0, created_ns=1,
)  # fmt: skip


class Heard:
    """What the session passed on, in order."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def topic_added(self, event: protocol.TopicAdded) -> None:
        self.events.append(event)

    def topic_gone(self, event: protocol.TopicGone) -> None:
        self.events.append(event)

    def segment_gone(self, event: protocol.SegmentGone) -> None:
        self.events.append(event)

    def untethered(self, event: protocol.Untethered) -> None:
        self.events.append(event)

    def publishers_gone(self, event: protocol.PublishersGone) -> None:
        self.events.append(event)

    def disconnected(self, session: Session, reason: Exception | None) -> None:
        self.events.append(reason or "disconnected")


class Peer:
    """The daemon's end: it says what the test tells it to say."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def say(self, message: protocol.Outbound, *fds: int) -> None:
        self.say_bytes(protocol.encode(message), *fds)

    def say_bytes(self, packet: bytes, *fds: int) -> None:
        socket.send_fds(self.sock, [packet], fds)

    async def hear(self) -> protocol.Request:
        packet = await asyncio.get_running_loop().sock_recv(self.sock, limits.MESSAGE_BYTES_MAX)
        return protocol.decode_request(packet)

    def grant(self, request_id: int, bells: int = 2) -> None:
        fds = [make_bell() for _ in range(bells)]
        self.say(protocol.PublisherGranted(id=request_id, topic=INFO, publisher=1), *fds)
        for fd in fds:
            os.close(fd)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Peer]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, Peer(theirs)


def open_publisher(session: Session) -> protocol.OpenPublisher:
    return protocol.OpenPublisher(id=session.next_id(), topic="t")


async def test_session_matches_replies_to_requests_in_any_order(ends: tuple[socket.socket, Peer]) -> None:
    ours, peer = ends
    session = Session(ours, Heard())
    stat = asyncio.create_task(session.request(protocol.StatTopic(id=session.next_id(), topic="t"), protocol.Done))
    peek = asyncio.create_task(session.request(protocol.Peek(id=session.next_id(), topic="t"), protocol.TopicReply))
    assert [type(await peer.hear()), type(await peer.hear())] == [protocol.StatTopic, protocol.Peek]
    peer.say(protocol.TopicReply(id=2, topic=INFO))
    assert (await peek).topic == INFO
    assert not stat.done()
    peer.say(protocol.Refused(id=1, code="no-such-topic", message="there is none", hint="make one"))
    with pytest.raises(NoSuchTopic, match=r"there is none \(make one\)"):
        await stat
    session.close()
    await turns()


async def test_session_passes_events_on_after_the_replies_that_came_before_them(
    ends: tuple[socket.socket, Peer],
) -> None:
    ours, peer = ends
    heard = Heard()
    session = Session(ours, heard)
    gone = protocol.TopicGone(topic="t", topic_id=bytes(16))
    added = protocol.TopicAdded(watch=1, topic="t", existing=False)

    async def peek() -> None:
        await session.request(protocol.Peek(id=session.next_id(), topic="t"), protocol.TopicReply)
        heard.events.append("reply")

    task = asyncio.create_task(peek())
    await peer.hear()
    peer.say(protocol.TopicReply(id=1, topic=INFO))
    peer.say(gone)
    peer.say(added)
    await task
    await turns()
    assert heard.events == ["reply", gone, added]
    session.close()
    await turns()
    assert heard.events[3:] == ["disconnected"]


async def test_session_closes_descriptors_that_come_for_a_cancelled_request(ends: tuple[socket.socket, Peer]) -> None:
    ours, peer = ends
    session = Session(ours, Heard())
    before = os.listdir("/proc/self/fd")
    opening = asyncio.create_task(session.open(open_publisher(session), protocol.PublisherGranted))
    request = await peer.hear()
    opening.cancel()
    await asyncio.wait([opening])
    assert opening.cancelled()
    cancel = await peer.hear()
    assert isinstance(cancel, protocol.Cancel)
    assert cancel.target == request.id
    peer.grant(request.id)
    peer.grant(12345)
    done = asyncio.create_task(session.request(protocol.ListTopics(id=session.next_id()), protocol.TopicList))
    peer.say(protocol.TopicList(id=(await peer.hear()).id, topics=()))
    await done
    assert os.listdir("/proc/self/fd") == before
    session.close()
    await turns()


@pytest.mark.parametrize("bells", [0, 1])
async def test_session_refuses_grant_with_missing_descriptors(ends: tuple[socket.socket, Peer], bells: int) -> None:
    ours, peer = ends
    session = Session(ours, Heard())
    opening = asyncio.create_task(session.open(open_publisher(session), protocol.PublisherGranted))
    peer.grant((await peer.hear()).id, bells)
    with pytest.raises(ProtocolError, match=f"PublisherGranted with {bells} descriptors answers a OpenPublisher"):
        await opening
    assert not session.connected
    await turns()


async def test_session_refuses_reply_of_another_kind(ends: tuple[socket.socket, Peer]) -> None:
    ours, peer = ends
    session = Session(ours, Heard())
    peek = protocol.Peek(id=session.next_id(), topic="t")
    asking = asyncio.create_task(session.request(peek, protocol.TopicReply))
    await peer.hear()
    peer.grant(1)
    with pytest.raises(ProtocolError, match="PublisherGranted with 2 descriptors answers a Peek"):
        await asking
    await turns()


@pytest.mark.parametrize("packet", [b"\xc1", b"\x80", b"hello", b"\x81\xa4type\xa4none", bytes(1000)])
async def test_session_ends_when_the_daemon_talks_nonsense(ends: tuple[socket.socket, Peer], packet: bytes) -> None:
    ours, peer = ends
    heard = Heard()
    session = Session(ours, heard)
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["message"]))
    peek = protocol.Peek(id=session.next_id(), topic="t")
    asking = asyncio.create_task(session.request(peek, protocol.TopicReply))
    await peer.hear()
    bell = make_bell()
    peer.say_bytes(packet, bell)
    os.close(bell)
    with pytest.raises(Disconnected) as error:
        await asking
    assert isinstance(error.value.__cause__, ProtocolError)
    assert [type(event) for event in heard.events] == [ProtocolError]
    assert reported == ["handling a packet failed"]


async def test_session_gives_up_on_a_daemon_that_does_not_answer(ends: tuple[socket.socket, Peer]) -> None:
    ours, peer = ends
    session = Session(ours, Heard())
    with pytest.raises(DaemonUnavailable, match=r"did not answer a Peek within 0\.001 s"):
        await session.request(protocol.Peek(id=session.next_id(), topic="t"), protocol.TopicReply, timeout_s=0.001)
    assert isinstance(await peer.hear(), protocol.Peek)
    assert isinstance(await peer.hear(), protocol.Cancel)
    session.close()
    await turns()


async def test_session_fails_what_is_pending_and_what_comes_after_the_end(ends: tuple[socket.socket, Peer]) -> None:
    ours, peer = ends
    heard = Heard()
    session = Session(ours, heard)
    peek = protocol.Peek(id=session.next_id(), topic="t")
    asking = asyncio.create_task(session.request(peek, protocol.TopicReply))
    await turns()
    closing = session.close_handle(7)
    assert [type(await peer.hear()), type(await peer.hear())] == [protocol.Peek, protocol.Close]
    peer.sock.close()
    for answer in (asking, closing, session.close_handle(8)):
        with pytest.raises(Disconnected):
            await answer
    assert not session.connected
    await turns()
    assert heard.events == ["disconnected"]
    session.close()


async def test_session_reports_that_a_request_could_not_be_read(
    ends: tuple[socket.socket, Peer], caplog: pytest.LogCaptureFixture
) -> None:
    ours, peer = ends
    session = Session(ours, Heard())
    peer.say(protocol.Refused(id=0, code="protocol-error", message="what was that?"))
    await turns()
    assert "what was that?" in caplog.text
    session.close()
    await turns()
