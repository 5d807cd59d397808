"""Raydium CPMM: its accounts, its swap instructions and its errors.

Source: raydium-io/raydium-cp-swap at 609780f, states/{config,pool,oracle}.rs, instructions/swap_base_*.rs
and error.rs. The curve is in engine/domain/pools/raydium_cpmm.py.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar, Final

from solders.instruction import AccountMeta
from solders.pubkey import Pubkey

from engine.domain.order import Side
from engine.domain.pools.pool import Swap, SwapRefusal
from engine.domain.pools.raydium_cpmm import CreatorFeeOn, Rates, RaydiumCpmmPool
from engine.solana.accounts import TOKEN_ACCOUNT, TokenAccount, token_amount
from engine.solana.instructions import Instruction, Names
from engine.solana.programs import TOKEN_PROGRAM, program_address
from engine.solana.wire import (
    Layout,
    account_discriminator,
    boolean,
    instruction_discriminator,
    pubkey,
    raw,
    u8,
    u16,
    u64,
)
from engine.venues.venue import AccountFilter, NewAccount, PoolKeys, SwapCall, Venue, vaults_after

PROGRAM: Final = Pubkey.from_string("CPMMoo8L3F4NbTegBCKVNunggL7H1ZpdTHKxQB5qKP1C")
AUTHORITY: Final = program_address(PROGRAM, b"vault_and_lp_mint_auth_seed")
"""Owns every pool's vaults."""


@dataclass(frozen=True, slots=True)
class AmmConfig:
    """The fees of a tier; many pools share one."""

    bump: u8
    disable_create_pool: boolean
    index: u16
    trade_fee_rate: u64
    """Per million of the input."""
    protocol_fee_rate: u64
    """Per million of the trade fee, and so is the next."""
    fund_fee_rate: u64
    create_pool_fee: u64
    """Lamports."""
    protocol_owner: pubkey
    fund_owner: pubkey
    creator_fee_rate: u64
    """Per million; counts only in pools with enable_creator_fee."""


@dataclass(frozen=True, slots=True)
class PoolState:
    amm_config: pubkey
    pool_creator: pubkey
    token_0_vault: pubkey
    token_1_vault: pubkey
    lp_mint: pubkey
    token_0_mint: pubkey
    """Below token_1_mint, as bytes."""
    token_1_mint: pubkey
    token_0_program: pubkey
    token_1_program: pubkey
    observation_key: pubkey
    auth_bump: u8
    status: u8
    """Bits that switch off deposits (1), withdrawals (2) and swaps (4)."""
    lp_mint_decimals: u8
    mint_0_decimals: u8
    mint_1_decimals: u8
    lp_supply: u64
    protocol_fees_token_0: u64
    """Accrued in the vault and not traded with, like the fund's and the creator's."""
    protocol_fees_token_1: u64
    fund_fees_token_0: u64
    fund_fees_token_1: u64
    open_time: u64
    """Unix seconds."""
    recent_epoch: u64
    creator_fee_on: u8
    enable_creator_fee: boolean
    padding: Annotated[bytes, raw(6)] = bytes(6)
    creator_fees_token_0: u64 = 0
    creator_fees_token_1: u64 = 0


@dataclass(frozen=True, slots=True)
class ObservationState:
    """Price history; a swap must name it."""

    initialized: boolean
    observation_index: u16
    pool_id: pubkey
    observations: Annotated[bytes, raw(4000)] = bytes(4000)
    last_update_timestamp: u64 = 0


AMM_CONFIG: Final = Layout(AmmConfig, discriminator=account_discriminator("AmmConfig"), size=236)
POOL_STATE: Final = Layout(PoolState, discriminator=account_discriminator("PoolState"), size=637)
OBSERVATION_STATE: Final = Layout(
    ObservationState, discriminator=account_discriminator("ObservationState"), size=4075
)

SWAP_BASE_INPUT: Final = instruction_discriminator("swap_base_input")
SWAP_BASE_OUTPUT: Final = instruction_discriminator("swap_base_output")

_SWAP_ARGUMENTS: Final = struct.Struct("<8sQQ")

