"""Swaps of every venue: the venue reads the instruction and knows the curve, the tokens move here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from solders.pubkey import Pubkey

from engine.domain.order import Side
from engine.domain.pools.pool import Pool, Swap, SwapError, SwapRefusal
from engine.solana.wire import WireError
from engine.venues.venue import PoolKeys, SwapCall, Venue
from simnet.accounts import TOKEN, Account, is_token_account, token_balance, token_mint, token_owner
from simnet.bank import Call, Program, ProgramError, log_failure
from simnet.programs.token import OWNER_MISMATCH, move, read_token_account

_OWNER, _INPUT, _OUTPUT = (Pubkey.from_bytes(bytes([number]) * 32) for number in (1, 2, 3))
"""Stand for the user's own accounts in a shape."""
_USERS_OWN: Final = 3


@dataclass(frozen=True, slots=True)
class Errors:
    """What a program ends with where it cannot even try a swap; Anchor's own errors unless it has others."""

    unknown_instruction: int | str = 101
    data: int | str = 102
    """Too little of it."""
    address: int | str = 2012
    """An account that is not the pool's."""
    addresses: Mapping[int, int | str] = field(default_factory=dict)
    """The same for an account at some position, where that has its own error."""
    wrong_kind: int | str = 3002
    """A pool that is none."""
    too_few_accounts: int | str = 3005
    fewest_accounts: int = 13
    """Of a swap."""
    not_writable: int | str = 3006
    wrong_owner: int | str = 3007
    not_signer: int | str = 3010
    not_initialized: int | str = 3012
    arrays: int | str | None = None
    """A swap that comes farther than the arrays it names; None: as one that the pool has too little for."""
    funds: int | None = None
    """A wallet that has too little; None: the token program says so."""
    pays_first: bool = False
    """Tokens are moved before it is looked at whether the swap misses its threshold."""
    slippage_log: str = (
        "Program log: AnchorError occurred. Error Code: ExceededSlippage. Error Number: {}. "
        "Error Message: Exceeds desired slippage limit."
    )


