"""A histogram of latencies that can be kept while records fly by: constant memory, one list increment each.

A bucket is named by a value's highest bit and the four bits below it, so that its width is at most a sixteenth of the
value: percentiles are exact to 6 %. Values below 32 ns have a bucket each.
"""

from __future__ import annotations

from typing import Final

_BITS: Final = 4
_BUCKETS: Final = 1 << _BITS


class Latencies:
    """Counts of latencies in nanoseconds."""

    def __init__(self) -> None:
        self._counts = [0] * (_BUCKETS * 64)
        self._total = 0
        self._max_ns = 0

    def add(self, latency_ns: int) -> None:
        """Count one; a negative one (somebody set the clock) counts as 0."""
        latency_ns = max(latency_ns, 0)
        self._counts[_bucket(latency_ns)] += 1
        self._total += 1
        if latency_ns > self._max_ns:
            self._max_ns = latency_ns

    @property
    def max_ns(self) -> int:
        return self._max_ns

    def percentile_ns(self, percent: float) -> int:
        """The latency that ``percent`` of all those counted do not exceed; 0 if there are none."""
        wanted = self._total * percent / 100
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return min(_upper_bound(bucket), self._max_ns)
        return 0


def _bucket(value: int) -> int:
    shift = max(value.bit_length() - _BITS - 1, 0)
    return min(shift, 59) * _BUCKETS + (value >> shift)


def _upper_bound(bucket: int) -> int:
    shift = max(bucket // _BUCKETS - 1, 0)
    return ((bucket - shift * _BUCKETS + 1) << shift) - 1