_read_rates = AMM_CONFIG.reader("trade_fee_rate", "protocol_fee_rate", "fund_fee_rate", "creator_fee_rate")
_read_pool = POOL_STATE.reader(
    "status",
    "protocol_fees_token_0",
    "protocol_fees_token_1",
    "fund_fees_token_0",
    "fund_fees_token_1",
    "open_time",
    "creator_fee_on",
    "enable_creator_fee",
    "creator_fees_token_0",
    "creator_fees_token_1",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RaydiumCpmmKeys(PoolKeys):
    amm_config: Pubkey
    observation: Pubkey


@lru_cache(maxsize=1024)
def _swap_names(
    keys: RaydiumCpmmKeys, a_to_b: bool, owner: Pubkey, input_account: Pubkey, output_account: Pubkey
) -> Names:
    token_a = (keys.vault_a, keys.token_program_a, keys.mint_a)
    token_b = (keys.vault_b, keys.token_program_b, keys.mint_b)
    (
        (input_vault, input_program, input_mint),
        (output_vault, output_program, output_mint),
    ) = (token_a, token_b) if a_to_b else (token_b, token_a)
    return Names(
        PROGRAM,
        (
            AccountMeta(owner, True, False),
            AccountMeta(AUTHORITY, False, False),
            AccountMeta(keys.amm_config, False, False),
            AccountMeta(keys.pool, False, True),
            AccountMeta(input_account, False, True),
            AccountMeta(output_account, False, True),
            AccountMeta(input_vault, False, True),
            AccountMeta(output_vault, False, True),
            AccountMeta(input_program, False, False),
            AccountMeta(output_program, False, False),
            AccountMeta(input_mint, False, False),
            AccountMeta(output_mint, False, False),
            AccountMeta(keys.observation, False, True),
        ),
    )


class RaydiumCpmm(Venue[RaydiumCpmmKeys]):
    name: ClassVar[str] = "Raydium"
    kind: ClassVar[str] = "raydium_cpmm"
    program: ClassVar[Pubkey] = PROGRAM
    pool_filter: ClassVar[AccountFilter] = AccountFilter(POOL_STATE.size, POOL_STATE.discriminator)
    mints_slice: ClassVar[tuple[int, int]] = (POOL_STATE.offset("token_0_mint"), 64)
    compute_units: ClassVar[int] = 80_000
    slippage_errors: ClassVar[Mapping[Side, int]] = {Side.SELL: 6005, Side.BUY: 6005}

    def keys(self, pool: Pubkey, data: bytes) -> RaydiumCpmmKeys | None:
        """Return the pool's addresses; None if a mint is Token-2022, whose transfer fees are not modelled."""
        state = POOL_STATE.decode(data)
        if state.token_0_program != TOKEN_PROGRAM or state.token_1_program != TOKEN_PROGRAM:
            return None
        return RaydiumCpmmKeys(
            pool=pool,
            mint_a=state.token_0_mint,
            mint_b=state.token_1_mint,
            vault_a=state.token_0_vault,
            vault_b=state.token_1_vault,
            amm_config=state.amm_config,
            observation=state.observation_key,
        )

    def quote_accounts(self, keys: RaydiumCpmmKeys, accounts: Mapping[Pubkey, bytes]) -> tuple[Pubkey, ...]:
        return (keys.pool, keys.amm_config, keys.vault_a, keys.vault_b)

    def pool(self, keys: RaydiumCpmmKeys, accounts: Mapping[Pubkey, bytes]) -> RaydiumCpmmPool:
        trade, protocol, fund, creator = _read_rates(accounts[keys.amm_config])
        (
            status,
            protocol_fees_0,
            protocol_fees_1,
            fund_fees_0,
            fund_fees_1,
            open_time,
            creator_fee_on,
            enable_creator_fee,
            creator_fees_0,
            creator_fees_1,
        ) = _read_pool(accounts[keys.pool])
        return RaydiumCpmmPool(
            vault_0=token_amount(accounts[keys.vault_a]),
            vault_1=token_amount(accounts[keys.vault_b]),
            rates=Rates(trade, creator if enable_creator_fee else 0, protocol, fund),
            creator_fee_on=CreatorFeeOn(creator_fee_on),
            protocol_fees_0=protocol_fees_0,
            protocol_fees_1=protocol_fees_1,
            fund_fees_0=fund_fees_0,
            fund_fees_1=fund_fees_1,
            creator_fees_0=creator_fees_0,
            creator_fees_1=creator_fees_1,
            status=status,
            open_time=open_time,
        )

    def written(
        self, keys: RaydiumCpmmKeys, accounts: Mapping[Pubkey, bytes], a_to_b: bool, swap: Swap
    ) -> dict[Pubkey, bytes]:
        # The price history stays as it was: no quote reads it.
        after = swap.pool
        assert isinstance(after, RaydiumCpmmPool)
        return {
            keys.pool: POOL_STATE.patch(
                accounts[keys.pool],
                protocol_fees_token_0=after.protocol_fees_0,
                protocol_fees_token_1=after.protocol_fees_1,
                fund_fees_token_0=after.fund_fees_0,
                fund_fees_token_1=after.fund_fees_1,
                creator_fees_token_0=after.creator_fees_0,
                creator_fees_token_1=after.creator_fees_1,
            ),
            **vaults_after(keys, accounts, a_to_b, swap),
        }

    def swap_instruction(
        self,
        keys: RaydiumCpmmKeys,
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
        if side is Side.SELL:
            data = _SWAP_ARGUMENTS.pack(SWAP_BASE_INPUT, amount, threshold_amount)
        else:
            data = _SWAP_ARGUMENTS.pack(SWAP_BASE_OUTPUT, threshold_amount, amount)
        return Instruction(_swap_names(keys, a_to_b, owner, input_account, output_account), data)

    def read_swap(
        self, accounts: Sequence[Pubkey], data: bytes, mint_of: Mapping[Pubkey, Pubkey]
    ) -> SwapCall:
        if len(accounts) < 13 or len(data) < _SWAP_ARGUMENTS.size:
            raise ValueError("not a swap: too few accounts or too little data")
        discriminator, first, second = _SWAP_ARGUMENTS.unpack_from(data)
        if discriminator == SWAP_BASE_INPUT:
            side, amount, threshold_amount = Side.SELL, first, second
        elif discriminator == SWAP_BASE_OUTPUT:
            side, amount, threshold_amount = Side.BUY, second, first
        else:
            raise ValueError(f"not a swap: instruction {discriminator.hex()}")
        return SwapCall(
            pool=accounts[3],
            # Token 0 is the lower of the two mints, as bytes.
            a_to_b=bytes(accounts[10]) < bytes(accounts[11]),
            side=side,
            amount=amount,
            threshold_amount=threshold_amount,
            owner=accounts[0],
            input_account=accounts[4],
            output_account=accounts[5],
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
        amm_config = AmmConfig(
            bump=255,
            disable_create_pool=False,
            index=index,
            trade_fee_rate=fee_ppm,
            # 12 % and 4 % of the trade fee: raydium-io/raydium-docs-v1, ray/protocol-fees.mdx.
            protocol_fee_rate=120_000,
            fund_fee_rate=40_000,
            create_pool_fee=150_000_000,
            protocol_owner=AUTHORITY,
            fund_owner=AUTHORITY,
            creator_fee_rate=0,
        )
        state = PoolState(
            amm_config=config,
            pool_creator=AUTHORITY,
            token_0_vault=vault_0,
            token_1_vault=vault_1,
            lp_mint=program_address(PROGRAM, b"pool_lp_mint", bytes(pool)),
            token_0_mint=mint_0,
            token_1_mint=mint_1,
            token_0_program=TOKEN_PROGRAM,
            token_1_program=TOKEN_PROGRAM,
            observation_key=observation,
            auth_bump=253,
            status=0,
            lp_mint_decimals=9,
            mint_0_decimals=0,
            mint_1_decimals=0,
            lp_supply=0,
            protocol_fees_token_0=0,
            protocol_fees_token_1=0,
            fund_fees_token_0=0,
            fund_fees_token_1=0,
            open_time=0,
            recent_epoch=0,
            creator_fee_on=CreatorFeeOn.INPUT,
            enable_creator_fee=False,
        )
        return pool, {
            pool: NewAccount(PROGRAM, POOL_STATE.encode(state)),
            config: NewAccount(PROGRAM, AMM_CONFIG.encode(amm_config)),
            vault_0: NewAccount(
                TOKEN_PROGRAM, TOKEN_ACCOUNT.encode(TokenAccount(mint_0, AUTHORITY, amount_0))
            ),
            vault_1: NewAccount(
                TOKEN_PROGRAM, TOKEN_ACCOUNT.encode(TokenAccount(mint_1, AUTHORITY, amount_1))
            ),
            observation: NewAccount(PROGRAM, OBSERVATION_STATE.encode(ObservationState(True, 0, pool))),
        }

    def error_code(self, refusal: SwapRefusal) -> int:
        return _ERROR_CODES[refusal]


_ERROR_CODES: Final[Mapping[SwapRefusal, int]] = {
    SwapRefusal.ZERO_AMOUNT: 2505,  # require_gt
    SwapRefusal.ZERO_OUTPUT: 2505,
    SwapRefusal.UNDEFINED: 6006,  # ZeroTradingTokens
    SwapRefusal.OVERFLOW: 6011,  # MathOverflow
    # The program panics here, which is no custom error; this one says what happened.
    SwapRefusal.INSUFFICIENT_LIQUIDITY: 6012,  # InsufficientVault
    SwapRefusal.PRICE_RANGE: 6012,
    SwapRefusal.DISABLED: 6000,  # NotApproved
    SwapRefusal.NOT_OPEN: 6000,
}

VENUE: Final = RaydiumCpmm()
