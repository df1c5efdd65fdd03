"""How long nothing was heard, for a process that may itself be stopped meanwhile (Ctrl-Z, a machine that sleeps)."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

import anyio

STEPS = 10
"""A time that passed without this process counts as one of them: what came meanwhile is heard first."""


@contextmanager
def move_on_after_awake(seconds: float) -> Generator[anyio.CancelScope]:
    """As `anyio.move_on_after`, but in seconds in which this process ran, to a tenth of them."""
    loop = asyncio.get_running_loop()

    def step(left: int) -> None:
        nonlocal timer
        if left:
            timer = loop.call_later(seconds / STEPS, step, left - 1)
        else:
            scope.cancel()

    timer = loop.call_later(seconds / STEPS, step, STEPS - 1)
    try:
        with anyio.CancelScope() as scope:
            yield scope
    finally:
        timer.cancel()
