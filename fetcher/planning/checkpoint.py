"""What a portfolio's load has reached: records that the sink keeps beside the rows, and what they mean. Pure.

The rules that cannot be broken: a record never claims more than the rows committed with it (promise P3), and the
records' size follows the services and the walks that are open, not the history.

    NAME/run                     how the last run went (`RunRecord`)
    NAME/SELECTION/batch/KEY     a batch of services (`BatchRecord`)
    NAME/SELECTION/done/KEY      what the batch's finished walks stand for: [[start, end], ...]
    NAME/SELECTION/open/KEY      a walk that is under way, and its cursor (`OpenRecord`)
    NAME/SELECTION/bad/SERVICE   a service that the platform refuses, and when it is to be tried again
    NAME/SELECTION/again/all     what was covered was forgotten: whatever is read may be in the sink already
    NAME/SELECTION/aside/KEY     an order that is kept aside (`AsideRecord`), by its id in small letters
    NAME/SELECTION/since/all     when the first run of the selection began to read: no order of it is older in the sink
    NAME/SELECTION/forgot/all    before when the sink no longer tells repeats from new versions

SELECTION is `all`, or a digest of the states: another filter is another selection, with progress of its own. What
follows from `again`, `forgot`, and a walk's `repeats`, `fetcher.planning.repeats` says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from datetime import datetime
from hashlib import blake2b
from typing import Any, TypeVar

import msgspec

from fetcher.connector.operations import MAX_IDS
from fetcher.planning.shards import ServiceRef, Shard, batch_key
from fetcher.planning.windows import Window, Windows, union
from fetcher.report import Failure

T = TypeVar("T")


class BatchRecord(msgspec.Struct, frozen=True):
    """The services of a batch."""

    service_ids: tuple[str, ...]
    enterprise_id: str | None = None


class OpenRecord(msgspec.Struct, frozen=True):
    """A walk under way: all that is newer than its cursor is durable."""

    batch: str
    window: Window
    settled: datetime
    cursor: str | None
    """`None`: it starts again, and what it committed before will come a second time."""
    count: int
    """The page size that last went well."""
    open_ended: bool = False
    repeats: bool = False
    filtered: bool = False
    oldest: datetime | None = None
    """See `Position.oldest`."""


class AsideRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An order that is kept aside, because it cannot be read, or the sink cannot hold it."""

    id: str
    reason: str
    enterprise_id: str | None = None
    service_id: str | None = None
    updated_utc: str | None = None
    """Each as it was sent; `None` where not even that can be read."""
    can_be_asked_for: bool = True
    """Whether the id is the order's, and not one that was made up for it."""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How a portfolio's last run went."""

    selection: str
    began: datetime
    """By the platform's clock."""
    ours: datetime | None = None
    """The same by this machine's clock, by which the next run sees whether the platform's was ahead."""
    ended: datetime | None = None
    """`None`: it is running, or was killed."""
    outcome: str = "running or killed"
    watermark: datetime | None = None
    failed: tuple[Failure, ...] = ()
    page_seconds: float | None = None
    """How long full pages took, on the average; of the last run that had any."""


class PortfolioStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What `fetcher status` tells of a portfolio."""

    portfolio: str
    watermark: datetime | None
    last_run_ended: datetime | None
    last_run: str
    shards_open: int
    failed: tuple[Failure, ...]
    kept_aside: int = 0
    """Orders that cannot be read, or that the sink cannot hold."""


class Position(msgspec.Struct, frozen=True):
    """Where a walk stands: the cursor of the next request (`None`: the newest), and the page size to ask for."""

    cursor: str | None
    count: int
    oldest: datetime | None = None
    """Nothing that was updated before it was read so far; `None`: unknown, if there is a cursor."""
    elsewhere: bool = False
    """Whether the cursor is another shard's order, and nobody has seen yet that the platform goes on from it here."""


def selection_key(states: Iterable[str] | None) -> str:
    """Names a filter by states: `all`, or a digest."""
    if states is None:
        return "all"
    return blake2b(",".join(sorted(states)).encode(), digest_size=6).hexdigest()


