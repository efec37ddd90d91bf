"""Bells between real processes, and in the loops of asyncio and uvloop."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import signal
from typing import TYPE_CHECKING, NoReturn

import pytest

from shmd.notifier import BellSet, make_bell, ring

if TYPE_CHECKING:
    from collections.abc import Iterator


ORPHAN_S = 60
"""After this the child takes it that nobody is there to end it."""


@pytest.fixture
def bells() -> Iterator[BellSet]:
    bells = BellSet()
    yield bells
    bells.close()


@pytest.fixture
def bell() -> Iterator[int]:
    bell = make_bell()
    yield bell
    os.close(bell)


@pytest.fixture
def other() -> Iterator[int]:
    bell = make_bell()
    yield bell
    os.close(bell)


def is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


class TestBell:
    def test_bell_is_private_to_this_program(self, bell: int) -> None:
        assert fcntl.fcntl(bell, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert fcntl.fcntl(bell, fcntl.F_GETFL) & os.O_NONBLOCK

    def test_ringing_leaves_the_counter_alone(self, bell: int) -> None:
        for _ in range(100):
            ring(bell)
        assert os.eventfd_read(bell) == 1

    def test_ringing_works_where_counting_would_block(self, bell: int, bells: BellSet) -> None:
        """Any holder can clear O_NONBLOCK and bring the counter to its ceiling."""
        os.eventfd_write(bell, 2**64 - 3)
        os.set_blocking(bell, True)
        rung: list[int] = []
        bells.add(bell, lambda: rung.append(1))
        bells.dispatch()
        ring(bell)
        bells.dispatch()
        assert len(rung) == 2


class TestBellSet:
    def test_new_bell_is_called_once_for_those_who_rang_before(self, bells: BellSet, bell: int) -> None:
        calls: list[str] = []
        bells.add(bell, lambda: calls.append("bell"))
        assert is_readable(bells.fileno())
        bells.dispatch()
        bells.dispatch()
        assert calls == ["bell"]
        assert not is_readable(bells.fileno())

    def test_each_ring_is_seen_once_by_every_set(self, bells: BellSet, bell: int) -> None:
        second = BellSet()
        calls: list[str] = []
        bells.add(bell, lambda: calls.append("first"))
        second.add(bell, lambda: calls.append("second"))
        bells.dispatch()
        second.dispatch()
        for _ in range(3):
            calls.clear()
            ring(bell)
            for each in (bells, bells, second, second):
                each.dispatch()
            assert calls == ["first", "second"]
        second.close()

    def test_only_the_bell_that_was_rung_is_called(self, bells: BellSet, bell: int, other: int) -> None:
        calls: list[str] = []
        bells.add(bell, lambda: calls.append("bell"))
        bells.add(other, lambda: calls.append("other"))
        bells.dispatch()
        calls.clear()
        ring(other)
        bells.dispatch()
        assert calls == ["other"]

    def test_failing_callback_does_not_stop_the_others(self, bells: BellSet, bell: int, other: int) -> None:
        calls: list[str] = []

        def fail() -> None:
            calls.append("failed")
            raise ValueError("broken callback")

        bells.add(bell, fail)
        bells.add(other, lambda: calls.append("other"))
        with pytest.raises(ValueError, match="broken callback"):
            bells.dispatch()
        assert sorted(calls) == ["failed", "other"]

    def test_all_failures_are_reported(self, bells: BellSet, bell: int, other: int) -> None:
        def fail() -> None:
            raise ValueError

        bells.add(bell, fail)
        bells.add(other, fail)
        with pytest.raises(ExceptionGroup) as raised:
            bells.dispatch()
        assert [type(error) for error in raised.value.exceptions] == [ValueError, ValueError]

    def test_discarded_bell_is_not_called(self, bells: BellSet, bell: int) -> None:
        calls: list[str] = []
        bells.add(bell, lambda: calls.append("bell"))
        bells.discard(bell)
        bells.discard(bell)
        ring(bell)
        bells.dispatch()
        assert calls == []
        bells.add(bell, lambda: calls.append("again"))
        bells.dispatch()
        assert calls == ["again"]

    def test_bell_discarded_by_a_callback_of_the_same_round_is_not_called(
        self, bells: BellSet, bell: int, other: int
    ) -> None:
        calls: list[int] = []

        def first_one_wins(mine: int, theirs: int) -> None:
            calls.append(mine)
            bells.discard(theirs)

        bells.add(bell, lambda: first_one_wins(bell, other))
        bells.add(other, lambda: first_one_wins(other, bell))
        bells.dispatch()
        assert len(calls) == 1

    def test_bell_is_in_the_set_once(self, bells: BellSet, bell: int) -> None:
        calls: list[str] = []
        bells.add(bell, lambda: calls.append("first"))
        with pytest.raises(FileExistsError):
            bells.add(bell, lambda: calls.append("second"))
        bells.dispatch()
        assert calls == ["first"]

    def test_more_bells_than_one_dispatch_takes_are_all_called(self, bells: BellSet) -> None:
        many = [make_bell() for _ in range(200)]
        called: list[int] = []
        for fd in many:
            bells.add(fd, lambda fd=fd: called.append(fd))  # type: ignore[misc]
        while is_readable(bells.fileno()):
            bells.dispatch()
        assert sorted(called) == sorted(many)
        for fd in many:
            bells.discard(fd)
            os.close(fd)

    def test_closed_set_leaves_the_bells_open(self, bell: int) -> None:
        bells = BellSet()
        bells.add(bell, print)
        bells.close()
        bells.close()
        os.fstat(bell)


@pytest.mark.both_loops
class TestInALoop:
    async def test_sleepers_in_other_processes_wake_on_every_ring(self, bells: BellSet, bell: int, other: int) -> None:
        """A child echoes each ring of one bell on another; a lost wake-up would hang."""
        loop, answered = asyncio.get_running_loop(), asyncio.Event()
        poll = select.epoll()
        poll.register(bell, select.EPOLLIN | select.EPOLLET)
        bells.add(other, answered.set)
        poll.poll(0)  # the edges of registering
        bells.dispatch()
        child = os.fork()
        if child == 0:
            _echo(poll, other)
        loop.add_reader(bells.fileno(), bells.dispatch)
        try:
            for _ in range(2000):
                answered.clear()
                ring(bell)
                await answered.wait()
        finally:
            loop.remove_reader(bells.fileno())
            poll.close()
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)  # noqa: ASYNC222 - it was killed

    async def test_failing_callback_reaches_the_loops_exception_handler(self, bells: BellSet, bell: int) -> None:
        loop = asyncio.get_running_loop()
        reported: asyncio.Future[BaseException] = loop.create_future()
        loop.set_exception_handler(lambda _, context: reported.set_result(context["exception"]))

        def fail() -> None:
            raise ValueError("broken callback")

        bells.add(bell, fail)
        loop.add_reader(bells.fileno(), bells.dispatch)
        assert str(await reported) == "broken callback"
        loop.remove_reader(bells.fileno())


def _echo(poll: select.epoll, answer: int) -> NoReturn:
    """In the child: ring ``answer`` after each ring that ``poll`` sees, as long as some come."""
    while poll.poll(ORPHAN_S):
        ring(answer)
    os._exit(1)
