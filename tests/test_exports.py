"""What ``import shmd`` offers is a promise: exactly these names, each explained."""

from __future__ import annotations

import importlib.metadata
import inspect
import subprocess
import sys
from typing import Final

import pytest

import shmd
from shmd import errors

API: Final = {
    "Client": {
        *("close", "daemon_pid", "events", "instance", "latest", "publisher", "remove", "stat", "state", "subscribe"),
        *("remove_segment", "segment", "segment_stat", "segments", "set_segment", "stop_daemon", "topic", "topics"),
    },
    "Publisher": {
        *("close", "info", "number", "publish", "publish_many", "publish_nowait", "record_size_max", "reserve"),
        *("topic", "wait_for_subscribers"),
    },
    "Subscription": {"close", "get", "get_many", "get_nowait", "lost", "pattern", "tethered", "topics"},
    "Cell": {"close", "load", "load_versioned", "size_bytes", "store", "value_size_bytes", "version"},
    "Segment": {
        *(
            "array",
            "buf",
            "cell",
            "close",
            "fifo",
            "id",
            "info",
            "key",
            "lock",
            "name",
            "notify",
            "path",
            "readonly",
            "remove",
        ),
        *("removed", "set", "size_bytes", "stat", "sync", "wait"),
    },
    "Record": {"lost", "publisher", "raw", "seq", "time", "time_ns", "topic", "value"},
    "SegmentLock": {"acquire", "acquire_nowait", "close", "held", "locked", "release", "stat"},
    "TopicInfo": set(),
    "SegmentInfo": set(),
    "SegmentStat": {"allocated_bytes"},
    "TopicStat": set(),
    "PublisherStat": set(),
    "SubscriberStat": set(),
    "ClientEvent": {"kind", "reason", "resumed"},
}
"""Public classes, and the members promised of those that are more than a record of fields."""
AMONG_OURSELVES: Final = {
    "Publisher": {"forked", "release"},
    "SegmentLock": {"rung"},
    "Segment": {"forked", "release"},
    "Subscription": {"forked", "open", "release", "topic_added", "watch_again"},
}
"""Called by other modules of shmd; promised to nobody."""
FUNCTIONS: Final = {"connect"}
ERRORS: Final = {
    name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.ShmdError)
}


def test_public_names_are_these() -> None:
    assert set(shmd.__all__) == set(API) | FUNCTIONS | ERRORS | {"__version__"}
    assert len(shmd.__all__) == len(set(shmd.__all__))
    assert set(shmd.__all__) <= set(dir(shmd))


@pytest.mark.parametrize("name", sorted(set(API) | FUNCTIONS))
def test_public_name_is_explained(name: str) -> None:
    assert (inspect.getdoc(getattr(shmd, name)) or "").strip()


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_error_is_explained(name: str) -> None:
    """By a docstring of its own or by its line in the tree on top of the module."""
    assert f"─ {name} " in (errors.__doc__ or "") or f"─ {name}\n" in (errors.__doc__ or "") or name == "ShmdError"


@pytest.mark.parametrize(("name", "member"), [(name, member) for name in sorted(API) for member in sorted(API[name])])
def test_public_member_is_there_and_explained(name: str, member: str) -> None:
    value = inspect.getattr_static(getattr(shmd, name), member)
    if inspect.isfunction(value) or isinstance(value, property):
        assert (inspect.getdoc(value) or "").strip()


@pytest.mark.parametrize("name", ["Cell", "Client", "Publisher", "Segment", "SegmentLock", "Subscription"])
def test_class_has_no_other_public_members(name: str) -> None:
    public = {member for member in vars(getattr(shmd, name)) if not member.startswith("_")}
    assert public - AMONG_OURSELVES.get(name, set()) <= API[name]


def test_version_is_that_of_the_distribution() -> None:
    try:
        installed = importlib.metadata.version("shmd")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("a checkout that nobody installed")
    assert shmd.__version__ == installed


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        shmd.nothing  # noqa: B018


def test_importing_the_package_loads_neither_end() -> None:
    """The daemon imports shmd too, and must not come to depend on the client, or on asyncio, by that."""
    program = "import sys, shmd; print(*[m for m in ('asyncio', 'shmd.client', 'shmd.daemon') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout == "\n"
