"""Meteora DAMM v2, pools in a price range and compounding ones: accounts, swap instructions and errors.

Source: layouts and account lists as @meteora-ag/cp-amm-sdk 1.5.0 and the compiled program have them.
The curve is in engine/domain/pools/meteora_damm_v2.py.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isqrt
from typing import Annotated, ClassVar, Final

from solders.instruction import AccountMeta
from solders.pubkey import Pubkey

from engine.domain.order import Side
from engine.domain.pools.meteora_damm_v2 import (
    ActivationType,
    BaseFee,
    BaseFeeMode,
    CollectFeeMode,
    DynamicFee,
    MeteoraDammV2Pool,
    RateLimiter,
)
from engine.domain.pools.pool import Clock, Pool, Swap, SwapRefusal
from engine.solana.accounts import TOKEN_ACCOUNT, TokenAccount
from engine.solana.instructions import Instruction, Names
from engine.solana.programs import INSTRUCTIONS_SYSVAR, TOKEN_PROGRAM, program_address
from engine.solana.wire import (
    Layout,
    account_discriminator,
    instruction_discriminator,
    pubkey,
    raw,
    u8,
    u16,
    u32,
    u64,
    u128,
)
from engine.venues.venue import AccountFilter, NewAccount, PoolKeys, SwapCall, Venue, vaults_after

PROGRAM: Final = Pubkey.from_string("cpamdpZCGKUy5JxQXB4dcpGPiikHawvSWAd6mEn1sGG")
POOL_AUTHORITY: Final = program_address(PROGRAM, b"pool_authority")
"""Owns every pool's vaults."""
EVENT_AUTHORITY: Final = program_address(PROGRAM, b"__event_authority")

_RATE_LIMITER: Final = 2
"""The base_fee_mode of pools whose fee grows with the amount. 0 and 1 are those of BaseFee."""
_COLLECT_FEE_MODES: Final = frozenset(CollectFeeMode)
_BASE_FEE_MODES: Final = (BaseFeeMode.LINEAR, BaseFeeMode.EXPONENTIAL, _RATE_LIMITER)
_U32_MAX: Final = 2**32 - 1

_NO_KEY: Final = Pubkey.default()


@dataclass(frozen=True, slots=True)
class PoolAccount:
    """The program's `Pool`.

    The base fee's fields have the names they have in time schedulers (modes 0 and 1); a rate limiter (mode 2)
    keeps other things in them.
    """

    cliff_fee_numerator: u64 = 0
    """Per 10**9."""
    base_fee_mode: u8 = 0
    padding_base_fee_0: Annotated[bytes, raw(5)] = bytes(5)
    number_of_period: u16 = 0
    """Of a rate limiter: fee_increment_bps."""
    period_frequency: u64 = 0
    """Of a rate limiter: max_limiter_duration, and in the upper 32 bits max_fee_bps."""
    reduction_factor: u64 = 0
    """Of a rate limiter: reference_amount."""
    padding_base_fee_1: u64 = 0
    protocol_fee_percent: u8 = 0
    padding_a: u8 = 0
    referral_fee_percent: u8 = 0
    padding_b: Annotated[bytes, raw(3)] = bytes(3)
    compounding_fee_bps: u16 = 0
    dynamic_fee_initialized: u8 = 0
    """0: no dynamic fee, whatever its other fields hold."""
    padding_c: Annotated[bytes, raw(7)] = bytes(7)
    dynamic_fee_max_volatility_accumulator: u32 = 0
    dynamic_fee_variable_fee_control: u32 = 0
    dynamic_fee_bin_step: u16 = 0
    dynamic_fee_filter_period: u16 = 0
    dynamic_fee_decay_period: u16 = 0
    dynamic_fee_reduction_factor: u16 = 0
    dynamic_fee_last_update_timestamp: u64 = 0
    dynamic_fee_bin_step_u128: u128 = 0
    dynamic_fee_sqrt_price_reference: u128 = 0
    dynamic_fee_volatility_accumulator: u128 = 0
    dynamic_fee_volatility_reference: u128 = 0
    init_sqrt_price: u128 = 0
    token_a_mint: pubkey = _NO_KEY
    token_b_mint: pubkey = _NO_KEY
    token_a_vault: pubkey = _NO_KEY
    token_b_vault: pubkey = _NO_KEY
    whitelisted_vault: pubkey = _NO_KEY
    padding_0: Annotated[bytes, raw(32)] = bytes(32)
    liquidity: u128 = 0
    padding_1: u128 = 0
    protocol_a_fee: u64 = 0
    protocol_b_fee: u64 = 0
    padding_2: Annotated[bytes, raw(16)] = bytes(16)
    sqrt_min_price: u128 = 0
    sqrt_max_price: u128 = 0
    sqrt_price: u128 = 0
    activation_point: u64 = 0
    activation_type: u8 = 0
    """0: activation_point is a slot; 1: unix seconds."""
    pool_status: u8 = 0
    """0: enabled; 1: disabled."""
    token_a_flag: u8 = 0
    """0: SPL Token; 1: Token-2022."""
    token_b_flag: u8 = 0
    collect_fee_mode: u8 = 0
    pool_type: u8 = 0
    fee_version: u8 = 0
    padding_3: u8 = 0
    fee_a_per_liquidity: Annotated[bytes, raw(32)] = bytes(32)
    """256 bits, little-endian, Q128; so is the next."""
    fee_b_per_liquidity: Annotated[bytes, raw(32)] = bytes(32)
    permanent_lock_liquidity: u128 = 0
    metrics_total_lp_a_fee: u128 = 0
    metrics_total_lp_b_fee: u128 = 0
    metrics_total_protocol_a_fee: u64 = 0
    metrics_total_protocol_b_fee: u64 = 0
    padding_metrics_0: Annotated[bytes, raw(16)] = bytes(16)
    metrics_total_position: u64 = 0
    padding_metrics_1: Annotated[bytes, raw(8)] = bytes(8)
    creator: pubkey = _NO_KEY
    token_a_amount: u64 = 0
    """What a compounding pool trades with."""
    token_b_amount: u64 = 0
    layout_version: u8 = 0
    padding_4: Annotated[bytes, raw(31)] = bytes(31)
    reward_infos: Annotated[bytes, raw(384)] = bytes(384)


