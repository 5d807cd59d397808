"""Slots, blockhashes, landing, faults, commitments: the chain without its sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.domain.order import Side
from engine.domain.tokens import SOL, USDC
from engine.solana.accounts import CLOCK
from engine.solana.instructions import memo, transfer_lamports
from engine.solana.programs import CLOCK_SYSVAR
from simnet.chain import FIRST_BLOCK_HEIGHT, FIRST_SLOT, MAX_PROCESSING_AGE, STATUS_CACHE_SLOTS
from simnet.faults import FaultError, Faults, fate_of, parse_faults
from simnet.transaction import Transaction
from tests.simnet_wallets import OpenChain, SigningWallet, open_chain

ALICE = SigningWallet(1)
BOB = SigningWallet(2)


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[OpenChain]:
    async with open_chain(tmp_path) as net:
        await net.fund(ALICE, SOL, 10**13)
        yield net


def note(text: str, blockhash: bytes) -> bytes:
    return ALICE.sign([memo(text, ALICE.pubkey)], blockhash)


def advance(net: OpenChain, slots: int) -> None:
    for _ in range(slots):
        net.chain.advance()


# ---- Blockhashes


@pytest.mark.parametrize(("waited", "lands"), [(0, True), (MAX_PROCESSING_AGE - 1, True), (150, False)])
async def test_a_transaction_lands_up_to_its_blockhashs_last_valid_height_and_not_after(
    net: OpenChain, waited: int, lands: bool
) -> None:
    raw = note("patient", net.blockhash)
    last_valid = net.chain.block_height(net.chain.slot) + MAX_PROCESSING_AGE
    advance(net, waited)
    error = await net.land(raw)
    assert (net.chain.block_height(net.chain.slot) <= last_valid) is lands
    assert error == (None if lands else "not landed")


async def test_a_blockhash_is_good_for_as_many_blocks_as_is_set_and_nothing_lands_twice_in_them(
    tmp_path: Path,
) -> None:
    async with open_chain(tmp_path, blockhash_blocks=400) as net:
        await net.fund(ALICE, SOL, 10**13)
        raw, late = note("patient", net.blockhash), note("late", net.blockhash)
        assert await net.land(raw) is None
        advance(net, 398)
        assert await net.land(late) is None
        assert net.chain.simulate(Transaction(raw), "processed")[0].error == "AlreadyProcessed"
        await net.land(raw)
        assert net.chain.transaction_count == 2


async def test_an_unknown_blockhash_lands_nothing(net: OpenChain) -> None:
    raw = note("stranger", b"\x05" * 32)
    assert net.chain.simulate(Transaction(raw), "processed")[0].error == "BlockhashNotFound"
    assert await net.land(raw) == "not landed"


async def test_a_transaction_lands_once_however_often_it_is_sent(net: OpenChain) -> None:
    raw = ALICE.sign([transfer_lamports(ALICE.pubkey, BOB.pubkey, 10**9)], net.blockhash)
    net.chain.accept(Transaction(raw))
    assert await net.land(raw) is None
    first = net.chain.status(Transaction(raw).signature)
    await net.land(raw)
    assert net.chain.status(Transaction(raw).signature) == first
    assert net.lamports(BOB.pubkey) == 10**9
    assert net.chain.simulate(Transaction(raw), "processed")[0].error == "AlreadyProcessed"
    assert net.chain.transaction_count == 1


async def test_a_message_lands_once_whoever_signs_it_anew(tmp_path: Path) -> None:
    async with open_chain(tmp_path) as net:
        await net.fund(ALICE, SOL, 10**13)
        raw = ALICE.sign([transfer_lamports(ALICE.pubkey, BOB.pubkey, 10**9)], net.blockhash)
        # The chain is not who looks at signatures; a key can make any number of good ones.
        others = [raw[:1] + bytes([number]) * 64 + raw[65:] + bytes(number) for number in range(1, 4)]
        net.chain.accept(Transaction(raw))
        # Waiting, it may still be simulated.
        assert net.chain.simulate(Transaction(others[0]), "processed")[0].error is None
        for other in others[:2]:
            net.chain.accept(Transaction(other))
        net.chain.advance()
        assert await net.land(others[2]) == "not landed"
        advance(net, 3)
        assert net.chain.transaction_count == 1
    async with open_chain(tmp_path) as net:
        assert net.chain.simulate(Transaction(others[0]), "processed")[0].error == "AlreadyProcessed"
        assert await net.land(others[1]) == "not landed"
        assert net.lamports(BOB.pubkey) == 10**9
        advance(net, STATUS_CACHE_SLOTS + 1)
        assert net.chain._messages == {}


async def test_a_message_that_did_not_land_can_be_sent_again(net: OpenChain) -> None:
    raw = BOB.sign([memo("poor", BOB.pubkey)], net.blockhash)
    assert await net.land(raw) == "not landed"
    await net.fund(BOB, SOL, 10**9)
    assert await net.land(raw) is None


async def test_slot_and_block_height_walk_together_at_a_distance(net: OpenChain) -> None:
    advance(net, 5)
    assert net.chain.slot == FIRST_SLOT + 5
    assert net.chain.block_height(net.chain.slot) == FIRST_BLOCK_HEIGHT + 5
    clock = CLOCK.decode(net.chain.accounts[bytes(CLOCK_SYSVAR)].data)
    assert clock.slot == net.chain.slot


# ---- Commitments


async def test_accounts_are_read_as_the_slot_of_each_commitment_left_them(net: OpenChain) -> None:
    await net.fund(BOB, SOL, 10**9)
    advance(net, 5)
    for amount in (1, 2, 3):
        raw = ALICE.sign([transfer_lamports(ALICE.pubkey, BOB.pubkey, amount)], net.blockhash)
        assert await net.land(raw) is None

    def seen(commitment: str) -> int:
        account = net.chain.accounts_at(net.chain.slot_of(commitment)).get(BOB.address)
        return 0 if account is None else account.lamports - 10**9

    assert [seen(each) for each in ("processed", "confirmed", "finalized")] == [6, 3, 0]
    advance(net, 2)
    assert [seen(each) for each in ("processed", "confirmed", "finalized")] == [6, 6, 1]


async def test_a_status_rises_from_processed_over_confirmed_to_finalized(net: OpenChain) -> None:
    assert await net.land(note("rising", net.blockhash)) is None
    slot = net.chain.slot
    seen = []
    for _ in range(5):
        seen.append(net.chain.commitment_of(slot))
        net.chain.advance()
    assert seen == ["processed", "confirmed", "confirmed", "confirmed", "finalized"]


async def test_with_no_slots_to_confirm_a_transaction_is_confirmed_at_once(tmp_path: Path) -> None:
    async with open_chain(tmp_path, confirmed_slots=0) as net:
        await net.fund(ALICE, SOL, 10**13)
        assert await net.land(note("quick", net.blockhash)) is None
        assert net.chain.commitment_of(net.chain.slot) == "confirmed"


async def test_a_status_older_than_the_cache_is_found_in_the_ledger(net: OpenChain) -> None:
    raw = note("old", net.blockhash)
    signature = Transaction(raw).signature
    assert await net.land(raw) is None
    slot = net.chain.slot
    advance(net, STATUS_CACHE_SLOTS + 1)
    assert net.chain.status(signature) is None
    assert net.chain.history([signature])[signature].slot == slot
    record = net.chain.record(signature)
    assert record is not None
    assert record.memo == "old"


# ---- Landing and faults


async def test_landing_takes_the_slots_it_is_set_to(tmp_path: Path) -> None:
    async with open_chain(tmp_path, landing_slots=2) as net:
        await net.fund(ALICE, SOL, 10**13)
        raw = note("slow", net.blockhash)
        assert await net.land(raw) == "not landed"
        assert await net.land(raw) == "not landed"
        assert await net.land(raw) is None


async def test_jitter_spreads_landings_and_the_seed_repeats_them() -> None:
    signatures = [bytes([number]) * 64 for number in range(200)]
    delays = [fate_of(each, 1, Faults(), 3).delay_slots for each in signatures]
    assert set(delays) == {0, 1, 2, 3}
    assert delays == [fate_of(each, 1, Faults(), 3).delay_slots for each in signatures]
    assert delays != [fate_of(each, 2, Faults(), 3).delay_slots for each in signatures]


async def test_about_as_many_are_struck_as_the_probability_says() -> None:
    fates = [
        fate_of(number.to_bytes(64, "big"), 1, Faults(drop=0.3, revert=0.1), 0) for number in range(2000)
    ]
    assert 500 < sum(fate.dropped for fate in fates) < 700
    assert 150 < sum(fate.reverted for fate in fates) < 250
    assert not any(fate.answered_with_error for fate in fates)


async def test_a_dropped_transaction_never_lands_however_often_it_is_sent(net: OpenChain) -> None:
    net.chain.faults = Faults(drop=1.0)
    raw = note("lost", net.blockhash)
    for _ in range(3):
        assert await net.land(raw) == "not landed"


async def test_a_delayed_transaction_lands_late(net: OpenChain) -> None:
    net.chain.faults = Faults(delay=1.0, delay_slots=3)
    raw = note("late", net.blockhash)
    assert [await net.land(raw) for _ in range(4)] == ["not landed"] * 3 + [None]


async def test_a_transaction_delayed_beyond_its_blockhash_never_lands(net: OpenChain) -> None:
    net.chain.faults = Faults(delay=1.0, delay_slots=150)
    raw = note("too late", net.blockhash)
    net.chain.accept(Transaction(raw))
    advance(net, 152)
    assert net.chain.record(Transaction(raw).signature) is None


async def test_a_reverted_swap_fails_for_slippage_and_changes_nothing_but_the_fee(net: OpenChain) -> None:
    net.chain.faults = Faults(revert=1.0)
    for kind, code in (("raydium_cpmm", 6005), ("meteora_damm_v2", 6002)):
        before = net.lamports(ALICE.pubkey)
        swap = ALICE.swap(net.pool(kind, SOL, USDC), SOL, USDC, Side.SELL, 10**9, 1)
        error = await net.land(ALICE.sign(swap, net.blockhash))
        assert error == {"InstructionError": [4, {"Custom": code}]}
        assert net.lamports(ALICE.pubkey) == before - 5000
    assert await net.land(note("reverted too", net.blockhash)) == {"InstructionError": [0, {"Custom": 1}]}


async def test_a_lagging_status_is_told_late_but_never_later_than_finalized(net: OpenChain) -> None:
    net.chain.faults = Faults(status_lag=1.0, status_lag_slots=2)
    raw = note("shy", net.blockhash)
    signature = Transaction(raw).signature
    assert await net.land(raw) == "not landed"
    assert net.chain.record(signature) is None
    net.chain.advance()
    assert net.chain.status(signature) is None
    net.chain.advance()
    assert net.chain.status(signature) is not None

    net.chain.faults = Faults(status_lag=1.0, status_lag_slots=1000)
    raw = note("very shy", net.blockhash)
    assert await net.land(raw) == "not landed"
    advance(net, 3)
    assert net.chain.status(Transaction(raw).signature) is None
    net.chain.advance()
    assert net.chain.status(Transaction(raw).signature) is not None


def test_faults_are_read_from_a_setting() -> None:
    assert parse_faults("") == Faults()
    assert parse_faults("drop=0.1, delay=1,delay_slots=7") == replace(
        Faults(), drop=0.1, delay=1.0, delay_slots=7
    )


@pytest.mark.parametrize(
    "text", ["drop", "drop=", "drop=x", "drp=1", "drop=1.1", "drop=-1", "delay_slots=1.5"]
)
def test_faults_that_make_no_sense_are_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(FaultError, match=r"drop|drp|delay_slots"):
        parse_faults(text)


# ---- Going on after an end


async def test_a_chain_goes_on_where_its_ledger_ends(tmp_path: Path) -> None:
    async with open_chain(tmp_path, market_pools=2) as net:
        await net.fund(ALICE, SOL, 10**13)
        raw = ALICE.sign(
            ALICE.swap(net.pool("raydium_cpmm", SOL, USDC), SOL, USDC, Side.SELL, 10**9, 1), net.blockhash
        )
        assert await net.land(raw) is None
        slot, accounts = net.chain.slot, dict(net.chain.accounts)
        hash_before = net.blockhash
    async with open_chain(tmp_path, market_pools=2) as again:
        # Up to nine empty slots may have gone unrecorded; they are made again.
        assert slot <= again.chain.slot <= slot + 9
        assert again.lamports(ALICE.pubkey) == accounts[ALICE.address].lamports
        assert again.chain.status(Transaction(raw).signature) is not None
        assert again.chain.simulate(Transaction(raw), "processed")[0].error == "AlreadyProcessed"
        assert await again.land(note("still good", hash_before)) is None
        assert again.chain.transaction_count == 2


async def test_empty_slots_lost_with_the_process_come_back_just_the_same(tmp_path: Path) -> None:
    async with open_chain(tmp_path / "one", market_pools=2, slot_seconds=0.01) as net:
        # Fewer slots than go on record together: the ledger has seen none of them.
        advance(net, 7)
        lost = {net.chain.slot: dict(net.chain.accounts)}
    async with open_chain(tmp_path / "one", market_pools=2, slot_seconds=0.01) as again:
        assert again.chain.slot >= max(lost)
        kept = again.chain.accounts_at(max(lost))
        assert {key: kept.get(key) for key in lost[max(lost)]} == lost[max(lost)]


# ---- Blocks


async def test_what_landed_in_a_slot_is_told_in_its_order_and_after_a_restart_too(tmp_path: Path) -> None:
    async with open_chain(tmp_path) as net:
        await net.fund(ALICE, SOL, 10**13)
        for text in ("first", "second", "third"):
            net.chain.accept(Transaction(note(text, net.blockhash)))
        net.chain.advance()
        slot = net.chain.slot
        landed = net.chain.landed_in(slot)
        assert [each.memo for each in landed] == ["first", "second", "third"]
        assert net.chain.landed_in(slot - 1) == net.chain.landed_in(slot + 1) == []
        await net.land(note("fourth", net.blockhash))
    async with open_chain(tmp_path) as net:
        assert net.chain.landed_in(slot) == landed
        assert [each.memo for each in net.chain.landed_in(slot + 1)] == ["fourth"]
        advance(net, STATUS_CACHE_SLOTS + 1)
        # As long as its status is known without a look into the ledger.
        assert net.chain.landed_in(slot) == []
