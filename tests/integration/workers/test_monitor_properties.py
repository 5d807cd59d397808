"""Orders that wait, drawn at random, against a plain model of them (waiting_model.py).

What is compared is real: PostgreSQL, monitors, executor, and a simnet process whose slots are made one by
one. After each, both must agree on what fired, what rests, and what was filled at which amounts.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from functools import partial
from random import Random
from typing import Any, Final
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from solders.pubkey import Pubkey

from engine.domain.amounts import least_output
from engine.domain.lifecycle import CLOSED, Cancelled
from engine.domain.order import Order, OrderSpec, OrderStatus, Route, Side
from engine.domain.order_types import LimitOrder, OrderType, SniperOrder, Trigger, TriggerKind, limit
from engine.domain.routing import REACH, choice
from engine.domain.tokens import SOL, Token
from engine.market import Market
from engine.market.listing import Listing
from engine.settings import Settings
from engine.solana.transactions import Wallet
from engine.storage.postgres import RestingGroup, Store
from tests.integration.engine.storage.records import new_order, transitions
from tests.integration.workers.executing import Worker, worker_of
from tests.integration.workers.waiting_model import (
    WHOLE_SOL,
    WHOLE_TOKEN,
    ModelOrder,
    ModelPool,
    fire,
    land,
)
from tests.simnet_process import Simnet
from workers import monitor

SLIPPAGE_BPS: Final = 200
POOL_SOL: Final = 1000
EXACT: Final = Context(60)
DIGITS: Final = Decimal("1e-18")
"""As many as a price may have."""
IN_FLIGHT: Final = {OrderStatus.ROUTING, OrderStatus.BUILDING, OrderStatus.SUBMITTED}


# ---- What is drawn -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limit:
    """Submit a limit order of so many thousandths of what the pool holds.

    Its limit is what there is now, so many base units and then basis points better.
    """

    side: str
    thousandths: int
    units: int
    bps: int
    expires: bool = False


@dataclass(frozen=True, slots=True)
class Snipe:
    """The same of a sniper. None: any price, any liquidity."""

    side: str
    thousandths: int
    units: int
    bps: int | None
    liquidity_per_cent: int | None


@dataclass(frozen=True, slots=True)
class Move:
    """Move the token's price."""

    bps: int


