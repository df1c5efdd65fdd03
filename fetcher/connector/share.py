"""How much of one access token's limit may be used while the platform refuses requests that the budget allows
(promise P5). Pure: times are given, in seconds of one clock.

A refusal has one of two causes. Others use the token, or the limit is lower than we were told: then the window was
full. Or something in between refuses at random: then it was not, and its refusal costs the pause that it asks for, and
should cost nothing else. One refusal does not tell which; the requests after the pause do:

A full window takes no more than what has come free in it. What has of ours is known. Others held the rest, and of
that the part that time has passed through is taken to have: after `t` of `per_seconds` seconds, of `requests` slots
of which we held `level`, that is (requests - level) * t / per_seconds. So while it is in doubt, all up to there may be
used, and a few requests beyond it *probe*. Each that is accepted speaks against a full window, every refusal for it,
with the same weight; whichever is `VERDICT` ahead has it. (Of probes through something that refuses 8 % at random, the
wrong one is found once in some 17,000 doubts: 0.08 / 0.92 to the fourth.) A window that is full costs a few refusals
for its verdict, so it holds for a while. Without a verdict, all may be used again after `per_seconds`.
"""

from __future__ import annotations


class Share:
    """How many of `requests` slots may be used: all, or fewer after a refusal.

    Of others, it finds what they leave: it falls a little under what was accepted, half a window later it begins to
    grow, and a window after that it is whole again, unless refused again.

    Args:
        requests: slots of the window, 1 or more.
        per_seconds: length of the window, in seconds.
    """

    KEPT = 0.95
    """Of what was accepted when the platform refuses: less wastes more, more is refused more often."""
    GROWTH_DELAY = 0.4
    """Windows after a refusal until the share grows again."""
    GROWTH_WINDOWS = 1.2
    """Windows in which the share grows from nothing to all. With the delay: under two windows in all."""
    PROBES = 4
    """On their way at once: as many as a verdict needs, for a full window refuses them all."""
    VERDICT = 4
    """By how many answers one cause has to be ahead: with three, of 300 walks through 8 % one found others wrongly."""
    WITHIN = 0.25
    """What a request within the share that is accepted makes good of the refusals: a nearly full window has no room for
    probes, and what refuses 8 % at random would add up.
    """
    TRUST = 8.0
    """Windows for which others, once found, are taken to be the cause of every refusal. Two fetchers with one token
    were refused 4 % of what was accepted, as without any doubt; with two windows it was 11 %.
    """

    def __init__(self, requests: int, per_seconds: float) -> None:
        self.requests = requests
        self.per_seconds = per_seconds
        # All mutable state; it changes in `refused` and `accepted`, and in what they call.
        self._low = float(requests)  # the share as of `_since`; it has grown since then
        self._since = float("-inf")  # the refusal, or verdict, that counts
        self._doubt = False  # whether there is no verdict yet on the refusal at `_since`
        self._level = 0  # if so: how many slots we held then, of requests that were accepted
        self._score = 0.0  # and how far probes that were accepted are ahead of refusals
        self._others_until = float("-inf")  # until when every refusal is taken to be for others' sake

    def allowed(self, now: float) -> int:
        """How many slots may be used, probes aside."""
        if now >= self.whole_at:
            return self.requests
        allowed = self._grown(now)
        if self._doubt:
            allowed = max(allowed, self._level + (self.requests - self._level) * (now - self._since) / self.per_seconds)
        return min(self.requests, int(allowed))

    @property
    def whole_at(self) -> float:
        """When it is all again, at the latest."""
        windows = 1.0 if self._doubt else self.GROWTH_DELAY + self.GROWTH_WINDOWS
        return self._since + windows * self.per_seconds

    def in_doubt(self, now: float) -> bool:
        """Whether `PROBES` requests more may be on their way."""
        return self._doubt and now < self.whole_at

    def grows_at(self, now: float) -> float | None:
        """When one more slot may be used; `None` if all may. It can be some moments early, never late."""
        if (allowed := self.allowed(now)) >= self.requests:
            return None
        step = self.GROWTH_WINDOWS * self.per_seconds / self.requests
        begins = self._since + self.GROWTH_DELAY * self.per_seconds
        times = [max(now, begins) + (allowed + 1 - self._low) * step - max(0.0, now - begins), self.whole_at]
        if self._doubt:
            passed = (allowed + 1 - self._level) / (self.requests - self._level)
            times.append(self._since + passed * self.per_seconds)
        return max(min(times), now + step / 8)  # a rounding error must not find the same time again

    def refused(self, now: float, sent_at: float, accepted: int) -> None:
        """The platform refused a request sent at `sent_at`; `accepted`: slots held of others, which it accepted."""
        if sent_at <= self._since:
            return  # one crowd of refusals, one step
        if not self.in_doubt(now):
            self._low = max(1.0, min(self.allowed(now), accepted) * self.KEPT)
            self._since = now
            self._doubt = now >= self._others_until
            self._level, self._score = accepted, 0.0
            return
        self._score -= 1
        if self._score <= -self.VERDICT:  # the window is full: they are others, or the limit is lower
            self._low = max(1.0, min(self._grown(now), accepted))
            self._since = now
            self._doubt = False
            self._others_until = now + self.TRUST * self.per_seconds

    def accepted(self, now: float, sent_at: float, *, probe: bool) -> None:
        """The platform accepted a request sent at `sent_at`."""
        if not self.in_doubt(now):
            return
        if sent_at <= self._since:
            self._level += self._level < self.requests - 1  # it was on its way, and is as good as held then
            return
        self._score = self._score + 1 if probe else min(max(self._score, 0), self._score + self.WITHIN)
        if self._score >= self.VERDICT:  # the window was not full
            self._low = float(self.requests)
            self._since = now
            self._doubt = False

    def _grown(self, now: float) -> float:
        growing = now - self._since - self.GROWTH_DELAY * self.per_seconds
        return self._low + max(0.0, growing) * self.requests / (self.GROWTH_WINDOWS * self.per_seconds)
