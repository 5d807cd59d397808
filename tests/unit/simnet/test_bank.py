"""Transactions on accounts: what each program does, what each refuses with, and that it is all or nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from solders.instruction import AccountMeta, Instruction
from solders.pubkey import Pubkey

from engine.domain.order import FailureReason, Side
from engine.domain.pools.pool import Clock
from engine.domain.tokens import BONK, SOL, TOKENS, USDC, USDT, Token
from engine.market import explain_error
from engine.solana.accounts import MINT
from engine.solana.instructions import (
    Names,
    close_token_account,
    create_token_account,
    memo,
    set_compute_unit_limit,
    set_compute_unit_price,
    sync_native,
    transfer_lamports,
)
from engine.solana.programs import (
    ASSOCIATED_TOKEN_PROGRAM,
    CLOCK_SYSVAR,
    COMPUTE_BUDGET_PROGRAM,
    SYSTEM_PROGRAM,
    TOKEN_PROGRAM,
    WRAPPED_SOL_MINT,
)
from engine.venues import VENUES
from simnet.accounts import Account, rent_exempt_minimum
from simnet.bank import Call, View, error_text
from simnet.programs.memo import Memo
from simnet.transaction import Transaction
from tests.simnet_wallets import (
    OpenChain,
    SigningWallet,
    lamports_held,
    open_chain,
    supply_held,
    without_account,
)

KINDS = [venue.kind for venue in VENUES]
ALICE = SigningWallet(1)
BOB = SigningWallet(2)
USDC_MINT = Pubkey.from_string(USDC.mint)
TOKEN_RENT = 2_039_280


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[OpenChain]:
    async with open_chain(tmp_path) as net:
        await net.fund(ALICE, SOL, 10**13)
        await net.fund(ALICE, USDC, 10**12)
        yield net


def token_instruction(data: bytes, *accounts: tuple[Pubkey, bool, bool]) -> Instruction:
    return Instruction(TOKEN_PROGRAM, data, [AccountMeta(*account) for account in accounts])


def transfer_tokens(source: Pubkey, target: Pubkey, owner: Pubkey, amount: int) -> Instruction:
    return token_instruction(
        b"\x03" + amount.to_bytes(8, "little"),
        (source, False, True),
        (target, False, True),
        (owner, True, False),
    )


def transfer_checked(
    source: Pubkey, mint: Pubkey, target: Pubkey, owner: Pubkey, amount: int, decimals: int
) -> Instruction:
    return token_instruction(
        b"\x0c" + amount.to_bytes(8, "little") + bytes([decimals]),
        (source, False, True),
        (mint, False, False),
        (target, False, True),
        (owner, True, False),
    )


# ---- Lamports and fees


@pytest.mark.parametrize("legacy", [True, False])
async def test_a_transfer_moves_lamports_and_costs_its_fee(net: OpenChain, legacy: bool) -> None:
    error = await net.land(
        ALICE.sign([transfer_lamports(ALICE.pubkey, BOB.pubkey, 10**9)], net.blockhash, legacy=legacy)
    )
    assert error is None
    assert net.lamports(BOB.pubkey) == 10**9
    assert net.lamports(ALICE.pubkey) == 10**13 - 10**9 - 5000


async def test_the_fee_follows_signatures_and_the_price_of_the_compute_units_asked_for(
    net: OpenChain,
) -> None:
    raw = ALICE.sign(
        [
            set_compute_unit_limit(100_001),
            set_compute_unit_price(2_500),
            memo("two of us", BOB.pubkey),
        ],
        net.blockhash,
        others=[BOB.keypair],
    )
    assert Transaction(raw).fee == 2 * 5000 + 251
    assert await net.land(raw) is None
    assert net.lamports(ALICE.pubkey) == 10**13 - 10_251


async def test_no_lamport_is_lost_in_transfers_fees_wraps_and_swaps(net: OpenChain) -> None:
    before = lamports_held(net.chain.accounts)
    pool = net.pool(KINDS[0], SOL, USDC)
    assert await net.land(ALICE.sign(ALICE.swap(pool, SOL, USDC, Side.SELL, 10**9, 1), net.blockhash)) is None
    assert (
        await net.land(ALICE.sign([transfer_lamports(ALICE.pubkey, BOB.pubkey, 10**9)], net.blockhash))
        is None
    )
    assert lamports_held(net.chain.accounts) == before


async def test_a_transfer_to_oneself_makes_no_money(net: OpenChain) -> None:
    assert (
        await net.land(ALICE.sign([transfer_lamports(ALICE.pubkey, ALICE.pubkey, 10**9)], net.blockhash))
        is None
    )
    assert net.lamports(ALICE.pubkey) == 10**13 - 5000


def test_an_error_of_the_runtime_reads_as_a_node_words_it() -> None:
    for word, text in (
        ("InvalidArgument", "invalid program argument"),
        ("ReadonlyLamportChange", "instruction changed the balance of a read-only account"),
    ):
        error = {"InstructionError": [0, word]}
        assert error_text(error) == f"Error processing Instruction 0: {text}"


@pytest.mark.parametrize("key", [CLOCK_SYSVAR, SYSTEM_PROGRAM, COMPUTE_BUDGET_PROGRAM])
async def test_the_runtimes_own_accounts_take_no_lamports(net: OpenChain, key: Pubkey) -> None:
    before = lamports_held(net.chain.accounts)
    raw = ALICE.sign([transfer_lamports(ALICE.pubkey, key, 10**9)], net.blockhash)
    assert await net.land(raw) == {"InstructionError": [0, "ReadonlyLamportChange"]}
    net.chain.advance()
    assert lamports_held(net.chain.accounts) == before


async def test_too_few_lamports_to_transfer_is_the_system_programs_error_1_and_still_costs_the_fee(
    net: OpenChain,
) -> None:
    raw = ALICE.sign([transfer_lamports(ALICE.pubkey, BOB.pubkey, 10**14)], net.blockhash)
    assert await net.land(raw) == {"InstructionError": [0, {"Custom": 1}]}
    assert net.lamports(ALICE.pubkey) == 10**13 - 5000
    assert net.lamports(BOB.pubkey) == 0


async def test_an_account_left_with_too_little_for_rent_fails_the_transaction(net: OpenChain) -> None:
    raw = ALICE.sign([transfer_lamports(ALICE.pubkey, BOB.pubkey, 1000)], net.blockhash)
    error = await net.land(raw)
    assert error == {"InsufficientFundsForRent": {"account_index": 1}}
    assert error_text(error) == "Transaction results in an account (1) with insufficient funds for rent"
    assert net.lamports(BOB.pubkey) == 0


@pytest.mark.parametrize(
    ("lamports", "error"),
    [
        (0, "AccountNotFound"),
        (4_999, "InsufficientFundsForFee"),
        (5_001, {"InsufficientFundsForRent": {"account_index": 0}}),
    ],
)
async def test_who_cannot_pay_the_fee_never_lands(net: OpenChain, lamports: int, error: Any) -> None:
    if lamports:
        await net.fund(BOB, SOL, lamports)
    raw = BOB.sign([memo("poor", BOB.pubkey)], net.blockhash)
    outcome, _ = net.chain.simulate(Transaction(raw), "processed")
    assert outcome.error == error
    assert await net.land(raw) == "not landed"
    assert net.lamports(BOB.pubkey) == lamports


# ---- Atomicity


async def test_a_failing_instruction_undoes_all_before_it_but_not_the_fee(net: OpenChain) -> None:
    before = dict(net.chain.accounts)
    pool = net.pool("raydium_cpmm", SOL, USDC)
    raw = ALICE.sign(
        [
            *ALICE.swap(pool, SOL, USDC, Side.SELL, 10**9, 1),
            transfer_lamports(ALICE.pubkey, BOB.pubkey, 10**15),
        ],
        net.blockhash,
    )
    assert await net.land(raw) == {"InstructionError": [6, {"Custom": 1}]}
    changed = {
        address
        for address in before.keys() | net.chain.accounts.keys()
        if before.get(address) != net.chain.accounts.get(address)
    }
    # The clock, the payer, and where fees go.
    assert len(changed) == 3
    assert ALICE.address in changed
    assert net.lamports(ALICE.pubkey) == 10**13 - 5000


async def test_compute_units_that_do_not_suffice_end_the_transaction(net: OpenChain) -> None:
    raw = ALICE.sign([set_compute_unit_limit(200), memo("long", ALICE.pubkey)], net.blockhash)
    assert await net.land(raw) == {"InstructionError": [1, "ComputationalBudgetExceeded"]}


async def test_two_compute_budget_instructions_of_a_kind_never_land(net: OpenChain) -> None:
    raw = ALICE.sign([set_compute_unit_limit(10_000), set_compute_unit_limit(20_000)], net.blockhash)
    outcome, _ = net.chain.simulate(Transaction(raw), "processed")
    assert outcome.error == {"DuplicateInstruction": 1}
    assert await net.land(raw) == "not landed"


async def test_a_program_that_does_not_exist_never_runs(net: OpenChain) -> None:
    raw = ALICE.sign([Instruction(Pubkey.from_bytes(b"\x09" * 32), b"", [])], net.blockhash)
    outcome, _ = net.chain.simulate(Transaction(raw), "processed")
    assert outcome.error == "ProgramAccountNotFound"


# ---- Tokens


async def test_tokens_move_between_accounts_of_a_mint(net: OpenChain) -> None:
    raw = ALICE.sign(
        [
            create_token_account(ALICE.pubkey, BOB.pubkey, USDC_MINT),
            transfer_tokens(ALICE.token_account(USDC), BOB.token_account(USDC), ALICE.pubkey, 300),
            transfer_checked(
                ALICE.token_account(USDC), USDC_MINT, BOB.token_account(USDC), ALICE.pubkey, 200, 6
            ),
        ],
        net.blockhash,
    )
    assert await net.land(raw) is None
    assert net.tokens(BOB.token_account(USDC)) == 500
    assert net.tokens(ALICE.token_account(USDC)) == 10**12 - 500
    assert net.lamports(ALICE.pubkey) == 10**13 - 5000 - TOKEN_RENT


@pytest.mark.parametrize(
    ("instruction", "code"),
    [
        pytest.param(
            transfer_tokens(ALICE.token_account(USDC), BOB.token_account(USDC), ALICE.pubkey, 10**12 + 1),
            1,
            id="insufficient funds",
        ),
        pytest.param(
            transfer_tokens(ALICE.token_account(USDC), BOB.token_account(USDT), ALICE.pubkey, 1),
            3,
            id="mint mismatch",
        ),
        pytest.param(
            transfer_tokens(BOB.token_account(USDC), ALICE.token_account(USDC), ALICE.pubkey, 1),
            4,
            id="owner mismatch",
        ),
        pytest.param(
            transfer_checked(
                ALICE.token_account(USDC), USDC_MINT, BOB.token_account(USDC), ALICE.pubkey, 1, 9
            ),
            18,
            id="decimals mismatch",
        ),
        pytest.param(
            close_token_account(ALICE.token_account(USDC), ALICE.pubkey, ALICE.pubkey),
            11,
            id="closing with a balance",
        ),
        pytest.param(sync_native(ALICE.token_account(USDC)), 19, id="syncing what is not wrapped SOL"),
    ],
)
async def test_the_token_program_refuses_with_its_own_codes(
    net: OpenChain, instruction: Instruction, code: int
) -> None:
    await net.fund(BOB, USDC, 5)
    await net.fund(BOB, USDT, 5)
    assert await net.land(ALICE.sign([instruction], net.blockhash)) == {
        "InstructionError": [0, {"Custom": code}]
    }


async def test_tokens_do_not_move_without_their_owners_signature(net: OpenChain) -> None:
    await net.fund(BOB, USDC, 5)
    theft = transfer_tokens(BOB.token_account(USDC), ALICE.token_account(USDC), BOB.pubkey, 5)
    unsigned = Instruction(
        theft.program_id, theft.data, [*theft.accounts[:2], AccountMeta(BOB.pubkey, False, False)]
    )
    assert await net.land(ALICE.sign([unsigned], net.blockhash)) == {
        "InstructionError": [0, "MissingRequiredSignature"]
    }
    assert net.tokens(BOB.token_account(USDC)) == 5


async def test_sol_wraps_and_unwraps_to_the_lamport(net: OpenChain) -> None:
    wrapped = ALICE.token_account(SOL)
    wrap = [
        create_token_account(ALICE.pubkey, ALICE.pubkey, WRAPPED_SOL_MINT),
        transfer_lamports(ALICE.pubkey, wrapped, 7 * 10**8),
        sync_native(wrapped),
    ]
    assert await net.land(ALICE.sign(wrap, net.blockhash)) is None
    assert net.tokens(wrapped) == 7 * 10**8
    assert net.lamports(wrapped) == 7 * 10**8 + TOKEN_RENT
    closing = close_token_account(wrapped, ALICE.pubkey, ALICE.pubkey)
    assert await net.land(ALICE.sign([closing], net.blockhash)) is None
    assert bytes(wrapped) not in net.chain.accounts
    assert net.lamports(ALICE.pubkey) == 10**13 - 2 * 5000


async def test_a_token_account_is_created_once_and_idempotently_ever_after(net: OpenChain) -> None:
    idempotent = create_token_account(ALICE.pubkey, BOB.pubkey, USDC_MINT)
    plain = Instruction(ASSOCIATED_TOKEN_PROGRAM, b"", list(idempotent.accounts))
    assert await net.land(ALICE.sign([plain, idempotent], net.blockhash)) is None
    assert await net.land(ALICE.sign([plain], net.blockhash)) == {"InstructionError": [0, "IllegalOwner"]}
    assert net.lamports(ALICE.pubkey) == 10**13 - 2 * 5000 - TOKEN_RENT


async def test_a_token_account_is_created_at_its_own_address_only(net: OpenChain) -> None:
    elsewhere = without_account(
        create_token_account(ALICE.pubkey, BOB.pubkey, USDC_MINT), 1, BOB.token_account(USDT)
    )
    assert await net.land(ALICE.sign([elsewhere], net.blockhash)) == {"InstructionError": [0, "InvalidSeeds"]}


async def test_a_memo_must_be_text(net: OpenChain) -> None:
    good = memo("order:1", ALICE.pubkey)
    bad = Instruction(good.program_id, b"\xff\xfe", list(good.accounts))
    assert await net.land(ALICE.sign([bad], net.blockhash)) == {
        "InstructionError": [0, "InvalidInstructionData"]
    }


async def test_a_defect_of_a_program_fails_the_transaction_and_is_logged(
    net: OpenChain, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def execute(_program: Memo, _call: Call) -> None:
        raise OverflowError("a defect")

    monkeypatch.setattr(Memo, "execute", execute)
    before = net.lamports(ALICE.pubkey)
    raw = ALICE.sign(
        [transfer_lamports(ALICE.pubkey, BOB.pubkey, 10**9), memo("x", ALICE.pubkey)], net.blockhash
    )
    assert await net.land(raw) == {"InstructionError": [1, "ProgramFailedToComplete"]}
    assert (net.lamports(ALICE.pubkey), net.lamports(BOB.pubkey)) == (before - 5000, 0)
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_a_swap_of_more_than_a_vault_could_hold_finds_too_few_tokens_first(net: OpenChain) -> None:
    # The other kinds' curves do not go so far.
    swap = ALICE.swap(net.pool("meteora_damm_v2", SOL, USDC), USDC, SOL, Side.SELL, 2**64 - 2, 0)
    assert await net.land(ALICE.sign(swap, net.blockhash)) == {"InstructionError": [1, {"Custom": 1}]}


async def test_what_a_program_does_not_know_it_refuses(net: OpenChain) -> None:
    unknown = Instruction(SYSTEM_PROGRAM, b"\x63\0\0\0", [AccountMeta(ALICE.pubkey, True, True)])
    assert await net.land(ALICE.sign([unknown], net.blockhash)) == {
        "InstructionError": [0, "InvalidInstructionData"]
    }


# ---- Swaps


def quoted(net: OpenChain, kind: str, a: Token, b: Token, side: Side, amount: int) -> tuple[int, int]:
    """Return what the curve itself says of a swap, from the accounts' bytes."""
    pool = net.pool(kind, SOL, USDC)
    keys = pool.keys
    accounts = net.accounts_of(pool)
    state = pool.venue.pool(keys, accounts)
    a_to_b = str(keys.mint_a) == a.mint
    clock = Clock(net.chain.slot, net.chain.block_time)
    if side is Side.SELL:
        swap = state.swap_exact_in(a_to_b, amount, clock)
    else:
        swap = state.swap_exact_out(a_to_b, amount, clock)
    return swap.input_amount, swap.output_amount


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize(("paid", "received", "amount"), [(SOL, USDC, 10**9), (USDC, SOL, 10**8)])
async def test_a_swap_gives_what_the_curve_says(
    net: OpenChain, kind: str, side: Side, paid: Token, received: Token, amount: int
) -> None:
    for _ in range(3):
        # The second and third meet the pool that the ones before left behind.
        given, got = quoted(net, kind, paid, received, side, amount)
        sol, usdc = net.lamports(ALICE.pubkey), net.tokens(ALICE.token_account(USDC))
        threshold = got if side is Side.SELL else given
        pool = net.pool(kind, SOL, USDC)
        raw = ALICE.sign(
            ALICE.swap(pool, paid, received, side, amount, threshold, net.accounts_of(pool)), net.blockhash
        )
        assert await net.land(raw) is None
        sol_change, usdc_change = (-given, got) if paid == SOL else (got, -given)
        assert net.tokens(ALICE.token_account(USDC)) == usdc + usdc_change
        assert net.lamports(ALICE.pubkey) == sol + sol_change - 5000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", list(Side))
