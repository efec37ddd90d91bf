"""The C library: what is installed, and a C client beside Python's, step by step, under ASan and UBSan."""

from __future__ import annotations

import asyncio
import errno
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from shmd import limits, protocol
from shmd.errors import LimitExceeded
from tests.c_programs import ROOT, STRICT, CPrograms, Program, failure, install_library, run
from tests.loop_turns import until

if TYPE_CHECKING:
    from collections.abc import Callable

    import shmd
    from shmd.testing import DaemonProcess, StartDaemon
    from tests.restarts import Restarts

CSRC: Final = ROOT / "csrc"
PUBLIC: Final = ("api.h", "client.h", "wire.h", "shmd.h")
FULL, EMPTY = "1", "3"


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("prefix")
    install_library(prefix, CFLAGS="-O2 -Werror")
    return prefix


class TestInstallation:
    def test_header_tells_the_version_of_the_package(self) -> None:
        header = re.search(r'#define SHMD_VERSION "(.*)"', (CSRC / "api.h").read_text())
        package = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        assert header is not None
        assert package is not None
        assert header[1] == package[1]

    def test_installed_files_are_the_library_its_headers_and_its_pkgconfig_file(self, prefix: Path) -> None:
        files = {str(path.relative_to(prefix)) for path in prefix.rglob("*") if not path.is_dir()}
        version = re.findall(r'#define SHMD_VERSION "(.*)"', (CSRC / "api.h").read_text())[0]
        libraries = {"libshmd.a", "libshmd.so", "libshmd.so.0", f"libshmd.so.{version}", "pkgconfig/shmd.pc"}
        headers = {*PUBLIC, "atomics.h", "layout.h"}
        installed = {name for name in files if not name.startswith("build/")}
        assert installed == {f"lib/{name}" for name in libraries} | {f"include/shmd/{name}" for name in headers}

    def test_uninstalling_leaves_nothing(self, tmp_path: Path) -> None:
        settings = (f"PREFIX={tmp_path}", "DESTDIR=", f"OUT={tmp_path}/build", "CFLAGS=-O0")
        run("make", "-s", "-C", CSRC, "install", *settings)
        run("make", "-s", "-C", CSRC, "uninstall", *settings)
        left = {path for path in tmp_path.rglob("*") if not path.is_dir() and tmp_path / "build" not in path.parents}
        assert left == set()

    def test_destdir_comes_before_the_prefix_and_not_into_the_pkgconfig_file(self, tmp_path: Path) -> None:
        settings = ("PREFIX=/usr", f"DESTDIR={tmp_path}", f"OUT={tmp_path}/build", "CFLAGS=-O0")
        run("make", "-s", "-C", CSRC, "install", *settings)
        assert "prefix=/usr\n" in (tmp_path / "usr/lib/pkgconfig/shmd.pc").read_text()

    def test_shared_library_exports_what_its_headers_declare_and_no_more(self, prefix: Path) -> None:
        lines = run("nm", "-D", "--defined-only", prefix / "lib/libshmd.so").splitlines()
        exported = {line.split()[2] for line in lines if line.split()[1] in "TDBR"}
        headers = "".join((CSRC / name).read_text() for name in PUBLIC)
        assert exported <= set(re.findall(r"\b(shmd_\w+)\(", headers))
        assert {"shmd_connect", "shmd_next", "shmd_pack_map", "shmd_append"} <= exported
        assert "libshmd.so.0" in run("readelf", "-d", prefix / "lib/libshmd.so")

    @pytest.mark.skipif(shutil.which("pkg-config") is None, reason="pkg-config is not installed")
    def test_program_compiles_with_the_flags_of_pkgconfig(self, prefix: Path, tmp_path: Path) -> None:
        where = {"PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")}
        flags = run("pkg-config", "--cflags", "--libs", "shmd", **where).split()
        drive = ROOT / "tests/c/drive.c"
        run("cc", *STRICT.split(), drive, *flags, "-o", tmp_path / "drive")
        # An empty input is a program without a word to say.
        done = subprocess.run(
            [tmp_path / "drive"], env={"LD_LIBRARY_PATH": str(prefix / "lib")}, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0

    @pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
    def test_client_and_wire_headers_can_be_included_from_cplusplus(self, prefix: Path, tmp_path: Path) -> None:
        program = tmp_path / "program.cpp"
        program.write_text(
            "#include <shmd/client.h>\n#include <shmd/wire.h>\n"
            "int main() { shmd_packer packer = {nullptr, 0, 0}; shmd_pack_nil(&packer);\n"
            "    return shmd_packed(&packer) || *shmd_strerror(SHMD_FULL) == 0; }\n"
        )
        library = prefix / "lib/libshmd.a"
        run("c++", "-Wall", "-Wextra", "-Werror", f"-I{prefix}/include", program, library, "-o", tmp_path / "program")
        run(tmp_path / "program")

    @pytest.mark.skipif(shutil.which("clang") is None, reason="clang is not installed")
    def test_library_compiles_with_clang_without_a_warning(self, tmp_path: Path) -> None:
        run("make", "-s", "-C", CSRC, f"OUT={tmp_path}", "CC=clang", "CFLAGS=-O1 -Werror")


class TestPublishing:
    async def test_python_subscriber_reads_what_a_c_publisher_publishes(
        self, drive: Callable[[], Program], shmd_client: shmd.Client
    ) -> None:
        c = drive()
        async with shmd_client.subscribe("prices", codec="raw") as subscription:
            c.ask("publisher prices", "0")
            assert c.ask("publish one") == "0 1"
            assert c.ask("publish-pair two three") == "0 3"
            records = [await subscription.get() for _ in range(3)]
        assert [(record.seq, record.value) for record in records] == [(1, b"one"), (2, b"two"), (3, b"three")]

    async def test_c_publisher_of_a_full_topic_waits_for_a_python_subscriber(
        self, drive: Callable[[], Program], shmd_client: shmd.Client
    ) -> None:
        await shmd_client.topic("jobs", size=4096, when_full="wait")
        async with shmd_client.subscribe("jobs", codec="raw") as subscription:
            c = drive()
            c.ask("publisher jobs", "0")
            count = 0
            while c.ask("publish " + "x" * 500).startswith("0"):
                count += 1
            assert c.ask("publish " + "x" * 500 + " timeout 1").split()[0] == FULL
            waiting = asyncio.create_task(asyncio.to_thread(c.ask, "publish " + "y" * 500 + " timeout -1"))
            values = [(await subscription.get()).value for _ in range(count + 1)]
            assert values == [b"x" * 500] * count + [b"y" * 500]
            assert await waiting == f"0 {count + 1}"

    def test_second_publisher_of_an_exclusive_topic_is_told_who_has_it(self, drive: Callable[[], Program]) -> None:
        first, second = drive(), drive()
        first.ask("publisher prices exclusive", "0")
        assert "exclusive" in second.ask("publisher prices", failure(errno.EBUSY))
        assert second.ask("code") == "topic-busy"
        first.ask("close-publisher")
        second.ask("publisher prices", "0")

    def test_record_that_is_too_large_is_refused_with_the_limit(self, drive: Callable[[], Program]) -> None:
        c = drive()
        c.ask("publisher prices size 4096", "0")
        assert "988 bytes" in c.ask("publish " + "x" * 989, failure(errno.EMSGSIZE))
        assert c.ask("publish " + "x" * 988) == "0 1"

    def test_other_options_than_the_topic_has_are_refused(self, drive: Callable[[], Program]) -> None:
        c = drive()
        c.ask("declare prices", "0")
        assert "discard-old" in c.ask("publisher prices wait", failure(errno.EEXIST))
        c.ask(f"publisher {'x' * 300}", failure(errno.EPROTO))
        c.ask(f"publisher {'x' * 2000}", failure(errno.EINVAL))
        c.ask("publisher pri*es", failure(errno.EINVAL))
        c.ask("publisher prices", "0")

    def test_waiting_for_subscribers_ends_with_them_or_in_time(self, drive: Callable[[], Program]) -> None:
        c, other = drive(), drive()
        c.ask("publisher prices", "0")
        c.ask("wait-subscribers timeout 1", failure(errno.ETIMEDOUT))
        c.say("wait-subscribers")
        other.ask("subscriber prices", "0")
        assert c.line().split() == ["0"]


class TestSubscribing:
    async def test_c_subscriber_that_sleeps_is_woken_by_a_python_publisher(
        self, drive: Callable[[], Program], shmd_client: shmd.Client
    ) -> None:
        async with shmd_client.publisher("prices", codec="raw") as publisher:
            c = drive()
            c.ask("subscriber prices", "0")
            assert c.ask("next").split()[0] == EMPTY
            assert c.ask("next timeout 1").split()[0] == EMPTY
            for n in range(1, 4):
                waiting = asyncio.create_task(asyncio.to_thread(c.ask, "next timeout -1"))
                await asyncio.sleep(0.01)  # so that it sleeps, most times; it is right either way
                await publisher.publish(b"value")
                assert await waiting == f"0 {n} lost 0 value"

    async def test_c_subscriber_begins_where_it_says(
        self, drive: Callable[[], Program], shmd_client: shmd.Client
    ) -> None:
        async with shmd_client.publisher("prices", codec="raw") as publisher:
            for n in range(1, 6):
                await publisher.publish(str(n).encode())
            c = drive()
            for start, first in {"all": 1, "last": 5, "seq 3": 3}.items():
                c.ask(f"subscriber prices {start}", "0")
                assert c.ask("next") == f"0 {first} lost 0 {first}"
                c.ask("close-subscriber", "0")
            c.ask("subscriber prices new", "0")
            c.ask("next", EMPTY)

    async def test_lapped_c_subscriber_counts_what_it_lost(
        self, drive: Callable[[], Program], shmd_client: shmd.Client
    ) -> None:
        async with shmd_client.publisher("prices", codec="raw", size=4096) as publisher:
            c = drive()
            c.ask("subscriber prices", "0")
            for _ in range(200):
                await publisher.publish(b"x" * 100)
            answers = []
            while (answer := c.ask("next")).startswith("0 "):
                answers.append(answer.split())
            lost = [int(words[3]) for words in answers]
            assert lost[0] > 0
            assert lost[1:] == [0] * (len(answers) - 1)
            assert lost[0] + len(answers) == 200
            assert c.ask("lost") == str(lost[0])

    async def test_c_subscriber_holds_publishers_back_until_it_asks_for_the_next_record(
        self, drive: Callable[[], Program], shmd_client: shmd.Client
    ) -> None:
        async with shmd_client.publisher("jobs", codec="raw", size=4096, when_full="wait") as publisher:
            c = drive()
            c.ask("subscriber jobs", "0")
            assert c.ask("tethered") == "1"
            for _ in range(4):
                publisher.publish_nowait(b"x" * 980)
            waiting = asyncio.create_task(publisher.publish(b"x" * 980))
            assert c.ask("next", "0")
            await asyncio.sleep(0)
            assert not waiting.done(), "the record is still being worked on"
            assert c.ask("next", "0")
            assert await waiting == 5

    async def test_c_subscriber_waits_for_a_topic_and_misses_nothing_of_it(
        self, drive: Callable[[], Program], shmd_client: shmd.Client
    ) -> None:
        c = drive()
        c.ask("subscriber prices topic-wait 1", failure(errno.ENOENT))
        c.say("subscriber prices topic-wait -1")
        async with shmd_client.publisher("prices", codec="raw") as publisher:
            await publisher.publish(b"first")
            assert (await asyncio.to_thread(c.line)).split() == ["0"]
            assert c.ask("next timeout -1") == "0 1 lost 0 first"

    async def test_program_with_a_poll_loop_wakes_once_for_each_record(
        self, drive: Callable[[], Program], shmd_client: shmd.Client
    ) -> None:
        async with shmd_client.publisher("prices", codec="raw") as publisher:
            c = drive()
            c.ask("subscriber prices", "0")
            for n in range(1, 4):
                c.say("poll")
                await publisher.publish(b"value")
                assert await asyncio.to_thread(c.line) in ("1", "4"), "woken, or found before it slept"
                assert c.ask("next") == f"0 {n} lost 0 value"
                c.ask("next", EMPTY)

    async def test_removed_topic_is_read_to_its_end(
        self, drive: Callable[[], Program], shmd_client: shmd.Client
    ) -> None:
        publisher = await shmd_client.publisher("prices", codec="raw")
        c = drive()
        c.ask("subscriber prices", "0")
        await publisher.publish(b"last")
        await shmd_client.remove("prices")
        assert c.ask("next timeout -1") == "0 1 lost 0 last"
        assert "removed" in c.ask("next timeout -1", failure(errno.EIDRM))
        await publisher.close()

    def test_signal_interrupts_a_wait_and_changes_nothing(
        self, drive: Callable[[], Program], c_programs: CPrograms, shmd_daemon: DaemonProcess
    ) -> None:
        import signal

        with c_programs.start("subscribe", "prices", socket_path=shmd_daemon.socket_path) as program:
            c = drive()
            c.ask("publisher prices", "0")
            c.ask("wait-subscribers", "0")
            program.signal(signal.SIGINT)
            assert program.end() == ""
            c.ask("publish one", "0")


class TestConnection:
    def test_missing_daemon_is_named_with_what_to_do(self, c_programs: CPrograms, tmp_path: Path) -> None:
        with c_programs.start("drive") as c:
            answer = c.ask(f"connect {tmp_path}/none.sock", failure(errno.ENOENT))
            assert f"{tmp_path}/none.sock" in answer
            assert "shmd serve" in answer
            c.ask("disconnect", "0")
            c.ask(f"connect /{'x' * 200}", failure(errno.ENAMETOOLONG))

    def test_socket_is_looked_for_where_python_looks(
        self, c_programs: CPrograms, shmd_daemon: DaemonProcess, tmp_path: Path
    ) -> None:
        (tmp_path / "shmd").mkdir()
        (tmp_path / "shmd" / "control.sock").symlink_to(shmd_daemon.socket_path)
        found = run(c_programs["publish"], "prices", "1", SHMD_SOCKET="", XDG_RUNTIME_DIR=str(tmp_path))
        assert found == "last sequence number: 1\n"
        found = run(c_programs["publish"], "prices", "1", SHMD_SOCKET=shmd_daemon.socket_path, XDG_RUNTIME_DIR="/")
        assert found == "last sequence number: 2\n"

    def test_program_waits_for_a_daemon_that_is_not_there_yet(
        self, c_programs: CPrograms, shmd_start: StartDaemon
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="shmd-", ignore_cleanup_errors=True) as directory:
            path = f"{directory}/control.sock"
            with c_programs.start("drive") as c:
                assert path in c.ask(f"connect-wait {path} timeout 20", failure(errno.ENOENT))
                c.ask("disconnect", "0")
                assert "Not a directory" in c.ask(f"connect-wait {c_programs['drive']}/x", failure(errno.ENOTDIR))
                c.ask("disconnect", "0")
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
                    listening.bind(path)
                    listening.listen()
                    c.say(f"connect-wait {path}")
                    for _ in range(2):  # one that goes before it answers, then the next
                        listening.accept()[0].close()
                shmd_start(runtime_dir=Path(directory))
                assert c.line().startswith("0 ")
                c.ask("publisher t", "0")

    def test_program_at_the_daemons_limit_of_clients_is_told_so(
        self, c_programs: CPrograms, shmd_start: StartDaemon, tmp_path: Path
    ) -> None:
        (tmp_path / "shmd.toml").write_text("clients_max = 1\n")
        path = shmd_start("--config", str(tmp_path / "shmd.toml")).socket_path
        with c_programs.drive(path), c_programs.start("drive") as c:
            for _ in range(20):  # its word and its hanging up come in any order with ours
                assert "1 clients" in c.ask(f"connect {path}", failure(errno.EDQUOT))
                c.ask("code", "limit-exceeded")
                c.ask("disconnect", "0")

    def test_program_reads_the_refusal_of_a_daemon_that_hung_up_before_it_spoke(self, c_programs: CPrograms) -> None:
        refusal = protocol.encode(protocol.refusal(0, LimitExceeded("no room", "come back later")))
        with tempfile.TemporaryDirectory(prefix="shmd-") as directory, c_programs.start("drive") as c:
            path = f"{directory}/control.sock"
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
                listening.bind(path)
                listening.listen()
                for shut in (False, True):
                    c.say(f"connect {path}")
                    connection = listening.accept()[0]
                    if shut:
                        connection.shutdown(socket.SHUT_RD)  # the client's next send fails with EPIPE
                    connection.send(refusal)
                    if not shut:
                        connection.recv(65536)
                    connection.close()
                    assert c.line() == f"{failure(errno.EDQUOT)} no room (come back later)"
                    c.ask("disconnect", "0")

    def test_closing_gives_every_descriptor_back(self, drive: Callable[[], Program]) -> None:
        c = drive()
        before = c.ask("descriptors")
        for _ in range(3):
            c.ask("publisher prices", "0")
            c.ask("subscriber prices", "0")
            c.ask("close-publisher")
            c.ask("close-subscriber")
        assert c.ask("descriptors") == before


class TestRestart:
    async def test_records_flow_between_c_programs_while_the_daemon_is_away_and_after(
        self, c_programs: CPrograms, restarts: Restarts
    ) -> None:
        with c_programs.drive(restarts.socket_path) as writer, c_programs.drive(restarts.socket_path) as reader:
            writer.ask("publisher jobs wait size 4096", "0")
            reader.ask("subscriber jobs", "0")
            await restarts.kill()
            for n in range(1, 4):
                reader.say("next timeout -1")
                writer.ask(f"publish away{n}", "0")
                assert reader.line() == f"0 {n} lost 0 away{n}"
            await restarts.start()
            for program in (writer, reader):
                program.ask("resume", "0")
                assert program.ask("connected") == "1"
            for n in range(4, 7):
                reader.say("next timeout -1")
                writer.ask(f"publish back{n}", "0")
                assert reader.line() == f"0 {n} lost 0 back{n}"
            assert reader.ask("tethered") == "1"
            writer.ask("wait-subscribers", "0")

    async def test_c_programs_come_back_by_themselves_while_they_work(
        self, c_programs: CPrograms, restarts: Restarts
    ) -> None:
        with c_programs.drive(restarts.socket_path) as writer, c_programs.drive(restarts.socket_path) as reader:
            writer.ask("publisher jobs", "0")
            reader.ask("subscriber jobs", "0")
            await restarts.restart()
            seq = 0
            while [writer.ask("connected"), reader.ask("connected")] != ["1", "1"] or seq < 10:
                seq += 1
                writer.ask("publish on", "0")
                assert reader.ask("next timeout -1") == f"0 {seq} lost 0 on"

    async def test_python_subscriber_hears_the_new_bell_of_a_c_publisher_that_came_back(
        self, c_programs: CPrograms, restarts: Restarts
    ) -> None:
        import shmd

        async with shmd.connect(restarts.socket_path) as client, client.subscribe("jobs", codec="raw") as subscription:
            with c_programs.drive(restarts.socket_path) as writer:
                writer.ask("publisher jobs", "0")
                await restarts.restart(client)
                await until(lambda: writer.ask("resume").split()[0] == "0")
                for n in range(1, 4):
                    waiting = asyncio.create_task(subscription.get())
                    await asyncio.sleep(0)
                    writer.ask("publish value", "0")
                    assert (await waiting).seq == n

    @pytest.mark.parametrize("reader", ["C", "Python"])
    async def test_new_subscriber_hears_a_publisher_that_rings_the_old_bell_still(
        self, c_programs: CPrograms, restarts: Restarts, monkeypatch: pytest.MonkeyPatch, reader: str
    ) -> None:
        """It knows only the new bell, and is told that others are on their way back."""
        import shmd

        monkeypatch.setattr(limits, "SETTLE_S", 3600.0)
        with c_programs.drive(restarts.socket_path) as writer:
            writer.ask("publisher jobs", "0")
            writer.ask("reconnect no")
            await restarts.restart()
            if reader == "Python":
                async with shmd.connect(restarts.socket_path) as client, client.subscribe("jobs") as subscription:
                    (topic,) = subscription._topics
                    for n in range(1, 4):
                        waiting = asyncio.create_task(subscription.get())
                        await until(lambda: topic.asleep)
                        writer.ask("publish 1", "0")
                        assert (await waiting).seq == n
            else:
                with c_programs.drive(restarts.socket_path) as c:
                    c.ask("subscriber jobs", "0")
                    for n in range(1, 11):
                        c.say("next timeout -1")
                        writer.ask("connected")  # which takes about as long as falling asleep
                        writer.ask("publish old", "0")
                        assert c.line() == f"0 {n} lost 0 old"

    async def test_program_that_does_not_want_to_reconnect_goes_on_alone(
        self, c_programs: CPrograms, restarts: Restarts
    ) -> None:
        with c_programs.drive(restarts.socket_path) as c:
            c.ask("publisher jobs", "0")
            c.ask("subscriber jobs", "0")
            c.ask("reconnect no")
            await restarts.restart()
            for n in range(1, 20):
                c.ask("publish alone", "0")
                assert c.ask("next timeout -1") == f"0 {n} lost 0 alone"
            c.ask("declare other", failure(errno.ENOTCONN))
            assert c.ask("connected") == "0"

    @pytest.mark.parametrize("notifier", ["eventfd", "fifo"])
    async def test_c_programs_that_the_daemon_forgot_go_on_where_they_were(
        self, c_programs: CPrograms, restarts: Restarts, notifier: str
    ) -> None:
        import shmd

        with c_programs.drive(restarts.socket_path) as writer, c_programs.drive(restarts.socket_path) as reader:
            writer.ask(f"publisher jobs wait size 4096 {notifier}", "0")
            reader.ask("subscriber jobs", "0")
            for n in range(1, 6):
                writer.ask(f"publish {n}", "0")
            for n in range(1, 3):
                assert reader.ask("next timeout -1") == f"0 {n} lost 0 {n}"
            await restarts.kill()
            await restarts.forget_everybody()
            await restarts.start()
            for program in (writer, reader):
                program.ask("resume", "0")
            for n in range(3, 6):
                assert reader.ask("next timeout -1") == f"0 {n} lost 0 {n}"
            for n in range(6, 9):
                reader.say("next timeout -1")
                writer.ask(f"publish {n}", "0")
                assert reader.line() == f"0 {n} lost 0 {n}"
            assert reader.ask("tethered") == "1"
            while writer.ask(f"publish {'x' * 200} timeout 0").split()[0] != FULL:
                pass
            assert reader.ask("next timeout -1").startswith("0 9 lost 0"), "the tether held publishers back"
            async with shmd.connect(restarts.socket_path) as client:
                stat = await client.stat("jobs")
            assert stat is not None
            assert (len(stat.publishers), len(stat.subscribers)) == (1, 1)

    async def test_topic_that_went_with_the_daemon_is_reported_as_removed(
        self, c_programs: CPrograms, restarts: Restarts
    ) -> None:
        import shmd

        with c_programs.drive(restarts.socket_path) as c:
            c.ask("subscriber jobs topic-wait 1", failure(errno.ENOENT))
            c.ask("publisher jobs", "0")
            c.ask("subscriber jobs", "0")
            c.ask("reconnect no")
            await restarts.restart()
            async with shmd.connect(restarts.socket_path) as client:
                await client.remove("jobs")
                await client.topic("jobs")
            c.ask("resume", "0")
            c.ask("next timeout -1", failure(errno.EIDRM))
            c.ask("publish gone", failure(errno.EIDRM))


class TestDeath:
    async def test_c_publisher_killed_anywhere_leaves_whole_records_and_a_working_topic(
        self, c_programs: CPrograms, shmd_daemon: DaemonProcess, shmd_client: shmd.Client
    ) -> None:
        await shmd_client.topic("jobs", size=65536, when_full="wait")
        async with shmd_client.subscribe("jobs") as subscription:
            for _ in range(5):
                program = c_programs.start("publish", "jobs", socket_path=shmd_daemon.socket_path)
                for n in range(1, 500):
                    assert (await subscription.get()).value == {"n": n, "from": "C"}
                program.kill()
                async with shmd_client.publisher("jobs") as publisher:
                    publishing = asyncio.create_task(publisher.publish("after"))  # the topic may be full
                    while (record := await subscription.get()).value != "after":
                        assert record.lost == 0
                    assert record.seq == await publishing

    async def test_c_subscriber_killed_with_a_tether_lets_publishers_go_on(
        self, c_programs: CPrograms, shmd_daemon: DaemonProcess, shmd_client: shmd.Client
    ) -> None:
        async with shmd_client.publisher("jobs", codec="raw", size=4096, when_full="wait") as publisher:
            c = c_programs.drive(shmd_daemon.socket_path)
            c.ask("subscriber jobs", "0")
            c.kill()
            for _ in range(50):
                await publisher.publish(b"x" * 900)

    @pytest.mark.parametrize("daemon", ["killed", "stopped"])
    async def test_full_c_publisher_frees_the_topic_of_a_dead_subscriber_while_there_is_no_daemon(
        self, c_programs: CPrograms, restarts: Restarts, daemon: str
    ) -> None:
        with c_programs.drive(restarts.socket_path) as writer:
            writer.ask("publisher jobs wait size 4096", "0")
            reader = c_programs.drive(restarts.socket_path)
            reader.ask("subscriber jobs", "0")
            if daemon == "killed":
                await restarts.kill()
            else:
                restarts.daemon.process.send_signal(signal.SIGSTOP)
            while writer.ask("publish " + "x" * 900).startswith("0"):
                pass
            assert writer.ask("publish " + "x" * 900 + " timeout 1").split()[0] == FULL, "the subscriber lives"
            reader.kill()
            assert writer.ask("publish " + "x" * 900 + " timeout -1").startswith("0")
            assert writer.ask("connected") == ("0" if daemon == "killed" else "1")
            restarts.daemon.process.send_signal(signal.SIGCONT)


def test_c_program_keeps_the_roster_for_the_daemon_that_comes_next(c_programs: CPrograms, restarts: Restarts) -> None:
    """An `attached` topic is noted in a segment that goes with the last process that has it attached."""
    with c_programs.drive(restarts.socket_path) as c:
        c.ask("publisher jobs attached", "0")
        c.ask("subscriber jobs", "0")
        asyncio.run(restarts.restart())
        c.ask("resume", "0")
        c.ask("publish value", "0")
        assert c.ask("next timeout -1") == "0 1 lost 0 value"
        assert not restarts.daemon.log.count("made") > 1, "it was adopted"


class TestFifos:
    """Topics that wake their sleepers through FIFOs."""

    async def test_c_and_python_wake_each_other_through_fifos(
        self, drive: Callable[[], Program], shmd_client: shmd.Client
    ) -> None:
        c = drive()
        before = c.ask("descriptors")
        async with shmd_client.publisher("jobs", codec="raw", notifier="fifo") as publisher:
            c.ask("subscriber jobs", "0")
            for n in range(1, 4):
                c.say("next timeout -1")
                await publisher.publish(b"value")
                assert await asyncio.to_thread(c.line) == f"0 {n} lost 0 value"
            c.ask("publisher jobs fifo", "0")
            async with shmd_client.subscribe("jobs", codec="raw") as subscription:
                waiting = asyncio.create_task(subscription.get())
                await asyncio.sleep(0)
                c.ask("publish back", "0")
                assert (await waiting).value == b"back"
            c.ask("close-publisher")
            c.ask("close-subscriber")
            assert c.ask("descriptors") == before

    async def test_full_c_publisher_is_woken_through_its_fifo(
        self, drive: Callable[[], Program], shmd_client: shmd.Client
    ) -> None:
        await shmd_client.topic("jobs", size=4096, when_full="wait", notifier="fifo")
        async with shmd_client.subscribe("jobs", codec="raw") as subscription:
            c = drive()
            c.ask("publisher jobs", "0")
            while c.ask("publish " + "x" * 500).startswith("0"):
                pass
            waiting = asyncio.create_task(asyncio.to_thread(c.ask, "publish " + "y" * 500 + " timeout -1"))
            while (await subscription.get()).value != b"y" * 500:
                pass
            assert (await waiting).startswith("0")

    async def test_c_programs_open_their_fifos_again_after_a_restart(
        self, c_programs: CPrograms, restarts: Restarts
    ) -> None:
        with c_programs.drive(restarts.socket_path) as writer, c_programs.drive(restarts.socket_path) as reader:
            writer.ask("publisher jobs wait size 4096 fifo", "0")
            reader.ask("subscriber jobs", "0")
            await restarts.restart()
            for program in (writer, reader):
                program.ask("resume", "0")
            for n in range(1, 4):
                reader.say("next timeout -1")
                writer.ask(f"publish back{n}", "0")
                assert reader.line() == f"0 {n} lost 0 back{n}"
