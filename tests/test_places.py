"""Daemons and clients agree on where a socket is, whatever su, sudo, cron or a container made of the environment."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import shmd
from shmd import places
from shmd.cli import cli
from shmd.errors import ConfigError, DaemonUnavailable, InvalidName
from shmd.places import default_runtime_dir, find_socket
from tests.c_programs import failure
from tests.children import needs_root
from tests.people import HEAR_TIMEOUT_S, Person, acting, as_person

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.c_programs import CPrograms

ROOT = 0
OTHER_UID = 62_999
UID = os.geteuid() or 62_998
"""An ordinary user: this one, or one that root can give directories to."""
DAVE = Person("dave", 62_000 + os.getpid() % 900, 62_000)
"""A user of this run alone, since his fall-back directory is everybody's to see."""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another root of the file system, as far as places are concerned."""
    monkeypatch.setattr(places, "SYSTEM_DIR", tmp_path / "run" / "shmd")
    monkeypatch.setattr(places, "USERS_DIR", tmp_path / "run" / "user")
    monkeypatch.setattr(places, "TEMPORARY_DIR", tmp_path / "tmp")
    (tmp_path / "tmp").mkdir()
    return tmp_path


def own(path: Path, *, uid: int = UID, mode: int = 0o700) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    if uid != os.geteuid():
        os.chown(path, uid, -1)
    return path


def put_socket(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "control.sock").touch()
    return directory / "control.sock"


def login(host: Path) -> dict[str, str]:
    """The environment of a login session."""
    return {"XDG_RUNTIME_DIR": str(own(host / "run" / "user" / str(UID)))}


class TestUser:
    def test_daemon_lives_in_the_announced_directory(self, host: Path) -> None:
        announced = own(host / "elsewhere")
        assert default_runtime_dir({"XDG_RUNTIME_DIR": str(announced)}, UID) == announced / "shmd"

    def test_daemon_without_announcement_lives_in_the_login_directory_if_there_is_one(self, host: Path) -> None:
        assert default_runtime_dir({}, UID) == host / "tmp" / f"shmd-{UID}"
        login(host)
        assert default_runtime_dir({}, UID) == host / "run" / "user" / str(UID) / "shmd"

    def test_daemon_of_a_system_user_lives_in_its_runtime_directory(self, host: Path) -> None:
        own(host / "run" / "shmd", mode=0o755)
        assert default_runtime_dir({}, UID) == host / "run" / "shmd"

    def test_client_looks_at_each_place_in_turn(self, host: Path) -> None:
        environ = {"XDG_RUNTIME_DIR": str(own(host / "elsewhere"))}
        login(host)
        fallback = own(host / "tmp" / f"shmd-{UID}")
        for directory in (
            host / "run" / "shmd",
            fallback,
            host / "run" / "user" / str(UID) / "shmd",
            host / "elsewhere" / "shmd",
        ):
            socket = put_socket(directory)
            assert find_socket(environ=environ, uid=UID) == socket

    def test_client_finds_the_daemon_that_was_started_in_another_kind_of_session(self, host: Path) -> None:
        environ = login(host)
        by_login = put_socket(default_runtime_dir(environ, UID))
        assert find_socket(environ={}, uid=UID) == by_login
        by_login.unlink()
        shutil.rmtree(host / "run" / "user")
        own(default_runtime_dir({}, UID))
        by_cron = put_socket(default_runtime_dir({}, UID))
        assert find_socket(environ=login(host), uid=UID) == by_cron

    @needs_root
    def test_directory_of_another_user_is_left_out_on_both_sides(self, host: Path) -> None:
        announced = own(host / "theirs", uid=OTHER_UID)
        environ = {"XDG_RUNTIME_DIR": str(announced)}
        put_socket(announced / "shmd")
        assert default_runtime_dir(environ, UID) == host / "tmp" / f"shmd-{UID}"
        with pytest.raises(DaemonUnavailable, match=rf"left out {announced}/shmd: it belongs to uid {OTHER_UID}"):
            find_socket(environ=environ, uid=UID)

    @pytest.mark.parametrize(
        ("make", "why"),
        [
            (lambda path: own(path, mode=0o777), r"others may write to it \(mode 0777\)"),
            (lambda path: own(path, mode=0o720), r"others may write to it \(mode 0720\)"),
            (lambda path: path.touch(), "it is not a directory"),
            (lambda path: None, "No such file or directory"),
        ],
        ids=["all-write", "group-writes", "file", "missing"],
    )
    def test_announced_directory_that_will_not_do_is_left_out_and_named(
        self, host: Path, make: Callable[[Path], object], why: str
    ) -> None:
        environ = {"XDG_RUNTIME_DIR": str(host / "announced")}
        make(host / "announced")
        assert default_runtime_dir(environ, UID) == host / "tmp" / f"shmd-{UID}"
        with pytest.raises(DaemonUnavailable, match=f"left out {host}/announced/shmd: {why}"):
            find_socket(environ=environ, uid=UID)

    def test_relative_announcement_is_left_out_and_named(self, host: Path) -> None:
        with pytest.raises(DaemonUnavailable, match="left out here/shmd: it is a relative path"):
            find_socket(environ={"XDG_RUNTIME_DIR": "here"}, uid=UID)


