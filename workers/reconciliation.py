"""What to do before orders are executed: make sure that the record knows what the chain knows of them.

A transaction is recorded before it is sent, so the chain never knows of one that the record lacks. Unless
the record was put back: from a backup, or by a standby that took over and lacked the last commits. Then an
order that is open here may have been executed already, and would be executed again. That shows in two ways:

- the database is another one than the record was last kept in (`place_here` in queries.sql);
- a transaction of a wallet of its workers has landed that names an open order, and is not on record.

All that shows in neither is a disk put back within a minute or two, before anything that was lost has landed.

Then nothing is claimed until no transaction of before can land any more, and those that did are recorded.
Their orders are SUBMITTED from then on and followed like any other. Whoever ends in the middle of this leaves
both signs as they were, for others and for a later start; several at once do no harm.

How far back the record may lack something is told by the chain's own order, and by no clock: what is on
record was recorded after its blockhash was made, so what had landed by then was recorded before. That this
stays true, the oldest transaction is recorded first. Only where nothing that a node lists is on record does
the database's clock say how far its history has to reach.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final, NamedTuple
from uuid import UUID

from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction

from engine.domain.errors import NodeUnavailable
from engine.domain.lifecycle import CLOSED, found_on_chain
from engine.domain.order import Attempt, OrderSpec, Route, RouteLeg, RoutingDecision, Side
from engine.domain.tokens import Token
from engine.solana.programs import WRAPPED_SOL_MINT
from engine.solana.rpc import ChainPosition, NodeClient, RpcError, SignatureInfo, WholeTransaction
from engine.solana.transactions import named_order, payer
from engine.storage.postgres import Known, Place, Store
from engine.venues import VENUE_BY_PROGRAM

_LOOK_SECONDS: Final = 1.0
"""How often it is looked how far the chain has come."""
_SLOT_SECONDS: Final = 0.4
"""The least that a slot takes."""
_SIGNED_SLOTS: Final = 1500
"""More lie not between a blockhash and a transaction with it: 150 blocks, were nine of ten slots skipped."""
_MARGIN: Final = timedelta(seconds=120)
"""By how much the chain's clock, which validators tell, and the database's may differ."""
_LOOKED_AT: Final = 1000
"""Transactions that are looked at whatever any clock says: a page of a node's list."""
_VALID_BLOCKS: Final = 150 + 32
"""From the finalized block to the last in which what is signed now can land: a blockhash's, and what is not
finalized yet."""

_NOTHING: Final = Known(is_open=None, on_record=False)

logger = logging.getLogger(__name__)


class _Named(NamedTuple):
    """A transaction that landed, and the order that it names."""

    order_id: UUID | None
    """None: it names none."""
    info: SignatureInfo
    known: Known

    @property
    def is_lacking(self) -> bool:
        """Return whether it executed an order and the record does not know; unless somebody else sent it."""
        return self.info.err is None and not self.known.on_record and self.known.is_open is not None


class _Unsure:
    """Those transactions that the record may lack, of all that landed, newest first."""

    def __init__(self, landed: AsyncIterator[_Named]) -> None:
        self._landed = landed
        self.are_all = False
        """Whether what landed reached back to what is on record for certain, once they were gone through."""

    async def __aiter__(self) -> AsyncIterator[_Named]:
        certain_slot = -1
        async for named in self._landed:
            if named.info.slot < certain_slot:
                self.are_all = True
                return
            if named.known.on_record:
                certain_slot = max(certain_slot, named.info.slot - _SIGNED_SLOTS)
            yield named


