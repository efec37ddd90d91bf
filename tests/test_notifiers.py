"""What is run over which notifier."""

from __future__ import annotations

import pytest

CASE = """
    import itertools
    import pytest
    from tests.notifiers import NOTIFIERS, pairwise

    def pytest_collection_modifyitems(config, items):
        items[:], left_out = pairwise(items)
        config.hook.pytest_deselected(items=left_out)
"""
TESTS = """
    import pytest

    @pytest.fixture(params=["eventfd", "fifo"])
    def notifier(request):
        return request.param

    @pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_many(notifier, loop, size): ...

    def test_one(notifier): ...

    def test_none(): ...
"""


@pytest.fixture
def collected(pytester: pytest.Pytester) -> list[str]:
    pytester.makeconftest(CASE)
    path = pytester.makepyfile(TESTS)
    result = pytester.runpytest("--collect-only", "-q", "-p", "no:randomly", "-p", "no:asyncio", path)
    return [line.partition("::")[2] for line in result.outlines if "::" in line]


def test_every_pair_of_a_notifier_and_a_value_is_run(collected: list[str]) -> None:
    over_fifos = [name for name in collected if "fifo" in name]
    for value in ("asyncio", "uvloop", "1", "2", "3"):
        assert any(value in name for name in over_fifos if name.startswith("test_many"))
    assert len(over_fifos) < len([name for name in collected if "eventfd" in name])


def test_over_eventfds_and_without_other_parameters_nothing_is_left_out(collected: list[str]) -> None:
    assert len([name for name in collected if name.startswith("test_many[") and "eventfd" in name]) == 6
    assert {"test_one[eventfd]", "test_one[fifo]", "test_none"} <= set(collected)
