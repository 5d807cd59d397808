"""Raydium AMM v4 accounts and instructions against its SDK's own bytes."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import pytest
from solders.pubkey import Pubkey

from engine.domain.order import FailureReason, Side
from engine.domain.pools.pool import Clock
from engine.domain.pools.raydium_amm_v4 import AmmStatus
from engine.solana.accounts import TOKEN_ACCOUNT
from engine.solana.wire import WireError
from engine.venues.raydium_amm_v4 import AMM_INFO, AUTHORITY, VENUE
from engine.venues.venue import PoolKeys
from tests.published_vectors import solana_cases

LAYOUTS: dict[str, Any] = {"AmmInfo": AMM_INFO, "TokenAccount": TOKEN_ACCOUNT}
CASES = solana_cases("accounts_raydium_amm_v4")
INSTRUCTIONS = solana_cases("instructions_raydium_amm_v4")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['account_type']}-{case['address'][:6]}")
def test_account_decodes_and_encodes_to_the_same_bytes(case: dict[str, Any]) -> None:
    layout, data = LAYOUTS[case["account_type"]], b64decode(case["data_base64"])
    account = layout.decode(data)
    told = case["decoded"]
    assert {name: str(getattr(account, name)) for name in told} == {
        name: str(value) for name, value in told.items()
    }
    assert layout.encode(account) == data
    assert layout.size == case["size"]


def _id(case: dict[str, Any]) -> str:
    return f"{case['instruction']}-{case['inputs']['amm'][:4]}"


def _amounts(case: dict[str, Any]) -> tuple[Side, int, int]:
    """Return side, amount and threshold of a case."""
    inputs = case["inputs"]
    if "amount_in" in inputs:
        return Side.SELL, int(inputs["amount_in"]), int(inputs["minimum_amount_out"])
    return Side.BUY, int(inputs["amount_out"]), int(inputs["max_amount_in"])


@pytest.mark.parametrize("case", [case for case in INSTRUCTIONS if len(case["accounts"]) == 8], ids=_id)
def test_swap_instruction_is_the_sdks(case: dict[str, Any]) -> None:
    inputs = case["inputs"]
    keys = PoolKeys(
        pool=Pubkey.from_string(inputs["amm"]),
        mint_a=Pubkey.default(),
        mint_b=Pubkey.default(),
        vault_a=Pubkey.from_string(inputs["coin_vault"]),
        vault_b=Pubkey.from_string(inputs["pc_vault"]),
    )
    side, amount, threshold_amount = _amounts(case)
    instruction = VENUE.swap_instruction(
        keys,
        {},
        a_to_b=True,
        side=side,
        amount=amount,
        threshold_amount=threshold_amount,
        owner=Pubkey.from_string(inputs["user_owner"]),
        input_account=Pubkey.from_string(inputs["user_source"]),
        output_account=Pubkey.from_string(inputs["user_destination"]),
    )
    assert str(instruction.program_id) == case["program_id"]
    assert bytes(instruction.data).hex() == case["data_hex"]
    assert [(str(meta.pubkey), meta.is_signer, meta.is_writable) for meta in instruction.accounts] == [
        (meta["pubkey"], meta["signer"], meta["writable"]) for meta in case["accounts"]
    ]


@pytest.mark.parametrize("a_to_b", [True, False])
@pytest.mark.parametrize("case", INSTRUCTIONS, ids=_id)
def test_swap_instruction_of_every_form_reads_as_the_sdk_meant_it(case: dict[str, Any], a_to_b: bool) -> None:
    inputs = {name: Pubkey.from_string(value) for name, value in case["inputs"].items() if len(value) > 30}
    coin, pc = Pubkey.new_unique(), Pubkey.new_unique()
    call = VENUE.read_swap(
        [Pubkey.from_string(meta["pubkey"]) for meta in case["accounts"]],
        bytes.fromhex(case["data_hex"]),
        {
            inputs["coin_vault"]: coin,
            inputs["pc_vault"]: pc,
            inputs["user_source"]: coin if a_to_b else pc,
            inputs["user_destination"]: pc if a_to_b else coin,
        },
    )
    assert (call.side, call.amount, call.threshold_amount) == _amounts(case)
    assert call.a_to_b is a_to_b
    assert (call.pool, call.owner) == (inputs["amm"], inputs["user_owner"])
    assert (call.input_account, call.output_account) == (inputs["user_source"], inputs["user_destination"])


@pytest.mark.parametrize("count", [0, 7, 9, 16, 19])
def test_swap_with_another_number_of_accounts_is_none(count: int) -> None:
    data = bytes.fromhex(INSTRUCTIONS[0]["data_hex"])
    with pytest.raises(ValueError, match="not a swap"):
        VENUE.read_swap([Pubkey.default()] * count, data, {})


POOLS = {case["address"]: b64decode(case["data_base64"]) for case in CASES if case["size"] == AMM_INFO.size}


def _published_pool(address: str = "") -> tuple[PoolKeys, dict[Pubkey, bytes]]:
    """Return a published pool: its keys, and all accounts that are published."""
    accounts = {Pubkey.from_string(case["address"]): b64decode(case["data_base64"]) for case in CASES}
    pool = Pubkey.from_string(address or next(iter(POOLS)))
    keys = VENUE.keys(pool, accounts[pool])
    assert keys is not None
    return keys, accounts


@pytest.mark.parametrize(
    "vault",
    [case for case in CASES if case.get("pool") in POOLS],
    ids=lambda case: f"{case['role']}-{case['address'][:6]}",
)
def test_pool_leaves_what_others_have_earned_out_of_its_reserves(vault: dict[str, Any]) -> None:
    keys, accounts = _published_pool(vault["pool"])
    # Of some pools only one vault is published.
    for key in (keys.vault_a, keys.vault_b):
        accounts.setdefault(key, b64decode(vault["data_base64"]))
    pool = VENUE.pool(keys, accounts)
    if vault["role"] == "coin_vault":
        reserve, mint = pool.coin_vault - pool.need_take_pnl_coin, keys.mint_a
    else:
        reserve, mint = pool.pc_vault - pool.need_take_pnl_pc, keys.mint_b
    assert str(reserve) == vault["effective_reserve"]
    assert str(mint) == vault["decoded"]["mint"]
    assert vault["decoded"]["owner"] == str(AUTHORITY)


def test_first_swap_of_a_waiting_pool_opens_it() -> None:
    keys, accounts = _published_pool()
    accounts[keys.pool] = AMM_INFO.patch(
        accounts[keys.pool],
        status=AmmStatus.WAITING_TRADE,
        pool_open_time=1_000,
        need_take_pnl_coin=0,
        need_take_pnl_pc=0,
    )
    swap = VENUE.pool(keys, accounts).swap_exact_in(False, 10**6, Clock(1, 1_000))
    after = accounts | VENUE.written(keys, accounts, False, swap)
    assert AMM_INFO.decode(after[keys.pool]).status == AmmStatus.SWAP_ONLY
    assert VENUE.pool(keys, after) == swap.pool


def test_account_that_was_never_initialised_is_no_pool() -> None:
    keys, accounts = _published_pool()
    with pytest.raises(WireError, match="never initialised"):
        VENUE.keys(keys.pool, AMM_INFO.patch(accounts[keys.pool], status=0))


def test_too_little_of_the_input_token_means_for_a_purchase_that_its_price_has_moved() -> None:
    sold, bought = (bytes([tag]) + bytes(16) for tag in (16, 17))
    assert VENUE.failure_reason(40, sold)[0] is FailureReason.INSUFFICIENT_FUNDS
    assert VENUE.failure_reason(40, bought)[0] is FailureReason.SLIPPAGE_EXCEEDED
