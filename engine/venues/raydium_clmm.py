"""Raydium CLMM: its accounts, its swap instructions and its errors.

Source: raydium-io/raydium-clmm at 03b44b7, states/{config,pool,pool_fee,tick_array,oracle}.rs and
states/tickarray_bitmap_extension.rs, instructions/{swap,swap_v2}.rs, error.rs. The curve is in
engine/domain/pools/raydium_clmm.py.

A swap needs the tick arrays that lie in its way, 60 ticks each, and names them in that order. Which there are
is told by a bitmap: 1,024 bits about price 1 in the pool itself, the rest in an extension.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from operator import itemgetter
from typing import Annotated, ClassVar, Final, NamedTuple

from solders.instruction import AccountMeta
from solders.pubkey import Pubkey

from engine.domain.order import FailureReason, Side
from engine.domain.pools.pool import Swap, SwapRefusal
from engine.domain.pools.raydium_clmm import (
    DynamicFee,
    FeeOn,
    RaydiumClmmPool,
    Tick,
    sqrt_price_at_tick,
    tick_at_sqrt_price,
)
from engine.solana.accounts import TOKEN_ACCOUNT, TokenAccount
from engine.solana.instructions import Instruction, Names
from engine.solana.programs import MEMO_PROGRAM, TOKEN_2022_PROGRAM, TOKEN_PROGRAM, program_address
from engine.solana.wire import (
    Layout,
    account_discriminator,
    boolean,
    i32,
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

PROGRAM: Final = Pubkey.from_string("CAMMCzo5YL8w4VFF8KVHrK22GGUsp5VTaW7grrKgrWqK")

TICKS_PER_ARRAY: Final = 60
ARRAYS_PER_SWAP: Final = 3
"""How many tick arrays a quote looks ahead, and a swap names; a transaction has room for few addresses."""

MAX_TICKS: Final = 16
"""How many ticks a quote looks ahead, each way, so that the transaction's compute units are enough.

