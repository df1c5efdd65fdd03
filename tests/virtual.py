"""An event loop whose time passes only while nobody has anything to do: no test sleeps, and every run is the same."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

MOMENT = 1e-9
"""Every turn of the loop takes as long: whoever is woken a rounding error early must not find the same time again."""


class _Selector(selectors.SelectSelector):
    """Instead of waiting for a timer, moves the clock there."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise RuntimeError("everybody waits for somebody else: nothing will ever happen again")
        self.loop.passed += timeout + MOMENT
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time starts at 1000 seconds. Nothing in it may use threads or sockets."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self.passed = 1000.0
        super().__init__(selector)

    def time(self) -> float:
        return self.passed


def run_virtually(function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Run a coroutine function to its end in virtual time."""
    return anyio.run(function, *arguments, backend_options={"loop_factory": VirtualLoop})
