"""The thread of the sink: what happens there is waited for, and told to hurry when the caller is cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import anyio
import pytest

from fetcher.errors import SinkError
from fetcher.sinks.writer import SinkThread


class Commit:
    """Takes until it is abandoned."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.abandoned = threading.Event()
        self.ended = False

    def __call__(self) -> None:
        self.begun.set()
        assert self.abandoned.wait(30)
        self.ended = True
        raise SinkError("x:", "it was abandoned", "")


async def _by_a_scope(thread: SinkThread, commit: Commit) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(thread, commit)
        await asyncio.to_thread(commit.begun.wait, 30)
        group.cancel_scope.cancel()


async def _by_asyncio(thread: SinkThread, commit: Commit) -> None:
    task = asyncio.ensure_future(thread(commit))
    await asyncio.to_thread(commit.begun.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("cancel", [_by_a_scope, _by_asyncio])
def test_who_is_cancelled_has_the_sink_hurry_and_waits_for_its_end(cancel: Callable[..., object]) -> None:
    commit = Commit()
    with SinkThread(commit.abandoned.set) as thread:
        asyncio.run(cancel(thread, commit))  # type: ignore[arg-type]
        assert commit.ended


def test_who_is_not_cancelled_gets_the_result_and_hurries_nobody() -> None:
    async def check() -> None:
        with SinkThread(lambda: pytest.fail("nobody is in a hurry")) as thread:
            assert await thread(sum, [1, 2]) == 3
            with pytest.raises(SinkError):
                await thread(_fail)

    asyncio.run(check())


def _fail() -> None:
    raise SinkError("x:", "no", "")
