"""Collects the rounds' figures and judges them against the goals."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks import cases
from benchmarks.records import SMALL, Payload
from benchmarks.statistic import Spread, percentile

if TYPE_CHECKING:
    from benchmarks.harness import Placement, Sample

PairKey = tuple[str, str, str, str]
"""Placement, kind, peer, payload."""


@dataclass
class Results:
    """One list of figures per measurement, in the order of the rounds."""

    pairs: defaultdict[PairKey, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    solos: defaultdict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    def one_way_ns(self, placement: Placement, peer: str, payload: Payload) -> list[float]:
        """Nanoseconds per record, round by round; empty if it was not measured."""
        return [sample.ns_per_record for sample in self.pairs.get((placement.name, "one way", peer, payload.name), ())]

    def round_trip_us(self, placement: Placement, peer: str, percent: float) -> list[float]:
        """Each round's percentile in microseconds; empty if it was not measured."""
        samples = self.pairs.get((placement.name, "round trip", peer, SMALL.name), ())
        return [percentile(sample.latencies_ns, percent) / 1000 for sample in samples]

    def solo_ns(self, placement: Placement, name: str) -> list[float]:
        return self.solos.get((placement.name, name), [])

    def codec_ns(self, placement: Placement, payload: Payload) -> list[float]:
        """The slower side of the codec alone, round by round: two processes cannot go faster than it."""
        sides = (self.solo_ns(placement, f"{side} {payload.name}") for side in ("pack", "unpack"))
        return [max(pair) for pair in zip(*sides, strict=True)]


@dataclass(frozen=True)
class Verdict:
    """A goal and what was reached: a ratio of medians' rounds, and on which side of the bound it has to be."""

    placement: str
    goal: str
    bound: float
    at_most: bool
    reached: Spread

    @property
    def met(self) -> bool:
        return self.reached.median <= self.bound if self.at_most else self.reached.median >= self.bound


def verdicts(results: Results, placements: list[Placement]) -> list[Verdict]:
    """All goals whose two sides were measured."""
    return [verdict for placement in placements for verdict in _judge(results, placement)]


def _judge(results: Results, place: Placement) -> list[Verdict]:
    found = []

    def judge(goal: str, bound: float, at_most: bool, above: list[float], below: list[float]) -> None:
        if above and below:
            found.append(Verdict(place.name, goal, bound, at_most, Spread.of_ratios(above, below)))

    publish, publish_many = (results.one_way_ns(place, peer, SMALL) for peer in (cases.PUBLISH, cases.PUBLISH_MANY))
    codec, zmq = results.codec_ns(place, SMALL), results.one_way_ns(place, cases.ZMQ, SMALL)
    p50 = {peer: results.round_trip_us(place, peer, 50) for peer in (cases.PUBLISH, cases.EVENTFD, cases.ZMQ)}
    step = results.solo_ns(place, "async for step")
    judge("round-trip p50, as a multiple of the bare eventfd's", 1.5, True, p50[cases.PUBLISH], p50[cases.EVENTFD])
    judge("one-way time, publish, as a multiple of the codec's slower side", 2.5, True, publish, codec)
    judge("one-way time, publish_many, as a multiple of the codec's slower side", 2.5, True, publish_many, codec)
    judge("one way, times as fast as zmq.asyncio", 8, False, zmq, publish)
    if place.name == "same":
        judge("round-trip p50, times as fast as zmq.asyncio", 5, False, p50[cases.ZMQ], p50[cases.PUBLISH])
    judge("async for step over a ready record, ns", 100, True, step, [1.0] * len(step))
    return found


def as_json(results: Results, found: list[Verdict]) -> dict[str, Any]:
    """Every round's figures; of round trips the percentiles instead of the single times."""
    return {
        "pairs": [
            dict(zip(("placement", "kind", "peer", "payload"), key, strict=True), rounds=[_figures(s) for s in samples])
            for key, samples in results.pairs.items()
        ],
        "floors": [
            {"placement": place, "name": name, "rounds_ns": rounds} for (place, name), rounds in results.solos.items()
        ],
        "goals": [{**asdict(verdict), "met": verdict.met} for verdict in found],
    }


def _figures(sample: Sample) -> dict[str, Any]:
    figures = sample.figures()
    if sample.latencies_ns:
        figures |= {f"p{p}_ns": percentile(sample.latencies_ns, p) for p in (50, 99)}
    return figures
