"""What is kept aside: orders that cannot be read, or that the sink cannot hold (promise P7). Pure.

They spoil no other order, are named in each run until they are mended, and are asked for again by their ids.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

import msgspec

from fetcher.connector.types import parse_utc
from fetcher.planning.checkpoint import AsideRecord, Checkpoint
from fetcher.report import Tally
from fetcher.sinks.base import EncodedPage, Page, RejectedRow, rejected_row

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class AsideChange(msgspec.Struct, frozen=True):
    """What a page changes in what is kept aside; to be noted when the page is accepted."""

    rejected: tuple[RejectedRow, ...] = ()
    mended: tuple[str, ...] = ()
    """Keys, see `RejectedRow.key`."""


class Aside:
    """What is kept aside of one portfolio.

    Args:
        checkpoint: the records of it; they say what was accepted.
    """

    MOST_NAMED = 100
    """Orders that are named one by one, in a run's failures."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        # All mutable state, ahead of the records by what was delivered and is not accepted: `sift` and `give_up` change
        # it. By key, each order's `UpdatedUtc`; and the keys of those that came in this run.
        self._kept = {key: record.updated_utc for key, record in checkpoint.aside().items()}
        self._came: set[str] = set()

    @property
    def absent(self) -> list[str]:
        """Keys of what is kept aside and has not come in this run."""
        return [key for key in self._kept if key not in self._came]

    def absent_of(self, services: Collection[str], *, everywhere: bool) -> list[str]:
        """As `absent`, of these services.

        Args:
            services: ids in small letters.
            everywhere: whether orders of which nobody knows the service can be of no others.
        """
        records = self._checkpoint.aside()
        return [
            key
            for key in self.absent
            if (record := records.get(key)) is not None
            and (everywhere if record.service_id is None else record.service_id.lower() in services)
        ]

    def sift(self, page: Page, encoded: EncodedPage | Page) -> tuple[EncodedPage | Page, AsideChange | None]:
        """Tell what of a page is kept aside, and what is so no longer because it came readable.

        Args:
            page: as it came.
            encoded: in the sink's form, with what the sink cannot hold; or the page itself.

        Returns: `encoded`, which says what is mended, and what changes; `None`: nothing does.
        """
        if not (self._kept or page.rejected or (isinstance(encoded, EncodedPage) and encoded.rejected)):
            return encoded, None
        rows = encoded.rejected if isinstance(encoded, EncodedPage) else [rejected_row(page, o) for o in page.rejected]
        rejected = {row.key: row for row in rows}
        mended = {  # each once, though a faulty platform sends an order twice in one page; in the page's order
            key: None
            for id_, updated in _versions(page)
            if (key := id_.lower()) in self._kept
            and key not in rejected
            and (self._kept[key] is None or parse_utc(updated) >= parse_utc(self._kept[key] or ""))
        }
        for key in mended:
            del self._kept[key]
        self._kept.update((key, row.updated_utc) for key, row in rejected.items())
        self._came |= rejected.keys()
        if mended and isinstance(encoded, EncodedPage):
            encoded = msgspec.structs.replace(encoded, mended=list(mended))
        return encoded, AsideChange(tuple(rejected.values()), tuple(mended))

    def give_up(self, keys: Sequence[str]) -> AsideChange | None:
        """What is kept aside under these keys is not at the platform any more; `None`: nothing is kept under them."""
        gone = tuple(key for key in keys if key in self._kept)
        for key in gone:
            del self._kept[key]
        return AsideChange(mended=gone) if gone else None

    def note(self, change: AsideChange) -> None:
        """Write down what changed, for the commit that comes next."""
        for key in change.mended:
            self._checkpoint.take_back(key)
        for row in change.rejected:
            self._checkpoint.keep_aside(
                row.key,
                AsideRecord(
                    id=row.id,
                    reason=row.reason,
                    enterprise_id=row.enterprise_id,
                    service_id=row.service_id,
                    updated_utc=row.updated_utc,
                    can_be_asked_for=row.has_id,
                ),
            )

    def to_ask_for(self, services: Collection[str], *, whole: bool) -> list[AsideRecord]:
        """The orders of these services to ask for by their ids, in order of their services.

        Args:
            services: ids in small letters.
            whole: whether they are all of the portfolio's; then also orders of which nobody knows the service.
        """
        waiting = [
            record
            for record in self._checkpoint.aside().values()
            if _askable(record)
            and record.id.lower() not in self._came
            and (whole if record.service_id is None else record.service_id.lower() in services)
        ]
        return sorted(waiting, key=lambda record: (record.service_id or "", record.id))

    def name_in(self, tally: Tally) -> None:
        """Name each in the run's failures, as far as that is of use to anybody."""
        records = self._checkpoint.aside()
        tally.kept_aside = len(records)
        for record in list(records.values())[: self.MOST_NAMED]:
            again = "Every run asks for it again" if _askable(record) else "fetcher run --full asks for it again"
            tally.fail(
                f"order {record.id} is kept aside: {record.reason}. {again}",
                enterprise=record.enterprise_id,
                services=() if record.service_id is None else (record.service_id,),
            )
        if len(records) > self.MOST_NAMED:
            tally.fail(f"{len(records) - self.MOST_NAMED:,} more orders are kept aside. See fetcher status")


def _askable(record: AsideRecord) -> bool:
    """Whether the platform can be asked for it by its id: one that is no id has the whole request refused."""
    return record.can_be_asked_for and _UUID.fullmatch(record.id) is not None


def _versions(page: Page) -> Iterator[tuple[str, str]]:
    """Each order's id and `UpdatedUtc`, also of those that cannot be read but that some sink may keep all the same."""
    for order in page.orders:
        yield order.id, order.updated_utc
    for order in page.rejected:
        if order.id is not None and order.updated_utc is not None:
            yield order.id, order.updated_utc
