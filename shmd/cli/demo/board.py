"""What the demo knows about its processes, as a table, as a line, and as the closing account."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from shmd.cli.demo.reports import Received
from shmd.cli.tables import Table

if TYPE_CHECKING:
    from shmd.cli.demo.reports import Report

RATE_WINDOW: Final = 5
"""Reports over which a rate is taken: a second and a bit."""


class Board:
    """The latest report of each process, and how fast its count grows."""

    def __init__(self, publisher: str, subscribers: list[str]) -> None:
        self._publisher = publisher
        self._subscribers = subscribers
        self._latest: dict[str, Report] = {}
        self._history: dict[str, deque[tuple[float, int]]] = {}

    def add(self, report: Report, time_s: float) -> None:
        """``report``, made at ``time_s``."""
        self._latest[report.name] = report
        self._history.setdefault(report.name, deque(maxlen=RATE_WINDOW)).append((time_s, report.records))

    @property
    def sending_ended(self) -> bool:
        return self._is_final(self._publisher)

    @property
    def complete(self) -> bool:
        """Whether everybody's last report is there."""
        return all(map(self._is_final, [self._publisher, *self._subscribers]))

    @property
    def sent(self) -> int:
        report = self._latest.get(self._publisher)
        return report.records if report else 0

    def account(self) -> dict[str, Any]:
        """The closing account: each record sent is either received or lost, by each subscriber."""
        subscribers = [self._subscriber_account(name) for name in self._subscribers]
        exact = self.complete and all(entry["exact"] for entry in subscribers)
        return {"sent": self.sent, "subscribers": subscribers, "exact": exact}

    def table(self) -> Table:
        """The live view."""
        table = Table("process", ">records", ">per s", ">lost", ">p50", ">p99", ">max")
        for name in [self._publisher, *self._subscribers]:
            report = self._latest.get(name)
            latencies = _latencies(report) if isinstance(report, Received) else ("", "", "")
            lost = f"{report.lost:,}" if isinstance(report, Received) else ""
            table.add(name, f"{report.records:,}" if report else "", f"{self._rate(name):,.0f}", lost, *latencies)
        return table

    def line(self) -> str:
        """The same for a log: one line."""
        parts = [f"{self._publisher}: {self.sent} sent, {self._rate(self._publisher):.0f}/s"]
        for name in self._subscribers:
            report = self._latest.get(name)
            if isinstance(report, Received):
                p50, p99, _ = _latencies(report)
                parts.append(f"{name}: {report.records} received, {report.lost} lost, p50 {p50}, p99 {p99}")
        return "; ".join(parts)

    def summary(self) -> list[str]:
        """The closing account in words, a line for each subscriber."""
        account = self.account()
        lines = [f"{self._publisher}: {account['sent']} records sent"]
        for entry in account["subscribers"]:
            verdict = "every record accounted for" if entry["exact"] else "DOES NOT ADD UP"
            lines.append(
                f"{entry['name']}: {entry['received']} received + {entry['lost']} lost"
                f" = {entry['received'] + entry['lost']}; {verdict}"
            )
        return lines

    def _subscriber_account(self, name: str) -> dict[str, Any]:
        report = self._latest.get(name)
        received, lost = (report.records, report.lost) if isinstance(report, Received) else (0, 0)
        latencies = (report.p50_ns, report.p99_ns, report.max_ns) if isinstance(report, Received) else (0, 0, 0)
        return {
            "name": name,
            "received": received,
            "lost": lost,
            "exact": self._is_final(name) and received + lost == self.sent,
            **dict(zip(("p50_ns", "p99_ns", "max_ns"), latencies, strict=True)),
        }

    def _is_final(self, name: str) -> bool:
        report = self._latest.get(name)
        return report is not None and report.final

    def _rate(self, name: str) -> float:
        history = self._history.get(name)
        if not history or len(history) < 2:
            return 0.0
        (first_s, first), (last_s, last) = history[0], history[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0


def _latencies(report: Received) -> tuple[str, str, str]:
    return _duration(report.p50_ns), _duration(report.p99_ns), _duration(report.max_ns)


def _duration(time_ns: int) -> str:
    for unit, size in (("s", 1_000_000_000), ("ms", 1_000_000), ("µs", 1_000)):
        if time_ns >= size:
            return f"{time_ns / size:.3g} {unit}"
    return f"{time_ns} ns"
