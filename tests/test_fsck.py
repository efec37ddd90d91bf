"""``shmd fsck``, ``stop`` and ``purge``, and the inventory beneath them: what is found, and what may be removed."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from shmd import connect, fifo, inventory, segment
from shmd.cli import upkeep
from shmd.config import DaemonConfig, instance_id
from shmd.errors import DaemonUnavailable, PermissionDenied, UsageError
from tests.children import become_stranger, in_child, needs_root
from tests.shell import TIMEOUT_S, Shell, parse_lines

if TYPE_CHECKING:
    from pathlib import Path

    from shmd.testing import DaemonProcess, StartDaemon

KINDS = ["ctl", "log", "roster"]


def fsck(shell: Shell, daemon: DaemonProcess) -> list[dict[str, Any]]:
    """What it says about this daemon's instance."""
    return [row for row in parse_lines(shell.run("fsck", "--json")) if row["instance"] == daemon.instance]


def states(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["kind"]: row["state"] for row in rows}


class TestFsck:
    def test_fsck_lists_what_a_running_daemon_made(self, shmd_daemon: DaemonProcess, shell: Shell) -> None:
        shell.run("pub", "t", "--size", "64KiB")
        rows = {row["kind"]: row for row in fsck(shell, shmd_daemon)}
        assert sorted(rows) == KINDS
        assert {row["state"] for row in rows.values()} == {"alive"}
        assert {row["attachments"] for row in rows.values()} == {1}
        assert {row["creator_pid"] for row in rows.values()} == {shmd_daemon.pid}
        assert (rows["log"]["topic"], rows["ctl"]["topic"], rows["roster"]["topic"]) == ("t", "t", "")
        assert rows["log"]["size_bytes"] == 64 * 1024 + 4096
        assert rows["log"]["topic_id"] == rows["ctl"]["topic_id"] != ""

    def test_fsck_says_that_a_killed_daemons_topics_are_kept(self, shmd_daemon: DaemonProcess, shell: Shell) -> None:
        shell.run("pub", "t")
        shmd_daemon.kill()
        assert states(fsck(shell, shmd_daemon)) == dict.fromkeys(KINDS, "kept")

    def test_fsck_calls_attached_segments_alive_without_a_daemon(
        self, shmd_daemon: DaemonProcess, shell: Shell
    ) -> None:
        sub = shell.start("sub", "t")
        shell.run("pub", "t", "--wait-subscribers", "1", stdin=b"1\n")
        assert sub.stdout is not None
        sub.stdout.readline()
        shmd_daemon.kill()
        found = states(fsck(shell, shmd_daemon))
        assert (found["log"], found["ctl"]) == ("alive", "alive")

    def test_fsck_reclaims_orphans_only_after_showing_them(self, shmd_daemon: DaemonProcess, shell: Shell) -> None:
        """Orphans, because their roster is gone."""
        shell.run("pub", "t")
        shmd_daemon.kill()
        (roster,) = (row["shmid"] for row in fsck(shell, shmd_daemon) if row["kind"] == "roster")
        segment.remove(roster)
        assert [row["state"] for row in self.of_topic(shell, "t")] == ["orphaned", "orphaned"]
        process = shell.start("fsck", "--reclaim")
        output, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0
        assert output.decode().count("orphaned") == 2
        assert errors == b"shmd: removed 2 of 2 orphaned segments\n"
        assert self.of_topic(shell, "t") == []

    def test_fsck_leaves_kept_and_alive_segments_when_it_reclaims(
        self, shmd_start: StartDaemon, shell: Shell, shmd_daemon: DaemonProcess
    ) -> None:
        shell.run("pub", "alive")
        other = shmd_start(ephemeral=False)
        kept = Shell(other.socket_path)
        kept.run("pub", "kept")
        other.stop()
        process = shell.start("fsck", "--reclaim")
        assert process.communicate(timeout=TIMEOUT_S)[1] == b"shmd: removed 0 of 0 orphaned segments\n"
        assert states(fsck(shell, shmd_daemon)) == dict.fromkeys(KINDS, "alive")
        assert states(fsck(shell, other)) == dict.fromkeys(KINDS, "kept")
        kept.close()

    def test_fsck_knows_nothing_of_others_segments(self, shell: Shell) -> None:
        with segment.create(8192) as strangers:
            assert strangers.id not in {row["shmid"] for row in parse_lines(shell.run("fsck", "--json"))}
            segment.remove(strangers.id)

    @needs_root
    def test_fsck_of_a_stranger_recognises_by_the_roster_what_it_may_not_read(
        self, shmd_daemon: DaemonProcess, shell: Shell
    ) -> None:
        shell.run("pub", "t", "--mode", "600")

        def look() -> list[tuple[str, str, str]]:
            become_stranger()
            found = inventory.take().segments
            return [(one.kind, one.state, one.topic) for one in inventory.in_order(found)]

        assert in_child(look) == [
            *(("roster", "alive", ""), ("roster", "alive", "")),
            *(("ctl", "alive", "t"), ("log", "alive", "t")),
        ]

    @staticmethod
    def of_topic(shell: Shell, topic: str) -> list[dict[str, Any]]:
        return [row for row in parse_lines(shell.run("fsck", "--json")) if row["topic"] == topic]


