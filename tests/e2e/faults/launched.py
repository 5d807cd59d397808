"""A token whose only pool a test launches, fills and moves: nobody else trades with it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_UP, Decimal
from fractions import Fraction
from typing import Any, Final

from tests.e2e.faults.checker import Record
from tests.e2e.faults.cluster import Cluster
from tests.e2e.faults.load import Load
from tests.e2e.faults.waiting import Spec

SETTINGS: Final[dict[str, Any]] = {
    # A slot is long enough for the engine to read all of them.
    "simnet_slot_ms": 200,
    "simnet_finalized_slots": 5,
    "simnet_market_pools": 0,
    "simnet_launch_slots": 0,
    "simnet_history_slots": 100_000,
    # As by default: that a monitor is dead is not to be known by its worker's lease.
    "lease_seconds": 10.0,
    # As simnet's history has it: the best single pool for the whole amount.
    "max_route_legs": 1,
}
"""Of a cluster whose prices only a test moves, and whose history tells all of them."""
NOTICED_SECONDS: Final = 2.0
"""Within so much a monitor's death is noticed and another one has taken over. That is the promise itself: it
takes 1.6 s at most, each looking every 0.4 s and giving the other 1.2 s; the rest is for a busy machine. It
begins with the kill, when the engine is up, all of it, and has nothing else to do."""
RECOVERED_SECONDS: Final = 5.0
"""Within so much all goes on when PostgreSQL is back."""
SOL: Final = "So11111111111111111111111111111111111111112"
_DECIMALS: Final = 6


@dataclass(slots=True)
class Launched:
    """Use `launch`. The price moves once a slot at most, so that what was in force is all on record."""

    cluster: Cluster
    mint: str
    pool: str
    slot: int
    """When it opens."""
    _moved_slot: int = 0

    @classmethod
    async def launch(
        cls, cluster: Cluster, *, sol: int = 10_000, price: str = "0.01", slots: int = 0
    ) -> Launched:
        """Launch a token whose pool opens `slots` slots from now, with so many SOL, at so many SOL each."""
        asked = {
            "quoteAmount": sol * 10**9,
            "price": price,
            "decimals": _DECIMALS,
            "kind": "raydium_cpmm",
            "slots": slots,
        }
        told = await cluster.node("simnet_launch", asked)
        return cls(cluster, told["mint"], told["pool"], told["slot"])

    async def move(self, per_cent: float) -> int:
        """Let a SOL bring so much more of the token; return the slot in which that began."""
        await self._next_slot()
        # The pool's price is SOL for a token.
        bps = round(10_000 / (1 + per_cent / 100)) - 10_000
        await self.cluster.node("simnet_move_price", {"pool": self.pool, "bps": bps})
        return await self._moved()

    async def fill(self, sol: int) -> int:
        """Bring the pool to so many SOL at its price; return the slot in which that began."""
        await self._next_slot()
        await self.cluster.node("simnet_liquidity", {"pool": self.pool, "quoteAmount": sol * 10**9})
        return await self._moved()

    async def price(self, amount: str = "1", side: str = "sell") -> Decimal:
        """Return what a SOL brings now, in whole tokens, where so much is sold or bought."""
        sells = side == "sell"
        spec = Spec(side, int(Decimal(amount) * 10 ** (9 if sells else _DECIMALS)), SOL, self.mint)
        offer = (await self.cluster.offers(spec))[-1]
        assert offer.input_amount is not None
        assert offer.output_amount is not None
        return Decimal(offer.output_amount).scaleb(9 - _DECIMALS) / Decimal(offer.input_amount)

    async def limit(self, per_cent: float, amount: str = "1", side: str = "sell") -> str:
        """Return a price so much better than now."""
        price = await self.price(amount, side) * Decimal(1 + per_cent / 100)
        return f"{price.quantize(Decimal('1e-9'), ROUND_DOWN):f}"

    async def passed(self, slots: int, since: int) -> None:
        """Return when so many slots have passed after that one."""
        while await self._slot() < since + slots:  # noqa: ASYNC110 - another process sets no event
            await asyncio.sleep(0.01)

    async def _next_slot(self) -> None:
        await self.passed(1, self._moved_slot)

    async def _moved(self) -> int:
        self._moved_slot = await self._slot()
        return self._moved_slot

    async def _slot(self) -> int:
        return int(await self.cluster.node("getSlot", {"commitment": "processed"}))


async def all_is_well(cluster: Cluster, load: Load, room: Fraction = Fraction(0)) -> Record:
    """Cancel what waits still, and judge what became of everything; return that."""
    await cluster.heal()

    async def none_waits() -> bool:
        # Some that are on their way may come back to waiting.
        for (order_id,) in await cluster.fetch("SELECT order_id::text FROM orders WHERE resting"):
            await load.cancel_until_answered(order_id)
        return not await cluster.fetch("SELECT FROM orders WHERE closed_status IS NULL")

    await cluster.until(none_waits)
    async with asyncio.timeout(20):
        await load.watched_to_the_end()
    record = await cluster.add_offers(load.add_to(cluster.record()))
    record.room = room
    cluster.judge(record, load.complaints)
    return record


def inverse(price: str) -> str:
    """Return what a token may cost, where a SOL is to bring so many."""
    return f"{(1 / Decimal(price)).quantize(Decimal('1e-12'), ROUND_UP):f}"
