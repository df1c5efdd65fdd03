"""Finding what the platform refuses, when it refuses a list of a thousand ids and names none. Pure but for the asking.

A list is refused if any of its ids is, so one that is refused alone is found by halves, exactly. Where a right is
missing (401, 403) that may be so for all ids, and halves would ask for each of them. So a few are asked for alone
first, and what is refused for every one of them is taken to be refused altogether.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from fetcher.errors import AccessDeniedError, PlatformError

Probe = Callable[[Sequence[str]], Awaitable[PlatformError | None]]
"""Asks the platform for some ids; gives its refusal, or `None` if it takes them all."""

SAMPLE = 6
"""Ids asked for alone: were half of them allowed, all six would be refused once in 64 times."""


class Denied(msgspec.Struct, frozen=True):
    """What a token has no right to, each with the refusal."""

    everything: AccessDeniedError | None
    """Not `None`: whatever was asked for; the rest is empty then."""
    enterprises: Mapping[str, AccessDeniedError]
    """By enterprise id, those of which nothing was taken."""
    ids: Mapping[str, PlatformError]
    """By id, what else is refused alone."""


async def find_refused(ids: Sequence[str], probe: Probe) -> dict[str, PlatformError]:
    """The ids of a refused list that are refused alone, each with the refusal.

    About 2 log2(n) probes for each of them: a list whose sibling is good is known to be bad without asking.

    Args:
        ids: a list that was refused, one or more.
        probe: asks for part of it.
    """
    refused: dict[str, PlatformError] = {}
    suspects = [(list(ids), True)]  # lists to look at, and whether each is known to be refused
    while suspects:
        part, known = suspects.pop()
        if len(part) > 1 and known:
            half = len(part) // 2
            first, second = part[:half], part[half:]
            if await probe(first) is None:
                suspects.append((second, True))
            else:
                suspects += [(second, False), (first, True)]
            continue
        error = await probe(part)
        if error is None:
            continue
        if len(part) == 1:
            refused[part[0]] = error
        else:
            suspects.append((part, True))
    return refused


async def find_denied(ids: Sequence[str], enterprises: Mapping[str, Sequence[str]], probe: Probe) -> Denied:
    """What a token has no right to, once a list was refused for it: all, whole enterprises, or single ids.

    At most `SAMPLE` probes if it is all. About 2 log2(n) + `SAMPLE` for each enterprise, and for each single id.

    Args:
        ids: a list that was refused, one or more.
        enterprises: by enterprise, all ids that there are, those of the list among them.
        probe: asks for some of them.
    """
    listed = set(ids)
    units = {
        enterprise: mine
        for enterprise, all_ids in enterprises.items()
        if (mine := [id_ for id_ in all_ids if id_ in listed])
    }
    # First those that are not under suspicion: one that is taken ends the question.
    others = [all_ids for enterprise, all_ids in enterprises.items() if enterprise not in units]
    suspects = [enterprises[enterprise] for enterprise in units]
    if (error := await _all_denied(spread(others + suspects, SAMPLE), probe)) is not None:
        return Denied(error, {}, {})

    async def probe_units(some: Sequence[str]) -> PlatformError | None:
        return await probe([id_ for enterprise in some for id_ in units[enterprise]])

    refused = list(units) if len(units) == 1 else list(await find_refused(list(units), probe_units))
    denied: dict[str, AccessDeniedError] = {}
    alone: dict[str, PlatformError] = {}
    for enterprise in refused:
        error = await _all_denied(spread([enterprises[enterprise]], SAMPLE), probe)
        if error is not None:
            denied[enterprise] = error
        else:
            alone.update(await find_refused(units[enterprise], asked_twice(probe)))
    return Denied(None, denied, alone)


def asked_twice(probe: Probe) -> Probe:
    """Asks again before it calls a single id refused: that outlasts the run, and may have been a mistake."""

    async def ask(ids: Sequence[str]) -> PlatformError | None:
        refusal = await probe(ids)
        return refusal if refusal is None or len(ids) > 1 else await probe(ids)

    return ask


async def _all_denied(ids: Sequence[str], probe: Probe) -> AccessDeniedError | None:
    """The refusal, if each of these is refused alone, and for want of a right; `None` as soon as one is not."""
    denied: AccessDeniedError | None = None
    for id_ in [*ids, *ids] if len(ids) * 2 <= SAMPLE else ids:  # few answers may all have been mistakes
        error = await probe([id_])
        if not isinstance(error, AccessDeniedError):
            return None
        denied = denied or error
    return denied


def spread(groups: Sequence[Sequence[str]], most: int) -> list[str]:
    """At most so many ids, of as many groups as can be, in the groups' order; of each group from all over it."""
    taken: list[str] = []
    step = max(1, len(groups) // most)
    chosen = groups[::step][:most]
    share, more = divmod(most, max(1, len(chosen)))
    for place, group in enumerate(chosen):
        count = min(len(group), share + (place < more))
        taken += [group[number * len(group) // count] for number in range(count)]
    return taken
