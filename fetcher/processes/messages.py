"""What a run and its loaders tell each other, however that travels.

    the run ─▶ loader      Start; Load, as often as there is something to load; Opened; Granted for each Claim and each
                           Settle; Stop; at last Finish
    loader ─▶ the run      Claim, Settle, Leave, Parcel, Told; Loaded for each Load; Failed; at last End

A loader that commits for itself sends no Parcel: its rows travel to the sink, and nowhere else. A `Link` is one end of
the way between them: a socket on one machine (`channel`), or whatever else brings messages to another process, whole,
in order, and once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from fetcher.loading.claims import Claimed
from fetcher.report import Tally
from fetcher.sinks.base import EncodedPage, Progress


class Start(msgspec.Struct, frozen=True):
    """The first message."""

    sink_url: str
    full: bool
    """Read everything again, whatever is covered."""
    commits: bool
    """Whether it commits for itself (see `Sink.shared`); else it sends a Parcel for each page."""
    log_level: int

    def __repr__(self) -> str:
        return "Start(...)"


class Load(msgspec.Struct, frozen=True):
    """Load these portfolios, beside those that are being loaded; before Opened: prepare for it, and ask for what takes
    no progress.
    """

    config: bytes
    """As `fetcher.config.to_wire` gives it: with the tokens in the clear."""
    records: Progress | None
    """All that the sink holds; `None`: as of Opened. A loader that commits for itself takes them from the sink."""

    def __repr__(self) -> str:
        return "Load(...)"


class Opened(msgspec.Struct, frozen=True):
    """The run has opened the sink: what was prepared may be loaded."""

    records: Progress
    """All that the sink holds."""


class Stop(msgspec.Struct, frozen=True):
    """End soon, and in order."""


class Finish(msgspec.Struct, frozen=True):
    """Nothing more comes: all that was to be loaded is, or is lost."""


class Granted(msgspec.Struct, frozen=True):
    """The answer to what the portfolio asked last."""

    portfolio: str
    claimed: Claimed


class Claim(msgspec.Struct, frozen=True):
    """See `Claims.claim`."""

    portfolio: str
    service_ids: Sequence[str]


class Settle(msgspec.Struct, frozen=True):
    """See `Claims.settle`."""

    portfolio: str
    refused: Sequence[str]
    begun: Sequence[str]


class Leave(msgspec.Struct, frozen=True):
    """See `Claims.leave`; there is no answer."""

    portfolio: str
    begun: Sequence[str] | None
    for_others: bool


class Parcel(msgspec.Struct, frozen=True):
    """A page, and the records that change with it (see `Delivery.accept`)."""

    portfolio: str
    page: EncodedPage | None
    changes: Mapping[str, str | None]


class Told(msgspec.Struct, frozen=True):
    """How far the portfolios are, and what is to be logged: levels and texts."""

    tallies: Sequence[Tally]
    """Of what failed, only that which was not told before."""
    lines: Sequence[tuple[int, str]]


class Loaded(msgspec.Struct, frozen=True):
    """All of a Load's portfolios were sent; or, by a loader that commits for itself, are durable."""

    portfolios: Sequence[str]
    settled: Mapping[str, str]
    """See `fetcher.job.Loader`."""


class Failed(msgspec.Struct, frozen=True):
    """The sink failed, for a loader that commits for itself: see `SinkError`. It ends."""

    sink: str
    cause: str
    cure: str
    abandoned: bool
    """Whether that is because the run was to end, and it could not in time."""


class End(msgspec.Struct, frozen=True):
    """The last message."""


ToLoader = Start | Load | Opened | Stop | Finish | Granted
ToRun = Claim | Settle | Leave | Parcel | Told | Loaded | Failed | End
Message = ToLoader | ToRun


class Link(Protocol):
    """One end of the way between a run and a loader. Several tasks may send; one receives."""

    async def send(self, message: Message) -> None:
        """Send a message, after those that are being sent. Cancelled in the middle, the link is of no more use.

        Raises:
            OSError: the other end is gone.
        """
        ...

    async def receive(self) -> Message | None:
        """The next message; `None` once the other end is gone. Cancelled in the middle, the link is of no more use."""
        ...


class Hired(Link, Protocol):
    """A loader as its run has it: whatever it is, a process of this machine or something far away."""

    def kill(self) -> None:
        """Have it end at once, if it can be reached; what it sent may still be received. May be called twice."""
        ...

    async def ended(self) -> str:
        """How it ended (`was killed by signal 9`), after `receive` gave `None`; soon, also if nobody knows."""
        ...

    async def dismiss(self, seconds: float) -> None:
        """Give it that long to end by itself, see that it does, and let go of all that belongs to it."""
        ...


Hire = Callable[[], Awaitable[Hired]]
"""Brings a loader into being, which waits for Start. Raises ConfigError where that cannot be."""
