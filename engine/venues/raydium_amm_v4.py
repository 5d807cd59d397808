"""Raydium AMM v4: its accounts, its swap instructions and its errors. A native program, not one of Anchor's.

Source: raydium-io/raydium-amm at 27f461d, program/src/{state,instruction,processor,error}.rs. Swaps no longer
touch the order book: nothing of a market is read or named. The curve is in
engine/domain/pools/raydium_amm_v4.py.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar, Final

from solders.instruction import AccountMeta
from solders.pubkey import Pubkey

from engine.domain.order import FailureReason, Side
from engine.domain.pools.pool import Swap, SwapRefusal
from engine.domain.pools.raydium_amm_v4 import AmmStatus, RaydiumAmmV4Pool
from engine.solana.accounts import TOKEN_ACCOUNT, TokenAccount, token_amount
from engine.solana.instructions import Instruction, Names
from engine.solana.programs import TOKEN_PROGRAM, program_address
from engine.solana.wire import Layout, WireError, pubkey, raw, u64, u128
from engine.venues.venue import AccountFilter, NewAccount, PoolKeys, SwapCall, Venue, vaults_after

PROGRAM: Final = Pubkey.from_string("675kPX9MHTjS2zt1qfr1NYHuzeLXfQM9H24wFSUt1Mp8")
NONCE: Final = 254
AUTHORITY: Final = Pubkey.create_program_address([b"amm authority", bytes([NONCE])], PROGRAM)
"""Owns every pool's vaults."""
_MARKET_PROGRAM: Final = Pubkey.from_string("srmqPvymJeFKQ4zGQed1GFppgkRHL9kaELCbyksJtPX")

_NO_KEY: Final = Pubkey.default()


@dataclass(frozen=True, slots=True)
class AmmInfo:
    """A pool. Much of it is left over from the order book that pools once traded on."""

    status: u64 = 0
    """See AmmStatus."""
    nonce: u64 = NONCE
    order_num: u64 = 0
    depth: u64 = 0
    coin_decimals: u64 = 0
    pc_decimals: u64 = 0
    state: u64 = 0
    reset_flag: u64 = 0
    min_size: u64 = 0
    vol_max_cut_ratio: u64 = 0
    amount_wave: u64 = 0
    coin_lot_size: u64 = 0
    pc_lot_size: u64 = 0
    min_price_multiplier: u64 = 0
    max_price_multiplier: u64 = 0
    sys_decimal_value: u64 = 0
    min_separate_numerator: u64 = 0
    min_separate_denominator: u64 = 0
    trade_fee_numerator: u64 = 0
    trade_fee_denominator: u64 = 0
    pnl_numerator: u64 = 0
    pnl_denominator: u64 = 0
    swap_fee_numerator: u64 = 25
    swap_fee_denominator: u64 = 10_000
    need_take_pnl_coin: u64 = 0
    """Lies in the vault for others and is not traded with; so does the next."""
    need_take_pnl_pc: u64 = 0
    total_pnl_pc: u64 = 0
    total_pnl_coin: u64 = 0
    pool_open_time: u64 = 0
    """Unix seconds."""
    padding_a: Annotated[bytes, raw(16)] = bytes(16)
    orderbook_to_init_time: u64 = 0
    swap_coin_in_amount: u128 = 0
    """This and the next five are no longer counted."""
    swap_pc_out_amount: u128 = 0
    swap_acc_pc_fee: u64 = 0
    swap_pc_in_amount: u128 = 0
    swap_coin_out_amount: u128 = 0
    swap_acc_coin_fee: u64 = 0
    coin_vault: pubkey = _NO_KEY
    pc_vault: pubkey = _NO_KEY
    coin_vault_mint: pubkey = _NO_KEY
    pc_vault_mint: pubkey = _NO_KEY
    lp_mint: pubkey = _NO_KEY
    open_orders: pubkey = _NO_KEY
    market: pubkey = _NO_KEY
    market_program: pubkey = _MARKET_PROGRAM
    target_orders: pubkey = _NO_KEY
    padding_1: Annotated[bytes, raw(64)] = bytes(64)
    amm_owner: pubkey = _NO_KEY
    lp_amount: u64 = 0
    client_order_id: u64 = 0
    recent_epoch: u64 = 0
    padding_2: u64 = 0


AMM_INFO: Final = Layout(AmmInfo)

