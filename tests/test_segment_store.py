"""What the daemon does to a raw segment, it does to that one only: an id can come to mean another."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
import pytest

from shmd import segment, segment_store
from shmd.errors import SegmentNotFound
from shmd.protocol import SegmentInfo

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def info() -> Iterator[SegmentInfo]:
    with segment.create(100, mode=0o640) as made:
        yield SegmentInfo(
            name="s",
            segment_id=bytes(16),
            id=made.id,
            key=made.key,
            size_bytes=100,
            mode=0o640,
            uid=os.getuid(),
            gid=os.getgid(),
            creator_uid=os.getuid(),
            creator_gid=os.getgid(),
            declared_by=os.getuid(),
            created_ns=1,
        )
        segment.remove(made.id)


def test_segment_is_found_with_the_permissions_that_it_has_now(info: SegmentInfo) -> None:
    segment.set_permissions(info.id, os.getuid(), 4321, 0o600)
    found = segment_store.look(info)
    assert found is not None
    assert (found.gid, found.mode) == (4321, 0o600)
    stored = segment_store.restore(info)
    assert (stored.info.gid, stored.info.mode) == (4321, 0o600)
    stored.close(remove=False)


@pytest.mark.parametrize("other", [{"key": 1}, {"size_bytes": 99}, {"creator_uid": 4711}, {"lifetime": "attached"}])
def test_segment_that_only_has_the_id_is_another_and_left_alone(info: SegmentInfo, other: dict[str, object]) -> None:
    noted = msgspec.structs.replace(info, **other)
    assert segment_store.look(noted) is None
    segment_store.remove_segment(noted)
    with pytest.raises(SegmentNotFound):
        segment_store.restore(noted)
    assert not segment.stat(info.id).removed
