"""The four behaviours of a pipe, through topics: by the API and by the shell, with ends that leave and ends that die.

A reader waits while it is empty; a writer waits while it is full; the reader's end comes when the writers have gone;
the writer gets an error when the readers have gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import shmd
from shmd import limits
from shmd.joined_topic import JoinedTopic
from tests.interrupt import interruptions
from tests.loop_turns import started, turns, until
from tests.shell import TIMEOUT_S, json_lines, parse_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shmd.start import Seek
    from shmd.testing import Connect, DaemonProcess
    from tests.restarts import Restarts
    from tests.shell import Shell

SMALL = limits.TOPIC_SIZE_BYTES_MIN


@contextlib.contextmanager
def pipe_end(socket_path: str, end: str, count: int = 0, topic: str = "t") -> Iterator[subprocess.Popen[bytes]]:
    """A publisher or subscriber in a process of its own, which is ready; killed at the end."""
    command = [sys.executable, "-m", "tests.pipe_child", socket_path, topic, end, str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            yield child
        finally:
            child.kill()


async def rest(subscription: shmd.Subscription[Any]) -> list[Any]:
    """All values to the end."""
    return [record.value async for record in subscription]


async def fill(publisher: shmd.Publisher[Any]) -> int:
    """Publish until there is no room; how many went in."""
    for count in range(limits.PUBLISH_MANY_MAX):
        try:
            publisher.publish_nowait(count)
        except shmd.TopicFull:
            return count
    raise AssertionError("never full")


@pytest.mark.both_loops
class TestReaderWaitsWhenEmpty:
    async def test_reader_waits_for_a_writer_that_is_there_to_write(self, shmd_client: shmd.Client) -> None:
        async with (
            shmd_client.publisher("t") as publisher,
            shmd_client.subscribe("t", until_closed=True) as subscription,
        ):
            reading = asyncio.create_task(subscription.get())
            await started(reading)
            await publisher.publish("late")
            assert (await reading).value == "late"

    async def test_reader_waits_for_a_topic_and_a_writer_to_come(self, shmd_client: shmd.Client) -> None:
        async with shmd_client.subscribe("t", until_closed=True) as subscription:
            reading = asyncio.create_task(rest(subscription))
            await shmd_client.topic("t")
            await started(reading)
            async with shmd_client.publisher("t") as publisher:
                await publisher.publish(1)
            assert await reading == [1]

    @pytest.mark.parametrize("start", ["new", "all"])
    async def test_reader_of_a_topic_without_any_writer_so_far_waits_for_one(
        self, shmd_client: shmd.Client, start: Any
    ) -> None:
        await shmd_client.topic("t")
        async with shmd_client.subscribe("t", start=start, until_closed=True) as subscription:
            reading = asyncio.create_task(rest(subscription))
            await shmd_client.topics()
            await started(reading)
            await (await shmd_client.publisher("t")).close()  # one that writes nothing is one, too
            assert await reading == []

    async def test_reader_from_new_waits_though_writers_came_and_went_before(self, shmd_client: shmd.Client) -> None:
        async with shmd_client.publisher("t") as publisher:
            await publisher.publish("before")
        async with shmd_client.subscribe("t", until_closed=True) as subscription:
            reading = asyncio.create_task(rest(subscription))
            await shmd_client.topics()
            await started(reading)
            async with shmd_client.publisher("t") as publisher:
                await publisher.publish("after")
            assert await reading == ["after"]


class TestWriterWaitsWhenFull:
    @pytest.mark.both_loops
    async def test_writer_waits_for_room_and_goes_on_when_the_reader_reads(self, shmd_client: shmd.Client) -> None:
        async with (
            shmd_client.subscribe("t", until_closed=True) as subscription,
            shmd_client.publisher("t", size=SMALL, when_full="wait", require_subscribers=True) as publisher,
        ):
            await publisher.wait_for_subscribers()
            count = await fill(publisher)
            waiting = asyncio.create_task(publisher.publish("last"))
            await started(waiting)
            assert [(await subscription.get()).value for _ in range(count)] == list(range(count))
            assert await waiting == count + 1

    def test_shell_writer_waits_for_a_reader_that_does_not_read(self, shell: Shell, tmp_path: Path) -> None:
        values = ["x" * 500] * 2000  # more than the topic, sub, and its pipe hold together
        path = tmp_path / "lines"
        path.write_bytes(json_lines(values))
        # Unbuffered: communicate() does not see what readline() has read ahead.
        sub = shell.start("sub", "t", "--until-closed", bufsize=0)
        with path.open("rb") as lines:
            options = ("--require-subscribers", "--when-full", "wait", "--size", "4KiB")
            pub = shell.start("pub", "t", *options, stdin=lines)
        assert sub.stdout is not None
        first = sub.stdout.readline()
        assert pub.poll() is None
        output, _ = sub.communicate(timeout=TIMEOUT_S)
        assert parse_lines(first + output) == values
        assert (pub.wait(TIMEOUT_S), sub.returncode) == (0, 0)


class TestEndWhenTheWritersAreGone:
    @pytest.mark.both_loops
    async def test_reader_ends_after_the_last_record_of_the_last_writer(self, shmd_client: shmd.Client) -> None:
        async with shmd_client.subscribe("t", until_closed=True) as subscription:
            first = await shmd_client.publisher("t")
            second = await shmd_client.publisher("t")
            await first.publish_many(range(5))
            await first.close()
            reading = asyncio.create_task(rest(subscription))
            await shmd_client.topics()
            await started(reading)
            await second.publish_many(range(5, 700))
            await second.close()
            assert await reading == list(range(700))

    @pytest.mark.both_loops
    async def test_every_kind_of_read_reports_the_end_again_and_again(self, shmd_client: shmd.Client) -> None:
        async with shmd_client.publisher("t") as publisher:
            await publisher.publish(1)
        async with shmd_client.subscribe("t", start="all", until_closed=True) as subscription:
            assert (await subscription.get()).value == 1
            for _ in range(2):
                with pytest.raises(shmd.TopicClosed, match=r"all publishers of topic 't' have gone"):
                    await subscription.get()
                with pytest.raises(shmd.TopicClosed):
                    await subscription.get_many(2)
                with pytest.raises(shmd.TopicClosed):
                    await subscription.get_many(2, timeout=0)
                with pytest.raises(shmd.TopicClosed):
                    subscription.get_nowait()
                assert await rest(subscription) == []
            assert subscription.topics == ()
            stat = await shmd_client.stat("t")
            assert stat is not None
            assert stat.subscribers == ()

    @pytest.mark.parametrize("start", ["all", "last", 2, 99])
    async def test_reader_from_the_past_reads_what_former_writers_left_and_ends(
        self, shmd_client: shmd.Client, start: Any
    ) -> None:
        async with shmd_client.publisher("t") as publisher:
            await publisher.publish_many([1, 2, 3])
        left = {"all": [1, 2, 3], "last": [3], 2: [2, 3], 99: []}
        async with shmd_client.subscribe("t", start=start, until_closed=True) as subscription:
            assert await rest(subscription) == left[start]

    async def test_reader_without_until_closed_goes_on_waiting(self, shmd_client: shmd.Client) -> None:
        async with shmd_client.subscribe("t") as subscription:
            await (await shmd_client.publisher("t")).close()
            assert await subscription.get_many(1, timeout=0) == []

    async def test_removed_topic_is_removed_not_closed(self, shmd_client: shmd.Client, shmd_connect: Connect) -> None:
        other = await shmd_connect()
        async with shmd_client.publisher("t"), other.subscribe("t", until_closed=True) as subscription:
            await shmd_client.remove("t")
            with pytest.raises(shmd.TopicRemoved):
                await subscription.get()

    async def test_pattern_is_refused(self, shmd_client: shmd.Client) -> None:
        with pytest.raises(shmd.InvalidOption, match=r"pattern 't\.\*' cannot end"):
            shmd_client.subscribe("t.*", until_closed=True)

    @pytest.mark.may_block
    async def test_reader_reads_all_and_ends_when_the_last_writer_is_killed(
        self, shmd_client: shmd.Client, shmd_daemon: DaemonProcess
    ) -> None:
        async with shmd_client.subscribe("t", until_closed=True) as subscription:
            with pipe_end(shmd_daemon.socket_path, "publish", 1000) as child:
                reading = asyncio.create_task(subscription.get_many(1))
                assert await reading
                child.send_signal(signal.SIGKILL)
                assert (await rest(subscription))[-1] == 999

    async def test_writer_that_is_only_cut_off_is_not_gone(
        self, shmd_client: shmd.Client, shmd_connect: Connect
    ) -> None:
        other = await shmd_connect()
        async with (
            other.publisher("t") as publisher,
            shmd_client.subscribe("t", until_closed=True) as subscription,
        ):
            other._hub.link.session.close()
            await until(lambda: other.state == "disconnected")
            await shmd_client.topics()
            await publisher.publish("meanwhile")
            await until(lambda: other.state == "connected")
            assert (await subscription.get()).value == "meanwhile"
            with pytest.raises(shmd.NoRecord):
                subscription.get_nowait()

    async def test_reader_that_was_cut_off_hears_of_the_end_when_it_is_back(
        self, shmd_client: shmd.Client, shmd_connect: Connect
    ) -> None:
        other = await shmd_connect()
        publisher = await other.publisher("t")
        async with shmd_client.subscribe("t", until_closed=True) as subscription:
            shmd_client._hub.link.session.close()
            await publisher.publish(1)
            await publisher.close()
            assert await rest(subscription) == [1]

    @pytest.mark.may_block
    @pytest.mark.parametrize("count", [0, 10])
    async def test_writer_killed_while_the_daemon_was_away_is_gone_when_it_is_back(
        self, restarts: Restarts, count: int
    ) -> None:
        async with (
            shmd.connect(restarts.socket_path) as client,
            client.subscribe("t", until_closed=True) as subscription,
        ):
            with pipe_end(restarts.socket_path, "publish", count) as child:
                reading = asyncio.create_task(rest(subscription))
                await restarts.kill(client)
                child.kill()
                child.wait()
                await turns()
                assert not reading.done()
                await restarts.start(client)
                assert await reading == list(range(count))

    @pytest.mark.may_block
    async def test_writer_lives_through_a_restart_of_the_daemon_and_ends_it_after(self, restarts: Restarts) -> None:
        async with (
            shmd.connect(restarts.socket_path) as one,
            shmd.connect(restarts.socket_path) as other,
            other.subscribe("t", until_closed=True) as subscription,
        ):
            publisher = await one.publisher("t")
            reading = asyncio.create_task(rest(subscription))
            await publisher.publish(1)
            await restarts.restart(one, other)
            await publisher.publish(2)
            await one.topics()
            await started(reading)
            await publisher.close()
            assert await reading == [1, 2]

    @pytest.mark.may_block
    async def test_next_daemon_knows_by_the_records_that_there_was_a_writer(self, restarts: Restarts) -> None:
        async with shmd.connect(restarts.socket_path) as client:
            async with client.publisher("t") as publisher:
                await publisher.publish(1)
            await restarts.restart(client)
            async with client.subscribe("t", start="all", until_closed=True) as subscription:
                assert await rest(subscription) == [1]


class TestErrorWhenTheReadersAreGone:
    @pytest.mark.both_loops
    async def test_writer_without_readers_gets_the_error_and_nothing_is_published(
        self, shmd_client: shmd.Client
    ) -> None:
        async with shmd_client.publisher("t", exclusive=True, require_subscribers=True) as publisher:
            with pytest.raises(shmd.NoSubscribers, match="nobody subscribes to topic 't'"):
                await publisher.publish(1)
            with pytest.raises(shmd.NoSubscribers):
                await publisher.publish_many([1])
            with pytest.raises(shmd.NoSubscribers):
                publisher.publish_nowait(1)
            with pytest.raises(shmd.NoSubscribers), publisher.reserve(8):
                pass
            stat = await shmd_client.stat("t")
            assert stat is not None
            assert (stat.published, stat.tail) == (0, 0)
            async with shmd_client.subscribe("t") as subscription:
                assert await publisher.publish(1) == 1
                with publisher.reserve(1) as buffer:
                    buffer[:] = b"\x02"
                assert [record.value for record in await subscription.get_many(2)] == [1, 2]
            with pytest.raises(shmd.NoSubscribers):
                await publisher.publish(3)

    @pytest.mark.parametrize("when_full", ["wait", "discard-old"])
    @pytest.mark.parametrize("tethered", [True, False])
    async def test_reader_that_waited_for_the_topic_counts_from_its_first_record(
        self,
        shmd_client: shmd.Client,
        shmd_connect: Connect,
        monkeypatch: pytest.MonkeyPatch,
        when_full: Any,
        tethered: bool,
    ) -> None:
        """From when ``wait_for_subscribers`` returns, and before the reader has done anything about it."""
        published, join = asyncio.Event(), JoinedTopic.join

        async def join_late(topic: JoinedTopic, seek: Seek) -> None:
            await published.wait()
            await join(topic, seek)

        monkeypatch.setattr(JoinedTopic, "join", join_late)
        other = await shmd_connect()
        async with other.subscribe("t", tethered=tethered) as subscription:
            publisher = await shmd_client.publisher("t", when_full=when_full, require_subscribers=True)
            await publisher.wait_for_subscribers()
            await publisher.publish(1)
            published.set()
            assert (await subscription.get()).value == 1
            await publisher.close()

    async def test_writer_that_waits_for_room_gets_the_error_when_the_last_reader_leaves(
        self, shmd_client: shmd.Client
    ) -> None:
        async with shmd_client.publisher("t", size=SMALL, when_full="wait", require_subscribers=True) as publisher:
            subscriptions = [await shmd_client.subscribe("t") for _ in range(2)]
            count = await fill(publisher)
            waiting = asyncio.create_task(publisher.publish("last"))
            await started(waiting)
            await subscriptions[0].close()
            await started(waiting)
            await subscriptions[1].close()
            with pytest.raises(shmd.NoSubscribers):
                await waiting
            stat = await shmd_client.stat("t")
            assert stat is not None
            assert stat.published == count

    @pytest.mark.may_block
    async def test_writer_that_waits_for_room_gets_the_error_when_the_last_reader_is_killed(
        self, shmd_client: shmd.Client, shmd_daemon: DaemonProcess
    ) -> None:
        async with shmd_client.publisher("t", size=SMALL, when_full="wait", require_subscribers=True) as publisher:
            with pipe_end(shmd_daemon.socket_path, "subscribe") as child:
                await fill(publisher)
                waiting = asyncio.create_task(publisher.publish("last"))
                await started(waiting)
                child.kill()
                with pytest.raises(shmd.NoSubscribers):
                    await waiting

    @pytest.mark.may_block
    @pytest.mark.parametrize("when_full", ["wait", "discard-old"])
    async def test_writer_finds_out_that_the_last_reader_is_dead_without_the_daemon(
        self, restarts: Restarts, when_full: Any
    ) -> None:
        async with shmd.connect(restarts.socket_path) as client:
            publisher = await client.publisher("t", size=SMALL, when_full=when_full, require_subscribers=True)
            with pipe_end(restarts.socket_path, "subscribe") as child:
                await restarts.kill(client)
                await publisher.publish("alive")
                child.kill()
                child.wait()
                with pytest.raises(shmd.NoSubscribers):
                    await publish_for_ever(publisher)
                await restarts.start(client)
                with pytest.raises(shmd.NoSubscribers):
                    await publisher.publish("dead")
            async with client.subscribe("t") as subscription:
                await publisher.publish("new")
                assert (await subscription.get()).value == "new"
            await publisher.close()

    @pytest.mark.may_block
    async def test_reader_counts_on_after_a_restart_of_the_daemon(self, restarts: Restarts) -> None:
        async with (
            shmd.connect(restarts.socket_path) as one,
            shmd.connect(restarts.socket_path) as other,
            one.publisher("t", require_subscribers=True) as publisher,
        ):
            subscription = await other.subscribe("t")
            await restarts.restart(one, other)
            await publisher.publish(1)
            assert (await subscription.get()).value == 1
            await subscription.close()
            with pytest.raises(shmd.NoSubscribers):
                await publisher.publish(2)


class TestShell:
    def test_sub_reads_what_a_finished_pub_left_and_ends(self, shell: Shell) -> None:
        shell.publish("t", 1, 2, 3)
        assert parse_lines(shell.run("sub", "t", "--start", "all", "--until-closed")) == [1, 2, 3]

    def test_sub_ends_when_the_last_pub_has_ended(self, shell: Shell) -> None:
        shell.run("pub", "t")  # makes it; for who starts at new this publisher does not count
        sub = shell.start("sub", "t", "--until-closed")
        pubs = [shell.start("pub", "t", "--require-subscribers") for _ in range(2)]
        while len(parse_lines(shell.run("stat", "t", "--json"))[0]["publishers"]) < len(pubs):
            continue  # were the second not there when the first ends, the first would be the last
        for number, pub in enumerate(pubs):
            assert pub.stdin is not None
            pub.stdin.write(b"%d\n" % number)
            pub.stdin.close()
            assert pub.wait(TIMEOUT_S) == 0
        output, errors = sub.communicate(timeout=TIMEOUT_S)
        assert (sorted(parse_lines(output)), errors, sub.returncode) == ([0, 1], b"", 0)

    def test_sub_ends_when_the_last_pub_is_killed(self, shell: Shell) -> None:
        sub = shell.start("sub", "t", "--until-closed")
        pub = shell.start("pub", "t", "--require-subscribers", bufsize=0)
        assert pub.stdin is not None
        assert sub.stdout is not None
        pub.stdin.write(b"1\n")
        assert sub.stdout.readline() == b"1\n"
        pub.kill()
        output, errors = sub.communicate(timeout=TIMEOUT_S)
        assert (output, errors, sub.returncode) == (b"", b"", 0)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_pub_ends_as_by_sigpipe_at_the_next_record_after_the_last_sub_has_ended(
        self, shell: Shell, number: int
    ) -> None:
        sub = shell.start("sub", "t")
        pub = shell.start("pub", "t", "--require-subscribers", bufsize=0)
        assert pub.stdin is not None
        assert sub.stdout is not None
        pub.stdin.write(b"1\n")
        assert sub.stdout.readline() == b"1\n"
        sub.send_signal(number)
        sub.wait(TIMEOUT_S)
        with contextlib.suppress(BrokenPipeError):
            while pub.poll() is None:  # the daemon may be a little later than we to hear of a death
                pub.stdin.write(b"2\n")
        _, errors = pub.communicate(timeout=TIMEOUT_S)
        assert pub.returncode == 128 + signal.SIGPIPE
        assert errors.startswith(b"shmd: the subscribers of 't' left after ")
        assert errors.count(b"\n") == 1

    def test_sub_refuses_a_pattern(self, shell: Shell) -> None:
        assert "cannot end with the publishers" in shell.run("sub", ">", "--until-closed", status=1)


class TestCancellation:
    async def test_subscribe_until_closed_cancelled_gives_its_slot_back(
        self, shmd_client: shmd.Client, shmd_connect: Connect
    ) -> None:
        other = await shmd_connect()
        await other.topic("t")
        cancelled = 0
        async for outcome, subscription in interruptions(lambda: shmd_client.subscribe("t", until_closed=True)):
            if subscription is not None:
                await subscription.close()
            cancelled += outcome == "cancelled"
            await until(lambda: shmd_client._hub.link.session._pending == {})
            stat = await shmd_client.stat("t")
            assert stat is not None
            assert stat.subscribers == ()
        assert cancelled >= 6

    async def test_read_cancelled_anywhere_about_the_end_consumes_nothing(self, shmd_client: shmd.Client) -> None:
        ends = 0

        async def read_to_the_end() -> None:
            nonlocal ends
            values: list[Any] = []
            publisher = await shmd_client.publisher("t")
            async with shmd_client.subscribe("t", until_closed=True) as subscription:
                publishing = asyncio.create_task(publish_and_close(publisher))
                try:
                    while True:
                        values.append((await subscription.get()).value)
                except shmd.TopicClosed:
                    ends += 1
                    assert values == [1, 2]
                finally:
                    await publishing

        async for _ in interruptions(read_to_the_end):
            for member in list(shmd_client._hub.members):
                await member.close()  # type: ignore[attr-defined]
            await shmd_client.stat("t")
        assert ends >= 2

    async def test_publish_cancelled_while_it_waits_for_room_has_not_happened(self, shmd_client: shmd.Client) -> None:
        async with (
            shmd_client.publisher("t", size=SMALL, when_full="wait", require_subscribers=True) as publisher,
            shmd_client.subscribe("t") as subscription,
        ):
            count = await fill(publisher)

            async def publish() -> None:
                reading = asyncio.create_task(subscription.get_many(limits.GET_MANY_MAX))
                try:
                    await publisher.publish("waited")
                finally:
                    reading.cancel()

            task = asyncio.create_task(publisher.publish("cancelled"))
            await started(task)
            task.cancel()
            await asyncio.wait([task])
            assert [record.value for record in await subscription.get_many(count + 9)] == list(range(count))
            await publish()


async def publish_and_close(publisher: shmd.Publisher[Any]) -> None:
    await publisher.publish(1)
    await asyncio.sleep(0)
    await publisher.publish(2)
    await publisher.close()


async def publish_for_ever(publisher: shmd.Publisher[Any]) -> None:
    while True:
        await publisher.publish("is anybody there?")
