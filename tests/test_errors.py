"""Errors as callers meet them: caught by the built-in classes of the same meaning, pickled, and sent by code."""

from __future__ import annotations

import copy
import errno
import pickle
from typing import Final

import pytest

import shmd
from shmd import errors
from shmd.errors import SegmentError, ShmdError

CLASSES: Final = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.ShmdError)
]
BUILT_IN: Final = {
    shmd.SegmentExists: FileExistsError,
    shmd.SegmentNotFound: FileNotFoundError,
    shmd.SegmentAccessDenied: PermissionError,
    shmd.PermissionDenied: PermissionError,
}


@pytest.mark.parametrize("cls", BUILT_IN)
def test_error_is_caught_by_the_built_in_class_of_its_meaning(cls: type[ShmdError]) -> None:
    with pytest.raises(BUILT_IN[cls], match=r"^no \(ask\)$"):
        raise cls("no", "ask")


@pytest.mark.parametrize("number", [errno.EEXIST, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EIDRM, errno.EINVAL])
def test_errno_gives_the_class_that_python_gives_for_it(number: int) -> None:
    made = SegmentError.from_errno(number, "no")
    assert (made.errno, str(made), made.hint) == (number, "no", None)
    assert isinstance(made, type(OSError(number, "")))


def test_denied_by_the_daemon_and_by_the_kernel_have_the_same_errno() -> None:
    made: tuple[OSError, ...] = (shmd.PermissionDenied("no"), shmd.SegmentAccessDenied("no"))
    assert [error.errno for error in made] == [errno.EACCES] * 2


@pytest.mark.parametrize("cls", CLASSES)
def test_error_is_the_same_after_pickling_copying_and_the_wire(cls: type[ShmdError]) -> None:
    error = cls("no", "ask")
    for again in (
        pickle.loads(pickle.dumps(error)),  # noqa: S301 - our own
        copy.copy(error),
        ShmdError.from_wire(cls.code, error.message, error.hint),
    ):
        assert type(again) is cls
        assert (str(again), again.message, again.hint) == ("no (ask)", "no", "ask")
        assert getattr(again, "errno", None) == getattr(error, "errno", None)
