"""What the cgroups and the host leave: read from hierarchies that are made up, of both versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from shmd import limits, memory, policy
from shmd.errors import LimitExceeded
from shmd.memory import Bound
from shmd.shortage import SEGMENT, Wish, advice

if TYPE_CHECKING:
    from pathlib import Path

MIB = limits.MIB
TOPIC = Wish("the topic", policy.largest_capacity)


class Host:
    """A made-up /proc, and cgroup hierarchies to go with it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc = root / "proc"
        self._mounts: list[str] = []
        self._cgroups: list[str] = []
        (self.proc / "self").mkdir(parents=True)
        self.available(1024 * MIB, total_bytes=2048 * MIB)

    def available(self, size_bytes: int, *, total_bytes: int) -> None:
        text = f"MemTotal: {total_bytes // 1024:>12} kB\nMemAvailable: {size_bytes // 1024:>8} kB\nHugePages_Total: 0\n"
        (self.proc / "meminfo").write_text(text)

    def mount(self, kind: str, options: str, cgroup: str, *, root: str = "/", point: str | None = None) -> Path:
        """Mount a hierarchy, in which this process is in ``cgroup``: where it is mounted."""
        mounted = self.root / (point or kind)
        mounted.mkdir()
        escaped = str(mounted).replace(" ", r"\040")
        self._mounts.append(f"35 31 0:32 {root} {escaped} rw,relatime shared:9 - {kind} {kind} {options}\n")
        self._cgroups.append(f"0::{cgroup}\n" if kind == "cgroup2" else f"4:cpu,memory:{cgroup}\n")
        (self.proc / "self/mountinfo").write_text("23 1 8:1 / / rw - ext4 /dev/sda rw\n" + "".join(self._mounts))
        (self.proc / "self/cgroup").write_text("9:name=systemd:/\n" + "".join(self._cgroups))
        return mounted

    def group(self, directory: Path, **files: object) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name.replace("__", ".")).write_text(f"{text}\n")
        return directory

    def bounds(self) -> list[Bound]:
        return list(memory.bounds(self.proc))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


class TestBounds:
    def test_host_is_a_bound_where_nothing_else_is(self, host: Host) -> None:
        assert host.bounds() == [Bound("the host's memory (MemTotal)", 2048 * MIB, 1024 * MIB)]

    def test_version_2_is_read_from_the_inside_out_and_max_is_no_limit(self, host: Host) -> None:
        mounted = host.mount("cgroup2", "rw", "/a.slice/b.service")
        inner = host.group(mounted / "a.slice/b.service", memory__max=64 * MIB, memory__current=40 * MIB)
        host.group(inner, memory__stat=f"anon 5\ninactive_file {7 * MIB}\nactive_file {3 * MIB}\nshmem 999")
        host.group(mounted / "a.slice", memory__max=100 * MIB, memory__current=41 * MIB)
        host.group(mounted, memory__max="max", memory__current=900 * MIB)
        first, second, last = host.bounds()
        assert first == Bound(f"memory.max of {inner}", 64 * MIB, 34 * MIB, inner / "memory.max")
        assert (second.limit_bytes, second.free_bytes) == (100 * MIB, 59 * MIB)
        assert last.path is None

    def test_version_1_is_read_and_its_largest_number_is_no_limit(self, host: Host) -> None:
        mounted = host.mount("cgroup", "rw,memory", "/a")
        inner = host.group(mounted / "a", memory__limit_in_bytes=64 * MIB, memory__usage_in_bytes=40 * MIB)
        host.group(inner, memory__stat=f"inactive_file {MIB}\ntotal_inactive_file {2 * MIB}\ntotal_active_file 0")
        host.group(mounted, memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=1)
        first, _ = host.bounds()
        path = inner / "memory.limit_in_bytes"
        assert first == Bound(f"memory.limit_in_bytes of {inner}", 64 * MIB, 26 * MIB, path)

    def test_mount_of_another_controller_is_passed_over(self, host: Host) -> None:
        mounted = host.mount("cgroup", "rw,cpu", "/a")
        host.group(mounted / "a", memory__limit_in_bytes=1, memory__usage_in_bytes=1)
        assert len(host.bounds()) == 1

    @pytest.mark.parametrize(
        ("root", "cgroup", "below"),
        [
            ("/box/1", "/box/1/a", "a"),
            ("/box/1", "/box/1", "."),
            ("/", "/../other", "."),
            ("/box/1", "/elsewhere", "."),
        ],
    )
    def test_group_is_found_below_what_is_mounted(self, host: Host, root: str, cgroup: str, below: str) -> None:
        mounted = host.mount("cgroup2", "rw", cgroup, root=root, point="a b")
        host.group(mounted / below, memory__max=64 * MIB, memory__current=0)
        assert [bound.limit_bytes for bound in host.bounds()] == [64 * MIB, 2048 * MIB]

    @pytest.mark.parametrize("text", ["", "-1", "12x", "9" * 30, "1 2", "\u0661"])
    def test_what_is_no_number_is_no_limit(self, host: Host, text: str) -> None:
        mounted = host.mount("cgroup2", "rw", "/")
        host.group(mounted, memory__max=text, memory__current=0)
        assert len(host.bounds()) == 1

    def test_usage_that_is_no_number_and_cache_beyond_usage_are_not_believed(self, host: Host) -> None:
        mounted = host.mount("cgroup2", "rw", "/")
        host.group(mounted, memory__max=MIB, memory__current=5, memory__stat="inactive_file 99999\nactive_file nan")
        assert host.bounds()[0].free_bytes == MIB
        host.group(mounted, memory__current="?")
        assert len(host.bounds()) == 1

    def test_damaged_tables_are_no_limits(self, host: Host) -> None:
        (host.proc / "self/mountinfo").write_bytes(b"\n - \n35 - cgroup2\nx x x x - cgroup2 a b\n\xff\xfe - \xff\n")
        (host.proc / "self/cgroup").write_bytes(b"0\n0::\n::\n0::/a\n4:memory\n\xff")
        (host.proc / "meminfo").write_text("MemTotal: many kB\nMemAvailable:\n")
        assert host.bounds() == []
        memory.check((1 << 60,), SEGMENT, host.proc)

    def test_this_process_has_bounds(self) -> None:
        assert all(bound.limit_bytes > 0 for bound in memory.bounds())


