"""Coalescing: batches fill while a round trip is under way; every caller gets its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest

from engine.coalesce import Coalescer


class Edge:
    """A far side that answers when it is told to. Doubles each item, and fails on request."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.under_way = 0
        self.most_under_way = 0
        self.open = asyncio.Event()
        self.called = asyncio.Event()
        self.fail_with: Exception | None = None

    async def perform(self, items: list[int]) -> Sequence[int | Exception]:
        self.batches.append(items)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.called.set()
        try:
            await self.open.wait()
        finally:
            self.under_way -= 1
        if self.fail_with is not None:
            raise self.fail_with
        return [ValueError(f"{item} is negative") if item < 0 else item * 2 for item in items]


@pytest.fixture
async def edge() -> Edge:
    return Edge()


async def test_one_item_travels_at_once_and_alone(edge: Edge) -> None:
    edge.open.set()
    assert await Coalescer(edge.perform)(21) == 42
    assert edge.batches == [[21]]


async def test_what_is_put_down_travels_with_the_others_and_fails_alone(edge: Edge) -> None:
    edge.open.set()
    coalesce = Coalescer(edge.perform)
    coalesce.put(-1)
    answered = coalesce(2)
    coalesce.put(3)
    assert await answered == 4
    edge.fail_with = OSError("away")
    coalesce.put(5)
    await coalesce.drain()
    assert edge.batches == [[-1, 2, 3], [5]]


async def test_items_of_one_turn_of_the_loop_share_the_first_batch(edge: Edge) -> None:
    edge.open.set()
    coalesce = Coalescer(edge.perform)
    assert await asyncio.gather(*map(coalesce, range(5))) == [0, 2, 4, 6, 8]
    assert edge.batches == [[0, 1, 2, 3, 4]]


async def test_while_one_batch_is_under_way_the_next_one_fills_in_order(edge: Edge) -> None:
    coalesce = Coalescer(edge.perform)
    first = coalesce(1)
    await edge.called.wait()
    later = [coalesce(item) for item in (2, 3, 4)]
    assert edge.batches == [[1]]
    edge.open.set()
    assert [await first, *[await future for future in later]] == [2, 4, 6, 8]
    assert edge.batches == [[1], [2, 3, 4]]


async def test_a_batch_is_no_larger_than_allowed_and_the_rest_follows_in_order(edge: Edge) -> None:
    edge.open.set()
    coalesce = Coalescer(edge.perform, max_batch=3)
    assert await asyncio.gather(*map(coalesce, range(8))) == [item * 2 for item in range(8)]
    assert edge.batches == [[0, 1, 2], [3, 4, 5], [6, 7]]


async def test_no_more_round_trips_are_under_way_than_allowed(edge: Edge) -> None:
    coalesce = Coalescer(edge.perform, max_batch=1, max_concurrent=3)
    futures = [coalesce(item) for item in range(7)]
    await edge.called.wait()
    await asyncio.sleep(0)
    assert edge.batches == [[0], [1], [2]]
    edge.open.set()
    assert await asyncio.gather(*futures) == [item * 2 for item in range(7)]
    assert edge.most_under_way == 3


async def test_one_round_trip_at_a_time_unless_told_otherwise(edge: Edge) -> None:
    edge.open.set()
    coalesce = Coalescer(edge.perform, max_batch=1)
    await asyncio.gather(*map(coalesce, range(5)))
    assert edge.most_under_way == 1


async def test_an_item_handed_in_as_the_last_batch_ends_is_performed(edge: Edge) -> None:
    """The callback runs between the end of a batch and the end of its task."""
    edge.open.set()
    coalesce = Coalescer(edge.perform)
    second: asyncio.Queue[asyncio.Future[int]] = asyncio.Queue()
    first = coalesce(1)
    first.add_done_callback(lambda _: second.put_nowait(coalesce(2)))
    assert await first == 2
    assert await (await second.get()) == 4


async def test_a_refused_item_is_told_so_and_its_neighbours_are_not(edge: Edge) -> None:
    edge.open.set()
    coalesce = Coalescer(edge.perform)
    answers = await asyncio.gather(*map(coalesce, (1, -2, 3)), return_exceptions=True)
    assert answers[0] == 2
    assert isinstance(answers[1], ValueError)
    assert str(answers[1]) == "-2 is negative"
    assert answers[2] == 6