async def test_a_swap_that_misses_its_threshold_by_one_unit_reverts_with_its_programs_own_code(
    net: OpenChain, kind: str, side: Side
) -> None:
    given, got = quoted(net, kind, USDC, SOL, side, 10**8)
    threshold = got + 1 if side is Side.SELL else given - 1
    pool = net.pool(kind, SOL, USDC)
    raw = ALICE.sign(
        ALICE.swap(pool, USDC, SOL, side, 10**8, threshold, net.accounts_of(pool)), net.blockhash
    )
    error = await net.land(raw)
    code = pool.venue.slippage_errors[side]
    assert error == {"InstructionError": [1, {"Custom": code}]}
    assert error_text(error) == (f"Error processing Instruction 1: custom program error: {code:#x}")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_swap_of_more_than_one_has_is_the_token_programs_error_1_and_the_log_says_so(
    net: OpenChain, kind: str
) -> None:
    pool = net.pool(kind, SOL, USDC)
    await net.fund(BOB, SOL, 10**9)
    await net.fund(BOB, USDC, 10**9)
    raw = BOB.sign(BOB.swap(pool, USDC, SOL, Side.SELL, 10**9 + 1, 1, net.accounts_of(pool)), net.blockhash)
    outcome, _ = net.chain.simulate(Transaction(raw), "processed")
    assert outcome.meta is not None
    if kind == "raydium_amm_v4":
        # It looks itself.
        assert outcome.error == {"InstructionError": [1, {"Custom": 40}]}
        return
    assert outcome.error == {"InstructionError": [1, {"Custom": 1}]}
    assert outcome.meta.logs[-2:] == [
        f"Program {TOKEN_PROGRAM} failed: custom program error: 0x1",
        f"Program {pool.venue.program} failed: custom program error: 0x1",
    ]


