"""Raydium CLMM accounts, tick arrays and instructions against its SDK's own bytes."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import pytest
from solders.pubkey import Pubkey

from engine.domain.order import FailureReason, Side
from engine.domain.pools.pool import Clock, SwapError, SwapRefusal
from engine.domain.pools.raydium_clmm import DynamicFee, FeeOn, Tick
from engine.domain.tokens import SOL, USDC
from engine.solana.accounts import TOKEN_ACCOUNT
from engine.solana.wire import Layout, account_discriminator, raw, u16, u32
from engine.venues.raydium_clmm import (
    AMM_CONFIG,
    ARRAYS_PER_SWAP,
    BITMAP_EXTENSION,
    DYNAMIC_FEE_INFO,
    MAX_TICKS,
    OBSERVATION_STATE,
    POOL_STATE,
    TICK_ARRAY,
    TICKS_PER_ARRAY,
    VENUE,
    DynamicFeeInfo,
    PoolState,
    RaydiumClmmKeys,
    TickArrayBitmapExtension,
    array_bits,
    read_ticks,
    tick_array_address,
    tick_array_start,
)
from tests.published_vectors import solana_cases


@dataclass(frozen=True, slots=True)
class DynamicFeeConfig:
    """What new pools take their dynamic fee from. No swap reads it, and so the engine does not either."""

    index: u16
    filter_period: u16
    decay_period: u16
    reduction_factor: u16
    dynamic_fee_control: u32
    max_volatility_accumulator: u32
    padding: Annotated[bytes, raw(64)]


LAYOUTS: dict[str, Any] = {
    "AmmConfig": AMM_CONFIG,
    "PoolState": POOL_STATE,
    "TickArrayState": TICK_ARRAY,
    "TickArrayBitmapExtension": BITMAP_EXTENSION,
    "ObservationState": OBSERVATION_STATE,
    "TokenAccount": TOKEN_ACCOUNT,
    "DynamicFeeConfig": Layout(DynamicFeeConfig, discriminator=account_discriminator("DynamicFeeConfig")),
}
ELSEWHERE = {
    "tick_array_bitmap_set_bits",
    "tick_array_bitmap_start_indexes",
    "dynamic_fee_info",
    "initialized_ticks",
    "positive_set_bits",
    "negative_set_bits",
    "observations_head",
}
"""What a case tells of bytes that the layout carries whole; the tests below read them."""
CASES = solana_cases("accounts_raydium_clmm")
NOW = Clock(400_000_000, 1_750_000_000)


def _cases(account_type: str) -> list[Any]:
    return [
        pytest.param(case, id=case["address"][:6]) for case in CASES if case["account_type"] == account_type
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['account_type']}-{case['address'][:6]}")
def test_account_decodes_and_encodes_to_the_same_bytes(case: dict[str, Any]) -> None:
    layout, data = LAYOUTS[case["account_type"]], b64decode(case["data_base64"])
    account = layout.decode(data)
    told = {name: value for name, value in case["decoded"].items() if name not in ELSEWHERE}
    assert {name: str(getattr(account, name)) for name in told} == {
        name: str(value) for name, value in told.items()
    }
    assert layout.encode(account) == data
    assert layout.size == len(data) == case["size"]


@pytest.mark.parametrize("case", _cases("PoolState"))
def test_dynamic_fee_lies_inside_of_the_pool(case: dict[str, Any]) -> None:
    info = DYNAMIC_FEE_INFO.decode(POOL_STATE.decode(b64decode(case["data_base64"])).dynamic_fee_info)
    told = case["decoded"]["dynamic_fee_info"]
    assert {name: str(getattr(info, name)) for name in told} == {
        name: str(value) for name, value in told.items()
    }


# ---- Ticks and where their arrays are ------------------------------------------------------------


@pytest.mark.parametrize("case", _cases("TickArrayState"))
def test_initialised_ticks_are_read_from_their_array(case: dict[str, Any]) -> None:
    found = read_ticks(b64decode(case["data_base64"]))
    told = case["decoded"]["initialized_ticks"]
    assert found.ticks == tuple(Tick(tick["tick"], int(tick["liquidity_net"])) for tick in told)
    assert len(found.ticks) == case["decoded"]["initialized_tick_count"]
    spacing = case["tick_spacing"]
    for tick in told:
        start = tick_array_start(tick["tick"], spacing)
        assert start == case["decoded"]["start_tick_index"]
        assert tick["tick"] == start + tick["offset"] * spacing
    pool = Pubkey.from_string(case["decoded"]["pool_id"])
    assert str(tick_array_address(pool, case["decoded"]["start_tick_index"])) == case["address"]


@pytest.mark.parametrize(
    "case",
    [case for case in solana_cases("index_math") if case["kind"] == "clmm.tick_array_start_index"],
    ids=lambda case: f"{case['tick']}-{case['tick_spacing']}",
)
def test_array_of_a_tick_is_the_sdks(case: dict[str, Any]) -> None:
    tick, spacing = case["tick"], case["tick_spacing"]
    start = tick_array_start(tick, spacing)
    assert start == case["start_tick_index"]
    assert (tick - start) // spacing == case["offset_in_array"]
    assert start // (TICKS_PER_ARRAY * spacing) + 512 == case["bitmap_bit"]


@pytest.mark.parametrize("case", _cases("PoolState"))
def test_arrays_of_the_pools_own_bitmap_are_found(case: dict[str, Any]) -> None:
    told = case["decoded"]
    state = POOL_STATE.decode(b64decode(case["data_base64"]))
    span = TICKS_PER_ARRAY * state.tick_spacing
    starts = told["tick_array_bitmap_start_indexes"]
    assert starts == [(bit - 512) * span for bit in told["tick_array_bitmap_set_bits"]]
    for extension in (None, BITMAP_EXTENSION.encode(TickArrayBitmapExtension(Pubkey.default()))):
        assert _starts(array_bits(state.tick_array_bitmap, extension), span) == starts


@pytest.mark.parametrize("case", _cases("TickArrayBitmapExtension"))
def test_arrays_of_the_extension_are_found_beyond_those_of_the_pool(case: dict[str, Any]) -> None:
    told = case["decoded"]
    positive = [bit + 512 for bit in told["positive_set_bits"]]
    # A group of 512 runs upwards; the groups run downwards from the lowest array in the pool's own bitmap.
    negative = [bit % 512 - 512 * (bit // 512 + 2) for bit in told["negative_set_bits"]]
    own = [-512, 0, 511]
    bitmap = sum(1 << array + 512 for array in own).to_bytes(128, "little")
    found = _starts(array_bits(bitmap, b64decode(case["data_base64"])), 1)
    assert found == sorted([*negative, *own, *positive])


def _starts(bits: int, span: int) -> list[int]:
    return [(bit - 15 * 512) * span for bit in range(bits.bit_length()) if bits >> bit & 1]


# ---- Instructions --------------------------------------------------------------------------------

INSTRUCTIONS = solana_cases("instructions_raydium_clmm")
ADDRESSES = [case for case in solana_cases("pdas") if case["name"] == "clmm.tick_array"]


def _pubkeys(inputs: Mapping[str, Any]) -> dict[str, Pubkey]:
    return {
        name: Pubkey.from_string(value)
        for name, value in inputs.items()
        if isinstance(value, str) and len(value) > 30 and not value.isdecimal()
    }


def _with_arrays(case: dict[str, Any]) -> tuple[int, bool, dict[Pubkey, bytes]]:
    """Return tick spacing, whether the case's arrays run down, and accounts whose bitmaps have just these."""
    first, second = (
        next(address["inputs"] for address in ADDRESSES if address["address"] == array)
        for array in case["inputs"]["tick_arrays"][:2]
    )
    spacing, start = first["tick_spacing"], first["start_tick_index"]
    span = TICKS_PER_ARRAY * spacing
    step = (second["start_tick_index"] - start) // span
    bitmap, positive, negative = bytearray(128), bytearray(896), bytearray(896)
    for array in range(start // span, start // span + 3 * step, step):
        if -512 <= array < 512:
            half, bit = bitmap, array + 512
        elif array > 0:
            half, bit = positive, array - 512
        else:
            half, bit = negative, (-2 - array // 512) * 512 + array % 512
        half[bit // 8] |= 1 << bit % 8
    inputs = _pubkeys(case["inputs"])
    pool = inputs["pool_state"]
    extension = TickArrayBitmapExtension(pool, bytes(positive), bytes(negative))
    return (
        spacing,
        step < 0,
        {
            pool: POOL_STATE.encode(PoolState(tick_current=start + 1, tick_array_bitmap=bytes(bitmap))),
            inputs["tick_array_bitmap_extension"]: BITMAP_EXTENSION.encode(extension),
        },
    )


@pytest.mark.parametrize(
    "case",
    [case for case in INSTRUCTIONS if case["instruction"] == "swap_v2"],
    ids=lambda case: case["inputs"]["amount"],
)
def test_swap_instruction_is_the_sdks(case: dict[str, Any]) -> None:
    inputs = _pubkeys(case["inputs"])
    # The cases' arrays say which way they go, whatever their mints are.
    spacing, a_to_b, accounts = _with_arrays(case)
    first, second = ("input", "output") if a_to_b else ("output", "input")
    keys = RaydiumClmmKeys(
        pool=inputs["pool_state"],
        mint_a=inputs[f"{first}_vault_mint"],
        mint_b=inputs[f"{second}_vault_mint"],
        vault_a=inputs[f"{first}_vault"],
        vault_b=inputs[f"{second}_vault"],
        amm_config=inputs["amm_config"],
        observation=inputs["observation_state"],
        bitmap_extension=inputs["tick_array_bitmap_extension"],
        tick_spacing=spacing,
    )
    sells = case["inputs"]["is_base_input"]
    instruction = VENUE.swap_instruction(
        keys,
        accounts,
        a_to_b=a_to_b,
        side=Side.SELL if sells else Side.BUY,
        amount=int(case["inputs"]["amount"]),
        threshold_amount=int(case["inputs"]["other_amount_threshold"]),
        owner=inputs["payer"],
        input_account=inputs["input_token_account"],
        output_account=inputs["output_token_account"],
    )
    assert str(instruction.program_id) == case["program_id"]
    # The engine sets no price limit: it wants the whole amount, within the threshold.
    assert bytes(instruction.data) == _without_limit(case)
    assert [(str(meta.pubkey), meta.is_signer, meta.is_writable) for meta in instruction.accounts] == [
        (meta["pubkey"], meta["signer"], meta["writable"]) for meta in case["accounts"]
    ]


def _without_limit(case: dict[str, Any]) -> bytes:
    data = bytes.fromhex(case["data_hex"])
    assert str(int.from_bytes(data[24:40], "little")) == case["inputs"]["sqrt_price_limit_x64"]
    return data[:24] + bytes(16) + data[40:]


@pytest.mark.parametrize(
    "case", INSTRUCTIONS, ids=lambda case: f"{case['instruction']}-{case['inputs']['amount']}"
)
def test_swap_instruction_of_both_forms_reads_as_the_sdk_meant_it(case: dict[str, Any]) -> None:
    inputs = _pubkeys(case["inputs"])
    accounts = [Pubkey.from_string(meta["pubkey"]) for meta in case["accounts"]]
    mints = {inputs[f"{way}_token_account"]: inputs[f"{way}_vault_mint"] for way in ("input", "output")}
    call = VENUE.read_swap(accounts, _without_limit(case), mints)
    assert call.side is (Side.SELL if case["inputs"]["is_base_input"] else Side.BUY)
    assert str(call.amount) == case["inputs"]["amount"]
    assert str(call.threshold_amount) == case["inputs"]["other_amount_threshold"]
    assert (call.pool, call.owner) == (inputs["pool_state"], inputs["payer"])
    assert call.a_to_b is (bytes(inputs["input_vault_mint"]) < bytes(inputs["output_vault_mint"]))
    assert {str(address) for address in call.arrays} == {
        case["inputs"]["tick_array_bitmap_extension"],
        *case["inputs"]["tick_arrays"],
    }
    if case["inputs"]["sqrt_price_limit_x64"] != "0":
        with pytest.raises(ValueError, match="price limit"):
            VENUE.read_swap(accounts, bytes.fromhex(case["data_hex"]), mints)


# ---- A pool and its ticks ------------------------------------------------------------------------

SPAN = 60 * TICKS_PER_ARRAY


def _new_pool() -> tuple[RaydiumClmmKeys, dict[Pubkey, bytes]]:
    mints = Pubkey.from_string(SOL.mint), Pubkey.from_string(USDC.mint)
    address, made = VENUE.new_pool(*mints, 1_000 * 10**9, 100_000 * 10**6, 2_500)
    data = {key: account.data for key, account in made.items()}
    keys = VENUE.keys(address, data[address])
    assert keys is not None
    return keys, data


def _starts_named(keys: RaydiumClmmKeys, data: Mapping[Pubkey, bytes], a_to_b: bool) -> list[int]:
    """Return the first ticks of the arrays that a swap names, in its order."""
    instruction = VENUE.swap_instruction(
        keys,
        data,
        a_to_b=a_to_b,
        side=Side.SELL,
        amount=1,
        threshold_amount=1,
        owner=keys.pool,
        input_account=keys.pool,
        output_account=keys.pool,
    )
    named = [meta.pubkey for meta in instruction.accounts[13:]]
    if keys.bitmap_extension in data:
        assert named.pop(0) == keys.bitmap_extension
    return [TICK_ARRAY.decode(data[address]).start_tick_index for address in named]


def test_swap_names_the_arrays_in_the_order_it_comes_through_them() -> None:
    keys, data = _new_pool()
    pool = VENUE.pool(keys, data)
    start = tick_array_start(pool.tick_current, 60)
    assert _starts_named(keys, data, True) == [start, start - SPAN]
    assert _starts_named(keys, data, False) == [start, start + SPAN]
    # In another array the same arrays are others' neighbours.
    moved = data | {keys.pool: POOL_STATE.patch(data[keys.pool], tick_current=start + SPAN)}
    assert _starts_named(keys, moved, True) == [start + SPAN, start, start - SPAN]
    assert _starts_named(keys, moved, False) == [start + SPAN]
    assert ARRAYS_PER_SWAP == 3


def test_pool_without_an_extension_names_none() -> None:
    keys, data = _new_pool()
    arrays = _starts_named(keys, data, True)
    del data[keys.bitmap_extension]
    assert _starts_named(keys, data, True) == arrays
    assert VENUE.pool(keys, data).ticks


def test_pool_is_known_as_far_as_its_arrays_are_there() -> None:
    keys, data = _new_pool()
    pool = VENUE.pool(keys, data)
    start = tick_array_start(pool.tick_current, 60)
    below, above = (tick_array_address(keys.pool, start + step) for step in (-SPAN, SPAN))
    without = {key: value for key, value in data.items() if key != above}
    known = VENUE.pool(keys, without)
    assert known.ticks == tuple(tick for tick in pool.ticks if tick.tick < start + SPAN)
    small = known.swap_exact_in(True, 10**9, NOW)
    assert small.output_amount == pool.swap_exact_in(True, 10**9, NOW).output_amount
    # Without the array of the price itself nothing is known either way, though its neighbours are there.
    del without[tick_array_address(keys.pool, start)]
    assert below in without
    assert VENUE.pool(keys, without).ticks == ()


def test_pool_with_many_ticks_is_known_as_far_as_compute_units_are_enough() -> None:
    keys, data = _new_pool()
    pool = VENUE.pool(keys, data)
    start = tick_array_start(pool.tick_current, 60)
    address = tick_array_address(keys.pool, start)
    ticks = bytearray(TICKS_PER_ARRAY * 168)
    for place in range(TICKS_PER_ARRAY):
        ticks[place * 168 : place * 168 + 4] = (start + place * 60).to_bytes(4, "little", signed=True)
        ticks[place * 168 + 20] = 1
    known = VENUE.pool(keys, data | {address: TICK_ARRAY.patch(data[address], ticks=bytes(ticks))})
    below = [tick for tick, _ in known.ticks if tick <= pool.tick_current]
    above = [tick for tick, _ in known.ticks if tick > pool.tick_current]
    assert len(below) == len(above) == MAX_TICKS
    assert all(later - earlier == 60 for earlier, later in pairwise([*below, *above]))


def _with_orders(data: bytes, tick: int, at: int) -> bytes:
    """Return a tick array in which limit orders wait at a tick."""
    array = TICK_ARRAY.decode(data)
    ticks = bytearray(array.ticks)
    place = (tick - array.start_tick_index) // 60 * 168
    ticks[place : place + 4] = tick.to_bytes(4, "little", signed=True)
    ticks[place + at : place + at + 8] = (1).to_bytes(8, "little")
    return TICK_ARRAY.patch(data, ticks=bytes(ticks))


@pytest.mark.parametrize("at", [124, 132], ids=["waiting", "partly filled"])
@pytest.mark.parametrize("above", [True, False])
def test_pool_is_quoted_up_to_limit_orders_and_no_farther(above: bool, at: int) -> None:
    keys, data = _new_pool()
    pool = VENUE.pool(keys, data)
    ordered = next(tick for tick, _ in (pool.ticks[5:] if above else pool.ticks[2::-1]))
    address = tick_array_address(keys.pool, tick_array_start(ordered, 60))
    cut = VENUE.pool(keys, data | {address: _with_orders(data[address], ordered, at)})
    assert cut.ticks == tuple(
        tick for tick in pool.ticks if (tick.tick < ordered if above else tick.tick > ordered)
    )
    near, far = 10**8, 900 * 10**9 if not above else 90_000 * 10**6
    a_to_b = not above
    if keys.mint_a != Pubkey.from_string(SOL.mint):
        far = 90_000 * 10**6 if a_to_b else 900 * 10**9
    assert cut.swap_exact_in(a_to_b, near, NOW).output_amount == (
        pool.swap_exact_in(a_to_b, near, NOW).output_amount
    )
    with pytest.raises(SwapError) as refused:
        cut.swap_exact_in(a_to_b, far, NOW)
    assert refused.value.reason is SwapRefusal.INSUFFICIENT_LIQUIDITY


def test_dynamic_fee_is_read_used_and_written() -> None:
    keys, data = _new_pool()
    info = DynamicFeeInfo(30, 600, 5_000, 40_000, 300_000, 0, 0, 0, 0)
    data[keys.pool] = POOL_STATE.patch(
        data[keys.pool], dynamic_fee_info=DYNAMIC_FEE_INFO.encode(info), fee_on=FeeOn.ONLY_TOKEN_1
    )
    pool = VENUE.pool(keys, data)
    assert pool.dynamic_fee == DynamicFee(30, 600, 5_000, 40_000, 300_000, 0, 0, 0, 0)
    assert pool.fee_on is FeeOn.ONLY_TOKEN_1
    swap = pool.swap_exact_in(True, 50 * 10**9, NOW)
    after = data | VENUE.written(keys, data, True, swap)
    assert VENUE.pool(keys, after) == swap.pool
    written = DYNAMIC_FEE_INFO.decode(POOL_STATE.decode(after[keys.pool]).dynamic_fee_info)
    assert written.last_update_timestamp == NOW.unix_timestamp
    assert written.volatility_accumulator > 0


def test_swap_over_many_ticks_is_written_back_as_the_curve_left_it() -> None:
    keys, data = _new_pool()
    pool = VENUE.pool(keys, data)
    way = keys.mint_a == Pubkey.from_string(SOL.mint)
    swap = pool.swap_exact_in(way, 400 * 10**9, NOW)
    after = data | VENUE.written(keys, data, way, swap)
    moved = VENUE.pool(keys, after)
    assert moved == swap.pool
    assert moved.liquidity < pool.liquidity
    assert abs(moved.tick_current - pool.tick_current) > 360


def test_too_little_of_the_input_token_means_for_a_purchase_that_its_price_has_moved() -> None:
    sold, bought = bytes(40) + b"\x01", bytes(40) + b"\x00"
    assert VENUE.failure_reason(1, sold)[0] is FailureReason.INSUFFICIENT_FUNDS
    assert VENUE.failure_reason(1, bought)[0] is FailureReason.SLIPPAGE_EXCEEDED
