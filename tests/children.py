"""Run a piece of a test in a forked child: as another user, under another limit, or in an IPC namespace of its own."""

from __future__ import annotations

import codecs
import ctypes
import importlib
import os
import pickle
import pkgutil
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

import shmd

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

CLONE_NEWIPC = 0x08000000
STRANGER_UID = 60_001
STRANGER_GID = 60_002

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user, or making a namespace, takes root")


def in_child(function: Callable[[], T]) -> T:
    """What ``function`` returns in a forked child. ``AssertionError`` with its traceback if it raises or dies."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        outcome: tuple[bool, object]
        try:
            outcome = (True, function())
        except BaseException:
            outcome = (False, traceback.format_exc())
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(pickle.dumps(outcome))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with wait status {status}"
    succeeded, result = pickle.loads(answer)  # noqa: S301 - our own child's
    assert succeeded, f"in the child:\n{result}"
    return result  # type: ignore[no-any-return]


def become_stranger(*, groups: tuple[int, ...] = ()) -> None:
    """Give up root for a user that exists nowhere. In a child only."""
    load_all()
    os.setgroups(groups)
    os.setresgid(STRANGER_GID, STRANGER_GID, STRANGER_GID)
    os.setresuid(STRANGER_UID, STRANGER_UID, STRANGER_UID)


def load_all() -> None:
    """Whatever may be imported later on: a stranger may not read the directory that Python lies in."""
    codecs.lookup("ascii")
    for module in pkgutil.walk_packages(shmd.__path__, "shmd."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def enter_ipc_namespace(**limits: int) -> None:
    """Move to a new, empty IPC namespace, with these ``kernel.*`` limits. In a child only."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWIPC) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWIPC)")
    for name, value in limits.items():
        Path("/proc/sys/kernel", name).write_text(str(value))
