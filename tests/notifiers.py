"""Tests over both notifiers. A test that uses the fixture ``notifier`` runs once over eventfds and once over FIFOs.

Where such a test has other parameters, too (an event loop is one), it runs with all combinations of them over eventfds,
and over FIFOs with as many as are needed for each value of each parameter to come up once: every *pair* of a notifier
and a value. ``SHMD_SOAK=1`` runs all. Which ones are left out depends on nothing but the order of the parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from shmd import topic_options

if TYPE_CHECKING:
    from collections.abc import Hashable

    from shmd.protocol import TopicOptions

FIXTURE = "notifier"
NOTIFIERS = ("eventfd", "fifo")


@pytest.fixture(params=NOTIFIERS)
def notifier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The notifier of all topics that clients of this process make, unless they ask for one."""
    chosen: str = request.param

    def make_options(*arguments: Any) -> TopicOptions:
        options = topic_options.make_options(*arguments)
        return msgspec.structs.replace(options, notifier=options.notifier or chosen)

    monkeypatch.setattr("shmd.client.make_options", make_options)
    return chosen


def pairwise(items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """(to be run, left out)."""
    covered: set[Hashable] = set()
    run: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        parameters = _parameters(item)
        if parameters.pop(FIXTURE, NOTIFIERS[0]) == NOTIFIERS[0]:
            run.append(item)
            continue
        test = item.nodeid.partition("[")[0]
        pairs = {(test, name, repr(value)) for name, value in parameters.items()} or {(test,)}
        (run if pairs - covered else left_out).append(item)
        covered |= pairs
    return run, left_out


def _parameters(item: pytest.Item) -> dict[str, Any]:
    callspec = getattr(item, "callspec", None)
    return dict(callspec.params) if callspec is not None else {}
