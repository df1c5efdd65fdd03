"""`parquet:FOLDER` writes a file for each commit: `part-000001.parquet` and so on, one row group of about 100k rows.

A part is written under a hidden name, synced, recorded in the ledger with the progress it stands for, and renamed. So
`*.parquet` never matches a part that does not count; what is recorded but not renamed is renamed at the next start,
and what is not recorded is removed. In the folder is nothing but parts, because many readers take whatever is there:
ledger and hidden parts are beside it, unless nothing can be written there, or it is another disk.
"""

# pyarrow ships no types, so that everything of it is unknown to the checker; what is ours is still checked.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path

import msgspec

from fetcher.errors import MissingExtraError, SinkError
from fetcher.sinks.appending.ledger import (
    Ledger,
    busy,
    check_folder,
    is_locked,
    read_holdings,
    sync_file,
    sync_folder,
    translated,
)
from fetcher.sinks.appending.memory import Versions, versions_of
from fetcher.sinks.appending.versions import Version, digest, version
from fetcher.sinks.base import Batch, EncodedPage, Holdings, Page, Progress, Sink
from fetcher.sinks.places import place_of
from fetcher.sinks.rejected import RejectedFile

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from fetcher.sinks.arrow import ID_COLUMNS, POOL, SCHEMA, Columns, fitting
except ImportError as missing:
    raise MissingExtraError("parquet:", "parquet") from missing

log = logging.getLogger("fetcher")

_DICTIONARIES = [
    "account_type",
    "state",
    "origin",
    "commander_origin",
    "origin_details",
    "service_id",
    "enterprise_id",
    "portfolio",
]
"""Columns of few values: a dictionary for ids that are all different costs time and space."""

_STATISTICS = [field.name for field in SCHEMA if field.name not in ID_COLUMNS or field.name in _DICTIONARIES]
"""Columns whose least and greatest value may let a reader skip a part: those of random ids never do."""


class _Rows(msgspec.Struct, frozen=True):
    columns: Columns
    versions: Versions

    def read(self) -> Iterable[Version]:
        """Each order's version."""
        return _versions(self.columns.batch)


