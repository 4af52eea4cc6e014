"""How far a migration is: its figures under the names of QEMU's ``query-migrate``."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from colo.link.convergence import Round
from colo.wire import TARGET_PAGE_BYTES


def _ms(begin_ns: int, end_ns: int) -> float:
    return round((end_ns - begin_ns) / 1e6, 3)


@dataclass(slots=True)
class MigrationProgress:
    """Counted by the session's thread, read from any. Times are monotonic nanoseconds, 0: not yet."""

    total_bytes: int = 0
    sent_bytes: int = 0
    """All that was handed to the kernel."""
    precopy_bytes: int = 0
    """Of that, while the VM ran."""
    pages: dict[str, int] = field(default_factory=dict)
    """Sent, by kind of record."""
    left_pages: int = 0
    rounds: int = 0
    syncs: int = 0
    """How often dirty pages were collected."""
    last: Round | None = None
    expected_downtime_ms: float = 0.0
    began_ns: int = 0
    set_up_ns: int = 0
    round_began_ns: int = 0
    round_began_bytes: int = 0
    round_began_pages: int = 0
    paused_ns: int = 0
    over_ns: int = 0
    completed: bool = False

    @property
    def sent_pages(self) -> int:
        return sum(self.pages.values())

    def begin_round(self, pages: int) -> None:
        """A round of so many pages begins."""
        self.rounds += 1
        self.left_pages = pages
        self.round_began_ns = time.monotonic_ns()
        self.round_began_bytes = self.sent_bytes
        self.round_began_pages = self.sent_pages

    def sent(self, sent_bytes: int, pages: dict[str, int], left_pages: int) -> None:
        """So much has been sent in all, and so many pages of the round are left."""
        self.sent_bytes = sent_bytes
        self.pages = pages
        self.left_pages = max(0, left_pages)
        if not self.paused_ns:
            self.precopy_bytes = sent_bytes

    def end_round(self, dirty_pages: int, harvested_ns: tuple[int, int], seconds: float) -> Round:
        """The destination has all of it, and so many pages are dirty again. Raises nothing."""
        done = Round(
            number=self.rounds, pages=self.sent_pages - self.round_began_pages,
            wire_bytes=self.sent_bytes - self.round_began_bytes, seconds=seconds, dirty_pages=dirty_pages,
            dirty_seconds=(harvested_ns[1] - harvested_ns[0]) / 1e9,
        )
        self.last = done
        self.left_pages = dirty_pages
        self.expected_downtime_ms = done.expected_downtime_ms
        return done

    def as_dict(
        self, status: str, *, cache: dict[str, int] | None = None, throttle_percent: int | None = None
    ) -> dict[str, Any]:
        """As QEMU's ``query-migrate`` (qapi: MigrationInfo), keys that have no value yet left out; and ``eta-ms``."""
        if not self.began_ns:
            return {"status": status}
        now_ns = self.over_ns or time.monotonic_ns()
        info: dict[str, Any] = {
            "status": status, "total-time": _ms(self.began_ns, now_ns),
            "setup-time": _ms(self.began_ns, self.set_up_ns or now_ns), "ram": self._ram(now_ns),
        }
        if self.completed and self.paused_ns:
            info["downtime"] = _ms(self.paused_ns, now_ns)
        elif not self.over_ns:
            expected = self.expected_downtime_ms
            info["expected-downtime"] = None if expected == float("inf") else round(expected, 3)
            eta_s = self._eta_s(now_ns)
            info["eta-ms"] = None if eta_s is None else round(eta_s * 1000, 3)
        if throttle_percent is not None:
            info["cpu-throttle-percentage"] = throttle_percent
        if cache is not None:
            attempts = cache["pages"] + cache["overflow"] + cache["cache-miss"]
            info["xbzrle-cache"] = {
                **cache,
                "cache-miss-rate": round(cache["cache-miss"] / attempts, 3) if attempts else 0.0,
                "encoding-rate": round(cache["pages"] * TARGET_PAGE_BYTES / cache["bytes"], 3) if cache["bytes"] else 0.0,
            }
        return info

    def _ram(self, now_ns: int) -> dict[str, Any]:
        normal = self.pages.get("page", 0)
        bandwidth, pages_per_s = self._rates(now_ns)
        return {
            "total": self.total_bytes,
            "remaining": self.left_pages * TARGET_PAGE_BYTES,
            "transferred": self.sent_bytes,
            "precopy-bytes": self.precopy_bytes,
            "downtime-bytes": self.sent_bytes - self.precopy_bytes,
            "postcopy-bytes": 0,
            "duplicate": self.pages.get("zero", 0),
            "normal": normal,
            "normal-bytes": normal * TARGET_PAGE_BYTES,
            "skipped": 0,
            "page-size": TARGET_PAGE_BYTES,
            "dirty-sync-count": self.syncs,
            "dirty-pages-rate": round(self.last.dirty_pages_per_s) if self.last else 0,
            "mbps": round(bandwidth * 8 / 1e6, 3),
            "pages-per-second": round(pages_per_s),
        }

    def _rates(self, now_ns: int) -> tuple[float, float]:
        """Bytes and pages a second: of the last whole round, and of the first one while it lasts."""
        done = self.last
        if done is not None and done.seconds > 0:
            return done.bandwidth_bytes_per_s, done.pages_per_s
        seconds = (now_ns - self.round_began_ns) / 1e9 if self.round_began_ns else 0.0
        return (self.sent_bytes / seconds, self.sent_pages / seconds) if seconds > 0 else (0.0, 0.0)

    def _eta_s(self, now_ns: int) -> float | None:
        if self.last is not None:
            return self.last.eta_s
        rate = self._rates(now_ns)[1]
        return self.left_pages / rate if rate > 0 else None
