"""A C client meets a daemon that lies: an error each time, and no crash, leak or hang, under ASan and UBSan."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import random
import socket
import threading
from typing import TYPE_CHECKING, Any, Final

import msgpack
import pytest

from shmd import segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.c_programs import CPrograms, Program

SUBSCRIBER: Final = {"type": "subscriber", "slot": 0, "incarnation": 1, "from_start": True}
WELCOME: Final = {
    "type": "welcome", "id": 1, "major": 1, "minor": 0, "client": 7, "instance": "liar", "instance_id": bytes(16),
    "ipc_namespace": 0, "pid": 1, "roster_id": 0,
}  # fmt: skip
TOPIC: Final = {
    "name": "prices", "topic_id": b"x" * 16, "log_id": 2**31 - 1, "log_key": 0, "ctl_id": 2**31 - 1, "ctl_key": 0,
    "size_bytes": 4096, "when_full": "discard-old", "exclusive": False, "mode": 0o600, "uid": 0, "gid": 0,
    "created_ns": 0,
}  # fmt: skip
SEGMENT: Final = {
    "name": "frame", "segment_id": b"y" * 16, "id": 2**31 - 1, "key": 0, "size_bytes": 4096, "mode": 0o600, "uid": 0,
    "gid": 0, "creator_uid": 0, "creator_gid": 0, "declared_by": 0, "created_ns": 0,
}  # fmt: skip
SEGMENT_GRANT: Final = {"type": "segment-granted", "id": 2, "segment": SEGMENT, "readonly": False}
GRANT: Final = {"type": "publisher", "id": 2, "topic": TOPIC, "publisher": 1}
Answer = tuple[bytes, int]
"""A packet, and how many descriptors come beside it."""


def packed(message: dict[str, Any], **other: Any) -> bytes:
    return bytes(msgpack.packb(message | other))


class Liar:
    """Answers each packet of its only peer with what it was given; then hangs up."""

    def __init__(self, path: Path, answers: list[list[Answer]]) -> None:
        self.path = str(path)
        self.heard: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.path)
        self._listener.listen()
        self._answers = answers
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
        # The peer may hang up at any time: that is its right.
        with peer, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for answers in self._answers:
                self.heard.append(peer.recv(65536))
                for packet, count in answers:
                    self._send(peer, packet, count)

    def _send(self, peer: socket.socket, packet: bytes, count: int) -> None:
        fds = [os.eventfd(1) for _ in range(count)]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            peer.sendmsg([packet], rights)
        finally:
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


@pytest.fixture
def liar(tmp_path: Path) -> Iterator[Callable[[list[list[Answer]]], Liar]]:
    liars: list[Liar] = []

    def start(answers: list[list[Answer]]) -> Liar:
        liars.append(Liar(tmp_path / f"liar{len(liars)}.sock", answers))
        return liars[-1]

    yield start
    for each in liars:
        each.close()


def connect_to(c: Program, lying: Liar, opening: str = "publisher prices") -> str:
    """The result of connecting, and of opening something if that went well. No descriptor may stay."""
    before = int(c.ask("descriptors"))
    result = c.ask(f"connect {lying.path}")
    if result.split()[0] == "0":
        result = c.ask(opening)
    c.ask("disconnect", "0")
    assert int(c.ask("descriptors")) == before
    return result


WELCOMED: Final[list[Answer]] = [(packed(WELCOME), 0)]
LIES: Final[dict[str, list[list[Answer]]]] = {
    "hangs up": [[]],
    "says nothing that is a message": [[(b"\xc1", 0)]],
    "speaks another version": [[(packed(WELCOME, major=2), 0)]],
    "lacks a field": [[(packed({"type": "welcome", "id": 1}), 0)]],
    "answers something else": [[(packed({"type": "done", "id": 1}), 0)]],
    "refuses": [[(packed({"type": "refused", "id": 1, "code": "x" * 300, "message": "%s%n" * 300}), 0)]],
    "sends too much": [[(b"\xc0" * 65537, 0)]],
    "sends descriptors beside a welcome": [[(packed(WELCOME), 2)]],
    "nests": [[(b"\x91" * 60000, 0)]],
    "forges a count": [[(b"\xdf\xff\xff\xff\xff", 0)]],
    "sends no descriptors": [WELCOMED, [(packed(GRANT), 0)]],
    "sends one descriptor": [WELCOMED, [(packed(GRANT), 1)]],
    "sends three descriptors": [WELCOMED, [(packed(GRANT), 3)]],
    "sends many descriptors": [WELCOMED, [(packed(GRANT), 200)]],
    "sends no descriptors, and says so": [WELCOMED, [(packed(GRANT, fds=0), 0)]],
    "says it sends more than there can be": [WELCOMED, [(packed(GRANT, fds=3), 3)]],
    "names no segment": [WELCOMED, [(packed(GRANT), 2)]],
    "names a capacity that cannot be": [WELCOMED, [(packed(GRANT, topic=TOPIC | {"size_bytes": 2**63 - 1}), 2)]],
    "grants something else": [
        WELCOMED,
        [(packed(GRANT | SUBSCRIBER), 2)],
    ],
    "grants a slot that cannot be": [WELCOMED, [(packed(GRANT | SUBSCRIBER, slot=1024), 2)]],
    "hangs up later": [WELCOMED, []],
}


SAID: Final = {
    "hangs up": errno.ENOTCONN,
    "says nothing that is a message": errno.EPROTO,
    "speaks another version": errno.EPROTONOSUPPORT,
    "refuses": errno.EREMOTEIO,
    "sends no descriptors": errno.EPROTO,
    "names no segment": errno.EIDRM,
}
"""Of some, also what is to be made of them."""


@pytest.mark.parametrize("lie", LIES)
def test_c_client_says_no_to_a_daemon_that(
    lie: str, liar: Callable[[list[list[Answer]]], Liar], c_programs: CPrograms
) -> None:
    with c_programs.start("drive") as c:
        result = int(connect_to(c, liar(LIES[lie])).split()[0])
    assert result < 0
    assert result == -SAID.get(lie, -result)


def test_c_client_takes_no_notice_of_late_replies_and_unknown_events(
    liar: Callable[[list[list[Answer]]], Liar], c_programs: CPrograms
) -> None:
    chatter: list[Answer] = [
        (packed({"type": "from-the-future", "x": [1, {"y": None}]}), 0),
        (packed({"type": "done", "id": 99}), 0),
        (packed(GRANT, id=98), 2),
        (packed({"type": "topic-gone", "topic": "other", "topic_id": bytes(16)}), 0),
        (packed({"type": "untethered", "topic": "other", "handle": 5}), 0),
    ]
    refusal = packed({"type": "refused", "id": 2, "code": "topic-busy", "message": "no", "hint": "later"})
    with c_programs.start("drive") as c:
        assert connect_to(c, liar([WELCOMED, [*chatter, (refusal, 0)]])).endswith("no (later)")


def test_c_client_refuses_a_segment_that_is_no_topic(
    liar: Callable[[list[list[Answer]]], Liar], c_programs: CPrograms
) -> None:
    """However small it is, and whatever is in it."""
    for size in (1, 4096, 8192):
        made = segment.create(size)
        try:
            topic = TOPIC | {"log_id": made.id, "ctl_id": made.id}
            with c_programs.start("drive") as c:
                answer = connect_to(c, liar([WELCOMED, [(packed(GRANT, topic=topic), 2)]]))
            assert int(answer.split()[0]) == -errno.EUCLEAN
        finally:
            made.close()
            segment.remove(made.id)


FILE: Final = SEGMENT | {"id": -1, "backing": "file"}
SEGMENT_LIES: Final[dict[str, tuple[Answer, int]]] = {
    "names no segment": ((packed(SEGMENT_GRANT), 2), errno.EIDRM),
    "names a segment that is none": ((packed(SEGMENT_GRANT, segment=SEGMENT | {"id": -1}), 2), errno.EIDRM),
    "names an id that cannot be": ((packed(SEGMENT_GRANT, segment=SEGMENT | {"id": 2**31}), 2), errno.EPROTO),
    "names an id below -1": ((packed(SEGMENT_GRANT, segment=SEGMENT | {"id": -2}), 2), errno.EPROTO),
    "names a path that is too long": ((packed(SEGMENT_GRANT, segment=FILE | {"path": "x" * 600}), 3), errno.EPROTO),
    "lacks a field": ((packed(SEGMENT_GRANT, segment={"name": "frame"}), 2), errno.EPROTO),
    "sends one bell": ((packed(SEGMENT_GRANT, fds=1), 1), errno.EPROTO),
    "sends a file with memory": ((packed(SEGMENT_GRANT, fds=3), 3), errno.EPROTO),
    "sends no file": ((packed(SEGMENT_GRANT, segment=FILE), 2), errno.EPROTO),
    "sends four descriptors": ((packed(SEGMENT_GRANT, segment=FILE, fds=4), 4), errno.EPROTO),
    "sends as file what is none": ((packed(SEGMENT_GRANT, segment=FILE, fds=3), 3), errno.EPROTO),
    "grants a publisher": ((packed(GRANT), 2), errno.EPROTO),
}
"""What a daemon answers to a wish for a segment, and what is to be made of it."""


@pytest.mark.parametrize("lie", SEGMENT_LIES)
def test_c_client_opens_no_segment_of_a_daemon_that(
    lie: str, liar: Callable[[list[list[Answer]]], Liar], c_programs: CPrograms
) -> None:
    answer, expected = SEGMENT_LIES[lie]
    with c_programs.start("drive") as c:
        result = connect_to(c, liar([WELCOMED, [answer]]), "segment frame size 4096")
    assert result.split()[0] == str(-expected)


@pytest.mark.parametrize("claim", [{"size_bytes": 2**62}, {"size_bytes": 1}, {"key": 12345}, {"creator_uid": 54321}])
def test_c_client_refuses_a_segment_that_is_not_what_the_daemon_says(
    claim: dict[str, int], liar: Callable[[list[list[Answer]]], Liar], c_programs: CPrograms
) -> None:
    made = segment.create(4096)
    try:
        told = SEGMENT | {"id": made.id, "key": made.stat().key, "creator_uid": os.geteuid()} | claim
        with c_programs.start("drive") as c:
            answer = connect_to(c, liar([WELCOMED, [(packed(SEGMENT_GRANT, segment=told), 2)]]), "segment frame")
        assert int(answer.split()[0]) == -errno.EIDRM
        assert made.stat().attachments == 1
    finally:
        made.close()
        segment.remove(made.id)


@pytest.mark.parametrize("seed", range(20))
def test_c_client_survives_random_bytes(
    seed: int, liar: Callable[[list[list[Answer]]], Liar], c_programs: CPrograms
) -> None:
    dice = random.Random(seed)
    with c_programs.start("drive") as c:
        for _ in range(5):
            packet = bytearray(packed(GRANT))
            for _ in range(dice.randrange(1, 4)):
                packet[dice.randrange(len(packet))] = dice.randrange(256)
            noise = dice.randbytes(dice.randrange(1, 200))
            answer = bytes(packet) if dice.random() < 0.7 else noise
            assert int(connect_to(c, liar([WELCOMED, [(answer, dice.randrange(3))]])).split()[0]) < 0
