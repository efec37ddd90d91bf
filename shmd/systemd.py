"""What a service tells its manager, and what the manager hands to the service: sd_notify(3) and sd_listen_fds(3).

Small enough not to need libsystemd. Everything follows from environment variables, so without a service manager all of
it quietly does nothing.
"""

from __future__ import annotations

import array
import fcntl
import logging
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shmd import limits
from shmd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping, Sequence

logger = logging.getLogger(__name__)

_LISTEN_FDS_START: Final = 3
_LISTEN_FDS_MAX: Final = limits.STORED_DESCRIPTORS_MAX + 16
"""All that may be stored, and some sockets. More is not a service manager's handiwork."""
_FD_NAME_CHARS_MAX: Final = 255
_SEND_TIMEOUT_S: Final = 1.0
"""A manager that does not take its mail for so long is stuck; the service goes on without it."""
READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
WATCHDOG: Final = "WATCHDOG=1"


@dataclass(frozen=True, slots=True)
class InheritedDescriptor:
    """A descriptor from the service manager: a listening socket, or one stored earlier with ``store_descriptors``."""

    fd: int
    name: str
    """FileDescriptorName= of the socket unit, or the name given when storing; "unknown" if it has none."""


def notify(*states: str, fds: Sequence[int] = (), environ: Mapping[str, str] = os.environ) -> bool:
    """Send ``states`` (``READY``, ``status("…")``, "MAINPID=1") in one message. Whether it was sent.

    False without a service manager, and, with a warning in the log, if it cannot be reached: no reason to stop serving.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address[0] == "@":
        address = "\0" + address[1:]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(_SEND_TIMEOUT_S)
            sock.connect(address)
            sock.sendmsg(["\n".join(states).encode()], rights, socket.MSG_NOSIGNAL)
    except OSError as error:
        logger.warning("cannot notify the service manager at %r: %s", environ["NOTIFY_SOCKET"], error)
        return False
    return True


def status(text: str) -> str:
    """The state that shows ``text`` in ``systemctl status``: its first line."""
    return "STATUS=" + text.partition("\n")[0]


def main_pid(pid: int) -> str:
    """The state that names another process as the service's main one."""
    return f"MAINPID={pid}"


def store_descriptors(name: str, fds: Sequence[int], environ: Mapping[str, str] = os.environ) -> bool:
    """Leave duplicates of ``fds`` with the manager, to get them back by ``name`` after a restart. Whether it was sent.

    At most as many as FileDescriptorStoreMax= says are kept; the manager drops the rest silently. ``ConfigError`` for a
    name it would not take.
    """
    return notify("FDSTORE=1", f"FDNAME={_check_fd_name(name)}", fds=fds, environ=environ)


def remove_descriptors(name: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Let the manager close what was stored under ``name``. Whether it was sent."""
    return notify("FDSTOREREMOVE=1", f"FDNAME={_check_fd_name(name)}", environ=environ)


def inherited_descriptors(environ: MutableMapping[str, str] = os.environ) -> list[InheritedDescriptor]:
    """What the service manager passed to this very process, once: the variables are removed, for our children's sake.

    Programs that this one executes do not inherit the descriptors. ``ConfigError`` if the variables make no sense.
    """
    pid, count, names = (environ.pop(name, None) for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid is None or count is None or _integer("LISTEN_PID", pid) != os.getpid():
        return []
    fds = range(_LISTEN_FDS_START, _LISTEN_FDS_START + _integer("LISTEN_FDS", count, _LISTEN_FDS_MAX))
    named = names.split(":") if names else ["unknown"] * len(fds)
    if len(named) != len(fds):
        raise ConfigError(f"LISTEN_FDNAMES has {len(named)} names for {len(fds)} descriptors")
    _set_cloexec(fds)
    return [InheritedDescriptor(fd, name) for fd, name in zip(fds, named, strict=True)]


def watchdog_interval_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """How often to send ``WATCHDOG``: half of what the manager tolerates, as it recommends. None: it does not watch."""
    timeout = environ.get("WATCHDOG_USEC")
    if timeout is None or _integer("WATCHDOG_PID", environ.get("WATCHDOG_PID", str(os.getpid()))) != os.getpid():
        return None
    return _integer("WATCHDOG_USEC", timeout) / 1e6 / 2 or None


def _check_fd_name(name: str) -> str:
    if 0 < len(name) <= _FD_NAME_CHARS_MAX and name.isascii() and name.isprintable() and ":" not in name:
        return name
    raise ConfigError(
        f"{name!r} cannot name a descriptor", f"1 to {_FD_NAME_CHARS_MAX} printable ASCII characters without colons"
    )


def _set_cloexec(fds: Iterable[int]) -> None:
    for fd in fds:
        try:
            fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.fcntl(fd, fcntl.F_GETFD) | fcntl.FD_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"LISTEN_FDS promises descriptor {fd}, but it is not open") from error


def _integer(variable: str, text: str, highest: int = 2**63) -> int:
    if text.isascii() and text.isdecimal() and len(text) <= len(str(highest)) and int(text) <= highest:
        return int(text)
    raise ConfigError(f"the environment variable {variable} is {text!r}", f"a number from 0 to {highest} is expected")
