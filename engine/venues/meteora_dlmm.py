"""Meteora DLMM: its accounts, its swap instructions and its errors.

Source: layouts, account lists and errors as @meteora-ag/dlmm 1.9.14 and the compiled program at
MeteoraAg/dlmm-sdk fb02e51 have them. The curve is in engine/domain/pools/meteora_dlmm.py.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from math import floor, log
from typing import Annotated, ClassVar, Final, NamedTuple

from solders.instruction import AccountMeta
from solders.pubkey import Pubkey

from engine.domain.order import Side
from engine.domain.pools.meteora_dlmm import (
    ActivationType,
    Bin,
    CollectFeeMode,
    FeeParameters,
    MeteoraDlmmPool,
    Volatility,
    bin_price,
)
from engine.domain.pools.pool import Swap, SwapRefusal
from engine.solana.accounts import TOKEN_ACCOUNT, TokenAccount
from engine.solana.instructions import Instruction, Names
from engine.solana.programs import MEMO_PROGRAM, TOKEN_PROGRAM, program_address
from engine.solana.wire import (
    Layout,
    WireError,
    account_discriminator,
    i32,
    i64,
    instruction_discriminator,
    pubkey,
    raw,
    u8,
    u16,
    u32,
    u64,
    u128,
)
from engine.venues.venue import (
    AccountFilter,
    NewAccount,
    PoolKeys,
    SwapCall,
    Venue,
    nearest_set_bits,
    vaults_after,
)

PROGRAM: Final = Pubkey.from_string("LBUZKhRxPF3XUpBCjp4YzTKgLccjZhTSDM9YuVaPwxo")
EVENT_AUTHORITY: Final = program_address(PROGRAM, b"__event_authority")

BINS_IN_ARRAY: Final = 70
ARRAYS_AHEAD: Final = 3
"""So many bin arrays with liquidity are traded with in each direction, the active bin's among them.

Each is an account to read and, in its direction, one to name in the transaction.
"""

MAX_BINS: Final = 40
"""So many a swap may come through. The program has used 52,000 compute units for 2, 223,000 for 30."""

_NO_KEY: Final = Pubkey.default()


@dataclass(frozen=True, slots=True)
class LbPair:
    """The program's pool."""

    base_factor: u16 = 0
    filter_period: u16 = 0
    decay_period: u16 = 0
    reduction_factor: u16 = 0
    variable_fee_control: u32 = 0
    max_volatility_accumulator: u32 = 0
    min_bin_id: i32 = 0
    max_bin_id: i32 = 0
    protocol_share: u16 = 0
    base_fee_power_factor: u8 = 0
    function_type: u8 = 0
    collect_fee_mode: u8 = 0
    padding_a: Annotated[bytes, raw(3)] = bytes(3)
    volatility_accumulator: u32 = 0
    volatility_reference: u32 = 0
    index_reference: i32 = 0
    padding_b: Annotated[bytes, raw(4)] = bytes(4)
    last_update_timestamp: i64 = 0
    padding_c: Annotated[bytes, raw(8)] = bytes(8)
    bump_seed: u8 = 0
    bin_step_seed: Annotated[bytes, raw(2)] = bytes(2)
    pair_type: u8 = 0
    """0 permissionless, 1 permission, 2 customizable, 3 permissionless of the second version."""
    active_id: i32 = 0
    bin_step: u16 = 0
    status: u8 = 0
    """0: enabled; 1: disabled."""
    require_base_factor_seed: u8 = 0
    base_factor_seed: Annotated[bytes, raw(2)] = bytes(2)
    activation_type: u8 = 0
    """0: activation_point is a slot; 1: unix seconds."""
    creator_pool_on_off_control: u8 = 0
    token_x_mint: pubkey = _NO_KEY
    token_y_mint: pubkey = _NO_KEY
    reserve_x: pubkey = _NO_KEY
    reserve_y: pubkey = _NO_KEY
    protocol_fee_x: u64 = 0
    protocol_fee_y: u64 = 0
    padding_d: Annotated[bytes, raw(32)] = bytes(32)
    reward_infos: Annotated[bytes, raw(288)] = bytes(288)
    oracle: pubkey = _NO_KEY
    bin_array_bitmap: Annotated[bytes, raw(128)] = bytes(128)
    """1024 bits, little-endian; bit b stands for the bin array of index b - 512."""
    last_updated_at: i64 = 0
    padding_e: Annotated[bytes, raw(32)] = bytes(32)
    pre_activation_swap_address: pubkey = _NO_KEY
    base_key: pubkey = _NO_KEY
    activation_point: u64 = 0
    pre_activation_duration: u64 = 0
    padding_f: Annotated[bytes, raw(16)] = bytes(16)
    creator: pubkey = _NO_KEY
    token_mint_x_program_flag: u8 = 0
    """0: SPL Token; 1: Token-2022."""
    token_mint_y_program_flag: u8 = 0
    version: u8 = 0
    reserved: Annotated[bytes, raw(21)] = bytes(21)


