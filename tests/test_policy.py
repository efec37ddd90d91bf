"""Who may do what: the kernel's rule, checked against the kernel itself, and the options that clients leave open."""

from __future__ import annotations

import errno
import itertools
import os
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmd import _core, limits, policy, segment
from shmd.errors import InvalidOption, LimitExceeded, PermissionDenied, ShmdError, TopicMismatch
from shmd.policy import NOTHING, READ, WRITE, Credentials, Ownership
from shmd.protocol import TopicInfo, TopicOptions
from tests.children import enter_ipc_namespace, in_child, needs_root

if TYPE_CHECKING:
    from collections.abc import Callable

DAEMON = Credentials(uid=500, gid=501, pid=1)
ALICE = Credentials(uid=1000, gid=1000, pid=2, groups=frozenset({3000}))
ROOT = Credentials(uid=0, gid=0, pid=3)


def owned(mode: int, uid: int = 700, gid: int = 701) -> Ownership:
    return Ownership(uid, gid, mode, creator_uid=DAEMON.uid, creator_gid=DAEMON.gid)


class TestKernelRule:
    @pytest.mark.parametrize(
        ("peer", "mode", "want", "allowed"),
        [
            (Credentials(700, 9, 1), 0o600, READ | WRITE, True),
            (Credentials(700, 9, 1), 0o400, WRITE, False),
            (Credentials(500, 9, 1), 0o600, READ | WRITE, True),  # the creator has the owner's rights for ever
            (Credentials(9, 701, 1), 0o640, READ, True),
            (Credentials(9, 701, 1), 0o640, WRITE, False),
            (Credentials(9, 9, 1, frozenset({701})), 0o660, READ | WRITE, True),
            (Credentials(9, 501, 1), 0o640, READ, True),  # so has the creator's group the group's
            (Credentials(9, 9, 1, frozenset({501})), 0o640, READ, True),
            (Credentials(9, 9, 1), 0o660, READ, False),
            (Credentials(9, 9, 1), 0o604, READ, True),
            (Credentials(9, 9, 1), 0o604, WRITE, False),
            (Credentials(700, 701, 1), 0o066, READ, False),  # exactly one class counts
            (Credentials(9, 701, 1), 0o606, READ, False),
            (ROOT, 0o000, READ | WRITE, True),
            (Credentials(9, 9, 1), 0o000, NOTHING, True),
        ],
    )
    def test_peer_gets_the_rights_of_its_class(self, peer: Credentials, mode: int, want: int, allowed: bool) -> None:
        assert policy.may(peer, owned(mode), want) is allowed

    @needs_root
    def test_rule_agrees_with_the_kernel_for_every_class_and_mode(self) -> None:
        """Children become each kind of peer and really attach; what the kernel says must be what ``may`` says."""
        assert in_child(_disagreements_with_the_kernel) == []

    @pytest.mark.parametrize(
        ("uid", "allowed"), [(0, True), (700, True), (500, True), (1000, True), (1001, False), (701, False)]
    )
    def test_topic_is_removed_by_root_owner_creator_and_who_declared_it(self, uid: int, allowed: bool) -> None:
        assert policy.may_remove(Credentials(uid, 701, 1), owned(0o666), declared_by=1000) is allowed

    @given(st.integers(0, 0o777))
    def test_whoever_reads_the_log_writes_the_ctl_and_nobody_else(self, mode: int) -> None:
        ctl = policy.ctl_mode(mode)
        for shift in (0, 3, 6):
            assert (ctl >> shift) & 0o7 == (READ | WRITE if (mode >> shift) & READ else 0)


class TestNewTopic:
    def test_creator_of_the_daemons_user_keeps_it_private_by_default(self) -> None:
        settings = policy.resolve(TopicOptions(), Credentials(DAEMON.uid, 42, 9), DAEMON)
        assert (settings.uid, settings.gid, settings.mode, settings.hostile) == (DAEMON.uid, 42, 0o600, False)

    def test_creator_of_another_user_shares_it_with_its_group_by_default(self) -> None:
        settings = policy.resolve(TopicOptions(), ALICE, DAEMON)
        assert (settings.uid, settings.gid, settings.mode, settings.hostile) == (DAEMON.uid, ALICE.gid, 0o660, True)
        ownership = Ownership(settings.uid, settings.gid, settings.mode, DAEMON.uid, DAEMON.gid)
        assert policy.may(ALICE, ownership, READ | WRITE)

    def test_defaults_fill_what_the_creator_left_open(self) -> None:
        settings = policy.resolve(TopicOptions(), ALICE, DAEMON)
        assert settings.size_bytes == limits.TOPIC_SIZE_BYTES_DEFAULT
        assert (settings.when_full, settings.exclusive) == ("discard-old", False)

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o660, 0o664, 0o666, 0o604])
    def test_explicit_mode_is_honoured(self, mode: int) -> None:
        assert policy.resolve(TopicOptions(mode=mode), ALICE, DAEMON).mode == mode

    @pytest.mark.parametrize(
        ("mode", "complaint"),
        [
            (0o620, "without reading"),
            (0o602, "without reading"),
            (0o200, "without reading"),
            (0o700, "mean nothing"),
            (0o611, "mean nothing"),
            (0o1600, "mean nothing"),
            (0o440, "owner"),
            (0o060, "owner"),
            (0o000, "owner"),
        ],
    )
    def test_mode_that_cannot_be_used_is_refused(self, mode: int, complaint: str) -> None:
        with pytest.raises(InvalidOption, match=complaint) as caught:
            policy.resolve(TopicOptions(mode=mode), ALICE, DAEMON)
        assert f"{mode:04o}" in caught.value.message

    def test_creator_who_would_lock_itself_out_is_told_so(self) -> None:
        ownership = Ownership(DAEMON.uid, ALICE.gid, 0o600, DAEMON.uid, DAEMON.gid)
        with pytest.raises(PermissionDenied, match="0600"):
            policy.check_creator(ALICE, ownership, READ)

    @pytest.mark.parametrize(
        ("uid", "mode", "hostile"),
        [(500, 0o600, False), (500, 0o640, True), (500, 0o604, True), (700, 0o600, True)],
    )
    def test_topic_is_hostile_as_soon_as_two_users_may_meet_there(self, uid: int, mode: int, hostile: bool) -> None:
        assert policy.is_hostile(uid, mode, DAEMON.uid) is hostile