POOL: Final = Layout(PoolAccount, discriminator=account_discriminator("Pool"))

SWAP: Final = instruction_discriminator("swap")
SWAP2: Final = instruction_discriminator("swap2")

_SWAP_ARGUMENTS: Final = struct.Struct("<8sQQ")
_SWAP2_ARGUMENTS: Final = struct.Struct("<8sQQB")
_EXACT_IN, _PARTIAL_FILL, _EXACT_OUT = 0, 1, 2

_read_fees = POOL.reader(
    "cliff_fee_numerator",
    "base_fee_mode",
    "number_of_period",
    "period_frequency",
    "reduction_factor",
    "protocol_fee_percent",
    "compounding_fee_bps",
    "dynamic_fee_initialized",
)
_read_dynamic_fee = POOL.reader(
    "dynamic_fee_max_volatility_accumulator",
    "dynamic_fee_variable_fee_control",
    "dynamic_fee_bin_step",
    "dynamic_fee_filter_period",
    "dynamic_fee_decay_period",
    "dynamic_fee_reduction_factor",
    "dynamic_fee_last_update_timestamp",
    "dynamic_fee_bin_step_u128",
    "dynamic_fee_sqrt_price_reference",
    "dynamic_fee_volatility_accumulator",
    "dynamic_fee_volatility_reference",
)
_read_state = POOL.reader(
    "liquidity",
    "protocol_a_fee",
    "protocol_b_fee",
    "sqrt_min_price",
    "sqrt_max_price",
    "sqrt_price",
    "activation_point",
    "activation_type",
    "pool_status",
    "collect_fee_mode",
    "fee_version",
    "fee_a_per_liquidity",
    "fee_b_per_liquidity",
    "metrics_total_lp_a_fee",
    "metrics_total_lp_b_fee",
    "token_a_amount",
    "token_b_amount",
)
_read_protocol_fees = POOL.reader(
    "protocol_a_fee",
    "protocol_b_fee",
    "metrics_total_protocol_a_fee",
    "metrics_total_protocol_b_fee",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteoraDammV2Keys(PoolKeys):
    has_rate_limiter: bool = False
    """Swaps b to a then have to show that no other one of the pool is in their transaction."""


@lru_cache(maxsize=1024)
def _swap_names(
    keys: MeteoraDammV2Keys,
    shows_transaction: bool,
    owner: Pubkey,
    input_account: Pubkey,
    output_account: Pubkey,
) -> Names:
    return Names(
        PROGRAM,
        (
            AccountMeta(POOL_AUTHORITY, False, False),
            AccountMeta(keys.pool, False, True),
            AccountMeta(input_account, False, True),
            AccountMeta(output_account, False, True),
            AccountMeta(keys.vault_a, False, True),
            AccountMeta(keys.vault_b, False, True),
            AccountMeta(keys.mint_a, False, False),
            AccountMeta(keys.mint_b, False, False),
            AccountMeta(owner, True, False),
            AccountMeta(keys.token_program_a, False, False),
            AccountMeta(keys.token_program_b, False, False),
            # Nobody referred the swap: the program's own id stands for none.
            AccountMeta(PROGRAM, False, False),
            AccountMeta(EVENT_AUTHORITY, False, False),
            AccountMeta(PROGRAM, False, False),
            *([AccountMeta(INSTRUCTIONS_SYSVAR, False, False)] if shows_transaction else []),
        ),
    )


class MeteoraDammV2(Venue[MeteoraDammV2Keys]):
    name: ClassVar[str] = "Meteora"
    kind: ClassVar[str] = "meteora_damm_v2"
    program: ClassVar[Pubkey] = PROGRAM
    pool_filter: ClassVar[AccountFilter] = AccountFilter(POOL.size, POOL.discriminator)
    mints_slice: ClassVar[tuple[int, int]] = (POOL.offset("token_a_mint"), 64)
    compute_units: ClassVar[int] = 80_000
    slippage_errors: ClassVar[Mapping[Side, int]] = {Side.SELL: 6002, Side.BUY: 6002}

    def keys(self, pool: Pubkey, data: bytes) -> MeteoraDammV2Keys | None:
        """Return the pool's addresses; None where it is not one this venue swaps exactly.

        Those have Token-2022 mints or a base fee by market cap.
        """
        account = POOL.decode(data)
        if (
            account.collect_fee_mode not in _COLLECT_FEE_MODES
            or account.base_fee_mode not in _BASE_FEE_MODES
            or account.token_a_flag
            or account.token_b_flag
        ):
            return None
        return MeteoraDammV2Keys(
            pool=pool,
            mint_a=account.token_a_mint,
            mint_b=account.token_b_mint,
            vault_a=account.token_a_vault,
            vault_b=account.token_b_vault,
            has_rate_limiter=account.base_fee_mode == _RATE_LIMITER,
        )

    def quote_accounts(self, keys: MeteoraDammV2Keys, accounts: Mapping[Pubkey, bytes]) -> tuple[Pubkey, ...]:
        # A pool keeps its amounts itself: no vault is needed.
        return (keys.pool,)

    def pool(self, keys: MeteoraDammV2Keys, accounts: Mapping[Pubkey, bytes]) -> MeteoraDammV2Pool:
        data = accounts[keys.pool]
        (
            cliff_fee_numerator,
            base_fee_mode,
            number_of_period,
            period_frequency,
            reduction_factor,
            protocol_fee_percent,
            compounding_fee_bps,
            has_dynamic_fee,
        ) = _read_fees(data)
        (
            liquidity,
            protocol_a_fee,
            protocol_b_fee,
            sqrt_min_price,
            sqrt_max_price,
            sqrt_price,
            activation_point,
            activation_type,
            pool_status,
            collect_fee_mode,
            fee_version,
            fee_a_per_liquidity,
            fee_b_per_liquidity,
            lp_a_fee,
            lp_b_fee,
            token_a_amount,
            token_b_amount,
        ) = _read_state(data)
        base_fee: BaseFee | RateLimiter
        if base_fee_mode == _RATE_LIMITER:
            base_fee = RateLimiter(
                cliff_fee_numerator,
                fee_increment_bps=number_of_period,
                max_limiter_duration=period_frequency & _U32_MAX,
                max_fee_bps=period_frequency >> 32,
                reference_amount=reduction_factor,
            )
        else:
            base_fee = BaseFee(
                BaseFeeMode(base_fee_mode),
                cliff_fee_numerator,
                number_of_period,
                period_frequency,
                reduction_factor,
            )
        return MeteoraDammV2Pool(
            token_a_amount=token_a_amount,
            token_b_amount=token_b_amount,
            sqrt_price=sqrt_price,
            base_fee=base_fee,
            dynamic_fee=DynamicFee(*_read_dynamic_fee(data)) if has_dynamic_fee else None,
            protocol_fee_percent=protocol_fee_percent,
            compounding_fee_bps=compounding_fee_bps,
            activation_type=ActivationType(activation_type),
            activation_point=activation_point,
            fee_version=fee_version,
            enabled=pool_status == 0,
            liquidity=liquidity,
            protocol_b_fee=protocol_b_fee,
            lp_b_fee=lp_b_fee,
            fee_b_per_liquidity=int.from_bytes(fee_b_per_liquidity, "little"),
            collect_fee_mode=CollectFeeMode(collect_fee_mode),
            sqrt_min_price=sqrt_min_price,
            sqrt_max_price=sqrt_max_price,
            protocol_a_fee=protocol_a_fee,
            lp_a_fee=lp_a_fee,
            fee_a_per_liquidity=int.from_bytes(fee_a_per_liquidity, "little"),
        )

    def written(
        self, keys: MeteoraDammV2Keys, accounts: Mapping[Pubkey, bytes], a_to_b: bool, swap: Swap
    ) -> dict[Pubkey, bytes]:
        before = accounts[keys.pool]
        after = swap.pool
        assert isinstance(after, MeteoraDammV2Pool)
        protocol_a_fee, protocol_b_fee, protocol_a_total, protocol_b_total = _read_protocol_fees(before)
        changes = {
            "sqrt_price": after.sqrt_price,
            "token_a_amount": after.token_a_amount,
            "token_b_amount": after.token_b_amount,
            "protocol_a_fee": after.protocol_a_fee,
            "protocol_b_fee": after.protocol_b_fee,
            "fee_a_per_liquidity": after.fee_a_per_liquidity.to_bytes(32, "little"),
            "fee_b_per_liquidity": after.fee_b_per_liquidity.to_bytes(32, "little"),
            "metrics_total_lp_a_fee": after.lp_a_fee,
            "metrics_total_lp_b_fee": after.lp_b_fee,
            # The totals also count what the protocol has collected since.
            "metrics_total_protocol_a_fee": protocol_a_total + after.protocol_a_fee - protocol_a_fee,
            "metrics_total_protocol_b_fee": protocol_b_total + after.protocol_b_fee - protocol_b_fee,
        }
        dynamic_fee = after.dynamic_fee
        if dynamic_fee is not None:
            changes |= {
                "dynamic_fee_last_update_timestamp": dynamic_fee.last_update_timestamp,
                "dynamic_fee_sqrt_price_reference": dynamic_fee.sqrt_price_reference,
                "dynamic_fee_volatility_accumulator": dynamic_fee.volatility_accumulator,
                "dynamic_fee_volatility_reference": dynamic_fee.volatility_reference,
            }
        return {keys.pool: POOL.patch(before, **changes), **vaults_after(keys, accounts, a_to_b, swap)}

    def swap_instruction(
        self,
        keys: MeteoraDammV2Keys,
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
        # The direction is the mint of input_account.
        mode = _EXACT_IN if side is Side.SELL else _EXACT_OUT
        shows_transaction = keys.has_rate_limiter and not a_to_b
        return Instruction(
            _swap_names(keys, shows_transaction, owner, input_account, output_account),
            _SWAP2_ARGUMENTS.pack(SWAP2, amount, threshold_amount, mode),
        )

    def read_swap(
        self, accounts: Sequence[Pubkey], data: bytes, mint_of: Mapping[Pubkey, Pubkey]
    ) -> SwapCall:
        if len(accounts) < 14 or len(data) < _SWAP_ARGUMENTS.size:
            raise ValueError("not a swap: too few accounts or too little data")
        discriminator, amount, threshold_amount = _SWAP_ARGUMENTS.unpack_from(data)
        mode = _EXACT_IN
        if discriminator == SWAP2:
            if len(data) < _SWAP2_ARGUMENTS.size or data[24] not in (_EXACT_IN, _PARTIAL_FILL, _EXACT_OUT):
                raise ValueError("not a swap: no such mode")
            mode = data[24]
        elif discriminator != SWAP:
            raise ValueError(f"not a swap: instruction {discriminator.hex()}")
        return SwapCall(
            pool=accounts[1],
            a_to_b=mint_of[accounts[2]] == accounts[6],
            side=Side.BUY if mode == _EXACT_OUT else Side.SELL,
            amount=amount,
            threshold_amount=threshold_amount,
            owner=accounts[8],
            input_account=accounts[2],
            output_account=accounts[3],
            partial_fill=mode == _PARTIAL_FILL,
        )

    def swap(self, pool: Pool, call: SwapCall, clock: Clock) -> Swap:
        if not call.partial_fill:
            return super().swap(pool, call, clock)
        assert isinstance(pool, MeteoraDammV2Pool)
        return pool.swap_partial_fill(call.a_to_b, call.amount, clock)

    def new_pool(
        self, mint_a: Pubkey, mint_b: Pubkey, amount_a: int, amount_b: int, fee_ppm: int, *, index: int = 0
    ) -> tuple[Pubkey, dict[Pubkey, NewAccount]]:
        sqrt_price = isqrt((amount_b << 128) // amount_a)
        return self._new_pool(
            PoolAccount(
                cliff_fee_numerator=fee_ppm * 1000,
                compounding_fee_bps=5000,
                token_a_mint=mint_a,
                token_b_mint=mint_b,
                liquidity=isqrt(amount_a * amount_b) << 64,
                sqrt_max_price=2**128 - 1,
                sqrt_price=sqrt_price,
                collect_fee_mode=CollectFeeMode.COMPOUNDING,
                token_a_amount=amount_a,
                token_b_amount=amount_b,
            ),
            index,
        )

    def new_range_pool(
        self, mint_a: Pubkey, mint_b: Pubkey, amount_a: int, amount_b: int, fee_ppm: int, *, index: int = 0
    ) -> tuple[Pubkey, dict[Pubkey, NewAccount]]:
        """Return a pool that trades from a fifth below to a quarter above its price, with a dynamic fee.

        Otherwise it is as new_pool makes it; its amounts are at most the given ones.
        """
        sqrt_price = isqrt((amount_b << 128) // amount_a)
        sqrt_min_price, sqrt_max_price = (isqrt(sqrt_price**2 * up // down) for up, down in ((4, 5), (5, 4)))
        liquidity = min(
            amount_a * sqrt_price * sqrt_max_price // (sqrt_max_price - sqrt_price),
            (amount_b << 128) // (sqrt_price - sqrt_min_price),
        )
        return self._new_pool(
            PoolAccount(
                cliff_fee_numerator=fee_ppm * 1000,
                # The SDK's for a base fee of 1 %: a fifth of that comes on top at most.
                dynamic_fee_initialized=1,
                dynamic_fee_max_volatility_accumulator=14_460_000,
                dynamic_fee_variable_fee_control=956,
                dynamic_fee_bin_step=1,
                dynamic_fee_filter_period=10,
                dynamic_fee_decay_period=120,
                dynamic_fee_reduction_factor=5000,
                dynamic_fee_bin_step_u128=1_844_674_407_370_955,
                dynamic_fee_sqrt_price_reference=sqrt_price,
                token_a_mint=mint_a,
                token_b_mint=mint_b,
                liquidity=liquidity,
                sqrt_min_price=sqrt_min_price,
                sqrt_max_price=sqrt_max_price,
                sqrt_price=sqrt_price,
                collect_fee_mode=CollectFeeMode.OUTPUT,
                token_a_amount=liquidity * (sqrt_max_price - sqrt_price) // (sqrt_price * sqrt_max_price),
                token_b_amount=liquidity * (sqrt_price - sqrt_min_price) >> 128,
            ),
            index,
        )

    def _new_pool(self, account: PoolAccount, index: int) -> tuple[Pubkey, dict[Pubkey, NewAccount]]:
        """Return such a pool with what all new ones have in common."""
        mints = (account.token_a_mint, account.token_b_mint)
        config = program_address(PROGRAM, b"config", index.to_bytes(8, "little"))
        pool = program_address(PROGRAM, b"pool", bytes(config), *sorted(map(bytes, mints), reverse=True))
        vault_a, vault_b = (
            program_address(PROGRAM, b"token_vault", bytes(mint), bytes(pool)) for mint in mints
        )
        whole = replace(
            account,
            protocol_fee_percent=20,
            referral_fee_percent=20,
            init_sqrt_price=account.sqrt_price,
            token_a_vault=vault_a,
            token_b_vault=vault_b,
            activation_type=ActivationType.TIMESTAMP,
            fee_version=1,
            layout_version=1,
        )
        return pool, {
            pool: NewAccount(PROGRAM, POOL.encode(whole)),
            **{
                vault: NewAccount(
                    TOKEN_PROGRAM, TOKEN_ACCOUNT.encode(TokenAccount(mint, POOL_AUTHORITY, amount))
                )
                for vault, mint, amount in (
                    (vault_a, whole.token_a_mint, whole.token_a_amount),
                    (vault_b, whole.token_b_mint, whole.token_b_amount),
                )
            },
        }

    def error_code(self, refusal: SwapRefusal) -> int:
        return _ERROR_CODES[refusal]


_ERROR_CODES: Final[Mapping[SwapRefusal, int]] = {
    SwapRefusal.ZERO_AMOUNT: 6006,  # AmountIsZero
    SwapRefusal.ZERO_OUTPUT: 6006,
    SwapRefusal.UNDEFINED: 6000,  # MathOverflow
    SwapRefusal.OVERFLOW: 6000,
    SwapRefusal.INSUFFICIENT_LIQUIDITY: 6000,
    SwapRefusal.PRICE_RANGE: 6015,  # PriceRangeViolation
    SwapRefusal.DISABLED: 6003,  # PoolDisabled
    SwapRefusal.NOT_OPEN: 6003,
}

VENUE: Final = MeteoraDammV2()