@dataclass(frozen=True, slots=True)
class BinArray:
    """70 bins that lie side by side."""

    index: i64
    """Its first bin has the id 70 * index."""
    version: u8
    padding: Annotated[bytes, raw(7)]
    lb_pair: pubkey
    bins: Annotated[bytes, raw(BINS_IN_ARRAY * 144)]


@dataclass(frozen=True, slots=True)
class BinState:
    """One bin of a BinArray."""

    amount_x: u64 = 0
    """Without limit orders and without the protocol's fees."""
    amount_y: u64 = 0
    price: u128 = 0
    """Q64; 0 in a bin that was never used."""
    liquidity_supply: u128 = 0
    fulfilled_order_amount_x: u64 = 0
    fulfilled_order_amount_y: u64 = 0
    limit_order_fee_ask_side: u64 = 0
    limit_order_fee_bid_side: u64 = 0
    fee_amount_x_per_token_stored: u128 = 0
    fee_amount_y_per_token_stored: u128 = 0
    open_order_amount: u64 = 0
    """Limit orders, of token x if limit_order_ask_side, otherwise of y."""
    total_processing_order_amount: u64 = 0
    processed_order_remaining_amount: u64 = 0
    """What is left of limit orders that are partly filled."""
    order_age: u32 = 0
    limit_order_ask_side: u8 = 0
    padding: Annotated[bytes, raw(3)] = bytes(3)


@dataclass(frozen=True, slots=True)
class BinArrayBitmapExtension:
    """Which bin arrays beyond the pool's own bitmap hold liquidity; only pools that needed it have one."""

    lb_pair: pubkey
    positive_bin_array_bitmap: Annotated[bytes, raw(768)] = bytes(768)
    """Bit b stands for the bin array of index 512 + b."""
    negative_bin_array_bitmap: Annotated[bytes, raw(768)] = bytes(768)
    """Bit b stands for the bin array of index -513 - b."""


@dataclass(frozen=True, slots=True)
class Oracle:
    """Price history; a swap must name it."""

    idx: u64 = 0
    active_size: u64 = 0
    length: u64 = 0
    """Observations that there is room for, of 32 bytes each."""


LB_PAIR: Final = Layout(LbPair, discriminator=account_discriminator("LbPair"))
BIN_ARRAY: Final = Layout(BinArray, discriminator=account_discriminator("BinArray"))
BIN: Final = Layout(BinState)
BITMAP_EXTENSION: Final = Layout(
    BinArrayBitmapExtension, discriminator=account_discriminator("BinArrayBitmapExtension")
)
ORACLE: Final = Layout(Oracle, discriminator=account_discriminator("Oracle"))

SWAP: Final = instruction_discriminator("swap")
SWAP2: Final = instruction_discriminator("swap2")
SWAP_EXACT_OUT: Final = instruction_discriminator("swap_exact_out")
SWAP_EXACT_OUT2: Final = instruction_discriminator("swap_exact_out2")

_SWAP_ARGUMENTS: Final = struct.Struct("<8sQQ")
_NO_TRANSFER_HOOKS: Final = bytes(4)
"""An empty list of the accounts that transfer hooks take; SPL Token has none."""

_BINS_AT: Final = BIN_ARRAY.offset("bins")
_MOVED_BIN: Final = struct.Struct("<QQ16s")
"""Of a bin: amounts and price, which a program fills in when it first uses the bin."""

