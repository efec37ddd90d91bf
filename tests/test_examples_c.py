"""The examples in C, run for real: with each other, with Python, killed, and under ASan and UBSan."""

from __future__ import annotations

import contextlib
import ctypes
import re
import signal
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import sysv_ipc

from shmd import _core
from tests.c_programs import ROOT, CPrograms, Program, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    import shmd
    from shmd.testing import DaemonProcess

EXAMPLES: Final = ROOT / "examples" / "c"
STATS: Final = struct.Struct("<QQQ")


@pytest.fixture
def meeting(tmp_path: Path) -> Iterator[Path]:
    """A file whose ftok keys the programs share; what they leave under these goes."""
    path = tmp_path / "meeting"
    path.touch()
    yield path
    for project in "sxw":
        with contextlib.suppress(sysv_ipc.ExistentialError):
            memory = sysv_ipc.SharedMemory(key_of(path, project))
            memory.detach()
            memory.remove()


def key_of(path: Path, project: str) -> int:
    ftok = ctypes.CDLL(None).ftok
    return int(ftok(str(path).encode(), ord(project)))


def test_every_example_is_compiled_and_explained() -> None:
    programs = {path.stem for path in EXAMPLES.glob("*.c")}
    compiled = re.findall(r"^PROGRAMS := (.*)$", (EXAMPLES / "Makefile").read_text(), re.MULTILINE)[0].split()
    assert programs == set(compiled)
    explained = re.findall(r"`(\w+)\.c`", (EXAMPLES / "README.md").read_text())
    assert programs == set(explained)


class TestTopics:
    async def test_subscriber_prints_what_c_and_python_publish_and_ends_with_the_topic(
        self, c_programs: CPrograms, shmd_daemon: DaemonProcess, shmd_client: shmd.Client
    ) -> None:
        with c_programs.start("subscribe", "prices", "all", socket_path=shmd_daemon.socket_path) as subscriber:
            assert run(c_programs["publish"], "prices", "2", SHMD_SOCKET=shmd_daemon.socket_path)
            async with shmd_client.publisher("prices") as publisher:
                await publisher.publish({"px": 101.5, "ok": True, "none": None, "list": [-1, "x", b"y"]})
            lines = [subscriber.line() for _ in range(3)]
            await shmd_client.remove("prices")
            assert "removed" in subscriber.end()
        assert lines == [
            '1 {"n": 1, "from": "C"}',
            '2 {"n": 2, "from": "C"}',
            '3 {"px": 101.5, "ok": true, "none": null, "list": [-1, "x", <1 bytes>]}',
        ]

    @pytest.mark.parametrize("when_full", ["wait", "discard"])
    async def test_python_subscriber_reads_what_the_c_publisher_publishes(
        self, when_full: str, c_programs: CPrograms, shmd_daemon: DaemonProcess, shmd_client: shmd.Client
    ) -> None:
        async with shmd_client.subscribe("prices") as subscription:
            program = c_programs.start("publish", "prices", "1000", when_full, socket_path=shmd_daemon.socket_path)
            for n in range(1, 1001):
                record = await subscription.get()
                assert (record.seq, record.value) == (n, {"n": n, "from": "C"})
            assert program.end() == "last sequence number: 1000\n"
        stat = await shmd_client.stat("prices")
        assert stat is not None
        assert stat.topic.when_full == {"wait": "wait", "discard": "discard-old"}[when_full]

    def test_interrupted_publisher_says_how_far_it_came(
        self, c_programs: CPrograms, shmd_daemon: DaemonProcess
    ) -> None:
        with c_programs.start("subscribe", "prices", socket_path=shmd_daemon.socket_path) as subscriber:
            publisher = c_programs.start("publish", "prices", "0", socket_path=shmd_daemon.socket_path)
            assert subscriber.line()
            publisher.signal(signal.SIGTERM)
            assert re.fullmatch(r"last sequence number: [1-9]\d*\n", publisher.end())
            subscriber.kill()


class TestStatistics:
    def test_reader_never_sees_connections_without_their_bytes(self, c_programs: CPrograms, meeting: Path) -> None:
        with c_programs.start("stats_read", meeting, "300000") as reader:
            writer = c_programs.start("stats_write", meeting, "300000")
            lines = [line.split() for line in iter(reader.line, "")]
            assert writer.end() == "accepted 300000\n"
        assert lines[-1] == ["accepted", "300000", "in", str(512 * 300000), "out", str(2048 * 300000)]
        for _, accepted, _, bytes_in, _, bytes_out in lines:
            assert (int(bytes_in), int(bytes_out)) == (512 * int(accepted), 2048 * int(accepted))

    def test_killed_writer_leaves_the_last_values_to_readers_and_to_the_next_writer(
        self, c_programs: CPrograms, meeting: Path
    ) -> None:
        for _ in range(5):
            writer = c_programs.start("stats_write", meeting)
            with c_programs.start("stats_read", meeting, "1") as reader:
                reader.end()
            writer.kill()
            memory = sysv_ipc.SharedMemory(key_of(meeting, "s"))
            cell = _core.Cell(bytearray(memory.read()), offset=0, size=STATS.size)
            accepted, bytes_in, bytes_out = STATS.unpack(cell.load()[0])
            cell.close()
            memory.detach()
            assert (bytes_in, bytes_out) == (512 * accepted, 2048 * accepted)
            assert run(c_programs["stats_write"], meeting, "1") == f"accepted {accepted + 1}\n"


