"""`fetcher.load`: a whole selection as one Arrow table, for notebooks."""

# pyarrow ships no types, so that everything of it is unknown to the checker; what is ours is still checked.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingTypeStubs=false, reportAttributeAccessIssue=false

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import anyio

from fetcher.config import Config
from fetcher.errors import IncompleteError, MissingExtraError
from fetcher.job import Job

try:
    import pyarrow as pa
    import pyarrow.compute as pc

    from fetcher.sinks.table import SCHEMA, to_record_batch
except ImportError as missing:
    raise MissingExtraError("fetcher.load", "parquet") from missing


def load_table(config: Config) -> pa.Table:
    """See `fetcher.load`."""
    # In a thread of its own, because a notebook's has an event loop that runs already.
    with ThreadPoolExecutor(1, thread_name_prefix="fetcher-load") as executor:
        return executor.submit(anyio.run, _collect, config).result()


async def _collect(config: Config) -> pa.Table:
    async with Job(config) as job:
        batches = [to_record_batch(page) async for page in job.pages()]
        failed = [failure for tally in job.tallies for failure in tally.failed]
    table = _newest(pa.Table.from_batches(batches, SCHEMA))
    if failed:
        raise IncompleteError(failed, table)
    return table


def _newest(table: pa.Table) -> pa.Table:
    """One row an order: its newest version. Only what changed while it was read comes twice."""
    if len(pc.unique(table["id"])) == len(table):
        return table
    order = pc.sort_indices(table, [("updated_utc", "descending")])
    table = table.take(order)
    numbered = table.select(["id"]).append_column("row", pa.array(range(len(table)), pa.int64()))
    first = numbered.group_by("id").aggregate([("row", "min")])["row_min"]
    return table.take(first.sort())
