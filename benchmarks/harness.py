"""Runs two processes against each other, pinned, and says how long they took.

Every measurement forks two fresh processes: the *near* one sends (or calls), the *far* one receives (or answers). Both
open their end, say "ready", and then serve runs: the parent names a count, far first, and each process reports when it
began, when it had finished, and what it used meanwhile. CLOCK_MONOTONIC is one clock for all processes, so the time of
a run is from the near side's beginning to the far side's end. A short run warms the connection up and tells how many
records fit the time wanted; only the second run counts.

The parent has no threads and no event loop, so forking it is safe, and the children start with everything imported.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import uvloop

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

WATCHDOG_S: Final = 120.0
"""A run takes a second or so; a peer that is silent for this long is stuck."""
COUNT_MAX: Final = 2_000_000

_fork: Final = multiprocessing.get_context("fork")

Work = Callable[[int], Awaitable[Any]]
"""Sends, receives, calls or answers so many records; a caller returns its round-trip times in nanoseconds."""
End = Callable[[], AbstractAsyncContextManager[Work]]
"""Opens one end of a connection, in the process that will use it."""


class BenchmarkError(Exception):
    """A measurement could not be made."""


@dataclass(frozen=True)
class Usage:
    """What a process used during a run; threads of its own included."""

    cpu_s: float
    switches_voluntary: int
    switches_involuntary: int

    @classmethod
    def now(cls) -> Usage:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(used.ru_utime + used.ru_stime, used.ru_nvcsw, used.ru_nivcsw)

    def since(self, before: Usage) -> Usage:
        return Usage(
            self.cpu_s - before.cpu_s,
            self.switches_voluntary - before.switches_voluntary,
            self.switches_involuntary - before.switches_involuntary,
        )


@dataclass(frozen=True)
class Report:
    """One process's account of one run."""

    begin_ns: int
    end_ns: int
    usage: Usage
    result: Any


@dataclass(frozen=True)
class Sample:
    """One measurement: so many records in so many seconds, and what both processes used."""

    count: int
    seconds: float
    near: Usage
    far: Usage
    latencies_ns: tuple[int, ...] = ()

    @property
    def ns_per_record(self) -> float:
        return self.seconds * 1e9 / self.count

    def figures(self) -> dict[str, Any]:
        """For the JSON file: everything but the single latencies."""
        return {"count": self.count, "seconds": self.seconds, "near": asdict(self.near), "far": asdict(self.far)}


@dataclass(frozen=True)
class Plan:
    """How long one measurement lasts: about ``seconds``, or exactly ``count`` records if that is set."""

    seconds: float
    count: int | None
    loop: str


@dataclass(frozen=True)
class Placement:
    """Which CPU each process of a pair is pinned to; None: wherever the kernel likes."""

    name: str
    near: int | None
    far: int | None

    @property
    def title(self) -> str:
        if self.near is None:
            return "unpinned"
        where = f"core {self.near}" if self.near == self.far else f"cores {self.near} and {self.far}"
        return f"{'same core' if self.near == self.far else 'two cores'} (both processes pinned to {where})"


def placements(pin: str) -> list[Placement]:
    """The placements that ``--pin`` asks for and this machine can give."""
    cores = sorted(os.sched_getaffinity(0))
    known = {"same": Placement("same", cores[0], cores[0]), "none": Placement("none", None, None)}
    if len(cores) > 1:
        known["split"] = Placement("split", cores[0], cores[1])
    wanted = ("same", "split") if pin == "both" else (pin,)
    found = [known[name] for name in wanted if name in known]
    if not found:
        raise BenchmarkError(f"--pin {pin} needs two cores, and this process may use one: {cores}")
    return found


def measure_pair(near: End, far: End, placement: Placement, plan: Plan, warm_up: int) -> Sample:
    """Fork both ends, warm up, run. BenchmarkError with the child's own words if one fails."""
    with _opened(far, placement.far, plan.loop) as far_pipe, _opened(near, placement.near, plan.loop) as near_pipe:
        pipes = (far_pipe, near_pipe)
        if plan.count is not None:
            _run(pipes, plan.count)
            return _run(pipes, plan.count)
        warm = _run(pipes, warm_up)
        return _run(pipes, min(max(int(warm_up * plan.seconds / warm.seconds), warm_up), COUNT_MAX))


def measure_alone(work: Callable[[], Awaitable[dict[str, float]]], placement: Placement, loop: str) -> dict[str, float]:
    """Run ``work`` in one forked process, pinned like the near end."""

    async def once(pipe: Connection) -> None:
        pipe.send(await work())

    with _child(once, placement.near, loop) as pipe:
        result: dict[str, float] = _answer(pipe)
        return result


def _run(pipes: tuple[Connection, Connection], count: int) -> Sample:
    for pipe in pipes:
        pipe.send(count)
    far, near = (_answer(pipe) for pipe in pipes)
    return Sample(count, (far.end_ns - near.begin_ns) / 1e9, near.usage, far.usage, tuple(near.result or ()))


def _answer(pipe: Connection) -> Any:
    if not pipe.poll(WATCHDOG_S):
        raise BenchmarkError(f"no answer in {WATCHDOG_S:.0f} s")
    try:
        answer = pipe.recv()
    except EOFError:
        raise BenchmarkError("the process died without a word") from None
    if isinstance(answer, str):
        raise BenchmarkError(answer)
    return answer


@contextmanager
def _child(main: Callable[[Connection], Awaitable[None]], core: int | None, loop: str) -> Iterator[Connection]:
    ours, theirs = _fork.Pipe()
    process = _fork.Process(target=_enter, args=(main, ours, theirs, core, loop), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
        with suppress(BrokenPipeError):
            ours.send(0)
        process.join(WATCHDOG_S)
    finally:
        if process.is_alive():
            process.kill()
            process.join()
        process.close()
        ours.close()


def _enter(
    main: Callable[[Connection], Awaitable[None]], parents: Connection, pipe: Connection, core: int | None, loop: str
) -> None:
    """A child's whole life. It ends with its parent, whose end of the pipe it must not hold open itself."""
    parents.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if core is not None:
        os.sched_setaffinity(0, {core})

    async def guarded() -> None:
        try:
            await main(pipe)
        except EOFError:
            pass
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(guarded())


@contextmanager
def _opened(end: End, core: int | None, loop: str) -> Iterator[Connection]:
    with _child(_serving(end), core, loop) as pipe:
        _answer(pipe)
        yield pipe


def _serving(end: End) -> Callable[[Connection], Awaitable[None]]:
    async def serve(pipe: Connection) -> None:
        async with end() as work:
            pipe.send(None)
            while count := await _next_count(pipe):
                before, begin_ns = Usage.now(), time.monotonic_ns()
                result = await work(count)
                end_ns = time.monotonic_ns()
                pipe.send(Report(begin_ns, end_ns, Usage.now().since(before), result))

    return serve


async def _next_count(pipe: Connection) -> int:
    """Wait without blocking the loop (a peer's connection may have something to do), and without a trace afterwards."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(pipe.fileno(), ready.set_result, None)
    try:
        await ready
    finally:
        loop.remove_reader(pipe.fileno())
        os.set_blocking(pipe.fileno(), True)  # uvloop made it non-blocking: a long report would not fit
    count: int = pipe.recv()
    return count