@pytest.mark.parametrize(
    ("kind", "position", "code"),
    [
        ("raydium_cpmm", 1, 2012),
        ("raydium_cpmm", 2, 2012),
        ("raydium_cpmm", 6, 6008),
        ("raydium_cpmm", 12, 2012),
        ("meteora_damm_v2", 0, 2012),
        ("meteora_damm_v2", 4, 2001),
        ("meteora_damm_v2", 12, 2006),
        ("meteora_dlmm", 2, 2001),
        ("meteora_dlmm", 8, 2001),
        ("meteora_dlmm", 13, 3008),
        ("meteora_dlmm", 14, 2006),
        ("meteora_dlmm", 1, 2012),
        ("raydium_clmm", 1, 2012),
        ("raydium_clmm", 5, 6021),
        ("raydium_clmm", 7, 2012),
        ("raydium_clmm", 9, 3008),
        ("raydium_amm_v4", 0, 38),
        ("raydium_amm_v4", 2, 1),
        ("raydium_amm_v4", 4, 5),
    ],
)
async def test_a_swap_with_a_foreign_account_is_refused(
    net: OpenChain, kind: str, position: int, code: int
) -> None:
    instructions = ALICE.swap(net.pool(kind, SOL, USDC), USDC, SOL, Side.SELL, 10**6, 1)
    instructions[1] = without_account(instructions[1], position, BOB.pubkey)
    assert await net.land(ALICE.sign(instructions, net.blockhash)) == {
        "InstructionError": [1, {"Custom": code}]
    }