class TestFallback:
    """Whoever comes first can make it: that has to be its user."""

    @pytest.fixture
    def fallback(self, host: Path) -> Path:
        return places.fallback_dir(os.geteuid())

    def test_daemon_makes_it_for_its_user_alone_whatever_the_umask(self, fallback: Path) -> None:
        before = os.umask(0)
        try:
            places.claim(fallback)
        finally:
            os.umask(before)
        assert stat.S_IMODE(fallback.stat().st_mode) == 0o700
        places.claim(fallback)

    def test_other_directories_are_not_made_ahead(self, host: Path) -> None:
        places.claim(host / "mine")
        assert not (host / "mine").exists()

    @needs_root
    def test_daemon_refuses_one_that_another_user_made(self, fallback: Path) -> None:
        own(fallback, uid=OTHER_UID)
        with pytest.raises(ConfigError, match=rf"it belongs to uid {OTHER_UID} \(choose another for both sides"):
            places.claim(fallback)

    def test_daemon_refuses_one_that_others_may_write_to(self, fallback: Path) -> None:
        own(fallback, uid=os.geteuid(), mode=0o777)
        with pytest.raises(ConfigError, match="others may write to it"):
            places.claim(fallback)

    def test_link_is_not_followed_even_to_a_directory_of_the_users(self, host: Path) -> None:
        fallback = places.fallback_dir(UID)
        put_socket(own(host / "mine"))
        fallback.symlink_to(host / "mine")
        with pytest.raises(DaemonUnavailable, match=rf"left out {fallback}: it is not a directory"):
            find_socket(environ={}, uid=UID)

    @needs_root
    def test_client_does_not_trust_a_socket_in_one_that_another_user_made(self, host: Path) -> None:
        fallback = own(places.fallback_dir(UID), uid=OTHER_UID)
        put_socket(fallback)
        with pytest.raises(DaemonUnavailable, match=rf"left out {fallback}: it belongs to uid {OTHER_UID}") as refused:
            find_socket(environ={}, uid=UID)
        assert refused.value.hint is not None
        assert "--runtime-dir DIR, and SHMD_SOCKET=DIR/control.sock" in refused.value.hint


class TestRoot:
    def test_daemon_is_the_systems_whatever_was_announced(self, host: Path) -> None:
        for announced in (host, host / "missing"):
            assert default_runtime_dir({"XDG_RUNTIME_DIR": str(announced)}, ROOT) == host / "run" / "shmd"

    @needs_root
    def test_client_looks_there_first(self, host: Path) -> None:
        environ = {"XDG_RUNTIME_DIR": str(own(host / "roots", uid=ROOT))}
        announced = put_socket(host / "roots" / "shmd")
        assert find_socket(environ=environ, uid=ROOT) == announced
        system = put_socket(host / "run" / "shmd")
        assert find_socket(environ=environ, uid=ROOT) == system

    @needs_root
    def test_client_under_sudo_does_not_look_at_the_callers(self, host: Path) -> None:
        environ = {"XDG_RUNTIME_DIR": str(own(host / "callers"))}
        put_socket(host / "callers" / "shmd")
        with pytest.raises(DaemonUnavailable, match=f"it belongs to uid {UID}"):
            find_socket(environ=environ, uid=ROOT)


