"""Meteora DAMM v2 accounts and instructions against its SDK's bytes, and swaps against its program's."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import pytest
from solders.pubkey import Pubkey

from engine.domain.order import Side
from engine.domain.pools.pool import Clock, Swap, SwapError
from engine.solana.accounts import TOKEN_ACCOUNT
from engine.venues.meteora_damm_v2 import COMPOUNDING, POOL, VENUE
from engine.venues.venue import PoolKeys, SwapCall
from tests.published_vectors import solana_cases, solana_fixture

LAYOUTS: dict[str, Any] = {"Pool": POOL, "TokenAccount": TOKEN_ACCOUNT}
PARTIAL_FILL = 1


def _flat(decoded: dict[str, Any]) -> dict[str, str]:
    """Return a decoded account in our names: the base fee's own, the dynamic fee's with a prefix."""
    flat: dict[str, Any] = {}
    for name, value in decoded.items():
        if name == "base_fee":
            flat |= value
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
    if told.get("base_fee_mode", "0") in ("0", "1"):
        assert {name: str(getattr(account, name)) for name in told} == told
    assert layout.encode(account) == data
    assert layout.size == case["size"]


def _keys(inputs: dict[str, Any]) -> PoolKeys:
    return PoolKeys(
        pool=Pubkey.from_string(inputs["pool"]),
        mint_a=Pubkey.from_string(inputs["token_a_mint"]),
        mint_b=Pubkey.from_string(inputs["token_b_mint"]),
        vault_a=Pubkey.from_string(inputs["token_a_vault"]),
        vault_b=Pubkey.from_string(inputs["token_b_vault"]),
        token_program_a=Pubkey.from_string(inputs["token_a_program"]),
        token_program_b=Pubkey.from_string(inputs["token_b_program"]),
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
        and not case["inputs"]["rate_limiter_applied"]
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


def _is_compounding(fixture: str) -> bool:
    if not fixture.startswith("damm_v2_"):
        return False
    try:
        accounts = solana_fixture(fixture)
    except FileNotFoundError:
        return False
    data = b64decode(accounts["accounts"][accounts["pool"]]["data_base64"])
    return POOL.decode(data).collect_fee_mode == COMPOUNDING


@pytest.mark.parametrize(
    "case",
    [case for case in solana_cases("executions_meteora_damm_v2") if _is_compounding(case["fixture"])],
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


def _outcome(keys: PoolKeys, accounts: dict[Pubkey, bytes], call: SwapCall, clock: Clock) -> Swap | int:
    """Return the swap, or the custom error that it ends with."""
    pool = VENUE.pool(keys, accounts)
    sells = call.side is Side.SELL
    try:
        swap = (pool.swap_exact_in if sells else pool.swap_exact_out)(call.a_to_b, call.amount, clock)
    except SwapError as error:
        return VENUE.error_code(error.reason)
    misses = (
        swap.output_amount < call.threshold_amount if sells else swap.input_amount > call.threshold_amount
    )
    return VENUE.slippage_errors[call.side] if misses else swap


def test_pools_that_are_not_compounding_are_left_alone() -> None:
    address, accounts = VENUE.new_pool(Pubkey.new_unique(), Pubkey.new_unique(), 10**9, 10**9, 2_500)
    data = accounts[address].data
    assert VENUE.keys(address, data) is not None
    for change in (
        {"collect_fee_mode": 0},
        {"collect_fee_mode": 1},
        {"base_fee_mode": 2},
        {"token_a_flag": 1},
        {"token_b_flag": 1},
    ):
        assert VENUE.keys(address, POOL.patch(data, **change)) is None