@pytest.mark.parametrize(
    ("kind", "error"),
    [("raydium_cpmm", {"Custom": 101}), ("raydium_amm_v4", "InvalidInstructionData")],
)
async def test_an_instruction_that_is_no_swap_ends_as_its_kind_of_program_ends_it(
    net: OpenChain, kind: str, error: Any
) -> None:
    instructions = ALICE.swap(net.pool(kind, SOL, USDC), USDC, SOL, Side.SELL, 10**6, 1)
    other = Instruction(instructions[1].program_id, b"\xff" * 24, list(instructions[1].accounts))
    assert await net.land(ALICE.sign([instructions[0], other], net.blockhash)) == {
        "InstructionError": [1, error]
    }


@pytest.mark.parametrize("kind", ["raydium_amm_v4", "raydium_clmm"])
async def test_purchase_with_sol_overtaken_by_the_price_finds_too_little_sol_wrapped(
    net: OpenChain, kind: str
) -> None:
    given, _ = quoted(net, kind, SOL, USDC, Side.BUY, 10**8)
    pool = net.pool(kind, SOL, USDC)
    instructions = ALICE.swap(pool, SOL, USDC, Side.BUY, 10**8, given - 1, net.accounts_of(pool))
    raw = ALICE.sign(instructions, net.blockhash)
    error = await net.land(raw)
    code = {"raydium_amm_v4": 40, "raydium_clmm": 1}[kind]
    assert error == {"InstructionError": [4, {"Custom": code}]}
    # The engine knows what that means, as it does of one that sells more than there is.
    assert explain_error(error, raw)[0] is FailureReason.SLIPPAGE_EXCEEDED


