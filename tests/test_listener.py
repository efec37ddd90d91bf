"""Listening, accepting and knowing who connects, on real sockets and as real users."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shmd import limits, liveness
from shmd.errors import ConfigError
from shmd.listener import Listener, peer_credentials, peer_pidfd
from shmd.policy import Credentials
from tests.children import STRANGER_GID, STRANGER_UID, become_stranger, in_child, needs_root

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.may_block


class Accepted:
    """What a listener handed over."""

    def __init__(self) -> None:
        self.sockets: asyncio.Queue[socket.socket] = asyncio.Queue()

    def __call__(self, sock: socket.socket) -> None:
        self.sockets.put_nowait(sock)

    async def close_next(self) -> None:
        (await self.sockets.get()).close()


@contextmanager
def listening(path: Path, accepted: Accepted) -> Iterator[Listener]:
    listener = Listener.bind(asyncio.get_running_loop(), path, accepted)
    try:
        yield listener
    finally:
        listener.close()


def dial(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(os.fspath(path))
    return sock


def leave_stale_socket(path: Path, kind: int = socket.SOCK_SEQPACKET) -> None:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(os.fspath(path))


@pytest.mark.both_loops
class TestListening:
    async def test_clients_are_accepted_non_blocking_and_uninherited(self, tmp_path: Path) -> None:
        accepted = Accepted()
        with listening(tmp_path / "s", accepted) as listener:
            with dial(listener.path) as client, await accepted.sockets.get() as sock:
                assert sock.getblocking() is False
                assert sock.get_inheritable() is False
                client.send(b"hello")
                assert sock.recv(10) == b"hello"
            assert listener.path == tmp_path / "s"

    async def test_everybody_may_connect(self, tmp_path: Path) -> None:
        with listening(tmp_path / "s", Accepted()) as listener:
            assert stat.S_IMODE(listener.path.stat().st_mode) == 0o666

    async def test_more_clients_than_one_turn_takes_are_all_accepted(self, tmp_path: Path) -> None:
        accepted = Accepted()
        with listening(tmp_path / "s", accepted) as listener:
            clients = [dial(listener.path) for _ in range(limits.PACKETS_PER_WAKE + 10)]
            for client in clients:
                await accepted.close_next()
                client.close()

    async def test_stale_socket_is_replaced(self, tmp_path: Path) -> None:
        leave_stale_socket(tmp_path / "s")
        accepted = Accepted()
        with listening(tmp_path / "s", accepted) as listener, dial(listener.path):
            await accepted.close_next()

    async def test_live_socket_is_not_replaced(self, tmp_path: Path) -> None:
        accepted = Accepted()
        with listening(tmp_path / "s", accepted) as listener:
            with pytest.raises(ConfigError, match="something else listens"):
                Listener.bind(asyncio.get_running_loop(), tmp_path / "s", accepted)
            await accepted.close_next()  # the probe
            with dial(listener.path):
                await accepted.close_next()

    async def test_socket_of_another_kind_is_not_replaced(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.bind(os.fspath(tmp_path / "s"))
            other.listen()
            with pytest.raises(ConfigError, match="something else listens"):
                Listener.bind(asyncio.get_running_loop(), tmp_path / "s", Accepted())
        assert (tmp_path / "s").is_socket()

    async def test_file_in_the_way_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "s").write_text("precious")
        with pytest.raises(ConfigError, match="is no socket"):
            Listener.bind(asyncio.get_running_loop(), tmp_path / "s", Accepted())
        assert (tmp_path / "s").read_text() == "precious"

    async def test_missing_directory_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"cannot listen at .*/absent/s: No such file or directory.*--socket"):
            Listener.bind(asyncio.get_running_loop(), tmp_path / "absent" / "s", Accepted())

    async def test_path_too_long_names_the_limit(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="at most 107 bytes"):
            Listener.bind(asyncio.get_running_loop(), tmp_path / ("s" * 100), Accepted())

    async def test_longest_path_works(self, tmp_path: Path) -> None:
        with listening(tmp_path / ("s" * (106 - len(os.fsencode(tmp_path)))), Accepted()) as listener:
            assert len(os.fsencode(listener.path)) == 107

    async def test_close_removes_its_socket_and_refuses_new_clients(self, tmp_path: Path) -> None:
        with listening(tmp_path / "s", Accepted()) as listener:
            listener.close()
            assert not listener.path.exists()

    async def test_close_leaves_a_successors_socket(self, tmp_path: Path) -> None:
        with listening(tmp_path / "s", Accepted()) as listener:
            listener.path.rename(tmp_path / "old")
            leave_stale_socket(listener.path)
            listener.close()
            assert listener.path.is_socket()

    async def test_close_accepts_that_somebody_cleaned_up(self, tmp_path: Path) -> None:
        with listening(tmp_path / "s", Accepted()) as listener:
            listener.path.unlink()

    async def test_exception_from_a_handler_hangs_up_on_that_client_only(self, tmp_path: Path) -> None:
        loop, accepted = asyncio.get_running_loop(), Accepted()
        errors: list[str] = []
        loop.set_exception_handler(lambda _, context: errors.append(str(context["exception"])))

        def fail_once(sock: socket.socket) -> None:
            if not errors:
                raise ValueError("broken handler")
            accepted(sock)

        listener = Listener.bind(loop, tmp_path / "s", fail_once)
        with dial(listener.path) as unlucky, dial(listener.path):
            await accepted.close_next()
            assert unlucky.recv(1) == b""
        assert errors == ["broken handler"]
        listener.close()

    async def test_handler_may_close_the_listener(self, tmp_path: Path) -> None:
        done = asyncio.Event()

        def close(sock: socket.socket) -> None:
            sock.close()
            listener.close()
            done.set()

        listener = Listener.bind(asyncio.get_running_loop(), tmp_path / "s", close)
        with dial(listener.path), dial(listener.path):
            await done.wait()


class Exhausted(socket.socket):
    """A listening socket whose process is out of descriptors now and then."""

    errors: list[OSError]

    def accept(self) -> tuple[socket.socket, object]:
        if self.errors:
            raise self.errors.pop()
        return super().accept()


@pytest.mark.both_loops
class TestOverload:
    @pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
    async def test_listener_goes_on_after_a_shortage(
        self, tmp_path: Path, number: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        accepted = Accepted()
        sock = Exhausted(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.errors = [OSError(number, os.strerror(number)) for _ in range(3)]
        sock.bind(os.fspath(tmp_path / "s"))
        sock.listen()
        listener = Listener(asyncio.get_running_loop(), sock, accepted)
        with dial(tmp_path / "s"):
            await accepted.close_next()
        assert [record.levelname for record in caplog.records] == ["WARNING"]  # once, not once per attempt
        assert os.strerror(number) in caplog.text
        listener.close()

    async def test_client_that_gave_up_is_skipped(self, tmp_path: Path) -> None:
        accepted = Accepted()
        sock = Exhausted(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.errors = [ConnectionAbortedError()]
        sock.bind(os.fspath(tmp_path / "s"))
        sock.listen()
        listener = Listener(asyncio.get_running_loop(), sock, accepted)
        with dial(tmp_path / "s"):
            await accepted.close_next()
        listener.close()

    async def test_listener_can_be_closed_while_it_rests(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "ACCEPT_PAUSE_S", 0)
        loop = asyncio.get_running_loop()
        failures: list[object] = []
        loop.set_exception_handler(lambda _, context: failures.append(context))
        sock = Exhausted(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.errors = [OSError(errno.EMFILE, "too many")]
        sock.bind(os.fspath(tmp_path / "s"))
        sock.listen()
        listener = Listener(loop, sock, Accepted())
        with dial(tmp_path / "s"):
            listener._on_acceptable()
            listener.close()
            for _ in range(5):
                await asyncio.sleep(0)
        assert failures == []


@pytest.mark.both_loops
class TestAdoption:
    async def test_inherited_socket_is_served_and_its_file_stays(self, tmp_path: Path) -> None:
        accepted = Accepted()
        inherited = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        inherited.bind(os.fspath(tmp_path / "s"))
        inherited.listen()
        listener = Listener.adopt(asyncio.get_running_loop(), inherited.detach(), accepted)
        assert listener.path == tmp_path / "s"
        with dial(listener.path):
            await accepted.close_next()
        listener.close()
        assert listener.path.is_socket()

    async def test_stream_socket_is_refused_and_left_open(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            with pytest.raises(ConfigError, match="ListenSequentialPacket"):
                Listener.adopt(asyncio.get_running_loop(), sock.fileno(), Accepted())
            os.fstat(sock.fileno())

    async def test_socket_that_does_not_listen_is_refused(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            with pytest.raises(ConfigError, match="does not listen"):
                Listener.adopt(asyncio.get_running_loop(), sock.fileno(), Accepted())
            os.fstat(sock.fileno())

    async def test_file_is_refused(self, tmp_path: Path) -> None:
        with (tmp_path / "file").open("w") as file, pytest.raises(ConfigError, match="is no socket"):
            Listener.adopt(asyncio.get_running_loop(), file.fileno(), Accepted())


class TestPeerCredentials:
    def test_peer_in_this_process_is_who_we_are(self) -> None:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with one, other:
            assert peer_credentials(one) == Credentials(
                uid=os.geteuid(),
                gid=os.getegid(),
                pid=os.getpid(),
                groups=frozenset(os.getgroups()),
                start_time=liveness.start_time(os.getpid()),
            )

    def test_pidfd_is_of_the_process_that_connected_and_not_inherited(self) -> None:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with one, other:
            pidfd = peer_pidfd(one)
            assert pidfd is not None
            assert f"Pid:\t{os.getpid()}" in Path(f"/proc/self/fdinfo/{pidfd}").read_text()
            assert not os.get_inheritable(pidfd)
            os.close(pidfd)

    @needs_root
    @pytest.mark.parametrize("count", [0, 1, 3, 256, 257, 5000])
    def test_stranger_is_known_with_all_its_groups(self, tmp_path: Path, count: int) -> None:
        """CPython's getsockopt takes 256 groups at most."""
        groups = tuple(range(70_000, 70_000 + count))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
            server.bind(os.fspath(tmp_path / "s"))
            server.listen()
            (tmp_path / "s").chmod(0o666)
            tmp_path.chmod(0o711)

            def as_stranger() -> int:
                os.chdir(tmp_path)  # whose parents are closed to strangers
                become_stranger(groups=groups)
                dial(Path("s"))
                return os.getpid()

            pid = in_child(as_stranger)
            with server.accept()[0] as accepted:
                assert peer_credentials(accepted) == Credentials(
                    uid=STRANGER_UID, gid=STRANGER_GID, pid=pid, groups=frozenset(groups)
                )

    def test_socket_without_a_peer_has_no_credentials_to_show(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock, pytest.raises(OSError, match="data"):
            peer_credentials(sock)
