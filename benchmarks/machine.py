"""Where a run was made: figures without this say nothing."""

from __future__ import annotations

import datetime
import os
import platform
import resource
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("shmd", "msgpack", "uvloop", "pyzmq")


def facts() -> dict[str, Any]:
    """Cores, kernel, Python, package versions, date."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


@dataclass(frozen=True)
class Load:
    """What all CPUs have done since boot, and what this process and its children have, in seconds (proc_stat(5))."""

    total_s: float
    busy_s: float
    stolen_s: float
    own_s: float

    @classmethod
    def now(cls) -> Load:
        """Children count once they have ended."""
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        user, nice, system, idle, iowait, irq, softirq, stolen = (
            int(word) / os.sysconf("SC_CLK_TCK") for word in words
        )
        busy = user + nice + system + irq + softirq
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        own = sum(usage.ru_utime + usage.ru_stime for usage in used)
        return cls(busy + idle + iowait + stolen, busy, stolen, own)

    def disturbance_since(self, before: Load) -> dict[str, float]:
        """Percent of all CPU time that the hypervisor gave away, and that other processes here took, meanwhile."""
        total = max(self.total_s - before.total_s, 1e-9)
        stolen = self.stolen_s - before.stolen_s
        others = self.busy_s - before.busy_s - (self.own_s - before.own_s)
        return {"stolen_percent": 100 * stolen / total, "others_percent": 100 * max(others, 0.0) / total}


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
