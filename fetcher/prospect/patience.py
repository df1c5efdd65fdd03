"""What `fetcher plan` and `fetcher check` wait for, and what they say of a platform that does not answer.

Both are for somebody who waits at a terminal, so neither waits out an outage: portfolios are asked side by side, each
with `HURRY`, and what has not answered by `DEADLINE_SECONDS` is told as that. One that fails spoils no other.
"""

from __future__ import annotations

from fetcher.config import Config
from fetcher.errors import PlatformError, UnavailableError
from fetcher.loading.portfolios import Patience, Portfolios
from fetcher.report import Tally

HURRY = Patience(request_seconds=8, outage_seconds=5, tries=2)
"""Of 15 seconds that somebody waits at most."""
DEADLINE_SECONDS = 9.0
"""For all of a check, and until a plan hears anything: the rest of 15 seconds is for starting, and for ending."""


class Hearing:
    """Whether the platform was heard, and what is said where it was not.

    Args:
        config: what would be loaded.
        portfolios: made with the patience of those who wait for the answer.
    """

    def __init__(self, config: Config, portfolios: Portfolios) -> None:
        self._config = config
        self._portfolios = portfolios

    @property
    def heard(self) -> bool:
        """Whether the platform has answered anything."""
        return self._portfolios.connector(self._config.portfolios[0]).platform.clock.known

    @property
    def nothing(self) -> str:
        """What is said where no answer came in time."""
        return f"no answer came within {DEADLINE_SECONDS:g} s. {self._cure}"

    def tell(self, error: PlatformError) -> str:
        """An error, and where to look if the platform was never reached, or is another program."""
        if error.status is None and not self.heard:
            # That it be run again when the platform is well is no help to whoever has not reached it yet.
            unreached = error.cure == UnavailableError.cure
            return f"{error.operation} failed: {error.detail}. {self._cure}" if unreached else f"{error}. {self._cure}"
        elsewhere = error.status is not None and (300 <= error.status < 400 or error.status in (404, 405))
        return f"{error}. {self._cure}" if elsewhere else str(error)

    def too_late(self, tally: Tally) -> str:
        """Why a portfolio's answer is not there in time."""
        within = f"within {DEADLINE_SECONDS:g} s"
        if not self.heard:
            return self.nothing
        if tally.note is not None:
            return f"it is not known {within}: {tally.note}. Try again later"
        if tally.budget_used >= tally.budget_limit:
            return f"it is not known {within}: the token's requests of this window are used up. Try again in a minute"
        return f"it is not known {within}: the platform answers slowly. A run waits for it; try again later"

    @property
    def _cure(self) -> str:
        address = self._config.platform.address
        return f"Check platform.address ({address}), and the network, a proxy or a firewall on the way there"