_BITMAP_HALF: Final = 512
"""Arrays on either side of price one that the pool's own bitmap covers."""
_EXTENDED_HALF: Final = 6656
"""And with the extension."""

_READ_BIN: Final = struct.Struct("<QQ16s80xQ8xQ4xB3x")
"""Of a bin: amounts, price, limit orders open and partly filled, and which side these are on."""

_read_parameters = LB_PAIR.reader(
    "base_factor",
    "filter_period",
    "decay_period",
    "reduction_factor",
    "variable_fee_control",
    "max_volatility_accumulator",
    "protocol_share",
    "base_fee_power_factor",
    "collect_fee_mode",
)
_read_state = LB_PAIR.reader(
    "volatility_accumulator",
    "volatility_reference",
    "index_reference",
    "last_update_timestamp",
    "active_id",
    "bin_step",
    "status",
    "activation_type",
    "protocol_fee_x",
    "protocol_fee_y",
    "activation_point",
)
_read_place = LB_PAIR.reader("active_id", "bin_step")
_read_arrays = LB_PAIR.reader("active_id", "bin_array_bitmap")
_read_extension = BITMAP_EXTENSION.reader("positive_bin_array_bitmap", "negative_bin_array_bitmap")


def bin_array_address(pool: Pubkey, index: int) -> Pubkey:
    """Return where a pool keeps the 70 bins from 70 * index on."""
    return program_address(PROGRAM, b"bin_array", bytes(pool), index.to_bytes(8, "little", signed=True))


