"""The chain: slots that tick, transactions that wait and land, and what may be told about it.

A slot is executed on a view above the accounts, committed to the ledger, and only then shown: whatever a
client was told of its transactions survives kill -9. Blockhashes follow from the seed and the slot, so they
survive as well; transactions that were waiting do not, as on a real node.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import msgspec
from solders.pubkey import Pubkey

from engine.domain.pools.pool import Clock
from engine.solana.programs import CLOCK_SYSVAR
from simnet.accounts import Account, rent_exempt_minimum
from simnet.bank import Accounts, Bank, Outcome, View
from simnet.faults import Fate, Faults, fate_of
from simnet.genesis import Genesis
from simnet.launches import Launch, Launches
from simnet.ledger import Landed, Ledger, LedgerReader, Progress
from simnet.market import Market
from simnet.transaction import Transaction, TransactionError, message_hash

logger = logging.getLogger(__name__)

FIRST_SLOT: Final = 412_128_000
FIRST_BLOCK_HEIGHT: Final = 390_000_000
"""Far from the slot: whoever takes one for the other should notice."""
SLOTS_IN_EPOCH: Final = 432_000
MAX_PROCESSING_AGE: Final = 150
"""Blocks for which a blockhash is good, on a real node."""
STATUS_CACHE_SLOTS: Final = 300
"""Slots whose statuses are known without looking into the ledger; more, where a blockhash is good longer."""

_RECORD_CACHE: Final = 4096
_WAITING_LIMIT: Final = 200_000
_RECORDING_SECONDS: Final = 0.1
_MAX_UNRECORDED_SLOTS: Final = 9
"""With slots of 10 ms, the shortest there are."""
_CLOCK: Final = bytes(CLOCK_SYSVAR)
_pack_clock = struct.Struct("<QqQQq").pack
"""engine.solana.accounts.ClockSysvar, several times faster than its layout does it."""
_CLOCK_RENT: Final = rent_exempt_minimum(40)
_SYSVAR_OWNER: Final = bytes(Pubkey.from_string("Sysvar1111111111111111111111111111111111111"))

COMMITMENTS: Final = ("processed", "confirmed", "finalized")


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things take, in slots."""

    slot_seconds: float
    confirmed_slots: int
    finalized_slots: int
    landing_slots: int
    landing_jitter_slots: int
    blockhash_blocks: int = MAX_PROCESSING_AGE
    """Blocks for which a blockhash is good."""


class Status(msgspec.Struct, frozen=True, gc=False):
    """A landed transaction, as far as its status goes."""

    slot: int
    error: TransactionError | None
    shown_slot: int
    """Before this slot it is not told (status lag), unless it is finalized."""
    message_hash: int


class _Waiting(msgspec.Struct, frozen=True, gc=False):
    transaction: Transaction
    fate: Fate


