"""What every venue offers: the one interface between a program on chain and the engine.

A venue is one file in this folder with a `VENUE`. It knows its program's account layouts and swap
instructions; the curve itself is in engine/domain/pools. The same file serves both ends: the engine
decodes accounts and makes instructions, simnet creates accounts, reads instructions and writes the
swapped pool back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Generic, TypeVar

from solders.pubkey import Pubkey

from engine.domain.frozen import frozen
from engine.domain.order import FailureReason, Side
from engine.domain.pools.pool import Clock, Pool, Swap, SwapRefusal
from engine.solana.accounts import TOKEN_ACCOUNT, token_amount
from engine.solana.instructions import Instruction
from engine.solana.programs import TOKEN_PROGRAM


@dataclass(frozen=True, slots=True)
class AccountFilter:
    """Which of a program's accounts are meant, as getProgramAccounts takes it."""

    data_size: int
    """Of the account, in bytes."""
    prefix: bytes
    """What its first bytes are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolKeys:
    """What never changes in a pool: addresses that a swap names. Token a is the program's first mint."""

    pool: Pubkey
    mint_a: Pubkey
    mint_b: Pubkey
    vault_a: Pubkey
    vault_b: Pubkey
    token_program_a: Pubkey = TOKEN_PROGRAM
    token_program_b: Pubkey = TOKEN_PROGRAM


@frozen
class SwapCall:
    """A swap instruction of any venue, read back: what it asks of which pool."""

    pool: Pubkey
    a_to_b: bool
    side: Side
    amount: int
    """Exact: of the input if SELL, of the output if BUY."""
    threshold_amount: int
    """Least output (SELL) or most input (BUY)."""
    owner: Pubkey
    """Who signs for the input token account."""
    input_account: Pubkey
    output_account: Pubkey
    arrays: tuple[Pubkey, ...] = ()
    """The accounts it ends with where the pool's price decides on them: its tick or bin arrays."""
    partial_fill: bool = False
    """Of an input, spend no more than the pool's price range takes, instead of refusing."""


@dataclass(frozen=True, slots=True)
class NewAccount:
    """An account to be created."""

    owner: Pubkey
    """The program that owns it."""
    data: bytes


_TOKEN_INSUFFICIENT_FUNDS: Final = 1
"""Of the token program, which a swap calls, and whose error then is the swap's."""
_AMOUNT_AT: Final = TOKEN_ACCOUNT.offset("amount")

Keys = TypeVar("Keys", bound=PoolKeys)


