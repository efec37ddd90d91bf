"""``python -m benchmarks``: measures everything in interleaved rounds, prints tables, ratios and goals."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import cases, machine
from benchmarks.harness import BenchmarkError, Placement, Plan, measure_alone, measure_pair, placements
from benchmarks.report import tables
from benchmarks.results import Results, as_json, verdicts

if TYPE_CHECKING:
    from collections.abc import Sequence

QUICK_RECORDS = 300
DISTURBED_PERCENT = 5.0
"""Of all CPU time: with more than this, single rounds are off by half, and with them the ratios."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        _measure_and_print(options)
    except BenchmarkError as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("benchmarks: interrupted\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--pin",
        choices=("both", "same", "split", "none"),
        default="both",
        help="both processes on one core (same), on one each (split), unpinned (none), or same and then split (both)",
    )
    parser.add_argument("--rounds", type=_positive(int), default=5, help="interleaved rounds; medians are printed (5)")
    parser.add_argument(
        "--seconds", type=_positive(float), default=0.4, help="about how long one measurement lasts (0.4)"
    )
    parser.add_argument(
        "--loop", choices=("uvloop", "asyncio"), default="uvloop", help="event loop of everything measured"
    )
    parser.add_argument("--peers", nargs="+", choices=cases.PEERS, default=cases.PEERS, help="leave some out")
    parser.add_argument("--quick", action="store_true", help="two rounds of a few hundred records: shows that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures there")
    return parser


def _positive(kind: type[int] | type[float]) -> partial[float]:
    def parse(kind: type[int] | type[float], text: str) -> float:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{text} is not positive")
        return value

    return partial(parse, kind)


def _measure_and_print(options: argparse.Namespace) -> None:
    places = placements(options.pin)
    rounds = 2 if options.quick else options.rounds
    facts = {**machine.facts(), "loop": options.loop, "rounds": rounds, "seconds": options.seconds}
    before = machine.Load.now()
    results = _measure(options, places, rounds)
    disturbance = machine.Load.now().disturbance_since(before)
    facts |= disturbance
    found = verdicts(results, places)
    for name, fact in facts.items():
        print(f"{name:16}{fact if not isinstance(fact, float) else format(fact, '.3g')}")
    if sum(disturbance.values()) > DISTURBED_PERCENT:
        print("\nDISTURBED: others had too much of the CPUs meanwhile. Repeat when the machine is quiet.")
    print()
    print(tables(results, places, found))
    if options.json:
        options.json.write_text(json.dumps({"machine": facts, **as_json(results, found)}, indent=1) + "\n")


def _measure(options: argparse.Namespace, places: list[Placement], rounds: int) -> Results:
    results = Results()
    plan = Plan(options.seconds, QUICK_RECORDS if options.quick else None, options.loop)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shmd-bench-")))
        shmd_socket = None
        if "shmd" in options.peers:
            from benchmarks.peers import shmd_topics

            shmd_socket = stack.enter_context(shmd_topics.serving(directory))
        pairs, solos = cases.pairs(options.peers, shmd_socket), cases.solos(shmd_socket)
        for number in range(rounds):
            for place in places:
                _progress(f"round {number + 1} of {rounds}, {place.title}")
                _solo_round(results, solos, place, plan)
                # Another one is first in each round, so that none always follows the same neighbour's noise.
                for pair in pairs[number % len(pairs) :] + pairs[: number % len(pairs)]:
                    _pair(results, pair, place, plan, directory)
        _progress("")
    return results


def _solo_round(results: Results, solos: list[cases.Solo], place: Placement, plan: Plan) -> None:
    for solo in solos:
        work = partial(solo.work, plan.count or solo.count)
        for name, ns in measure_alone(work, place, plan.loop).items():
            results.solos[place.name, name].append(ns)


def _pair(results: Results, pair: cases.Pair, place: Placement, plan: Plan, directory: Path) -> None:
    try:
        with tempfile.TemporaryDirectory(dir=directory) as own, pair.ends(Path(own)) as (near, far):
            sample = measure_pair(near, far, place, plan, pair.payload.warm_up)
    except BenchmarkError as error:
        raise BenchmarkError(f"{pair.name}, {pair.kind}, {pair.payload.name}: {error}") from error
    results.pairs[place.name, pair.kind, pair.name, pair.payload.name].append(sample)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
