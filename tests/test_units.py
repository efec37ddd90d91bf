"""Sizes and times, as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shmd import units
from shmd.errors import InvalidOption


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (0, 0),
        (65536, 65536),
        ("131072", 131072),
        ("64KiB", 65536),
        ("64k", 65536),
        ("64K", 65536),
        ("64kB", 64000),
        ("64KB", 64000),
        ("1B", 1),
        ("1.5MiB", 1572864),
        ("2 GiB", 2 << 30),
        (" 1TiB ", 1 << 40),
        ("1TB", 10**12),
        ("16mib", 16 << 20),
        ("18014398509481985", 18014398509481985),
    ],
)
def test_size_is_read(text: str | int, expected: int) -> None:
    assert units.parse_size(text) == expected


@pytest.mark.parametrize(
    "text", ["", "x", "-1", -2, "1XB", "KiB", "1e3", "1,5M", True, None, 1.5, "1 K i B", "\uff11K"]
)
def test_size_that_is_none_is_refused(text: Any) -> None:
    with pytest.raises(InvalidOption, match="size"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (2.5, 2.5),
        (3, 3.0),
        ("3.5", 3.5),
        ("500ms", 0.5),
        ("250us", 0.00025),
        ("10s", 10.0),
        ("5m", 300.0),
        ("5min", 300.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
    ],
)
def test_time_is_read(text: str | float, expected: float) -> None:
    assert units.parse_time(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text", ["", "x", "-1s", "1 week", True, None, "1h30m", -1.0, float("nan"), float("inf"), float("-inf")]
)
def test_time_that_is_none_is_refused(text: Any) -> None:
    with pytest.raises(InvalidOption, match="time"):
        units.parse_time(text)


@given(st.text(max_size=10) | st.from_regex(r"\s*[0-9]{1,400}(\.[0-9]{1,400})?\s*[a-z]{0,3}\s*", fullmatch=True))
@example("64\u212a")
@example("1\u017f")
@example("9" * 5000)
def test_any_text_is_a_quantity_or_refused(text: str) -> None:
    for parse in (units.parse_size, units.parse_time):
        try:
            value = parse(text)
        except InvalidOption:
            continue
        assert 0 <= value < 1e32


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1000 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (16 << 20, "16 MiB"),
        (1000 << 20, "1000 MiB"),
        (8 << 30, "8 GiB"),
        (1 << 50, "1024 TiB"),
    ],
)
def test_size_is_shown(size_bytes: int, expected: str) -> None:
    assert units.format_size(size_bytes) == expected


@given(st.integers(0, 2**62))
def test_size_shown_is_read_as_nearly_the_same(size_bytes: int) -> None:
    assert units.parse_size(units.format_size(size_bytes)) == pytest.approx(size_bytes, rel=0.01, abs=1)
