"""What can name a topic, a pattern or an instance, and what a pattern stands for."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmd import limits, names
from shmd.errors import InvalidName

tokens = st.text("abc01_:@$+-", min_size=1, max_size=5)
topics = st.lists(tokens, min_size=1, max_size=5).map(".".join)
patterns = st.builds(
    lambda head, tail: ".".join(head + tail),
    st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=4),
    st.sampled_from([[], [">"]]),
)
small_topics = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=5).map(".".join)


class TestTopicNames:
    @pytest.mark.parametrize("name", ["a", "prices", "prices.eu.ABCD", "a_b:c@d$e+f-g", "0", "x" * 255, "A.b.C.9"])
    def test_name_is_accepted_as_it_is(self, name: str) -> None:
        assert names.check_topic(name) == name
        assert names.check_pattern(name) == name
        assert not names.is_pattern(name)

    @pytest.mark.parametrize(
        "name",
        ["", ".", "a.", ".a", "a..b", "a b", "a/b", "ä", "a\n", "\n", "a\x00", "a,b", "x" * 256, "a.*", ">", "*", "a*"],
    )
    def test_name_that_cannot_be_is_refused_with_a_hint(self, name: str) -> None:
        with pytest.raises(InvalidName) as caught:
            names.check_topic(name)
        assert caught.value.hint

    @given(topics)
    def test_dotted_tokens_are_a_name(self, name: str) -> None:
        assert names.check_topic(name) == name

    @given(st.text(max_size=20))
    def test_any_text_is_a_name_or_refused(self, text: str) -> None:
        try:
            names.check_topic(text)
        except InvalidName:
            return
        assert re.fullmatch(r"[A-Za-z0-9_:@$+-]+(\.[A-Za-z0-9_:@$+-]+)*", text)


class TestPatterns:
    @pytest.mark.parametrize("pattern", ["*", ">", "a.*", "*.b", "a.*.c", "a.>", "*.>", "a.*.>"])
    def test_pattern_is_accepted(self, pattern: str) -> None:
        assert names.check_pattern(pattern) == pattern
        assert names.is_pattern(pattern)

    @pytest.mark.parametrize("pattern", [">.a", "a.>.b", "a*", "**", "*a", "a.>>", "a..>", ""])
    def test_pattern_that_cannot_be_is_refused(self, pattern: str) -> None:
        with pytest.raises(InvalidName):
            names.check_pattern(pattern)

    @pytest.mark.parametrize(
        ("pattern", "topic", "expected"),
        [
            ("a.b", "a.b", True),
            ("a.b", "a.c", False),
            ("a.b", "a.b.c", False),
            ("a.b", "a", False),
            ("*", "a", True),
            ("*", "a.b", False),
            ("a.*", "a", False),
            ("a.*", "a.b", True),
            ("a.*.c", "a.b.c", True),
            ("a.*.c", "a.b.d", False),
            (">", "a", True),
            (">", "a.b.c", True),
            ("a.>", "a", False),
            ("a.>", "a.b", True),
            ("a.>", "a.b.c", True),
            ("a.>", "b.c", False),
            ("*.>", "a", False),
        ],
    )
    def test_pattern_stands_for_the_topic_or_not(self, pattern: str, topic: str, expected: bool) -> None:
        assert names.matches(pattern, topic) is expected

    @given(patterns, small_topics)
    def test_matching_agrees_with_a_regular_expression(self, pattern: str, topic: str) -> None:
        parts = [{"*": r"[^.]+", ">": r".+"}.get(token, re.escape(token)) for token in pattern.split(".")]
        assert names.matches(pattern, topic) is bool(re.fullmatch(r"\.".join(parts), topic))

    @given(topics)
    def test_every_name_matches_itself_and_everything(self, topic: str) -> None:
        assert names.matches(topic, topic)
        assert names.matches(">", topic)


class TestInstances:
    @pytest.mark.parametrize("name", ["default", "a-b_9", "x" * limits.INSTANCE_NAME_BYTES_MAX])
    def test_instance_name_is_accepted(self, name: str) -> None:
        assert names.check_instance(name) == name

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "a/b", "a.b", "ä", "a\n", "x" * (limits.INSTANCE_NAME_BYTES_MAX + 1)]
    )
    def test_instance_name_that_is_no_directory_name_is_refused(self, name: str) -> None:
        with pytest.raises(InvalidName):
            names.check_instance(name)