@pytest.mark.parametrize(("kind", "code"), [("meteora_dlmm", 3005), ("raydium_clmm", 6023)])
async def test_a_swap_that_comes_farther_than_its_arrays_ends_with_its_programs_own_code(
    net: OpenChain, kind: str, code: int
) -> None:
    pool = net.pool(kind, SOL, USDC)
    accounts = net.accounts_of(pool)
    amount = net.tokens(pool.keys.vault_a if pool.a_is_base else pool.keys.vault_b) * 9 // 10
    instructions = ALICE.swap(pool, USDC, SOL, Side.BUY, amount, 10**12, accounts)
    whole = instructions[1]
    mints = {ALICE.token_account(USDC): USDC_MINT, ALICE.token_account(SOL): WRAPPED_SOL_MINT}
    named = [meta.pubkey for meta in whole.accounts]
    arrays = pool.venue.read_swap(named, bytes(whole.data), mints).arrays
    assert len(arrays) > 1
    names = Names(whole.program_id, whole.accounts[: 1 - len(arrays)])
    instructions[1] = whole._replace(names=names)
    assert await net.land(ALICE.sign(instructions, net.blockhash)) == {
        "InstructionError": [1, {"Custom": code}]
    }
    assert pool.venue.failure_reason(code)[0] is FailureReason.SLIPPAGE_EXCEEDED


