"""A forked child can use nothing that it inherited, and whatever it does with it, the parent notices nothing."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import warnings
from typing import TYPE_CHECKING, Any

import pytest

import shmd
from tests.children import in_child
from tests.restarts import Restarts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from shmd.testing import Connect, DaemonProcess

FORK = multiprocessing.get_context("fork")
# The child is forked in the middle of a running loop, and the parent waits for it there.
pytestmark = pytest.mark.may_block


def refusals(*uses: Callable[[], Any]) -> list[str]:
    """In the child: what each of these raises, if driven by hand, for there is no loop here."""
    found = []
    for use in uses:
        try:
            result = use()
            if hasattr(result, "__await__"):
                steps = result.__await__()
                assert steps.send(None) is None, "it waits for something"
                steps.send(None)  # that was the turn of the loop that every so many records are due
        except BaseException as error:
            found.append(type(error).__name__)
        else:
            found.append(f"{result!r}")
    return found


async def assert_unharmed(publisher: shmd.Publisher[Any], subscription: shmd.Subscription[Any]) -> None:
    """Still there, asleep and awake, here and at the daemon."""
    reading = asyncio.create_task(subscription.get())
    await asyncio.sleep(0)
    await publisher.publish("after")
    assert (await reading).value == "after"


async def test_forked_child_may_use_nothing_that_it_inherited(shmd_client: shmd.Client) -> None:
    async with (
        shmd_client.publisher("t", exclusive=True) as publisher,
        shmd_client.subscribe("t") as subscription,
        shmd_client.subscribe("t") as idle,
    ):
        for number in range(3):
            await publisher.publish(number)
        assert (await subscription.get()).value == 0  # two more are read ahead
        before = await shmd_client.stat("t")

        def child() -> list[str]:
            return refusals(
                lambda: publisher.publish(1),
                lambda: publisher.publish_nowait(1),
                lambda: publisher.publish_many([1]),
                lambda: publisher.publish_many([]),
                lambda: publisher.reserve(8).__enter__(),
                publisher.wait_for_subscribers,
                lambda: publisher.record_size_max,
                publisher.close,
                subscription.get,
                subscription.get_nowait,
                lambda: subscription.get_many(2),
                lambda: subscription.get_many(2, timeout=0),
                lambda: anext(subscription),
                subscription.close,
                idle.get,
                idle.get_nowait,
                idle.close,
                lambda: shmd_client.topic("t"),
                lambda: shmd_client.publisher("t"),
                lambda: shmd_client.subscribe("t"),
                lambda: shmd_client.latest("t"),
                lambda: shmd_client.latest("u"),
                shmd_client.topics,
                lambda: shmd_client.stat("t"),
                lambda: shmd_client.remove("t"),
                shmd_client.events,
                shmd_client.close,
            )

        found = in_child(child)
        assert found == ["ForkedError"] * len(found)
        assert await shmd_client.stat("t") == before
        assert [(await subscription.get()).value for _ in range(2)] == [1, 2]
        assert [(await idle.get()).value for _ in range(3)] == [0, 1, 2]
        await assert_unharmed(publisher, subscription)


async def test_collecting_what_a_child_inherited_is_silent_and_harmless(shmd_daemon: DaemonProcess) -> None:
    opened: list[Any] = [await shmd.connect(shmd_daemon.socket_path)]
    opened.append(await opened[0].publisher("t", when_full="wait"))
    opened.append(await opened[0].subscribe("t"))

    def child() -> tuple[list[str], int]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            opened.clear()
            gc.collect()
        return [str(warning.message) for warning in caught], len(opened)

    assert in_child(child) == ([], 0)
    await assert_unharmed(opened[1], opened[2])
    stat = await opened[0].stat("t")
    assert (len(stat.publishers), len(stat.subscribers)) == (1, 1)
    await opened[0].close()


async def test_child_that_lives_on_does_not_keep_the_parents_connection(shmd_connect: Connect) -> None:
    client, other = await shmd_connect(), await shmd_connect()
    await client.topic("t")

    def descriptors() -> list[str]:
        links = []
        for name in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{name}"))
            except OSError:
                continue  # the directory's own
        return links

    async with client.publisher("t"), client.subscribe("t"):
        here = [link for link in descriptors() if "eventfd" in link]
        there = [link for link in in_child(descriptors) if "eventfd" in link]
        assert len(here) - len(there) >= 4
        sockets = [os.readlink(f"/proc/self/fd/{peer._hub.link.session._sock.fileno()}") for peer in (client, other)]
        assert not set(sockets) & set(in_child(descriptors))


async def test_forked_child_connects_anew(shmd_client: shmd.Client, shmd_daemon: DaemonProcess) -> None:
    async with shmd_client.subscribe("t") as subscription:

        def child() -> int:
            async def main() -> int:
                async with shmd.connect(shmd_daemon.socket_path) as client, client.publisher("t") as publisher:
                    return await publisher.publish("from the child")

            return asyncio.run(main())

        assert in_child(child) == 1
        assert (await subscription.get()).value == "from the child"


async def test_fork_while_the_daemon_is_away_leaves_the_parent_reconnecting() -> None:
    restarts = Restarts()
    try:
        async with shmd.connect(restarts.socket_path) as client, client.publisher("t") as publisher:
            await restarts.kill(client)
            assert in_child(lambda: refusals(lambda: publisher.publish(1), client.close)) == ["ForkedError"] * 2
            await restarts.start(client)
            async with client.subscribe("t") as subscription:
                await assert_unharmed(publisher, subscription)
    finally:
        restarts.close()


# --- the recipes of docs/forking.md -----------------------------------------------------------------------------------


def _work(socket_path: str, number: int) -> None:
    """A multiprocessing worker: it connects after the fork, in a loop of its own."""

    async def main() -> None:
        async with shmd.connect(socket_path) as client, client.publisher("results") as publisher:
            await publisher.publish(number * number)

    asyncio.run(main())


async def test_multiprocessing_workers_connect_in_the_child(
    shmd_client: shmd.Client, shmd_daemon: DaemonProcess
) -> None:
    async with shmd_client.subscribe("results") as subscription:
        workers = [FORK.Process(target=_work, args=(shmd_daemon.socket_path, number)) for number in range(3)]
        for worker in workers:
            worker.start()
        assert sorted([(await subscription.get()).value for _ in workers]) == [0, 1, 4]
        for worker in workers:
            await asyncio.to_thread(worker.join)
            assert worker.exitcode == 0
            worker.close()


async def _inherited(use: Awaitable[Any]) -> str:
    try:
        await use
    except shmd.ForkedError as error:
        return str(error)
    return "it worked"


def test_preforked_worker_connects_lazily(shmd_daemon: DaemonProcess) -> None:
    """As gunicorn does it: the application is imported before the fork, and serves requests after it."""
    clients: dict[int, shmd.Client] = {}

    async def get_client() -> shmd.Client:
        if os.getpid() not in clients:
            clients[os.getpid()] = await shmd.connect(shmd_daemon.socket_path)
        return clients[os.getpid()]

    def serve_one() -> int:
        async def main() -> int:
            client = await get_client()
            try:
                async with client.publisher("requests") as publisher:
                    return await publisher.publish(os.getpid())
            finally:
                await clients.pop(os.getpid()).close()

        return asyncio.run(main())

    assert [in_child(serve_one), in_child(serve_one), serve_one()] == [1, 2, 3]


def test_client_made_before_the_fork_says_what_to_do(shmd_daemon: DaemonProcess) -> None:
    async def main() -> None:
        async with shmd.connect(shmd_daemon.socket_path) as client:

            def child() -> str:
                return asyncio.run(_inherited(client.stat("t")))

            told = in_child(child)
            assert "made before the fork" in told
            assert "connect() in the child" in told

    asyncio.run(main())
