"""Who forgets to await what opens something is told so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import shmd
from shmd.opener import Opener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OPENERS: dict[str, tuple[Callable[[shmd.Client], Any], str]] = {
    "connect": (lambda client: shmd.connect(), "client = await shmd.connect(...)"),
    "publisher": (lambda client: client.publisher("t"), "publisher = await client.publisher(...)"),
    "subscribe": (lambda client: client.subscribe("t"), "subscription = await client.subscribe(...)"),
    "segment": (lambda client: client.segment("s"), "segment = await client.segment(...)"),
}


@pytest.fixture(params=OPENERS)
def opener(request: pytest.FixtureRequest, shmd_client: shmd.Client) -> Iterator[tuple[Any, str]]:
    """What was not awaited, and what it should say."""
    make, advice = OPENERS[request.param]
    opener = make(shmd_client)
    yield opener, advice
    opener.close()


async def test_attribute_of_what_was_not_awaited_says_await_it(opener: tuple[Any, str]) -> None:
    unawaited, advice = opener
    for name in ("publish", "get", "publisher", "buf", "topic"):
        with pytest.raises(AttributeError, match=f"no '{name}' yet") as raised:
            getattr(unawaited, name)
        assert advice in str(raised.value)
        assert f"async with {advice.partition('await ')[2]} as {advice.partition(' ')[0]}" in str(raised.value)
        assert raised.value.name == name


async def test_iterating_over_what_was_not_awaited_says_await_it(opener: tuple[Any, str]) -> None:
    unawaited, advice = opener
    with pytest.raises(TypeError) as raised:
        async for _ in unawaited:
            pass
    assert advice in str(raised.value)
    with pytest.raises(TypeError) as raised:
        await anext(unawaited)
    assert advice in str(raised.value)


async def test_with_in_the_place_of_async_with_says_so(opener: tuple[Any, str]) -> None:
    unawaited, advice = opener
    with pytest.raises(TypeError, match="async with") as raised, unawaited:
        pass
    assert advice in str(raised.value)


async def test_looking_for_attributes_does_no_harm(shmd_client: shmd.Client) -> None:
    opener = shmd_client.publisher("t")
    assert not hasattr(opener, "cr_code")
    assert getattr(opener, "publish", None) is None
    async with opener as publisher:
        assert await publisher.publish(1) == 1


def test_opener_that_is_not_whole_says_what_is_missing() -> None:
    """As copy and pickle make them. It does not ask itself without end."""
    with pytest.raises(AttributeError, match="_opening"):
        Opener.__new__(Opener).send(None)
