"""Where a daemon puts its socket and where clients look for it: one list of directories for both, the best first.

    an ordinary user                        root
    1. $XDG_RUNTIME_DIR/shmd                1. /run/shmd
    2. /run/user/UID/shmd                   2. $XDG_RUNTIME_DIR/shmd
    3. /tmp/shmd-UID
    4. /run/shmd, the system's

``su``, ``sudo -E``, cron and containers leave $XDG_RUNTIME_DIR unset, or set to somebody else's directory; that is why
there are others after it. A user's daemon takes the first directory that is the user's own (the third can be made by
anybody, so it always exists or can be made, unless another user was there first); a client takes the first that holds a
socket. So a daemon that was started by cron is found from a login shell, and the other way round.

Whoever can write to the directory of a socket can put another socket there. So a directory that another user owns, or
may write to, is neither used nor trusted, and the error says which one was left out, and why. The C library
(``csrc/find.c``) follows the same list.

Another instance than the default one has a directory of its name below each of these.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from shmd import names
from shmd.errors import ConfigError, DaemonUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEFAULT_INSTANCE: Final = "default"
SOCKET_NAME: Final = "control.sock"
SYSTEM_DIR: Final = Path("/run/shmd")
USERS_DIR: Final = Path("/run/user")
TEMPORARY_DIR: Final = Path("/tmp")  # noqa: S108 - what is below is checked: see _fault
_ROOT_UID: Final = 0
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


class Place(NamedTuple):
    """A directory that may hold the default instance, and what is wrong with it."""

    directory: Path
    fault: str | None = None
    """Why it is left out: it is another user's, say. None: it can be used."""
    mentioned: bool = True
    """Whether somebody chose it, or could have, so that an error should say that it was left out."""


def instance_dir(runtime_dir: Path, instance: str) -> Path:
    """What belongs to ``instance`` alone below a ``runtime_dir``."""
    return runtime_dir if instance == DEFAULT_INSTANCE else runtime_dir / instance


def places(environ: Mapping[str, str] = os.environ, uid: int | None = None) -> list[Place]:
    """Where a client of this user looks, in this order."""
    uid = os.geteuid() if uid is None else uid
    if uid == _ROOT_UID:
        return [Place(SYSTEM_DIR), *_announced(environ, uid)]
    return [*_announced(environ, uid), *_users_own(uid), Place(SYSTEM_DIR)]


def default_runtime_dir(environ: Mapping[str, str] = os.environ, uid: int | None = None) -> Path:
    """Where a daemon of this user lives unless it is told otherwise: a directory that its clients look at.

    The last resort is ``/tmp/shmd-UID``, also where another user has taken it: ``claim`` then refuses it.
    """
    uid = os.geteuid() if uid is None else uid
    fallback = fallback_dir(uid)
    for place in places(environ, uid):
        if place.directory == SYSTEM_DIR and uid != _ROOT_UID and _fault(SYSTEM_DIR, uid):
            continue
        if place.fault is None and place.directory != fallback:
            return place.directory
    return fallback


def fallback_dir(uid: int) -> Path:
    """The directory of a user who has no other."""
    return TEMPORARY_DIR / f"shmd-{uid}"


def claim(runtime_dir: Path) -> None:
    """Make the fall-back directory, for this user alone, if ``runtime_dir`` is it. ``ConfigError`` if it is not ours.

    Others are made when they are needed, with the modes that they should have.
    """
    uid = os.geteuid()
    if runtime_dir != fallback_dir(uid):
        return
    try:
        runtime_dir.mkdir(mode=0o700)
    except FileExistsError:
        if fault := _fault(runtime_dir, uid, follow=False):
            raise ConfigError(f"cannot use {runtime_dir}: {fault}", _ELSEWHERE) from None
    except OSError as error:
        raise ConfigError(f"cannot make {runtime_dir}: {error.strerror}", _ELSEWHERE) from error