class Venue(ABC, Generic[Keys]):
    """One program. It keeps no state: everything comes in as arguments."""

    name: ClassVar[str]
    """As users read it: "Raydium"."""
    kind: ClassVar[str]
    """The program, as developers read it: "raydium_cpmm"."""
    program: ClassVar[Pubkey]
    pool_filter: ClassVar[AccountFilter]
    """Which accounts of the program are pools."""
    mints_slice: ClassVar[tuple[int, int]]
    """Where in a pool account its two mints lie, token a first: offset and length (64)."""
    compute_units: ClassVar[int]
    """What one swap uses at most, with room to spare."""

    @abstractmethod
    def keys(self, pool: Pubkey, data: bytes) -> Keys | None:
        """Return what a pool account says for ever; None for a pool this venue cannot swap exactly.

        Raises WireError for an account that is not a pool.
        """

    @abstractmethod
    def quote_accounts(self, keys: Keys, accounts: Mapping[Pubkey, bytes]) -> tuple[Pubkey, ...]:
        """Return every account whose bytes `pool` needs, the pool itself first.

        `accounts` is what is known of them so far, perhaps nothing. Where the price decides on some (tick
        arrays, bin arrays), they are named as far as those tell; then ask again whenever one changed. Some
        may not exist.
        """

    def accounts(self, keys: Keys, find: Callable[[Pubkey], bytes | None]) -> dict[Pubkey, bytes]:
        """Return everything that `pool` and `written` need, as far as `find` has it."""
        known: dict[Pubkey, bytes] = {}
        asked: set[Pubkey] = set()
        while wanted := {*self.quote_accounts(keys, known), keys.vault_a, keys.vault_b} - asked:
            asked |= wanted
            known |= {key: data for key in wanted if (data := find(key)) is not None}
        return known

    @abstractmethod
    def pool(self, keys: Keys, accounts: Mapping[Pubkey, bytes]) -> Pool:
        """Return the pool as those accounts have it. Raises KeyError for a missing account, or WireError.

        A missing array is not an error: the pool is known up to there and refuses what goes beyond.
        """

    @abstractmethod
    def written(
        self, keys: Keys, accounts: Mapping[Pubkey, bytes], a_to_b: bool, swap: Swap
    ) -> dict[Pubkey, bytes]:
        """Return the accounts that a swap changes, the vaults among them, as it leaves them.

        `accounts` has them from before it.
        """

    @abstractmethod
    def swap_instruction(
        self,
        keys: Keys,
        accounts: Mapping[Pubkey, bytes],
        *,
        a_to_b: bool,
        side: Side,
        amount: int,
        threshold_amount: int,
        owner: Pubkey,
        input_account: Pubkey,
        output_account: Pubkey,
    ) -> Instruction:
        """Return the program's swap: exact input if SELL, exact output if BUY.

        `accounts` is what the quote was made of; a swap that names no arrays needs none.
        """

    @abstractmethod
    def read_swap(
        self, accounts: Sequence[Pubkey], data: bytes, mint_of: Mapping[Pubkey, Pubkey]
    ) -> SwapCall:
        """Return what a swap instruction of this program asks for.

        `mint_of` gives the mint of the token accounts it names. Raises ValueError for anything else than
        a swap instruction, and KeyError for a token account that `mint_of` lacks.
        """

    def swap(self, pool: Pool, call: SwapCall, clock: Clock) -> Swap:
        """Return the swap that an instruction asks for; its threshold is not looked at. Raises SwapError."""
        swap_of = pool.swap_exact_in if call.side is Side.SELL else pool.swap_exact_out
        return swap_of(call.a_to_b, call.amount, clock)

    @abstractmethod
    def new_pool(
        self, mint_a: Pubkey, mint_b: Pubkey, amount_a: int, amount_b: int, fee_ppm: int, *, index: int = 0
    ) -> tuple[Pubkey, dict[Pubkey, NewAccount]]:
        """Return the address of a new pool of these balances, and all accounts it consists of.

        The mints may come in either order; `index` tells pools of one pair apart. For simulations and tests.
        """

    @abstractmethod
    def error_code(self, refusal: SwapRefusal) -> int:
        """Return the custom error the program ends with."""

    slippage_errors: ClassVar[Mapping[Side, int]]
    """The custom error of a swap that misses its threshold: gives too little (SELL), costs too much (BUY)."""
    price_moved_errors: ClassVar[frozenset[int]] = frozenset()
    """Other custom errors of a swap that was fine when it was quoted: the price has left its arrays since."""

    def failure_reason(self, error: int, data: bytes = b"") -> tuple[FailureReason, str]:
        """Return what a custom error of this program means for the order, with a sentence for its user.

        `data` is the swap instruction's, for programs whose errors mean one thing or the other.
        """
        if error == _TOKEN_INSUFFICIENT_FUNDS:
            return FailureReason.INSUFFICIENT_FUNDS, "the wallet has too little of the input token"
        if error in self.slippage_errors.values() or error in self.price_moved_errors:
            return (
                FailureReason.SLIPPAGE_EXCEEDED,
                f"the price on {self.name} moved beyond the slippage allowed",
            )
        return FailureReason.VENUE_REJECTED, f"{self.name} refused the swap (error {error})"


def nearest_set_bits(bits: int, start: int, *, down: bool, count: int) -> list[int]:
    """Return up to `count` positions of bits that are set, from `start` on, itself included.

    So the arrays of a pool are found: a bit that is set is an array that has something in it.
    """
    found: list[int] = []
    if down:
        bits &= (2 << start) - 1
        while bits and len(found) < count:
            found.append(bits.bit_length() - 1)
            bits ^= 1 << found[-1]
    else:
        bits = bits >> start << start
        while bits and len(found) < count:
            lowest = bits & -bits
            found.append(lowest.bit_length() - 1)
            bits ^= lowest
    return found


def vaults_after(
    keys: PoolKeys, accounts: Mapping[Pubkey, bytes], a_to_b: bool, swap: Swap
) -> dict[Pubkey, bytes]:
    """Return both vaults' accounts after a swap: the input goes in, the output comes out, fees lie still."""
    came_in, went_out = (keys.vault_a, keys.vault_b) if a_to_b else (keys.vault_b, keys.vault_a)
    before_in, before_out = accounts[came_in], accounts[went_out]
    return {
        came_in: _with_amount(before_in, token_amount(before_in) + swap.input_amount),
        went_out: _with_amount(before_out, token_amount(before_out) - swap.output_amount),
    }


def _with_amount(data: bytes, amount: int) -> bytes:
    """Return the token account's bytes with another balance; 0.4 us where its layout takes 2."""
    return data[:_AMOUNT_AT] + amount.to_bytes(8, "little") + data[_AMOUNT_AT + 8 :]