class ParquetSink(Sink):
    """Writes part after part into a folder."""

    batch_rows = 100_000

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url)
        self._folder = folder = folder.absolute()
        self._inside = folder / ".fetcher"  # where versions up to 1.0 had it
        self._beside = folder.with_name(f".{folder.name}.fetcher")
        self._ledger = Ledger(url, self._beside, self._scan)
        self.kept_aside_in = str(RejectedFile.beside(self._folder if self._can_be_beside() else self._inside).path)
        self._parts = 0

    def probe(self) -> None:
        """See `Sink.probe`."""
        if not self._folder.exists():
            check_folder(self.url, self._folder.parent)
            return
        check_folder(self.url, self._folder)
        with translated(self.url):
            if is_locked(self._ledger_path()):
                raise busy(self.url)
        self._check_origin()

    def open(self) -> Progress:
        """See `Sink.open`."""
        with translated(self.url):
            if not self._folder.exists():
                check_folder(self.url, self._folder.parent)
                self._folder.mkdir()
                sync_folder(self._folder.parent)
            check_folder(self.url, self._folder)
            self._check_origin()
            path = self._ledger_path()
            self._ledger = Ledger(self.url, path, self._scan, RejectedFile(Path(self.kept_aside_in)))
            progress = self._ledger.open()
            if path == self._inside and self._can_be_beside():
                self._ledger.move(self._beside)
            if self._is_gone():
                log.warning("%s: the files are gone, so everything is loaded anew", self.url)
                progress = self._ledger.start_over()
            self._mend()
            self._ledger.renew()
        return progress

    def encode(self, page: Page) -> EncodedPage:
        """The page as an Arrow record batch."""
        batch, rejected = fitting(page)
        payload = _Rows(Columns(batch), versions_of(page))
        return EncodedPage.of(page, rows=batch.num_rows, size=batch.nbytes, payload=payload, rejected=rejected)

    def commit(self, batch: Batch) -> Mapping[str, int]:
        """See `Sink.commit`."""
        rows: Counter[str] = Counter()
        newest: dict[str, str] = {}
        name = f"part-{self._parts + 1:06}.parquet"
        with translated(self.url):
            with self._ledger.recording(page.payload.versions for page in batch.pages):
                selected = [self._select(page, rows, newest) for page in batch.pages]
                table = pa.Table.from_batches([part for part in selected if part.num_rows], SCHEMA)
                if table.num_rows:
                    self._write(table, name)
                    self._ledger.add_part(name, table.num_rows)
                self._ledger.record(batch, rows, newest)
            if table.num_rows:
                self._parts += 1
                self._reveal(name)
        self._ledger.show_aside()
        del table, selected
        POOL.release_unused()  # or it keeps another batch's worth
        return rows

    def holdings(self) -> Holdings:
        """See `Sink.holdings`."""
        return read_holdings(self.url, self._ledger_path())

    def close(self) -> None:
        """See `Sink.close`."""
        self._ledger.close()

    def _select(self, page: EncodedPage, rows: Counter[str], newest: dict[str, str]) -> pa.RecordBatch:
        payload: _Rows = page.payload
        new = self._ledger.memory.unseen(payload.versions, payload.read)
        batch = payload.columns.batch if new is None else payload.columns.batch.take(pa.array(new, pa.int64()))
        rows[page.portfolio] += batch.num_rows
        newest[page.portfolio] = max(newest.get(page.portfolio, ""), payload.versions.latest)
        return batch

    def _write(self, table: pa.Table, name: str) -> None:
        # A file of Arrow's own: Python's would take the interpreter's lock, and wait for it, at each write.
        with pa.OSFile(os.fsencode(self._hidden(name)), "wb") as file, _pool_of_everybody(POOL):
            pq.write_table(
                table,
                file,
                row_group_size=max(1, table.num_rows),
                compression="zstd",
                compression_level=1,
                write_statistics=_STATISTICS,  # pyright: ignore[reportArgumentType] likewise
                use_dictionary=_DICTIONARIES,  # pyright: ignore[reportArgumentType] a list is documented, and inferred as a flag
            )
            sync_file(self._hidden(name))  # while it is open: what the disk reports is not lost
        sync_folder(self._folder)

    def _reveal(self, name: str) -> None:
        self._hidden(name).rename(self._folder / name)
        sync_folder(self._folder)

    def _hidden(self, name: str) -> Path:
        inside = self._folder / f".{name}.tmp"
        beside = self._folder.with_name(f".{self._folder.name}.{name}.tmp")
        return beside if self._beside.exists() and not inside.exists() else inside

    def _ledger_path(self) -> Path:
        """Where the ledger is, or is to be made."""
        if self._beside.exists():
            return self._beside
        return self._inside if self._inside.exists() or not self._can_be_beside() else self._beside

    def _can_be_beside(self) -> bool:
        parent = self._folder.parent
        if not os.access(parent, os.W_OK | os.X_OK):
            return False
        return not self._folder.exists() or parent.stat().st_dev == self._folder.stat().st_dev

    def _is_gone(self) -> bool:
        """Whether somebody removed all that was committed."""
        parts = self._ledger.parts()
        return bool(parts) and not any((self._folder / name).exists() or self._hidden(name).exists() for name in parts)

    def _mend(self) -> None:
        """Rename what is recorded, remove what is not."""
        parts = self._ledger.parts()
        for name in parts:
            if (self._folder / name).exists():
                continue
            if not self._hidden(name).exists():
                cause = f"{name} was committed, and is not there any more"
                cure = "Restore it, or remove all of the parts to start over"
                raise SinkError(self.url, cause, cure)
            self._reveal(name)
        hidden = self._folder.parent.glob(f".{escape(self._folder.name)}.part-*.parquet.tmp")
        for left in [*self._folder.glob(".part-*.parquet.tmp"), *hidden]:
            left.unlink()
        self._parts = max((int(name[5:-8]) for name in parts), default=0)

    def _check_origin(self) -> None:
        if not self._ledger_path().exists() and any(self._folder.glob("*.parquet")):
            cure = "Name another folder, or move these files away"
            raise SinkError(self.url, "the folder has Parquet files that fetcher did not write", cure)

    def _scan(self) -> Iterator[Version]:
        for name in self._ledger.parts():
            with pq.ParquetFile(self._folder / name) as part:
                for batch in part.iter_batches(65_536, columns=_CONTENT):
                    yield from _versions(batch)


@contextmanager
def _pool_of_everybody(pool: pa.MemoryPool) -> Generator[None]:
    """Have Arrow take its memory from `pool`: part of the writer's cannot be told otherwise where to get it from."""
    usual = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        yield
    finally:
        pa.set_memory_pool(usual)


_CONTENT = [field.name for field in SCHEMA if field.name not in ("portfolio", "enterprise_id", "fetched_utc")]
"""The columns that the platform fills."""


def _versions(batch: pa.RecordBatch) -> Iterator[Version]:
    """The version of each row; all columns as one text first, because a row at a time takes ten times as long."""
    texts = [pc.ascii_lower(batch[name]) if name in ID_COLUMNS else _as_text(batch[name]) for name in _CONTENT]
    contents = pc.binary_join_element_wise(*texts, "\x1f", null_handling="replace", null_replacement="\x00")
    times = pc.strftime(batch["updated_utc"], "%Y-%m-%dT%H:%M:%S")  # with a fraction of six digits
    for id_, updated, content, state in zip(
        batch["id"].to_pylist(), times.to_pylist(), contents.to_pylist(), batch["state"].to_pylist(), strict=True
    ):
        yield version(id_, updated, digest(content.encode()), state)


def _as_text(column: pa.Array) -> pa.Array:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    return column.cast(pa.string())


def make(url: str) -> Sink:
    """The sink for `parquet:FOLDER`."""
    return ParquetSink(url, place_of(url))
