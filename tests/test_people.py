"""The people that other tests are about can do what a user of the host can, and no more."""

from __future__ import annotations

import asyncio
import os

import pytest

import shmd
from tests.children import needs_root
from tests.people import ALICE, BOB, CAROL, SYSTEM, SystemDaemon, acting, as_person

pytestmark = [needs_root, pytest.mark.may_block]


def test_person_is_no_longer_root() -> None:
    assert as_person(ALICE, lambda: (os.getresuid(), os.getresgid(), os.getgroups())) == (
        (ALICE.uid,) * 3,
        (ALICE.gid,) * 3,
        list(ALICE.groups),
    )


def test_people_share_the_systems_daemon_which_outlives_its_death() -> None:
    async def publish(path: str) -> int:
        async with shmd.connect(path) as client, client.publisher("t", mode=0o664) as publisher:
            return await publisher.publish("hello")

    async def newest(path: str) -> object:
        async with shmd.connect(path) as client:
            record = await client.latest("t")
            return record and record.value

    with SystemDaemon.start() as daemon:
        assert os.stat(f"/proc/{daemon.pid}").st_uid == SYSTEM.uid
        assert as_person(ALICE, lambda: asyncio.run(publish(daemon.socket_path))) == 1
        daemon.kill()
        daemon.serve()
        assert as_person(BOB, lambda: asyncio.run(newest(daemon.socket_path))) == "hello"
        daemon.stop()
        assert "adopted 1 topics" in daemon.log


def test_child_that_fails_is_heard_of() -> None:
    def fail(say: object) -> None:
        raise ValueError("mine")

    with acting(CAROL, fail) as carol, pytest.raises(AssertionError, match="mine"):
        carol.hear()