class TestCheck:
    def test_error_names_limit_value_largest_size_and_command(self, host: Host) -> None:
        mounted = host.mount("cgroup2", "rw", "/a")
        inner = host.group(mounted / "a", memory__max=100 * MIB, memory__current=10 * MIB)
        with pytest.raises(LimitExceeded) as refused:
            memory.check((128 * MIB, MIB), TOPIC, host.proc)
        assert f"memory.max of {inner}, which is {100 * MIB} bytes" in refused.value.message
        needed, room = 129 * MIB + 129 * MIB // 512, 82 * MIB
        assert refused.value.hint == (
            f"at most 64 MiB fit; raise it with: echo {100 * MIB + needed - room} > {inner}/memory.max "
            "(of a systemd unit: MemoryMax=)"
        )

    def test_largest_size_that_it_names_fits_and_the_next_does_not(self, host: Host) -> None:
        host.available(100 * MIB, total_bytes=2048 * MIB)
        with pytest.raises(LimitExceeded) as refused:
            memory.check((200 * MIB, 4096), SEGMENT, host.proc)
        assert refused.value.hint is not None
        largest = int(refused.value.hint.split()[2])
        memory.check((largest, 4096), SEGMENT, host.proc)
        with pytest.raises(LimitExceeded):
            memory.check((largest + MIB, 4096), SEGMENT, host.proc)

    def test_tightest_bound_counts_and_the_host_has_no_command(self, host: Host) -> None:
        mounted = host.mount("cgroup2", "rw", "/")
        host.group(mounted, memory__max=100 * MIB, memory__current=0)
        host.available(9 * MIB, total_bytes=2048 * MIB)
        with pytest.raises(
            LimitExceeded, match=r"left by the host's memory.*\(at most 512 KiB fit; free memory on this"
        ):
            memory.check((50 * MIB,), TOPIC, host.proc)
        memory.check((MIB // 2,), TOPIC, host.proc)

    def test_nothing_fits_where_nothing_is_left(self, host: Host) -> None:
        host.available(0, total_bytes=2048 * MIB)
        with pytest.raises(LimitExceeded, match=r"and 0 are left .*no size fits"):
            memory.check((4096,), TOPIC, host.proc)

    def test_claims_of_others_count_until_they_end(self, host: Host) -> None:
        host.available(40 * MIB, total_bytes=2048 * MIB)
        with memory.claim(20 * MIB, host.proc):
            with pytest.raises(LimitExceeded, match="memory ran out meanwhile"), memory.claim(20 * MIB, host.proc):
                raise AssertionError
            with pytest.raises(LimitExceeded):
                memory.check((20 * MIB,), SEGMENT, host.proc)
            with memory.claim(10 * MIB, host.proc):
                pass
        memory.check((20 * MIB,), SEGMENT, host.proc)


class TestAdvice:
    def test_advice_names_an_alternative_if_there_is_one(self) -> None:
        wish = Wish("the segment", lambda room: room, 'backing="file"')
        assert advice(wish, MIB, "do this") == 'at most 1 MiB fit; do this; or use backing="file"'

    def test_advice_never_rounds_up(self) -> None:
        assert advice(SEGMENT, MIB + 1, "do this") == f"at most {MIB + 1} bytes fit; do this"