SWAP_BASE_IN: Final = 9
SWAP_BASE_OUT: Final = 11
SWAP_BASE_IN_V2: Final = 16
SWAP_BASE_OUT_V2: Final = 17
"""The first byte of an instruction's data. V2 has 8 accounts, the others 17 or 18, a market's among them."""

_SWAP_ARGUMENTS: Final = struct.Struct("<BQQ")

_read_pool = AMM_INFO.reader(
    "status",
    "swap_fee_numerator",
    "swap_fee_denominator",
    "need_take_pnl_coin",
    "need_take_pnl_pc",
    "pool_open_time",
)


@lru_cache(maxsize=1024)
def _swap_names(keys: PoolKeys, owner: Pubkey, input_account: Pubkey, output_account: Pubkey) -> Names:
    return Names(
        PROGRAM,
        (
            AccountMeta(TOKEN_PROGRAM, False, False),
            AccountMeta(keys.pool, False, True),
            AccountMeta(AUTHORITY, False, False),
            AccountMeta(keys.vault_a, False, True),
            AccountMeta(keys.vault_b, False, True),
            AccountMeta(input_account, False, True),
            AccountMeta(output_account, False, True),
            AccountMeta(owner, True, False),
        ),
    )


class RaydiumAmmV4(Venue[PoolKeys]):
    name: ClassVar[str] = "Raydium"
    kind: ClassVar[str] = "raydium_amm_v4"
    program: ClassVar[Pubkey] = PROGRAM
    # Accounts carry no discriminator: the size tells pools from the program's others.
    pool_filter: ClassVar[AccountFilter] = AccountFilter(AMM_INFO.size, b"")
    mints_slice: ClassVar[tuple[int, int]] = (AMM_INFO.offset("coin_vault_mint"), 64)
    compute_units: ClassVar[int] = 60_000
    slippage_errors: ClassVar[Mapping[Side, int]] = {Side.SELL: 30, Side.BUY: 30}  # ExceededSlippage

    def keys(self, pool: Pubkey, data: bytes) -> PoolKeys | None:
        if len(data) != AMM_INFO.size:
            raise WireError(f"{len(data)} bytes that are not an AmmInfo ({AMM_INFO.size} bytes)")
        info = AMM_INFO.decode(data)
        if not info.status:
            raise WireError("an AmmInfo that was never initialised")
        return PoolKeys(
            pool=pool,
            mint_a=info.coin_vault_mint,
            mint_b=info.pc_vault_mint,
            vault_a=info.coin_vault,
            vault_b=info.pc_vault,
        )

    def quote_accounts(self, keys: PoolKeys, accounts: Mapping[Pubkey, bytes]) -> tuple[Pubkey, ...]:
        return (keys.pool, keys.vault_a, keys.vault_b)

    def pool(self, keys: PoolKeys, accounts: Mapping[Pubkey, bytes]) -> RaydiumAmmV4Pool:
        (
            status,
            swap_fee_numerator,
            swap_fee_denominator,
            need_take_pnl_coin,
            need_take_pnl_pc,
            pool_open_time,
        ) = _read_pool(accounts[keys.pool])
        return RaydiumAmmV4Pool(
            coin_vault=token_amount(accounts[keys.vault_a]),
            pc_vault=token_amount(accounts[keys.vault_b]),
            need_take_pnl_coin=need_take_pnl_coin,
            need_take_pnl_pc=need_take_pnl_pc,
            swap_fee_numerator=swap_fee_numerator,
            swap_fee_denominator=swap_fee_denominator,
            status=status,
            pool_open_time=pool_open_time,
        )

    def written(
        self, keys: PoolKeys, accounts: Mapping[Pubkey, bytes], a_to_b: bool, swap: Swap
    ) -> dict[Pubkey, bytes]:
        after = swap.pool
        assert isinstance(after, RaydiumAmmV4Pool)
        return {
            keys.pool: AMM_INFO.patch(accounts[keys.pool], status=after.status),
            **vaults_after(keys, accounts, a_to_b, swap),
        }

    def swap_instruction(
        self,
        keys: PoolKeys,
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
        # The direction is the mint of input_account: a_to_b is not written anywhere.
        if side is Side.SELL:
            data = _SWAP_ARGUMENTS.pack(SWAP_BASE_IN_V2, amount, threshold_amount)
        else:
            data = _SWAP_ARGUMENTS.pack(SWAP_BASE_OUT_V2, threshold_amount, amount)
        return Instruction(_swap_names(keys, owner, input_account, output_account), data)

    def read_swap(
        self, accounts: Sequence[Pubkey], data: bytes, mint_of: Mapping[Pubkey, Pubkey]
    ) -> SwapCall:
        if len(data) < _SWAP_ARGUMENTS.size:
            raise ValueError("not a swap: too little data")
        tag, first, second = _SWAP_ARGUMENTS.unpack_from(data)
        counts = (8,) if tag in (SWAP_BASE_IN_V2, SWAP_BASE_OUT_V2) else (17, 18)
        if tag not in (SWAP_BASE_IN, SWAP_BASE_OUT, SWAP_BASE_IN_V2, SWAP_BASE_OUT_V2):
            raise ValueError(f"not a swap: instruction {tag}")
        if len(accounts) not in counts:
            raise ValueError(f"not a swap: {len(accounts)} accounts")
        # Of the older form's accounts, target_orders (4) may be left out.
        coin_vault = accounts[{8: 3, 17: 4, 18: 5}[len(accounts)]]
        input_account, output_account, owner = accounts[-3:]
        sells = tag in (SWAP_BASE_IN, SWAP_BASE_IN_V2)
        return SwapCall(
            pool=accounts[1],
            a_to_b=mint_of[input_account] == mint_of[coin_vault],
            side=Side.SELL if sells else Side.BUY,
            amount=first if sells else second,
            threshold_amount=second if sells else first,
            owner=owner,
            input_account=input_account,
            output_account=output_account,
        )

    def new_pool(
        self, mint_a: Pubkey, mint_b: Pubkey, amount_a: int, amount_b: int, fee_ppm: int, *, index: int = 0
    ) -> tuple[Pubkey, dict[Pubkey, NewAccount]]:
        market = program_address(_MARKET_PROGRAM, bytes(mint_a), bytes(mint_b), index.to_bytes(2, "little"))
        pool, coin_vault, pc_vault, lp_mint = (
            program_address(PROGRAM, bytes(PROGRAM), bytes(market), tag)
            for tag in (
                b"amm_associated_seed",
                b"coin_vault_associated_seed",
                b"pc_vault_associated_seed",
                b"lp_mint_associated_seed",
            )
        )
        info = AmmInfo(
            status=AmmStatus.SWAP_ONLY,
            swap_fee_numerator=fee_ppm,
            swap_fee_denominator=1_000_000,
            coin_vault=coin_vault,
            pc_vault=pc_vault,
            coin_vault_mint=mint_a,
            pc_vault_mint=mint_b,
            lp_mint=lp_mint,
            market=market,
        )
        return pool, {
            pool: NewAccount(PROGRAM, AMM_INFO.encode(info)),
            coin_vault: NewAccount(
                TOKEN_PROGRAM, TOKEN_ACCOUNT.encode(TokenAccount(mint_a, AUTHORITY, amount_a))
            ),
            pc_vault: NewAccount(
                TOKEN_PROGRAM, TOKEN_ACCOUNT.encode(TokenAccount(mint_b, AUTHORITY, amount_b))
            ),
        }

    def error_code(self, refusal: SwapRefusal) -> int:
        return _ERROR_CODES[refusal]

    def failure_reason(self, error: int, data: bytes = b"") -> tuple[FailureReason, str]:
        if error != _INSUFFICIENT_FUNDS:
            return super().failure_reason(error, data)
        if data[:1] == bytes([SWAP_BASE_OUT_V2]):
            # Whether the wallet has so much is looked at before whether it would pay so much, and of SOL no
            # more than that is wrapped: a price that has moved shows like this.
            return super().failure_reason(self.slippage_errors[Side.BUY])
        return FailureReason.INSUFFICIENT_FUNDS, "the wallet has too little of the input token"


_INSUFFICIENT_FUNDS: Final = 40
"""The wallet's, and the pool's."""
_ERROR_CODES: Final[Mapping[SwapRefusal, int]] = {
    SwapRefusal.ZERO_AMOUNT: 29,  # InvalidInput
    SwapRefusal.ZERO_OUTPUT: 29,
    SwapRefusal.UNDEFINED: 29,
    SwapRefusal.OVERFLOW: 41,  # ConversionFailure
    SwapRefusal.INSUFFICIENT_LIQUIDITY: _INSUFFICIENT_FUNDS,
    SwapRefusal.PRICE_RANGE: _INSUFFICIENT_FUNDS,
    SwapRefusal.DISABLED: 22,  # InvalidStatus
    SwapRefusal.NOT_OPEN: 22,
}

VENUE: Final = RaydiumAmmV4()
