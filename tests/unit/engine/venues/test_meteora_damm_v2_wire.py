"""Meteora DAMM v2 accounts and instructions against its SDK's bytes, and swaps against its program's."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import replace
from math import isqrt
from typing import Any

import pytest
from solders.pubkey import Pubkey

from engine.domain.order import Side
from engine.domain.pools.meteora_damm_v2 import CollectFeeMode, MeteoraDammV2Pool, RateLimiter
from engine.domain.pools.pool import Clock, Swap, SwapError
from engine.solana.accounts import TOKEN_ACCOUNT, token_amount
from engine.solana.programs import INSTRUCTIONS_SYSVAR
from engine.venues.meteora_damm_v2 import POOL, VENUE, MeteoraDammV2Keys
from engine.venues.venue import SwapCall
from tests.published_vectors import solana_cases, solana_fixture

LAYOUTS: dict[str, Any] = {"Pool": POOL, "TokenAccount": TOKEN_ACCOUNT}
PARTIAL_FILL = 1


def _flat(decoded: dict[str, Any]) -> dict[str, str]:
    """Return a decoded account in our names: the base fee as a scheduler, the dynamic fee with a prefix."""
    flat: dict[str, Any] = {}
    for name, value in decoded.items():
        if name == "base_fee":
            flat |= value
            for low, high in (
                ("max_limiter_duration", "max_fee_bps"),
                ("sqrt_price_step_bps", "scheduler_expiration_duration"),
            ):
                if low in flat:
                    flat["period_frequency"] = flat.pop(low) | flat.pop(high) << 32
            for theirs, ours in (
                ("fee_increment_bps", "number_of_period"),
                ("reference_amount", "reduction_factor"),
            ):
                if theirs in flat:
                    flat[ours] = flat.pop(theirs)
        elif name == "dynamic_fee":
            flat |= {f"dynamic_fee_{part}": item for part, item in value.items()}
        else:
            flat[name] = value
    return {name: str(value) for name, value in flat.items()}


@pytest.mark.parametrize(
    "case",
    solana_cases("accounts_meteora_damm_v2"),
    ids=lambda case: f"{case['account_type']}-{case['address'][:6]}",
)
def test_account_decodes_and_encodes_to_the_same_bytes(case: dict[str, Any]) -> None:
    layout, data = LAYOUTS[case["account_type"]], b64decode(case["data_base64"])
    account = layout.decode(data)
    told = _flat(case["decoded"])
    assert {name: str(getattr(account, name)) for name in told} == told
    assert layout.encode(account) == data
    assert layout.size == case["size"]


def _keys(inputs: dict[str, Any]) -> MeteoraDammV2Keys:
    return MeteoraDammV2Keys(
        pool=Pubkey.from_string(inputs["pool"]),
        mint_a=Pubkey.from_string(inputs["token_a_mint"]),
        mint_b=Pubkey.from_string(inputs["token_b_mint"]),
        vault_a=Pubkey.from_string(inputs["token_a_vault"]),
        vault_b=Pubkey.from_string(inputs["token_b_vault"]),
        token_program_a=Pubkey.from_string(inputs["token_a_program"]),
        token_program_b=Pubkey.from_string(inputs["token_b_program"]),
        has_rate_limiter=inputs["rate_limiter_applied"],
    )


@pytest.mark.parametrize(
    "case", solana_cases("instructions_meteora_damm_v2"), ids=lambda case: case["instruction"]
)
def test_swap_instruction_reads_as_the_sdk_meant_it(case: dict[str, Any]) -> None:
    inputs = case["inputs"]
    accounts = [Pubkey.from_string(meta["pubkey"]) for meta in case["accounts"]]
    input_account = Pubkey.from_string(inputs["input_token_account"])
    input_mint = inputs["token_a_mint"] if inputs["a_to_b"] else inputs["token_b_mint"]
    call = VENUE.read_swap(
        accounts, bytes.fromhex(case["data_hex"]), {input_account: Pubkey.from_string(input_mint)}
    )
    amounts = (
        ("amount_0", "amount_1") if case["instruction"] == "swap2" else ("amount_in", "minimum_amount_out")
    )
    assert call.a_to_b is inputs["a_to_b"]
    assert call.side is (Side.BUY if inputs.get("swap_mode") == 2 else Side.SELL)
    assert (str(call.amount), str(call.threshold_amount)) == tuple(inputs[name] for name in amounts)
    assert call.partial_fill is (inputs.get("swap_mode") == 1)
    assert str(call.owner) == inputs["payer"]
    assert str(call.pool) == inputs["pool"]


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in solana_cases("instructions_meteora_damm_v2")
        if case["instruction"] == "swap2"
        and case["inputs"]["swap_mode"] != PARTIAL_FILL
        and case["inputs"]["referral_token_account"] is None
    ],
    ids=lambda case: f"mode-{case['inputs']['swap_mode']}",
)
def test_swap_instruction_is_the_sdks(case: dict[str, Any]) -> None:
    inputs = case["inputs"]
    instruction = VENUE.swap_instruction(
        _keys(inputs),
        {},
        a_to_b=inputs["a_to_b"],
        side=Side.BUY if inputs["swap_mode"] == 2 else Side.SELL,
        amount=int(inputs["amount_0"]),
        threshold_amount=int(inputs["amount_1"]),
        owner=Pubkey.from_string(inputs["payer"]),
        input_account=Pubkey.from_string(inputs["input_token_account"]),
        output_account=Pubkey.from_string(inputs["output_token_account"]),
    )
    assert str(instruction.program_id) == case["program_id"]
    assert bytes(instruction.data).hex() == case["data_hex"]
    assert [(str(meta.pubkey), meta.is_signer, meta.is_writable) for meta in instruction.accounts] == [
        (meta["pubkey"], meta["signer"], meta["writable"]) for meta in case["accounts"]
    ]


@pytest.mark.parametrize(
    "case",
    solana_cases("executions_meteora_damm_v2"),
    ids=lambda case: f"{case['fixture']}-{case['user'][:4]}",
)
def test_swap_leaves_the_accounts_as_the_program_does(case: dict[str, Any]) -> None:
    fixture = solana_fixture(case["fixture"])
    pool_address = Pubkey.from_string(fixture["pool"])
    before = {
        Pubkey.from_string(address): b64decode(account["data_base64"])
        for address, account in fixture["accounts"].items()
    }
    keys = VENUE.keys(pool_address, before[pool_address])
    assert keys is not None
    accounts = [Pubkey.from_string(meta["pubkey"]) for meta in case["accounts"]]
    input_mint, output_mint = (
        (keys.mint_a, keys.mint_b) if case["args"]["a_to_b"] else (keys.mint_b, keys.mint_a)
    )
    call = VENUE.read_swap(accounts, bytes.fromhex(case["data_hex"]), {accounts[2]: input_mint})
    outcome = _outcome(keys, before, call, Clock(case["slot"], case["unix_timestamp"]))
    if not case["ok"]:
        assert outcome == case["error_code"]
        return
    assert isinstance(outcome, Swap)
    assert case["user_delta"] == {
        str(input_mint): str(-outcome.input_amount),
        str(output_mint): str(outcome.output_amount),
    }
    written = VENUE.written(keys, before, call.a_to_b, outcome)
    assert written[pool_address] == b64decode(case["pool_after_base64"])


def _outcome(
    keys: MeteoraDammV2Keys, accounts: dict[Pubkey, bytes], call: SwapCall, clock: Clock
) -> Swap | int:
    """Return the swap, or the custom error that it ends with."""
    pool = VENUE.pool(keys, accounts)
    sells = call.side is Side.SELL
    try:
        swap = VENUE.swap(pool, call, clock)
    except SwapError as error:
        return VENUE.error_code(error.reason)
    misses = (
        swap.output_amount < call.threshold_amount if sells else swap.input_amount > call.threshold_amount
    )
    return VENUE.slippage_errors[call.side] if misses else swap


def test_pools_that_cannot_be_swapped_exactly_are_left_alone() -> None:
    address, accounts = VENUE.new_pool(Pubkey.new_unique(), Pubkey.new_unique(), 10**9, 10**9, 2_500)
    data = accounts[address].data
    assert VENUE.keys(address, data) is not None
    for change in (
        {"collect_fee_mode": 3},
        {"base_fee_mode": 3},
        {"base_fee_mode": 4},
        {"token_a_flag": 1},
        {"token_b_flag": 1},
    ):
        assert VENUE.keys(address, POOL.patch(data, **change)) is None


# ---- Pools in a price range

MINT_A, MINT_B = (Pubkey.from_bytes(bytes([number]) * 32) for number in (8, 9))
NOW = Clock(slot=500_000_000, unix_timestamp=1_750_000_000)


def _range_pool(**changes: Any) -> tuple[MeteoraDammV2Keys, dict[Pubkey, bytes]]:
    """Return a pool of about 1,000 tokens a and 100,000 tokens b, with these fields changed."""
    address, made = VENUE.new_range_pool(MINT_A, MINT_B, 1_000 * 10**9, 100_000 * 10**6, 2_500)
    data = {address: account.data for address, account in made.items()}
    data[address] = POOL.patch(data[address], **changes)
    keys = VENUE.keys(address, data[address])
    assert keys is not None
    return keys, data


def test_new_range_pool_is_at_its_price_and_goes_a_fifth_down_and_a_quarter_up() -> None:
    keys, data = _range_pool()
    pool = VENUE.pool(keys, data)
    output, input_ = pool.price(True)
    assert output / input_ == pytest.approx(0.1)
    assert (pool.sqrt_min_price / pool.sqrt_price) ** 2 == pytest.approx(0.8)
    assert (pool.sqrt_max_price / pool.sqrt_price) ** 2 == pytest.approx(1.25)
    for vault, held, most in (
        (keys.vault_a, pool.token_a_amount, 1_000 * 10**9),
        (keys.vault_b, pool.token_b_amount, 100_000 * 10**6),
    ):
        assert token_amount(data[vault]) == held
        assert most * 0.99 < held <= most
    # Concentrated so, it gives for a hundredth of what it holds what nine times as much would on x*y = k.
    whole = isqrt(pool.token_a_amount * pool.token_b_amount) << 64
    assert 8 < pool.liquidity / whole < 10


@pytest.mark.parametrize("collect_fee_mode", [CollectFeeMode.OUTPUT, CollectFeeMode.ONLY_B])
@pytest.mark.parametrize("a_to_b", [True, False])
@pytest.mark.parametrize("side", Side)
def test_swapped_range_pool_reads_back_from_the_bytes_written(
    collect_fee_mode: CollectFeeMode, a_to_b: bool, side: Side
) -> None:
    keys, data = _range_pool(collect_fee_mode=collect_fee_mode)
    for later in (0, 15, 30):
        # The volatility that the one before left behind decides the fee of the next.
        now = Clock(NOW.slot, NOW.unix_timestamp + later)
        pool = VENUE.pool(keys, data)
        swap_of = pool.swap_exact_in if side is Side.SELL else pool.swap_exact_out
        swap = swap_of(a_to_b, 10**8 * (100 if a_to_b is (side is Side.SELL) else 10), now)
        data |= VENUE.written(keys, data, a_to_b, swap)
        assert VENUE.pool(keys, data) == swap.pool
        assert pool.dynamic_fee != VENUE.pool(keys, data).dynamic_fee


@pytest.mark.parametrize("a_to_b", [True, False])
def test_swap_that_would_leave_the_range_ends_with_the_programs_code(a_to_b: bool) -> None:
    keys, data = _range_pool()
    with pytest.raises(SwapError) as refused:
        VENUE.pool(keys, data).swap_exact_in(a_to_b, 10**13, NOW)
    assert VENUE.error_code(refused.value.reason) == 6015


@pytest.mark.parametrize("a_to_b", [True, False])
def test_partial_fill_spends_what_the_range_takes(a_to_b: bool) -> None:
    keys, data = _range_pool()
    pool = VENUE.pool(keys, data)
    whole = SwapCall(keys.pool, a_to_b, Side.SELL, 10**13, 0, MINT_A, MINT_A, MINT_B)
    with pytest.raises(SwapError):
        VENUE.swap(pool, whole, NOW)
    swap = VENUE.swap(pool, replace(whole, partial_fill=True), NOW)
    assert 0 < swap.input_amount < whole.amount
    assert isinstance(swap.pool, MeteoraDammV2Pool)
    assert swap.pool.sqrt_price == (pool.sqrt_min_price if a_to_b else pool.sqrt_max_price)
    assert VENUE.swap(pool, replace(whole, amount=10**6, partial_fill=True), NOW) == VENUE.swap(
        pool, replace(whole, amount=10**6), NOW
    )


def test_rate_limiter_is_read_and_its_swaps_show_their_transaction() -> None:
    limiter = {
        "base_fee_mode": 2,
        "collect_fee_mode": CollectFeeMode.ONLY_B,
        "number_of_period": 16,
        "period_frequency": 600 | 5_000 << 32,
        "reduction_factor": 10**6,
        "activation_point": NOW.unix_timestamp,
    }
    keys, data = _range_pool(**limiter)
    pool = VENUE.pool(keys, data)
    assert pool.base_fee == RateLimiter(
        2_500_000, fee_increment_bps=16, max_limiter_duration=600, max_fee_bps=5_000, reference_amount=10**6
    )
    # The tenth unit of reference pays 10 * 16 basis points more than the first.
    small, large = (pool.swap_exact_in(False, units * 10**6, NOW).fee_ppm for units in (1, 11))
    assert (small, large) == (2_500, 2_500 + 1_600 * 10 // 2)
    for a_to_b in (True, False):
        instruction = VENUE.swap_instruction(
            keys,
            data,
            a_to_b=a_to_b,
            side=Side.SELL,
            amount=1,
            threshold_amount=0,
            owner=MINT_A,
            input_account=MINT_A,
            output_account=MINT_A,
        )
        assert (instruction.accounts[-1].pubkey == INSTRUCTIONS_SYSVAR) is not a_to_b
