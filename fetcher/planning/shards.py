"""From services, and what is covered already, to shards. Pure and deterministic: the same input, the same plan.

The rule that cannot be broken: for every service, the windows of its shards and the windows covered before make up
the whole target, without a gap (promise P1), and no two shards of a plan share an instant of a service (P2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from hashlib import blake2b
from itertools import pairwise
from typing import Literal

import msgspec

from fetcher.connector.operations import MAX_IDS
from fetcher.planning.windows import Window, Windows, grid, overlaps, subtract, union

ShardBy = Literal["auto", "enterprise", "portfolio"]
"""`auto`: services of all enterprises share walks, which are split while walkers are idle; `portfolio`: likewise, but
never split; `enterprise`: each enterprise has walks of its own, which are split likewise."""


class ServiceRef(msgspec.Struct, frozen=True, order=True):
    """A service and the enterprise that it belongs to."""

    enterprise_id: str
    id: str


class Shard(msgspec.Struct, frozen=True, dict=True, kw_only=True):
    """What one cursor walk reads: the orders of some services, updated in one window."""

    service_ids: tuple[str, ...]
    """1 to 1000 ids, sorted."""
    window: Window
    enterprise_id: str | None = None
    """The enterprise of all the services; `None` where services of several are packed together."""
    settled: datetime
    """By the platform's clock, what was updated before it is there to be read. The finished walk stands for the window
    up to here; a later run reads on from here (it is the run's end, less what commits late)."""
    open_ended: bool = False
    """Whether it reads on beyond the window's end, to whatever is newest when it is read."""
    repeats: bool = False
    """Whether an earlier walk may have committed orders of it."""
    filtered: bool = False
    """Whether the platform is asked for orders in the selection's states alone: nothing of these services and this time
    is in the sink that could have changed to another state."""

    @cached_property
    def batch_key(self) -> str:
        """Names the set of services: 16 hexadecimal digits."""
        return batch_key(self.service_ids)

    @cached_property
    def key(self) -> str:
        """Names the shard: the services, and the window's start and end."""
        return f"{self.batch_key}/{self.window.start.isoformat()}/{self.window.end.isoformat()}"

    @property
    def stands_for(self) -> Windows:
        """The instants that need no further walk once this one is finished; none, if all of it is too recent."""
        return union([Window(self.window.start, min(self.window.end, self.settled))])


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is to bring: a window of time, cut at every `months` months, sharded one way or the other."""

    window: Window
    settled: datetime
    """See `Shard.settled`."""
    open_ended: bool
    """Whether the selection has no end, so that the newest shards read on beyond the window's."""
    months: int
    shard_by: ShardBy


def batch_key(service_ids: Iterable[str]) -> str:
    """Names a set of services: 16 hexadecimal digits."""
    return blake2b(",".join(service_ids).encode(), digest_size=8).hexdigest()


def plan(
    services: Iterable[ServiceRef],
    covered: Mapping[str, Windows],
    target: Target,
    tainted: Mapping[str, Windows] | None = None,
    filtered_until: Mapping[str, datetime] | None = None,
) -> list[Shard]:
    """The shards that are missing, the newest first; enterprises take turns within the same window.

    Args:
        services: all services of the selection.
        covered: by service id, the instants that need no walk. A service that is not in it needs all.
        target: what the run is to bring.
        tainted: by service id, instants that were begun and start again: their orders may come a second time.
        filtered_until: by service id, up to when the platform may leave out other states, see `Shard.filtered`; a
            service that is not in it is read whole.
    """
    shards: list[Shard] = []
    for (enterprise, missing, until), members in _groups(services, covered, target, filtered_until or {}).items():
        for ids in pack(members):
            shards += _batch_shards(ids, enterprise, missing, target, tainted or {}, until)
    shards.sort(key=lambda shard: (shard.window.start, shard.window.end), reverse=True)  # stable: batches stay in turn
    return shards


def pack(services: Sequence[ServiceRef]) -> list[tuple[str, ...]]:
    """As few lists of at most 1000 ids as there can be; an enterprise's services stay together where that costs none.

    Args:
        services: sorted.
    """
    least = -(-len(services) // MAX_IDS)
    enterprises: dict[str, list[str]] = {}
    for service in services:
        enterprises.setdefault(service.enterprise_id, []).append(service.id)
    lists: list[list[str]] = []
    for ids in sorted(enterprises.values(), key=len, reverse=True):  # stable: the same input, the same lists
        for first in range(0, len(ids), MAX_IDS):
            part = ids[first : first + MAX_IDS]
            for other in lists:
                if len(other) + len(part) <= MAX_IDS:
                    other += part
                    break
            else:
                lists.append(part)
    if len(lists) > least:
        ids = [service.id for service in services]
        lists = [ids[first : first + MAX_IDS] for first in range(0, len(ids), MAX_IDS)]
    return [tuple(sorted(ids)) for ids in lists]


def give_away(shard: Shard, floor: datetime, parts: int) -> tuple[Shard, ...] | None:
    """The shard as the part that its walk keeps, and at most `parts` older ones, of which nothing was read.

    Nothing older than `floor` was read, so whatever order the platform has, what is given away needs no cursor, and
    brings nothing that came before; and the cursor's own order stays within what is kept. Cuts are on whole seconds.

    Args:
        shard: that is being walked.
        floor: the oldest `UpdatedUtc` that came.
        parts: 1 or more, as many as there are seconds.

    Returns: what is kept, then the newest of the others first; `None`: there is no whole second to give away.
    """
    start, top = shard.window.start, floor.replace(microsecond=0)
    seconds = int((top - start).total_seconds())
    if top >= shard.window.end or seconds < 1:
        return None
    shares = min(parts + 1, seconds + 1)
    cuts = sorted({start + timedelta(seconds=seconds * share // shares) for share in range(1, shares)} - {start})
    if not cuts:
        cuts = [top]
    edges = [start, *cuts]
    kept = msgspec.structs.replace(shard, window=Window(cuts[-1], shard.window.end))
    older = [
        msgspec.structs.replace(shard, window=Window(first, second), open_ended=False)
        for first, second in reversed(list(pairwise(edges)))
    ]
    return kept, *older


def closing_shards(
    services: Sequence[ServiceRef], window: Window, settled: datetime, batch_size: int = MAX_IDS
) -> list[Shard]:
    """The walks that end a run: what changed while it read, packed across enterprises, since there is little of it."""
    ids = sorted(service.id for service in services)
    return [
        Shard(service_ids=tuple(ids[first : first + batch_size]), window=window, settled=settled, open_ended=True)
        for first in range(0, len(ids), batch_size)
    ]


def cut_at(shard: Shard, instant: datetime) -> tuple[Shard, ...] | None:
    """The shard as what is of the second of `instant` or newer, and what is older; `None` if either is nothing."""
    place = instant.replace(microsecond=0)
    if not shard.window.start < place < shard.window.end:
        return None
    older = msgspec.structs.replace(shard, window=Window(shard.window.start, place), open_ended=False)
    return msgspec.structs.replace(shard, window=Window(place, shard.window.end)), older


def cut_window(shard: Shard, cuts: int) -> tuple[Shard, ...] | None:
    """The shard as parts of its time, about equal, the newest first; `None` if it has only one second.

    Args:
        shard: any.
        cuts: 1 or more, on whole seconds, as far as there are as many.
    """
    start, end = shard.window.start, shard.window.end
    places = {(start + (end - start) * cut / (cuts + 1)).replace(microsecond=0) for cut in range(1, cuts + 1)}
    inside = sorted(place for place in places if start < place < end)
    if not inside:
        return None
    newest = msgspec.structs.replace(shard, window=Window(inside[-1], end))
    older = [
        msgspec.structs.replace(shard, window=Window(first, second), open_ended=False)
        for first, second in reversed(list(pairwise([start, *inside])))
    ]
    return newest, *older


def split_window(shard: Shard) -> tuple[Shard, ...] | None:
    """The shard as two, the newer half first, cut on a whole second; `None` if it has only one."""
    return cut_window(shard, 1)


def cut_services(shard: Shard, cuts: int) -> tuple[Shard, ...] | None:
    """The shard as parts with about as many services each, `cuts + 1` if it has so many; `None` if it has only one."""
    ids = shard.service_ids
    parts = min(cuts + 1, len(ids))
    if parts < 2:
        return None
    edges = [len(ids) * part // parts for part in range(parts + 1)]
    return tuple(msgspec.structs.replace(shard, service_ids=ids[first:last]) for first, last in pairwise(edges))


def split_services(shard: Shard) -> tuple[Shard, ...] | None:
    """The shard as two with half of the services each; `None` if it has only one service."""
    return cut_services(shard, 1)


def least_seconds(requests: int, limit: int, per_seconds: float) -> float:
    """The least time in which a budget of `limit` requests in `per_seconds` lets that many through."""
    return max(0, -(-requests // limit) - 1) * per_seconds


def _groups(
    services: Iterable[ServiceRef],
    covered: Mapping[str, Windows],
    target: Target,
    filtered_until: Mapping[str, datetime],
) -> dict[tuple[str | None, Windows, datetime | None], list[ServiceRef]]:
    """Services that can share a walk: of one enterprise (unless packed), missing the same, filtered up to the same."""
    groups: dict[tuple[str | None, Windows, datetime | None], list[ServiceRef]] = {}
    for service in sorted(services):
        missing = subtract(target.window, covered.get(service.id, ()))
        if missing:
            enterprise = service.enterprise_id if target.shard_by == "enterprise" else None
            groups.setdefault((enterprise, missing, filtered_until.get(service.id)), []).append(service)
    return groups


def _batch_shards(
    ids: tuple[str, ...],
    enterprise: str | None,
    missing: Windows,
    target: Target,
    tainted: Mapping[str, Windows],
    filtered_until: datetime | None,
) -> list[Shard]:
    begun = union(window for service in ids for window in tainted.get(service, ()))
    return [
        Shard(
            service_ids=ids,
            window=window,
            enterprise_id=enterprise,
            settled=target.settled,
            open_ended=target.open_ended and window.end == target.window.end,
            repeats=overlaps(window, begun),
            filtered=filtered_until is not None and window.end <= filtered_until,
        )
        for gap in missing
        for window in grid(gap, target.months)
    ]
