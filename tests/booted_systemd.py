"""A throw-away systemd: booted by systemd-nspawn over an overlay of this machine's own root, gone when it ends.

Everything it writes goes to memory. It has namespaces of its own for IPC, processes, mounts and the network. One
script runs in it, as a service; its status and output are what ``run`` returns.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

BOOT_TIMEOUT_S = 300
_INSIDE = "/opt/shmd-test"

_BOOT = r"""
set -eu
directory=$1 name=$2 stage=${3:-outside}
cgroups=$(awk '$3 == "cgroup2" {print $2; exit}' /proc/mounts)
if [ "$stage" = outside ]; then
    # A group of its own, so that nspawn moves nothing else. It goes when everything in it has ended.
    if [ -n "$cgroups" ]; then mkdir -p "$cgroups/$name"; echo $$ > "$cgroups/$name/cgroup.procs"; fi
    status=0
    unshare --mount --propagation private sh "$0" "$directory" "$name" inside </dev/null || status=$?
    if [ -n "$cgroups" ]; then
        echo $$ > "$cgroups/cgroup.procs"
        find "$cgroups/$name" -depth -type d -exec rmdir {} + 2>/dev/null || true
    fi
    exit $status
fi
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run  # nspawn refuses one that is on a disk
mkdir /run/overlay; mount -t tmpfs tmpfs /run/overlay; mkdir /run/overlay/upper /run/overlay/work /run/overlay/root
root=/run/overlay/root
mount -t overlay overlay -o lowerdir=/,upperdir=/run/overlay/upper,workdir=/run/overlay/work $root
tr -d - < /proc/sys/kernel/random/uuid > $root/etc/machine-id
rm -rf $root/etc/systemd/system/*.wants  # none of the host's services
cp "$directory"/units/* $root/etc/systemd/system/
mkdir -p $root/opt/shmd-test
exec systemd-nspawn -q --register=no --keep-unit --kill-signal=SIGRTMIN+4 -M "$name" -D $root \
    --bind="$directory":/opt/shmd-test --private-network --console=pipe -b \
    systemd.unit=shmd-test.target systemd.log_target=null systemd.show_status=0 quiet
"""

_TARGET = """
[Unit]
Requires=basic.target shmd-test.service
After=basic.target
AllowIsolate=yes
"""

_SERVICE = f"""
[Unit]
After=basic.target
SuccessAction=exit-force
FailureAction=exit-force

[Service]
Type=oneshot
ExecStart=/bin/sh {_INSIDE}/script
StandardOutput=file:{_INSIDE}/output
StandardError=inherit
TimeoutStartSec={BOOT_TIMEOUT_S}
"""


def run(directory: Path, script: str, units: dict[str, str]) -> tuple[int, str]:
    """Boot, with ``units`` beside the system's own, run the shell script there, and return its status and output.

    ``directory`` is /opt/shmd-test inside. Skips the test where no systemd can be booted.
    """
    if os.geteuid() != 0 or shutil.which("systemd-nspawn") is None:
        pytest.skip("booting a systemd takes root and systemd-nspawn (apt-get install systemd-container systemd-sysv)")
    (directory / "units").mkdir()
    for name, text in {"shmd-test.target": _TARGET, "shmd-test.service": _SERVICE, **units}.items():
        (directory / "units" / name).write_text(text)
    (directory / "script").write_text(script)
    (directory / "output").touch()
    (directory / "boot").write_text(_BOOT)
    command = ["sh", str(directory / "boot"), str(directory), f"shmd-test-{os.getpid()}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOOT_TIMEOUT_S)
    output = (directory / "output").read_text()
    if not output and done.returncode != 0:
        pytest.skip(f"no systemd can be booted here: {done.stderr.strip()[-200:]}")
    return done.returncode, output
