"""From pages to commits: when, in which order, and what a failure leaves behind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import anyio
import pytest
from anyio.streams.memory import MemoryObjectSendStream

from fetcher.errors import SinkError, TakenOverError
from fetcher.report import Tally
from fetcher.sinks.base import Batch, EncodedPage, Holdings, Page, Progress, Sink, portfolios_of
from fetcher.sinks.writer import Delivery, Writer, deliver
from tests.virtual import run_virtually

T = TypeVar("T")


class KeepingSink(Sink):
    """Keeps what was committed, and when."""

    batch_rows = 1000

    def __init__(self) -> None:
        super().__init__("memory:")
        self.batches: list[tuple[float, list[int], dict[str, str | None]]] = []
        self.forgotten: list[Mapping[str, str]] = []
        self.fails_at: int | None = None

    def probe(self) -> None: ...

    def open(self) -> Progress:
        return {}

    def encode(self, page: Page) -> EncodedPage:
        raise NotImplementedError

    def commit(self, batch: Batch) -> Mapping[str, int]:
        if len(self.batches) + 1 == self.fails_at:
            raise SinkError("memory:", "the disk is full", "Make room")
        pages = [page.payload for page in batch.pages]
        self.batches.append((anyio.current_time(), pages, dict(batch.progress)))
        self.forgotten.append(batch.forget_before)
        return {"north": sum(page.rows for page in batch.pages)}

    def holdings(self) -> Holdings:
        raise NotImplementedError

    def close(self) -> None: ...


class Line:
    """A writer, and what goes to it."""

    def __init__(self, commit_seconds: float = 0.0, rows: int = 1, size: int = 100) -> None:
        self.sink = KeepingSink()
        self.tally = Tally(portfolio="north")
        self.accepted: list[int] = []
        self.most_at_once = 0
        self._at_once = 0
        self._commit_seconds = commit_seconds
        self._rows = rows
        self._size = size
        self._sent = 0

    async def offload(self, function: Callable[..., T], *arguments: object) -> T:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await anyio.sleep(self._commit_seconds)
        self._at_once -= 1
        return function(*arguments)

    async def send(self, stream: MemoryObjectSendStream[Delivery], count: int = 1, *, page: bool = True) -> None:
        for _ in range(count):
            self._sent += 1
            number = self._sent
            encoded = EncodedPage(portfolio="north", rows=self._rows, size=self._size, payload=number)

            def accept(number: int = number) -> Mapping[str, str | None]:
                self.accepted.append(number)
                return {"walk": str(number)}

            await deliver(stream, Delivery(portfolio="north", page=encoded if page else None, accept=accept))

    def run(self, feed: Callable[[MemoryObjectSendStream[Delivery]], Awaitable[None]]) -> None:
        async def scenario() -> None:
            send, receive = anyio.create_memory_object_stream[Delivery](0)
            writer = Writer(self.sink, self.offload, lambda: {"north": "2024"}, {"north": self.tally})
            with receive:
                async with anyio.create_task_group() as group:

                    async def feeding() -> None:
                        async with send:
                            await feed(send)

                    group.start_soon(feeding)
                    await writer.run(receive)

        run_virtually(scenario)

    @property
    def pages(self) -> list[list[int]]:
        return [pages for _, pages, _ in self.sink.batches]

    @property
    def times(self) -> list[float]:
        """Of the commits, since the start."""
        return [round(time - 1000, 1) for time, _, _ in self.sink.batches]


def test_the_first_commit_comes_within_two_seconds_of_the_first_page_and_later_ones_are_larger() -> None:
    line = Line(commit_seconds=0.5)

    async def feed(stream: Any) -> None:
        await anyio.sleep(30)  # discovery
        for _ in range(1000):
            await line.send(stream)
            await anyio.sleep(0.1)

    line.run(feed)
    assert line.times[0] <= 32
    gaps = [later - earlier for earlier, later in zip(line.times, line.times[1:], strict=False)]
    assert gaps[:5] == pytest.approx([2, 4, 8, 16, 20], abs=0.3)
    assert all(gap == pytest.approx(20, abs=0.3) for gap in gaps[4:-1])
    assert sorted(number for pages in line.pages for number in pages) == list(range(1, 1001))


def test_a_page_alone_is_durable_within_its_time_though_nothing_follows() -> None:
    line = Line()

    async def feed(stream: Any) -> None:
        await line.send(stream)
        await anyio.sleep(3600)

    line.run(feed)
    assert line.times == [1.0]


def test_a_full_batch_is_committed_at_once() -> None:
    line = Line(rows=250)

    async def feed(stream: Any) -> None:
        await line.send(stream, 10)

    line.run(feed)
    assert line.pages == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    assert line.times == [0.0, 0.0, 0.0]


def test_a_batch_is_full_by_its_bytes_too() -> None:
    line = Line(size=Writer.BATCH_BYTES // 2)

    async def feed(stream: Any) -> None:
        await line.send(stream, 5)

    line.run(feed)
    assert line.pages == [[1, 2], [3, 4], [5]]


@pytest.mark.parametrize("rows", [1, 100, 1000])
def test_progress_is_committed_with_the_pages_that_it_stands_for(rows: int) -> None:
    line = Line(commit_seconds=0.7, rows=rows)

    async def feed(stream: Any) -> None:
        for _ in range(60):
            await line.send(stream)
            await anyio.sleep(0.3)

    line.run(feed)
    assert line.accepted == list(range(1, 61))
    assert [number for pages in line.pages for number in pages] == line.accepted
    for _, pages, progress in line.sink.batches:
        assert progress == {"walk": str(pages[-1])}
    assert line.tally.committed == 60 * rows


def test_one_commit_at_a_time_while_the_next_batch_fills() -> None:
    line = Line(commit_seconds=5, rows=500)

    async def feed(stream: Any) -> None:
        await line.send(stream, 2)
        await line.send(stream, 2)
        assert anyio.current_time() < 1001  # the second batch filled while the first was committed
        await line.send(stream, 2)
        assert anyio.current_time() >= 1005  # but no third

    line.run(feed)
    assert line.most_at_once == 1
    assert line.times == [5.0, 10.0, 15.0]


def test_no_more_of_the_next_batch_is_taken_than_there_is_room_for() -> None:
    line = Line(commit_seconds=100, rows=1, size=Writer.AHEAD_BYTES)

    async def feed(stream: Any) -> None:
        await line.send(stream, 4)  # 64 MiB: a batch
        await line.send(stream, 1)
        with anyio.move_on_after(50) as waiting:
            await line.send(stream, 1)
        assert waiting.cancelled_caught

    line.run(feed)
    assert line.pages == [[1, 2, 3, 4], [5]]


def test_news_without_a_page_is_committed_in_its_turn() -> None:
    line = Line()

    async def feed(stream: Any) -> None:
        await line.send(stream)
        await line.send(stream, page=False)

    line.run(feed)
    assert line.sink.batches[0][1:] == ([1], {"walk": "2"})


def test_the_last_batch_says_what_may_be_forgotten_and_only_it() -> None:
    line = Line(rows=1000)

    async def feed(stream: Any) -> None:
        await line.send(stream, 2)
        await line.send(stream, page=False)

    line.run(feed)
    assert line.sink.forgotten == [{}, {}, {"north": "2024"}]


def test_nothing_is_committed_where_nothing_came() -> None:
    line = Line()

    async def feed(_stream: Any) -> None:
        await anyio.sleep(100)

    line.run(feed)
    assert line.sink.batches == []


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_after_a_commit_that_failed_nothing_is_committed(fails_at: int) -> None:
    line = Line(commit_seconds=1, rows=500)
    line.sink.fails_at = fails_at

    async def feed(stream: Any) -> None:
        await line.send(stream, 100)

    with pytest.raises(ExceptionGroup) as caught:
        line.run(feed)
    assert [type(error) for error in caught.value.exceptions] == [SinkError]
    assert line.pages == [[2 * number + 1, 2 * number + 2] for number in range(fails_at - 1)]


def test_what_somebody_else_has_taken_over_is_dropped_and_the_rest_is_committed() -> None:
    async def scenario() -> tuple[KeepingSink, list[str], list[str], int]:
        sink = KeepingSink()
        commit, taken, told = sink.commit, {"south"}, []
        accepted: list[str] = []

        def refuse(batch: Batch) -> Mapping[str, int]:
            if lost := taken & portfolios_of(batch):
                raise TakenOverError("memory:", lost)
            return commit(batch)

        sink.commit = refuse  # type: ignore[method-assign]

        async def offload(function: Callable[..., T], *arguments: object) -> T:
            return function(*arguments)

        send, receive = anyio.create_memory_object_stream[Delivery](20)
        tallies = {name: Tally(portfolio=name) for name in ("north", "south")}
        writer = Writer(sink, offload, dict, tallies, lambda error: told.extend(error.portfolios))
        for number in range(8):
            name = ("north", "south")[number % 2]

            def accept(name: str = name, number: int = number) -> Mapping[str, str | None]:
                accepted.append(name)
                return {f"{name}/walk": str(number)}

            encoded = EncodedPage(portfolio=name, rows=400, size=100, payload=number)
            await send.send(Delivery(portfolio=name, page=encoded, accept=accept))
        send.close()
        with receive:
            await writer.run(receive)
        return sink, accepted, told, tallies["north"].committed

    sink, accepted, told, committed = run_virtually(scenario)
    assert sorted(number for _, pages, _ in sink.batches for number in pages) == [0, 2, 4, 6]
    assert all(record.keys() <= {"north/walk"} for _, _, record in sink.batches)
    assert len(accepted) == 8  # all that came has made room
    assert "south" in told
    assert committed == 1600


def test_a_batch_of_which_nothing_can_be_left_out_fails() -> None:
    line = Line()

    def refuse(_batch: Batch) -> Mapping[str, int]:
        raise TakenOverError("memory:", ["west"])

    line.sink.commit = refuse  # type: ignore[method-assign]
    with pytest.raises(ExceptionGroup) as failed:
        line.run(line.send)
    assert isinstance(failed.value.exceptions[0], TakenOverError)


def test_what_is_waited_for_is_durable_at_once() -> None:
    line = Line(commit_seconds=0.1)
    durable: list[float] = []

    async def feed(stream: Any) -> None:
        await line.send(stream, 3)

        def note() -> None:
            durable.append(anyio.current_time() - 1000)

        await deliver(stream, Delivery(portfolio="north", page=None, accept=dict, durable=note))
        await anyio.sleep(100)

    line.run(feed)
    assert durable == [pytest.approx(0.1, abs=0.01)]
    assert line.pages == [[1, 2, 3]]
