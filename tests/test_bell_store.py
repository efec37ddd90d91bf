"""Bells in a service manager's descriptor store: stored, taken back, and nothing believed that is no bell."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import shmd
from shmd import limits, notifier
from shmd.bell_store import BellStore, is_stored_bell
from shmd.seat import TopicSeat
from shmd.systemd import InheritedDescriptor
from tests import booted_systemd, service_restarts
from tests.loop_turns import until
from tests.service_manager import ServiceManager, eventfd_id

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from shmd.hub import Hub

TOPIC_ID = bytes(range(16))
RECORD, SPACE = (f"bell-{TOPIC_ID.hex()}-{kind}" for kind in ("record", "space"))


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    with ServiceManager(tmp_path) as manager:
        yield manager


@pytest.fixture
def bells() -> Iterator[list[int]]:
    made = [notifier.make_bell(), notifier.make_bell()]
    yield made
    for bell in made:
        os.close(bell)


@contextmanager
def store(address: str, *inherited: tuple[str, int]) -> Iterator[BellStore]:
    """Of a daemon that inherited these."""
    opened = BellStore([InheritedDescriptor(fd, name) for name, fd in inherited], {"NOTIFY_SOCKET": address})
    try:
        yield opened
    finally:
        opened.close()


def identities(fds: list[int] | None) -> list[str]:
    return [eventfd_id(fd) for fd in fds or []]


class TestStoring:
    def test_bells_are_stored_once_and_removed_in_order(self, manager: ServiceManager, bells: list[int]) -> None:
        with store(manager.address) as opened:
            opened.keep(TOPIC_ID, bells)
            opened.keep(TOPIC_ID, bells)
            for name in (RECORD, SPACE):
                assert manager.receive() == f"FDSTORE=1\nFDNAME={name}"
            assert identities([fd for _, fd in manager.stored]) == identities(bells)
            opened.forget(TOPIC_ID)
            opened.forget(TOPIC_ID)
            for name in (RECORD, SPACE):
                assert manager.receive() == f"FDSTOREREMOVE=1\nFDNAME={name}"
            opened.keep(TOPIC_ID, bells)
            assert manager.receive().startswith("FDSTORE=1")

    @pytest.mark.parametrize("address", ["", "/nowhere"])
    def test_without_a_manager_nothing_is_held_and_nobody_waits(
        self, address: str, bells: list[int], caplog: pytest.LogCaptureFixture
    ) -> None:
        with store(address) as opened:
            for number in range(100):
                opened.keep(number.to_bytes(16, "little"), bells)
                opened.forget(number.to_bytes(16, "little"))
        assert [record.levelno for record in caplog.records] == ([logging.WARNING] if address else [])

    def test_what_goes_beyond_the_limit_is_not_stored(
        self, manager: ServiceManager, bells: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "STORE_MESSAGES_MAX", 0)
        with store(manager.address) as opened:
            opened.keep(TOPIC_ID, bells)
            opened.forget(TOPIC_ID)
        manager._socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.receive()


class TestTaking:
    def test_bells_are_taken_in_their_order_and_not_stored_again(self, manager: ServiceManager) -> None:
        record, space = notifier.make_bell(), notifier.make_bell()
        with store(manager.address, (SPACE, space), (RECORD, record)) as opened:
            assert opened.take(TOPIC_ID) == [record, space]
            assert opened.take(TOPIC_ID) is None
            opened.settle([TOPIC_ID])
            opened.keep(TOPIC_ID, [record, space])
            opened.forget(TOPIC_ID)
            assert manager.receive() == f"FDSTOREREMOVE=1\nFDNAME={RECORD}"
        for fd in (record, space):
            os.close(fd)

    @pytest.mark.parametrize("what", ["one", "twice", "pipe", "drained"])
    def test_what_is_not_both_bells_is_closed_removed_and_replaced(
        self, manager: ServiceManager, bells: list[int], what: str
    ) -> None:
        reader, writer = os.pipe()
        os.close(writer)
        drained = os.eventfd(0)
        inherited = {
            "one": [(RECORD, notifier.make_bell())],
            "twice": [(RECORD, notifier.make_bell()), (SPACE, notifier.make_bell()), (SPACE, notifier.make_bell())],
            "pipe": [(RECORD, notifier.make_bell()), (SPACE, os.dup(reader))],
            "drained": [(RECORD, notifier.make_bell()), (SPACE, os.dup(drained))],
        }
        for name, fds in inherited.items():
            if name != what:
                for _, fd in fds:
                    os.close(fd)
        os.close(reader)
        os.close(drained)
        with store(manager.address, *inherited[what]) as opened:
            assert opened.take(TOPIC_ID) is None
            opened.keep(TOPIC_ID, bells)
            received = [manager.receive() for _ in range(4)]
        assert received == [
            *(f"FDSTOREREMOVE=1\nFDNAME={name}" for name in (RECORD, SPACE)),
            *(f"FDSTORE=1\nFDNAME={name}" for name in (RECORD, SPACE)),
        ]

    def test_bells_of_topics_that_are_gone_are_closed_and_removed(self, manager: ServiceManager) -> None:
        bell = notifier.make_bell()
        with store(manager.address, (RECORD, bell)) as opened:
            opened.settle([])
            assert manager.receive() == f"FDSTOREREMOVE=1\nFDNAME={RECORD}"
            assert opened.take(TOPIC_ID) is None

    @pytest.mark.parametrize("name", ["control", "bell-", f"bell-{TOPIC_ID.hex()}-other", RECORD.upper(), RECORD + "x"])
    def test_other_descriptors_are_no_bells(self, name: str) -> None:
        assert not is_stored_bell(InheritedDescriptor(3, name))
        assert is_stored_bell(InheritedDescriptor(3, RECORD))


def bells_of(hub: Hub) -> list[str]:
    """What tells apart the bells that a client hears and rings."""
    seats = [seat for seat in hub.all_seats() if isinstance(seat, TopicSeat)]
    return sorted(eventfd_id(fd) for seat in seats for fd in (seat.listening_fd, seat.ringing_fd))


@pytest.mark.may_block
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_clients_keep_their_bells_over_a_restart_by_the_manager(
    tmp_path: Path, manager: ServiceManager, end: signal.Signals
) -> None:
    """And what the store has beside them goes."""
    path = tmp_path / "control.sock"
    serve = ("serve", "--runtime-dir", str(tmp_path), "--socket", str(path), "--instance", f"bells-{os.getpid()}")
    daemons = [manager.start(*serve)]
    try:
        async with (
            shmd.connect(path) as client,
            client.publisher("t", when_full="wait", lifetime="attached") as publisher,
            client.subscribe("t") as subscription,
        ):
            manager.receive()
            manager.receive()
            before = bells_of(client._hub)
            assert sorted({eventfd_id(fd) for _, fd in manager.stored}) == sorted(set(before))
            manager.stored.append((RECORD, notifier.make_bell()))
            daemons[0].send_signal(end)
            daemons[0].wait()
            await until(lambda: client.state == "disconnected")
            await publisher.publish(1)
            daemons.append(await asyncio.to_thread(manager.start, *serve))
            await until(lambda: client.state == "connected")
            await until(lambda: not client._hub.adrift)
            assert bells_of(client._hub) == before
            await publisher.publish(2)
            assert [(await subscription.get()).value for _ in range(2)] == [1, 2]
        while manager.stored:
            manager.receive()
    finally:
        end_all(daemons)


def end_all(daemons: list[subprocess.Popen[bytes]]) -> None:
    for daemon in daemons:
        daemon.terminate()
        daemon.wait()


def test_bells_survive_restarts_under_a_real_systemd(tmp_path: Path) -> None:
    """A restart on purpose and one after a kill -9, under load: the same bells before and after, and nothing lost."""
    units = Path(__file__).parent.parent / "systemd"
    root = Path(shmd.__file__).parent.parent
    # The daemon runs as its unit says, but for where this Python is, and who may get there.
    changes = (
        "[Service]\nUser=root\nGroup=root\nProtectHome=no\nExecStart=\n"
        f"ExecStart={sys.executable} -m shmd serve --runtime-dir /run/shmd\nEnvironment=PYTHONPATH={root}\n"
    )
    (tmp_path / "service_restarts.py").write_bytes(Path(service_restarts.__file__).read_bytes())
    (tmp_path / "changes.conf").write_text(changes)
    script = (
        f"export PYTHONPATH={root}; '{sys.executable}' -c 'import shmd' || exit 77\n"
        "mkdir /run/systemd/system/shmd.service.d\n"
        "cp /opt/shmd-test/changes.conf /run/systemd/system/shmd.service.d/; systemctl daemon-reload\n"
        "systemctl start shmd.service || { systemctl status shmd.service; exit 1; }\n"
        f"'{sys.executable}' /opt/shmd-test/service_restarts.py /run/shmd/control.sock\n"
    )
    status, output = booted_systemd.run(
        tmp_path, script, {name: (units / name).read_text() for name in ("shmd.service", "shmd.socket")}
    )
    if status == 77:
        pytest.skip("this Python cannot be reached from inside: it is not on the root file system")
    assert status == 0, output
    account = json.loads(output.splitlines()[-1])
    receiver = account["receiver"]
    assert (receiver["wrong"], receiver["received"]) == ([], account["published"])
    for seen in (account["bells"], receiver["bells"]):
        assert len(seen) == 1 + len(service_restarts.WAYS)
        assert all(bells == seen[0] for bells in seen)
        assert len(set(seen[0])) == 2
    assert sorted(account["bells"][0]) == sorted(receiver["bells"][0])