def bin_array_indexes(
    start: int, bitmap: bytes, extension: bytes | None, *, down: bool, count: int
) -> list[int]:
    """Return the next bin arrays that hold liquidity, from that of index `start` on, in the order of a swap.

    `bitmap` is the pool's own, `extension` the account with the rest; None if there is none. Down is x to y.
    """
    bits, half = int.from_bytes(bitmap, "little"), _BITMAP_HALF
    if extension is not None:
        positive, negative = (int.from_bytes(part, "little") for part in _read_extension(extension))
        # The negative part runs away from price one, downwards.
        downwards = int(f"{negative:0{_EXTENDED_HALF - _BITMAP_HALF}b}"[::-1], 2)
        bits = (positive << 2 * _BITMAP_HALF | bits) << _EXTENDED_HALF - _BITMAP_HALF | downwards
        half = _EXTENDED_HALF
    if not -half <= start < half:
        return []
    return [position - half for position in nearest_set_bits(bits, start + half, down=down, count=count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteoraDlmmKeys(PoolKeys):
    oracle: Pubkey
    bitmap_extension: Pubkey
    """Where it would be; most pools have none."""


@lru_cache(maxsize=1024)
def _swap_names(
    keys: MeteoraDlmmKeys,
    has_extension: bool,
    owner: Pubkey,
    input_account: Pubkey,
    output_account: Pubkey,
    arrays: tuple[Pubkey, ...],
) -> Names:
    # The program's own id stands for an account that there is not; so for who referred the swap.
    no_account = AccountMeta(PROGRAM, False, False)
    return Names(
        PROGRAM,
        (
            AccountMeta(keys.pool, False, True),
            AccountMeta(keys.bitmap_extension, False, True) if has_extension else no_account,
            AccountMeta(keys.vault_a, False, True),
            AccountMeta(keys.vault_b, False, True),
            AccountMeta(input_account, False, True),
            AccountMeta(output_account, False, True),
            AccountMeta(keys.mint_a, False, False),
            AccountMeta(keys.mint_b, False, False),
            AccountMeta(keys.oracle, False, True),
            no_account,
            AccountMeta(owner, True, False),
            AccountMeta(keys.token_program_a, False, False),
            AccountMeta(keys.token_program_b, False, False),
            AccountMeta(MEMO_PROGRAM, False, False),
            AccountMeta(EVENT_AUTHORITY, False, False),
            AccountMeta(PROGRAM, False, False),
            *(AccountMeta(address, False, True) for address in arrays),
        ),
    )


class MeteoraDlmm(Venue[MeteoraDlmmKeys]):
    name: ClassVar[str] = "Meteora"
    kind: ClassVar[str] = "meteora_dlmm"
    program: ClassVar[Pubkey] = PROGRAM
    pool_filter: ClassVar[AccountFilter] = AccountFilter(LB_PAIR.size, LB_PAIR.discriminator)
    mints_slice: ClassVar[tuple[int, int]] = (LB_PAIR.offset("token_x_mint"), 64)
    compute_units: ClassVar[int] = 320_000
    # ExceededAmountSlippageTolerance, InsufficientInAmount.
    slippage_errors: ClassVar[Mapping[Side, int]] = {Side.SELL: 6003, Side.BUY: 6104}
    # Anchor's AccountNotEnoughKeys: the swap came to a bin array that it does not name.
    price_moved_errors: ClassVar[frozenset[int]] = frozenset({3005})

    def keys(self, pool: Pubkey, data: bytes) -> MeteoraDlmmKeys | None:
        """Return the pool's addresses; None if a mint is Token-2022, whose transfer fees are not modelled."""
        pair = LB_PAIR.decode(data)
        if pair.token_mint_x_program_flag or pair.token_mint_y_program_flag:
            return None
        return MeteoraDlmmKeys(
            pool=pool,
            mint_a=pair.token_x_mint,
            mint_b=pair.token_y_mint,
            vault_a=pair.reserve_x,
            vault_b=pair.reserve_y,
            oracle=pair.oracle,
            bitmap_extension=program_address(PROGRAM, b"bitmap", bytes(pool)),
        )

    def quote_accounts(self, keys: MeteoraDlmmKeys, accounts: Mapping[Pubkey, bytes]) -> tuple[Pubkey, ...]:
        # Both begin with the active bin's own array, where that holds anything.
        upwards, downwards = _arrays(keys, accounts)
        return (keys.pool, keys.bitmap_extension, *(upwards | downwards).values())

    def pool(self, keys: MeteoraDlmmKeys, accounts: Mapping[Pubkey, bytes]) -> MeteoraDlmmPool:
        data = accounts[keys.pool]
        (
            base_factor,
            filter_period,
            decay_period,
            reduction_factor,
            variable_fee_control,
            max_volatility_accumulator,
            protocol_share,
            base_fee_power_factor,
            collect_fee_mode,
        ) = _read_parameters(data)
        (
            volatility_accumulator,
            volatility_reference,
            index_reference,
            last_update_timestamp,
            active_id,
            bin_step,
            status,
            activation_type,
            protocol_fee_x,
            protocol_fee_y,
            activation_point,
        ) = _read_state(data)
        return MeteoraDlmmPool(
            bin_step=bin_step,
            active_id=active_id,
            parameters=FeeParameters(
                base_factor=base_factor,
                base_fee_power_factor=base_fee_power_factor,
                filter_period=filter_period,
                decay_period=decay_period,
                reduction_factor=reduction_factor,
                variable_fee_control=variable_fee_control,
                max_volatility_accumulator=max_volatility_accumulator,
                protocol_share=protocol_share,
                collect_fee_mode=CollectFeeMode(collect_fee_mode),
            ),
            volatility=Volatility(
                volatility_accumulator, volatility_reference, index_reference, last_update_timestamp
            ),
            bins=_bins(keys, accounts),
            protocol_fee_x=protocol_fee_x,
            protocol_fee_y=protocol_fee_y,
            activation_type=ActivationType(activation_type),
            activation_point=activation_point,
            enabled=status == 0,
            max_bins=MAX_BINS,
        )

    def written(
        self, keys: MeteoraDlmmKeys, accounts: Mapping[Pubkey, bytes], a_to_b: bool, swap: Swap
    ) -> dict[Pubkey, bytes]:
        # Price history and what liquidity providers can claim stay as they were: no quote reads them.
        after = swap.pool
        assert isinstance(after, MeteoraDlmmPool)
        volatility = after.volatility
        active_id, _ = _read_place(accounts[keys.pool])
        first, last = sorted((active_id, after.active_id))
        return {
            keys.pool: LB_PAIR.patch(
                accounts[keys.pool],
                volatility_accumulator=volatility.accumulator,
                volatility_reference=volatility.reference,
                index_reference=volatility.index_reference,
                last_update_timestamp=volatility.last_update_timestamp,
                active_id=after.active_id,
                protocol_fee_x=after.protocol_fee_x,
                protocol_fee_y=after.protocol_fee_y,
            ),
            **_arrays_after(keys, accounts, after.bins, first, last),
            **vaults_after(keys, accounts, a_to_b, swap),
        }

    def swap_instruction(
        self,
        keys: MeteoraDlmmKeys,
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
        # The direction is the mint of input_account: a_to_b only decides which bin arrays are next.
        if side is Side.SELL:
            arguments = _SWAP_ARGUMENTS.pack(SWAP2, amount, threshold_amount)
        else:
            arguments = _SWAP_ARGUMENTS.pack(SWAP_EXACT_OUT2, threshold_amount, amount)
        names = _swap_names(
            keys,
            keys.bitmap_extension in accounts,
            owner,
            input_account,
            output_account,
            tuple(_arrays(keys, accounts)[a_to_b].values()),
        )
        return Instruction(names, arguments + _NO_TRANSFER_HOOKS)

    def read_swap(
        self, accounts: Sequence[Pubkey], data: bytes, mint_of: Mapping[Pubkey, Pubkey]
    ) -> SwapCall:
        if len(data) < _SWAP_ARGUMENTS.size:
            raise ValueError("not a swap: too little data")
        discriminator, first, second = _SWAP_ARGUMENTS.unpack_from(data)
        if discriminator in (SWAP2, SWAP_EXACT_OUT2):
            # With the memo program among them, and before the bin arrays what transfer hooks take.
            arrays_at = 16 + _hook_account_count(data)
        elif discriminator in (SWAP, SWAP_EXACT_OUT):
            arrays_at = 15
        else:
            raise ValueError(f"not a swap: instruction {discriminator.hex()}")
        if len(accounts) < arrays_at:
            raise ValueError("not a swap: too few accounts")
        sells = discriminator in (SWAP, SWAP2)
        return SwapCall(
            pool=accounts[0],
            a_to_b=mint_of[accounts[4]] == accounts[6],
            side=Side.SELL if sells else Side.BUY,
            amount=first if sells else second,
            threshold_amount=second if sells else first,
            owner=accounts[10],
            input_account=accounts[4],
            output_account=accounts[5],
            arrays=tuple(accounts[arrays_at:]),
        )

    def new_pool(
        self, mint_a: Pubkey, mint_b: Pubkey, amount_a: int, amount_b: int, fee_ppm: int, *, index: int = 0
    ) -> tuple[Pubkey, dict[Pubkey, NewAccount]]:
        """Return a pool whose amounts lie evenly in the bins around their price."""
        preset = program_address(PROGRAM, b"preset_parameter2", index.to_bytes(2, "little"))
        pool = program_address(PROGRAM, bytes(preset), *sorted((bytes(mint_a), bytes(mint_b))))
        reserve_x, reserve_y = (
            program_address(PROGRAM, bytes(pool), bytes(mint)) for mint in (mint_a, mint_b)
        )
        oracle = program_address(PROGRAM, b"oracle", bytes(pool))
        active_id = _bin_below(amount_a, amount_b)
        arrays = _new_arrays(pool, active_id, amount_a, amount_b)
        pair = LbPair(
            base_factor=fee_ppm * 100 // _NEW_BIN_STEP,
            filter_period=30,
            decay_period=600,
            reduction_factor=5000,
            variable_fee_control=20_000,
            max_volatility_accumulator=250_000,
            min_bin_id=-_NEW_MAX_BIN_ID,
            max_bin_id=_NEW_MAX_BIN_ID,
            protocol_share=500,
            pair_type=3,
            active_id=active_id,
            bin_step=_NEW_BIN_STEP,
            token_x_mint=mint_a,
            token_y_mint=mint_b,
            reserve_x=reserve_x,
            reserve_y=reserve_y,
            oracle=oracle,
            bin_array_bitmap=sum(1 << at + _BITMAP_HALF for at in arrays).to_bytes(128, "little"),
        )
        return pool, {
            pool: NewAccount(PROGRAM, LB_PAIR.encode(pair)),
            oracle: NewAccount(PROGRAM, ORACLE.encode(Oracle(length=100)) + bytes(100 * 32)),
            **{bin_array_address(pool, at): NewAccount(PROGRAM, data) for at, data in arrays.items()},
            reserve_x: NewAccount(TOKEN_PROGRAM, TOKEN_ACCOUNT.encode(TokenAccount(mint_a, pool, amount_a))),
            reserve_y: NewAccount(TOKEN_PROGRAM, TOKEN_ACCOUNT.encode(TokenAccount(mint_b, pool, amount_b))),
        }

    def error_code(self, refusal: SwapRefusal) -> int:
        return _ERROR_CODES[refusal]


@lru_cache(maxsize=4096)
def _places(
    pool: Pubkey, start: int, bitmap: bytes, extension: bytes | None
) -> tuple[dict[int, Pubkey], dict[int, Pubkey]]:
    """Return the bin arrays that swaps y to x come through, and those of x to y: addresses by their index."""
    upwards, downwards = (
        {
            index: bin_array_address(pool, index)
            for index in bin_array_indexes(start, bitmap, extension, down=down, count=ARRAYS_AHEAD)
        }
        for down in (False, True)
    )
    return upwards, downwards


def _arrays(
    keys: MeteoraDlmmKeys, accounts: Mapping[Pubkey, bytes]
) -> tuple[dict[int, Pubkey], dict[int, Pubkey]]:
    """Return the same for a pool as it is now; none while it is unknown."""
    data = accounts.get(keys.pool)
    if data is None:
        return {}, {}
    active_id, bitmap = _read_arrays(data)
    return _places(keys.pool, active_id // BINS_IN_ARRAY, bitmap, accounts.get(keys.bitmap_extension))


def _bins(keys: MeteoraDlmmKeys, accounts: Mapping[Pubkey, bytes]) -> tuple[Bin, ...]:
    """Return the bins around the active one that hold something, by rising id.

    They end at an array that is not known, and with a bin that limit orders lie in: a swap fills these once
    it has taken all else from the bin, which the curve does not know. Raises WireError.
    """
    active_id, bin_step = _read_place(accounts[keys.pool])
    arrays: dict[int, _Array] = {}
    for places in _arrays(keys, accounts):
        for index, address in places.items():
            data = accounts.get(address)
            if data is None:
                break
            arrays[index] = _read_array(data, index, bin_step)
    held = [arrays[index] for index in sorted(arrays)]
    bins = tuple(chain.from_iterable(array.bins for array in held))
    last = min((bin_id for array in held for bin_id in array.asks if bin_id >= active_id), default=None)
    first = max((bin_id for array in held for bin_id in array.bids if bin_id <= active_id), default=None)
    if last is not None:
        bins = bins[: bisect_left(bins, (last + 1,))]
    if first is not None:
        bins = bins[bisect_left(bins, (first,)) :]
    return bins


class _Array(NamedTuple):
    """What a bin array says of its bins."""

    bins: tuple[Bin, ...]
    """That hold something, by rising id."""
    asks: tuple[int, ...]
    """Ids of bins with limit orders that sell x, and of those that sell y."""
    bids: tuple[int, ...]


@lru_cache(maxsize=512)
def _read_array(data: bytes, index: int, bin_step: int) -> _Array:
    """Return the array's bins. Cached, for a swap changes one array of a pool's many. Raises WireError."""
    if not BIN_ARRAY.matches(data):
        raise WireError(f"{len(data)} bytes that are not a BinArray ({BIN_ARRAY.size} bytes)")
    bins: list[Bin] = []
    asks: list[int] = []
    bids: list[int] = []
    read = _READ_BIN.iter_unpack(memoryview(data)[_BINS_AT : BIN_ARRAY.size])
    for bin_id, (amount_x, amount_y, price, open_orders, part_filled, is_ask) in enumerate(
        read, BINS_IN_ARRAY * index
    ):
        if amount_x or amount_y:
            exact_price = int.from_bytes(price, "little") or bin_price(bin_id, bin_step)
            bins.append(Bin(bin_id, amount_x, amount_y, exact_price))
        if open_orders or part_filled:
            (asks if is_ask else bids).append(bin_id)
    return _Array(tuple(bins), tuple(asks), tuple(bids))


def _arrays_after(
    keys: MeteoraDlmmKeys, accounts: Mapping[Pubkey, bytes], bins: Sequence[Bin], first: int, last: int
) -> dict[Pubkey, bytes]:
    """Return the bin arrays with the bins of these ids as they are now."""
    arrays: dict[int, bytearray] = {}
    for one in bins[bisect_left(bins, (first,)) : bisect_left(bins, (last + 1,))]:
        index, at = divmod(one.bin_id, BINS_IN_ARRAY)
        data = arrays.get(index)
        if data is None:
            data = arrays[index] = bytearray(accounts[bin_array_address(keys.pool, index)])
        _MOVED_BIN.pack_into(
            data, _BINS_AT + at * BIN.size, one.amount_x, one.amount_y, one.price.to_bytes(16, "little")
        )
    return {bin_array_address(keys.pool, index): bytes(data) for index, data in arrays.items()}


def _hook_account_count(data: bytes) -> int:
    """Return how many accounts the swap names for transfer hooks. Raises ValueError for a malformed list."""
    at = _SWAP_ARGUMENTS.size + 4
    count = 0
    for _ in range(int.from_bytes(data[at - 4 : at], "little")):
        if at + 2 > len(data):
            raise ValueError("not a swap: too little data")
        count += data[at + 1]
        # One kind says in another byte which reward it is about.
        at += 3 if data[at] == _MULTI_REWARD else 2
    return count


def _bin_below(amount_x: int, amount_y: int) -> int:
    """Return the bin whose price is the next below amount_y / amount_x, for pools of the new bin step."""
    bin_id = floor(log(amount_y / amount_x) / log(1 + _NEW_BIN_STEP / 10_000))
    # The logarithm may be off by a rounding; this is the same everywhere.
    while bin_price(bin_id, _NEW_BIN_STEP) * amount_x > amount_y << 64:
        bin_id -= 1
    while bin_price(bin_id + 1, _NEW_BIN_STEP) * amount_x <= amount_y << 64:
        bin_id += 1
    return bin_id


def _new_arrays(pool: Pubkey, active_id: int, amount_x: int, amount_y: int) -> dict[int, bytes]:
    """Return the bin arrays of a pool with x spread evenly from the active bin upwards and y downwards."""
    arrays: dict[int, list[BinState]] = {}
    for bin_id in range(active_id - _NEW_BINS_ASIDE, active_id + _NEW_BINS_ASIDE + 1):
        price = bin_price(bin_id, _NEW_BIN_STEP)
        x, y = (
            amount // (_NEW_BINS_ASIDE + 1)
            # The active bin also has what does not divide.
            + (amount % (_NEW_BINS_ASIDE + 1) if bin_id == active_id else 0)
            if holds
            else 0
            for amount, holds in ((amount_x, bin_id >= active_id), (amount_y, bin_id <= active_id))
        )
        index, at = divmod(bin_id, BINS_IN_ARRAY)
        bins = arrays.setdefault(index, [BinState()] * BINS_IN_ARRAY)
        bins[at] = BinState(x, y, price, liquidity_supply=price * x + (y << 64))
    return {
        index: BIN_ARRAY.encode(BinArray(index, 1, bytes(7), pool, b"".join(map(BIN.encode, bins))))
        for index, bins in arrays.items()
    }


_NEW_BIN_STEP: Final = 20
_NEW_BINS_ASIDE: Final = 69
"""On each side of the active bin: to 13 % below and 15 % above it."""
_NEW_MAX_BIN_ID: Final = 21_835
"""What the program allows at that bin step: prices that 128 bits hold."""
_MULTI_REWARD: Final = 3

_ERROR_CODES: Final[Mapping[SwapRefusal, int]] = {
    SwapRefusal.ZERO_AMOUNT: 6002,  # InvalidInput
    SwapRefusal.ZERO_OUTPUT: 6039,  # InsufficientOutAmount
    SwapRefusal.UNDEFINED: 6085,  # UndeterminedError
    SwapRefusal.OVERFLOW: 6018,  # MathOverflow
    SwapRefusal.INSUFFICIENT_LIQUIDITY: 6036,  # BitmapExtensionAccountIsNotProvided
    SwapRefusal.PRICE_RANGE: 6036,
    SwapRefusal.DISABLED: 6042,  # PoolDisabled
    SwapRefusal.NOT_OPEN: 6042,
}

VENUE: Final = MeteoraDlmm()
