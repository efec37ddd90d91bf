"""The plain-text tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import cases
from benchmarks.records import PAYLOADS, SMALL
from benchmarks.statistic import Spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from benchmarks.harness import Placement, Sample, Usage
    from benchmarks.results import Results, Verdict

ONE_WAY_PEERS = (cases.PUBLISH, cases.PUBLISH_MANY, cases.ZMQ, cases.STREAMS)
ROUND_TRIP_PEERS = (cases.EVENTFD, cases.PUBLISH, cases.FIFO, cases.ZMQ, cases.STREAMS)


def tables(results: Results, places: Sequence[Placement], found: Sequence[Verdict]) -> str:
    """Everything, one placement after the other; the goals last."""
    lines: list[str] = []
    for place in places:
        lines += [f"=== {place.title}", ""]
        lines += [*_aligned(_one_way(results, place)), "", *_aligned(_round_trip(results, place)), ""]
        lines += [*_aligned(_floors(results, place)), ""]
    if found:
        lines += ["=== goals", "", *_aligned(_goals(found))]
    return "\n".join(lines)


def _one_way(results: Results, place: Placement) -> Iterator[list[str]]:
    yield ["one way", "payload", "thousand/s", "(min - max)", "ns/record", "GiB/s", *_USED, "publish is faster by"]
    for payload in PAYLOADS:
        ours = results.one_way_ns(place, cases.PUBLISH, payload)
        for peer in ONE_WAY_PEERS:
            times = results.one_way_ns(place, peer, payload)
            if not times:
                continue
            rate = Spread.of([1e6 / ns for ns in times])
            gib = payload.size_bytes * rate.median * 1000 / 2**30
            ratio = _ratio(times, ours) if peer != cases.PUBLISH else "-"
            yield [
                *(
                    peer,
                    payload.name,
                    _short(rate.median),
                    _range(rate),
                    f"{Spread.of(times).median:,.0f}",
                    f"{gib:.2f}",
                ),
                *_used(results.pairs[place.name, "one way", peer, payload.name]),
                ratio,
            ]


def _round_trip(results: Results, place: Placement) -> Iterator[list[str]]:
    yield ["round trip", "p50 us", "(min - max)", "p99 us", "(min - max)", *_USED, "publish is faster by (p50)"]
    ours = results.round_trip_us(place, cases.PUBLISH, 50)
    for peer in ROUND_TRIP_PEERS:
        times = results.round_trip_us(place, peer, 50)
        if not times:
            continue
        p50, p99 = Spread.of(times), Spread.of(results.round_trip_us(place, peer, 99))
        ratio = _ratio(times, ours) if peer != cases.PUBLISH else "-"
        used = _used(results.pairs[place.name, "round trip", peer, SMALL.name])
        yield [peer, _short(p50.median), _range(p50), _short(p99.median), _range(p99), *used, ratio]


def _floors(results: Results, place: Placement) -> Iterator[list[str]]:
    yield ["one process", "ns", "(min - max)"]
    for (name, what), rounds in results.solos.items():
        if name == place.name:
            spread = Spread.of(rounds)
            yield [what, _short(spread.median), _range(spread)]


def _goals(found: Iterable[Verdict]) -> Iterator[list[str]]:
    yield ["pinning", "goal", "bound", "reached", "(min - max)", ""]
    for verdict in found:
        bound = f"{'<=' if verdict.at_most else '>='} {verdict.bound:g}"
        reached = verdict.reached
        met = "met" if verdict.met else "NOT MET"
        yield [verdict.placement, verdict.goal, bound, _short(reached.median), _range(reached), met]


_USED = ("cpu ns near", "far", "switches/1000 near", "far")


def _used(samples: Sequence[Sample]) -> list[str]:
    """Medians of each process's CPU time per record, and of its context switches: voluntary + involuntary."""

    def column(usages: Sequence[Usage]) -> tuple[str, str]:
        counts = [sample.count for sample in samples]
        cpu = Spread.of([usage.cpu_s * 1e9 / n for usage, n in zip(usages, counts, strict=True)]).median
        voluntary = Spread.of([usage.switches_voluntary * 1e3 / n for usage, n in zip(usages, counts, strict=True)])
        forced = Spread.of([usage.switches_involuntary * 1e3 / n for usage, n in zip(usages, counts, strict=True)])
        return f"{cpu:,.0f}", f"{_short(voluntary.median)} + {_short(forced.median)}"

    near, far = column([sample.near for sample in samples]), column([sample.far for sample in samples])
    return [near[0], far[0], near[1], far[1]]


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    if not ours:
        return "-"
    ratio = Spread.of_ratios(theirs, ours)
    return f"{_short(ratio.median)} {_range(ratio)}"


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _range(spread: Spread) -> str:
    return f"({_short(spread.low)} - {_short(spread.high)})"


def _aligned(rows: Iterable[list[str]]) -> list[str]:
    """The first column and the last to the left, figures to the right."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    words = [all(row[at][:1].isalpha() or not row[at] for row in table) for at in range(len(widths))]
    return [
        "  ".join(
            cell.ljust(width) if word else cell.rjust(width)
            for cell, width, word in zip(row, widths, words, strict=True)
        ).rstrip()
        for row in table
    ]
