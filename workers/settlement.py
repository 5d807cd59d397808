"""Follows broadcast transactions to proof of what became of them.

What proves what (the model check in tests/unit/engine/domain walks through it, with a node that knows all
that is final):

    on chain, no error, at the commitment the settings name    Landed
    on chain, with an error, finalized                         Reverted
    not on chain, looked up after a finalized block height
    beyond its last valid one was read, by a node that had
    come to that height's slot and whose history reaches
    back to before it can have landed                          Lapsed

Nothing else proves anything: no answer, an error of the node, time; nor what a node has not seen that lags
behind, as one of several at one address may, or that was put back from a snapshot since. Until there is
proof the same bytes are sent again, which the network takes once. A node that can tells of what landed by
itself; what it has not told is looked up, all of a process's transactions together, once a slot. Where the
node has not answered this process for a while, it may answer another: its orders are left to that one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from engine.domain.errors import EngineError, NodeUnavailable
from engine.domain.lifecycle import Landed, Lapsed, Reverted
from engine.domain.order import Attempt, FailureReason, Order
from engine.market import explain_error
from engine.solana.rpc import ChainPosition, NodeClient, SignatureStatus, TransactionRecord
from engine.solana.transactions import payer
from engine.telemetry import Tally, stage_seconds

_HEIGHT_SECONDS: Final = 1.0
"""How often the finalized block height is read while something is open."""
_HISTORY_SECONDS: Final = 1.0
"""How often, at most, it is asked how far the node's history reaches back."""
_BLOCKHASH_BLOCKS: Final = 150
"""From a blockhash's height to the last at which it is valid: MAX_PROCESSING_AGE in Solana's clock.rs. Only
simnet can be set to more; it has its whole ledger, which reaches back to before whatever is computed."""
_MAX_SLOTS_PER_BLOCK: Final = 10
"""On average, between a blockhash's block and a finalized one: no more than nine of ten slots are skipped.
Mainnet skips one of twenty; without two thirds of the stake, whose leaders have as many slots, nothing is
finalized."""
_CONFIRMED_SLOTS: Final = 2
"""After so many a transaction can be confirmed: one that it lands in, and one that is voted in."""
_TOLD_SLOTS: Final = 4
"""So many more are left to a node that tells what landed, which waits for votes, and then for the block to be
written."""
_AWAY_SECONDS: Final = 10.0
"""How long the node may leave everything unanswered before what is open is left to other workers."""

Outcome = Landed | Reverted | Lapsed

