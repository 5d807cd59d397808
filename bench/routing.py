"""`python -m bench.routing`: how long a route takes, and what sharing an order out gains.

One core, one thread, nothing else of the engine: pools are made up, seeded. Times are medians
of problems, each at its best of several rounds; the second table compares what comes out of them.
The third is of the pools that simnet starts with, in CPU time, and says what each kind of pool takes.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isqrt
from statistics import median, quantiles
from typing import Final

from rich.console import Console
from rich.table import Table

from engine.domain.order import OrderSpec, Quote, Side
from engine.domain.pools.meteora_dlmm import Bin, FeeParameters, MeteoraDlmmPool, Volatility, bin_price
from engine.domain.pools.pool import Clock, Pool, SwapError
from engine.domain.pools.raydium_clmm import RaydiumClmmPool, Tick, sqrt_price_at_tick, tick_at_sqrt_price
from engine.domain.pools.raydium_cpmm import Rates, RaydiumCpmmPool
from engine.domain.routing import Limits, PoolOffer, decide, quote
from engine.domain.routing.choice import direct_route
from engine.domain.routing.price_curve import PriceCurve
from engine.domain.routing.sweep import marginal_price, most_output
from engine.domain.tokens import SOL, USDC
from simnet.genesis import make_genesis
from simnet.market import read_pool

NOW: Final = Clock(slot=400_000_000, unix_timestamp=1_750_000_000)
PRICE: Final = 0.15
"""Base units of USDC for one of SOL: 150 dollars."""
FEES_PPM: Final = (100, 500, 1_000, 2_500, 2_500, 10_000)
ROUNDS: Final = 20
ONE_LEG, FEW_LEGS, ALL_LEGS = Limits(max_legs=1), Limits(max_legs=3), Limits(max_legs=1_000)


@dataclass(frozen=True, slots=True)
class Problem:
    offers: Sequence[PoolOffer]
    spec: OrderSpec


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.routing", description=__doc__)
    parser.add_argument("--problems", type=int, default=40, help="of each kind (40)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    console = Console() if sys.stdout.isatty() else Console(width=120)
    kinds: dict[str, Callable[[random.Random], list[Pool]]] = {
        "8 constant product": lambda chance: [_cpmm(chance) for _ in range(8)],
        "64 constant product": lambda chance: [_cpmm(chance) for _ in range(64)],
        "240 mixed segments": _mixed,
    }
    times, gained = _times_table(), _gains_table()
    for name, pools_of in kinds.items():
        chance = random.Random(options.seed)
        problems = [_problem(pools_of(chance), chance) for _ in range(options.problems)]
        times.add_row(name, *(f"{seconds * 1e6:.0f}" for seconds in _times(problems)))
        gained.add_row(name, *_gains(problems))
    console.print(times)
    console.print(gained)
    simnets = _simnet_table()
    for row, sell, buy in _simnet_rows(_simnet_offers(options.seed), random.Random(options.seed)):
        simnets.add_row(row, f"{sell:.1f}", f"{buy:.1f}")
    console.print(simnets)


# ---- Times -------------------------------------------------------------------------------------------


def _times_table() -> Table:
    table = Table(title="microseconds an order", title_justify="left", box=None, header_style="dim")
    table.add_column("pools")
    for title in (
        "sweep and bound",
        "route of 3 legs",
        "every pool's quote",
        "decide, 1 leg",
        "decide, 3 legs",
    ):
        table.add_column(title, justify="right")
    return table


def _times(problems: Sequence[Problem]) -> list[float]:
    """Return seconds a problem, of each part, for an order that is not the slot's first."""

    def sweep(problem: Problem) -> None:
        curves = [offer.curve(NOW) for offer in problem.offers]
        price = marginal_price(curves, problem.spec.amount, Side.SELL)
        assert price is not None
        most_output(problem.spec.amount, price, [curve.gain(price) for curve in curves])

    bests = {id(problem): _best(problem) for problem in problems}

    def route(problem: Problem) -> None:
        direct_route(Side.SELL, problem.spec.amount, NOW, problem.offers, bests[id(problem)], 50, FEW_LEGS)

    def quotes(problem: Problem) -> None:
        for offer in problem.offers:
            quote(offer, Side.SELL, problem.spec.amount, NOW)

    def decide_with(limits: Limits) -> Callable[[Problem], None]:
        return lambda problem: _decide(problem, limits)

    parts = (sweep, route, quotes, decide_with(ONE_LEG), decide_with(FEW_LEGS))
    return [_seconds(part, problems) for part in parts]


def _seconds(part: Callable[[Problem], None], problems: Sequence[Problem]) -> float:
    """Return the median of the problems, each at its best of several rounds."""
    bests = []
    for problem in problems:
        best = float("inf")
        for _ in range(ROUNDS):
            start = time.perf_counter()
            part(problem)
            best = min(best, time.perf_counter() - start)
        bests.append(best)
    return median(bests)


