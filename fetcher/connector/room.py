"""Room for pages in memory: so many places, and for each page one lease of a place, which travels with it.

The rule that cannot be broken: a page has a place from before its body is received until whoever it is handed to has
accepted it, or until it comes to nothing; then the place is free again, and only once (promise P6).

    asked for ─▶ transport: acquire ─▶ client ─▶ sifting ─▶ handover ─▶ accepted: release
        └─ what fails on the way, or is cancelled: release, when the `with` of whoever asked ends

So three may release: whoever asked for the page and does not get it to its end; the client, before it tries again;
and whoever accepts it. In between nobody need know that there is a lease.
"""

from __future__ import annotations

from types import TracebackType

import anyio


class Room:
    """Places for pages.

    Args:
        pages: how many may be in memory at once.
    """

    def __init__(self, pages: int) -> None:
        self.places = anyio.Semaphore(pages, fast_acquire=True)
        """For leases alone."""

    @property
    def free(self) -> int:
        """How many more pages there is room for."""
        return self.places.value

    def lease(self) -> Lease:
        """For one page that is to be asked for: a lease that holds no place yet."""
        return Lease(self)


class Lease:
    """A page's place. As a context manager it gives the place back if what is done within fails.

    Args:
        room: where the place is taken from.
    """

    __slots__ = ("_held", "room")

    def __init__(self, room: Room) -> None:
        self.room = room
        self._held = False

    async def acquire(self) -> None:
        """Wait for a place, however long that takes."""
        if self._held:
            raise RuntimeError("a page takes one place")
        await self.room.places.acquire()
        self._held = True

    def release(self) -> None:
        """Give the place back, if it is held.

        It may not be any more: whoever is cancelled while it hands the page over cannot tell whether somebody has the
        page already, who will accept it.
        """
        if self._held:
            self._held = False
            self.room.places.release()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.release()