class TestSize:
    @given(st.integers(1, limits.TOPIC_SIZE_BYTES_MAX))
    def test_size_becomes_the_next_power_of_two(self, size_bytes: int) -> None:
        rounded = policy.round_size(size_bytes)
        assert rounded.bit_count() == 1
        assert rounded >= size_bytes
        assert rounded < 2 * size_bytes or rounded == limits.TOPIC_SIZE_BYTES_MIN
        assert policy.round_size(rounded) == rounded

    @pytest.mark.parametrize(
        ("size_bytes", "error"), [(0, InvalidOption), (limits.TOPIC_SIZE_BYTES_MAX + 1, LimitExceeded)]
    )
    def test_size_out_of_bounds_is_refused_with_the_bound(self, size_bytes: int, error: type[ShmdError]) -> None:
        with pytest.raises(error, match=str(size_bytes)) as caught:
            policy.round_size(size_bytes)
        assert caught.value.hint


class TestMatch:
    INFO = TopicInfo(
        name="t",
        topic_id=bytes(16),
        log_id=1,
        log_key=1,
        ctl_id=2,
        ctl_key=2,
        size_bytes=65536,
        when_full="wait",
        exclusive=False,
        mode=0o640,
        uid=500,
        gid=501,
        created_ns=1,
    )

    @pytest.mark.parametrize(
        "options",
        [
            TopicOptions(),
            TopicOptions(size_bytes=65536, when_full="wait", exclusive=False, mode=0o640),
            TopicOptions(size_bytes=32769),
        ],
    )
    def test_topic_matches_what_is_the_same_after_rounding(self, options: TopicOptions) -> None:
        policy.check_match(options, self.INFO)

    @pytest.mark.parametrize(
        ("options", "have", "want"),
        [
            (TopicOptions(size_bytes=65537), "65536", "131072"),
            (TopicOptions(when_full="discard-old"), "'wait'", "'discard-old'"),
            (TopicOptions(exclusive=True), "False", "True"),
            (TopicOptions(mode=0o660), "0640", "0660"),
        ],
    )
    def test_topic_mismatch_names_both_values(self, options: TopicOptions, have: str, want: str) -> None:
        with pytest.raises(TopicMismatch) as caught:
            policy.check_match(options, self.INFO)
        assert have in caught.value.message
        assert want in caught.value.message


def _disagreements_with_the_kernel() -> list[str]:
    enter_ipc_namespace()  # which takes with it whatever is left in it
    owner, group, stranger = 64003, 64004, 64005
    creator = Credentials(64001, 64002, 0)
    peers = [
        Credentials(owner, stranger, 0),
        Credentials(creator.uid, stranger, 0),
        Credentials(stranger, group, 0),
        Credentials(stranger, stranger, 0, frozenset({group})),
        Credentials(stranger, creator.gid, 0),
        Credentials(stranger, stranger, 0, frozenset({creator.gid})),
        Credentials(stranger, stranger, 0),
        Credentials(0, 0, 0),
    ]
    wrong = []
    for mode in (0o600, 0o640, 0o660, 0o644, 0o666, 0o604, 0o060, 0o006, 0o400):
        shmid = in_child(partial(_as, creator, partial(_make_segment, owner, group, mode)))
        ownership = Ownership(owner, group, mode, creator_uid=creator.uid, creator_gid=creator.gid)
        for peer, want in itertools.product(peers, (READ, READ | WRITE)):
            refused = in_child(partial(_as, peer, partial(_core.shm_errno, shmid, want == READ)))
            if refused != (0 if policy.may(peer, ownership, want) else errno.EACCES):
                wrong.append(f"{peer} {mode:04o} {want}: {refused}")
    return wrong


def _make_segment(uid: int, gid: int, mode: int) -> int:
    with segment.create(4096) as made:
        segment.set_permissions(made.id, uid, gid, mode)
        return made.id


def _as(peer: Credentials, work: Callable[[], int]) -> int:
    """In a child only."""
    os.setgroups(sorted(peer.groups))
    os.setresgid(peer.gid, peer.gid, peer.gid)
    os.setresuid(peer.uid, peer.uid, peer.uid)
    return work()
