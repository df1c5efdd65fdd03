"""`parquet:FOLDER` writes a file for each commit: `part-000001.parquet` and so on, one row group of about 100k rows.

A part is written under a hidden name, synced, recorded in the ledger with the progress it stands for, and renamed. So
`*.parquet` never matches a part that does not count; what is recorded but not renamed is renamed at the next start,
and what is not recorded is removed.
"""

# pyarrow ships no types, so that everything of it is unknown to the checker; what is ours is still checked.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from fetcher.errors import ConfigError, MissingExtraError, SinkError
from fetcher.sinks.base import Batch, EncodedPage, Holdings, Page, Progress, Sink
from fetcher.sinks.ledger import (
    Ledger,
    Versions,
    busy,
    check_folder,
    is_locked,
    read_holdings,
    sync_file,
    sync_folder,
    translated,
    version_digest,
    versions_of,
)

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from fetcher.sinks.table import ID_COLUMNS, POOL, SCHEMA, Columns, to_record_batch
except ImportError as missing:
    raise MissingExtraError("parquet:", "parquet") from missing

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

    def read(self) -> Iterable[tuple[str, str]]:
        """Each order's id and `UpdatedUtc`."""
        return _versions(self.columns.batch)


class ParquetSink(Sink):
    """Writes part after part into a folder."""

    batch_rows = 100_000

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url)
        self._folder = folder
        self._ledger_path = folder / ".fetcher"
        self._ledger = Ledger(url, self._ledger_path, self._scan)
        self._parts = 0

    def probe(self) -> None:
        """See `Sink.probe`."""
        if not self._folder.exists():
            check_folder(self.url, self._folder.absolute().parent)
            return
        check_folder(self.url, self._folder)
        with translated(self.url):
            if is_locked(self._ledger_path):
                raise busy(self.url)
        self._check_origin()

    def open(self) -> Progress:
        """See `Sink.open`."""
        with translated(self.url):
            if not self._folder.exists():
                check_folder(self.url, self._folder.absolute().parent)
                self._folder.mkdir()
                sync_folder(self._folder.absolute().parent)
            check_folder(self.url, self._folder)
            self._check_origin()
            progress = self._ledger.open()
            self._mend()
        return progress

    def encode(self, page: Page) -> EncodedPage:
        """The page as an Arrow record batch."""
        batch = to_record_batch(page)
        payload = _Rows(Columns(batch), versions_of(page))
        return EncodedPage.of(page, rows=batch.num_rows, size=batch.nbytes, payload=payload)

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
        del table, selected
        POOL.release_unused()  # or it keeps another batch's worth
        return rows

    def holdings(self) -> Holdings:
        """See `Sink.holdings`."""
        return read_holdings(self.url, self._ledger_path)

    def close(self) -> None:
        """See `Sink.close`."""
        self._ledger.close()

    def _select(self, page: EncodedPage, rows: Counter[str], newest: dict[str, str]) -> pa.RecordBatch:
        payload: _Rows = page.payload
        new = self._ledger.unseen(payload.versions, payload.read)
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
        return self._folder / f".{name}.tmp"

    def _mend(self) -> None:
        """Rename what is recorded, remove what is not."""
        parts = self._ledger.parts()
        for name in parts:
            if (self._folder / name).exists():
                continue
            if not self._hidden(name).exists():
                cause = f"{name} was committed, and is not there any more"
                cure = "Restore it, or empty the folder (and its .fetcher) to start over"
                raise SinkError(self.url, cause, cure)
            self._reveal(name)
        for left in self._folder.glob(".part-*.parquet.tmp"):
            left.unlink()
        self._parts = max((int(name[5:-8]) for name in parts), default=0)

    def _check_origin(self) -> None:
        if not self._ledger_path.exists() and any(self._folder.glob("*.parquet")):
            cure = "Name another folder, or move these files away"
            raise SinkError(self.url, "the folder has Parquet files that fetcher did not write", cure)

    def _scan(self) -> Iterator[bytes]:
        for name in self._ledger.parts():
            with pq.ParquetFile(self._folder / name) as part:
                for batch in part.iter_batches(65_536, columns=["id", "updated_utc"]):
                    yield from (version_digest(*version) for version in _versions(batch))


@contextmanager
def _pool_of_everybody(pool: pa.MemoryPool) -> Generator[None]:
    """Have Arrow take its memory from `pool`: part of the writer's cannot be told otherwise where to get it from."""
    usual = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        yield
    finally:
        pa.set_memory_pool(usual)


def _versions(batch: pa.RecordBatch) -> Iterator[tuple[str, str]]:
    times = pc.strftime(batch["updated_utc"], "%Y-%m-%dT%H:%M:%S")
    return zip(batch["id"].to_pylist(), times.to_pylist(), strict=True)


def make(url: str) -> Sink:
    """The sink for `parquet:FOLDER`."""
    name = url.partition(":")[2]
    if not name or name == "-":
        raise ConfigError("sink.url", "parquet: needs a folder", 'Write it like "parquet:orders/"')
    path = Path(name).expanduser()
    if path.is_file():
        raise ConfigError("sink.url", f"{name} is a file, and parquet: needs a folder", "Name a folder")
    return ParquetSink(url, path)
