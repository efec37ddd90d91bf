"""Semaphores on the real kernel: with undo, shared with C programs, every error provoked for real."""

from __future__ import annotations

import errno
import os
import secrets
from typing import TYPE_CHECKING

import pytest
import sysv_ipc

from shmd import segment, semaphore
from shmd.errors import (
    ForkedError,
    SegmentAccessDenied,
    SegmentError,
    SegmentExists,
    SegmentInvalid,
    SegmentLimit,
    SegmentNotFound,
    SegmentRemoved,
    UsageError,
)
from tests.children import STRANGER_GID, STRANGER_UID, become_stranger, enter_ipc_namespace, in_child, needs_root
from tests.classic_program import ClassicLock, end, kill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ABSENT_ID = 2**31 - 1


@pytest.fixture
def made() -> Iterator[semaphore.Semaphore]:
    made = semaphore.create()
    try:
        yield made
    finally:
        if any(found.id == made.id for found in semaphore.list_semaphores()):
            semaphore.remove(made.id)


@pytest.fixture(scope="module")
def classic(tmp_path_factory: pytest.TempPathFactory) -> ClassicLock:
    return ClassicLock(tmp_path_factory.mktemp("classic"))


def again(made: semaphore.Semaphore) -> semaphore.Semaphore:
    """Another user of the same set."""
    return semaphore.attach(made.key, made.id)


def error_in_child(function: Callable[[], object]) -> tuple[str, int]:
    """Class and errno of what ``function`` raises for a stranger."""

    def run() -> tuple[str, int]:
        become_stranger()
        try:
            function()
        except SegmentError as error:
            return type(error).__name__, error.errno or 0
        raise AssertionError("nothing was raised")

    return in_child(run)


class TestCreate:
    def test_creator_gets_a_free_lock_of_its_own(self, made: semaphore.Semaphore) -> None:
        found = made.stat()
        assert (found.id, found.key, found.semaphores, found.value) == (made.id, made.key, 1, 1)
        assert (found.uid, found.gid, found.cuid, found.mode) == (os.geteuid(), os.getegid(), os.geteuid(), 0o600)
        assert found.owner_pid is None
        assert made.key > 0

    def test_programs_by_the_classic_recipe_find_it_initialised(self, made: semaphore.Semaphore) -> None:
        """They wait until a new set has been used once."""
        assert made.stat().operated_time > 0

    def test_set_has_the_key_and_mode_asked_for(self) -> None:
        key = secrets.randbelow(2**31 - 1) + 1
        made = semaphore.create(key=key, mode=0o640)
        try:
            assert (made.key, made.stat().mode) == (key, 0o640)
            with pytest.raises(SegmentExists) as caught:
                semaphore.create(key=key)
            assert caught.value.errno == errno.EEXIST
            assert caught.value.hint
        finally:
            semaphore.remove(made.id)

    @pytest.mark.parametrize(("key", "mode"), [(0, 0o600), (2**32, 0o600), (-1, 0o600), (None, 0o1000), (None, -1)])
    def test_key_or_mode_that_cannot_be_creates_nothing(self, key: int | None, mode: int) -> None:
        before = semaphore.list_semaphores()
        with pytest.raises(SegmentInvalid):
            semaphore.create(key=key, mode=mode)
        assert semaphore.list_semaphores() == before

    @needs_root
    @pytest.mark.parametrize(("limits", "named"), [("250 32000 32 1", "SEMMNI is 1"), ("250 1 32 128", "SEMMNS is 1")])
    def test_full_system_names_the_limit_and_the_command(self, limits: str, named: str) -> None:
        def run() -> tuple[str, str, str]:
            enter_ipc_namespace(sem=limits)  # type: ignore[arg-type]
            semaphore.create()
            try:
                semaphore.create()
            except SegmentLimit as error:
                return error.message, error.hint or "", errno.errorcode[error.errno or 0]
            raise AssertionError("nothing was raised")

        _, hint, number = in_child(run)
        assert number == "ENOSPC"
        assert named in hint
        assert "sysctl kernel.sem=" in hint


