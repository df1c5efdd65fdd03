"""The file beside a file sink's data that shows what is kept aside: a JSON line for each order.

What counts is in the ledger, in the commit of the page that brought the order. The file is brought up to date after
each commit that changed something, and written anew from the ledger whenever the sink is opened, so that it need not be
synced. Where nothing is kept aside, there is none.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from fetcher.sinks.base import RejectedRow


class _Line(msgspec.Struct):
    id: str
    portfolio: str
    enterprise_id: str | None
    stream: str
    reason: str
    raw: str
    rejected_utc: str


def line_of(row: RejectedRow) -> str:
    """A row as a line, without its end."""
    line = _Line(
        row.id,
        row.portfolio,
        row.enterprise_id,
        row.stream,
        row.reason,
        row.raw,
        row.rejected_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    return msgspec.json.encode(line).decode()


class RejectedFile:
    """Such a file.

    Args:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def beside(cls, path: Path) -> RejectedFile:
        """The one of a data file or folder: `orders.jsonl.gz` has `orders.rejected.jsonl`."""
        name = path.name
        for suffix in (".gz", ".zst", ".jsonl", ".ndjson", ".json"):
            name = name.removesuffix(suffix)
        return cls(path.with_name(f"{name or path.name}.rejected.jsonl"))

    def show(self, lines: Iterable[str]) -> None:
        """Have it show these lines, and no others."""
        hidden = self.path.with_name(f".{self.path.name}.tmp")
        with hidden.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        hidden.replace(self.path)

    def add(self, lines: Iterable[str]) -> None:
        """Have it show these lines, too."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)

    def remove(self) -> None:
        """Nothing is kept aside any more."""
        self.path.unlink(missing_ok=True)