_BROADCAST_SECONDS, _LAND_SECONDS = (stage_seconds.labels(stage) for stage in ("broadcast", "land"))

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Open:
    """A transaction that may still land."""

    order: Order
    attempt: Attempt
    outcome: asyncio.Future[Outcome]
    send_time: float
    """When to send it again, by the loop's clock."""
    is_likely_confirmed: bool
    """Not looked up yet, or on chain without error when its status was."""
    look_slot: int
    """When to look it up first, where nothing is told."""
    first_slot: int = 0
    """It cannot have landed before; the highest bound of those that were found."""
    is_out_of_reach: bool = False
    """The node's history has been found to begin later, and that was said."""
    is_sent: bool = False
    """Somebody has answered to its being sent, or it was told of."""
    start_time: float = field(default_factory=time.perf_counter)

    def is_due(self, slot: int, now: float, told_slots: int) -> bool:
        """Return whether to look it up: not before it can be confirmed, and so many slots later."""
        # Whose outcome is known leaves when its order's task runs next, which may be after this.
        return not self.outcome.done() and (
            slot >= self.look_slot + told_slots if self.is_sent else now >= self.send_time
        )

    def is_overdue(self, finalized: ChainPosition) -> bool:
        """Return whether it can land no more."""
        return finalized.block_height > self.attempt.last_valid_block_height

    def bound(self, finalized: ChainPosition) -> None:
        """Learn from how far the chain has come before which slot it cannot have landed.

        It cannot before its blockhash's block, of which the height is known and not the slot. Seen from later
        it may lie further back, as more slots may have been skipped since: the highest bound is kept.
        """
        blocks = finalized.block_height - (self.attempt.last_valid_block_height - _BLOCKHASH_BLOCKS)
        # Negative: the blockhash's block was not yet finalized, and is not older than this one.
        slots = _MAX_SLOTS_PER_BLOCK * max(0, blocks)
        self.first_slot = max(self.first_slot, finalized.absolute_slot - slots)

    def resolve(self, outcome: Outcome) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class Settlement:
    """`run` follows; `settle` sends one order's transaction and returns what is proved of it."""

    def __init__(
        self,
        node: NodeClient,
        wallet: str,
        *,
        commitment: str,
        resend_seconds: float,
        is_told: bool = True,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`wallet` is the base58 address whose swaps these are, but for what was sent before it was this one.

        `is_told`: have the node tell what lands, all of the wallet's. With two workers that took more than it
        spared: they confirmed a fifth fewer orders in a burst.
        """
        self._node = node
        self._wallet = wallet
        self._commitment = commitment
        # Confirmed it is a slot or two after it was seen, finalized half a minute.
        self._asks_for_whole = commitment == "confirmed"
        self._resend_seconds = resend_seconds
        self._unsent = Tally(logger, logging.INFO, "sending again later")
        self._jitter = jitter
        self._open: dict[str, _Open] = {}
        self._has_open = asyncio.Event()
        self._finalized = ChainPosition(0, 0)
        self._height_time = self._history_time = float("-inf")
        if is_told:
            node.follow_landed(wallet, commitment, self._open, self._on_landed)

    async def settle(self, order: Order, on_sent: Callable[[UUID], None] | None = None) -> Outcome:
        """Send the order's recorded transaction (again) and return what is proved of it.

        `on_sent` is told the order's id if the node takes it at the first try.
        Waits for as long as that takes. Leaving early, by cancellation, leaves the transaction on its way
        and on record. Raises NodeUnavailable once the node has not been heard of for a while, with the same.
        """
        attempt = order.open_attempt
        if attempt is None:
            raise ValueError(f"order {order.order_id} has no open transaction")
        loop = asyncio.get_running_loop()
        entry = _Open(
            order,
            attempt,
            loop.create_future(),
            self._next_send(loop.time()),
            self._asks_for_whole,
            self._node.newest_slot + _CONFIRMED_SLOTS,
        )
        self._open[attempt.tx_hash] = entry
        self._has_open.set()
        try:
            is_taken = await self._send(entry)
            entry.is_sent = True
            if is_taken and on_sent is not None:
                on_sent(order.order_id)
            _BROADCAST_SECONDS.observe(time.perf_counter() - entry.start_time)
            outcome = await entry.outcome
        finally:
            del self._open[attempt.tx_hash]
        _LAND_SECONDS.observe(time.perf_counter() - entry.start_time)
        return outcome

    async def run(self) -> None:
        """Look up what is open once a slot, for ever; failures of the node are waited out."""
        loop, slot = asyncio.get_running_loop(), None
        heard_time = loop.time()
        while True:
            # Slots that pass while a look-up is under way are worth one more together.
            try:
                async with asyncio.timeout(_AWAY_SECONDS):
                    slot = await self._node.next_slot(slot)
            except TimeoutError:
                self._leave_open()
                continue
            if not self._open:
                self._has_open.clear()
                await self._has_open.wait()
                # What is only being sent is not looked up for a slot that has passed.
                slot = None
                heard_time = loop.time()
                continue
            now = loop.time()
            told_slots = _TOLD_SLOTS if self._node.tells_landed else 0
            entries = [entry for entry in self._open.values() if entry.is_due(slot, now, told_slots)]
            try:
                if entries:
                    await self._look_up(entries, now)
            except EngineError as error:
                logger.warning("open transactions cannot be looked up: %s", error)
                if loop.time() - heard_time > _AWAY_SECONDS:
                    self._leave_open()
            else:
                heard_time = loop.time()

    def _leave_open(self) -> None:
        """Leave everything to whoever takes it up next. It is on record, with the bytes to be sent again."""
        entries = [entry for entry in self._open.values() if not entry.outcome.done()]
        if not entries:
            return
        reason = f"the Solana node has not been heard of for {_AWAY_SECONDS:g} s"
        logger.warning("%d open transactions are left to other workers: %s", len(entries), reason)
        for entry in entries:
            entry.outcome.set_exception(NodeUnavailable(reason))
            # Whose task is cancelled before it asks is not to be told of as a defect.
            entry.outcome.exception()

    def _on_landed(self, tx_hash: str, record: TransactionRecord) -> None:
        """Take what the node tells of an open transaction: what it would answer at the commitment."""
        entry = self._open[tx_hash]
        if record.err is None:
            self._land(entry, record)
            return
        # No proof before it is finalized, which is not told: its status is looked up from the next slot on.
        entry.is_likely_confirmed = False
        entry.is_sent = True
        entry.look_slot = record.slot - _TOLD_SLOTS

    async def _look_up(self, entries: list[_Open], now: float) -> None:
        # The height comes first. Read after the status, a transaction could land in between, and be taken
        # for one that never can. An older height is a lower one: it proves less, never wrongly.
        if now - self._height_time >= _HEIGHT_SECONDS:
            self._finalized = await self._node.position("finalized")
            self._height_time = now
        finalized = self._finalized
        # What most likely is confirmed by now is asked for whole, which saves a round trip; where it is not,
        # its status is asked for in the next slot.
        likely = [entry for entry in entries if entry.is_likely_confirmed]
        entries = [entry for entry in entries if not entry.is_likely_confirmed]
        for entry in likely:
            entry.is_likely_confirmed = False
        if not entries:
            # Mostly so, and two tasks less.
            await self._read_amounts(likely)
            return
        # The history is asked for with the statuses, in one request, and not remembered: of several nodes at
        # one address, the one that has not seen a transaction must be the one whose history reaches back.
        (seen_slot, statuses), history_slot, _ = await asyncio.gather(
            self._node.signature_statuses([entry.attempt.tx_hash for entry in entries]),
            self._read_history(entries, now),
            self._read_amounts(likely),
        )
        landed, unseen = [], []
        for entry, status in zip(entries, statuses, strict=True):
            if status is None:
                entry.bound(finalized)
                if entry.is_overdue(finalized):
                    if history_slot is not None and seen_slot >= finalized.absolute_slot:
                        self._lapse(entry, history_slot)
                elif now >= entry.send_time:
                    unseen.append(entry)
            elif self._has_landed(status):
                landed.append(entry)
            elif status.err is None:
                entry.is_likely_confirmed = self._asks_for_whole
            elif status.reached("finalized"):
                entry.resolve(_explained(status, entry.attempt))
        if landed:
            await self._read_amounts(landed)
        if unseen:
            for entry in unseen:
                entry.send_time = self._next_send(now)
            await asyncio.gather(*(self._send(entry) for entry in unseen))

    def _has_landed(self, status: SignatureStatus) -> bool:
        return status.err is None and status.reached(self._commitment)

    def _lapse(self, entry: _Open, history_slot: int) -> None:
        """Conclude that what is not on chain never was, if a history from that slot on can tell."""
        if history_slot <= entry.first_slot:
            entry.resolve(Lapsed())
        elif not entry.is_out_of_reach:
            entry.is_out_of_reach = True
            logger.warning(
                "whether %s landed cannot be told: it may have from slot %d on, and the node's history "
                "begins at %d; set SOLANA_RPC_URL to a node that has more of it",
                entry.attempt.tx_hash,
                entry.first_slot,
                history_slot,
                extra={"order_id": entry.order.order_id},
            )

    async def _read_history(self, entries: list[_Open], now: float) -> int | None:
        """Return the slot that the node's history begins with, if it matters to any; None: not known now."""
        if now - self._history_time < _HISTORY_SECONDS or not any(
            entry.is_overdue(self._finalized) for entry in entries
        ):
            return None
        self._history_time = now
        try:
            return await self._node.first_available_slot()
        except EngineError as error:
            # What else is looked up has nothing to do with it.
            logger.warning("how far the node's history reaches back is not known: %s", error)
            return None

    async def _read_amounts(self, entries: list[_Open]) -> None:
        """Resolve what landed with what it really exchanged. What the node cannot show yet waits a slot.

        One that cannot be read waits alone. A record without error is itself proof: the node has it at the
        commitment.
        """
        if not entries:
            return
        try:
            records = await self._node.transactions(
                [entry.attempt.tx_hash for entry in entries], self._commitment
            )
        except EngineError as error:
            logger.warning("landed transactions cannot be read: %s", error)
            return
        unread: list[EngineError] = []
        for entry, record in zip(entries, records, strict=True):
            if isinstance(record, EngineError):
                unread.append(record)
            elif record is not None and record.err is None:
                self._land(entry, record)
        if unread:
            logger.warning(
                "%d of %d landed transactions cannot be read: %s", len(unread), len(entries), unread[0]
            )

    def _land(self, entry: _Open, record: TransactionRecord) -> None:
        mints = (entry.order.spec.input_token.mint, entry.order.spec.output_token.mint)
        amounts = record.exchanged(self._wallet, *mints)
        if min(amounts) <= 0:
            # No swap: it was another wallet's, which workers had when it was sent.
            amounts = record.exchanged(payer(entry.attempt.raw_transaction), *mints)
        entry.resolve(Landed(*amounts))

    async def _send(self, entry: _Open) -> bool:
        """Return whether the node says that it took it; it may have all the same."""
        try:
            await self._node.send_transaction(entry.attempt.raw_transaction)
        except EngineError as error:
            # Nothing is concluded; it is sent again.
            self._unsent.note(error, entry.order.order_id)
            return False
        return True

    def _next_send(self, now: float) -> float:
        return now + self._resend_seconds * (0.75 + 0.5 * self._jitter())


def _explained(status: SignatureStatus, attempt: Attempt) -> Reverted:
    try:
        return Reverted(*explain_error(status.err, attempt.raw_transaction))
    except Exception:
        # An error of a shape nobody has seen must not stop what is looked up with it.
        logger.exception("an error on chain is not understood: %r", status.err)
        return Reverted(FailureReason.TRANSACTION_REVERTED, f"the transaction was reverted: {status.err}")
