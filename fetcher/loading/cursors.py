"""Whether a cursor leads on where its order is not among those that are asked for. Pure.

The platform does not say (the contract's "Pages"): it may go on from that order's old place, or refuse the cursor. The
walks of a portfolio find out by trying once, and no more of them depend on it before that is known.
"""

from __future__ import annotations


class Cursors:
    """What the walks of one portfolio found out about cursors that are used elsewhere."""

    def __init__(self) -> None:
        self._lead_on: bool | None = None
        self._trying = False

    def most(self, parts: int) -> int:
        """How many of `parts` may go on at a cursor that is none of their orders: all, one to find out, or none."""
        if self._lead_on is None:
            return 0 if self._trying else min(parts, 1)
        return parts if self._lead_on else 0

    def trying(self) -> None:
        """A part goes on at such a cursor."""
        self._trying = True

    def unanswered(self) -> None:
        """A part that went on at such a cursor came to nothing before the platform answered it: another may try."""
        self._trying = False

    def found(self, *, lead_on: bool) -> None:
        """The platform has answered one."""
        self._lead_on = lead_on
