"""The platform's limit, enforced exactly: a sliding window of requests for each access token. Pure."""

from __future__ import annotations

from collections import deque


class SlidingWindow:
    """At most `requests` in any `per_seconds`, anchored to no clock; what is refused does not count.

    Args:
        requests: how many.
        per_seconds: in how long.
    """

    def __init__(self, requests: int, per_seconds: float) -> None:
        self.requests = requests
        self.per_seconds = per_seconds
        self._arrivals: deque[float] = deque()
        self.most = 0
        """The most requests that were ever in one window."""

    def admit(self, now: float) -> float | None:
        """Count a request that arrives now (seconds); if there is no room, how long until there is."""
        while self._arrivals and self._arrivals[0] <= now - self.per_seconds:
            self._arrivals.popleft()
        if len(self._arrivals) >= self.requests:
            return self._arrivals[-self.requests] + self.per_seconds - now
        self._arrivals.append(now)
        self.most = max(self.most, len(self._arrivals))
        return None
