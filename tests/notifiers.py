"""Tests over both notifiers. A test that uses the fixture ``notifier`` runs once over eventfds and once over FIFOs.

Where such a test has other parameters, too, it runs with all combinations of them over eventfds, and over FIFOs with as
many as are needed for every *pair* of a notifier and a value to come up once. A test that runs on both event loops runs
over FIFOs on one of them, the next test of its file on the other. Long tests mix both kinds of topics
(``MIXTURES``) or take one of them (``unless_soak``). ``SHMD_SOAK=1`` runs all.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from shmd import topic_options

if TYPE_CHECKING:
    from shmd.cli.torture.chaos import Mixture
    from shmd.protocol import TopicOptions

SOAK = os.environ.get("SHMD_SOAK", "") not in ("", "0")
FIXTURE = "notifier"
NOTIFIERS = ("eventfd", "fifo")
LOOP = "_asyncio_loop_factory"
"""pytest-asyncio's name for it."""


MIXTURES: list[Mixture] = ["eventfd", "fifo", "both"] if SOAK else ["both"]
"""For what is long and has several topics: both kinds at once; in soak also each alone."""


def unless_soak(only: str) -> pytest.MarkDecorator:
    """For what is long and has one topic: one of the two, unless in soak."""
    return pytest.mark.parametrize(FIXTURE, NOTIFIERS if SOAK else [only])


@pytest.fixture(params=NOTIFIERS)
def notifier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The notifier of all topics that clients of this process make, unless they ask for one."""
    chosen: str = request.param

    def make_options(*arguments: Any) -> TopicOptions:
        options = topic_options.make_options(*arguments)
        return msgspec.structs.replace(options, notifier=options.notifier or chosen)

    monkeypatch.setattr("shmd.client.make_options", make_options)
    return chosen


def pairwise(items: list[pytest.Item]) -> set[pytest.Item]:
    """Those that need not be run. The order of ``items`` does not matter."""
    left_out: set[pytest.Item] = set()
    files: dict[str, dict[str, list[pytest.Item]]] = {}
    for item in sorted(items, key=lambda item: item.nodeid):
        if _parameters(item).get(FIXTURE, NOTIFIERS[0]) != NOTIFIERS[0]:
            test = item.nodeid.partition("[")[0]
            files.setdefault(test.partition("::")[0], {}).setdefault(test, []).append(item)
    for tests in files.values():
        for number, variants in enumerate(tests.values()):
            left_out |= _surplus(variants, number)
    return left_out


def _surplus(variants: list[pytest.Item], number: int) -> set[pytest.Item]:
    """Of one test, the ``number``-th of its file, over one notifier: what brings no new value of a parameter."""
    loops = list(dict.fromkeys(_parameters(item).pop(LOOP, None) for item in variants))
    by_loop = sorted(variants, key=lambda item: (loops.index(_parameters(item).get(LOOP)) - number) % len(loops))
    covered: set[tuple[str, str]] = set()
    surplus: set[pytest.Item] = set()
    for item in by_loop:
        values = {(name, repr(value)) for name, value in _parameters(item).items() if name != LOOP}
        if values <= covered:
            surplus.add(item)
        covered |= values
    return surplus


def _parameters(item: pytest.Item) -> dict[str, Any]:
    callspec = getattr(item, "callspec", None)
    return dict(callspec.params) if callspec is not None else {}
