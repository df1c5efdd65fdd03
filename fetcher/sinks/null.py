"""`null:` takes everything and keeps nothing: for measuring what comes before a sink."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fetcher.errors import ConfigError
from fetcher.sinks.base import Batch, EncodedPage, Holdings, Page, Progress, Sink, rejected_row


class NullSink(Sink):
    """Keeps nothing."""

    batch_rows = 100_000
    resumes = False

    def probe(self) -> None:
        """Always usable."""

    def open(self) -> Progress:
        """There is never progress."""
        return {}

    def encode(self, page: Page) -> EncodedPage:
        """A count."""
        rejected = [rejected_row(page, order) for order in page.rejected]
        return EncodedPage.of(page, rows=len(page.orders), size=0, payload=None, rejected=rejected)

    def commit(self, batch: Batch) -> Mapping[str, int]:
        """Count."""
        rows: Counter[str] = Counter()
        for page in batch.pages:
            rows[page.portfolio] += page.rows
        return rows

    def holdings(self) -> Holdings:
        """Nothing."""
        return Holdings(rows=None, newest=None, progress={})

    def close(self) -> None:
        """Nothing to let go."""


def make(url: str) -> Sink:
    """The sink for `null:`."""
    if url != "null:":
        raise ConfigError("sink.url", "null: takes nothing after the colon", 'Write "null:"')
    return NullSink(url)