Logs of swaps on mainnet tell of 52,000 to 152,000; 60,000 and 15,000 for each tick is an estimate.
"""

_NO_KEY: Final = Pubkey.default()


@dataclass(frozen=True, slots=True)
class AmmConfig:
    """The fees of a tier; many pools share one."""

    bump: u8
    index: u16
    owner: pubkey
    protocol_fee_rate: u32
    """Per million of the fee."""
    trade_fee_rate: u32
    """Per million of what it is taken from."""
    tick_spacing: u16
    fund_fee_rate: u32
    """Per million of the fee."""
    padding_u32: u32 = 0
    fund_owner: pubkey = _NO_KEY
    padding: Annotated[bytes, raw(24)] = bytes(24)


@dataclass(frozen=True, slots=True)
class PoolState:
    bump: u8 = 0
    amm_config: pubkey = _NO_KEY
    owner: pubkey = _NO_KEY
    token_mint_0: pubkey = _NO_KEY
    """Below token_mint_1, as bytes."""
    token_mint_1: pubkey = _NO_KEY
    token_vault_0: pubkey = _NO_KEY
    token_vault_1: pubkey = _NO_KEY
    observation_key: pubkey = _NO_KEY
    mint_decimals_0: u8 = 0
    mint_decimals_1: u8 = 0
    tick_spacing: u16 = 0
    liquidity: u128 = 0
    """Active at the current price."""
    sqrt_price_x64: u128 = 0
    tick_current: i32 = 0
    padding_3: u32 = 0
    fee_growth_global_0_x64: u128 = 0
    fee_growth_global_1_x64: u128 = 0
    protocol_fees_token_0: u64 = 0
    protocol_fees_token_1: u64 = 0
    padding_5: Annotated[bytes, raw(64)] = bytes(64)
    status: u8 = 0
    """Bits; 16 switches swaps off."""
    fee_on: u8 = 0
    padding: Annotated[bytes, raw(6)] = bytes(6)
    reward_infos: Annotated[bytes, raw(507)] = bytes(507)
    tick_array_bitmap: Annotated[bytes, raw(128)] = bytes(128)
    padding_6: Annotated[bytes, raw(32)] = bytes(32)
    fund_fees_token_0: u64 = 0
    fund_fees_token_1: u64 = 0
    open_time: u64 = 0
    """Unix seconds; swaps are allowed after it."""
    recent_epoch: u64 = 0
    dynamic_fee_info: Annotated[bytes, raw(80)] = bytes(80)
    """A DynamicFeeInfo; all zero where the pool has no dynamic fee."""
    padding_7: Annotated[bytes, raw(368)] = bytes(368)


@dataclass(frozen=True, slots=True)
class DynamicFeeInfo:
    """Inside of a pool; fields as engine.domain.pools.raydium_clmm.DynamicFee has them."""

    filter_period: u16
    decay_period: u16
    reduction_factor: u16
    dynamic_fee_control: u32
    max_volatility_accumulator: u32
    tick_spacing_index_reference: i32
    volatility_reference: u32
    volatility_accumulator: u32
    last_update_timestamp: u64
    padding: Annotated[bytes, raw(46)] = bytes(46)


@dataclass(frozen=True, slots=True)
class TickArrayState:
    pool_id: pubkey
    start_tick_index: i32
    ticks: Annotated[bytes, raw(10_080)]
    """60 of 168 bytes; see read_ticks."""
    initialized_tick_count: u8
    recent_epoch: u64 = 0
    padding: Annotated[bytes, raw(107)] = bytes(107)


@dataclass(frozen=True, slots=True)
class TickArrayBitmapExtension:
    pool_id: pubkey
    positive_tick_array_bitmap: Annotated[bytes, raw(896)] = bytes(896)
    """14 groups of 512 bits, each farther from price 1."""
    negative_tick_array_bitmap: Annotated[bytes, raw(896)] = bytes(896)


@dataclass(frozen=True, slots=True)
class ObservationState:
    """Price history; a swap must name it."""

    initialized: boolean
    recent_epoch: u64
    observation_index: u16
    pool_id: pubkey
    observations: Annotated[bytes, raw(4400)] = bytes(4400)
    padding: Annotated[bytes, raw(32)] = bytes(32)


AMM_CONFIG: Final = Layout(AmmConfig, discriminator=account_discriminator("AmmConfig"))
POOL_STATE: Final = Layout(PoolState, discriminator=account_discriminator("PoolState"))
DYNAMIC_FEE_INFO: Final = Layout(DynamicFeeInfo)
TICK_ARRAY: Final = Layout(TickArrayState, discriminator=account_discriminator("TickArrayState"))
BITMAP_EXTENSION: Final = Layout(
    TickArrayBitmapExtension, discriminator=account_discriminator("TickArrayBitmapExtension")
)
OBSERVATION_STATE: Final = Layout(ObservationState, discriminator=account_discriminator("ObservationState"))

SWAP: Final = instruction_discriminator("swap")
SWAP_V2: Final = instruction_discriminator("swap_v2")

_SWAP_ARGUMENTS: Final = struct.Struct("<8sQQ16s?")
_NO_LIMIT: Final = bytes(16)
_EXACT_OUT: Final = b"\x00"
"""What a swap's data ends with: is_base_input."""
_TOKEN_INSUFFICIENT_FUNDS: Final = 1

_TICK: Final = struct.Struct("<i16s16s88xQQ28x")
"""Of a TickState: tick, liquidity_net, liquidity_gross, orders_amount, part_filled_orders_remaining."""
_NO_LIQUIDITY: Final = bytes(16)
_NO_DYNAMIC_FEE: Final = bytes(80)
_BITS_BELOW_ZERO: Final = 15 * 512
"""The bit of the array that starts at tick 0, in the bits of all arrays together."""

