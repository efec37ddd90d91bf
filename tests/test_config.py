"""Configuration from arguments and files."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from pathlib import Path

import pytest

from shmd import config, limits
from shmd.config import DaemonConfig, default_state_dir, instance_id
from shmd.errors import ConfigError
from tests.children import needs_root


class TestPlaces:
    def test_default_instance_uses_the_runtime_directory_itself(self) -> None:
        made = DaemonConfig(runtime_dir=Path("/r"))
        assert made.instance_dir == Path("/r")
        assert made.socket_path == Path("/r/control.sock")
        assert made.lock_path == Path("/r/lock")

    def test_other_instance_uses_a_directory_below(self) -> None:
        made = DaemonConfig(runtime_dir=Path("/r"), instance="trading")
        assert made.instance_dir == Path("/r/trading")
        assert made.socket_path == Path("/r/trading/control.sock")
        assert made.lock_path == Path("/r/trading/lock")

    def test_socket_may_be_elsewhere_than_the_lock(self) -> None:
        made = DaemonConfig(runtime_dir=Path("/r"), socket_path=Path("/s/sock"))
        assert (made.socket_path, made.lock_path) == (Path("/s/sock"), Path("/r/lock"))

    def test_replaced_instance_keeps_a_socket_that_was_chosen(self) -> None:
        made = dataclasses.replace(DaemonConfig(socket_path=Path("/s/sock")), instance="other")
        assert made.socket_path == Path("/s/sock")


class TestStateDirectory:
    """Of the user, whatever su left of another's environment."""

    UID = os.geteuid() or 62_998

    def own(self, path: Path, uid: int) -> Path:
        path.mkdir()
        if os.geteuid() == 0:
            os.chown(path, uid, -1)
        return path

    def test_it_lies_in_the_users_home(self, tmp_path: Path) -> None:
        home, state = self.own(tmp_path / "home", self.UID), self.own(tmp_path / "state", self.UID)
        environ = {"HOME": str(home)}
        assert default_state_dir(environ, self.UID) == home / ".local" / "state" / "shmd"
        assert default_state_dir(environ | {"XDG_STATE_HOME": str(state)}, self.UID) == state / "shmd"

    @needs_root
    def test_it_does_not_lie_in_anothers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        other = self.own(tmp_path / "other", 62_999)
        environ = {"HOME": str(other), "XDG_STATE_HOME": str(other)}
        assert default_state_dir(environ, self.UID) == Path("/var/lib/shmd")
        monkeypatch.setattr(config, "SYSTEM_STATE_DIR", other)
        assert default_state_dir(environ, self.UID) == tmp_path / f"shmd-{self.UID}"


class TestInstanceId:
    def test_id_is_the_same_every_time(self) -> None:
        assert instance_id("default", 1000).hex() == "3f6655e22f02b257f40afd64ba58c0ed"
        assert DaemonConfig().instance_id() == instance_id("default", os.getuid())

    def test_id_differs_by_name_and_by_user(self) -> None:
        made = {instance_id(name, uid) for name in ("a", "b", "1:a") for uid in (0, 1)}
        assert len(made) == 6


class TestValues:
    def test_defaults_are_the_limits(self) -> None:
        made = DaemonConfig()
        assert made.instance == "default"
        assert made.total_bytes == limits.TOTAL_BYTES_DEFAULT
        assert made.clients_max == limits.CLIENTS_MAX
        assert made.clients_per_uid_max == limits.CLIENTS_PER_UID_MAX
        assert made.topics_max == limits.TOPICS_MAX
        assert made.socket_mode == 0o666

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("instance", "no/slash"),
            ("instance", ""),
            ("instance", 5),
            ("total_bytes", "much"),
            ("total_bytes", -1),
            ("topics_max", 0),
            ("topics_max", True),
            ("clients_max", "many"),
            ("clients_per_uid_max", 1.5),
            ("runtime_dir", 5),
            ("socket_path", None),
            ("socket_mode", "rw"),
            ("socket_mode", 0o1777),
            ("socket_mode", True),
        ],
    )
    def test_value_that_cannot_be_names_its_field(self, field: str, value: object) -> None:
        with pytest.raises(ConfigError, match=f"^{field}: "):
            DaemonConfig(**{field: value})  # type: ignore[arg-type]


class TestFile:
    def test_file_sets_every_field(self, tmp_path: Path) -> None:
        file = tmp_path / "shmd.toml"
        file.write_text(
            """
            instance = "trading"
            runtime_dir = "/r"
            socket_path = "/s/sock"
            socket_mode = "0660"
            state_dir = "/v"
            total_bytes = "16GiB"
            file_bytes = "1TiB"
            topics_max = 10
            clients_max = 2000
            clients_per_uid_max = 100
            ephemeral = true
            """
        )
        assert DaemonConfig.load(file) == DaemonConfig(
            instance="trading",
            runtime_dir=Path("/r"),
            socket_path=Path("/s/sock"),
            socket_mode=0o660,
            state_dir=Path("/v"),
            total_bytes=16 * limits.GIB,
            file_bytes=1024 * limits.GIB,
            topics_max=10,
            clients_max=2000,
            clients_per_uid_max=100,
            ephemeral=True,
        )
        assert set(tomllib.loads(file.read_text())) == {field.name for field in dataclasses.fields(DaemonConfig)}

    def test_override_wins_over_the_file(self, tmp_path: Path) -> None:
        file = tmp_path / "shmd.toml"
        file.write_text('instance = "trading"\ntotal_bytes = "1GiB"\n')
        made = DaemonConfig.load(file, instance="other", total_bytes=None, runtime_dir=Path("/r"))
        assert (made.instance, made.total_bytes) == ("other", limits.GIB)
        assert made.socket_path == Path("/r/other/control.sock")

    def test_unknown_key_is_refused_and_the_known_ones_are_named(self, tmp_path: Path) -> None:
        file = tmp_path / "shmd.toml"
        file.write_text("clients = 5\n")
        with pytest.raises(ConfigError, match=r"shmd\.toml: unknown key 'clients'.*clients_max") as refused:
            DaemonConfig.load(file)
        assert str(file) in refused.value.message

    def test_value_that_cannot_be_names_file_and_key(self, tmp_path: Path) -> None:
        file = tmp_path / "shmd.toml"
        file.write_text('total_bytes = "much"\n')
        with pytest.raises(ConfigError, match=r"shmd\.toml: total_bytes: 'much' is not a size.*64KiB"):
            DaemonConfig.load(file)

    @pytest.mark.parametrize("content", [b"clients_max = ", b"\xff\xfe"])
    def test_file_that_is_not_toml_is_refused(self, tmp_path: Path, content: bytes) -> None:
        file = tmp_path / "shmd.toml"
        file.write_bytes(content)
        with pytest.raises(ConfigError, match="is not TOML"):
            DaemonConfig.load(file)

    def test_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"cannot read .*absent: No such file"):
            DaemonConfig.load(tmp_path / "absent")
