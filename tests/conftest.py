"""What holds for every test: nothing left behind, a watchdog, no blocking call in an event loop, reproducible examples.

``SHMD_SOAK=1`` selects the full sizes of the tests that have two; ``SHMD_HYPOTHESIS`` another profile.
An async test runs on asyncio's own event loop; one marked ``both_loops`` also on uvloop.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import uvloop

from shmd.testing import assert_no_leaks
from tests.c_programs import CPrograms, Program
from tests.notifiers import SOAK, notifier, pairwise
from tests.restarts import Restarts
from tests.shell import Shell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from shmd.testing import DaemonProcess

__all__ = ["SOAK", "notifier"]

WATCHDOG_S = 7200 if SOAK else 120

# Installed, shmd's plugin comes by its entry point; in a checkout nobody announces it.
_announced = any(point.value == "shmd.testing" for point in importlib.metadata.entry_points(group="pytest11"))
pytest_plugins = ["pytester"] if _announced else ["pytester", "shmd.testing"]

_common: dict[str, Any] = {"deadline": None, "print_blob": True}
hypothesis.settings.register_profile("dev", max_examples=50, **_common)
hypothesis.settings.register_profile("ci", max_examples=200, **_common)
hypothesis.settings.register_profile("soak", max_examples=5000, **_common)
hypothesis.settings.load_profile(
    os.environ.get("SHMD_HYPOTHESIS", "soak" if SOAK else "ci" if os.environ.get("CI") else "dev")
)


def pytest_configure(config: pytest.Config) -> None:
    # Started in the background or by nohup, this process ignores these signals, and so would all that the tests start.
    actions: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    for number, action in actions.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, action)
    config.addinivalue_line("markers", "both_loops: run this async test on asyncio's and on uvloop's event loop")
    config.addinivalue_line("markers", "may_block: this test calls blocking functions inside the event loop on purpose")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not SOAK:
        left_out = pairwise(items)
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=list(left_out))
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(WATCHDOG_S))


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.get_closest_marker("both_loops") is not None:
        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest.fixture(autouse=True)
def _nothing_left_behind(shmd_leak_check: None) -> None:
    """Every test gives back what it took; autouse, so that it is torn down last."""


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind_in_the_end(shmd_leak_directories: tuple[Path, ...]) -> Iterator[None]:
    """Nor do the fixtures of a whole run: what is left in a lane's IPC namespace (.ci/pytest) nobody else sees."""
    with assert_no_leaks(*shmd_leak_directories):
        yield


@pytest.fixture(scope="session")
def shmd_leak_directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ...]]:
    """Every temporary file of the run goes into a directory of its own; but for ``tmp_path``, which pytest keeps."""
    tmp_path_factory.getbasetemp()  # settled before TMPDIR changes
    root = "/tmp"  # noqa: S108 - short enough for sockets, which TMPDIR may not be
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir=root) as directory:
        os.chmod(directory, 0o755)  # noqa: S103 - other users' processes take part
        patch.setenv("TMPDIR", directory)
        patch.setattr(tempfile, "tempdir", directory)
        yield (Path(directory),)


@pytest.fixture(autouse=True)
def _no_blocking_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """A blocking call that shmd makes inside an event loop raises there, if blockbuster is installed."""
    if importlib.util.find_spec("blockbuster") is None or request.node.get_closest_marker("may_block"):
        yield
        return
    import blockbuster

    with blockbuster.blockbuster_ctx("shmd") as detector:
        detector.functions["os.stat"].deactivate()  # what a client looks up is in /proc and /run, which are memory
        for name in ("os.read", "os.write"):  # where poll() said that they will not block
            detector.functions[name].can_block_in("shmd/cli/streams.py", {"read", "write"})
        yield


@pytest.fixture(scope="session")
def soak() -> bool:
    """Whether the full sizes are asked for."""
    return SOAK


@pytest.fixture
def random_seed(request: pytest.FixtureRequest) -> int:
    """pytest-randomly's, so that its --randomly-seed=N repeats the run."""
    return int(getattr(request.config.option, "randomly_seed", 0) or 0) % 2**31


@pytest.fixture
def shell(shmd_daemon: DaemonProcess) -> Iterator[Shell]:
    """Runs ``shmd`` commands against the test's own daemon."""
    shell = Shell(shmd_daemon.socket_path)
    yield shell
    shell.close()


@pytest.fixture
def user_environment(shmd_daemon: DaemonProcess, tmp_path: Path) -> dict[str, str]:
    """A user's variables: the test's own daemon is where clients look for it, `shmd` and `python3` are on the PATH."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, arguments in {"shmd": "-m shmd", "python3": ""}.items():
        command = commands / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        command.chmod(0o755)
    return os.environ | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "SHMD_SOCKET": shmd_daemon.socket_path,
    }


@pytest.fixture(scope="session")
def c_programs(tmp_path_factory: pytest.TempPathFactory) -> CPrograms:
    """The C library with its examples, compiled with sanitizers."""
    return CPrograms.make(tmp_path_factory.mktemp("c"))


@pytest.fixture
def drive(c_programs: CPrograms, shmd_daemon: DaemonProcess) -> Iterator[Callable[[], Program]]:
    """Starts connected C clients; all must end well."""
    programs: list[Program] = []

    def start() -> Program:
        programs.append(c_programs.drive(shmd_daemon.socket_path))
        return programs[-1]

    yield start
    for program in programs:
        if program.process.returncode is None:
            program.end()


@pytest.fixture
def restarts() -> Iterator[Restarts]:
    """A daemon to kill and start again."""
    restarts = Restarts()
    yield restarts
    restarts.close()
