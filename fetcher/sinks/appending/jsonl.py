"""`jsonl:PATH` appends the orders to a file, a line each, byte for byte as they came; `jsonl:-` writes them to stdout.

A file ending in `.gz` or `.zst` is compressed, each commit as one gzip member or zstd frame. What lies beyond the
recorded length when the sink is opened was never committed, and is cut off.
"""

from __future__ import annotations

import gzip
import io
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from pickle import PickleBuffer
from typing import Any, BinaryIO

import msgspec

from fetcher.connector.types import RejectedOrder
from fetcher.errors import MissingExtraError, SinkError
from fetcher.sinks.appending.base import AppendFile, Text
from fetcher.sinks.appending.ledger import (
    Ledger,
    busy,
    check_folder,
    is_locked,
    read_holdings,
    sync_folder,
    translated,
)
from fetcher.sinks.appending.lines import lines_of
from fetcher.sinks.appending.memory import Versions, versions_of
from fetcher.sinks.appending.versions import Version, version_of_line
from fetcher.sinks.base import Batch, EncodedPage, Holdings, Page, Progress, Sink, rejected_row
from fetcher.sinks.places import place_of
from fetcher.sinks.rejected import RejectedFile

log = logging.getLogger("fetcher")


class _Lines(msgspec.Struct, frozen=True):
    """A page as lines, each with its end."""

    text: Text
    versions: Versions

    def __reduce__(self) -> tuple[type[_Lines], tuple[PickleBuffer, Versions]]:
        """For another process: the text beside the pickle, not in it."""
        return _Lines, (PickleBuffer(self.text), self.versions)

    def read(self) -> Iterable[Version]:
        """Each order's version."""
        return map(version_of_line, bytes(self.text).splitlines())

    def only(self, positions: list[int] | None) -> Text:
        """The lines at these positions; `None`: all."""
        if positions is None:
            return self.text
        lines = bytes(self.text).splitlines(keepends=True)
        return b"".join([lines[position] for position in positions])


class _Codec(msgspec.Struct, frozen=True):
    """How a batch is compressed, and how a file of such batches is read."""

    compress: Callable[[Sequence[Text]], Sequence[Text]]
    read: Callable[[Path], AbstractContextManager[Iterable[bytes]]]


class JsonlSink(Sink):
    """Appends to a file.

    Args:
        url: what the user wrote.
        path: the file.
        codec: how it is compressed.
    """

    batch_rows = 20_000  # each waits for the disk, while the next is prepared

    def __init__(self, url: str, path: Path, codec: _Codec) -> None:
        super().__init__(url)
        self._path = path
        self._codec = codec
        self._ledger_path = path.with_name(f".{path.name}.fetcher")
        rejected = RejectedFile.beside(path)
        self._ledger = Ledger(url, self._ledger_path, self._scan, rejected)
        self.kept_aside_in = str(rejected.path)
        self._file: AppendFile | None = None

    def probe(self) -> None:
        """See `Sink.probe`."""
        check_folder(self.url, self._path.parent)
        with translated(self.url):
            if is_locked(self._ledger_path):
                raise busy(self.url)
            if self._path.exists() and not os.access(self._path, os.W_OK):
                raise SinkError(self.url, "the file is not writable", "Change its permissions, or name another")
        self._check_origin()

    def open(self) -> Progress:
        """See `Sink.open`."""
        check_folder(self.url, self._path.parent)
        self._check_origin()
        progress = self._ledger.open()
        with translated(self.url):
            created = not self._path.exists()
            if created and progress:
                log.warning("%s: the file is gone, so everything is loaded anew", self.url)
                progress = self._ledger.start_over()
            length = int(self._ledger.fact("length") or 0)
            self._file = AppendFile(self._path, length)
            if self._file.size < length:
                cause = f"the file is shorter ({self._file.size} bytes) than what was committed ({length})"
                cure = f"Restore it, or remove it together with {self._ledger_path.name} to start over"
                raise SinkError(self.url, cause, cure)
            if created:
                sync_folder(self._path.parent)
        self._ledger.renew()
        return progress

    def encode(self, page: Page) -> EncodedPage:
        """The page's lines as they came."""
        return _encoded(page)

    def commit(self, batch: Batch) -> Mapping[str, int]:
        """See `Sink.commit`."""
        file = self._file
        if file is None:
            raise RuntimeError("the sink is used before it was opened")
        length = file.length
        rows: Counter[str] = Counter()
        newest: dict[str, str] = {}
        texts: list[Text] = []
        with translated(self.url):
            try:
                with self._ledger.recording(page.payload.versions for page in batch.pages):
                    for page in batch.pages:
                        rows[page.portfolio] += self._select(page, texts, newest)
                    if any(texts):
                        file.append(self._codec.compress(texts))
                    self._ledger.set_fact("length", str(file.length))
                    self._ledger.record(batch, rows, newest)
            except BaseException:
                with suppress(OSError):  # when it is opened the next time, it is cut again
                    file.cut(length)
                raise
        self._ledger.show_aside()
        return rows

    def holdings(self) -> Holdings:
        """See `Sink.holdings`."""
        return read_holdings(self.url, self._ledger_path)

    def close(self) -> None:
        """See `Sink.close`."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._ledger.close()

    def _select(self, page: EncodedPage, texts: list[Text], newest: dict[str, str]) -> int:
        """Add a page's new lines to `texts`; returns how many there are."""
        lines: _Lines = page.payload
        new = self._ledger.memory.unseen(lines.versions, lines.read)
        texts.append(lines.only(new))
        newest[page.portfolio] = max(newest.get(page.portfolio, ""), lines.versions.latest)
        return page.rows if new is None else len(new)

    def _check_origin(self) -> None:
        if self._path.is_dir():
            raise SinkError(self.url, "it is a folder", "Name a file")
        if self._path.exists() and self._path.stat().st_size and not self._ledger_path.exists():
            cure = "Name another file, or move this one away"
            raise SinkError(self.url, "the file is there already, and was not written by fetcher", cure)

    def _scan(self) -> Iterator[Version]:
        with self._codec.read(self._path) as lines:
            yield from map(version_of_line, lines)