_read_config = AMM_CONFIG.reader("protocol_fee_rate", "trade_fee_rate", "tick_spacing", "fund_fee_rate")
_read_position = POOL_STATE.reader("tick_current", "tick_array_bitmap")
_read_pool = POOL_STATE.reader(
    "liquidity",
    "sqrt_price_x64",
    "tick_current",
    "fee_growth_global_0_x64",
    "fee_growth_global_1_x64",
    "protocol_fees_token_0",
    "protocol_fees_token_1",
    "status",
    "fee_on",
    "fund_fees_token_0",
    "fund_fees_token_1",
    "open_time",
    "dynamic_fee_info",
)
_read_dynamic_fee = DYNAMIC_FEE_INFO.reader(
    "filter_period",
    "decay_period",
    "reduction_factor",
    "dynamic_fee_control",
    "max_volatility_accumulator",
    "tick_spacing_index_reference",
    "volatility_reference",
    "volatility_accumulator",
    "last_update_timestamp",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RaydiumClmmKeys(PoolKeys):
    amm_config: Pubkey
    observation: Pubkey
    bitmap_extension: Pubkey
    """May not exist: old pools have none."""
    tick_spacing: int


class _Arrays(NamedTuple):
    """The tick arrays next to a price that have something in them, nearest first."""

    down: tuple[Pubkey, ...]
    """What a swap of token 0 for token 1 comes through; the array of the price itself is in both."""
    up: tuple[Pubkey, ...]


class Ticks(NamedTuple):
    """What is initialised in one tick array, ascending."""

    ticks: tuple[Tick, ...]
    with_orders: tuple[int, ...]
    """Those of the ticks at which limit orders wait."""


def tick_array_start(tick: int, tick_spacing: int) -> int:
    """Return the first tick of the array that a tick is in."""
    span = TICKS_PER_ARRAY * tick_spacing
    return tick // span * span


def tick_array_address(pool: Pubkey, start_tick_index: int) -> Pubkey:
    """Return where a pool keeps the 60 ticks from that one on."""
    start = start_tick_index.to_bytes(4, "big", signed=True)
    return program_address(PROGRAM, b"tick_array", bytes(pool), start)


def array_bits(tick_array_bitmap: bytes, extension: bytes | None) -> int:
    """Return all bits of a pool's bitmaps as one number; the least is that of the lowest array there can be.

    `extension` is the account's data; None where there is none.
    """
    if extension is None:
        return int.from_bytes(tick_array_bitmap, "little") << _BITS_BELOW_ZERO - 512
    account = BITMAP_EXTENSION.decode(extension)
    below = account.negative_tick_array_bitmap
    # Of the negative groups the first is the highest.
    groups = b"".join(below[at : at + 64] for at in range(len(below) - 64, -1, -64))
    return int.from_bytes(groups + tick_array_bitmap + account.positive_tick_array_bitmap, "little")


# Asked for again with every swap that moves the price, which stays among the same arrays for long.
@lru_cache(maxsize=4096)
def _arrays(
    pool: Pubkey, tick_spacing: int, array: int, tick_array_bitmap: bytes, extension: bytes | None
) -> _Arrays:
    """Return the arrays next to that of number `array`, which counts from the one that starts at tick 0."""
    bits = array_bits(tick_array_bitmap, extension)
    span = TICKS_PER_ARRAY * tick_spacing
    return _Arrays(
        *(
            tuple(
                tick_array_address(pool, (bit - _BITS_BELOW_ZERO) * span)
                for bit in nearest_set_bits(bits, array + _BITS_BELOW_ZERO, down=down, count=ARRAYS_PER_SWAP)
            )
            for down in (True, False)
        )
    )


# Reading one takes 20 us, and most swaps change none.
@lru_cache(maxsize=1024)
def read_ticks(tick_array: bytes) -> Ticks:
    """Return what is in a tick array account. Raises WireError."""
    ticks, with_orders = [], []
    for tick, net, gross, orders, part_filled in _TICK.iter_unpack(TICK_ARRAY.decode(tick_array).ticks):
        if gross != _NO_LIQUIDITY or orders or part_filled:
            ticks.append(Tick(tick, int.from_bytes(net, "little", signed=True)))
        if orders or part_filled:
            with_orders.append(tick)
    return Ticks(tuple(ticks), tuple(with_orders))


@lru_cache(maxsize=1024)
def _swap_names(
    keys: RaydiumClmmKeys,
    a_to_b: bool,
    owner: Pubkey,
    input_account: Pubkey,
    output_account: Pubkey,
    arrays: tuple[Pubkey, ...],
) -> Names:
    token_a, token_b = (keys.vault_a, keys.mint_a), (keys.vault_b, keys.mint_b)
    (input_vault, input_mint), (output_vault, output_mint) = (
        (token_a, token_b) if a_to_b else (token_b, token_a)
    )
    return Names(
        PROGRAM,
        (
            AccountMeta(owner, True, False),
            AccountMeta(keys.amm_config, False, False),
            AccountMeta(keys.pool, False, True),
            AccountMeta(input_account, False, True),
            AccountMeta(output_account, False, True),
            AccountMeta(input_vault, False, True),
            AccountMeta(output_vault, False, True),
            AccountMeta(keys.observation, False, True),
            AccountMeta(TOKEN_PROGRAM, False, False),
            AccountMeta(TOKEN_2022_PROGRAM, False, False),
            AccountMeta(MEMO_PROGRAM, False, False),
            AccountMeta(input_mint, False, False),
            AccountMeta(output_mint, False, False),
            *(AccountMeta(address, False, True) for address in arrays),
        ),
    )


class RaydiumClmm(Venue[RaydiumClmmKeys]):
    name: ClassVar[str] = "Raydium"
    kind: ClassVar[str] = "raydium_clmm"
    program: ClassVar[Pubkey] = PROGRAM
    pool_filter: ClassVar[AccountFilter] = AccountFilter(POOL_STATE.size, POOL_STATE.discriminator)
    mints_slice: ClassVar[tuple[int, int]] = (POOL_STATE.offset("token_mint_0"), 64)
    compute_units: ClassVar[int] = 300_000
    # TooLittleOutputReceived, TooMuchInputPaid.
    slippage_errors: ClassVar[Mapping[Side, int]] = {Side.SELL: 6018, Side.BUY: 6019}
    # Out of the arrays that the swap named: NotEnoughTickArrayAccount, InvalidFirstTickArrayAccount. And
    # TooSmallInputOrOutputAmount, as nothing is sent that gave too little when it was quoted. Releases of the
    # program before limit orders gave 6022 and 6023 to what are now 6018 and 6019.
    price_moved_errors: ClassVar[frozenset[int]] = frozenset({6022, 6023, 6024})

    def keys(self, pool: Pubkey, data: bytes) -> RaydiumClmmKeys | None:
        state = POOL_STATE.decode(data)
        return RaydiumClmmKeys(
            pool=pool,
            mint_a=state.token_mint_0,
            mint_b=state.token_mint_1,
            vault_a=state.token_vault_0,
            vault_b=state.token_vault_1,
            amm_config=state.amm_config,
            observation=state.observation_key,
            bitmap_extension=program_address(PROGRAM, b"pool_tick_array_bitmap_extension", bytes(pool)),
            tick_spacing=state.tick_spacing,
        )

    def quote_accounts(self, keys: RaydiumClmmKeys, accounts: Mapping[Pubkey, bytes]) -> tuple[Pubkey, ...]:
        always = (keys.pool, keys.amm_config, keys.bitmap_extension)
        if keys.pool not in accounts:
            return always
        arrays = self._arrays(keys, accounts)
        return tuple(dict.fromkeys((*always, *arrays.down, *arrays.up)))

    def pool(self, keys: RaydiumClmmKeys, accounts: Mapping[Pubkey, bytes]) -> RaydiumClmmPool:
        protocol_fee_rate, trade_fee_rate, tick_spacing, fund_fee_rate = _read_config(
            accounts[keys.amm_config]
        )
        (
            liquidity,
            sqrt_price,
            tick_current,
            fee_growth_global_0,
            fee_growth_global_1,
            protocol_fees_0,
            protocol_fees_1,
            status,
            fee_on,
            fund_fees_0,
            fund_fees_1,
            open_time,
            dynamic_fee_info,
        ) = _read_pool(accounts[keys.pool])
        return RaydiumClmmPool(
            sqrt_price=sqrt_price,
            tick_current=tick_current,
            liquidity=liquidity,
            tick_spacing=tick_spacing,
            trade_fee_rate=trade_fee_rate,
            ticks=self._ticks(keys, accounts, tick_current),
            fee_on=FeeOn(fee_on),
            dynamic_fee=None
            if dynamic_fee_info == _NO_DYNAMIC_FEE
            else DynamicFee(*_read_dynamic_fee(dynamic_fee_info)),
            protocol_fee_rate=protocol_fee_rate,
            fund_fee_rate=fund_fee_rate,
            status=status,
            open_time=open_time,
            fee_growth_global_0=fee_growth_global_0,
            fee_growth_global_1=fee_growth_global_1,
            protocol_fees_0=protocol_fees_0,
            protocol_fees_1=protocol_fees_1,
            fund_fees_0=fund_fees_0,
            fund_fees_1=fund_fees_1,
        )

    def written(
        self, keys: RaydiumClmmKeys, accounts: Mapping[Pubkey, bytes], a_to_b: bool, swap: Swap
    ) -> dict[Pubkey, bytes]:
        # The price history and the fees outside of crossed ticks stay as they were: no quote reads them.
        before = accounts[keys.pool]
        after = swap.pool
        assert isinstance(after, RaydiumClmmPool)
        changes: dict[str, int | bytes] = {
            "liquidity": after.liquidity,
            "sqrt_price_x64": after.sqrt_price,
            "tick_current": after.tick_current,
            "fee_growth_global_0_x64": after.fee_growth_global_0,
            "fee_growth_global_1_x64": after.fee_growth_global_1,
            "protocol_fees_token_0": after.protocol_fees_0,
            "protocol_fees_token_1": after.protocol_fees_1,
            "fund_fees_token_0": after.fund_fees_0,
            "fund_fees_token_1": after.fund_fees_1,
        }
        dynamic_fee = after.dynamic_fee
        if dynamic_fee is not None:
            (info,) = _read_dynamic_fee_info(before)
            changes["dynamic_fee_info"] = DYNAMIC_FEE_INFO.patch(
                info,
                tick_spacing_index_reference=dynamic_fee.tick_spacing_index_reference,
                volatility_reference=dynamic_fee.volatility_reference,
                volatility_accumulator=dynamic_fee.volatility_accumulator,
                last_update_timestamp=dynamic_fee.last_update_timestamp,
            )
        return {keys.pool: POOL_STATE.patch(before, **changes), **vaults_after(keys, accounts, a_to_b, swap)}

    def swap_instruction(
        self,
        keys: RaydiumClmmKeys,
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
        arrays: tuple[Pubkey, ...] = ()
        if keys.pool in accounts:
            around = self._arrays(keys, accounts)
            arrays = around.down if a_to_b else around.up
            if keys.bitmap_extension in accounts:
                arrays = (keys.bitmap_extension, *arrays)
        return Instruction(
            _swap_names(keys, a_to_b, owner, input_account, output_account, arrays),
            _SWAP_ARGUMENTS.pack(SWAP_V2, amount, threshold_amount, _NO_LIMIT, side is Side.SELL),
        )

    def read_swap(
        self, accounts: Sequence[Pubkey], data: bytes, mint_of: Mapping[Pubkey, Pubkey]
    ) -> SwapCall:
        if len(data) < _SWAP_ARGUMENTS.size:
            raise ValueError("not a swap: too little data")
        discriminator, amount, threshold_amount, limit, sells = _SWAP_ARGUMENTS.unpack_from(data)
        if discriminator not in (SWAP, SWAP_V2):
            raise ValueError(f"not a swap: instruction {discriminator.hex()}")
        # The older form, for SPL tokens only, names neither mints nor their programs.
        fixed = 13 if discriminator == SWAP_V2 else 9
        if len(accounts) < fixed:
            raise ValueError("not a swap: too few accounts")
        if limit != _NO_LIMIT:
            raise ValueError("not a swap of one amount: it may end early, at a price limit")
        input_mint, output_mint = (
            accounts[11:13] if discriminator == SWAP_V2 else map(mint_of.__getitem__, accounts[3:5])
        )
        return SwapCall(
            pool=accounts[2],
            # Token 0 is the lower of the two mints, as bytes.
            a_to_b=bytes(input_mint) < bytes(output_mint),
            side=Side.SELL if sells else Side.BUY,
            amount=amount,
            threshold_amount=threshold_amount,
            owner=accounts[0],
            input_account=accounts[3],
            output_account=accounts[4],
            arrays=tuple(accounts[fixed:]),
        )

    def new_pool(
        self, mint_a: Pubkey, mint_b: Pubkey, amount_a: int, amount_b: int, fee_ppm: int, *, index: int = 0
    ) -> tuple[Pubkey, dict[Pubkey, NewAccount]]:
        (mint_0, amount_0), (mint_1, amount_1) = sorted(
            [(mint_a, amount_a), (mint_b, amount_b)], key=lambda side: bytes(side[0])
        )
        config = program_address(PROGRAM, b"amm_config", index.to_bytes(2, "big"))
        pool = program_address(PROGRAM, b"pool", bytes(config), bytes(mint_0), bytes(mint_1))
        vault_0, vault_1 = (
            program_address(PROGRAM, b"pool_vault", bytes(pool), bytes(mint)) for mint in (mint_0, mint_1)
        )
        observation = program_address(PROGRAM, b"observation", bytes(pool))
        extension = program_address(PROGRAM, b"pool_tick_array_bitmap_extension", bytes(pool))
        sqrt_price = isqrt((amount_1 << 128) // amount_0)
        ends = _position_ends(sqrt_price, amount_0, amount_1)
        tick = tick_at_sqrt_price(sqrt_price)
        arrays = _new_tick_arrays(pool, ends)
        span = TICKS_PER_ARRAY * _NEW_POOL_SPACING
        bitmap = sum(1 << start // span + 512 for start in arrays)
        amm_config = AmmConfig(
            bump=255,
            index=index,
            owner=_NO_KEY,
            # 12 % and 4 % of the trade fee: raydium-io/raydium-docs-v1, ray/protocol-fees.mdx.
            protocol_fee_rate=120_000,
            trade_fee_rate=fee_ppm,
            tick_spacing=_NEW_POOL_SPACING,
            fund_fee_rate=40_000,
        )
        state = PoolState(
            bump=255,
            amm_config=config,
            token_mint_0=mint_0,
            token_mint_1=mint_1,
            token_vault_0=vault_0,
            token_vault_1=vault_1,
            observation_key=observation,
            tick_spacing=_NEW_POOL_SPACING,
            liquidity=sum(net for end, (net, _) in ends.items() if end <= tick),
            sqrt_price_x64=sqrt_price,
            tick_current=tick,
            fee_on=FeeOn.INPUT,
            tick_array_bitmap=bitmap.to_bytes(128, "little"),
        )
        return pool, {
            pool: NewAccount(PROGRAM, POOL_STATE.encode(state)),
            config: NewAccount(PROGRAM, AMM_CONFIG.encode(amm_config)),
            vault_0: NewAccount(TOKEN_PROGRAM, TOKEN_ACCOUNT.encode(TokenAccount(mint_0, pool, amount_0))),
            vault_1: NewAccount(TOKEN_PROGRAM, TOKEN_ACCOUNT.encode(TokenAccount(mint_1, pool, amount_1))),
            observation: NewAccount(PROGRAM, OBSERVATION_STATE.encode(ObservationState(True, 0, 0, pool))),
            extension: NewAccount(PROGRAM, BITMAP_EXTENSION.encode(TickArrayBitmapExtension(pool))),
            **{tick_array_address(pool, start): NewAccount(PROGRAM, data) for start, data in arrays.items()},
        }

    def error_code(self, refusal: SwapRefusal) -> int:
        return _ERROR_CODES[refusal]

    def failure_reason(self, error: int, data: bytes = b"") -> tuple[FailureReason, str]:
        if error == _TOKEN_INSUFFICIENT_FUNDS and data[-1:] == _EXACT_OUT:
            # The program takes what a swap costs before it looks at whether that is too much, and of SOL no
            # more than may be spent is wrapped: a price that has moved shows like this.
            error = self.slippage_errors[Side.BUY]
        return super().failure_reason(error, data)

    def _arrays(self, keys: RaydiumClmmKeys, accounts: Mapping[Pubkey, bytes]) -> _Arrays:
        tick_current, tick_array_bitmap = _read_position(accounts[keys.pool])
        array = tick_current // (TICKS_PER_ARRAY * keys.tick_spacing)
        extension = accounts.get(keys.bitmap_extension)
        return _arrays(keys.pool, keys.tick_spacing, array, tick_array_bitmap, extension)

    def _ticks(
        self, keys: RaydiumClmmKeys, accounts: Mapping[Pubkey, bytes], tick_current: int
    ) -> tuple[Tick, ...]:
        """Return the ticks about the price, ascending: MAX_TICKS each way, as far as there are arrays.

        And no farther than to limit orders, which the curve does not know; before a swap comes to them they
        change nothing.
        """
        around = self._arrays(keys, accounts)
        down, up = (self._reached(addresses, accounts) for addresses in around)
        # The array of the price is in both ways.
        same = around.down[:1] == around.up[:1]
        arrays = [*reversed(down), *(up[1:] if same else up)]
        ticks = tuple(tick for array in arrays for tick in array.ticks)
        beyond = bisect_right(ticks, tick_current, key=itemgetter(0))
        ticks = ticks[max(0, beyond - MAX_TICKS) : beyond + MAX_TICKS]
        with_orders = [tick for array in arrays for tick in array.with_orders]
        if not with_orders:
            return ticks
        first = max((tick for tick in with_orders if tick <= tick_current), default=-(2**31))
        last = min((tick for tick in with_orders if tick > tick_current), default=2**31)
        return tuple(tick for tick in ticks if first < tick.tick < last)

    def _reached(self, addresses: tuple[Pubkey, ...], accounts: Mapping[Pubkey, bytes]) -> list[Ticks]:
        reached = []
        for address in addresses:
            data = accounts.get(address)
            if data is None:
                break
            reached.append(read_ticks(data))
        return reached


_read_dynamic_fee_info: Final = POOL_STATE.reader("dynamic_fee_info")

_NEW_POOL_SPACING: Final = 60
_NEW_POSITIONS: Final = ((2, 5), (6, 10), (20, 25), (60, 60))
"""How many spacings a position reaches each way from the price, and its part of the funds in percent."""


def _position_ends(sqrt_price: int, amount_0: int, amount_1: int) -> dict[int, tuple[int, int]]:
    """Return where a new pool's positions begin and end: by tick, its liquidity net and gross.

    Together they hold at most these amounts. The widest reaches one tick array each way, so that there are
    three at most.
    """
    centre = round(tick_at_sqrt_price(sqrt_price) / _NEW_POOL_SPACING) * _NEW_POOL_SPACING
    ends: dict[int, tuple[int, int]] = {}
    for spacings, percent in _NEW_POSITIONS:
        reach = spacings * _NEW_POOL_SPACING
        low, high = sqrt_price_at_tick(centre - reach), sqrt_price_at_tick(centre + reach)
        liquidity = min(
            amount_0 * percent * sqrt_price * high // (100 * (high - sqrt_price) << 64),
            (amount_1 * percent << 64) // (100 * (sqrt_price - low)),
        )
        for end, change in ((centre - reach, liquidity), (centre + reach, -liquidity)):
            net, gross = ends.get(end, (0, 0))
            ends[end] = (net + change, gross + liquidity)
    return ends


def _new_tick_arrays(pool: Pubkey, ends: Mapping[int, tuple[int, int]]) -> dict[int, bytes]:
    """Return the arrays that have these ticks, by where they start."""
    ticks_of: dict[int, dict[int, tuple[int, int]]] = {}
    for tick, liquidity in ends.items():
        ticks_of.setdefault(tick_array_start(tick, _NEW_POOL_SPACING), {})[tick] = liquidity
    arrays = {}
    for start, ticks in ticks_of.items():
        data = bytearray(TICKS_PER_ARRAY * _TICK.size)
        for tick, (net, gross) in ticks.items():
            at = (tick - start) // _NEW_POOL_SPACING * _TICK.size
            wide = net.to_bytes(16, "little", signed=True), gross.to_bytes(16, "little")
            _TICK.pack_into(data, at, tick, *wide, 0, 0)
        arrays[start] = TICK_ARRAY.encode(TickArrayState(pool, start, bytes(data), len(ticks)))
    return arrays


_ERROR_CODES: Final[Mapping[SwapRefusal, int]] = {
    SwapRefusal.ZERO_AMOUNT: 6020,  # ZeroAmountSpecified
    SwapRefusal.ZERO_OUTPUT: 6022,  # TooSmallInputOrOutputAmount
    SwapRefusal.INSUFFICIENT_LIQUIDITY: 6016,  # LiquidityInsufficient
    SwapRefusal.PRICE_RANGE: 6016,
    SwapRefusal.OVERFLOW: 6038,  # CalculateOverflow
    SwapRefusal.UNDEFINED: 6038,
    SwapRefusal.DISABLED: 6000,  # NotApproved
    SwapRefusal.NOT_OPEN: 2505,  # require_gt
}

VENUE: Final = RaydiumClmm()
