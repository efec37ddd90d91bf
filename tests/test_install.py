"""The system's daemon, installed as the README says, on a systemd that was never told of it."""

from __future__ import annotations

import re
import shutil
import sysconfig
from pathlib import Path
from typing import Final

import pytest

import shmd
from tests import booted_systemd

ROOT: Final = Path(__file__).parent.parent
NEEDED: Final = ("click", "msgpack", "msgspec", "sysv_ipc*", "uvloop", "typing_extensions.py")
"""What pip would install from the network, which there is none inside."""
SHMD: Final = '#!/bin/sh\nPYTHONPATH=/opt/shmd/lib exec /usr/bin/python3 -m shmd "$@"\n'

SCRIPT: Final = r"""
rm -rf /etc/sysusers.d                      # a plain Debian 12 has none
getent passwd shmd && exit 76
mkdir -p /opt/shmd/bin; cp -r /opt/shmd-test/lib /opt/shmd/lib; cp /opt/shmd-test/shmd /opt/shmd/bin
PYTHONPATH=/opt/shmd/lib /usr/bin/python3 -c 'import click, msgpack, msgspec, sysv_ipc, uvloop, shmd._core' || exit 77
cp -r /opt/shmd-test/source /root/source; cd /root/source
make install-units || { systemctl status shmd.service; exit 1; }
set -e
as() { user=$1; shift; runuser -u "$user" -- env -i PATH="$PATH" HOME=/nonexistent "$@"; }
echo 1 | as nobody shmd pub t --mode 666
echo "daemon: $(ps -o user= -p "$(systemctl show -P MainPID shmd.service)")"
echo "record: $(as daemon shmd sub t --start all --count 1)"
as nobody /usr/bin/python3 - <<'END'
import socket
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as rude:
    rude.connect("/run/shmd/control.sock")
    try:
        for _ in range(99):
            rude.send(b"x")
            rude.recv(65536)
    except OSError:
        pass
END
make install-units                          # once more, as for an upgrade
systemctl stop shmd.service shmd.socket
journalctl --sync
journalctl -t shmd -o cat | sed 's/^/log: /'
journalctl -t shmd -p warning -o cat | sed 's/^/warning: /'
make uninstall-system
test ! -e /usr/local/bin/shmd
"""


def test_readme_names_the_command_and_make_has_it() -> None:
    section = (ROOT / "README.md").read_text().partition("## As a system service")[2].partition("\n## ")[0]
    assert re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL) == ["make install-system\n"]
    recipe = (ROOT / "Makefile").read_text().partition("\ninstall-system:")[2].partition("\n\n")[0]
    assert recipe.rstrip().endswith("$(MAKE) --no-print-directory install-units")


def test_installation_serves_every_user_and_logs_to_the_journal(tmp_path: Path) -> None:
    packages = Path(sysconfig.get_path("platlib"))
    (tmp_path / "lib").mkdir()
    for pattern in NEEDED:
        for found in packages.glob(pattern):
            copy = shutil.copytree if found.is_dir() else shutil.copy
            copy(found, tmp_path / "lib" / found.name)
    shutil.copytree(Path(shmd.__file__).parent, tmp_path / "lib" / "shmd")
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(ROOT / "Makefile", source)
    shutil.copytree(ROOT / "systemd", source / "systemd")
    (tmp_path / "shmd").write_text(SHMD)
    (tmp_path / "shmd").chmod(0o755)
    status, output = booted_systemd.run(tmp_path, SCRIPT, {})
    if status == 77:
        pytest.skip("the system's Python cannot import what this one has installed")
    assert status == 0, output
    lines = output.splitlines()
    assert "daemon: shmd" in lines
    assert "record: 1" in lines
    log = [line.removeprefix("log: ") for line in lines if line.startswith("log: ")]
    warnings = [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]
    assert "listening on /run/shmd/control.sock" in log
    assert any(line.startswith("stopping: it got SIGTERM; 1 topics and 0 segments stay") for line in log)
    assert any("hung up on" in line for line in warnings)
    assert set(warnings) < set(log)
    assert not any("listening" in line for line in warnings)
