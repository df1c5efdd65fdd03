"""How many items to ask for at once, where the platform may find that too many (promise P8). Pure."""

from __future__ import annotations


class Learned:
    """What the walks of one portfolio found out about sizes, so that not each has to find it out anew.

    Args:
        largest: items of a page that nobody found too many.
    """

    FIRST_PATIENCE = 2

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.count = largest
        """What a walk begins with, at the most."""
        self.patience = self.FIRST_PATIENCE
        """How many pages have to go well before a walk asks for more, at the least."""
        self._full = 0
        self._seconds = 0.0

    @property
    def page_seconds(self) -> float | None:
        """How long the largest pages take, on the average; `None`: none came yet."""
        return self._seconds / self._full if self._full else None

    def took(self, items: int, seconds: float) -> None:
        """A page of so many items took so long, from its request on."""
        if items >= self.largest:
            self._full += 1
            self._seconds += seconds

    def too_many(self, count: int, patience: int) -> None:
        """A walk found that `count` items have to do, and will wait for as many good pages."""
        self.count = min(self.count, count)
        self.patience = max(self.patience, patience)

    def came(self, items: int) -> None:
        """A page of so many items came."""
        if items > self.count:
            self.count = min(items, self.largest)
            if self.count == self.largest:
                self.patience = self.FIRST_PATIENCE


class PageSize:
    """How many items to ask for: less after a heavy page, and more again when it goes well.

    Each time that it grew too early, it waits twice as long before it grows again.

    Args:
        largest: items, never more.
        count: what to begin with, unless others found it too many.
        learned: what it shares with others; `None`: it is alone.
    """

    LEAST = 50
    """Below it a page costs more than it brings; halving the window helps more."""
    SHRINK = 4

    def __init__(self, largest: int, count: int, learned: Learned | None = None) -> None:
        self._largest = largest
        self._learned = learned or Learned(largest)
        self.count = max(1, min(count, largest, self._learned.count))
        self._good = 0
        self._patience = Learned.FIRST_PATIENCE
        self._grown = False  # since it shrank last

    def shrink(self, *, last_resort: bool = False) -> bool:
        """Ask for less; false if it is the least already: `LEAST`, or 1 where there is no other way (`last_resort`)."""
        least = 1 if last_resort else min(self.LEAST, self._largest)
        if self.count <= least:
            return False
        # Others may have found out already how little it has to be.
        self.count = max(least, min(self.count // self.SHRINK, self._learned.count))
        self._good = 0
        if self._grown:
            self._grown = False
            self._patience *= 2
        self._learned.too_many(self.count, self._patience)
        return True

    def went_well(self, items: int = 0) -> None:
        """A page of this size came, with so many items."""
        self._learned.came(items)
        self._good += 1
        if self._good >= max(self._patience, self._learned.patience) and self.count < self._largest:
            self.count = min(self._largest, self.count * 2)
            self._good = 0
            self._grown = True