def find_socket(
    explicit: str | os.PathLike[str] | None = None,
    instance: str | None = None,
    environ: Mapping[str, str] = os.environ,
    uid: int | None = None,
) -> Path:
    """The socket to connect to.

    ``explicit``; else ``$SHMD_SOCKET``, unless an ``instance`` is asked for; else the first that exists in the places
    of this user, or ``DaemonUnavailable``, which says where it looked. The first two need not exist: connecting will
    tell.
    """
    if explicit is not None:
        return Path(explicit)
    if instance is None and environ.get("SHMD_SOCKET"):
        return Path(environ["SHMD_SOCKET"])
    wanted = names.check_instance(instance or DEFAULT_INSTANCE)
    searched = places(environ, uid)
    sockets = [instance_dir(place.directory, wanted) / SOCKET_NAME for place in searched if place.fault is None]
    for socket in sockets:
        if _is_there(socket):
            return socket
    left_out = [f"left out {place.directory}: {place.fault}" for place in searched if place.fault and place.mentioned]
    unset = [f"${name} is not set" for name in ("SHMD_SOCKET", "XDG_RUNTIME_DIR") if not environ.get(name)]
    raise DaemonUnavailable(
        "; ".join([f"no shmd found: looked at {', '.join(map(str, sockets))}", *left_out, *unset]),
        _how_to_start(wanted, environ, uid),
    )


def how_to_start(socket: Path, uid: int | None = None) -> str:
    """What to do about a ``socket`` that is not there, or on which nobody listens."""
    if socket.parent == SYSTEM_DIR and (os.geteuid() if uid is None else uid) != _ROOT_UID:
        return "have root start the system's, or start one of your own with: shmd serve"
    return f"start one with: shmd serve --socket {socket}"


_ELSEWHERE: Final = "choose another for both sides: shmd serve --runtime-dir DIR, and SHMD_SOCKET=DIR/control.sock"


def _how_to_start(instance: str, environ: Mapping[str, str], uid: int | None) -> str:
    """A command after which the same look would find a socket."""
    uid = os.geteuid() if uid is None else uid
    home = default_runtime_dir(environ, uid)
    if home == fallback_dir(uid) and home.exists() and _fault(home, uid, follow=False):
        return _ELSEWHERE
    option = "" if instance == DEFAULT_INSTANCE else f" --instance {instance}"
    return f"start one with: shmd serve{option}, which listens at {instance_dir(home, instance) / SOCKET_NAME}"


def _is_there(socket: Path) -> bool:
    """Also if we may not see it: connecting will tell that."""
    try:
        socket.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _announced(environ: Mapping[str, str], uid: int) -> Iterator[Place]:
    """By $XDG_RUNTIME_DIR. After ``su`` or ``sudo -E`` it is another user's."""
    if announced := environ.get("XDG_RUNTIME_DIR"):
        directory = Path(announced)
        yield Place(directory / "shmd", _fault(directory, uid) if directory.is_absolute() else "it is a relative path")


def _users_own(uid: int) -> Iterator[Place]:
    """Where nothing, or the wrong thing, was announced."""
    login = USERS_DIR / str(uid)
    yield Place(login / "shmd", _fault(login, uid), mentioned=False)
    fallback = fallback_dir(uid)
    yield Place(fallback, _fault(fallback, uid, follow=False) if os.path.lexists(fallback) else None)


def _fault(directory: Path, uid: int, *, follow: bool = True) -> str | None:
    """Why ``directory`` is not one that only ``uid`` can put things into; None if it is.

    Where others may make links, one is not followed: it could lead to a directory of the user's that holds a socket of
    somebody else's choice.
    """
    try:
        found = directory.stat() if follow else directory.lstat()
    except OSError as error:
        return error.strerror or str(error)
    if not stat.S_ISDIR(found.st_mode):
        return "it is not a directory"
    if found.st_uid != uid:
        return f"it belongs to uid {found.st_uid}"
    if found.st_mode & _WRITABLE_BY_OTHERS:
        return f"others may write to it (mode {stat.S_IMODE(found.st_mode):04o})"
    return None
