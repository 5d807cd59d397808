"""Wallets that sign transactions for simnet, and a chain without sockets to send them to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from solders import instruction as solders_instruction
from solders.hash import Hash
from solders.instruction import AccountMeta
from solders.keypair import Keypair
from solders.message import Message, MessageV0, to_bytes_versioned
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction

from engine.domain.order import Side
from engine.domain.tokens import Token
from engine.solana.instructions import Instruction, Names
from engine.solana.programs import associated_token_account
from engine.solana.transactions import swap_instructions
from simnet.accounts import Account, is_token_account, token_balance, token_mint
from simnet.bank import Bank
from simnet.chain import FIRST_SLOT, Chain, Timing
from simnet.faults import Faults
from simnet.genesis import GenesisPool, make_genesis
from simnet.ledger import Ledger
from simnet.market import Market
from simnet.programs import all_programs
from simnet.rpc import Rpc
from simnet.transaction import Transaction

NOON: Final = 1_800_000_000
"""The tests' clock, in unix seconds."""


class SigningWallet:
    """Signs what the engine would not: anything."""

    def __init__(self, number: int = 1) -> None:
        self.keypair = Keypair.from_seed(bytes([number]) * 32)
        self.pubkey = self.keypair.pubkey()
        self.address = bytes(self.pubkey)

    def sign(
        self,
        instructions: Sequence[Instruction | solders_instruction.Instruction],
        blockhash: bytes,
        *,
        legacy: bool = False,
        others: Sequence[Keypair] = (),
    ) -> bytes:
        """Return the bytes of a signed transaction that this wallet pays for."""
        recent = Hash.from_bytes(blockhash)
        calls = [
            solders_instruction.Instruction(each.program_id, each.data, list(each.accounts))
            for each in instructions
        ]
        if legacy:
            message: Message | MessageV0 = Message.new_with_blockhash(calls, self.pubkey, recent)
        else:
            message = MessageV0.try_compile(self.pubkey, calls, [], recent)
        signatures = [
            keypair.sign_message(to_bytes_versioned(message)) for keypair in (self.keypair, *others)
        ]
        return bytes(VersionedTransaction.populate(message, signatures))

    def token_account(self, token: Token) -> Pubkey:
        return associated_token_account(self.pubkey, Pubkey.from_string(token.mint))

    def swap(
        self,
        pool: GenesisPool,
        input_token: Token,
        output_token: Token,
        side: Side,
        amount: int,
        threshold_amount: int,
        accounts: Mapping[Pubkey, bytes] = MappingProxyType({}),
    ) -> list[Instruction]:
        """Return a swap with what goes around it, as the engine makes it; `accounts` are the pool's."""
        input_mint, output_mint = (Pubkey.from_string(token.mint) for token in (input_token, output_token))
        swap = pool.venue.swap_instruction(
            pool.keys,
            accounts,
            a_to_b=pool.keys.mint_a == input_mint,
            side=side,
            amount=amount,
            threshold_amount=threshold_amount,
            owner=self.pubkey,
            input_account=self.token_account(input_token),
            output_account=self.token_account(output_token),
        )
        spent = amount if side is Side.SELL else threshold_amount
        return swap_instructions(self.pubkey, input_mint, output_mint, spent, swap)


class OpenChain:
    """A chain whose slots tick when the test says so."""

    def __init__(self, chain: Chain, rpc: Rpc, pools: tuple[GenesisPool, ...]) -> None:
        self.chain = chain
        self.rpc = rpc
        self.pools = pools

    @property
    def blockhash(self) -> bytes:
        return self.chain.blockhash(self.chain.slot)

    def pool(self, kind: str, base: Token, quote: Token) -> GenesisPool:
        """Return the deepest pool of that program and pair."""
        return next(
            pool
            for pool in self.pools
            if pool.venue.kind == kind and pool.base == base and pool.quote == quote
        )

    def accounts_of(self, pool: GenesisPool) -> dict[Pubkey, bytes]:
        """Return what a pool consists of, as it is now."""

        def find(key: Pubkey) -> bytes | None:
            account = self.chain.accounts.get(bytes(key))
            return None if account is None else account.data

        return pool.venue.accounts(pool.keys, find)

    async def fund(self, wallet: SigningWallet, token: Token, amount: int) -> None:
        self.rpc.simnet_fund([{"wallet": str(wallet.pubkey), "mint": token.symbol, "amount": amount}])

    async def land(self, raw: bytes) -> Any:
        """Send a transaction, tick once, and return its error; "not landed" if there is none of it."""
        transaction = Transaction(raw)
        self.chain.accept(transaction)
        self.chain.advance()
        status = self.chain.status(transaction.signature)
        return "not landed" if status is None else status.error

    def lamports(self, address: Pubkey) -> int:
        account = self.chain.accounts.get(bytes(address))
        return 0 if account is None else account.lamports

    def tokens(self, address: Pubkey) -> int:
        """Return a token account's balance; 0 where there is none."""
        account = self.chain.accounts.get(bytes(address))
        return 0 if account is None else token_balance(account)


@asynccontextmanager
async def open_chain(
    folder: Path,
    *,
    seed: int = 1,
    market_pools: int = 0,
    launch_slots: int = 0,
    faults: Faults | None = None,
    **timing: Any,
) -> AsyncIterator[OpenChain]:
    """Run a chain on a ledger in `folder`; timing is Timing's, where not its defaults."""
    genesis = make_genesis(seed)
    figures: dict[str, Any] = {
        "slot_seconds": 0.4,
        "confirmed_slots": 1,
        "finalized_slots": 4,
        "landing_slots": 0,
        "landing_jitter_slots": 0,
    }
    chain = Chain(
        genesis,
        Bank(all_programs(), genesis.fee_collector),
        Market(genesis, seed, market_pools, FIRST_SLOT),
        Ledger(folder),
        seed=seed,
        timing=Timing(**{**figures, **timing}),
        faults=faults or Faults(),
        unix_seconds=lambda: NOON,
        launch_slots=launch_slots,
    )
    chain.start()
    try:
        yield OpenChain(chain, Rpc(chain, genesis.faucet), genesis.pools)
    finally:
        chain.close()


def without_account(instruction: Instruction, position: int, other: Pubkey) -> Instruction:
    """Return the instruction with another account at one position."""
    metas = list(instruction.accounts)
    metas[position] = AccountMeta(other, metas[position].is_signer, metas[position].is_writable)
    return Instruction(Names(instruction.program_id, tuple(metas)), instruction.data)


def supply_held(accounts: dict[bytes, Account], token: Token) -> int:
    """Return how many base units of a token all accounts hold together."""
    mint = bytes(Pubkey.from_string(token.mint))
    return sum(
        token_balance(account)
        for account in accounts.values()
        if is_token_account(account) and token_mint(account) == mint
    )


def lamports_held(accounts: dict[bytes, Account]) -> int:
    return sum(account.lamports for account in accounts.values())
