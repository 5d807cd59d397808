"""Raydium CPMM accounts, addresses and instructions against its SDK's own bytes."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import pytest
from solders.pubkey import Pubkey

from engine.domain.order import Side
from engine.domain.pools.raydium_cpmm import CreatorFeeOn
from engine.solana.accounts import TOKEN_ACCOUNT
from engine.solana.programs import TOKEN_2022_PROGRAM
from engine.venues.raydium_cpmm import (
    AMM_CONFIG,
    OBSERVATION_STATE,
    POOL_STATE,
    VENUE,
    RaydiumCpmmKeys,
)
from tests.published_vectors import solana_cases

LAYOUTS: dict[str, Any] = {
    "AmmConfig": AMM_CONFIG,
    "PoolState": POOL_STATE,
    "ObservationState": OBSERVATION_STATE,
    "TokenAccount": TOKEN_ACCOUNT,
}
CASES = solana_cases("accounts_raydium_cpmm")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['account_type']}-{case['address'][:6]}")
def test_account_decodes_and_encodes_to_the_same_bytes(case: dict[str, Any]) -> None:
    layout, data = LAYOUTS[case["account_type"]], b64decode(case["data_base64"])
    account = layout.decode(data)
    # "current" is one entry of the price history, which is carried unread.
    told = {name: value for name, value in case["decoded"].items() if name != "current"}
    assert {name: str(getattr(account, name)) for name in told} == {
        name: str(value) for name, value in told.items()
    }
    assert layout.encode(account) == data
    assert layout.size == case["size"]


@pytest.mark.parametrize(
    "case", solana_cases("instructions_raydium_cpmm"), ids=lambda case: case["instruction"]
)
def test_swap_instruction_is_the_sdks(case: dict[str, Any]) -> None:
    inputs: dict[str, Any] = {
        name: Pubkey.from_string(value) if not value.isdecimal() else int(value)
        for name, value in case["inputs"].items()
    }
    a_to_b = bytes(inputs["input_token_mint"]) < bytes(inputs["output_token_mint"])
    first, second = ("input", "output") if a_to_b else ("output", "input")
    keys = RaydiumCpmmKeys(
        pool=inputs["pool_state"],
        mint_a=inputs[f"{first}_token_mint"],
        mint_b=inputs[f"{second}_token_mint"],
        vault_a=inputs[f"{first}_vault"],
        vault_b=inputs[f"{second}_vault"],
        token_program_a=inputs[f"{first}_token_program"],
        token_program_b=inputs[f"{second}_token_program"],
        amm_config=inputs["amm_config"],
        observation=inputs["observation_state"],
    )
    sells = case["instruction"] == "swap_base_input"
    instruction = VENUE.swap_instruction(
        keys,
        {},
        a_to_b=a_to_b,
        side=Side.SELL if sells else Side.BUY,
        amount=inputs["amount_in" if sells else "amount_out_received"],
        threshold_amount=inputs["minimum_amount_out" if sells else "max_amount_in"],
        owner=inputs["payer"],
        input_account=inputs["input_token_account"],
        output_account=inputs["output_token_account"],
    )
    assert str(instruction.program_id) == case["program_id"]
    assert bytes(instruction.data).hex() == case["data_hex"]
    assert [(str(meta.pubkey), meta.is_signer, meta.is_writable) for meta in instruction.accounts] == [
        (meta["pubkey"], meta["signer"], meta["writable"]) for meta in case["accounts"]
    ]


def _published_pool() -> tuple[RaydiumCpmmKeys, dict[Pubkey, bytes], dict[str, Any]]:
    """Return one published pool: its keys, all its accounts, and what its vaults say of themselves."""
    state = next(case for case in CASES if case["account_type"] == "PoolState")
    accounts = {Pubkey.from_string(case["address"]): b64decode(case["data_base64"]) for case in CASES}
    pool = Pubkey.from_string(state["address"])
    keys = VENUE.keys(pool, accounts[pool])
    assert keys is not None
    vaults = {case["role"]: case for case in CASES if case.get("pool") == state["address"] and "role" in case}
    return keys, accounts, vaults


def test_pool_leaves_accrued_fees_out_of_its_reserves() -> None:
    keys, accounts, vaults = _published_pool()
    pool = VENUE.pool(keys, accounts)
    assert str(pool.reserve_0) == vaults["token_0_vault"]["effective_reserve"]
    assert str(pool.reserve_1) == vaults["token_1_vault"]["effective_reserve"]


def test_creator_fee_counts_only_where_it_is_enabled() -> None:
    keys, accounts, _ = _published_pool()
    accounts[keys.amm_config] = AMM_CONFIG.patch(accounts[keys.amm_config], creator_fee_rate=500)
    for enabled, rate in ((False, 0), (True, 500)):
        accounts[keys.pool] = POOL_STATE.patch(
            accounts[keys.pool], enable_creator_fee=enabled, creator_fee_on=CreatorFeeOn.ONLY_TOKEN_1
        )
        pool = VENUE.pool(keys, accounts)
        assert pool.rates.creator == rate
        assert pool.creator_fee_on is CreatorFeeOn.ONLY_TOKEN_1


def test_pools_of_token_2022_mints_are_left_alone() -> None:
    keys, accounts, _ = _published_pool()
    other = POOL_STATE.patch(accounts[keys.pool], token_1_program=TOKEN_2022_PROGRAM)
    assert VENUE.keys(keys.pool, other) is None
