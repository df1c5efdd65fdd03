"""The platform's clock, as its answers tell it: ours may be hours off, and nothing may depend on it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime


class PlatformClock:
    """The platform's time, never ahead of it.

    Each `Date` header gives a time that the platform had reached when its answer came. The latest such time, carried
    on by a clock that nobody sets, is therefore late by at most the header's second and one answer's way.

    Args:
        ticks: seconds of a clock that only goes forward.
    """

    def __init__(self, ticks: Callable[[], float]) -> None:
        self._ticks = ticks
        self._ahead: float | None = None  # platform's seconds less ours, the most that any answer told
        self._date: str | None = None  # read last: of many answers within one second the first tells most

    def observe(self, date: str | None) -> None:
        """Take note of an answer's `Date` header; one that cannot be read tells nothing."""
        if date is not None and date == self._date:
            return
        self._date = date
        moment = parse_http_date(date)
        if moment is not None:
            ahead = moment.timestamp() - self._ticks()
            self._ahead = ahead if self._ahead is None else max(self._ahead, ahead)

    @property
    def known(self) -> bool:
        """Whether any answer has told the time."""
        return self._ahead is not None

    def now(self) -> datetime:
        """The platform's time, in UTC.

        Raises:
            LookupError: no answer has told it.
        """
        if self._ahead is None:
            raise LookupError("no answer of the platform bore a Date")
        return datetime.fromtimestamp(0, UTC) + timedelta(seconds=self._ahead + self._ticks())


def parse_http_date(text: str | None) -> datetime | None:
    """The instant of an HTTP date (`Sun, 06 Nov 1994 08:49:37 GMT`), in UTC; `None` if it is none."""
    if not text:
        return None
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
