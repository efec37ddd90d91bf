"""What is run over which notifier."""

from __future__ import annotations

import pytest

CASE = """
    import pytest
    from tests.notifiers import pairwise

    def pytest_collection_modifyitems(config, items):
        left_out = pairwise(items)
        items[:] = [item for item in items if item not in left_out]
"""
TESTS = """
    import pytest

    @pytest.fixture(params=["eventfd", "fifo"])
    def notifier(request):
        return request.param

    @pytest.mark.parametrize("_asyncio_loop_factory", ["asyncio", "uvloop"])
    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_many(notifier, _asyncio_loop_factory, size): ...

    @pytest.mark.parametrize("_asyncio_loop_factory", ["asyncio", "uvloop"])
    def test_more(notifier, _asyncio_loop_factory): ...

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
    many, (more,) = (
        [name for name in collected if name.startswith(f"test_m{what}") and "fifo" in name] for what in ("any", "ore")
    )
    assert len(many) == 3
    assert all(any(size in name for name in many) for size in "123")
    assert all("asyncio" in name for name in many)
    assert "uvloop" in more


def test_over_eventfds_and_without_other_parameters_nothing_is_left_out(collected: list[str]) -> None:
    assert len([name for name in collected if name.startswith("test_many[") and "eventfd" in name]) == 6
    assert {"test_one[eventfd]", "test_one[fifo]", "test_none"} <= set(collected)