class Checkpoint:
    """One portfolio's progress within one selection: reads the records, and says which ones change.

    Args:
        portfolio: its name.
        states: the filter; `None` is none.
        records: all records that the sink holds.
        owners: what `owners_of` says of them.
    """

    def __init__(
        self,
        portfolio: str,
        states: Iterable[str] | None,
        records: Mapping[str, str],
        owners: Mapping[str, Collection[str]],
    ) -> None:
        self.portfolio = portfolio
        self.selection = selection_key(states)
        self._prefix = f"{portfolio}/{self.selection}/"
        self._owners = owners
        mine = {name: text for name, text in records.items() if name.startswith(f"{portfolio}/")}
        run_text = mine.get(f"{portfolio}/run")
        self.last_run = None if run_text is None else msgspec.json.decode(run_text, type=RunRecord)
        self.other_selections = any(not name.startswith(self._prefix) and name != f"{portfolio}/run" for name in mine)
        self._batches = self._read(mine, "batch", BatchRecord)
        self._done = self._read(mine, "done", Windows)
        self._open = self._read(mine, "open", OpenRecord)
        self._bad = self._read(mine, "bad", datetime)
        self._again = self._read(mine, "again", bool)
        self._aside = self._read(mine, "aside", AsideRecord)
        self._since = self._read(mine, "since", datetime)
        self._forgot = self._read(mine, "forgot", datetime)
        self._kinds: dict[str, dict[str, Any]] = {
            "again": self._again,
            "batch": self._batches,
            "done": self._done,
            "open": self._open,
            "bad": self._bad,
            "aside": self._aside,
            "since": self._since,
            "forgot": self._forgot,
        }
        self._changes: dict[str, str | None] = {}
        self._ceiling: datetime | None = None  # nothing that is read in this run stands for what is later

    @property
    def services(self) -> int:
        """How many services any walk was begun of."""
        return len({service for batch in self._batches.values() for service in batch.service_ids})

    def spell(self, service_ids: Iterable[str]) -> None:
        """Have the records speak of services as the platform writes their ids now: the case may differ."""
        spelling = {id_.lower(): id_ for id_ in service_ids}
        for key, batch in list(self._batches.items()):
            ids = tuple(sorted(spelling.get(id_.lower(), id_) for id_ in batch.service_ids))
            if ids == batch.service_ids:
                continue
            new = batch_key(ids)
            self._write("batch", new, msgspec.structs.replace(batch, service_ids=ids))
            if key in self._done:
                self._write("done", new, union((*self._done.get(new, ()), *self._done[key])))
                self._remove("done", key)
            for name, walk in [(name, walk) for name, walk in self._open.items() if walk.batch == key]:
                self._write("open", name.replace(key, new, 1), msgspec.structs.replace(walk, batch=new))
                self._remove("open", name)
            self._remove("batch", key)
        for id_ in [id_ for id_ in self._bad if spelling.get(id_.lower(), id_) != id_]:
            self._write("bad", spelling[id_.lower()], self._bad[id_])
            self._remove("bad", id_)

    def covered(self) -> dict[str, Windows]:
        """By service id in small letters, the instants that finished walks stand for."""
        covered: dict[str, Windows] = {}
        for key, windows in self._done.items():
            for service in map(str.lower, self._batches[key].service_ids) if key in self._batches else ():
                covered[service] = union((*covered.get(service, ()), *windows)) if service in covered else windows
        return covered

    def begun(self) -> list[tuple[Shard, Position]]:
        """The walks that were under way, and where to go on."""
        walks: list[tuple[Shard, Position]] = []
        for record in self._open.values():
            if (batch := self._batches.get(record.batch)) is not None:
                shard = Shard(
                    service_ids=batch.service_ids,
                    window=record.window,
                    enterprise_id=batch.enterprise_id,
                    settled=record.settled,
                    open_ended=record.open_ended,
                    repeats=record.repeats,
                    filtered=record.filtered,
                )
                walks.append((shard, Position(record.cursor, record.count, record.oldest)))
        return walks

    def bad_services(self) -> dict[str, datetime]:
        """Services that the platform refused, by id, and when to try each again."""
        return dict(self._bad)

    def elsewhere(self, service_id: str) -> bool:
        """Whether other progress was made with this service: under another filter, or as another portfolio's."""
        return any(prefix != self._prefix for prefix in self._owners.get(service_id.lower(), ()))

    @property
    def forgot(self) -> datetime | None:
        """Before when the sink no longer tells repeats from new versions; `None`: it tells all."""
        return self._forgot.get("all")

    def note_forgotten(self, before: datetime) -> None:
        """The sink is told to forget what was updated before then."""
        if (known := self.forgot) is None or known < before:
            self._write("forgot", "all", before)

    @property
    def since(self) -> datetime | None:
        """When the selection's first run began to read; `None`: unknown, as versions up to 1.0 did not note it."""
        return self._since.get("all")

    def note_since(self, settled: datetime) -> None:
        """The selection's first run begins; what was updated before `settled` is there to be read."""
        self._write("since", "all", settled)

    def aside(self) -> Mapping[str, AsideRecord]:
        """Orders that are kept aside, by their ids in small letters."""
        return self._aside

    def keep_aside(self, key: str, record: AsideRecord) -> None:
        """An order is kept aside by the commit that comes next."""
        self._write("aside", key, record)

    def take_back(self, key: str) -> None:
        """An order is kept aside no longer."""
        if key in self._aside:
            self._remove("aside", key)

    @property
    def watermark(self) -> datetime | None:
        """Up to when the last run found everything durable; `None`: no run of this selection ever did."""
        run = self.last_run
        return run.watermark if run is not None and run.selection == self.selection else None

    @property
    def empty(self) -> bool:
        """Whether this selection has no progress at all."""
        return not (self._done or self._open)

    @property
    def again(self) -> bool:
        """Whether everything is read again, so that what comes may be in the sink already."""
        return bool(self._again)

    def forget(self, services: Set[str] | None = None) -> None:
        """Start over: drop every record of what was read (`--full`); what is kept aside stays until it is mended.

        Args:
            services: ids in small letters: of these alone, and of walks that are of no others. What is known of those
                that are not read now stays, or all of them would come again as if it were new. `None`: of all.
        """
        for name, walk in list(self._open.items()):
            batch = self._batches.get(walk.batch)
            if services is None or batch is None or services >= set(map(str.lower, batch.service_ids)):
                self._remove("open", name)
        going_on = {walk.batch for walk in self._open.values()}
        for key, batch in list(self._batches.items()):
            left = tuple(id_ for id_ in batch.service_ids if services is not None and id_.lower() not in services)
            windows = self._done.get(key)
            if left == batch.service_ids:
                continue
            if windows is not None:
                self._remove("done", key)
            if key not in going_on:
                self._remove("batch", key)
            if left and windows is not None:
                new = batch_key(left)
                self._write("batch", new, msgspec.structs.replace(batch, service_ids=left))
                self._write("done", new, union((*self._done.get(new, ()), *windows)))
        for id_ in [id_ for id_ in self._bad if services is None or id_.lower() in services]:
            self._remove("bad", id_)
        self._write("again", "all", True)

    def cut(self, settled: datetime) -> None:
        """Nothing stands for what was updated at `settled` or later, whatever was noted: the clock had been ahead.

        It is read again, so what is committed already will come a second time.
        """
        for key, windows in list(self._done.items()):
            if windows and windows[-1].end > settled:
                kept = tuple(Window(one.start, min(one.end, settled)) for one in windows if one.start < settled)
                self._write("done", key, kept) if kept else self._remove("done", key)
        for key, record in list(self._open.items()):
            if record.settled > settled:
                self._write("open", key, msgspec.structs.replace(record, settled=settled))
        if self.since is not None and self.since > settled:
            self._write("since", "all", settled)
        self._write("again", "all", True)

    def limit(self, settled: datetime) -> None:
        """As `cut`, for whatever is noted from now on, too."""
        self._ceiling = settled
        self.cut(settled)

    def reaches_beyond(self, now: datetime) -> bool:
        """Whether it says that what is yet to come was read: the clock was ahead when it was noted."""
        return any(windows[-1].end > now for windows in self._done.values() if windows)

    def whole(self) -> None:
        """Everything is covered."""
        for key in list(self._again if self._ceiling is None else ()):
            self._remove("again", key)

    def regroup(self, services: Iterable[ServiceRef], keep: Iterable[Shard]) -> None:
        """Write what is covered by as few batches as it takes, so that batches that were walked once do not pile up.

        Args:
            services: all services of the selection.
            keep: walks that go on.
        """
        covered = self.covered()
        kept = list(keep)
        wanted: dict[str, BatchRecord] = {}
        done: dict[str, Windows] = {}
        # Services of one batch are covered alike, or what one has would be lost for the other.
        alike: dict[tuple[str, Windows], list[str]] = {}
        for service in sorted(services):
            if windows := covered.pop(service.id.lower(), ()):
                alike.setdefault((service.enterprise_id, windows), []).append(service.id)
        for service_id in sorted(covered):  # not there today, but they may come back
            alike.setdefault(("", covered[service_id]), []).append(service_id)
        for (enterprise, windows), ids in alike.items():
            for first in range(0, len(ids), MAX_IDS):
                record = BatchRecord(tuple(ids[first : first + MAX_IDS]), enterprise or None)
                key = batch_key(record.service_ids)
                wanted[key], done[key] = record, windows
        for shard in kept:
            wanted.setdefault(shard.batch_key, BatchRecord(shard.service_ids, shard.enterprise_id))
        self._replace("batch", self._batches, wanted)
        self._replace("done", self._done, done)
        open_keys = {shard.key for shard in kept}
        self._replace("open", self._open, {key: open_ for key, open_ in self._open.items() if key in open_keys})

    def advance(self, shard: Shard, position: Position) -> None:
        """A page of the shard is in the batch that is committed next; the walk goes on at `position`."""
        if position.cursor is None and not shard.repeats:
            return  # nothing of it was committed: it is as if it had not begun
        self._know_batch(shard)
        record = OpenRecord(
            shard.batch_key,
            shard.window,
            shard.settled if self._ceiling is None else min(shard.settled, self._ceiling),
            position.cursor,
            position.count,
            shard.open_ended,
            shard.repeats,
            shard.filtered,
            position.oldest,
        )
        self._write("open", shard.key, record)

    def finish(self, shard: Shard) -> None:
        """The shard's last page is in the batch that is committed next."""
        self.drop(shard)
        if self._ceiling is not None and shard.settled > self._ceiling:
            shard = msgspec.structs.replace(shard, settled=self._ceiling)
        if shard.stands_for:
            self._know_batch(shard)
            self._write("done", shard.batch_key, union((*self._done.get(shard.batch_key, ()), *shard.stands_for)))

    def drop(self, shard: Shard) -> None:
        """The shard is walked no more: it is finished, or was split into others."""
        if shard.key in self._open:
            self._remove("open", shard.key)

    def mark_bad(self, service_id: str, retry_at: datetime) -> None:
        """The platform refuses this service; it is left out until then."""
        self._write("bad", service_id, retry_at)

    def mark_good(self, service_id: str) -> None:
        """The platform takes this service (again)."""
        if service_id in self._bad:
            self._remove("bad", service_id)

    def record_run(self, run: RunRecord) -> None:
        """How the run goes, or went."""
        self.last_run = run
        self._changes[f"{self.portfolio}/run"] = _text(run)

    def take_changes(self) -> dict[str, str | None]:
        """The records that changed since the last call: to be committed with the rows they stand for."""
        changes, self._changes = self._changes, {}
        return changes

    def _know_batch(self, shard: Shard) -> None:
        if shard.batch_key not in self._batches:
            self._write("batch", shard.batch_key, BatchRecord(shard.service_ids, shard.enterprise_id))

    def _read(self, records: Mapping[str, str], kind: str, type_: type[T]) -> dict[str, T]:
        prefix = f"{self._prefix}{kind}/"
        return {
            name.removeprefix(prefix): msgspec.json.decode(text, type=type_)
            for name, text in records.items()
            if name.startswith(prefix)
        }

    def _write(self, kind: str, key: str, record: object) -> None:
        self._kinds[kind][key] = record
        self._changes[f"{self._prefix}{kind}/{key}"] = _text(record)

    def _remove(self, kind: str, key: str) -> None:
        del self._kinds[kind][key]
        self._changes[f"{self._prefix}{kind}/{key}"] = None

    def _replace(self, kind: str, old: Mapping[str, T], new: Mapping[str, T]) -> None:
        for key in [key for key in old if key not in new]:
            self._remove(kind, key)
        for key, record in new.items():
            if old.get(key) != record:
                self._write(kind, key, record)


