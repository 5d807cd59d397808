"""Swaps with amounts at every edge, and with accounts and data that somebody has tampered with: each is done
or refused in a program's own words, and neither makes nor loses a token."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Final

import pytest
from solders.instruction import AccountMeta, Instruction
from solders.pubkey import Pubkey

from engine.domain.order import Side
from engine.domain.pools.pool import Clock
from engine.domain.tokens import SOL, TOKENS
from engine.solana.instructions import set_compute_unit_limit
from engine.solana.programs import associated_token_account
from engine.venues import VENUES
from simnet.accounts import Account, is_token_account, token_balance, token_mint
from simnet.bank import View
from simnet.genesis import GenesisPool
from simnet.transaction import Transaction, Unsanitary
from tests.simnet_wallets import NOON, OpenChain, SigningWallet, open_chain

ALICE = SigningWallet(1)
ENOUGH: Final = set_compute_unit_limit(1_400_000)
EDGES: Final = (0, 1, 2, 255, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1)


def some_amount(random: Random) -> int:
    return random.choice((*EDGES, *(random.randrange(10**digits) for digits in range(3, 19, 2))))


def some_swap(random: Random, net: OpenChain, pool: GenesisPool) -> Instruction:
    a_to_b = random.random() < 0.5
    mints = (pool.keys.mint_a, pool.keys.mint_b)
    paid, received = mints if a_to_b else mints[::-1]
    swap = pool.venue.swap_instruction(
        pool.keys,
        net.accounts_of(pool),
        a_to_b=a_to_b,
        side=random.choice((Side.SELL, Side.BUY)),
        amount=some_amount(random),
        threshold_amount=some_amount(random),
        owner=ALICE.pubkey,
        input_account=associated_token_account(ALICE.pubkey, paid),
        output_account=associated_token_account(ALICE.pubkey, received),
    )
    return Instruction(swap.program_id, swap.data, list(swap.accounts))


def tampered(random: Random, swap: Instruction, every: list[Pubkey]) -> Instruction:
    """Return the swap with one thing about it changed."""
    metas, data = list(swap.accounts), swap.data
    at, other = random.randrange(len(metas)), random.randrange(len(metas))
    place = random.randrange(len(data)) if data else 0
    kind = random.randrange(8)
    if kind == 0 and len(metas) > 1:
        del metas[at]
    elif kind == 1:
        metas.insert(at, metas[other])
    elif kind == 2:
        metas[at] = metas[other]
    elif kind == 3:
        metas[at], metas[other] = metas[other], metas[at]
    elif kind == 4:
        metas[at] = AccountMeta(random.choice(every), False, random.random() < 0.7)
    elif kind == 5:
        metas[at] = AccountMeta(metas[at].pubkey, metas[at].is_signer, not metas[at].is_writable)
    elif kind == 6:
        data = (
            data[:place] + bytes([random.choice((0, 1, 2, 255, random.randrange(256)))]) + data[place + 1 :]
        )
    else:
        data = data[:place] if random.random() < 0.5 else data + random.randbytes(10)
    return Instruction(swap.program_id, data, metas)


def change_of_tokens(before: dict[bytes, Account], view: View) -> dict[bytes, int]:
    """Return by how much there is more of each mint than before."""
    changes: dict[bytes, int] = {}
    for address, account in view.changed.items():
        if is_token_account(account):
            change = token_balance(account) - token_balance(before[address])
            changes[token_mint(account)] = changes.get(token_mint(account), 0) + change
    return changes


@pytest.mark.parametrize("kind", [venue.kind for venue in VENUES])
async def test_no_swap_ends_otherwise_than_a_program_ends_it(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    random = Random(kind)
    async with open_chain(tmp_path) as net:
        await net.fund(ALICE, SOL, 10**15)
        for token in TOKENS:
            net.rpc.simnet_fund([{"wallet": str(ALICE.pubkey), "mint": token.mint, "amount": 10**15}])
        pools = [pool for pool in net.pools if pool.venue.kind == kind]
        nobody = Pubkey.from_bytes(random.randbytes(32))
        every = [*map(Pubkey.from_bytes, net.chain.accounts), *[nobody] * 20]
        done = 0
        for _ in range(600):
            swap = some_swap(random, net, random.choice(pools))
            for _ in range(random.choice((0, 1, 1, 2))):
                swap = tampered(random, swap, every)
            metas = [
                AccountMeta(each.pubkey, each.is_signer and each.pubkey == ALICE.pubkey, each.is_writable)
                for each in swap.accounts
            ]
            try:
                swap = Instruction(swap.program_id, swap.data, metas)
                transaction = Transaction(ALICE.sign([ENOUGH, swap], net.blockhash))
            except Unsanitary:
                continue
            view = View(net.chain.accounts)
            outcome = net.chain._bank.execute(transaction, view, Clock(net.chain.slot, NOON))
            assert outcome.meta is not None
            assert not any(change_of_tokens(net.chain.accounts, view).values())
            if outcome.error is None:
                done += 1
                net.chain.accounts.update(view.changed)
    assert done > 30
    assert caplog.records == []