class StdoutSink(Sink):
    """Writes to standard output. What was written cannot be found again, so nothing can be resumed."""

    batch_rows = 5000
    resumes = False

    def __init__(self, url: str, out: BinaryIO | None = None) -> None:
        super().__init__(url)
        self._out = out
        self._ledger = Ledger(url, None, lambda: ())

    def probe(self) -> None:
        """Standard output is there."""

    def open(self) -> Progress:
        """See `Sink.open`."""
        log.warning("standard output cannot be resumed: a run that is broken off starts over")
        self._ledger.open()
        self._ledger.renew()
        self._ledger.memory.index()
        return {}

    def encode(self, page: Page) -> EncodedPage:
        """The page's lines as they came."""
        return _encoded(page)

    def commit(self, batch: Batch) -> Mapping[str, int]:
        """See `Sink.commit`."""
        rows: Counter[str] = Counter()
        texts: list[Text] = []
        with translated(self.url), self._ledger.recording(()):
            for page in batch.pages:
                lines: _Lines = page.payload
                new = self._ledger.memory.unseen(lines.versions, lines.read)
                texts.append(lines.only(new))
                rows[page.portfolio] += page.rows if new is None else len(new)
        out = self._out or sys.stdout.buffer
        try:
            out.writelines(texts)
            out.flush()
        except OSError as error:
            cause = f"it cannot be written ({error.strerror or error})"
            raise SinkError(self.url, cause, "What was written cannot be resumed: run again, to start over") from error
        return rows

    def holdings(self) -> Holdings:
        """Nothing that could be found again."""
        return Holdings(rows=None, newest=None, progress={})

    def close(self) -> None:
        """See `Sink.close`."""
        self._ledger.close()


def _encoded(page: Page) -> EncodedPage:
    text = lines_of(page)
    if not page.rejected:
        payload = _Lines(text, versions_of(page))
        return EncodedPage.of(page, rows=len(page.orders), size=len(text), payload=payload)
    kept = [order for order in page.rejected if _can_keep(order, page.states)]
    text = b"".join([text, *(b"%b\n" % order.raw for order in kept)])
    latest = max([page.latest, *(order.updated_utc or "" for order in kept)])
    ids = {order.id for order in page.orders} | {order.id for order in kept}
    twins = len(ids) < len(page.orders) + len(kept)
    payload = _Lines(text, versions_of(page, latest, twins=twins))
    rejected = [rejected_row(page, order) for order in page.rejected if not _can_keep(order, page.states)]
    return EncodedPage.of(page, rows=len(page.orders) + len(kept), size=len(text), payload=payload, rejected=rejected)


def _can_keep(order: RejectedOrder, states: tuple[str, ...] | None) -> bool:
    """Whether an order that cannot be read whole is a line all the same: one can tell which version of what it is, and,
    where only some states are asked for, whether it is in one of them.
    """
    if not order.is_json or None in (order.id, order.service_id, order.updated_utc):
        return False
    return states is None or version_of_line(order.raw).state != ""


def make(url: str) -> Sink:
    """The sink for `jsonl:PATH` or `jsonl:-`."""
    if url == "jsonl:-":
        return StdoutSink(url)
    path = place_of(url)
    codec = {".gz": _gzip, ".zst": _zstd}.get(path.suffix, _plain)()
    return JsonlSink(url, path, codec)


def _plain() -> _Codec:
    return _Codec(lambda texts: texts, lambda path: path.open("rb"))


def _gzip() -> _Codec:
    try:
        from isal import igzip as module  # the `speed` extra: a fifth of the time
    except ImportError:
        module: Any = gzip
    return _Codec(lambda texts: [module.compress(b"".join(texts), 1)], lambda path: gzip.open(path, "rb"))


def _zstd() -> _Codec:
    try:
        import zstandard
    except ImportError:
        raise MissingExtraError("a .zst file", "zstd") from None
    compressor = zstandard.ZstdCompressor(level=1)  # both faster and smaller here than gzip

    def read(path: Path) -> BinaryIO:
        reader = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True)
        return io.BufferedReader(reader)

    return _Codec(lambda texts: [compressor.compress(b"".join(texts))], read)
