"""``shmd segment``: what ipcs, ipcmk and ipcrm do, by name; real processes, against what the kernel's tools say."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.children import STRANGER_UID
from tests.loop_turns import until
from tests.shell import TIMEOUT_S, Shell, parse_lines

if TYPE_CHECKING:
    import shmd

SIZE = 4096


def ipcs() -> dict[int, tuple[str, str, int, int]]:
    """By id: key, permissions, bytes, attachments; as ``ipcs -m`` prints them."""
    output = subprocess.run(["ipcs", "-m"], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in output.splitlines() if line.startswith("0x")]
    return {int(shmid): (key, perms, int(size), int(nattch)) for key, shmid, _, perms, size, nattch, *_ in rows}


def create(shell: Shell, name: str = "frame", *options: str) -> dict[str, Any]:
    (info,) = parse_lines(shell.run("segment", "create", name, "--size", str(SIZE), "--json", *options))
    return dict(info)


class TestManage:
    def test_create_makes_what_ipcs_lists(self, shell: Shell) -> None:
        output = shell.run("segment", "create", "frame", "--size", "4KiB", "--mode", "640", "--key", "0x2a")
        shmid = int(output.split("id ")[1].split(",")[0])
        assert output == f"segment frame: id {shmid}, key 0x0000002a, 4096 bytes\n"
        assert ipcs()[shmid][:3] == ("0x0000002a", "640", SIZE)

    @pytest.mark.parametrize("key", ["0x8000002a", str(0x8000002A), str(0x8000002A - 2**32)])
    def test_key_that_is_negative_in_c_is_listed_as_ipcs_lists_it(self, shell: Shell, key: str) -> None:
        shmid = create(shell, "frame", "--key", key)["id"]
        assert ipcs()[shmid][0] == "0x8000002a"
        assert "0x8000002a" in shell.run("segment", "ls")

    def test_create_again_is_the_same_segment_unless_it_is_to_be_new(self, shell: Shell) -> None:
        assert create(shell)["id"] == create(shell)["id"]
        assert "frame" in shell.run("segment", "create", "frame", "--size", "4096", "--exclusive", status=1)

    def test_create_takes_the_key_of_ftok(self, shell: Shell, tmp_path: Path) -> None:
        import sysv_ipc

        by_number, by_letter = (
            create(shell, "a", "--ftok", f"{tmp_path}:7"),
            create(shell, "b", "--ftok", f"{tmp_path}:A"),
        )
        assert by_number["key"] == sysv_ipc.ftok(str(tmp_path), 7, silence_warning=True)
        assert by_letter["key"] == sysv_ipc.ftok(str(tmp_path), ord("A"), silence_warning=True)

    @pytest.mark.parametrize("options", [("--key", "0"), ("--key", "x"), ("--ftok", "nowhere"), ("--mode", "9")])
    def test_create_refuses_options_that_cannot_be(self, shell: Shell, options: tuple[str, str]) -> None:
        assert options[1] in shell.run("segment", "create", "frame", "--size", "1", *options, status=2)

    def test_ls_shows_what_ipcs_shows_with_names(self, shell: Shell) -> None:
        infos = {name: create(shell, name) for name in ("a.x", "b.x")}
        header, *lines = shell.run("segment", "ls").splitlines()
        assert header.split() == ["SEGMENT", "KEY", "SHMID", "OWNER", "PERMS", "BYTES", "NATTCH", "STATUS"]
        assert [line.split()[0] for line in lines] == ["a.x", "b.x"]
        known = ipcs()
        for line in lines:
            name, key, shmid, _, perms, size, nattch = line.split()
            assert known[int(shmid)] == (key, perms, int(size), int(nattch))
            assert infos[name]["id"] == int(shmid)
        assert len(parse_lines(shell.run("segment", "ls", "b.*", "--json"))) == 1
        assert shell.run("segment", "ls", "c.*") == ""

    def test_shmd_ls_shows_topics_and_segments(self, shell: Shell) -> None:
        shell.publish("prices", 1)
        create(shell)
        assert [line.split()[0] for line in shell.run("ls").splitlines() if line] == [
            "TOPIC", "prices", "SEGMENT", "frame",
        ]  # fmt: skip
        assert [row["name"] for row in parse_lines(shell.run("ls", "--json"))] == ["prices", "frame"]

    def test_stat_tells_all_that_the_kernel_knows(self, shell: Shell) -> None:
        info = create(shell)
        (stat,) = parse_lines(shell.run("segment", "stat", "frame", "--json"))
        assert (stat["id"], stat["key"], stat["size_bytes"], stat["mode"]) == (info["id"], info["key"], SIZE, "0600")
        assert {"cuid", "cgid", "creator_pid", "last_pid", "attach_time", "detach_time", "change_time"} <= stat.keys()
        text = shell.run("segment", "stat", "frame")
        assert f"id              {info['id']}\n" in text
        assert "4096 bytes, 4 KiB of pages" in text
        assert "no segment 'none'" in shell.run("segment", "stat", "none", status=1)

    def test_file_is_shown_by_its_path_and_without_what_only_memory_has(self, shell: Shell) -> None:
        (info,) = parse_lines(shell.run("segment", "create", "disk", "--size", "1", "--backing", "file", "--json"))
        path = Path(info["path"])
        assert path.stat().st_size == 1
        assert shell.run("segment", "create", "disk") == f"segment disk: file {path}, 1 bytes\n"
        line = shell.run("segment", "ls").splitlines()[1].split()
        assert (line[0], line[1:3], line[4:]) == ("disk", ["-", "-"], ["600", "1", "-", "file"])
        text = shell.run("segment", "stat", "disk")
        assert f"file            {path}\n" in text
        assert "attachments" not in text
        shell.run("segment", "rm", "disk")
        assert not path.exists()

    def test_set_changes_mode_and_owner(self, shell: Shell) -> None:
        shmid = create(shell)["id"]
        assert shell.run("segment", "set", "frame", "--mode", "644", "--uid", str(STRANGER_UID)) == ""
        (stat,) = parse_lines(shell.run("segment", "stat", "frame", "--json"))
        assert (stat["mode"], stat["uid"]) == ("0644", STRANGER_UID)
        assert ipcs()[shmid][1] == "644"
        assert "say what to change" in shell.run("segment", "set", "frame", status=2)
        assert "no user 'nobody-at-all'" in shell.run("segment", "set", "frame", "--uid", "nobody-at-all", status=2)

    def test_rm_removes_what_it_can_and_tells_the_rest(self, shell: Shell) -> None:
        shmid = create(shell)["id"]
        assert "none" in shell.run("segment", "rm", "none", "frame", status=1)
        assert shmid not in ipcs()
        assert shell.run("segment", "ls") == ""

    def test_purge_removes_segments_too(self, shell: Shell) -> None:
        shmid = create(shell)["id"]
        shell.publish("prices", 1)
        asked = shell.start("purge")
        _, errors = asked.communicate(b"n\n", TIMEOUT_S)
        assert b"Remove 1 topics and all their records, and 1 segments?" in errors
        assert shmid in ipcs()
        assert shell.run("purge", "--yes") == ""
        assert shmid not in ipcs()
        assert shell.run("ls") == ""


class TestMemory:
    def test_what_is_written_is_read(self, shell: Shell) -> None:
        create(shell)
        data = bytes(range(256)) * 4
        assert shell.run("segment", "write", "frame", "--offset", "100", "--lock", "--notify", stdin=data) == ""
        read = shell.start("segment", "read", "frame", "--raw")
        whole, errors = read.communicate(timeout=TIMEOUT_S)
        assert errors == b""
        assert whole == bytes(100) + data + bytes(SIZE - 100 - len(data))
        piece = shell.start("segment", "read", "frame", "--raw", "--offset", "104", "--length", "8")
        assert piece.communicate(timeout=TIMEOUT_S)[0] == data[4:12]

    def test_read_prints_as_hexdump_does(self, shell: Shell) -> None:
        create(shell)
        shell.run("segment", "write", "frame", stdin=b"Connections: 12\n\0\xff and more")
        assert shell.run("segment", "read", "frame", "--length", "20") == (
            "00000000  43 6f 6e 6e 65 63 74 69  6f 6e 73 3a 20 31 32 0a  |Connections: 12.|\n"
            "00000010  00 ff 20 61                                       |.. a|\n"
            "00000014\n"
        )

    def test_write_that_does_not_fit_writes_nothing(self, shell: Shell) -> None:
        create(shell)
        errors = shell.run("segment", "write", "frame", "--offset", "4090", stdin=b"x" * 7, status=1)
        assert "longer than the 6 bytes" in errors
        assert "do not lie within" in shell.run("segment", "write", "frame", "--offset", "4097", stdin=b"", status=1)
        assert "do not lie within" in shell.run("segment", "read", "frame", "--length", "4097", status=1)
        read = shell.start("segment", "read", "frame", "--raw")
        assert read.communicate(timeout=TIMEOUT_S)[0] == bytes(SIZE)

    def test_read_and_write_of_no_segment_make_none(self, shell: Shell) -> None:
        assert "no segment 'frame'" in shell.run("segment", "read", "frame", status=1)
        assert "no segment 'frame'" in shell.run("segment", "write", "frame", status=1)
        assert shell.run("segment", "ls") == ""


class TestSync:
    def holder(self, shell: Shell, *command: str) -> subprocess.Popen[bytes]:
        """Runs ``command``, which prints a line first, under the lock."""
        process = shell.start("segment", "lock", "frame", *command)
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        return process

    def test_lock_keeps_others_out_until_its_command_ends(self, shell: Shell) -> None:
        create(shell)
        holder = self.holder(shell, "sh", "-c", "echo in; cat")
        for timeout in ("0", "1ms"):
            refused = shell.run("segment", "lock", "--timeout", timeout, "frame", "true", status=1)
            assert f"process {holder.pid} holds" in refused
        waiter = shell.start("segment", "lock", "frame", "echo", "after")
        assert holder.stdin is not None
        holder.stdin.close()
        assert waiter.communicate(timeout=TIMEOUT_S)[0] == b"after\n"
        assert holder.wait(TIMEOUT_S) == 0

    @pytest.mark.parametrize(
        ("command", "status"),
        [(["sh", "-c", "exit 3"], 3), (["sh", "-c", "kill -9 $$"], 137), (["no-such-command"], 127), (["/"], 126)],
        ids=["fails", "killed", "none", "no program"],
    )
    def test_lock_ends_as_its_command_does(self, shell: Shell, command: list[str], status: int) -> None:
        create(shell)
        shell.run("segment", "lock", "frame", *command, status=status)
        assert shell.run("segment", "lock", "--timeout", "0", "frame", "echo", "free") == "free\n"

    def test_lock_that_is_killed_is_free(self, shell: Shell) -> None:
        create(shell)
        holder = self.holder(shell, "sh", "-c", "echo in; exec cat")
        holder.kill()
        holder.wait()
        assert shell.run("segment", "lock", "frame", "echo", "mine") == "mine\n"

    def test_lock_that_is_interrupted_ends_its_command_first(self, shell: Shell) -> None:
        create(shell)
        program = "import signal; print('in', flush=True); signal.sigwait([signal.SIGTERM]); print('told', flush=True)"
        program = program.replace("print('in'", "signal.pthread_sigmask(signal.SIG_BLOCK, [15]); print('in'")
        holder = self.holder(shell, sys.executable, "-c", program)
        holder.send_signal(signal.SIGTERM)
        output, _ = holder.communicate(timeout=TIMEOUT_S)
        assert (output, holder.returncode) == (b"told\n", 128 + signal.SIGTERM)

    async def test_wait_ends_when_somebody_notifies(self, shell: Shell, shmd_client: shmd.Client) -> None:
        create(shell)
        waiter = shell.start("segment", "wait", "frame")

        async def waits() -> bool:
            (stat,) = [await shmd_client.segment_stat("frame")]
            return stat is not None and stat.attachments > idle

        stat = await shmd_client.segment_stat("frame")
        idle = 0 if stat is None else min(stat.attachments, 1)
        await until(waits)
        assert waiter.poll() is None
        while waiter.poll() is None:  # it may have attached, and not yet be told that it may
            shell.run("segment", "notify", "frame")
        assert waiter.communicate() == (b"", b"")
        assert waiter.returncode == 0

    def test_wait_fails_after_its_timeout(self, shell: Shell) -> None:
        create(shell)
        assert "nobody notified" in shell.run("segment", "wait", "frame", "--timeout", "10ms", status=1)
