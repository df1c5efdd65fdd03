"""`fetcher.load`: a whole selection as one Arrow table, for notebooks."""

# pyarrow ships no types, so that everything of it is unknown to the checker; what is ours is still checked.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingTypeStubs=false, reportAttributeAccessIssue=false

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from typing import TypeVar

import anyio
import msgspec

from fetcher.config import Config
from fetcher.errors import IncompleteError, MissingExtraError
from fetcher.job import Job
from fetcher.report import Failure

try:
    import pyarrow as pa
    import pyarrow.compute as pc

    from fetcher.sinks.arrow import SCHEMA, fitting
except ImportError as missing:
    raise MissingExtraError("fetcher.load", "parquet") from missing

T = TypeVar("T")

END_SECONDS = 4.0
"""After Ctrl-C, for the load to end; then it is left to itself: the lookup of a name cannot be interrupted."""


def load_table(config: Config) -> pa.Table:
    """See `fetcher.load`."""
    return _in_thread(_collect, config)


def _in_thread(function: Callable[[Config], Awaitable[T]], config: Config) -> T:
    """Run it in a thread of its own, for a notebook's has an event loop that runs already.

    Whatever ends the wait for it, Ctrl-C say, cancels it.
    """
    done: Future[T] = Future()
    cancel: Future[Callable[[], object]] = Future()

    async def within() -> T:
        with anyio.CancelScope() as scope:
            loop = asyncio.get_running_loop()
            cancel.set_result(lambda: loop.call_soon_threadsafe(scope.cancel))
            return await function(config)
        raise RuntimeError("cancelled, so nobody waits for what comes of it")

    def work() -> None:
        try:
            done.set_result(anyio.run(within))
        except BaseException as error:  # raised where it is waited for
            done.set_exception(error)

    thread = Thread(target=work, name="fetcher-load", daemon=True)
    thread.start()
    try:
        return done.result()
    except BaseException:  # Ctrl-C, too: nobody waits for the load any more
        with suppress(RuntimeError, TimeoutError):  # its loop has ended, or never began
            cancel.result(END_SECONDS)()
        raise
    finally:
        thread.join(END_SECONDS)


async def _collect(config: Config) -> pa.Table:
    async with Job(config) as job:
        batches: list[pa.RecordBatch] = []
        misfits: list[Failure] = []
        async for page in job.pages():
            batch, rejected = fitting(msgspec.structs.replace(page, rejected=()))
            batches.append(batch)
            misfits += [
                Failure(portfolio=row.portfolio, enterprise=row.enterprise_id, error=f"order {row.id}: {row.reason}")
                for row in rejected
            ]
        failed = [failure for tally in job.tallies for failure in tally.failed] + misfits
    table = _newest(pa.Table.from_batches(batches, SCHEMA))
    if failed:
        raise IncompleteError(failed, table)
    return table


def _newest(table: pa.Table) -> pa.Table:
    """One row an order: its newest version; of equal times, what came last. Only what changed meanwhile comes twice."""
    ids = pc.ascii_lower(table["id"])
    if len(pc.unique(ids)) == len(table):
        return table
    places = pa.array(range(len(table)), pa.int64())
    numbered = pa.table({"id": ids, "updated": table["updated_utc"], "place": places})
    numbered = numbered.take(pc.sort_indices(numbered, [("updated", "descending"), ("place", "descending")]))
    numbered = numbered.append_column("rank", places)
    first = numbered.group_by("id").aggregate([("rank", "min")])["rank_min"]
    return table.take(numbered["place"].take(first).sort())
