"""Records from end to end through real processes and pipes: all of them, in order, the same for everybody.

``SHMD_SOAK=1`` runs them in full size.
"""

from __future__ import annotations

import filecmp
import json
import random
import subprocess
from itertools import islice
from typing import TYPE_CHECKING, Any

from shmd.cli.demo.procfs import samples
from tests.conftest import SOAK
from tests.notifiers import unless_soak
from tests.shell import Shell, parse_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINES = 10_000_000 if SOAK else 100_000
PUBLISHERS = SUBSCRIBERS = 8
LINES_OF_EACH_PUBLISHER = 125_000 if SOAK else 2_500
TIMEOUT_S = 7200 if SOAK else 110
WRITE_LINES = 10_000
CHARACTERS = [*map(chr, range(0xD800)), "\uffff", "\U0001f600", "\U0010ffff"]


def real_values() -> list[Any]:
    """What this host's /proc says now."""
    return list(islice(samples(), 2_000))


def varied_values(count: int) -> Iterator[Any]:
    """Whatever JSON can say: every type, nested, long and short, all planes of Unicode."""
    chance = random.Random(2)  # the same in every run

    def value(depth: int) -> Any:
        kind = chance.randrange(8 if depth else 6)
        if kind == 0:
            return chance.choice([None, True, False, "", [], {}, 0, -0.0])
        if kind == 1:
            return chance.randrange(-(2**63), 2**64)
        if kind == 2:
            return chance.choice([chance.random(), chance.uniform(-1e300, 1e300), 5e-324, 1.7976931348623157e308])
        if kind == 3:
            return "x" * chance.randrange(500)
        if kind in (4, 5):
            return "".join(chance.choices(CHARACTERS, k=chance.randrange(20)))
        if kind == 6:
            return [value(depth - 1) for _ in range(chance.randrange(6))]
        return {str(chance.random()): value(depth - 1) for _ in range(chance.randrange(6))}

    return (value(4) for _ in range(count))


def write_lines(path: Path, count: int) -> None:
    """``count`` lines of JSON, each different from all others."""
    values = [*real_values(), *varied_values(500)]
    bodies = [json.dumps(value, ensure_ascii=number % 2 == 0) for number, value in enumerate(values)]
    random.Random(2).shuffle(bodies)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(f'{{"n": {number}, "value": {bodies[number % len(bodies)]}}}\n')


def normal(line: bytes) -> str:
    return json.dumps(json.loads(line), sort_keys=True)


@unless_soak("eventfd")
def test_sub_writes_every_line_that_pub_was_given_in_order(shell: Shell, tmp_path: Path, notifier: str) -> None:
    given = tmp_path / "given.jsonl"
    write_lines(given, LINES)
    with given.open("rb") as wanted, subprocess.Popen(["cat", str(given)], stdout=subprocess.PIPE) as cat:
        sub = shell.start("sub", "t", "--count", str(LINES))
        pub = shell.start(
            "pub", "t", "--notifier", notifier, "--when-full", "wait", "--wait-subscribers", "1", stdin=cat.stdout
        )
        assert sub.stdout is not None
        for line, received in zip(wanted, sub.stdout, strict=True):
            assert normal(line) == normal(received)
        assert (pub.wait(TIMEOUT_S), sub.wait(TIMEOUT_S)) == (0, 0)
    given.unlink()
    assert sub.stderr is not None
    assert sub.stderr.read() == b""


@unless_soak("fifo")
def test_sub_that_falls_behind_accounts_for_every_record(shell: Shell, notifier: str) -> None:
    """Nothing reads what sub writes until all is published: it stands at a full pipe while publishers lap it."""
    sub = shell.start("sub", "t", "--json")
    options = ("--notifier", notifier, "--size", "64KiB", "--when-full", "discard-old", "--wait-subscribers", "1")
    pub = shell.start("pub", "t", *options)
    assert pub.stdin is not None
    for first in range(0, LINES, WRITE_LINES):
        pub.stdin.write(b"".join(b'{"n": %d}\n' % number for number in range(first, first + WRITE_LINES)))
    pub.stdin.close()
    assert pub.wait(TIMEOUT_S) == 0

    assert sub.stdout is not None
    position = received = lost = 0
    while position < LINES:
        record = json.loads(sub.stdout.readline())
        assert record["seq"] == position + record["lost"] + 1
        assert record["value"] == {"n": record["seq"] - 1}
        position = record["seq"]
        received += 1
        lost += record["lost"]
    assert received + lost == LINES
    assert lost > 0
    sub.terminate()
    output, errors = sub.communicate(timeout=TIMEOUT_S)
    assert (output, errors.decode()) == (b"", f"shmd: {lost} records lost\n")


def test_subscribers_all_see_one_order_and_each_publishers_own(shell: Shell, tmp_path: Path, notifier: str) -> None:
    total = PUBLISHERS * LINES_OF_EACH_PUBLISHER
    outputs = [tmp_path / f"sub-{number}.jsonl" for number in range(SUBSCRIBERS)]
    subs = []
    for path in outputs:
        with path.open("wb") as output:
            subs.append(shell.start("sub", "t", "--json", "--count", str(total), stdout=output))
    pubs = []
    options = ("--notifier", notifier, "--when-full", "wait", "--wait-subscribers", str(SUBSCRIBERS))
    for number in range(PUBLISHERS):
        path = tmp_path / f"pub-{number}.jsonl"
        path.write_text("".join(f'["{number}", {line}]\n' for line in range(LINES_OF_EACH_PUBLISHER)))
        with path.open("rb") as given:
            pubs.append(shell.start("pub", "t", *options, stdin=given))
    for process in (*pubs, *subs):
        assert process.wait(TIMEOUT_S) == 0

    assert all(filecmp.cmp(outputs[0], path, shallow=False) for path in outputs[1:])
    records = parse_lines(outputs[0].read_bytes())
    assert [record["seq"] for record in records] == list(range(1, total + 1))
    assert not any(record["lost"] for record in records)
    own: dict[str, list[int]] = {str(number): [] for number in range(PUBLISHERS)}
    publisher_of: dict[str, set[int]] = {name: set() for name in own}
    for record in records:
        name, line = record["value"]
        own[name].append(line)
        publisher_of[name].add(record["publisher"])
    assert all(lines == list(range(LINES_OF_EACH_PUBLISHER)) for lines in own.values())
    assert len(set.union(*publisher_of.values())) == PUBLISHERS