class Reconciliation:
    """To be `done` before anything is claimed over a new connection to PostgreSQL."""

    def __init__(self, store: Store, node: NodeClient, wallet: str) -> None:
        """`wallet` is the base58 address that pays for all transactions from now on."""
        self._store = store
        self._node = node
        self._wallet = wallet
        self.under_way: str | None = None
        """What is done about what the record lacks, while nothing may be executed."""
        self._place: str | None = None
        """Where the record lacked nothing; None: this process has not looked yet."""

    async def done(self) -> None:
        """Return once the record knows what the chain knows. Raises EngineError: ask again."""
        place = await self._store.place()
        if place.here == self._place and await self._has_what_was_recorded_here():
            return
        is_elsewhere = place.recorded not in (None, place.here)
        if place.has_open_orders and (is_elsewhere or await self._lacks_any(place)):
            logger.warning(
                "the database was put back from a backup, or a standby took over: nothing is executed until"
                " the chain has told what was done since %s",
                place.last_kept.isoformat(timespec="seconds"),
            )
            try:
                await self._catch_up(place)
            finally:
                self.under_way = None
        await self._store.set_place(place.here, self._wallet)
        self._place = place.here

    async def _has_what_was_recorded_here(self) -> bool:
        """Return whether the last transaction that was recorded here is on record: so is all before it."""
        if self._store.last_opened is None:
            return False
        (known,) = await self._store.known_transactions([self._store.last_opened])
        return known.on_record

    async def _lacks_any(self, place: Place) -> bool:
        """Return whether an open order has a transaction that landed and is not on record."""
        for wallet in self._wallets(place):
            if await self._lacks_any_of(wallet, place):
                return True
        return False

    async def _lacks_any_of(self, wallet: str, place: Place) -> bool:
        since = (place.last_kept - _MARGIN).timestamp()
        looked_at = 0
        async for named in _Unsure(self._landed(wallet)):
            if named.is_lacking and named.known.is_open and _pays(wallet, await self._whole(named.info)):
                return True
            # What lacks is the newest there is. This far back clocks may say where to stop: of a new record
            # nothing is on the chain, and its wallet may have been used for years.
            looked_at += 1
            if (
                looked_at >= _LOOKED_AT
                and named.info.block_time is not None
                and named.info.block_time < since
            ):
                return False
        return False

    async def _catch_up(self, place: Place) -> None:
        seen = await self._until_nothing_can_land()
        said, self.under_way = "", "what was executed is asked of the chain"
        while True:
            try:
                return await self._record_what_landed(place, seen)
            except (NodeUnavailable, RpcError) as error:
                if str(error) != said:
                    logger.warning("the chain is asked again: %s", error)
                said = str(error)
                await asyncio.sleep(_LOOK_SECONDS)

    async def _until_nothing_can_land(self) -> ChainPosition:
        """Return a position of the chain at which all that was sent before is final, or never will be."""
        last_height = (await self._node.latest_blockhash("processed")).last_valid_block_height
        finalized = await self._node.position("finalized")
        last_height = max(last_height, finalized.block_height + _VALID_BLOCKS)
        left = last_height + 1 - finalized.block_height
        logger.info("waiting for %d blocks, about %.0f s", left, left * _SLOT_SECONDS)
        while (left := last_height + 1 - finalized.block_height) > 0:
            self.under_way = f"what was executed is asked of the chain, in {left} blocks"
            await asyncio.sleep(_LOOK_SECONDS)
            with suppress(NodeUnavailable, RpcError):
                finalized = await self._node.position("finalized")
        return finalized

    async def _record_what_landed(self, place: Place, seen: ChainPosition) -> None:
        # Asked before what is listed: nothing falls out of the node's history in between.
        first_slot = await self._node.first_available_slot()
        lacking: list[tuple[str, _Named]] = []
        for wallet in self._wallets(place):
            unsure = _Unsure(self._landed(wallet, seen.absolute_slot))
            lacking += [(wallet, named) async for named in unsure if named.is_lacking]
            if not unsure.are_all:
                self._check_history(place, seen, first_slot)
        # Of a slot, those of a wallet come in their order.
        lacking.reverse()
        lacking.sort(key=lambda found: found[1].info.slot)
        recorded = 0
        for wallet, named in lacking:
            if named.order_id is not None:
                recorded += await self._record(named.order_id, wallet, named.info, seen)
        logger.warning("%d orders had been executed; their transactions are on record now", recorded)

    def _check_history(self, place: Place, seen: ChainPosition, first_slot: int) -> None:
        """Raise NodeUnavailable if the node's history may begin later: what it lists is not all then."""
        reaches = timedelta(seconds=(seen.absolute_slot - first_slot) * _SLOT_SECONDS)
        # By the database's clock, which is all there is to go by. Where it was ahead it tells nothing.
        age = place.now - place.last_kept
        if first_slot and (reaches < age + _MARGIN or age < -_MARGIN):
            raise NodeUnavailable(
                f"the node's history begins with slot {first_slot}, and what was done since"
                f" {place.last_kept:%Y-%m-%d %H:%M} is asked for:"
                " set SOLANA_RPC_URL to a node that has more of it"
            )

    def _wallets(self, place: Place) -> Sequence[str]:
        """Return all that orders of the record were ever signed for with, this process's own among them."""
        return list(dict.fromkeys((self._wallet, *place.wallets)))

    async def _landed(self, wallet: str, seen_slot: int = 0) -> AsyncIterator[_Named]:
        """Yield a wallet's transactions, newest first, each with what is on record of it."""
        before = None
        while page := await self._node.signatures_of(wallet, before, seen_slot=seen_slot):
            before = page[-1].signature
            names = {
                info.signature: order_id for info in page if (order_id := named_order(info.memo)) is not None
            }
            known = await self._store.known_transactions(
                [(order_id, signature) for signature, order_id in names.items()]
            )
            known_of = dict(zip(names, known, strict=True))
            for info in page:
                yield _Named(names.get(info.signature), info, known_of.get(info.signature, _NOTHING))

    async def _record(self, order_id: UUID, wallet: str, info: SignatureInfo, seen: ChainPosition) -> bool:
        """Return whether the record knows of it now, and did not."""
        order = await self._store.get(order_id)
        whole = await self._whole(info)
        # After the order was read: another worker may have recorded it meanwhile, and that one moves it.
        (known,) = await self._store.known_transactions([(order_id, info.signature)])
        if order is None or known.on_record or not _pays(wallet, whole):
            return False
        if order.status in CLOSED:
            said = {"order_id": order_id, "tx_hash": info.signature}
            logger.error("executed, and %s on record for good", order.status.value, extra=said)
            return False
        decision = RoutingDecision(
            attempt=order.attempt,
            slot=whole.slot,
            quotes=(),
            route=_route(whole, wallet, order.spec),
            reason="found on the chain after the database was put back: what was quoted is lost",
        )
        # No higher than the block it is in: its proof needs a history that reaches back to before that one.
        height = seen.block_height - (seen.absolute_slot - whole.slot)
        attempt = Attempt(order.attempt, info.signature, whole.raw, max(0, height))
        if await self._store.advance(found_on_chain(order, decision, attempt)) is not None:
            return True
        (known,) = await self._store.known_transactions([(order_id, info.signature)])
        if known.is_open and not known.on_record:
            # What landed later is not to be recorded before this is.
            raise NodeUnavailable(f"order {order_id} moved while its transaction was recorded")
        return False

    async def _whole(self, info: SignatureInfo) -> WholeTransaction:
        whole = await self._node.whole_transaction(info.signature)
        if whole is None:
            raise NodeUnavailable(f"transaction {info.signature} is listed, and not to be had")
        return whole