@pytest.mark.parametrize("kind", KINDS)
async def test_nobody_swaps_another_wallets_tokens(net: OpenChain, kind: str) -> None:
    await net.fund(BOB, USDC, 10**9)
    pool = net.pool(kind, SOL, USDC)
    instructions = ALICE.swap(pool, USDC, SOL, Side.SELL, 10**6, 1, net.accounts_of(pool))
    source = [
        position
        for position, meta in enumerate(instructions[1].accounts)
        if meta.pubkey == ALICE.token_account(USDC)
    ]
    instructions[1] = without_account(instructions[1], source[0], BOB.token_account(USDC))
    assert await net.land(ALICE.sign(instructions, net.blockhash)) == {"InstructionError": [1, {"Custom": 4}]}
    assert net.tokens(BOB.token_account(USDC)) == 10**9


async def test_no_token_is_made_or_lost_by_swaps_and_the_market(tmp_path: Path) -> None:
    async with open_chain(tmp_path / "moving", market_pools=3) as net:
        await net.fund(ALICE, SOL, 10**13)
        await net.fund(ALICE, BONK, 10**12)
        before = {token: supply_held(net.chain.accounts, token) for token in TOKENS}
        wrapped = 0
        for pool in net.pools:
            if SOL in (pool.base, pool.quote):
                other = _other(pool.base, pool.quote)
                raw = ALICE.sign(
                    ALICE.swap(pool, SOL, other, Side.SELL, 10**8, 1, net.accounts_of(pool)), net.blockhash
                )
                assert await net.land(raw) is None
                # What is wrapped is new wrapped SOL; what comes out as USDC and so on is not.
                wrapped += 10**8
        for token in TOKENS:
            assert supply_held(net.chain.accounts, token) == before[token] + (wrapped if token == SOL else 0)
            if token != SOL:
                mint = net.chain.accounts[bytes(Pubkey.from_string(token.mint))]
                assert MINT.decode(mint.data).supply == before[token]