class TestStop:
    def test_stop_ends_the_daemon_and_keeps_its_topics(self, shmd_start: StartDaemon) -> None:
        daemon = shmd_start(ephemeral=False)
        shell = Shell(daemon.socket_path)
        shell.publish("t", 1, 2)
        shell.run("stop")
        assert daemon.process.poll() == 0, "stop returns when the process is gone"
        successor = shmd_start(instance=daemon.instance, runtime_dir=daemon.runtime_dir)
        assert parse_lines(shell.run("sub", "t", "--start", "all", "--count", "2")) == [1, 2]
        daemon.stop()
        assert successor.stop() == 0
        shell.close()

    @needs_root
    def test_stop_is_refused_to_strangers(self, shmd_daemon: DaemonProcess) -> None:
        os.chmod(shmd_daemon.runtime_dir, 0o755)  # noqa: S103 - a stranger has to reach the socket

        async def stop() -> str:
            async with connect(shmd_daemon.socket_path) as client:
                with pytest.raises(PermissionDenied) as caught:
                    await client.stop_daemon()
            return str(caught.value)

        def try_to_stop() -> str:
            become_stranger()
            return asyncio.run(stop())

        assert "may not stop this daemon" in in_child(try_to_stop)
        assert shmd_daemon.process.poll() is None


