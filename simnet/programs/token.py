"""SPL Token: transfers, closing, and keeping wrapped SOL in step with its lamports."""

from __future__ import annotations

from typing import Final

from simnet.accounts import (
    TOKEN,
    Account,
    balance_if_any,
    is_frozen,
    is_mint,
    is_native,
    mint_decimals,
    rent_exempt_minimum,
    token_balance,
    token_mint,
    token_owner,
    with_token_balance,
    with_token_change,
)
from simnet.bank import Call, Program, ProgramError

TRANSFER: Final = 3
CLOSE_ACCOUNT: Final = 9
TRANSFER_CHECKED: Final = 12
SYNC_NATIVE: Final = 17

INSUFFICIENT_FUNDS: Final = 1
INVALID_MINT: Final = 2
MINT_MISMATCH: Final = 3
OWNER_MISMATCH: Final = 4
INVALID_INSTRUCTION: Final = 12
NON_NATIVE_HAS_BALANCE: Final = 11
OVERFLOW: Final = 14
ACCOUNT_FROZEN: Final = 17
MINT_DECIMALS_MISMATCH: Final = 18
NON_NATIVE_NOT_SUPPORTED: Final = 19

_U64_MAX: Final = 2**64 - 1


class Token(Program):
    address = TOKEN
    compute_units = 4_700

    def execute(self, call: Call) -> None:
        data = call.data
        kind = data[0] if data else -1
        if kind == TRANSFER and len(data) >= 9:
            call.log("Program log: Instruction: Transfer")
            _transfer(call, 0, 1, 2, int.from_bytes(data[1:9], "little"))
        elif kind == TRANSFER_CHECKED and len(data) >= 10:
            call.log("Program log: Instruction: TransferChecked")
            _transfer_checked(call, int.from_bytes(data[1:9], "little"), data[9])
        elif kind == CLOSE_ACCOUNT:
            call.log("Program log: Instruction: CloseAccount")
            _close(call)
        elif kind == SYNC_NATIVE:
            call.log("Program log: Instruction: SyncNative")
            _sync_native(call)
        else:
            raise ProgramError(INVALID_INSTRUCTION, "Program log: Error: Invalid instruction")


def read_token_account(call: Call, position: int) -> Account:
    """Return the token account at that position. Raises ProgramError if it is none."""
    return _account_and_balance(call, position)[0]


def _account_and_balance(call: Call, position: int) -> tuple[Account, int]:
    account = call.get(position)
    if account is None:
        raise ProgramError("IncorrectProgramId")
    balance = balance_if_any(account)
    if balance is None:
        raise ProgramError("IncorrectProgramId" if account.owner != TOKEN else "InvalidAccountData")
    return account, balance


def move(call: Call, source: int, target: int, amount: int) -> None:
    """Move base units between two token accounts of one mint, whoever signed. Raises ProgramError."""
    giver, given = _account_and_balance(call, source)
    taker, taken = _account_and_balance(call, target)
    if is_frozen(giver) or is_frozen(taker):
        raise ProgramError(ACCOUNT_FROZEN, "Program log: Error: Account is frozen")
    if given < amount:
        raise ProgramError(INSUFFICIENT_FUNDS, "Program log: Error: insufficient funds")
    if token_mint(giver) != token_mint(taker):
        raise ProgramError(MINT_MISMATCH, "Program log: Error: Account not associated with this Mint")
    if call.keys[source] == call.keys[target]:
        return
    if taken + amount > _U64_MAX:
        raise ProgramError(OVERFLOW, "Program log: Error: Operation overflowed")
    call.put(source, with_token_change(giver, -amount))
    call.put(target, with_token_change(taker, amount))


def _transfer(call: Call, source: int, target: int, owner: int, amount: int) -> None:
    call.key(owner)
    giver = read_token_account(call, source)
    # The program looks at the balance before it looks at who asks.
    if token_balance(giver) >= amount:
        _check_owner(call, giver, owner)
    move(call, source, target, amount)


def _transfer_checked(call: Call, amount: int, decimals: int) -> None:
    mint = call.get(1)
    giver = read_token_account(call, 0)
    if token_mint(giver) != call.key(1):
        raise ProgramError(MINT_MISMATCH, "Program log: Error: Account not associated with this Mint")
    if mint is None or not is_mint(mint):
        raise ProgramError(INVALID_MINT, "Program log: Error: Invalid Mint")
    if mint_decimals(mint) != decimals:
        raise ProgramError(
            MINT_DECIMALS_MISMATCH, "Program log: Error: decimals different from the Mint decimals"
        )
    _transfer(call, 0, 2, 3, amount)


def _check_owner(call: Call, account: Account, position: int) -> None:
    if token_owner(account) != call.key(position):
        raise ProgramError(OWNER_MISMATCH, "Program log: Error: owner does not match")
    if not call.is_signer(position):
        raise ProgramError("MissingRequiredSignature")


def _close(call: Call) -> None:
    account = read_token_account(call, 0)
    call.key(2)
    if call.key(0) == call.key(1):
        raise ProgramError("InvalidAccountData")
    if not is_native(account) and token_balance(account):
        raise ProgramError(
            NON_NATIVE_HAS_BALANCE,
            "Program log: Error: Non-native account can only be closed if its balance is zero",
        )
    _check_owner(call, account, 2)
    target = call.get(1) or Account(0)
    call.put(1, Account(target.lamports + account.lamports, target.owner, target.data, target.executable))
    call.put(0, Account(0))


def _sync_native(call: Call) -> None:
    account = read_token_account(call, 0)
    if not is_native(account):
        raise ProgramError(
            NON_NATIVE_NOT_SUPPORTED, "Program log: Error: Instruction does not support non-native tokens"
        )
    amount = account.lamports - rent_exempt_minimum(len(account.data))
    if amount < token_balance(account):
        raise ProgramError("InvalidAccountData")
    # Lamports stay; only the balance catches up with them.
    synced = with_token_balance(account, amount)
    call.put(0, Account(account.lamports, synced.owner, synced.data))