async def test_a_failed_round_trip_is_told_to_everyone_in_it_and_the_next_one_goes_on(edge: Edge) -> None:
    coalesce = Coalescer(edge.perform, max_batch=2)
    edge.fail_with = ConnectionError("reset")
    edge.open.set()
    answers = await asyncio.gather(*map(coalesce, (1, 2)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["reset", "reset"]
    edge.fail_with = None
    assert await coalesce(3) == 6


async def test_a_failed_round_trip_does_not_strand_those_who_wait_behind_it(edge: Edge) -> None:
    coalesce = Coalescer(edge.perform, max_batch=1)
    edge.fail_with = ConnectionError("reset")
    futures = [coalesce(item) for item in (1, 2, 3)]
    edge.open.set()
    answers = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(answer) for answer in answers] == [ConnectionError] * 3
    assert edge.batches == [[1], [2], [3]]


@pytest.mark.parametrize("answers", [[], [2], [2, 4, 6]])
async def test_a_wrong_number_of_answers_is_an_error_to_all_and_nobody_waits_for_ever(
    answers: list[int],
) -> None:
    async def perform(items: list[int]) -> list[int]:
        return answers

    coalesce = Coalescer(perform)
    outcomes = await asyncio.gather(coalesce(1), coalesce(2), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == [f"{len(answers)} results for 2 items"] * 2


async def test_a_cancelled_caller_leaves_and_the_batch_goes_on(edge: Edge) -> None:
    coalesce = Coalescer(edge.perform)
    finished: list[int] = []

    async def call(item: int) -> None:
        finished.append(await coalesce(item))

    async with asyncio.TaskGroup() as group:
        leaving, staying = group.create_task(call(1)), group.create_task(call(2))
        await edge.called.wait()
        leaving.cancel()
        await asyncio.wait([leaving])
        assert edge.under_way == 1, "the round trip was not cut short"
        edge.open.set()
        await staying
    assert finished == [4]
    assert edge.batches == [[1, 2]]


async def test_a_failure_after_the_caller_left_disturbs_nobody(edge: Edge) -> None:
    coalesce = Coalescer(edge.perform)
    left = coalesce(-1)
    await edge.called.wait()
    left.cancel()
    edge.open.set()
    await coalesce.drain()
    assert left.cancelled()


async def test_drain_waits_for_all_that_was_handed_in(edge: Edge) -> None:
    coalesce = Coalescer(edge.perform, max_batch=2)
    futures = [coalesce(item) for item in range(5)]
    async with asyncio.TaskGroup() as group:
        draining = group.create_task(coalesce.drain())
        await edge.called.wait()
        assert not draining.done()
        edge.open.set()
    assert all(future.done() for future in futures)


async def test_drain_of_an_idle_coalescer_returns_at_once(edge: Edge) -> None:
    await Coalescer(edge.perform).drain()
    assert edge.batches == []


async def test_no_task_is_left_behind(edge: Edge) -> None:
    before = asyncio.all_tasks()
    edge.open.set()
    coalesce = Coalescer(edge.perform, max_batch=2, max_concurrent=4)
    await asyncio.gather(*map(coalesce, range(20)))
    await coalesce.drain()
    # A task that has returned is out of all_tasks one turn later.
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_the_size_of_each_batch_is_observed(edge: Edge) -> None:
    edge.open.set()
    sizes: list[int] = []
    coalesce = Coalescer(edge.perform, max_batch=3, observe=sizes.append)
    await asyncio.gather(*map(coalesce, range(7)))
    assert sizes == [3, 3, 1]


async def test_a_paced_edge_gathers_between_two_round_trips(edge: Edge) -> None:
    edge.open.set()
    coalesce = Coalescer(edge.perform, interval_seconds=0.05)
    # The edge was idle: nothing waits.
    assert await coalesce(1) == 2
    # Then items that come one after another, turns of the loop apart, share the next one.
    later = []
    for item in range(2, 12):
        later.append(coalesce(item))
        await asyncio.sleep(0)
    assert await asyncio.gather(*later) == [item * 2 for item in range(2, 12)]
    assert edge.batches == [[1], list(range(2, 12))]


async def test_a_full_batch_of_a_paced_edge_does_not_wait(edge: Edge) -> None:
    edge.open.set()
    # An interval so long that the test would not end if it were waited for.
    coalesce = Coalescer(edge.perform, interval_seconds=3600, max_batch=3)
    await coalesce(1)
    async with asyncio.timeout(30):
        await asyncio.gather(*map(coalesce, range(6)))
    assert edge.batches == [[1], [0, 1, 2], [3, 4, 5]]


async def test_many_items_have_one_answer_with_a_result_each_in_order(edge: Edge) -> None:
    edge.open.set()
    coalesce = Coalescer(edge.perform)
    first, second, alone = coalesce.many([1, -2, 3]), coalesce.many([4]), coalesce(5)
    refused, *others = sorted(await first, key=lambda result: not isinstance(result, ValueError))
    assert (str(refused), others) == ("-2 is negative", [2, 6])
    assert await first == [2, refused, 6]
    assert (await second, await alone) == ([8], 10)
    assert edge.batches == [[1, -2, 3, 4, 5]]


async def test_many_items_travel_in_as_many_batches_as_they_need(edge: Edge) -> None:
    edge.open.set()
    coalesce = Coalescer(edge.perform, max_batch=3, max_concurrent=2)
    assert await coalesce.many(range(8)) == [item * 2 for item in range(8)]
    assert sorted(edge.batches) == [[0, 1, 2], [3, 4, 5], [6, 7]]


async def test_a_failed_round_trip_of_many_items_is_the_result_of_those_in_it(edge: Edge) -> None:
    coalesce = Coalescer(edge.perform, max_batch=2)
    edge.fail_with = ConnectionError("reset")
    answers = coalesce.many([1, 2, 3])
    await edge.called.wait()
    edge.open.set()
    assert [str(answer) for answer in await answers] == ["reset"] * 3
    edge.fail_with = None
    assert await coalesce.many([4]) == [8]


async def test_no_items_are_answered_without_a_round_trip(edge: Edge) -> None:
    assert await Coalescer(edge.perform).many([]) == []
    assert edge.batches == []


async def test_a_caller_of_many_who_left_disturbs_nobody(edge: Edge) -> None:
    coalesce = Coalescer(edge.perform, max_batch=2)
    left, stayed = coalesce.many([1, -2, 3]), coalesce(4)
    await edge.called.wait()
    left.cancel()
    edge.open.set()
    assert await stayed == 8
    assert edge.batches == [[1, -2], [3, 4]]


async def test_who_has_a_function_told_is_told_results_and_errors_alike(edge: Edge) -> None:
    edge.open.set()
    coalesce = Coalescer(edge.perform)
    told: list[int | BaseException] = []
    coalesce.put(1, told.append)
    coalesce.put(-2, told.append)
    assert await coalesce(3) == 6
    assert (told[0], str(told[1])) == (2, "-2 is negative")
    edge.fail_with = ConnectionError("reset")
    coalesce.put(4, told.append)
    await coalesce.drain()
    assert str(told[2]) == "reset"


async def test_a_function_that_raises_keeps_nothing_from_the_others(edge: Edge) -> None:
    edge.open.set()
    coalesce = Coalescer(edge.perform)
    heard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: heard.append(told["exception"]))

    def fail(_: object) -> None:
        raise ValueError("a defect")

    coalesce.put(1, fail)
    assert await coalesce(2) == 4
    assert [str(error) for error in heard] == ["a defect"]


async def test_a_function_is_told_that_its_batch_was_cut_short(edge: Edge) -> None:
    coalesce = Coalescer(edge.perform)
    told: list[int | BaseException] = []
    coalesce.put(1, told.append)
    await edge.called.wait()
    (runner,) = coalesce._runners
    runner.cancel()
    await asyncio.wait([runner])
    assert isinstance(told[0], asyncio.CancelledError)


async def test_two_paced_runners_share_one_pace_and_neither_performs_nothing() -> None:
    starts: list[float] = []
    sizes: list[int] = []
    loop = asyncio.get_running_loop()

    async def perform(items: list[int]) -> list[int]:
        starts.append(loop.time())
        sizes.append(len(items))
        await asyncio.sleep(0.005)
        return items

    coalesce = Coalescer(perform, max_concurrent=2, interval_seconds=0.01)
    for item in range(60):
        coalesce.put(item)
        await asyncio.sleep(0.002)
    await coalesce.drain()
    assert sum(sizes) == 60
    assert 0 not in sizes
    # The loop's clock is good to a millisecond.
    assert all(later - earlier >= 0.009 for earlier, later in pairwise(starts))