class TestAttach:
    def test_set_that_was_removed_is_said_to_be(self, made: semaphore.Semaphore) -> None:
        semaphore.remove(made.id)
        with pytest.raises(SegmentRemoved) as caught:
            again(made)
        assert caught.value.errno == errno.EIDRM

    def test_key_that_belongs_to_another_set_by_now_is_found_out(self, made: semaphore.Semaphore) -> None:
        semaphore.remove(made.id)
        other = semaphore.create(key=made.key)
        try:
            with pytest.raises(SegmentRemoved):
                again(made)
        finally:
            semaphore.remove(other.id)

    @needs_root
    def test_stranger_is_refused(self, made: semaphore.Semaphore) -> None:
        assert error_in_child(lambda: again(made)) == ("SegmentAccessDenied", errno.EACCES)

    @needs_root
    @pytest.mark.parametrize(
        ("use", "number"),
        [
            (lambda made: semaphore.stat(made.id), errno.EACCES),
            (lambda made: semaphore.remove(made.id), errno.EPERM),
            (lambda made: semaphore.set_permissions(made.id, 0, 0, 0o666), errno.EPERM),
        ],
        ids=["stat", "remove", "set_permissions"],
    )
    def test_stranger_may_neither_look_nor_change(
        self, made: semaphore.Semaphore, use: Callable[[semaphore.Semaphore], object], number: int
    ) -> None:
        before = made.stat()
        assert error_in_child(lambda: use(made)) == ("SegmentAccessDenied", number)
        assert made.stat() == before

    @pytest.mark.parametrize(
        "use",
        [semaphore.stat, semaphore.remove, lambda semid: semaphore.set_permissions(semid, 0, 0, 0o600)],
        ids=["stat", "remove", "set_permissions"],
    )
    def test_id_that_is_none_is_invalid(self, use: Callable[[int], object]) -> None:
        with pytest.raises(SegmentInvalid) as caught:
            use(ABSENT_ID)
        assert caught.value.errno == errno.EINVAL

    def test_permissions_are_set(self, made: semaphore.Semaphore) -> None:
        semaphore.set_permissions(made.id, STRANGER_UID, STRANGER_GID, 0o660)
        found = made.stat()
        assert (found.uid, found.gid, found.mode, found.cuid) == (STRANGER_UID, STRANGER_GID, 0o660, os.geteuid())


class TestLock:
    def test_one_at_a_time_has_it(self, made: semaphore.Semaphore) -> None:
        other = again(made)
        assert made.try_acquire()
        assert made.held
        assert not other.try_acquire()
        assert not other.held
        assert made.stat().owner_pid == os.getpid()
        made.release()
        assert other.try_acquire()
        other.release()
        assert made.stat().value == 1

    def test_holder_cannot_take_it_twice(self, made: semaphore.Semaphore) -> None:
        assert made.try_acquire()
        with pytest.raises(UsageError):
            made.try_acquire()
        made.release()

    def test_who_does_not_hold_it_cannot_release_it(self, made: semaphore.Semaphore) -> None:
        other = again(made)
        assert other.try_acquire()
        with pytest.raises(UsageError):
            made.release()
        assert made.stat().value == 0
        other.release()
        with pytest.raises(UsageError):
            other.release()
        assert made.stat().value == 1

    def test_forked_child_neither_releases_nor_takes_what_its_parent_opened(self, made: semaphore.Semaphore) -> None:
        assert made.try_acquire()

        def run() -> int:
            refused = 0
            for use in (made.release, made.try_acquire):
                try:
                    use()
                except ForkedError:
                    refused += 1
            return refused

        assert in_child(run) == 2
        assert made.stat().value == 0
        made.release()

    def test_lock_is_free_at_once_when_its_owner_is_killed(
        self, made: semaphore.Semaphore, classic: ClassicLock
    ) -> None:
        holder = classic.hold(made.key)
        assert not made.try_acquire()
        assert made.stat().owner_pid == holder.pid
        kill(holder)
        assert made.try_acquire()
        made.release()

    def test_lock_is_free_at_once_when_a_python_owner_ends(self, made: semaphore.Semaphore) -> None:
        assert in_child(lambda: again(made).try_acquire())
        assert made.try_acquire()
        made.release()

    def test_c_program_is_excluded_and_excludes(self, made: semaphore.Semaphore, classic: ClassicLock) -> None:
        """The classic recipe waits in semop; the kernel serves it first."""
        assert made.try_acquire()
        with segment.create(4096) as counter:
            try:
                program = classic.start_counting(made.key, counter.id, 1)
                while made.stat().waiting == 0:
                    assert program.poll() is None
                assert counter.buf[0] == 0
                made.release()
                assert program.wait() == 0
                assert counter.buf[0] == 1
            finally:
                segment.remove(counter.id)


