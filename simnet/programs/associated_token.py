"""Associated token program: makes the one account in which a wallet keeps a mint."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from solders.pubkey import Pubkey

from engine.solana.programs import ASSOCIATED_TOKEN_PROGRAM, associated_token_account
from simnet.accounts import (
    SYSTEM,
    TOKEN,
    TOKEN_ACCOUNT_SIZE,
    Account,
    is_mint,
    is_token_account,
    new_token_account,
    rent_exempt_minimum,
    token_mint,
    token_owner,
    with_lamports_of,
)
from simnet.bank import Call, Program, ProgramError, log_failure

CREATE: Final = 0
CREATE_IDEMPOTENT: Final = 1
_NOT_ENOUGH_LAMPORTS: Final = 1
_NOTHING: Final = Account(0)
_RESERVE: Final = rent_exempt_minimum(TOKEN_ACCOUNT_SIZE)


@lru_cache(maxsize=65_536)
def address_of(owner: bytes, mint: bytes) -> bytes:
    """Return the wallet's account of a mint."""
    return bytes(associated_token_account(Pubkey.from_bytes(owner), Pubkey.from_bytes(mint)))


class AssociatedToken(Program):
    address = bytes(ASSOCIATED_TOKEN_PROGRAM)
    compute_units = 13_000

    def execute(self, call: Call) -> None:
        kind = call.data[0] if call.data else CREATE
        if kind not in (CREATE, CREATE_IDEMPOTENT):
            raise ProgramError("InvalidInstructionData")
        call.log("Program log: Create" if kind == CREATE else "Program log: CreateIdempotent")
        try:
            _, address, owner, mint, system, token, *_ = call.keys
        except ValueError:
            raise ProgramError("NotEnoughAccountKeys") from None
        if token != TOKEN or system != SYSTEM:
            raise ProgramError("IncorrectProgramId")
        if address != address_of(owner, mint):
            raise ProgramError(
                "InvalidSeeds", "Program log: Error: Associated address does not match seed derivation"
            )
        existing = call.get(1) or _NOTHING
        if kind == CREATE_IDEMPOTENT and is_token_account(existing):
            if token_mint(existing) != mint or token_owner(existing) != owner:
                raise ProgramError("InvalidAccountData")
            return
        if existing.owner != SYSTEM:
            raise ProgramError("IllegalOwner")
        mint_account = call.get(3)
        if mint_account is None or not is_mint(mint_account):
            raise ProgramError("InvalidAccountData")
        self._create(call, existing, mint, owner)

    def _create(self, call: Call, existing: Account, mint: bytes, owner: bytes) -> None:
        payer = call.get(0) or _NOTHING
        # Lamports sent ahead count towards the reserve.
        cost = max(0, _RESERVE - existing.lamports)
        if not call.is_signer(0):
            raise ProgramError("MissingRequiredSignature")
        if payer.lamports < cost:
            raise ProgramError(
                _NOT_ENOUGH_LAMPORTS,
                f"Transfer: insufficient lamports {payer.lamports}, need {cost}",
                *log_failure(SYSTEM, _NOT_ENOUGH_LAMPORTS),
            )
        call.put(0, Account(payer.lamports - cost, payer.owner, payer.data))
        call.put(1, with_lamports_of(new_token_account(mint, owner), existing))
