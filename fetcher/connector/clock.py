"""The platform's clock, as its answers tell it: ours may be hours off, and nothing may depend on it.

The rule that cannot be broken: late is safe, ahead is not. A run's end, and so the watermark, is taken from this clock;
were it late, a little would be read again; were it ahead, what changes until then would never be read. So:

1. Only the platform's own answers tell the time: a page, or a refusal in the platform's own words. A proxy's page of
   HTML, and every 5xx, tell none. (Whoever calls `observe` sees to that.)
2. An answer tells bounds: its `Date` was written after the request was sent, and before its answer began; and it is cut
   to whole seconds. Answers whose bounds do not meet contradict each other, and the earlier one counts, whichever came
   first. One of several machines that is ahead, all the time or once, is so found out by any other's answer.
3. What was taken for the time earlier is looked at anew: `at` tells what time it was then, by all that is known now.
   Whoever writes a time down for later runs asks again before it does. What a run found out too late, or not at all,
   the next one sees: by our own clock more time has passed since than by the platform's.

What a wrong one can cost: a machine that is late, or whose clock goes back, makes a run's end as much earlier, and the
next run reads as much again. Only a time before this program was written is not believed while others tell a later one:
it is a mistake, and the run would read next to nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

_EPOCH = datetime.fromtimestamp(0, UTC)
_WRITTEN = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
_LAST = datetime(9000, 1, 1, tzinfo=UTC).timestamp()
"""What is later is no time: whatever is reckoned from it would lie beyond the year 9999, which Python does not know."""


class PlatformClock:
    """The platform's time, never ahead of what any believed answer told.

    It is carried on by a clock that nobody sets, and late by at most the header's second and one answer's way.

    Args:
        ticks: seconds of a clock that only goes forward.
        ours: this machine's time, in seconds since 1970. It may be wrong; it counts only where no answer tells the
            time.
    """

    def __init__(self, ticks: Callable[[], float], ours: Callable[[], float] = time.time) -> None:
        self._ticks = ticks
        self._ours = ours
        # The platform's seconds less our ticks: no less, and no more, than ...
        self._least: float | None = None
        self._most = math.inf
        self._latest = -math.inf  # the most that any answer told
        self._likely = False  # whether they are of answers that are not of long ago
        self._last_date: tuple[str, float] | None = None  # parsing one costs more than all else here
        self._stamp = _EPOCH

    def observe(self, date: str | None, sent: float | None = None, began: float | None = None) -> None:
        """Take note of the `Date` header of an answer of the platform's own; one that cannot be read tells nothing.

        Args:
            date: the header.
            sent: when its request was sent, in ticks; `None`: when the answer began.
            began: when the answer began, in ticks; `None`: now.
        """
        told = self._seconds(date)
        if told is None:
            return
        began = self._ticks() if began is None else began
        least = told - began
        most = told + 1.0 - (began if sent is None else sent)
        self._latest = max(self._latest, least)
        likely = told >= _WRITTEN
        if likely and not self._likely:  # all before it were of long ago
            self._least, self._most, self._likely = None, math.inf, True
        elif self._likely and not likely:
            return
        if self._least is None or most < self._least:
            self._least = least  # what told more was ahead
        elif least <= self._most:
            self._least = max(self._least, least)
        self._most = min(self._most, most)

    @property
    def known(self) -> bool:
        """Whether any answer has told the time."""
        return self._least is not None

    def now(self) -> datetime:
        """The platform's time, in UTC; our own while no answer has told it (none that we know leaves it out)."""
        return self.at(self._ticks())

    def at(self, tick: float) -> datetime:
        """What the platform's time was when ours was `tick`, by all that is known now: it may turn out earlier."""
        least = self._ours() - self._ticks() if self._least is None else self._least
        return _EPOCH + timedelta(seconds=least + tick)

    def latest(self) -> datetime:
        """The latest time that it may be by any answer, whatever others say: for who reads on to what is newest."""
        return self.now() if self._least is None else _EPOCH + timedelta(seconds=self._latest + self._ticks())

    def ours(self) -> datetime:
        """The time of this machine, which may be wrong: for a comparison with itself."""
        return _EPOCH + timedelta(seconds=self._ours())

    def stamp(self) -> datetime:
        """The platform's time, for what came now: later than every stamp before, whatever is found out meanwhile."""
        self._stamp = max(self.now(), self._stamp + timedelta(microseconds=1))
        return self._stamp

    def _seconds(self, date: str | None) -> float | None:
        if self._last_date is not None and date == self._last_date[0]:
            return self._last_date[1]
        moment = parse_http_date(date)
        if date is None or moment is None:
            return None
        if moment.timestamp() >= _LAST:
            return None
        self._last_date = date, moment.timestamp()
        return self._last_date[1]


def parse_http_date(text: str | None) -> datetime | None:
    """The instant of an HTTP date (`Sun, 06 Nov 1994 08:49:37 GMT`), in UTC; `None` if it is none."""
    if not text:
        return None
    try:
        moment = parsedate_to_datetime(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