@dataclass(frozen=True, slots=True)
class Fill:
    """Bring the pool to so much of what it holds."""

    per_cent: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel one of the orders, if it is not too late."""

    index: int


Step = Limit | Snipe | Move | Fill | Cancel


@dataclass(frozen=True, slots=True)
class Slot:
    """What happens before a slot, and how far the price moves between triggers and landings."""

    steps: tuple[Step, ...]
    jolt_bps: int = 0


THOUSANDTHS: Final = (1, 2, 3, 20, 22, 25, 30, 100, 120)
"""Some much the same size, so that one comes before the other."""
UNITS: Final = (0, 0, 1, -1)
BETTER_BPS: Final = (0, 0, 20, 150, -20, -80, 400)


def _step(chance: Random) -> Step:
    side, thousandths = chance.choice(("sell", "buy")), chance.choice(THOUSANDTHS)
    units, bps = chance.choice(UNITS), chance.choice(BETTER_BPS)
    match chance.choice((Limit, Limit, Snipe, Move, Fill, Cancel)):
        case kind if kind is Limit:
            return Limit(side, thousandths, units, bps, expires=chance.random() < 0.15)
        case kind if kind is Snipe:
            return Snipe(
                side,
                thousandths,
                units,
                bps if chance.random() < 0.6 else None,
                chance.choice((None, None, 50, 99, 101, 150)),
            )
        case kind if kind is Move:
            return Move(chance.choice((-1500, -300, -100, -30, 30, 100, 300, 1500)))
        case kind if kind is Fill:
            return Fill(chance.choice((60, 98, 103, 160)))
        case _:
            return Cancel(chance.randrange(10))


def _script(chance: Random) -> Sequence[Slot]:
    return [
        Slot(
            tuple(_step(chance) for _ in range(chance.randint(1, 4))),
            chance.choice((60, 300, -60, -300)) if chance.random() < 0.4 else 0,
        )
        for _ in range(chance.randint(3, 6))
    ]


# Drawn evenly: what hypothesis draws by itself is much alike, which suits who looks for the smallest of many.
SCRIPTS = st.randoms(use_true_random=True).map(_script)


def drawn(count: int) -> list[Sequence[Slot]]:
    """Return so many scripts, the same ones each time, whatever else hypothesis has seen."""
    return [_script(Random(seed)) for seed in range(count)]


# ---- The real and the model side by side -------------------------------------------------------------


@dataclass(slots=True)
class Pair:
    """A launched token, its pool and its orders: the real ones, and the model's."""

    simnet: Simnet
    worker: Worker
    token: Token
    pool: str
    fee_ppm: int
    orders: list[ModelOrder] = field(default_factory=list)
    ids: list[UUID] = field(default_factory=list)
    """Of the real orders, by the model's numbers."""
    landed: int = 0
    """How many transactions of the ledger were looked at."""

    async def play(self, script: Sequence[Slot]) -> None:
        """Go through the script, and compare after each slot."""
        for slot in script:
            for step in slot.steps:
                await self.do(step)
            await self.next_slot()
            await self.tick(slot.jolt_bps)
            await self.compare()

    async def do(self, step: Step) -> None:
        match step:
            case Limit() | Snipe():
                await self.submit(step)
            case Move(bps):
                await self.simnet.ask("simnet_move_price", {"pool": self.pool, "bps": bps})
            case Fill(per_cent):
                amount = (await self.model_pool()).sol * per_cent // 100
                await self.simnet.ask("simnet_liquidity", {"pool": self.pool, "quoteAmount": amount})
            case Cancel(index) if index < len(self.orders):
                if self.orders[index].status == "pending":
                    self.orders[index].status = "cancelled"
                    order = await self.real(self.ids[index])
                    assert await self.worker.store.advance(transitions(order, Cancelled())) is not None

    async def submit(self, step: Limit | Snipe) -> None:
        pool = await self.model_pool()
        held = pool.sol if step.side == "sell" else pool.token
        model = ModelOrder(len(self.orders), step.side, held * step.thousandths // 1000)
        kind: OrderType
        if isinstance(step, Limit):
            model.least_price = price_of(pool, model, step.units, step.bps)
            model.expires = step.expires
            kind = LimitOrder(model.least_price)
        else:
            if step.bps is not None:
                least = price_of(pool, model, step.units, step.bps)
                model.most_price = EXACT.divide(Decimal(1), least).quantize(DIGITS, ROUND_CEILING)
            if step.liquidity_per_cent is not None:
                model.least_sol = pool.vault_sol * step.liquidity_per_cent // 100
            kind = SniperOrder(model.least_sol, model.most_price)
        spec = OrderSpec(Side(step.side), model.amount, SOL, self.token, type=kind)
        if model.expires:
            spec = replace(spec, expire_time=self.worker.store.now() + timedelta(milliseconds=5))
        order = (await self.worker.store.submit(replace(new_order(), spec=spec))).order
        self.orders.append(model)
        self.ids.append(order.order_id)
        if model.expires:
            await until(lambda: self.has_expired(order.order_id))

    async def has_expired(self, order_id: UUID) -> bool:
        return order_id in await self.worker.store.due_orders(100, 0.0)

    async def is_closed(self, number: int) -> bool:
        return (await self.real(self.ids[number])).status in CLOSED

    async def next_slot(self) -> None:
        """Make a slot, and let the worker see it."""
        await self.simnet.ask("simnet_advance", {"slots": 1})
        await self.worker.market.refresh(0.0)

    async def tick(self, jolt_bps: int) -> None:
        """Let both monitors fire, and what they fire land; compare what fires and what lands."""
        pool = expected = await self.model_pool()
        for kind in TriggerKind:
            fired, expected = fire(kind.value, self.orders, pool, expected, SLIPPAGE_BPS)
            really = await self.worker.monitors[kind].tick()
            assert [self.ids.index(order_id) for order_id in really] == [order.number for order in fired]
            await until(self.all_rest)
        await self.worker.executor.take(await self.worker.store.due_orders(100, 0.0))
        for order in self.orders:
            if order.expires and order.status == "pending":
                order.status = "expired"
                await until(partial(self.is_closed, order.number))
        if not any(order.status == "submitted" for order in self.orders):
            return
        await until(self.all_are_sent)
        if jolt_bps:
            await self.simnet.ask("simnet_move_price", {"pool": self.pool, "bps": jolt_bps})
            pool = await self.model_pool()
        while await self.in_flight():
            await self.simnet.ask("simnet_advance", {"slots": 1})
            await asyncio.sleep(0.005)
        page = await self.simnet.ask("simnet_ledger", {"after": self.landed})
        for transaction in page["transactions"]:
            # Which of two comes first in a slot, the chain alone knows.
            self.landed = transaction["sequence"]
            number = self.ids.index(UUID(transaction["memo"].partition(":")[0]))
            pool = land(self.orders[number], pool)
        assert pool == await self.model_pool()

    async def compare(self) -> None:
        for model, order_id in zip(self.orders, self.ids, strict=True):
            real = await self.real(order_id)
            assert real.status.value == model.status, model
            if model.filled is not None:
                assert (real.input_amount, real.output_amount) == model.filled, model
        rest = await self.worker.store.resting_orders_count()
        assert sum(rest.values()) == sum(order.status == "pending" for order in self.orders)

    async def all_rest(self) -> bool:
        """Whether those that were fired in vain rest again."""
        resting = await self.worker.store.resting_orders_count()
        return sum(resting.values()) >= sum(order.status == "pending" for order in self.orders)

    async def all_are_sent(self) -> bool:
        return all(order.status is OrderStatus.SUBMITTED for order in await self.in_flight())

    async def in_flight(self) -> list[Order]:
        submitted = [order.number for order in self.orders if order.status == "submitted"]
        orders = [await self.real(self.ids[number]) for number in submitted]
        return [order for order in orders if order.status in IN_FLIGHT]

    async def real(self, order_id: UUID) -> Order:
        order = await self.worker.store.get(order_id)
        assert order is not None
        return order

    async def model_pool(self) -> ModelPool:
        """Return the pool as its accounts say, by the published layout of them."""
        pool = await self.account(self.pool)
        vaults = [str(Pubkey.from_bytes(pool[start : start + 32])) for start in (72, 104)]
        mint = str(Pubkey.from_bytes(pool[168:200]))
        reserves = []
        for side, vault in enumerate(vaults):
            held = int.from_bytes((await self.account(vault))[64:72], "little")
            fees = [int.from_bytes(pool[at : at + 8], "little") for at in (341 + 8 * side, 357 + 8 * side)]
            reserves.append((held - sum(fees), held))
        if mint != SOL.mint:
            reserves.reverse()
        return ModelPool(self.fee_ppm, reserves[0][0], reserves[1][0], reserves[0][1])

    async def account(self, address: str) -> bytes:
        asked = [address, {"encoding": "base64", "commitment": "processed"}]
        answer = await self.simnet.call("getAccountInfo", asked)
        return base64.b64decode(answer["value"]["data"][0])

    async def cancel_all(self) -> None:
        """Leave nothing for the next one."""
        await self.worker.executor.take(await self.worker.store.due_orders(100, 0.0))
        while not all(order.status in CLOSED for order in [await self.real(each) for each in self.ids]):
            for order_id in self.ids:
                order = await self.real(order_id)
                if order.status is OrderStatus.PENDING:
                    await self.worker.store.advance(transitions(order, Cancelled()))
            await self.simnet.ask("simnet_advance", {"slots": 1})
            await asyncio.sleep(0.005)


def price_of(pool: ModelPool, order: ModelOrder, units: int, bps: int) -> Decimal:
    """Return what the whole order would be filled at now, tokens a SOL, so much better."""
    swap = pool.swap(order.side, order.amount)
    assert swap is not None
    paid, got = (swap[0], swap[1] + units) if order.side == "sell" else (swap[0] - units, swap[1])
    better = Decimal(got * WHOLE_SOL * (10_000 + bps))
    return EXACT.divide(better, Decimal(paid * WHOLE_TOKEN * 10_000)).quantize(DIGITS, ROUND_FLOOR, EXACT)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - others set no event
            await asyncio.sleep(0.002)


@asynccontextmanager
async def launched(worker: Worker, simnet: Simnet) -> AsyncIterator[Pair]:
    """A token of its own, with a pool."""
    asked = {"quoteAmount": POOL_SOL * WHOLE_SOL, "price": "0.0001", "decimals": 6, "kind": "raydium_cpmm"}
    told = await simnet.ask("simnet_launch", asked)
    [fee_ppm] = [row["feePpm"] for row in await simnet.ask("simnet_pools") if row["pool"] == told["pool"]]
    page = await simnet.ask("simnet_ledger", {"limit": 1000})
    last = page["transactions"][-1]["sequence"] if page["transactions"] else 0
    token = Token(told["mint"], told["mint"], 6)
    await worker.market.learn((token,))
    pair = Pair(simnet, worker, token, told["pool"], fee_ppm, landed=last)
    try:
        yield pair
    finally:
        await pair.cancel_all()


@pytest.fixture(scope="module")
async def simnet(simnet: Simnet) -> Simnet:
    await simnet.ask("simnet_pause")
    return simnet


@pytest.fixture(scope="module")
async def wallet(simnet: Simnet) -> Wallet:
    return await simnet.make_wallet({SOL: 10**16})


@pytest.fixture
async def worker(
    settings: Settings, simnet: Simnet, wallet: Wallet, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Worker]:
    # However little a swap under way matters, the model reckons with it.
    monkeypatch.setattr("engine.market.listing._MATTERS_PPM", 0)
    async with worker_of(
        settings, simnet, wallet, max_route_legs=1, slippage_bps=SLIPPAGE_BPS, retry_base_seconds=0.0
    ) as worker:
        yield worker


async def play_all(worker: Worker, simnet: Simnet, scripts: Sequence[Sequence[Slot]]) -> None:
    for script in scripts:
        async with launched(worker, simnet) as pair:
            await pair.play(script)


@examples(
    max_examples=50,
    derandomize=True,
    database=None,
    deadline=None,
    # Making what failed smaller would take minutes.
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(SCRIPTS)
async def test_orders_that_wait_fire_and_are_filled_as_the_model_says(
    worker: Worker, simnet: Simnet, script: Sequence[Slot]
) -> None:
    async with launched(worker, simnet) as pair:
        await pair.play(script)


# ---- Mutants --------------------------------------------------------------------------------------------

Mutate = Callable[[pytest.MonkeyPatch], None]


def compares_with_the_price_before_the_swap(patch: pytest.MonkeyPatch) -> None:
    bound, unmet = Market.price_bound, LimitOrder.unmet

    def unmet_before(self: LimitOrder, spec: OrderSpec, route: Route | None, liquidity: int) -> str | None:
        if route is not None:
            kept = 1 - route.price_impact_ppm / 1_000_000
            route = (
                replace(route, output_amount=int(route.output_amount / kept))
                if spec.sells
                else replace(route, input_amount=int(route.input_amount * kept))
            )
        return unmet(self, spec, route, liquidity)

    def bound_before(
        self: Market, takes: Token, gives: Token, side: Side, amount: int, reach: int = REACH
    ) -> float:
        return bound(self, takes, gives, side, 1, reach * amount)

    patch.setattr(Market, "price_bound", bound_before)
    patch.setattr(LimitOrder, "unmet", unmet_before)


def fires_a_per_cent_too_early(patch: pytest.MonkeyPatch) -> None:
    trigger = LimitOrder.trigger

    def sooner(self: LimitOrder, spec: OrderSpec) -> Trigger:
        found = trigger(self, spec)
        return replace(found, level=found.level * 0.99)

    def nearly(spec: OrderSpec, route: Route, limit_amount: int | None) -> bool:
        assert limit_amount is not None
        if spec.sells:
            return route.output_amount >= limit_amount * 0.99
        return route.input_amount <= limit_amount / 0.99

    patch.setattr(LimitOrder, "trigger", sooner)
    patch.setattr(limit, "is_within", nearly)


def rounds_the_limit_down(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(limit, "least_output", lambda *asked: least_output(*asked) - 1)


def takes_the_price_of_a_sniper_for_that_of_a_limit(patch: pytest.MonkeyPatch) -> None:
    def upside_down(self: SniperOrder, spec: OrderSpec) -> int | None:
        return None if self.max_price is None else LimitOrder(self.max_price).limit_amount(spec)

    patch.setattr(SniperOrder, "limit_amount", upside_down)


def does_not_ask_what_pools_hold(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SniperOrder, "least_liquidity", 0)


def does_not_look_at_who_buys(patch: pytest.MonkeyPatch) -> None:
    groups = Store.resting_groups

    async def of_sellers(self: Store, kind: TriggerKind) -> list[RestingGroup]:
        return [group for group in await groups(self, kind) if group.side is Side.SELL]

    patch.setattr(Store, "resting_groups", of_sellers)


def bounds_the_price_of_the_way_back(patch: pytest.MonkeyPatch) -> None:
    bound = Market.price_bound

    def of_the_way_back(
        self: Market, gives: Token, takes: Token, side: Side, amount: int, reach: int = REACH
    ) -> float:
        return bound(self, takes, gives, side, amount, reach)

    patch.setattr(Market, "price_bound", of_the_way_back)


def bounds_the_price_of_twice_the_amount(patch: pytest.MonkeyPatch) -> None:
    bound = Market.price_bound

    def of_more(
        self: Market, takes: Token, gives: Token, side: Side, amount: int, reach: int = REACH
    ) -> float:
        return bound(self, takes, gives, side, 2 * amount, reach)

    patch.setattr(Market, "price_bound", of_more)


def remembers_who_expired_or_was_cancelled(patch: pytest.MonkeyPatch) -> None:
    resting, known = Store.resting_orders, dict[UUID, Order]()

    async def with_the_dead(self: Store, *asked: Any) -> list[Order]:
        known.update({order.order_id: order for order in await resting(self, *asked)})
        return list(known.values())

    async def all_of_them(self: Store, kind: TriggerKind, orders: Sequence[Order]) -> list[UUID]:
        return [order.order_id for order in orders]

    patch.setattr(Store, "resting_orders", with_the_dead)
    patch.setattr(Store, "fire", all_of_them)


def fires_each_as_if_it_were_alone(patch: pytest.MonkeyPatch) -> None:
    enough = monitor._Ahead.leaves_enough_for

    def alone(self: monitor._Ahead, orders: Sequence[Order]) -> list[Order]:
        met: list[Order] = []
        for order in orders:
            self._amount = self._input_amount = self._output_amount = 0
            met += enough(self, [order])
        return met

    patch.setattr(monitor._Ahead, "leaves_enough_for", alone)


def fires_those_first_that_ask_for_most(patch: pytest.MonkeyPatch) -> None:
    resting = Store.resting_orders

    async def reversed_(self: Store, *asked: Any) -> list[Order]:
        return (await resting(self, *asked))[::-1]

    patch.setattr(Store, "resting_orders", reversed_)


def reckons_with_no_swap_under_way(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Listing, "add_expected", lambda *_: None)


def lets_programs_accept_worse_than_the_limit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(choice, "within_limit", lambda route, *_: route)


@pytest.mark.parametrize(
    "mutate",
    [
        compares_with_the_price_before_the_swap,
        fires_a_per_cent_too_early,
        rounds_the_limit_down,
        takes_the_price_of_a_sniper_for_that_of_a_limit,
        does_not_ask_what_pools_hold,
        does_not_look_at_who_buys,
        bounds_the_price_of_the_way_back,
        bounds_the_price_of_twice_the_amount,
        remembers_who_expired_or_was_cancelled,
        fires_each_as_if_it_were_alone,
        fires_those_first_that_ask_for_most,
        reckons_with_no_swap_under_way,
        lets_programs_accept_worse_than_the_limit,
    ],
)
async def test_a_mutant_is_caught(
    mutate: Mutate, worker: Worker, simnet: Simnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = drawn(25)
    with monkeypatch.context() as patch:
        mutate(patch)
        with pytest.raises(AssertionError):
            await play_all(worker, simnet, scripts)