class Chain:
    """Use `start`, then `run` or `advance`, then `close`."""

    def __init__(
        self,
        genesis: Genesis,
        bank: Bank,
        market: Market,
        ledger: Ledger,
        *,
        seed: int,
        timing: Timing,
        faults: Faults,
        unix_seconds: Callable[[], float],
        launch_slots: int = 0,
    ) -> None:
        """`launch_slots` is how far scheduled launches of tokens are apart; 0: there are none."""
        self.faults = faults
        self.market = market
        self.launches = Launches(seed, launch_slots, FIRST_SLOT)
        self.timing = timing
        self.accounts: dict[bytes, Account] = {}
        """As the newest slot left them."""
        self.slot = FIRST_SLOT
        """The newest slot that is shown: executed and, unless it was empty, on record."""
        self.block_time = 0
        self.transaction_count = 0
        self.producing = True
        """False while block production is paused."""
        self.listeners: list[Callable[[], None]] = []
        """Called after each slot."""
        self.watchers: list[Callable[[Mapping[bytes, Account]], None]] = []
        """Called with the accounts that a slot, or a change between slots, has just changed."""
        self._genesis = genesis
        self._bank = bank
        self._ledger = ledger
        self._seed = seed
        self._unix_seconds = unix_seconds
        self._recording_slots = min(
            max(1, int(_RECORDING_SECONDS / timing.slot_seconds)), _MAX_UNRECORDED_SLOTS + 1
        )
        self._recorded_slot = FIRST_SLOT
        # Whatever could land a second time is remembered.
        self._status_slots = max(STATUS_CACHE_SLOTS, 2 * timing.blockhash_blocks)
        self._unrecorded: dict[bytes, Account] = {}
        """Changed by empty slots after the recorded one."""
        self._waiting: dict[int, list[_Waiting]] = {}
        self._known: set[bytes] = set()
        """Signatures of the waiting."""
        self._statuses: dict[bytes, Status] = {}
        self._messages: dict[int, bytes] = {}
        """Signatures of both, by their messages' hashes: a message lands once, whoever signs it anew."""
        self._landed_by_slot: OrderedDict[int, list[bytes]] = OrderedDict()
        """Signatures of those whose statuses are known, oldest slot first."""
        self._records: OrderedDict[bytes, Landed] = OrderedDict()
        self._undo: deque[tuple[int, dict[bytes, Account | None]]] = deque()
        self._hashes: dict[bytes, int] = {}
        """Block heights of blockhashes that are still good, oldest first, as far as somebody asked."""
        self._hashed_slot = FIRST_SLOT - 1
        """The newest whose blockhash is among them."""

    # ---- Start and stop

    def start(self) -> None:
        """Make the first slot, or go on from the last one in the ledger."""
        progress = self._ledger.progress()
        if progress is None:
            view = View(self._genesis.accounts)
            self.launches.act(view, FIRST_SLOT)
            self.accounts = self._genesis.accounts | view.changed
            self.block_time = int(self._unix_seconds())
            self.accounts[_CLOCK] = _clock_account(FIRST_SLOT, self.block_time)
            self._ledger.commit(self._progress(), self.accounts)
        else:
            self.accounts = self._ledger.accounts()
            self.slot = progress.slot
            self.block_time = progress.block_time
            self.transaction_count = progress.transaction_count
            self.market.held.update(progress.held_pools)
            requested = self._ledger.requested_launches()
            for pool in self.launches.restore(requested, self.accounts, self.slot):
                self.market.add(pool)
            for landed in reversed(list(self._ledger.since(self.slot - self._status_slots))):
                hashed = message_hash(landed.raw)
                self._statuses[landed.signature] = Status(landed.slot, landed.error, landed.slot, hashed)
                self._messages[hashed] = landed.signature
                self._landed_by_slot.setdefault(landed.slot, []).append(landed.signature)
        self._recorded_slot = self.slot
        if progress is not None:
            # As many as may have been shown without being on record: no client sees the chain go back.
            for _ in range(_MAX_UNRECORDED_SLOTS):
                self.advance()

    def close(self) -> None:
        """Let go of the ledger."""
        self._ledger.close()

    # ---- Slots

    async def run(self) -> None:
        """Produce a slot every slot's length, for ever. Late slots are not made up for."""
        loop = asyncio.get_running_loop()
        failed: asyncio.Future[None] = loop.create_future()
        due = loop.time() + self.timing.slot_seconds
        timer: asyncio.TimerHandle

        # Timers, not a task that sleeps: 90 us a slot instead of 150, with nothing done in it.
        def tick() -> None:
            nonlocal due, timer
            try:
                if self.producing:
                    self.advance()
            except Exception as error:
                failed.set_exception(error)
                return
            due = max(due + self.timing.slot_seconds, loop.time())
            timer = loop.call_at(due, tick)

        timer = loop.call_at(due, tick)
        try:
            await failed
        finally:
            timer.cancel()

    def advance(self) -> None:
        """Produce one slot: what is due is launched, the market trades, what is due is executed; all of it is
        recorded, then shown."""
        slot = self.slot + 1
        # Blocks' times never go back, whatever the machine's clock does.
        block_time = max(self.block_time, int(self._unix_seconds()))
        view = View(self.accounts)
        view.changed[_CLOCK] = _clock_account(slot, block_time)
        landed: list[Landed] = []
        statuses: dict[bytes, Status] = {}
        clock = Clock(slot, block_time)
        for pool in self.launches.act(view, slot):
            self.market.add(pool)
        self.market.move(view, slot, clock)
        for waiting in self._waiting.pop(slot, ()):
            self._known.discard(waiting.transaction.signature)
            self._land(waiting, view, clock, landed, statuses)
        self._record(view.changed, landed, slot, block_time)
        self._show(view.changed, landed, statuses, slot, block_time)
        for listener in self.listeners:
            listener()

    def change(self, act: Callable[[View, Clock], None]) -> None:
        """Change accounts between slots, durably: for funding and for tests."""
        view = View(self.accounts)
        act(view, Clock(self.slot, self.block_time))
        self._record(view.changed, [], self.slot, self.block_time)
        self._show(view.changed, [], {}, self.slot, self.block_time)

    def launch(self, launch: Launch) -> None:
        """Take a request to launch a token, durably; its mint is there at once. Raises SupplyError."""
        view = View(self.accounts)
        pool = self.launches.make(view, launch, self.slot)
        self._record(view.changed, [], self.slot, self.block_time, (launch,))
        self.launches.take_up(launch, self.slot)
        if pool is not None:
            self.market.add(pool)
        self._show(view.changed, [], {}, self.slot, self.block_time)

    def _land(
        self,
        waiting: _Waiting,
        view: View,
        clock: Clock,
        landed: list[Landed],
        statuses: dict[bytes, Status],
    ) -> None:
        transaction, fate = waiting.transaction, waiting.fate
        outcome = None
        if self._age_error(transaction, self.block_height(clock.slot)) is None:
            outcome = self._bank.execute(transaction, view, clock, revert=fate.reverted)
        if outcome is None or outcome.meta is None:
            del self._messages[transaction.message_hash]
            return
        statuses[transaction.signature] = Status(
            clock.slot, outcome.error, clock.slot + fate.status_lag_slots, transaction.message_hash
        )
        landed.append(
            Landed(
                sequence=self.transaction_count + len(landed) + 1,
                signature=transaction.signature,
                slot=clock.slot,
                block_time=clock.unix_timestamp,
                error=outcome.error,
                fee=transaction.fee,
                memo=transaction.memo,
                raw=transaction.raw,
                meta=outcome.meta,
            )
        )

    def _record(
        self,
        changed: Mapping[bytes, Account],
        landed: Sequence[Landed],
        slot: int,
        block_time: int,
        requested: Sequence[Launch] = (),
    ) -> None:
        """Put a slot on record, so that it can be shown. Where that fails, nothing has happened.

        Empty slots shorter than a tenth of a second go on record together. Losing those loses nothing: what
        they did follows from the seed and the slot before, and `start` does it again.
        """
        unrecorded = {**self._unrecorded, **changed}
        if landed or slot == self.slot or slot - self._recorded_slot >= self._recording_slots:
            progress = Progress(
                self._seed,
                slot,
                block_time,
                self.transaction_count + len(landed),
                tuple(sorted(self.market.held)),
            )
            self._ledger.commit(progress, unrecorded, landed, requested)
            self._recorded_slot = slot
            unrecorded = {}
        self._unrecorded = unrecorded

    def _show(
        self,
        changed: Mapping[bytes, Account],
        landed: Sequence[Landed],
        statuses: Mapping[bytes, Status],
        slot: int,
        block_time: int,
    ) -> None:
        accounts, undo = self.accounts, self._undo
        if slot > self.slot:
            undo.append((slot, {address: accounts.get(address) for address in changed}))
        else:
            # Between slots: as if it had always been so, at every commitment.
            for _, before in undo:
                for address in changed:
                    before.pop(address, None)
        while undo and undo[0][0] <= slot - self.timing.finalized_slots:
            undo.popleft()
        for address, account in changed.items():
            if account.lamports:
                accounts[address] = account
            else:
                accounts.pop(address, None)
        if landed:
            self._statuses.update(statuses)
            for each in landed:
                self._records[each.signature] = each
            while len(self._records) > _RECORD_CACHE:
                self._records.popitem(last=False)
            self._landed_by_slot[slot] = [each.signature for each in landed]
            self.transaction_count += len(landed)
        while self._landed_by_slot and next(iter(self._landed_by_slot)) < slot - self._status_slots:
            for signature in self._landed_by_slot.popitem(last=False)[1]:
                self._messages.pop(self._statuses.pop(signature).message_hash, None)
        self.slot = slot
        self.block_time = block_time
        for watcher in self.watchers:
            watcher(changed)

    def _progress(self) -> Progress:
        return Progress(self._seed, self.slot, self.block_time, self.transaction_count)

    # ---- Transactions

    def accept(self, transaction: Transaction) -> Fate:
        """Take a transaction whose signatures are good. Its answer says that it was sent, and no more.

        Sent again, it does nothing: it lands at most once.
        """
        signature = transaction.signature
        fate = fate_of(signature, self._seed, self.faults, self.timing.landing_jitter_slots)
        if (
            fate.dropped
            or signature in self._known
            or self._messages.get(transaction.message_hash) in self._known
            or len(self._known) >= _WAITING_LIMIT
            or self._age_error(transaction, self.block_height(self.slot) + 1) is not None
        ):
            return fate
        slot = self.slot + 1 + self.timing.landing_slots + fate.delay_slots
        self._waiting.setdefault(slot, []).append(_Waiting(transaction, fate))
        self._known.add(signature)
        self._messages[transaction.message_hash] = signature
        return fate

    def has(self, signature: bytes) -> bool:
        """Say whether these bytes were accepted before, so that their signatures need no second look."""
        return signature in self._known

    def simulate(
        self, transaction: Transaction, commitment: str, *, any_blockhash: bool = False
    ) -> tuple[Outcome, View]:
        """Execute a transaction on the accounts of a commitment, for nothing; return what it would leave."""
        slot = self.slot_of(commitment)
        view = View(self.accounts_at(slot))
        if not any_blockhash:
            error = self._age_error(transaction, self.block_height(slot))
            if error is not None:
                return Outcome(error, None), view
        outcome = self._bank.execute(transaction, view, Clock(slot, self.block_time))
        return outcome, view

    def _age_error(self, transaction: Transaction, block_height: int) -> TransactionError | None:
        if not self._is_good(transaction.blockhash, block_height):
            return "BlockhashNotFound"
        return "AlreadyProcessed" if self._messages.get(transaction.message_hash) in self._statuses else None

    def _is_good(self, blockhash: bytes, block_height: int) -> bool:
        height = self._known_hashes().get(blockhash)
        return height is not None and height <= block_height <= height + self.timing.blockhash_blocks

    def _known_hashes(self) -> dict[bytes, int]:
        """Return the block heights of all blockhashes that are good. Most slots nobody asks about one."""
        hashes, blocks = self._hashes, self.timing.blockhash_blocks
        if self._hashed_slot < self.slot:
            for slot in range(max(self._hashed_slot + 1, self.slot - blocks), self.slot + 1):
                hashes[self.blockhash(slot)] = self.block_height(slot)
            while len(hashes) > blocks + 1:
                del hashes[next(iter(hashes))]
            self._hashed_slot = self.slot
        return hashes

    # ---- What may be told

    def slot_of(self, commitment: str) -> int:
        """Return the newest slot of that commitment."""
        lag = {
            "processed": 0,
            "confirmed": self.timing.confirmed_slots,
            "finalized": self.timing.finalized_slots,
        }[commitment]
        return max(FIRST_SLOT, self.slot - lag)

    def block_height(self, slot: int) -> int:
        """Every slot has its block here, so height and slot keep their distance."""
        return slot - FIRST_SLOT + FIRST_BLOCK_HEIGHT

    def blockhash(self, slot: int) -> bytes:
        return sha256(f"simnet {self._seed} {slot}".encode()).digest()

    def is_blockhash_valid(self, blockhash: bytes, commitment: str) -> bool:
        return self._is_good(blockhash, self.block_height(self.slot_of(commitment)))

    def accounts_at(self, slot: int) -> Accounts:
        """Return accounts as that slot left them; as far back as the newest finalized one."""
        if slot >= self.slot:
            return self.accounts
        return _Past(self.accounts, [undo for at, undo in self._undo if at > slot])

    def commitment_of(self, slot: int) -> str:
        if slot <= self.slot - self.timing.finalized_slots:
            return "finalized"
        return "confirmed" if slot <= self.slot - self.timing.confirmed_slots else "processed"

    def status(self, signature: bytes) -> Status | None:
        """Return a transaction's status if it landed lately and may be told."""
        status = self._statuses.get(signature)
        if (
            status is None
            or self.slot >= status.shown_slot
            or status.slot <= self.slot - self.timing.finalized_slots
        ):
            return status
        return None

    def history(self, signatures: Sequence[bytes]) -> dict[bytes, Landed]:
        """Look transactions up that are older than the status cache."""
        wanted = [each for each in signatures if each not in self._known and each not in self._statuses]
        return self._ledger.find(wanted) if wanted else {}

    def record(self, signature: bytes) -> Landed | None:
        """Return a whole landed transaction, however old, if it may be told."""
        if signature in self._known or (signature in self._statuses and self.status(signature) is None):
            return None
        record = self._records.get(signature)
        return record if record is not None else self._ledger.find([signature]).get(signature)

    def landed_in(self, slot: int) -> list[Landed]:
        """Return what landed lately in a slot, in the order of execution, as far as it may be told."""
        records = [self.record(signature) for signature in self._landed_by_slot.get(slot, ())]
        return [record for record in records if record is not None]

    async def page(self, memo_prefix: str, after: int, limit: int) -> list[Landed]:
        """Return landed transactions in the order of execution, as LedgerReader.page does."""
        return await self._search(
            lambda ledger: ledger.page(memo_prefix=memo_prefix, after=after, limit=limit)
        )

    async def naming(
        self, address: bytes, *, before: bytes | None, until: bytes | None, limit: int, commitment: str
    ) -> list[Landed]:
        """Return transactions that name an address, newest first, as LedgerReader.naming does.

        Only those that may be told: what `record` keeps back is not among them.
        """
        max_slot, untold = self.slot_of(commitment), self._untold()
        return await self._search(
            lambda ledger: ledger.naming(
                address, before=before, until=until, limit=limit, max_slot=max_slot, untold=untold
            )
        )

    def _untold(self) -> frozenset[bytes]:
        """Return the signatures of what landed and may not be told yet; of slots not finalized, therefore."""
        return frozenset(
            signature
            for slot in range(self.slot - self.timing.finalized_slots + 1, self.slot + 1)
            for signature in self._landed_by_slot.get(slot, ())
            if self.status(signature) is None
        )

    async def _search(self, read: Callable[[LedgerReader], list[Landed]]) -> list[Landed]:
        """Go through the ledger, which may take long, beside the slots."""

        def search() -> list[Landed]:
            with closing(LedgerReader(self._ledger.path)) as ledger:
                return read(ledger)

        return await asyncio.to_thread(search)


class _Past:
    """Accounts as they were: for each, what the first later slot that changed it found."""

    def __init__(self, now: Mapping[bytes, Account], undo: list[dict[bytes, Account | None]]) -> None:
        self._now = now
        self._undo = undo

    def get(self, address: bytes, /) -> Account | None:
        for before in self._undo:
            if address in before:
                return before[address]
        return self._now.get(address)


def _clock_account(slot: int, block_time: int) -> Account:
    epoch = slot // SLOTS_IN_EPOCH
    return Account(_CLOCK_RENT, _SYSVAR_OWNER, _pack_clock(slot, block_time, epoch, epoch + 1, block_time))
