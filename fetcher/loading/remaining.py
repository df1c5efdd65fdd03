"""What is left to walk: from what is there, what the run is to bring, and what earlier runs have reached. Pure.

The rule that cannot be broken: a service's new shards, its walks that go on, and what is covered make up the whole
target (promise P1); and whatever may come a second time is marked as that (`Shard.repeats`, promise P2), by
what `Repeats` says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

import msgspec

from fetcher.planning.checkpoint import Checkpoint, Position
from fetcher.planning.repeats import Repeats
from fetcher.planning.shards import ServiceRef, Shard, Target, plan
from fetcher.planning.windows import Windows, union

UnderWay = tuple[Shard, Position]
"""A walk that was begun, and where it goes on."""


def remaining(
    checkpoint: Checkpoint,
    services: Sequence[ServiceRef],
    target: Target,
    repeats: Repeats,
    *,
    by_states: bool,
) -> tuple[list[Shard], list[UnderWay]]:
    """The shards that are missing, and the walks that go on.

    Args:
        checkpoint: what was reached.
        services: what is to be loaded.
        target: what the run is to bring of them.
        repeats: says what may come a second time.
        by_states: whether only orders in some states are asked for.
    """
    known = dict(checkpoint.covered())
    repeated = repeats.of_services(service.id for service in services)
    going_on: list[UnderWay] = []
    for shard, position in under_way(checkpoint, services)[0]:
        for service in map(str.lower, shard.service_ids):
            known[service] = (*known.get(service, ()), *shard.stands_for)
        twice = shard.repeats or not repeated.isdisjoint(shard.service_ids)
        going_on.append((msgspec.structs.replace(shard, repeats=twice), position))
    covered = {service.id: union(known.get(service.id.lower(), ())) for service in services}
    filtered = _filtered_until(covered, repeated, target, checkpoint.since) if by_states else {}
    return plan(services, covered, target, repeats.of_time(covered, repeated, target), filtered), going_on


def under_way(checkpoint: Checkpoint, services: Iterable[ServiceRef]) -> tuple[list[UnderWay], list[UnderWay]]:
    """The walks that were under way: those that go on, and those that wait until their services are back."""
    known = {service.id.lower(): service.id for service in services}  # as the platform spells it today
    going_on: list[UnderWay] = []
    waiting: list[UnderWay] = []
    for shard, position in checkpoint.begun():
        here = tuple(sorted(known[service.lower()] for service in shard.service_ids if service.lower() in known))
        gone = tuple(service for service in shard.service_ids if service.lower() not in known)
        if here:
            going_on.append((msgspec.structs.replace(shard, service_ids=here), position))
        if gone:
            waiting.append((msgspec.structs.replace(shard, service_ids=gone), position))
    return going_on, waiting


def write_down(checkpoint: Checkpoint, services: Sequence[ServiceRef], going_on: Sequence[UnderWay]) -> None:
    """Have the checkpoint speak of the walks as they go on now (`services`: all of the selection), and of no others."""
    resumed = [*going_on, *under_way(checkpoint, services)[1]]
    for shard, position in resumed:
        checkpoint.advance(shard, position)  # parts of a walk take its place
    checkpoint.regroup(services, [shard for shard, _ in resumed])


def divide(checkpoint: Checkpoint, services: Collection[str]) -> None:
    """Walks under way that are of these services and of others become two each, so that either can go on alone."""
    for shard, position in checkpoint.begun():
        here = tuple(service for service in shard.service_ids if service in services)
        gone = tuple(service for service in shard.service_ids if service not in services)
        if here and gone:
            checkpoint.drop(shard)
            for part in (here, gone):
                checkpoint.advance(msgspec.structs.replace(shard, service_ids=part), position)


def _filtered_until(
    covered: Mapping[str, Windows], repeated: Collection[str], target: Target, since: datetime | None
) -> dict[str, datetime]:
    """See `fetcher.planning.shards.plan`. What was loaded may change to another state, and that is to be heard.

    It changes after it was loaded. So whatever was updated before anything of its service was read can be asked
    for by states: all of a service that is new, and what is left of the selection's first run.
    """
    until = {service: target.window.end for service, windows in covered.items() if not windows}
    if since is not None:
        until |= {service: since for service, windows in covered.items() if windows}
    return {service: end for service, end in until.items() if service not in repeated}
