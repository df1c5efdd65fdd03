"""How many items to ask for at once, where the platform may find that too many (promise P8). Pure."""

from __future__ import annotations


class PageSize:
    """How many items to ask for: less after a heavy page, and more again when it goes well.

    Each time that it grew too early, it waits twice as long before it grows again.
    """

    LEAST = 50
    """Below it a page costs more than it brings; halving the window helps more."""
    SHRINK = 4

    def __init__(self, largest: int, count: int) -> None:
        self._largest = largest
        self._least = min(self.LEAST, largest)
        self.count = max(1, min(count, largest))
        self._good = 0
        self._patience = 2

    def shrink(self) -> bool:
        """Ask for less; false if it is the least already."""
        if self.count <= self._least:
            return False
        self.count = max(self._least, self.count // self.SHRINK)
        self._good = 0
        self._patience *= 2
        return True

    def went_well(self) -> None:
        """A page of this size came."""
        self._good += 1
        if self._good >= self._patience and self.count < self._largest:
            self.count = min(self._largest, self.count * 2)
            self._good = 0