def _other(one: Token, other: Token) -> Token:
    return other if one == SOL else one


# ---- Any transaction


@given(
    amounts=st.lists(st.integers(min_value=0, max_value=2 * 10**9), min_size=1, max_size=6),
    balance=st.integers(min_value=rent_exempt_minimum(0) + 5000, max_value=3 * 10**9),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_any_chain_of_transfers_conserves_lamports_or_changes_nothing_but_the_fee(
    amounts: list[int], balance: int
) -> None:
    assert _conserves(amounts, balance, transfer_lamports)


def test_a_transfer_that_forgets_to_debit_would_be_noticed() -> None:
    """The mutant of the property above: a bank in which the source keeps what it sends."""

    def keep(view: View, before: dict[bytes, Account]) -> None:
        view.changed[ALICE.address] = before[ALICE.address]

    assert not _conserves([10**9], 2 * 10**9, transfer_lamports, spoil=keep)


def _conserves(amounts: list[int], balance: int, make: Any, spoil: Any = None) -> bool:
    from simnet.bank import Bank
    from simnet.programs import all_programs

    collector = bytes([7]) * 32
    before = {ALICE.address: Account(balance), collector: Account(10**9)}
    view = View(before)
    raw = ALICE.sign([make(ALICE.pubkey, BOB.pubkey, amount) for amount in amounts], bytes(32))
    outcome = Bank(all_programs(), collector).execute(Transaction(raw), view, Clock(1, 1))
    if spoil is not None:
        spoil(view, before)
    after = before | view.changed
    if sum(account.lamports for account in after.values()) != balance + 10**9:
        return False
    if outcome.error is None:
        return True
    paid = 5000 if outcome.meta is not None else 0
    return after[ALICE.address].lamports == balance - paid and BOB.address not in after
