"""What to do before orders are executed: make sure that the record knows what the chain knows of them.

A transaction is recorded before it is sent, so the chain never knows of one that the record lacks. Unless
the record was put back: from a backup, or by a standby that took over and lacked the last commits. Then an
order that is open here may have been executed already, and would be executed again. That shows in two ways:

- the database is another one than the record was last kept in (`place` in queries.sql);
- the chain has a transaction that names an open order, and is not on record. All that fails to show is a disk
  put back within the minute, before anything of what was lost has landed.

Then nothing is claimed until no transaction of before can land any more, and those that did are recorded.
Their orders are SUBMITTED from then on and followed like any other.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Final
from uuid import UUID

from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction

from engine.domain.lifecycle import CLOSED, found_on_chain
from engine.domain.order import Attempt, OrderSpec, Route, RouteLeg, RoutingDecision, Side
from engine.domain.tokens import Token
from engine.solana.programs import WRAPPED_SOL_MINT
from engine.solana.rpc import ChainPosition, NodeClient, SignatureInfo, WholeTransaction
from engine.solana.transactions import named_order
from engine.storage.postgres import Known, Store
from engine.venues import VENUE_BY_PROGRAM

_LOOK_SECONDS: Final = 1.0
"""How often it is looked how far the chain has come."""
_SLOT_SECONDS: Final = 0.4
_IN_TIME_SECONDS: Final = 120.0
"""From the record of a transaction to its landing, at most: 151 slots, and a minute to spare."""

logger = logging.getLogger(__name__)


class Reconciliation:
    """To be `done` before anything is claimed over a new connection to PostgreSQL."""

    def __init__(self, store: Store, node: NodeClient, wallet: str) -> None:
        """`wallet` is the base58 address that pays for all transactions."""
        self._store = store
        self._node = node
        self._wallet = wallet
        self.is_waiting = False
        """Until what was sent before can land no more."""

    async def done(self) -> None:
        """Return once the record knows what the chain knows. Raises EngineError: ask again."""
        place = await self._store.place()
        is_elsewhere = place.recorded not in (None, place.here)
        begin = place.begin_time.timestamp()
        if place.has_open_orders and (is_elsewhere or await self._lacks_any(begin)):
            logger.warning(
                "the database was put back from a backup, or a standby took over: nothing is executed until"
                " the chain has told what was done since"
            )
            self.is_waiting = True
            try:
                await self._record_what_landed(begin, await self._until_nothing_can_land())
            finally:
                self.is_waiting = False
        await self._store.set_place(place.here)

    async def _lacks_any(self, begin: float) -> bool:
        """Return whether the newest transactions show that the record lacks some."""
        async for _, _, known in self._landed(begin):
            if known.on_record:
                return False
            if known.is_open:
                return True
        return False

    async def _until_nothing_can_land(self) -> ChainPosition:
        """Return a position of the chain at which all that was sent before is final, or never will be."""
        last_height = (await self._node.latest_blockhash("processed")).last_valid_block_height
        while (left := last_height - (finalized := await self._node.position("finalized")).block_height) >= 0:
            logger.info("waiting for %d blocks, about %.0f s", left + 1, (left + 1) * _SLOT_SECONDS)
            await asyncio.sleep(_LOOK_SECONDS)
        return finalized

    async def _record_what_landed(self, begin: float, seen: ChainPosition) -> None:
        recorded: set[UUID] = set()
        newest_on_record: int | None = None
        async for order_id, info, known in self._landed(begin, seen.absolute_slot):
            if known.on_record:
                newest_on_record = newest_on_record or info.block_time
            elif known.is_open and info.err is None and order_id not in recorded:
                await self._record(order_id, info, seen)
                recorded.add(order_id)
            # What was recorded later than that one cannot have landed so much before it.
            if newest_on_record and info.block_time and info.block_time < newest_on_record - _IN_TIME_SECONDS:
                break
        logger.warning(
            "%d open orders had been executed; their transactions are on record now", len(recorded)
        )

    async def _landed(
        self, begin: float, seen_slot: int = 0
    ) -> AsyncIterator[tuple[UUID, SignatureInfo, Known]]:
        """Yield transactions of orders that landed since, newest first, and what is on record of them."""
        before = None
        while page := await self._node.signatures_of(self._wallet, before, seen_slot=seen_slot):
            named = [(order_id, info) for info in page if (order_id := named_order(info.memo)) is not None]
            known = await self._store.known_transactions(
                [(order_id, info.signature) for order_id, info in named]
            )
            for (order_id, info), each in zip(named, known, strict=True):
                yield order_id, info, each
            if page[-1].block_time is not None and page[-1].block_time < begin - _IN_TIME_SECONDS:
                return
            before = page[-1].signature

    async def _record(self, order_id: UUID, info: SignatureInfo, seen: ChainPosition) -> None:
        order = await self._store.get(order_id)
        whole = await self._node.whole_transaction(info.signature)
        if order is None or order.status in CLOSED or whole is None:
            return
        decision = RoutingDecision(
            attempt=order.attempt,
            slot=whole.slot,
            quotes=(),
            route=_route(whole, self._wallet, order.spec),
            reason="found on the chain after the database was put back: what was quoted is lost",
        )
        attempt = Attempt(order.attempt, info.signature, whole.raw, seen.block_height)
        await self._store.advance(found_on_chain(order, decision, attempt))
        logger.info("found on the chain", extra={"order_id": order_id, "tx_hash": info.signature})


def _route(whole: WholeTransaction, wallet: str, spec: OrderSpec) -> Route:
    """Return the route that a transaction took, with what was really exchanged where others have quotes."""
    message = VersionedTransaction.from_bytes(whole.raw).message
    keys = message.account_keys
    # What reads a swap asks for the mints of the wallet's accounts, to know the direction. Not so here.
    mints: defaultdict[Pubkey, Pubkey] = defaultdict(lambda: WRAPPED_SOL_MINT)
    legs: list[RouteLeg] = []
    middle_token: Token | None = None
    for instruction in message.instructions:
        venue = VENUE_BY_PROGRAM.get(keys[instruction.program_id_index])
        if venue is None:
            continue
        pool = venue.read_swap([keys[at] for at in instruction.accounts], bytes(instruction.data), mints).pool
        moved = whole.moved(wallet, frozenset(instruction.accounts))
        taken, given = max(moved, key=moved.__getitem__), min(moved, key=moved.__getitem__)
        if not legs and given != spec.output_token:
            middle_token = given
        legs.append(RouteLeg(venue.name, venue.kind, str(pool), moved[taken], -moved[given]))
    paid, got = whole.exchanged(wallet, spec.input_token.mint, spec.output_token.mint)
    if not legs:
        # Of a venue that this version has no longer.
        legs.append(RouteLeg("unknown", "unknown", "", paid, got))
    if middle_token is None:
        legs.sort(key=lambda leg: leg.input_amount, reverse=True)
    return Route(
        tuple(legs),
        paid,
        got,
        threshold_amount=got if spec.side is Side.SELL else paid,
        middle_token=middle_token,
    )
