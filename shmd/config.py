"""What a daemon may use up, and where it lives; ``places`` says where that is unless somebody chose.

An instance is a name. Its directory holds its socket and its lock; the default instance's is the runtime directory
itself, another's a directory of its name below it. The configuration file is TOML, with the fields of ``DaemonConfig``
as its keys:

    instance = "trading"
    total_bytes = "16GiB"
    clients_max = 2000
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from shmd import limits, names, units
from shmd.errors import ConfigError, InvalidName, InvalidOption
from shmd.places import DEFAULT_INSTANCE, SOCKET_NAME, default_runtime_dir, instance_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SYSTEM_STATE_DIR: Final = Path("/var/lib/shmd")
_LOCK_NAME: Final = "lock"
_ROOT_UID: Final = 0


def default_state_dir(environ: Mapping[str, str] = os.environ, uid: int | None = None) -> Path:
    """``$STATE_DIRECTORY`` (systemd's); else ``$XDG_STATE_HOME/shmd``, or ``~/.local/state/shmd``, for a user, and
    ``/var/lib/shmd`` for root.

    What ``su`` and ``runuser`` leave of another user's environment does not count.
    """
    if environ.get("STATE_DIRECTORY"):
        return Path(environ["STATE_DIRECTORY"].partition(":")[0])
    uid = os.getuid() if uid is None else uid
    if uid == _ROOT_UID:
        return SYSTEM_STATE_DIR
    if (announced := environ.get("XDG_STATE_HOME")) and not _is_anothers(Path(announced), uid):
        return Path(announced) / "shmd"
    for home in filter(None, (environ.get("HOME"), _home_of(uid))):
        if not _is_anothers(Path(home), uid):
            return Path(home) / ".local" / "state" / "shmd"
    return SYSTEM_STATE_DIR.with_name(f"shmd-{uid}") if _is_anothers(SYSTEM_STATE_DIR, uid) else SYSTEM_STATE_DIR


def instance_id(instance: str, uid: int) -> bytes:
    """The 16 bytes that mark an instance's segments: the same whenever this user starts it again."""
    import hashlib  # which a client does without, and OpenSSL with it

    return hashlib.blake2b(f"shmd:{uid}:{instance}".encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """All that can be set about a daemon. ``ConfigError`` for a value that cannot be."""

    instance: str = DEFAULT_INSTANCE
    runtime_dir: Path = field(default_factory=default_runtime_dir)
    socket_path: Path = Path()
    """Where to listen; by default ``control.sock`` in the instance's directory."""
    socket_mode: int = 0o666
    """Who may connect. What a connected client may do is decided topic by topic."""
    state_dir: Path = Path()
    """Holds the segments that are files, so that they survive a reboot; made when it is needed. By default that of the
    system or the user, but ``state`` in a ``runtime_dir`` that is neither's.
    """
    total_bytes: int = limits.TOTAL_BYTES_DEFAULT
    """All segments in memory together."""
    file_bytes: int = limits.FILE_BYTES_DEFAULT
    """All segments that are files together."""
    topics_max: int = limits.TOPICS_MAX
    clients_max: int = limits.CLIENTS_MAX
    clients_per_uid_max: int = limits.CLIENTS_PER_UID_MAX
    ephemeral: bool = False
    """Leave nothing behind: when the daemon is stopped, its topics go, whatever their lifetimes say."""

    def __post_init__(self) -> None:
        for name, convert in _FIELDS.items():
            try:
                value = convert(getattr(self, name))
            except (InvalidName, InvalidOption, TypeError, ValueError) as error:
                raise ConfigError(
                    f"{name}: {getattr(error, 'message', error)}", getattr(error, "hint", None)
                ) from error
            object.__setattr__(self, name, value)
        if self.socket_path == Path():
            object.__setattr__(self, "socket_path", self.instance_dir / SOCKET_NAME)
        if self.state_dir == Path():
            usual = self.runtime_dir == default_runtime_dir()
            object.__setattr__(self, "state_dir", default_state_dir() if usual else self.runtime_dir / "state")

    @property
    def instance_dir(self) -> Path:
        """Holds what belongs to this instance alone."""
        return instance_dir(self.runtime_dir, self.instance)

    @property
    def instance_state_dir(self) -> Path:
        """The same for what survives a reboot."""
        return instance_dir(self.state_dir, self.instance)

    @property
    def lock_path(self) -> Path:
        """Locked (flock) by the one daemon that runs this instance."""
        return self.instance_dir / _LOCK_NAME

    def instance_id(self) -> bytes:
        """``instance_id`` of this instance, run by this process's user."""
        return instance_id(self.instance, os.getuid())

    @classmethod
    def load(cls, path: Path, **overrides: Any) -> Self:
        """From a TOML file; ``overrides`` that are not None replace what it says.

        ``ConfigError`` names the file, and the key if one is to blame.
        """
        import tomllib  # not needed without a file

        try:
            with path.open("rb") as file:
                table = tomllib.load(file)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}") from error
        unknown = sorted(table.keys() - _FIELDS.keys())
        if unknown:
            raise ConfigError(f"{path}: unknown key {unknown[0]!r}", f"known are {', '.join(_FIELDS)}")
        try:
            cls(**table)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.message}", error.hint) from error
        return cls(**table | {key: value for key, value in overrides.items() if value is not None})


def _is_anothers(directory: Path, uid: int) -> bool:
    """What is not there is nobody's; what may not be seen is another's."""
    try:
        return directory.stat().st_uid != uid
    except PermissionError:
        return True
    except OSError:
        return False


def _home_of(uid: int) -> str | None:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return None


def _count(value: int) -> int:
    if type(value) is int and value > 0:
        return value
    raise InvalidOption(f"{value!r} is not a number of things", "an integer from 1")


def _topics(value: int) -> int:
    if _count(value) <= limits.TOPICS_MAX:
        return value
    raise InvalidOption(f"{value} topics are more than a roster has rows for", f"at most {limits.TOPICS_MAX}")


def _state_dir(value: str | os.PathLike[str]) -> Path:
    path = Path(value)
    if len(os.fsencode(path)) <= limits.STATE_DIR_BYTES_MAX:
        return path
    raise InvalidOption(f"{path} is too long a path", f"at most {limits.STATE_DIR_BYTES_MAX} bytes")


def _flag(value: bool) -> bool:
    if isinstance(value, bool):
        return value
    raise InvalidOption(f"{value!r} is neither true nor false", "leave the quotes out")


def _mode(value: int | str) -> int:
    """Octal text, as people write modes; a TOML file can also say 0o660."""
    number = int(value, 8) if isinstance(value, str) else value
    if type(number) is int and 0 <= number <= 0o777:
        return number
    raise InvalidOption(f"{value!r} is not a mode", 'write it like "0660"')


_FIELDS: Final[Mapping[str, Callable[[Any], object]]] = {
    "instance": names.check_instance,
    "runtime_dir": Path,
    "socket_path": Path,
    "socket_mode": _mode,
    "state_dir": _state_dir,
    "total_bytes": units.parse_size,
    "file_bytes": units.parse_size,
    "topics_max": _topics,
    "clients_max": _count,
    "clients_per_uid_max": _count,
    "ephemeral": _flag,
}
"""Each field of ``DaemonConfig``, and what checks and converts it."""
