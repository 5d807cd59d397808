"""What every venue must do. A new file in engine/venues is tested by being there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from solders.instruction import AccountMeta
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from engine import venues
from engine.domain.order import FailureReason, Side
from engine.domain.pools.pool import Clock, Swap, SwapError, SwapRefusal
from engine.domain.tokens import SOL, USDC
from engine.solana.accounts import TOKEN_ACCOUNT, TokenAccount, token_amount
from engine.solana.programs import TOKEN_PROGRAM, associated_token_account
from engine.solana.wire import WireError
from engine.venues import VENUE_BY_KIND, VENUE_BY_PROGRAM, VENUES
from engine.venues.venue import PoolKeys, Venue

NOW = Clock(slot=400_000_000, unix_timestamp=1_750_000_000)
SOL_MINT, USDC_MINT = Pubkey.from_string(SOL.mint), Pubkey.from_string(USDC.mint)
OWNER = Keypair.from_seed(bytes(range(32))).pubkey()

pytestmark = pytest.mark.parametrize("venue", VENUES, ids=lambda venue: venue.kind)


class Made:
    """A pool of 1,000 SOL and 100,000 USDC at 0.25 %, as the venue itself makes it."""

    def __init__(self, venue: Venue[Any], *, index: int = 0) -> None:
        self.venue = venue
        self.address, self.accounts = venue.new_pool(
            SOL_MINT, USDC_MINT, 1_000 * 10**9, 100_000 * 10**6, 2_500, index=index
        )
        self.data = {address: account.data for address, account in self.accounts.items()}
        keys = venue.keys(self.address, self.data[self.address])
        assert keys is not None
        self.keys: PoolKeys = keys
        self.sol_is_a = keys.mint_a == SOL_MINT

    def swap(self, sells_sol: bool, side: Side, amount: int) -> Swap:
        pool = self.venue.pool(self.keys, self.data)
        swap_of = pool.swap_exact_in if side is Side.SELL else pool.swap_exact_out
        return swap_of(sells_sol is self.sol_is_a, amount, NOW)


def test_venue_is_found_by_its_file_and_its_program(venue: Venue[Any]) -> None:
    assert (Path(venues.__file__).parent / f"{venue.kind}.py").exists()
    assert VENUE_BY_KIND[venue.kind] is venue
    assert VENUE_BY_PROGRAM[venue.program] is venue
    assert len(VENUE_BY_KIND) == len(VENUE_BY_PROGRAM) == len(VENUES)


def test_new_pool_passes_the_filter_that_finds_pools(venue: Venue[Any]) -> None:
    made = Made(venue)
    account = made.accounts[made.address]
    assert account.owner == venue.program
    assert len(account.data) == venue.pool_filter.data_size
    assert account.data.startswith(venue.pool_filter.prefix)
    offset, length = venue.mints_slice
    mints = account.data[offset : offset + length]
    assert {mints[:32], mints[32:]} == {bytes(SOL_MINT), bytes(USDC_MINT)}


def test_pools_of_one_pair_have_addresses_of_their_own(venue: Venue[Any]) -> None:
    first, second = Made(venue, index=0), Made(venue, index=1)
    assert not {first.address, first.keys.vault_a, first.keys.vault_b} & set(second.accounts)


def test_keys_name_the_mints_and_vaults_that_are_there(venue: Venue[Any]) -> None:
    made = Made(venue)
    for mint, vault in ((made.keys.mint_a, made.keys.vault_a), (made.keys.mint_b, made.keys.vault_b)):
        assert made.accounts[vault].owner == TOKEN_PROGRAM
        assert TOKEN_ACCOUNT.decode(made.data[vault]).mint == mint


def test_quote_accounts_are_enough_to_quote(venue: Venue[Any]) -> None:
    made = Made(venue)
    assert venue.quote_accounts(made.keys, {})[0] == made.address
    wanted = venue.quote_accounts(made.keys, made.data)
    assert wanted[0] == made.address
    only_those = {address: made.data[address] for address in wanted if address in made.data}
    assert venue.pool(made.keys, only_those) == venue.pool(made.keys, made.data)


def test_all_accounts_are_found_from_the_pools_address_on(venue: Venue[Any]) -> None:
    made = Made(venue)
    found = venue.accounts(made.keys, made.data.get)
    assert found.items() <= made.data.items()
    assert {*venue.quote_accounts(made.keys, found), made.keys.vault_a, made.keys.vault_b} >= found.keys()
    assert venue.pool(made.keys, found) == venue.pool(made.keys, made.data)


@pytest.mark.parametrize("sells_sol", [True, False])
def test_swap_costs_about_what_the_pool_says(venue: Venue[Any], sells_sol: bool) -> None:
    made = Made(venue)
    amount = 10**9 if sells_sol else 100 * 10**6
    swap = made.swap(sells_sol, Side.SELL, amount)
    output, input_ = venue.pool(made.keys, made.data).price(sells_sol is made.sol_is_a)
    # One SOL is 100 USDC, as near as the pool's bins come to that.
    assert amount * output / input_ == pytest.approx(100 * 10**6 if sells_sol else 10**9, rel=0.002)
    # Fee 25 bps; one in a thousand of the reserve moves the price by 10 bps at most.
    least, most = (amount * output * bps // (input_ * 10_000) for bps in (9_955, 9_975))
    assert least < swap.output_amount <= most
    assert 2_400 <= swap.fee_ppm <= 2_501


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("sells_sol", [True, False])
def test_swapped_pool_reads_back_from_the_bytes_written(
    venue: Venue[Any], sells_sol: bool, side: Side
) -> None:
    made = Made(venue)
    swap = made.swap(sells_sol, side, 5 * 10**6)
    written = venue.written(made.keys, made.data, sells_sol is made.sol_is_a, swap)
    after = made.data | written
    assert venue.pool(made.keys, after) == swap.pool
    assert venue.keys(made.address, after[made.address]) == made.keys
    sol_vault, usdc_vault = (
        (made.keys.vault_a, made.keys.vault_b) if made.sol_is_a else (made.keys.vault_b, made.keys.vault_a)
    )
    into, out_of = (sol_vault, usdc_vault) if sells_sol else (usdc_vault, sol_vault)
    assert token_amount(after[into]) - token_amount(made.data[into]) == swap.input_amount
    assert token_amount(made.data[out_of]) - token_amount(after[out_of]) == swap.output_amount


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("sells_sol", [True, False])
def test_swap_instruction_reads_back_as_what_it_was_made_of(
    venue: Venue[Any], sells_sol: bool, side: Side
) -> None:
    made = Made(venue)
    input_mint, output_mint = (SOL_MINT, USDC_MINT) if sells_sol else (USDC_MINT, SOL_MINT)
    input_account, output_account = (
        associated_token_account(OWNER, input_mint),
        associated_token_account(OWNER, output_mint),
    )
    asked: dict[str, Any] = {
        "a_to_b": sells_sol is made.sol_is_a,
        "side": side,
        "amount": 123_456_789,
        "threshold_amount": 987_654,
        "owner": OWNER,
        "input_account": input_account,
        "output_account": output_account,
    }
    instruction = venue.swap_instruction(made.keys, made.data, **asked)
    assert instruction.program_id == venue.program
    assert AccountMeta(OWNER, is_signer=True, is_writable=False) in instruction.accounts
    assert {meta.pubkey for meta in instruction.accounts if meta.is_writable} >= {
        made.address,
        input_account,
        output_account,
        made.keys.vault_a,
        made.keys.vault_b,
    }
    read = venue.read_swap(
        [meta.pubkey for meta in instruction.accounts],
        bytes(instruction.data),
        {
            input_account: input_mint,
            output_account: output_mint,
            made.keys.vault_a: made.keys.mint_a,
            made.keys.vault_b: made.keys.mint_b,
        },
    )
    assert {name: getattr(read, name) for name in asked} == asked
    assert read.pool == made.address


def test_foreign_instructions_are_not_taken_for_swaps(venue: Venue[Any]) -> None:
    accounts = [OWNER] * 16
    for data in (b"", b"\x00" * 7, b"\x00" * 25):
        with pytest.raises(ValueError, match="not a swap"):
            venue.read_swap(accounts, data, {OWNER: SOL_MINT})


def test_foreign_accounts_are_not_taken_for_pools(venue: Venue[Any]) -> None:
    token_account = TOKEN_ACCOUNT.encode(TokenAccount(SOL_MINT, OWNER, 5))
    for data in (b"", token_account, bytes(venue.pool_filter.data_size)):
        with pytest.raises(WireError):
            venue.keys(OWNER, data)


def test_every_refusal_has_an_error_code(venue: Venue[Any]) -> None:
    assert all(venue.error_code(refusal) > 0 for refusal in SwapRefusal)


def test_missed_threshold_is_slippage_and_other_errors_are_rejections(venue: Venue[Any]) -> None:
    for side in Side:
        reason, message = venue.failure_reason(venue.slippage_errors[side])
        assert reason is FailureReason.SLIPPAGE_EXCEEDED
        assert venue.name in message
    for error in venue.price_moved_errors:
        assert venue.failure_reason(error)[0] is FailureReason.SLIPPAGE_EXCEEDED
    for refusal in SwapRefusal:
        error = venue.error_code(refusal)
        if error not in venue.price_moved_errors:
            assert venue.failure_reason(error)[0] in (
                FailureReason.VENUE_REJECTED,
                # Some programs have one error for a pool and for a wallet that has too little.
                FailureReason.INSUFFICIENT_FUNDS,
            )
    disabled = venue.error_code(SwapRefusal.DISABLED)
    assert venue.failure_reason(disabled)[0] is FailureReason.VENUE_REJECTED


def test_asking_for_more_than_the_pool_holds_is_refused(venue: Venue[Any]) -> None:
    with pytest.raises(SwapError) as refused:
        Made(venue).swap(sells_sol=True, side=Side.BUY, amount=100_000 * 10**6 + 1)
    assert refused.value.reason is SwapRefusal.INSUFFICIENT_LIQUIDITY