class TestHostile:
    def test_release_makes_no_second_place_where_somebody_set_it_free(
        self, made: semaphore.Semaphore, classic: ClassicLock
    ) -> None:
        assert made.try_acquire()
        classic.set(made.key, 1)
        made.release()
        assert made.stat().value == 1

    def test_any_value_is_taken_as_it_comes(self, made: semaphore.Semaphore, classic: ClassicLock) -> None:
        classic.set(made.key, 0)
        assert not made.try_acquire()
        classic.set(made.key, 3)
        users = [again(made) for _ in range(4)]
        assert [user.try_acquire() for user in users] == [True, True, True, False]
        classic.set(made.key, 32767)
        for user in users[:3]:
            user.release()
        assert made.stat().value == 32767

    def test_set_removed_under_its_users_is_said_to_be(self, made: semaphore.Semaphore) -> None:
        other = again(made)
        assert made.try_acquire()
        semaphore.remove(made.id)
        for use in (made.release, other.try_acquire, other.stat):
            with pytest.raises(SegmentRemoved):
                use()
        assert not made.held

    @needs_root
    def test_mode_that_was_changed_under_its_users_is_access_denied(self, made: semaphore.Semaphore) -> None:
        semaphore.set_permissions(made.id, 0, 0, 0o666)

        def run() -> str:
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:  # root takes the permission away when the stranger has it open
                os.read(reader, 1)
                semaphore.set_permissions(made.id, 0, 0, 0o600)
                os._exit(0)
            become_stranger()
            opened = again(made)
            os.write(writer, b"x")
            os.waitpid(child, 0)
            try:
                opened.try_acquire()
            except SegmentAccessDenied:
                return "denied"
            return "allowed"

        assert in_child(run) == "denied"


class TestAdopt:
    def test_set_with_a_key_that_is_negative_in_c_is_found_by_what_ipcs_prints(self, classic: ClassicLock) -> None:
        key = 2**31 + secrets.randbelow(2**31)
        holder = classic.hold(key - 2**32)
        found = semaphore.adopt(key, os.geteuid())
        try:
            adopted = semaphore.attach(key, found.id)
            assert [adopted.key, adopted.stat().key, found.key] == [key] * 3
            end(holder)
            assert adopted.try_acquire()
            adopted.release()
        finally:
            semaphore.remove(found.id)

    def test_set_made_by_the_classic_recipe_is_found_by_its_key(self, classic: ClassicLock) -> None:
        key = secrets.randbelow(2**31 - 1) + 1
        holder = classic.hold(key)
        found = semaphore.adopt(key, os.geteuid())
        try:
            adopted = semaphore.attach(key, found.id)
            assert not adopted.try_acquire()
            end(holder)
            assert adopted.try_acquire()
            adopted.release()
        finally:
            semaphore.remove(found.id)

    def test_key_of_nothing_is_not_found(self) -> None:
        with pytest.raises(SegmentNotFound):
            semaphore.adopt(2**31 - 1, 0)

    def test_set_of_somebody_else_is_refused(self, made: semaphore.Semaphore) -> None:
        with pytest.raises(SegmentAccessDenied) as caught:
            semaphore.adopt(made.key, STRANGER_UID)
        assert caught.value.errno == errno.EPERM
        semaphore.set_permissions(made.id, STRANGER_UID, 0, 0o600)
        assert semaphore.adopt(made.key, STRANGER_UID).id == made.id
        assert semaphore.adopt(made.key, 0).id == made.id

    def test_set_of_several_is_refused(self) -> None:
        libc_made = in_child(make_set_of_three)
        try:
            with pytest.raises(SegmentInvalid, match="3 semaphores"):
                semaphore.adopt(libc_made, os.geteuid())
        finally:
            sysv_ipc.remove_semaphore(semaphore_id(libc_made))


def make_set_of_three() -> int:
    import ctypes

    key = secrets.randbelow(2**31 - 1) + 1
    assert ctypes.CDLL(None).semget(key, 3, 0o1000 | 0o2000 | 0o600) >= 0
    return key


def semaphore_id(key: int) -> int:
    return next(found.id for found in semaphore.list_semaphores() if found.key == key)