def _decide(problem: Problem, limits: Limits) -> None:
    decide(problem.spec, 1, NOW.slot, NOW, problem.offers, 50, limits)


# ---- Gains -------------------------------------------------------------------------------------------


def _gains_table() -> Table:
    table = Table(
        title="basis points of the output that it gives more, median / 9 of 10 are below",
        title_justify="left",
        box=None,
        header_style="dim",
    )
    table.add_column("pools")
    for title in (
        "3 legs, than 1",
        "all pools, than 1",
        "all pools, than 5 % grid",
        "of that, proved within",
    ):
        table.add_column(title, justify="right")
    return table


def _gains(problems: Sequence[Problem]) -> list[str]:
    """Return how much more a route of at most three legs, and one of all pools, give than other ways."""
    few, every, grid, gaps = [], [], [], []
    for problem in problems:
        best = _best(problem)
        if best is None or not best.output_amount:
            continue  # no pool fills it alone
        routes = [
            direct_route(Side.SELL, problem.spec.amount, NOW, problem.offers, best, 50, limits)
            for limits in (FEW_LEGS, ALL_LEGS)
        ]
        shared, whole = routes
        assert shared is not None
        assert whole is not None
        few.append(_bps_more(shared.output_amount, best.output_amount))
        every.append(_bps_more(whole.output_amount, best.output_amount))
        grid.append(_bps_more(whole.output_amount, _grid(problem)))
        gaps.append((whole.gap_amount or 0) * 10_000 / whole.output_amount)
    return [
        *(f"{median(found):.2f} / {quantiles(found, n=10)[-1]:.1f}" for found in (few, every, grid)),
        f"{max(gaps):.6f}",
    ]


def _bps_more(output: int, other: int) -> float:
    return (output - other) * 10_000 / other


def _best(problem: Problem) -> Quote | None:
    quotes = [quote(offer, Side.SELL, problem.spec.amount, NOW) for offer in problem.offers]
    return max(quotes, key=lambda one: one.output_amount or 0) if quotes else None


def _grid(problem: Problem, parts: int = 20) -> int:
    """Return what the best split into twentieths gives: each goes where it brings most."""
    chunk = problem.spec.amount // parts
    spent, given = [0] * len(problem.offers), [0] * len(problem.offers)
    for number in range(parts):
        part = chunk if number else problem.spec.amount - chunk * (parts - 1)
        most = (-1, 0)
        for at, offer in enumerate(problem.offers):
            most = max(most, (_output(offer, spent[at] + part) - given[at], at))
        at = most[1]
        spent[at] += part
        given[at] += most[0]
    return sum(given)


def _output(offer: PoolOffer, amount: int) -> int:
    try:
        return offer.pool.swap_exact_in(offer.a_to_b, amount, NOW).output_amount
    except SwapError:
        return -1


# ---- What simnet has ---------------------------------------------------------------------------------


def _simnet_table() -> Table:
    table = Table(
        title="CPU microseconds on simnet's pools for SOL and USDC, 0.01 to 3 SOL",
        title_justify="left",
        box=None,
        header_style="dim",
    )
    table.add_column("")
    for title in ("sell", "buy"):
        table.add_column(title, justify="right")
    return table


def _simnet_offers(seed: int) -> list[PoolOffer]:
    genesis = make_genesis(seed)
    return [
        PoolOffer(
            pool.venue.name,
            pool.venue.kind,
            pool.name,
            pool.a_is_base,
            read_pool(genesis.accounts, pool)[0],
            leg_lamports=100_000,
        )
        for pool in genesis.pools
        if (pool.base, pool.quote) == (SOL, USDC)
    ]


def _simnet_rows(offers: Sequence[PoolOffer], chance: random.Random) -> Iterator[tuple[str, float, float]]:
    """Yield what was timed, and how many microseconds it takes selling and buying."""
    amounts = [int(10 ** chance.uniform(7, 9.5)) for _ in range(100)]
    specs = {
        Side.SELL: [OrderSpec(Side.SELL, amount, SOL, USDC) for amount in amounts],
        Side.BUY: [OrderSpec(Side.BUY, int(amount * PRICE) + 1, SOL, USDC) for amount in amounts],
    }
    limits = Limits(max_legs=3, lamport_price=PRICE)

    def decided(spec: OrderSpec, offers: Sequence[PoolOffer]) -> None:
        decide(spec, 1, NOW.slot, NOW, offers, 50, limits)

    def timed(row: str, part: Part, fresh: Fresh, each: int = 1) -> tuple[str, float, float]:
        sell, buy = (_cpu_seconds(part, specs[side], fresh) * 1e6 / each for side in (Side.SELL, Side.BUY))
        return row, sell, buy

    yield timed("decide", decided, lambda: offers)
    yield timed("decide, first of a slot", decided, lambda: [replace(offer) for offer in offers])
    for kind in sorted({offer.kind for offer in offers}):
        some = [offer for offer in offers if offer.kind == kind]
        for row, part in (("a quote", _quotes), ("a swap", _swaps), ("a slot's curve", _curves)):
            yield timed(f"{kind}: {row}", part, partial(list, some), len(some))


