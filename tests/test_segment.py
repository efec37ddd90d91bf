"""Segments on the real kernel: every edge of sysv_ipc closed, every error provoked for real."""

from __future__ import annotations

import errno
import gc
import os
import re
import resource
import secrets
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sysv_ipc

from shmd import limits, segment, sysv
from shmd.errors import (
    ClosedError,
    SegmentAccessDenied,
    SegmentError,
    SegmentExists,
    SegmentInvalid,
    SegmentLimit,
    SegmentNoMemory,
)
from tests.children import STRANGER_GID, STRANGER_UID, become_stranger, enter_ipc_namespace, in_child, needs_root

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = os.sysconf("SC_PAGE_SIZE")
ABSENT_ID = 2**31 - 1


@pytest.fixture
def made() -> Iterator[segment.Segment]:
    """A segment of one page, removed after the test."""
    with segment.create(PAGE) as made:
        try:
            yield made
        finally:
            segment.remove(made.id)


def mappings(shmid: int) -> list[str]:
    """Access of each of this process's mappings of the segment, such as "r--s"."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split()[1] for line in lines if "/SYSV" in line and line.split()[4] == str(shmid)]


def ids() -> set[int]:
    return {found.id for found in segment.list_segments()}


class TestCreate:
    def test_creator_gets_zero_bytes_of_its_own(self, made: segment.Segment) -> None:
        assert bytes(made.buf) == bytes(PAGE)
        found = made.stat()
        assert (found.id, found.key, found.size_bytes) == (made.id, made.key, PAGE)
        assert (found.uid, found.gid, found.cuid, found.cgid) == (os.geteuid(), os.getegid()) * 2
        assert (found.mode, found.removed, found.attachments) == (0o600, False, 1)
        assert (found.creator_pid, found.last_pid) == (os.getpid(), os.getpid())
        assert found.change_time > 0
        assert found.attach_time > 0

    def test_creator_touches_no_memory(self) -> None:
        """sysv_ipc would fill all of it with spaces, holding the GIL."""
        with segment.create(64 * limits.MIB) as made:
            segment.remove(made.id)
            assert [found.rss_bytes for found in segment.list_segments() if found.id == made.id] == [0]

    def test_size_is_the_requested_one_not_a_multiple_of_pages(self) -> None:
        with segment.create(10) as made:
            segment.remove(made.id)
            assert (made.size_bytes, len(made.buf), made.stat().size_bytes) == (10, 10, 10)

    @pytest.mark.parametrize("mode", [0o000, 0o400, 0o440, 0o640, 0o666, 0o777])
    def test_creator_writes_whatever_the_mode(self, mode: int) -> None:
        with segment.create(PAGE, mode=mode) as made:
            try:
                made.buf[0] = 1
                assert [found.mode for found in segment.list_segments() if found.id == made.id] == [mode]
            finally:
                segment.remove(made.id)

    @needs_root
    def test_unprivileged_creator_writes_what_it_may_not_attach_again(self) -> None:
        def as_stranger() -> tuple[int, int | None]:
            become_stranger()
            with segment.create(PAGE, mode=0o400) as made:
                made.buf[0] = 7
                segment.remove(made.id)
                with pytest.raises(SegmentAccessDenied) as refused:
                    segment._shmat(made.id, False)
                return made.buf[0], refused.value.errno

        assert in_child(as_stranger) == (7, errno.EACCES)

    def test_creator_chooses_the_key(self) -> None:
        key = secrets.randbelow(2**31 - 1) + 1
        with segment.create(PAGE, key=key) as made:
            try:
                assert (made.key, made.stat().key) == (key, key)
                before = ids()
                with pytest.raises(SegmentExists, match="another key") as refused:
                    segment.create(PAGE, key=key)
                assert refused.value.errno == errno.EEXIST
                assert ids() == before
            finally:
                segment.remove(made.id)

    def test_creator_tries_other_random_keys_when_one_is_taken(
        self, made: segment.Segment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        free = secrets.randbelow(2**31 - 1) + 1
        keys = iter([made.key - 1, made.key - 1, free - 1])
        monkeypatch.setattr(secrets, "randbelow", lambda _: next(keys))
        with segment.create(PAGE) as second:
            segment.remove(second.id)
            assert second.key == free

    def test_creator_gives_up_when_every_random_key_is_taken(
        self, made: segment.Segment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(secrets, "randbelow", lambda _: made.key - 1)
        with pytest.raises(SegmentExists, match=str(limits.KEY_ATTEMPTS_MAX)):
            segment.create(PAGE)

    @pytest.mark.parametrize("key", [0, -1, 2**32, 2**32 + 5, True, 1.0])
    def test_creator_cannot_use_a_key_that_would_be_truncated(self, key: int) -> None:
        before = ids()
        with pytest.raises(SegmentInvalid, match="key"):
            segment.create(PAGE, key=key)
        assert ids() == before

    @pytest.mark.parametrize("size", [0, -1, 2**63, 2**64 + 10])
    def test_creator_cannot_use_a_size_that_would_be_truncated(self, size: int) -> None:
        before = ids()
        with pytest.raises(SegmentInvalid, match="size"):
            segment.create(size)
        assert ids() == before

    def test_creator_cannot_use_more_mode_than_permission_bits(self) -> None:
        with pytest.raises(SegmentInvalid, match="mode"):
            segment.create(PAGE, mode=0o1600)

    def test_nothing_is_left_when_attaching_the_created_fails(self) -> None:
        """shmget succeeds, shmat does not find the address space: sysv_ipc forgets the segment then."""

        def short_of_address_space() -> tuple[int | None, bool]:
            resource.setrlimit(resource.RLIMIT_AS, (2**32, resource.RLIM_INFINITY))
            before = ids()
            with pytest.raises(SegmentNoMemory, match="ulimit -v") as refused:
                segment.create(2**34)
            return refused.value.errno, ids() == before

        assert in_child(short_of_address_space) == (errno.ENOMEM, True)

    @needs_root
    def test_segment_survives_creation_where_unattached_segments_vanish(self) -> None:
        def forced() -> tuple[bool, int]:
            enter_ipc_namespace(shm_rmid_forced=1)
            with segment.create(PAGE) as made:
                return segment.system_limits().shm_rmid_forced, made.stat().attachments

        assert in_child(forced) == (True, 1)


class TestLimits:
    @needs_root
    def test_segment_over_shmmax_is_refused_and_the_hint_names_it(self) -> None:
        def small() -> SegmentError:
            enter_ipc_namespace(shmmax=PAGE)
            with pytest.raises(SegmentInvalid) as refused:
                segment.create(PAGE + 1)
            return refused.value

        refused = in_child(small)
        assert refused.errno == errno.EINVAL
        assert refused.hint is not None
        assert re.search(rf"shmmax is {PAGE} bytes.*sysctl kernel.shmmax={PAGE + 1}", refused.hint)

    @needs_root
    def test_one_segment_too_many_is_refused_and_the_hint_names_shmmni(self) -> None:
        def few() -> SegmentError:
            enter_ipc_namespace(shmmni=2)
            with segment.create(PAGE), segment.create(PAGE), pytest.raises(SegmentLimit) as refused:
                segment.create(PAGE)
            return refused.value

        refused = in_child(few)
        assert refused.errno == errno.ENOSPC
        assert refused.hint == "2 segments exist and kernel.shmmni is 2; raise it with: sysctl kernel.shmmni=4"

    @needs_root
    def test_one_page_too_many_is_refused_and_the_hint_names_shmall(self) -> None:
        def little() -> SegmentError:
            enter_ipc_namespace(shmall=3)
            with segment.create(2 * PAGE), pytest.raises(SegmentLimit) as refused:
                segment.create(2 * PAGE)
            return refused.value

        refused = in_child(little)
        assert refused.errno == errno.ENOSPC
        assert refused.hint == (
            "2 pages are in use and kernel.shmall is 3: at most 4 KiB fit; raise it with: sysctl kernel.shmall=4"
        )

    @needs_root
    def test_limits_are_those_of_the_namespace(self) -> None:
        def limited() -> sysv.SystemLimits:
            enter_ipc_namespace(shmmax=8192, shmmni=7, shmall=11)
            return segment.system_limits()

        assert in_child(limited) == sysv.SystemLimits(shmmax=8192, shmmni=7, shmall=11, shm_rmid_forced=False)


class TestAttach:
    def test_reader_sees_what_the_writer_writes(self, made: segment.Segment) -> None:
        with segment.attach(made.id, readonly=True) as reader:
            made.buf[5:8] = b"abc"
            assert bytes(reader.buf[5:8]) == b"abc"
            assert (reader.id, reader.key, reader.size_bytes) == (made.id, made.key, PAGE)

    def test_reader_that_writes_gets_an_exception(self, made: segment.Segment) -> None:
        """sysv_ipc's own memoryview says "writable", and writing kills the process."""
        with segment.attach(made.id, readonly=True) as reader:
            assert reader.readonly
            assert reader.buf.readonly
            with pytest.raises(TypeError):
                reader.buf[0] = 1
            assert mappings(made.id) == ["rw-s", "r--s"]
        assert made.buf[0] == 0

    def test_second_attach_shares_the_mapping_and_the_last_close_detaches(self, made: segment.Segment) -> None:
        first = segment.attach(made.id, readonly=True)
        second = segment.attach(made.id, readonly=True)
        assert first.mapping.address == second.mapping.address
        assert mappings(made.id).count("r--s") == 1
        first.close()
        assert second.buf[0] == 0
        second.close()
        assert mappings(made.id) == ["rw-s"]
        assert made.stat().attachments == 1

    def test_ten_thousand_attaches_leave_no_mapping(self, made: segment.Segment) -> None:
        before = len(Path("/proc/self/maps").read_text().splitlines())
        for _ in range(10_000):
            with segment.attach(made.id, readonly=True) as reader:
                assert reader.buf[0] == 0
        assert made.stat().attachments == 1
        assert len(Path("/proc/self/maps").read_text().splitlines()) <= before + 8  # the allocator's own

    def test_attaching_works_after_removal_until_the_last_detach(self) -> None:
        with segment.create(PAGE) as made:
            segment.remove(made.id)
            with segment.attach(made.id, readonly=True) as reader:
                assert (reader.key, reader.stat().removed) == (0, True)
        with pytest.raises(SegmentInvalid, match="removed") as refused:
            segment.attach(made.id, readonly=True)
        assert refused.value.errno == errno.EINVAL

    def test_attaching_what_never_existed_is_refused(self) -> None:
        with pytest.raises(SegmentInvalid, match="IPC namespace") as refused:
            segment.attach(ABSENT_ID, readonly=True)
        assert refused.value.errno == errno.EINVAL

    @pytest.mark.parametrize("shmid", [-1, 2**31, 2**32, True, "1"])
    def test_attaching_an_id_that_would_be_truncated_is_refused(self, shmid: int) -> None:
        with pytest.raises(SegmentInvalid, match="id"):
            segment.attach(shmid, readonly=True)

    @needs_root
    def test_stranger_is_denied_what_the_mode_denies(self, made: segment.Segment) -> None:
        segment.set_permissions(made.id, os.getuid(), STRANGER_GID, 0o640)

        def as_stranger() -> tuple[bytes, int | None, list[str]]:
            made.close()
            become_stranger()
            with segment.attach(made.id, readonly=True) as reader:
                with pytest.raises(SegmentAccessDenied, match="read-write") as refused:
                    segment.attach(made.id, readonly=False)
                return bytes(reader.buf[:1]), refused.value.errno, mappings(made.id)

        assert in_child(as_stranger) == (b"\0", errno.EACCES, ["r--s"])

    @needs_root
    def test_attachment_whose_size_may_not_be_asked_is_given_back(
        self, made: segment.Segment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(shmid: int) -> None:
            raise SegmentAccessDenied(f"{shmid}")

        monkeypatch.setattr(segment, "stat", refuse)
        with pytest.raises(SegmentAccessDenied):
            segment.attach(made.id, readonly=True)
        assert mappings(made.id) == ["rw-s"]

    def test_attach_that_failed_in_passing_is_tried_again(
        self, made: segment.Segment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The kernel, asked why, says that it would work now."""
        real, failures = sysv_ipc.attach, iter([True, True])

        def attach(shmid: int, address: None, flags: int) -> object:
            if next(failures, False):
                raise ValueError
            return real(shmid, address, flags)

        monkeypatch.setattr(sysv_ipc, "attach", attach)
        with segment.attach(made.id, readonly=True) as reader:
            assert reader.size_bytes == PAGE

    def test_attach_that_fails_for_no_reason_is_given_up(
        self, made: segment.Segment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def attach(*_: object) -> None:
            raise ValueError

        monkeypatch.setattr(sysv_ipc, "attach", attach)
        with pytest.raises(SegmentError) as refused:
            segment.attach(made.id, readonly=True)
        assert refused.value.errno == errno.EAGAIN

    @needs_root
    def test_same_id_in_another_namespace_is_another_segment(self) -> None:
        def both() -> tuple[bool, bytes, bytes]:
            enter_ipc_namespace()
            first = segment.create(PAGE)
            first.buf[:1] = b"1"
            enter_ipc_namespace()
            with pytest.raises(SegmentInvalid):
                segment.attach(first.id, readonly=False)
            second = segment.create(PAGE)
            second.buf[:1] = b"2"
            again = segment.attach(second.id, readonly=False)
            return first.id == second.id, bytes(first.buf[:1]), bytes(again.buf[:1])

        assert in_child(both) == (True, b"1", b"2")

    def test_forked_child_detaches_its_own_copy_only(self, made: segment.Segment) -> None:
        reader = segment.attach(made.id, readonly=True)

        def child() -> tuple[int, list[str], int]:
            inherited = made.stat().attachments
            with segment.attach(made.id, readonly=True) as shared:
                same = shared.mapping.address == reader.mapping.address
            reader.close()
            return inherited, mappings(made.id), made.stat().attachments if same else -1

        assert in_child(child) == (4, ["rw-s"], 3)
        assert bytes(reader.buf[:1]) == b"\0"
        assert made.stat().attachments == 2
        reader.close()


class TestClose:
    def test_close_is_refused_while_a_view_lives_and_changes_nothing(self, made: segment.Segment) -> None:
        """sysv_ipc would detach, and the next look through the view would kill the process."""
        reader = segment.attach(made.id, readonly=True)
        view = reader.buf[2:4]
        for _ in range(2):
            with pytest.raises(BufferError):
                reader.close()
        assert not reader.closed
        assert bytes(view) == b"\0\0"
        assert reader.buf[0] == 0
        view.release()
        reader.close()
        assert mappings(made.id) == ["rw-s"]

    def test_close_releases_buf_itself(self, made: segment.Segment) -> None:
        reader = segment.attach(made.id, readonly=True)
        buf = reader.buf
        reader.close()
        with pytest.raises(ValueError, match="released"):
            buf[0]

    def test_closed_segment_cannot_be_looked_into(self, made: segment.Segment) -> None:
        reader = segment.attach(made.id, readonly=True)
        reader.close()
        reader.close()
        with pytest.raises(ClosedError):
            _ = reader.buf
        assert reader.closed
        assert "closed" in repr(reader)
        assert reader.stat().attachments == 1

    def test_share_with_a_live_view_does_not_keep_another_from_closing(self, made: segment.Segment) -> None:
        first = segment.attach(made.id, readonly=True)
        second = segment.attach(made.id, readonly=True)
        view = first.buf[:1]
        second.close()
        with pytest.raises(BufferError):
            first.close()
        view.release()
        first.close()
        assert mappings(made.id) == ["rw-s"]

    def test_dropped_segment_warns_and_detaches(self, made: segment.Segment) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            segment.attach(made.id, readonly=True)
            gc.collect()
        assert [warning.category for warning in caught] == [ResourceWarning]
        assert "unclosed <Segment" in str(caught[0].message)
        assert mappings(made.id) == ["rw-s"]

    def test_dropped_segment_with_a_live_view_stays_attached(self) -> None:
        def child() -> tuple[int, int]:
            made = segment.create(PAGE)
            shmid, view = made.id, made.buf[:1]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                del made
                gc.collect()
            view[0] = 9
            segment.remove(shmid)
            return view[0], segment.stat(shmid).attachments

        assert in_child(child) == (9, 1)


class TestPermissions:
    def test_owner_changes_owner_group_and_mode_at_once(self, made: segment.Segment) -> None:
        segment.set_permissions(made.id, os.getuid(), os.getgid(), 0o664)
        assert made.stat().mode == 0o664

    @needs_root
    def test_creator_repairs_what_the_owner_locked_it_out_of(self) -> None:
        """IPC_STAT first, as sysv_ipc does it, would be denied."""

        def repair() -> tuple[int | None, int]:
            become_stranger()
            with segment.create(PAGE) as made:
                segment.set_permissions(made.id, STRANGER_UID + 1, STRANGER_GID, 0o000)
                with pytest.raises(SegmentAccessDenied) as refused:
                    made.stat()
                segment.set_permissions(made.id, STRANGER_UID, STRANGER_GID, 0o600)
                segment.remove(made.id)
                return refused.value.errno, made.stat().uid

        assert in_child(repair) == (errno.EACCES, STRANGER_UID)

    @needs_root
    def test_stranger_can_neither_change_nor_remove(self, made: segment.Segment) -> None:
        segment.set_permissions(made.id, os.getuid(), os.getgid(), 0o666)

        def as_stranger() -> list[int | None]:
            become_stranger()
            with pytest.raises(SegmentAccessDenied, match="owner") as change:
                segment.set_permissions(made.id, STRANGER_UID, STRANGER_GID, 0o666)
            with pytest.raises(SegmentAccessDenied, match="owner") as removal:
                segment.remove(made.id)
            return [change.value.errno, removal.value.errno]

        assert in_child(as_stranger) == [errno.EPERM, errno.EPERM]
        assert (made.stat().uid, made.stat().removed) == (os.getuid(), False)

    @pytest.mark.parametrize(("uid", "gid", "mode"), [(-1, 0, 0), (2**32 - 1, 0, 0), (0, 2**32 + 5, 0), (0, 0, 0o1000)])
    def test_values_that_would_be_truncated_are_refused(
        self, made: segment.Segment, uid: int, gid: int, mode: int
    ) -> None:
        before = made.stat()
        with pytest.raises(SegmentInvalid):
            segment.set_permissions(made.id, uid, gid, mode)
        assert made.stat() == before

    def test_absent_segment_has_no_permissions_to_change(self) -> None:
        with pytest.raises(SegmentInvalid) as refused:
            segment.set_permissions(ABSENT_ID, 0, 0, 0o600)
        assert refused.value.errno == errno.EINVAL


class TestRemove:
    def test_removed_segment_goes_with_its_last_attachment(self) -> None:
        with segment.create(PAGE) as made:
            segment.remove(made.id)
            segment.remove(made.id)
            made.buf[0] = 1
            assert made.stat().removed
            assert made.stat().key == 0
        assert made.id not in ids()
        with pytest.raises(SegmentInvalid) as refused:
            segment.remove(made.id)
        assert refused.value.errno == errno.EINVAL

    def test_segment_removed_in_passing_is_reported_as_removed(
        self, made: segment.Segment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """IPC_RMID met a removal under way, and a moment later the id answers again."""

        def remove(_: int) -> None:
            raise sysv_ipc.ExistentialError

        with monkeypatch.context() as patch:
            patch.setattr(sysv_ipc, "remove_shared_memory", remove)
            with pytest.raises(SegmentError) as refused:
                segment.remove(made.id)
        assert refused.value.errno == errno.EIDRM


class TestLooking:
    def test_list_agrees_with_stat(self, made: segment.Segment) -> None:
        made.buf[0] = 1
        (listed,) = [found for found in segment.list_segments() if found.id == made.id]
        assert listed.rss_bytes == PAGE
        for name in set(sysv.SegmentStat.__slots__) - {"rss_bytes"}:
            assert getattr(listed, name) == getattr(made.stat(), name)

    @needs_root
    def test_stranger_lists_what_it_may_not_stat(self, made: segment.Segment) -> None:
        def as_stranger() -> tuple[bool, int | None]:
            become_stranger()
            with pytest.raises(SegmentAccessDenied) as refused:
                segment.stat(made.id)
            return made.id in ids(), refused.value.errno

        assert in_child(as_stranger) == (True, errno.EACCES)

    def test_list_understands_a_removed_segment(self) -> None:
        with segment.create(PAGE) as made:
            segment.remove(made.id)
            (listed,) = [found for found in segment.list_segments() if found.id == made.id]
            assert (listed.removed, listed.mode, listed.key) == (True, 0o600, 0)