def owners_of(records: Mapping[str, str]) -> dict[str, set[str]]:
    """By service id in small letters, the prefixes (portfolio and selection) under which it was walked."""
    owners: dict[str, set[str]] = {}
    for name, text in records.items():
        parts = name.split("/")  # whole parts: a portfolio may be called "batch"
        if len(parts) == 4 and parts[2] == "batch":
            for service_id in msgspec.json.decode(text, type=BatchRecord).service_ids:
                owners.setdefault(service_id.lower(), set()).add(f"{parts[0]}/{parts[1]}/")
    return owners


def watermark_of(portfolio: str, states: Iterable[str] | None, records: Mapping[str, str]) -> datetime | None:
    """See `Checkpoint.watermark`; reads no other record."""
    text = records.get(f"{portfolio}/run")
    run = None if text is None else msgspec.json.decode(text, type=RunRecord)
    return run.watermark if run is not None and run.selection == selection_key(states) else None


def describe(records: Mapping[str, str]) -> list[PortfolioStatus]:
    """What the records of a sink say of each portfolio, by name."""
    statuses: list[PortfolioStatus] = []
    for name in sorted({record.partition("/")[0] for record in records}):
        run_text = records.get(f"{name}/run")
        run = None if run_text is None else msgspec.json.decode(run_text, type=RunRecord)
        statuses.append(
            PortfolioStatus(
                portfolio=name,
                watermark=run.watermark if run else None,
                last_run_ended=run.ended if run else None,
                last_run=run.outcome if run else "running or killed",
                shards_open=sum(record.startswith(f"{name}/") and "/open/" in record for record in records),
                failed=run.failed if run else (),
                kept_aside=sum(record.startswith(f"{name}/") and "/aside/" in record for record in records),
            )
        )
    return statuses


def _text(record: object) -> str:
    return msgspec.json.encode(record).decode()
