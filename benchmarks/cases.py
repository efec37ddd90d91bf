"""Everything that is measured: which peers, which payloads, which floors, in one list."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from benchmarks import floors
from benchmarks.harness import BenchmarkError, End
from benchmarks.records import PAYLOADS, SMALL, Payload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from benchmarks.peers import CanCall, CanSend

Kind = Literal["one way", "round trip"]

PUBLISH: Final = "shmd publish"
PUBLISH_MANY: Final = "shmd publish_many"
FIFO: Final = "shmd over FIFOs"
ZMQ: Final = "zmq.asyncio"
STREAMS: Final = "Unix streams"
EVENTFD: Final = "bare eventfd"
PEERS: Final = ("shmd", "zmq", "streams")


@dataclass(frozen=True)
class Pair:
    """A measurement between two processes. ``ends`` makes the near and the far end."""

    kind: Kind
    name: str
    payload: Payload
    ends: Callable[[Path], AbstractContextManager[tuple[End, End]]]


@dataclass(frozen=True)
class Solo:
    """A floor measured inside one process: figures in nanoseconds by their names."""

    work: Callable[[int], Awaitable[dict[str, float]]]
    count: int


def pairs(peers: list[str], shmd_socket: Path | None) -> list[Pair]:
    """All pairs, the peers beside each other."""
    found = [_round_trip(EVENTFD, floors.open_eventfds)]
    if shmd_socket is not None:
        from benchmarks.peers import shmd_topics

        publish = shmd_topics.opener(shmd_socket, shmd_topics.ShmdTopics)
        publish_many = shmd_topics.opener(shmd_socket, shmd_topics.ShmdTopicsInBatches)
        over_fifos = shmd_topics.opener(shmd_socket, shmd_topics.ShmdTopicsOverFifos)
        found += [
            _round_trip(PUBLISH, publish),
            _round_trip(FIFO, over_fifos),
            *_one_way(PUBLISH, publish),
            *_one_way(PUBLISH_MANY, publish_many),
        ]
    if "zmq" in peers:
        try:
            from benchmarks.peers import zmq_asyncio
        except ImportError:
            raise BenchmarkError("zmq.asyncio needs pyzmq; install it, or leave it out with --peers") from None
        found += [_round_trip(ZMQ, zmq_asyncio.open_peer), *_one_way(ZMQ, zmq_asyncio.open_peer)]
    if "streams" in peers:
        from benchmarks.peers import unix_streams

        found += [_round_trip(STREAMS, unix_streams.open_peer), *_one_way(STREAMS, unix_streams.open_peer)]
    return sorted(found, key=lambda pair: (pair.kind, PAYLOADS.index(pair.payload)))


def solos(shmd_socket: Path | None) -> list[Solo]:
    found = [Solo(floors.codec_alone, 100_000), Solo(floors.generator_step, 200_000)]
    if shmd_socket is not None:
        from benchmarks.peers import shmd_topics

        found.append(Solo(partial(shmd_topics.async_for_step, shmd_socket), 100_000))
    return found


def _one_way(name: str, open_peer: Callable[[Path], AbstractContextManager[CanSend]]) -> Iterator[Pair]:
    for payload in PAYLOADS:

        @contextmanager
        def ends(directory: Path, payload: Payload = payload) -> Iterator[tuple[End, End]]:
            with open_peer(directory) as peer:
                yield partial(peer.sender, payload), partial(peer.receiver, payload)

        yield Pair("one way", name, payload, ends)


def _round_trip(name: str, open_peer: Callable[[Path], AbstractContextManager[CanCall]]) -> Pair:
    @contextmanager
    def ends(directory: Path) -> Iterator[tuple[End, End]]:
        with open_peer(directory) as peer:
            yield partial(peer.caller, SMALL), partial(peer.answerer, SMALL)

    return Pair("round trip", name, SMALL, ends)