class TestPurge:
    def test_purge_without_daemon_removes_what_the_roster_notes(self, shmd_start: StartDaemon) -> None:
        daemon = shmd_start(ephemeral=False)
        shell = Shell(daemon.socket_path)
        shell.run("pub", "a")
        shell.run("pub", "b")
        daemon.stop()
        errors = shell.run("purge", "--instance", daemon.instance, stdin=b"n\n", status=1)
        assert "5 segments" in errors
        assert len(fsck(shell, daemon)) == 5
        shell.run("purge", "--instance", daemon.instance, "--yes")
        assert fsck(shell, daemon) == []
        shell.close()

    def test_purge_without_daemon_or_roster_removes_fifos(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As when all processes were killed and nothing but a transient roster knew of them."""
        monkeypatch.setattr(upkeep, "DaemonConfig", functools.partial(DaemonConfig, runtime_dir=tmp_path))
        root = fifo.root_of(tmp_path / "gone")
        root.parent.mkdir()
        fifo.settle(fifo.topic_dir(root, bytes(16)), ["r0"], os.getgid(), 0o600)
        fifo.make(fifo.segment_path(root, bytes(16)), os.getgid(), 0o600)
        unavailable = DaemonUnavailable("nobody listens")
        upkeep._purge_without_daemon("gone", unavailable, yes=True)
        assert not root.exists()
        with pytest.raises(DaemonUnavailable):
            upkeep._purge_without_daemon("gone", unavailable, yes=True)

    def test_purge_does_not_guess_whose_a_socket_was(self, shmd_start: StartDaemon) -> None:
        daemon = shmd_start(instance="default", ephemeral=False)
        shell = Shell(daemon.socket_path)
        shell.run("pub", "t")
        daemon.stop()
        shell.run("purge", "--yes", status=69)
        assert len(fsck(shell, daemon)) == 3
        shell.close()

    def test_purge_refuses_where_the_daemon_runs_but_is_not_found(
        self, shmd_daemon: DaemonProcess, shell: Shell
    ) -> None:
        errors = shell.run("purge", "--instance", shmd_daemon.instance, "--yes", status=1)
        assert str(shmd_daemon.pid) in errors


class TestInstances:
    def test_instances_of_one_user_do_not_touch_each_others_segments(self, shmd_start: StartDaemon) -> None:
        """They have a topic of the same name; one is killed, restarted, purged and stopped beside the other."""
        one, other = shmd_start(), shmd_start()
        one_shell, other_shell = Shell(one.socket_path), Shell(other.socket_path)
        for shell in (one_shell, other_shell):
            shell.publish("t", "mine", shell.socket_path)
        before = fsck(other_shell, other)
        assert [row["kind"] for row in before].count("roster") == 2
        assert len(before) == 4
        one.process.send_signal(signal.SIGKILL)
        one.kill()
        successor = shmd_start(instance=one.instance, runtime_dir=one.runtime_dir)
        assert parse_lines(one_shell.run("sub", "t", "--start", "2", "--count", "1")) == [one.socket_path]
        one_shell.run("purge", "--yes")
        assert successor.stop() == 0
        assert [row["shmid"] for row in fsck(other_shell, other)] == [row["shmid"] for row in before]
        assert parse_lines(other_shell.run("sub", "t", "--start", "2", "--count", "1")) == [other.socket_path]
        for shell in (one_shell, other_shell):
            shell.close()

    def test_second_daemon_of_an_instance_refuses_in_another_runtime_directory_too(
        self, shmd_daemon: DaemonProcess, shell: Shell, tmp_path: Path
    ) -> None:
        elsewhere = ("--runtime-dir", str(tmp_path), "--instance", shmd_daemon.instance)
        assert str(shmd_daemon.pid) in shell.run("serve", *elsewhere, status=1)
        shell.run("pub", "t")


def test_inventory_refuses_to_reclaim_what_is_needed(shmd_daemon: DaemonProcess, shell: Shell) -> None:
    shell.run("pub", "t")
    for found in inventory.take().of(instance_id(shmd_daemon.instance, os.getuid())).segments:
        with pytest.raises(UsageError, match="no orphan"):
            inventory.reclaim(found)
    shmd_daemon.kill()
    with pytest.raises(UsageError, match="no orphan"):
        inventory.reclaim(inventory.take().of(instance_id(shmd_daemon.instance, os.getuid())).segments[0])


@pytest.mark.may_block
async def test_roster_of_attached_topics_is_alive_as_long_as_a_client_has_it(shmd_daemon: DaemonProcess) -> None:
    instance = instance_id(shmd_daemon.instance, os.getuid())
    async with connect(shmd_daemon.socket_path) as client, client.publisher("t", lifetime="attached"):
        shmd_daemon.kill()
        left = inventory.take().of(instance)
        assert sorted((found.kind, found.state, found.stat.key) for found in left.segments) == [
            (kind, "alive", 0) for kind in KINDS
        ]
        assert [roster.running for roster in left.rosters] == [False]
        assert inventory.remove_instance(instance) == [], "it goes by itself"
        shell = Shell(shmd_daemon.socket_path)
        shell.run("purge", "--instance", shmd_daemon.instance)  # there is nothing to confirm
        shell.close()
    assert inventory.take().of(instance).segments == ()