def _pays(wallet: str, whole: WholeTransaction) -> bool:
    """Return whether the wallet paid for it. Others can name it, and an order."""
    return payer(whole.raw) == wallet


def _route(whole: WholeTransaction, wallet: str, spec: OrderSpec) -> Route:
    """Return the route that a transaction took, with what was really exchanged where others have quotes."""
    message = VersionedTransaction.from_bytes(whole.raw).message
    keys = message.account_keys
    # What reads a swap asks for mints to tell its direction, which does not matter here.
    mints: defaultdict[Pubkey, Pubkey] = defaultdict(lambda: WRAPPED_SOL_MINT)
    legs: list[RouteLeg] = []
    middle_token: Token | None = None
    for instruction in message.instructions:
        venue = VENUE_BY_PROGRAM.get(keys[instruction.program_id_index])
        moved = whole.moved(wallet, frozenset(instruction.accounts))
        if venue is None or not moved:
            continue
        try:
            accounts = [keys[at] for at in instruction.accounts]
            pool = str(venue.read_swap(accounts, bytes(instruction.data), mints).pool)
        except (ValueError, LookupError):
            # A newer version's way to swap.
            pool = "unknown"
        taken, given = max(moved, key=moved.__getitem__), min(moved, key=moved.__getitem__)
        if not legs and given != spec.output_token:
            middle_token = given
        legs.append(RouteLeg(venue.name, venue.kind, pool, moved[taken], -moved[given]))
    paid, got = whole.exchanged(wallet, spec.input_token.mint, spec.output_token.mint)
    if not legs:
        # Of venues that this version does not have.
        legs.append(RouteLeg("unknown", "unknown", "unknown", paid, got))
    if middle_token is None:
        legs.sort(key=lambda leg: leg.input_amount, reverse=True)
    return Route(
        tuple(legs),
        paid,
        got,
        threshold_amount=got if spec.side is Side.SELL else paid,
        middle_token=middle_token,
    )
