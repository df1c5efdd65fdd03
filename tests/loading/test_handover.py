"""What is handed over: noted when it is accepted, in its place, and its room is given back either way, once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest

from fetcher.connector.clock import PlatformClock
from fetcher.connector.operations import OrdersOperation
from fetcher.connector.room import Room
from fetcher.loading.aside import Aside
from fetcher.loading.beginning import Beginning
from fetcher.loading.handover import Handover
from fetcher.planning.checkpoint import Checkpoint
from fetcher.planning.repeats import Repeats
from fetcher.report import Tally
from fetcher.sinks import EncodedPage, Page
from fetcher.sinks.writer import Delivery, deliver
from tests.loading.test_aside import bad, encode, good, key
from tests.loading.test_beginning import NOW, config, told
from tests.orders import page
from tests.virtual import run_virtually


class Case:
    """A handover to somebody who keeps what comes until it is accepted."""

    def __init__(
        self,
        encode_page: Callable[[Page], EncodedPage | Page] = encode,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.room = Room(1)
        self.clock = PlatformClock(lambda: 0.0)
        told(self.clock, NOW)
        self.checkpoint = checkpoint or Checkpoint("north", None, {}, {})
        self.repeats = Repeats(self.checkpoint)
        self.tally = Tally(portfolio="north")
        self.operation = OrdersOperation()
        self.aside = Aside(self.checkpoint)
        self.came: list[Delivery] = []
        self.said: list[str] = []
        self.handover = Handover(
            self.take,
            encode_page,
            self.operation,
            Beginning(config(), self.clock, self.checkpoint, self.repeats),
            self.aside,
            self.checkpoint,
            self.tally,
        )

    async def take(self, delivery: Delivery) -> None:
        self.came.append(delivery)

    async def page(self, *orders: dict[str, Any]) -> None:
        with self.room.lease() as lease:
            await lease.acquire()
            await self.handover.page(page(orders), lease, lambda: self.said.append("page"))

    def accept(self) -> dict[str, str | None]:
        changes: dict[str, str | None] = {}
        for delivery in self.came:
            changes |= delivery.accept()
        self.came.clear()
        return changes


def played(scene: Callable[[Case], Awaitable[None]], **options: Any) -> None:
    async def play() -> None:
        await scene(Case(**options))

    run_virtually(play)


def test_a_page_is_noted_and_its_room_given_back_when_it_is_accepted_and_not_before() -> None:
    async def scene(case: Case) -> None:
        await case.page(good(1), bad(2))
        assert (case.said, case.room.free) == ([], 0)
        assert case.accept().keys() == {f"north/all/aside/{key(2)}"}
        assert (case.said, case.room.free) == (["page"], 1)
        assert (case.tally.pages, case.tally.orders) == (1, 2)

    played(scene)


def test_news_keep_their_place_between_pages() -> None:
    async def scene(case: Case) -> None:
        await case.handover.news(lambda: case.said.append("before"))
        await case.page(good(1))
        await case.handover.news(lambda: case.said.append("after"))
        case.accept()
        assert case.said == ["before", "page", "after"]
        assert case.room.free == 1, "news take no room"

    played(scene)


def test_a_flush_waits_for_all_that_was_handed_over_before_it() -> None:
    async def scene(case: Case) -> None:
        async def flush() -> None:
            await case.handover.flush()
            case.said.append("flushed")

        await case.page(good(1))
        async with anyio.create_task_group() as group:
            group.start_soon(flush)
            await anyio.sleep(100)
            assert case.said == []
            case.accept()
        assert case.said == ["page", "flushed"]

    played(scene)


@pytest.mark.parametrize("broken", ["encode", "send"])
def test_a_page_that_cannot_be_handed_over_gives_its_room_back(broken: str) -> None:
    def fail(*_: Any) -> Any:
        raise OSError("broken")

    async def scene(case: Case) -> None:
        if broken == "send":
            case.handover._send = fail
        with pytest.raises(OSError, match="broken"):
            await case.page(good(1))
        assert case.room.free == 1

    played(scene, **({"encode_page": fail} if broken == "encode" else {}))


def test_whoever_is_cancelled_while_handing_over_gives_the_room_back() -> None:
    async def scene(case: Case) -> None:
        async def wait(_delivery: Delivery) -> None:
            await anyio.sleep_forever()

        case.handover._send = wait
        with anyio.move_on_after(1):
            await case.page(good(1))
        assert case.room.free == 1

    played(scene)


def test_a_page_that_was_taken_as_its_sender_was_cancelled_gives_its_room_back_once() -> None:
    async def scene(case: Case) -> None:
        send, receive = anyio.create_memory_object_stream[Delivery](0)
        case.handover._send = partial(deliver, send)
        with send, receive:
            sender = asyncio.create_task(case.page(good(1)))
            await anyio.sleep(1)
            delivery = receive.receive_nowait()
            sender.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sender
            delivery.accept()
        assert case.said == ["page"]
        assert case.room.free == 1

    played(scene)


def test_a_property_that_is_not_documented_is_told_once() -> None:
    async def scene(case: Case) -> None:
        for name in ("Loyalty", "Loyalty", "Mood"):
            case.operation.decode(page([{**good(1), name: 1}]).body)
            await case.page(good(1))
            case.accept()
        assert case.tally.unknown_properties == ["Loyalty", "Mood"]

    played(scene)


def test_what_is_given_up_is_told_to_the_sink_and_recorded_when_that_is_accepted() -> None:
    async def scene(case: Case) -> None:
        await case.page(bad(1), bad(2))
        case.accept()
        await case.handover.give_up([key(3)], NOW)
        assert case.came == [], "of what is not kept nothing is said"
        await case.handover.give_up([key(1), key(3)], NOW)
        (delivery,) = case.came
        assert isinstance(delivery.page, EncodedPage)
        assert list(delivery.page.mended) == [key(1)]
        assert case.checkpoint.aside().keys() == {key(1), key(2)}
        case.accept()
        assert case.checkpoint.aside().keys() == {key(2)}

    played(scene)


def test_those_who_take_the_pages_themselves_hear_nothing_of_what_is_given_up() -> None:
    async def scene(case: Case) -> None:
        await case.page(bad(1))
        case.accept()
        await case.handover.give_up([key(1)], NOW)
        assert [delivery.page for delivery in case.came] == [None]
        case.accept()
        assert case.checkpoint.aside() == {}

    played(scene, encode_page=lambda one: one)
