"""Samples of this host, straight from /proc: what the demo publishes.

Each sample is a fresh reading, taken when it is asked for: processors, memory, network interfaces, disks, and every
process, round after round. A process that ends between being listed and being read is left out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

Sample: TypeAlias = dict[str, Any]

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_SECTOR_BYTES: Final = 512
"""/proc/diskstats counts in these, whatever the disk."""


def samples(proc: Path = Path("/proc")) -> Iterator[Sample]:
    """Endless samples of the host whose /proc is ``proc``."""
    while True:
        yield from processors(_read(proc / "stat"))
        yield memory(_read(proc / "meminfo"))
        yield from interfaces(_read(proc / "net/dev"))
        yield from disks(_read(proc / "diskstats"))
        for name in filter(str.isdecimal, os.listdir(proc)):
            try:
                text = _read(proc / name / "stat")
            except (FileNotFoundError, ProcessLookupError):
                continue
            yield process(text)


def processors(text: str) -> Iterator[Sample]:
    """One sample for each processor of /proc/stat."""
    for line in text.splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, idle = (float(tick) * _TICK_S for tick in ticks[:4])
            yield {"kind": "processor", "name": name, "user_s": user + nice, "system_s": system, "idle_s": idle}


def memory(text: str) -> Sample:
    """The sample of /proc/meminfo."""
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in text.splitlines())}
    wanted = {"total_bytes": "MemTotal", "free_bytes": "MemFree", "shared_bytes": "Shmem", "cached_bytes": "Cached"}
    return {"kind": "memory"} | {ours: kib[theirs] * 1024 for ours, theirs in wanted.items() if theirs in kib}


def interfaces(text: str) -> Iterator[Sample]:
    """One sample for each network interface of /proc/net/dev."""
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        fields = [int(field) for field in rest.split()]
        yield {"kind": "interface", "name": name.strip(), "received_bytes": fields[0], "sent_bytes": fields[8]}


def disks(text: str) -> Iterator[Sample]:
    """One sample for each block device of /proc/diskstats that was ever read."""
    for line in text.splitlines():
        _major, _minor, name, reads, _merged, sectors_read, _read_ms, writes, _, sectors_written, *_ = line.split()
        if reads != "0":
            yield {
                "kind": "disk",
                "name": name,
                "reads": int(reads),
                "read_bytes": int(sectors_read) * _SECTOR_BYTES,
                "writes": int(writes),
                "written_bytes": int(sectors_written) * _SECTOR_BYTES,
            }


def process(text: str) -> Sample:
    """The sample of a /proc/PID/stat. The name is in parentheses, and may itself hold some."""
    before, _, after = text.rpartition(")")
    pid, _, name = before.partition(" (")
    fields = after.split()
    return {
        "kind": "process",
        "pid": int(pid),
        "name": name,
        "state": fields[0],
        "parent": int(fields[1]),
        "user_s": int(fields[11]) * _TICK_S,
        "system_s": int(fields[12]) * _TICK_S,
        "threads": int(fields[17]),
        "resident_bytes": int(fields[21]) * _PAGE_BYTES,
    }


def _read(path: Path) -> str:
    return path.read_text(errors="replace")