@dataclass(frozen=True, slots=True)
class _Places:
    """Where an instruction names what; its accounts are those that its pool dictates."""

    keys: PoolKeys
    shape: _Shape
    reads: tuple[tuple[Pubkey, int], ...]
    """What the swap reads of the shape's own, by its index in the transaction's keys."""
    arrays: tuple[tuple[Pubkey, int], ...]
    """The same of what it reads beyond it, where it is there."""
    positions: dict[Pubkey, int]
    """In the instruction, of what a swap may write beside the vaults."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """Where a swap of one pool in one direction names what."""

    expected: tuple[tuple[int, bytes, bool], ...]
    """Position, address, writable: the accounts that the pool dictates."""
    reads: tuple[tuple[Pubkey, int], ...]
    """What the swap reads of these, and where it is named."""
    owner: int
    input_account: int
    output_account: int
    input_vault: int
    output_vault: int


class SwapProgram(Program):
    """A venue's program. It runs swaps and nothing else: pools are made in genesis."""

    def __init__(self, venue: Venue[Any], errors: Errors) -> None:
        self.venue = venue
        self.address = bytes(venue.program)
        self.compute_units = venue.compute_units * 3 // 4
        self.slippage_error = venue.slippage_errors[Side.SELL]
        self._errors = errors
        self._keys: dict[Pubkey, PoolKeys] = {}
        self._shapes: dict[tuple[Pubkey, bool], _Shape] = {}
        self._left: dict[Pubkey, tuple[dict[Pubkey, bytes], Pool]] = {}
        """What the last swap of a pool left: the accounts it is read from, and the pool itself."""

    def execute(self, call: Call) -> None:
        asked = self._read(call)
        places = self._places(call, asked)
        shape = places.shape
        swap, accounts = self._swap(call, places, asked)
        if self._errors.funds is not None:
            giver = read_token_account(call, shape.input_account)
            if token_balance(giver) < swap.input_amount:
                raise ProgramError(self._errors.funds)
        if not self._errors.pays_first:
            self._check_threshold(asked, swap)
        try:
            giver = read_token_account(call, shape.input_account)
            if token_owner(giver) != call.key(shape.owner):
                raise ProgramError(OWNER_MISMATCH, "Program log: Error: owner does not match")
            move(call, shape.input_account, shape.input_vault, swap.input_amount)
            move(call, shape.output_vault, shape.output_account, swap.output_amount)
        except ProgramError as error:
            if isinstance(error.code, int):
                invoked, failed = log_failure(TOKEN, error.code)
                raise ProgramError(error.code, invoked, *error.logs, failed) from None
            raise
        # Only now is it certain that the vaults can hold it.
        self._write(call, places, asked, swap, accounts)
        if self._errors.pays_first:
            self._check_threshold(asked, swap)

    def _check_threshold(self, asked: SwapCall, swap: Swap) -> None:
        if asked.side is Side.SELL:
            missed = swap.output_amount < asked.threshold_amount
        else:
            missed = swap.input_amount > asked.threshold_amount
        if missed:
            error = self.venue.slippage_errors[asked.side]
            raise ProgramError(error, self._errors.slippage_log.format(error))

    def _read(self, call: Call) -> SwapCall:
        mints = _Mints(call)
        try:
            asked = self.venue.read_swap(call.named.pubkeys, call.data, mints)
        except KeyError:
            raise ProgramError(self._errors.not_initialized) from None
        except ValueError:
            raise ProgramError(self._malformed(call)) from None
        call.log("Program log: Instruction: Swap")
        return asked

    def _malformed(self, call: Call) -> int | str:
        errors = self._errors
        if len(call.data) < 8:
            return errors.unknown_instruction
        if len(call.data) < 24:
            return errors.data
        return (
            errors.too_few_accounts if len(call.keys) < errors.fewest_accounts else errors.unknown_instruction
        )

    def _places(self, call: Call, asked: SwapCall) -> _Places:
        """Raises ProgramError where an account is not the one that the pool dictates."""
        known = call.named.places
        places: _Places | None = known.get((asked.pool, asked.a_to_b, len(asked.arrays)))
        if places is None:
            keys = self._pool_keys(call, asked.pool)
            shape = self._shape(keys, asked.a_to_b)
            self._check_accounts(call, shape, asked)
            arrays_at = len(call.keys) - len(asked.arrays)
            indexes = call.named.indexes
            positions = {key: position for position, key in enumerate(call.named.pubkeys)}
            for vault in (keys.vault_a, keys.vault_b):
                del positions[vault]
            places = _Places(
                keys,
                shape,
                tuple([(key, indexes[position]) for key, position in shape.reads]),
                tuple(zip(asked.arrays, indexes[arrays_at:], strict=True)),
                positions,
            )
            known[asked.pool, asked.a_to_b, len(asked.arrays)] = places
        return places

    def _pool_keys(self, call: Call, pool: Pubkey) -> PoolKeys:
        keys = self._keys.get(pool)
        if keys is None:
            account = call.account(bytes(pool))
            if account is None:
                raise ProgramError(self._errors.not_initialized)
            if account.owner != self.address:
                raise ProgramError(self._errors.wrong_owner)
            try:
                keys = self.venue.keys(pool, account.data)
            except WireError:
                raise ProgramError(self._errors.wrong_kind) from None
            if keys is None:
                raise ProgramError("UnsupportedProgramId")
            self._keys[pool] = keys
        return keys

    def _shape(self, keys: PoolKeys, a_to_b: bool) -> _Shape:
        shape = self._shapes.get((keys.pool, a_to_b))
        if shape is None:
            instruction = self.venue.swap_instruction(
                keys,
                {},
                a_to_b=a_to_b,
                side=Side.SELL,
                amount=1,
                threshold_amount=0,
                owner=_OWNER,
                input_account=_INPUT,
                output_account=_OUTPUT,
            )
            positions = {meta.pubkey: position for position, meta in enumerate(instruction.accounts)}
            vault_a, vault_b = positions[keys.vault_a], positions[keys.vault_b]
            shape = _Shape(
                expected=tuple(
                    (position, bytes(meta.pubkey), meta.is_writable)
                    for position, meta in enumerate(instruction.accounts)
                    if meta.pubkey not in (_OWNER, _INPUT, _OUTPUT)
                ),
                reads=tuple(
                    (key, positions[key])
                    for key in {*self.venue.quote_accounts(keys, {}), keys.vault_a, keys.vault_b}
                    if key in positions
                ),
                owner=positions[_OWNER],
                input_account=positions[_INPUT],
                output_account=positions[_OUTPUT],
                input_vault=vault_a if a_to_b else vault_b,
                output_vault=vault_b if a_to_b else vault_a,
            )
            self._shapes[keys.pool, a_to_b] = shape
        return shape

    def _check_accounts(self, call: Call, shape: _Shape, asked: SwapCall) -> None:
        if not call.is_signer(shape.owner):
            raise ProgramError(self._errors.not_signer)
        for position, address, writable in shape.expected:
            if call.keys[position] != address:
                raise ProgramError(self._errors.addresses.get(position, self._errors.address))
            if writable and not call.is_writable(position):
                raise ProgramError(self._errors.not_writable)
        arrays = range(len(call.keys) - len(asked.arrays), len(call.keys))
        if not all(map(call.is_writable, (shape.input_account, shape.output_account, *arrays))):
            raise ProgramError(self._errors.not_writable)

    def _swap(self, call: Call, places: _Places, asked: SwapCall) -> tuple[Swap, dict[Pubkey, bytes]]:
        """Return the swap, and the bytes of the pool's accounts before it."""
        keys = places.keys
        accounts = {}
        for key, index in places.reads:
            account = call.accounts[index]
            if account is None:
                raise ProgramError(self._errors.not_initialized)
            accounts[key] = account.data
        for key, index in places.arrays:
            account = call.accounts[index]
            if account is not None and account.owner == self.address:
                accounts[key] = account.data
        left = self._left.get(keys.pool)
        pool = left[1] if left is not None and left[0] == accounts else self.venue.pool(keys, accounts)
        try:
            swap = self.venue.swap(pool, asked, call.clock)
        except SwapError as refused:
            error: int | str = self.venue.error_code(refused.reason)
            if (
                self._errors.arrays is not None
                and refused.reason is SwapRefusal.INSUFFICIENT_LIQUIDITY
                and not self._arrays_ahead(keys, accounts, asked) <= set(asked.arrays)
            ):
                error = self._errors.arrays
            raise ProgramError(error, f"Program log: Error: the pool {refused}") from None
        return swap, accounts

    def _write(
        self, call: Call, places: _Places, asked: SwapCall, swap: Swap, accounts: dict[Pubkey, bytes]
    ) -> None:
        """Write what a swap changes beside the vaults; `accounts` are from before it."""
        written = self.venue.written(places.keys, accounts, asked.a_to_b, swap)
        for key, data in written.items():
            position = places.positions.get(key)
            if position is not None:
                before = call.get(position)
                assert before is not None
                call.put(position, Account(before.lamports, before.owner, data))
        if not places.arrays:
            # With arrays, a swap may leave another pool than is read from them: it knows those behind it.
            self._left[places.keys.pool] = accounts | written, swap.pool

    def _arrays_ahead(self, keys: PoolKeys, accounts: Mapping[Pubkey, bytes], asked: SwapCall) -> set[Pubkey]:
        """Return the arrays that the engine would name in a swap of that direction."""
        instruction = self.venue.swap_instruction(
            keys,
            accounts,
            a_to_b=asked.a_to_b,
            side=asked.side,
            amount=asked.amount,
            threshold_amount=asked.threshold_amount,
            owner=asked.owner,
            input_account=asked.input_account,
            output_account=asked.output_account,
        )
        fixed = len(self._shape(keys, asked.a_to_b).expected) + _USERS_OWN
        return {meta.pubkey for meta in instruction.accounts[fixed:]}


_pubkey = lru_cache(maxsize=65_536)(Pubkey.from_bytes)


class _Mints(dict[Pubkey, Pubkey]):
    """The mints of the token accounts a call names, looked up as they are asked for."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    def __missing__(self, key: Pubkey) -> Pubkey:
        account = self._call.account(bytes(key))
        if account is None or not is_token_account(account):
            raise KeyError(key)
        return _pubkey(token_mint(account))
