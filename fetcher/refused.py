"""Finding the ids that the platform refuses, when it refuses a list of a thousand and names none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from fetcher.errors import PlatformError

Probe = Callable[[Sequence[str]], Awaitable[PlatformError | None]]
"""Asks the platform for some ids; gives its refusal, or `None` if it takes them all."""


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