class TestInteroperation:
    """What examples/c/README.md says of segments that these programs and shmd share."""

    async def test_python_adopts_the_segment_that_the_statistics_writer_made(
        self, c_programs: CPrograms, meeting: Path, shmd_client: shmd.Client
    ) -> None:
        run(c_programs["stats_write"], meeting, "7")
        async with shmd_client.segment("stats", ftok=(meeting, "s"), adopt=True) as segment:
            assert segment.info.adopted
            with segment.cell("<QQQ") as cell:
                assert cell.load() == (7, 7 * 512, 7 * 2048)
            run(c_programs["stats_write"], meeting, "1")
            with segment.cell("<QQQ") as cell:
                assert cell.load()[0] == 8
        await shmd_client.remove_segment("stats")

    async def test_statistics_programs_use_the_segment_that_shmd_made_with_their_key(
        self, c_programs: CPrograms, meeting: Path, shmd_client: shmd.Client
    ) -> None:
        async with shmd_client.segment("stats", size=4096, ftok=(meeting, "s")) as segment:
            with segment.cell("<QQQ") as cell:
                cell.store((5, 5 * 512, 5 * 2048))
                assert run(c_programs["stats_write"], meeting, "1") == "accepted 6\n"
                assert run(c_programs["stats_read"], meeting, "6") == f"accepted 6 in {6 * 512} out {6 * 2048}\n"
                assert cell.load() == (6, 6 * 512, 6 * 2048)
        await shmd_client.remove_segment("stats")


class TestServer:
    @pytest.fixture
    def server(self, c_programs: CPrograms, meeting: Path) -> Iterator[Program]:
        with c_programs.start("server", meeting) as server:
            assert server.line() == "ready"
            yield server
            server.signal(signal.SIGTERM)
            server.end()
        assert not Path(f"{meeting}.server").exists()

    def test_each_of_many_clients_gets_its_own_answer(
        self, server: Program, c_programs: CPrograms, meeting: Path
    ) -> None:
        for _ in range(3):
            clients = {n: c_programs.start("client", meeting, f"question {n}") for n in range(12)}
            assert [client.end() for client in clients.values()] == [f"QUESTION {n}\n" for n in clients]
        assert [path.name for path in meeting.parent.iterdir() if path.name[-1].isdigit()] == []

    def test_clients_that_died_hold_no_slot(self, server: Program, c_programs: CPrograms, meeting: Path) -> None:
        server.signal(signal.SIGSTOP)
        clients = [c_programs.start("client", meeting, "never answered") for _ in range(16)]
        slots = [Path(f"{meeting}.{n}") for n in range(16)]
        while not all(slot.exists() for slot in slots):
            pass
        assert "16 clients" in c_programs.start("client", meeting, "one too many").end(status=1)
        for client in clients:
            client.kill()
        server.signal(signal.SIGCONT)
        assert c_programs.start("client", meeting, "after them").end() == "AFTER THEM\n"
        for slot in slots:
            slot.unlink(missing_ok=True)

    def test_client_without_a_server_says_so(self, c_programs: CPrograms, meeting: Path) -> None:
        assert "no server" in c_programs.start("client", meeting, "hello").end(status=1)


class TestMapping:
    def test_reader_of_the_mapped_file_finds_the_last_note(self, c_programs: CPrograms, tmp_path: Path) -> None:
        file = tmp_path / "note"
        for n, text in enumerate(["first", "second"], 1):
            run(c_programs["mmap_write"], file, text)
            assert run(c_programs["mmap_read"], file) == f"{n} {text}\n"

    def test_file_that_holds_no_note_is_refused(self, c_programs: CPrograms, tmp_path: Path) -> None:
        for content in (b"", b"x", bytes(4096), b"\xff" * 4096):
            file = tmp_path / "note"
            file.write_bytes(content)
            assert c_programs.start("mmap_read", file).end(status=1)
        assert c_programs.start("mmap_write", file, "over something else").end(status=1)
        assert file.read_bytes() == b"\xff" * 4096


class TestWorkers:
    def test_each_job_is_done_by_exactly_one_worker(self, c_programs: CPrograms, meeting: Path) -> None:
        workers = [c_programs.start("worker", meeting) for _ in range(4)]
        for _ in range(2):
            run(c_programs["worker"], meeting, "post", "5000")
        while self.shown(c_programs, meeting)["done"] < 10_000:
            pass
        assert self.shown(c_programs, meeting) == {"posted": 10_000, "taken": 10_000, "done": 10_000}
        for worker in workers:
            worker.signal(signal.SIGTERM)
        done = [int(worker.end().removeprefix("did ")) for worker in workers]
        assert sum(done) == 10_000

    def test_killed_worker_stops_nobody(self, c_programs: CPrograms, meeting: Path) -> None:
        workers = [c_programs.start("worker", meeting) for _ in range(2)]
        run(c_programs["worker"], meeting, "post", "100")
        workers.pop().kill()
        run(c_programs["worker"], meeting, "post", "100")
        while self.shown(c_programs, meeting)["done"] < 199:  # but for the one job that it may have had in hand
            pass
        assert self.shown(c_programs, meeting)["posted"] == 200
        for worker in workers:
            worker.signal(signal.SIGTERM)
            worker.end()

    def shown(self, c_programs: CPrograms, meeting: Path) -> dict[str, int]:
        words = run(c_programs["worker"], meeting, "show").split()
        return dict(zip(words[::2], map(int, words[1::2]), strict=True))