class TestChoice:
    def test_explicit_path_comes_first_and_need_not_exist(self) -> None:
        assert find_socket("/explicit", None, {"SHMD_SOCKET": "/from/environment"}) == Path("/explicit")

    def test_environment_comes_second_and_need_not_exist(self, host: Path) -> None:
        environ = login(host)
        put_socket(default_runtime_dir(environ, UID))
        assert find_socket(environ=environ | {"SHMD_SOCKET": "/s"}, uid=UID) == Path("/s")

    def test_instance_has_sockets_of_its_own_whatever_the_environment_says(self, host: Path) -> None:
        put_socket(host / "run" / "shmd")
        wanted = put_socket(host / "run" / "shmd" / "trading")
        assert find_socket(None, "trading", login(host) | {"SHMD_SOCKET": "/s"}, UID) == wanted

    def test_instance_that_cannot_be_is_refused(self) -> None:
        with pytest.raises(InvalidName):
            find_socket(None, "../etc", {})

    def test_socket_that_may_not_be_seen_is_found_so_that_connecting_tells_why(
        self, host: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(self: Path) -> os.stat_result:
            raise PermissionError(errno.EACCES, "no", str(self))

        monkeypatch.setattr(Path, "stat", refuse)
        assert find_socket(environ={}, uid=ROOT) == host / "run" / "shmd" / "control.sock"


class TestFailure:
    def test_it_says_where_it_looked_and_what_is_not_set(self, host: Path) -> None:
        with pytest.raises(DaemonUnavailable) as refused:
            find_socket(environ={}, uid=UID)
        fallback, system = host / "tmp" / f"shmd-{UID}" / "control.sock", host / "run" / "shmd" / "control.sock"
        assert f"looked at {fallback}, {system};" in refused.value.message
        assert refused.value.message.endswith("; $SHMD_SOCKET is not set; $XDG_RUNTIME_DIR is not set")

    def test_it_does_not_call_unset_what_is_set(self, host: Path) -> None:
        with pytest.raises(DaemonUnavailable) as refused:
            find_socket(environ=login(host), uid=UID)
        assert "XDG_RUNTIME_DIR" not in refused.value.message

    @pytest.mark.parametrize("instance", [None, "trading"])
    def test_it_names_the_command_that_makes_a_socket_where_it_looked(self, host: Path, instance: str | None) -> None:
        for environ in ({}, login(host)):
            with pytest.raises(DaemonUnavailable) as refused:
                find_socket(None, instance, environ, UID)
            command, _, socket = (refused.value.hint or "").partition(", which listens at ")
            assert command == "start one with: shmd serve" + (f" --instance {instance}" if instance else "")
            assert f"looked at {socket}" in refused.value.message

    def test_path_that_was_chosen_is_in_the_command(self) -> None:
        assert places.how_to_start(Path("/x/s")) == "start one with: shmd serve --socket /x/s"

    def test_systems_socket_is_not_an_ordinary_users_to_start(self, host: Path) -> None:
        socket = host / "run" / "shmd" / "control.sock"
        assert "start one of your own with: shmd serve" in places.how_to_start(socket, UID)
        assert "--socket" in places.how_to_start(socket, ROOT)


# --- daemons and clients for real: as a user who has nothing but /tmp -------------------------------------------------


@pytest.fixture
def dave() -> Iterator[Path]:
    """His fall-back directory, which is gone at first and in the end."""
    fallback = places.fallback_dir(DAVE.uid)
    assert not fallback.exists()
    yield fallback
    if fallback.exists():
        shutil.rmtree(fallback)


def clear_environment() -> None:
    for name in ("XDG_RUNTIME_DIR", "SHMD_SOCKET"):
        os.environ.pop(name, None)


async def publish_one() -> int:
    async with shmd.connect() as client, client.publisher("t") as publisher:
        return await publisher.publish("hello")


@contextlib.contextmanager
def serving(fallback: Path) -> Iterator[None]:
    """``shmd serve``, by Dave, in an environment without XDG_RUNTIME_DIR."""

    def serve(say: Callable[[object], None]) -> None:
        clear_environment()  # HOME is root's, as runuser leaves it
        cli.main(["serve", "--ephemeral"], standalone_mode=False)

    async def wait() -> None:
        async with shmd.connect(fallback / "control.sock", wait=True, timeout_s=HEAR_TIMEOUT_S):
            pass

    with acting(DAVE, serve) as daemon:
        as_person(DAVE, lambda: asyncio.run(wait()))
        yield
        daemon.kill(signal.SIGTERM)
        daemon.join()


@needs_root
@pytest.mark.may_block
class TestWithoutRuntimeDirectory:
    def test_daemon_and_client_meet(self, dave: Path) -> None:
        def talk() -> int:
            clear_environment()
            return asyncio.run(publish_one())

        with serving(dave):
            assert stat.S_IMODE(dave.stat().st_mode) == 0o700
            assert as_person(DAVE, talk) == 1

    def test_segment_that_is_a_file_needs_a_directory_of_the_daemons_user(self, dave: Path) -> None:
        async def make() -> str:
            async with shmd.connect() as client:
                with pytest.raises(PermissionError) as refused:
                    await client.segment("f", size=4096, backing="file")
                return str(refused.value)

        def talk() -> str:
            clear_environment()
            return asyncio.run(make())

        with serving(dave):
            assert "shmd serve --state-dir chooses another" in as_person(DAVE, talk)

    def test_c_program_meets_them_too(self, dave: Path, c_programs: CPrograms) -> None:
        with serving(dave):
            assert drive(c_programs, "connect") == "0 \n0\n"

    def test_neither_python_nor_c_goes_where_somebody_else_was_first(self, dave: Path, c_programs: CPrograms) -> None:
        put_socket(own(dave, uid=OTHER_UID, mode=0o755))
        why = f"left out {dave}: it belongs to uid {OTHER_UID}"

        def talk() -> str:
            clear_environment()
            try:
                return str(asyncio.run(publish_one()))
            except DaemonUnavailable as error:
                return str(error)

        found = as_person(DAVE, talk)
        assert why in found
        answer = drive(c_programs, "connect")
        assert answer.startswith(failure(errno.ENOENT))
        assert why in answer

    def test_c_library_searches_in_the_same_places_and_says_the_same(self, dave: Path, c_programs: CPrograms) -> None:
        for announced in ("", "/nowhere", "relative", "/etc", "/run"):
            environ = {"XDG_RUNTIME_DIR": announced}

            def search(environ: dict[str, str] = environ) -> str:
                with pytest.raises(DaemonUnavailable) as refused:
                    find_socket(environ=environ)
                return str(refused.value)

            expected = as_person(DAVE, search).replace("; $SHMD_SOCKET is not set", "")
            expected = expected.replace("; $XDG_RUNTIME_DIR is not set", "")
            answer = drive(c_programs, "connect", XDG_RUNTIME_DIR=announced)
            assert answer.splitlines()[0] == f"{failure(errno.ENOENT)} {expected}"


def drive(c_programs: CPrograms, *lines: str, **environment: str) -> str:
    """What ``drive`` says when Dave runs it. He may not read the directory that it lies in, so it is passed to him."""
    program = os.open(c_programs["drive"], os.O_RDONLY)

    def run() -> str:
        done = subprocess.run(
            [f"/proc/self/fd/{program}"],
            pass_fds=[program],
            env={"SHMD_SOCKET": "", **environment},
            input="".join(f"{line}\n" for line in (*lines, "disconnect")),
            capture_output=True,
            text=True,
        )
        return done.stdout + done.stderr

    try:
        return as_person(DAVE, run)
    finally:
        os.close(program)
