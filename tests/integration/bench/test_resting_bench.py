"""The benchmark of orders that rest, as small as it goes."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bench.progress import Screen
from bench.resting import Sizes, measure_all
from bench.resting_orders import Group, fill_resting
from engine.domain.order import Side
from engine.domain.order_types import TriggerKind
from engine.domain.tokens import BONK, SOL, USDC
from engine.settings import Settings
from engine.storage.postgres import Store

SMALL = Sizes(few=600, many=1_200, rounds=1, ticks=1, near_misses=100, crossing=(3,))


async def test_few_and_many_are_measured_of_both_monitors(tmp_path: Path) -> None:
    findings = await measure_all(SMALL, Screen(Console(stderr=True)), tmp_path)
    assert list(dict.fromkeys(one.scenario for one in findings)) == [
        "1,200 limit orders in 504 groups",
        "1,200 limit orders in 504 groups, 3 cross",
        "1,200 limit orders in 504 groups, 100 near misses",
        "1,200 sniper orders for 1 token",
        "1,200 sniper orders for 100 tokens",
    ]
    ticks = [one for one in findings if one.figure.startswith("ms a tick")]
    assert all(one.value > 0 for one in ticks)
    assert {one.figure for one in findings if one.bar is not None} == {
        "ms a tick, to that of 600",
        "CPU-ms a tick, to that of 600",
    }


async def test_orders_put_into_a_database_are_of_the_groups_that_are_named_and_can_be_read(
    database: Settings,
) -> None:
    groups = [
        Group(SOL, USDC, Side.SELL, 30, 0.2),
        Group(SOL, USDC, Side.BUY, 25, 0.2),
        Group(BONK, SOL, Side.SELL, 60, 3.0),
    ]
    told: list[int] = []
    await fill_resting(database, TriggerKind.PRICE, groups, 10, told.append)
    assert told == [10]
    async with Store(database) as store:
        found = await store.resting_groups(TriggerKind.PRICE)
        assert {(g.input_token, g.output_token, g.side, g.size) for g in found} == {
            (g.input_token, g.output_token, g.side, g.size) for g in groups
        }
        orders = [
            order
            for group in found
            for order in await store.resting_orders(TriggerKind.PRICE, group, [float("inf")], 99)
        ]
        assert len(orders) == 10
        for order in orders:
            trigger = order.spec.type.trigger(order.spec)
            assert trigger is not None
            (group,) = (
                g for g in groups if g.side is order.spec.side and g.input_token == order.spec.input_token
            )
            assert group.level * 0.999 <= trigger.level <= 3.001 * group.level
            assert order.spec.amount.bit_length() - 1 == group.size
        assert await store.due_orders(99, 0.0) == []