Part = Callable[[OrderSpec, Sequence[PoolOffer]], None]
Fresh = Callable[[], Sequence[PoolOffer]]
"""Returns the offers for an order; that is not timed."""


def _quotes(spec: OrderSpec, offers: Sequence[PoolOffer]) -> None:
    for offer in offers:
        quote(offer, spec.side, spec.amount, NOW)


def _swaps(spec: OrderSpec, offers: Sequence[PoolOffer]) -> None:
    for offer in offers:
        swap_of = offer.pool.swap_exact_in if spec.sells else offer.pool.swap_exact_out
        swap_of(offer.a_to_b, spec.amount, NOW)


def _curves(spec: OrderSpec, offers: Sequence[PoolOffer]) -> None:
    for offer in offers:
        PriceCurve(offer.pool, offer.a_to_b, NOW)


def _cpu_seconds(part: Part, specs: Sequence[OrderSpec], fresh: Fresh) -> float:
    """Return what an order takes, on average of all of them, at the best of several rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        orders = [(spec, fresh()) for spec in specs]
        start = time.process_time()
        for spec, offers in orders:
            part(spec, offers)
        best = min(best, time.process_time() - start)
    return best / len(specs)


# ---- Pools -------------------------------------------------------------------------------------------


def _problem(pools: Sequence[Pool], chance: random.Random) -> Problem:
    offers = [
        PoolOffer("Bench", type(pool).__name__, f"{at:04}", True, pool) for at, pool in enumerate(pools)
    ]
    # From a thousandth to a tenth of what a pool holds: large enough to be worth sharing out.
    amount = int(10 ** chance.uniform(-3, -1) * 10**13)
    return Problem(offers, OrderSpec(Side.SELL, amount, SOL, USDC))


def _reserve(chance: random.Random) -> int:
    """Draw lamports: thousands of SOL, of very different sizes."""
    return int(10**13 * chance.lognormvariate(0, 0.8))


def _price(chance: random.Random) -> float:
    return PRICE * (1 + chance.gauss(0, 0.001))


def _cpmm(chance: random.Random) -> Pool:
    reserve = _reserve(chance)
    rates = Rates(chance.choice(FEES_PPM), 0, 120_000, 40_000)
    return RaydiumCpmmPool(reserve, int(reserve * _price(chance)), rates)


def _mixed(chance: random.Random) -> list[Pool]:
    """Return 10 pools: constant product, ticks and bins, 240 segments in the direction of the swap."""
    return [
        *(_cpmm(chance) for _ in range(4)),
        *(_clmm(chance, 38) for _ in range(3)),
        *(_dlmm(chance, 40) for _ in range(3)),
    ]


def _clmm(chance: random.Random, stretches: int) -> Pool:
    sqrt_price = isqrt(int(_price(chance) * 2**64) << 64)
    tick = tick_at_sqrt_price(sqrt_price)
    liquidity = _reserve(chance)
    net = {-400_000: liquidity, 400_000: -liquidity}
    for _ in range(stretches):
        middle = tick + chance.randint(-1_000, 1_000)
        width = chance.randint(50, 500)
        some = liquidity // 4
        for at, change in ((middle - width, some), (middle + width, -some)):
            net[at] = net.get(at, 0) + change
    return RaydiumClmmPool(
        sqrt_price=max(sqrt_price, sqrt_price_at_tick(tick)),
        tick_current=tick,
        liquidity=sum(change for at, change in net.items() if at <= tick),
        tick_spacing=1,
        trade_fee_rate=chance.choice(FEES_PPM),
        ticks=tuple(Tick(at, change) for at, change in sorted(net.items())),
    )


def _dlmm(chance: random.Random, bins: int) -> Pool:
    bin_step, price = 10, int(_price(chance) * 2**64)
    active_id = 0
    while bin_price(active_id, bin_step) > price:
        active_id -= 1
    part = _reserve(chance) // (20 * bins)
    held = []
    for at in range(active_id - bins, active_id + bins + 1):
        amount = int(part * chance.uniform(0.2, 1.8))
        in_usdc = int(amount * PRICE)
        held.append(
            Bin(
                at,
                amount if at >= active_id else 0,
                in_usdc if at <= active_id else 0,
                bin_price(at, bin_step),
            )
        )
    return MeteoraDlmmPool(
        bin_step=bin_step,
        active_id=active_id,
        parameters=FeeParameters(10_000, 0, 30, 600, 5_000, 10_000, 150_000, 500),
        volatility=Volatility(0, 0, active_id, NOW.unix_timestamp),
        bins=tuple(held),
    )


if __name__ == "__main__":
    main()
