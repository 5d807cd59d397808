"""One transaction on accounts: all of it, or nothing but its fee.

A View is the accounts as a slot is building them; a transaction works on its own copy above it, which
is kept if every instruction succeeds and thrown away if one does not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
from solders.pubkey import Pubkey

from engine.domain.pools.pool import Clock
from simnet.accounts import (
    SYSTEM,
    TOKEN_ACCOUNT_SIZE,
    Account,
    balance_if_any,
    is_mint,
    mint_decimals,
    rent_exempt_minimum,
    token_mint,
    token_owner,
)
from simnet.transaction import Named, Outline, Transaction, TransactionError

logger = logging.getLogger(__name__)

_RENT_OF_NOTHING: Final = rent_exempt_minimum(0)
BUILT_IN_UNITS: Final = 150
"""What a built-in program's instruction uses up."""


class ProgramError(Exception):
    """An instruction failed: with a number of its program's own, or with one of the runtime's words."""

    def __init__(self, code: int | str, *logs: str) -> None:
        self.code = code
        self.logs = logs
        """What the program writes to the log before it fails."""
        super().__init__(code)


_WORDS: Final = {
    "InvalidArgument": "invalid program argument",
    "InvalidInstructionData": "invalid instruction data",
    "InvalidAccountData": "invalid account data for instruction",
    "IncorrectProgramId": "incorrect program id for instruction",
    "MissingRequiredSignature": "missing required signature for instruction",
    "NotEnoughAccountKeys": "insufficient account keys for instruction",
    "InvalidSeeds": "Provided seeds do not result in a valid address",
    "IllegalOwner": "Provided owner is not allowed",
    "ReadonlyDataModified": "instruction modified data of a read-only account",
    "ReadonlyLamportChange": "instruction changed the balance of a read-only account",
    "UninitializedAccount": "instruction requires an initialized account",
    "ComputationalBudgetExceeded": "Computational budget exceeded",
    "UnsupportedProgramId": "Unsupported program id",
    "ProgramFailedToComplete": "Program failed to complete",
}

_TEXTS: Final = {
    "AccountInUse": "Account in use",
    "AccountLoadedTwice": "Account loaded twice",
    "AccountNotFound": "Attempt to debit an account but found no record of a prior credit.",
    "ProgramAccountNotFound": "Attempt to load a program that does not exist",
    "InsufficientFundsForFee": "Insufficient funds for fee",
    "InvalidAccountForFee": "This account may not be used to pay transaction fees",
    "AlreadyProcessed": "This transaction has already been processed",
    "BlockhashNotFound": "Blockhash not found",
    "InvalidProgramForExecution": "This program may not be used for executing instructions",
    "SignatureFailure": "Transaction did not pass signature verification",
}


def error_text(error: TransactionError) -> str:
    """Return a transaction error as a node words it."""
    if isinstance(error, str):
        return _TEXTS.get(error, error)
    (kind, value), *_ = error.items()
    if kind == "InstructionError":
        index, what = value
        return f"Error processing Instruction {index}: {_instruction_error_text(what)}"
    if kind == "InsufficientFundsForRent":
        return (
            f"Transaction results in an account ({value['account_index']}) with insufficient funds for rent"
        )
    if kind == "DuplicateInstruction":
        return f"Transaction contains a duplicate instruction ({value}) that is not allowed"
    return kind


def _instruction_error_text(what: str | dict[str, int]) -> str:
    if isinstance(what, str):
        return _WORDS.get(what, what)
    return f"custom program error: {what['Custom']:#x}"


class Accounts(Protocol):
    """Where accounts are looked up."""

    def get(self, address: bytes, /) -> Account | None: ...


class View:
    """Accounts as the slot being built sees them: what it changed, above what was there before."""

    __slots__ = ("below", "changed")

    def __init__(self, below: Accounts) -> None:
        self.below = below
        self.changed: dict[bytes, Account] = {}

    def get(self, address: bytes) -> Account | None:
        account = self.changed.get(address)
        if account is None:
            return self.below.get(address)
        return account if account.lamports else None

    def existing(self, address: bytes) -> Account:
        """Return an account that is sure to be there."""
        account = self.get(address)
        assert account is not None
        return account

    def get_all(self, addresses: Sequence[bytes]) -> list[Account | None]:
        changed, below = self.changed.get, self.below.get
        return [
            account
            if (account := changed(address) or below(address)) is not None and account.lamports
            else None
            for address in addresses
        ]

    def put(self, address: bytes, account: Account) -> None:
        self.changed[address] = account


class TokenBalance(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What one account of a transaction held of a mint before and after. None: no such account then."""

    account_index: int
    mint: bytes
    owner: bytes
    decimals: int
    before: int | None
    after: int | None


class Meta(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a landed transaction left beside its changes. Lamports are of each of its keys."""

    logs: list[str]
    compute_units: int
    lamports_before: list[int]
    lamports_after: list[int]
    token_balances: list[TokenBalance]


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What became of a transaction."""

    error: TransactionError | None
    meta: Meta | None
    """None: it never landed, not even its fee was paid, and it left no trace."""


class Program:
    """One on-chain program."""

    address: bytes
    compute_units = BUILT_IN_UNITS
    """What one of its instructions uses up, whatever it does."""
    slippage_error: int | None = None
    """Its code for "exceeded slippage"; None if it does not swap."""

    def execute(self, call: Call) -> None:
        """Do what the call asks. Raises ProgramError."""
        raise NotImplementedError


class _Run:
    """A transaction under way."""

    __slots__ = ("accounts", "clock", "logs", "outline", "written")

    def __init__(self, outline: Outline, accounts: list[Account | None], clock: Clock) -> None:
        self.outline = outline
        self.accounts = accounts
        """Of each of its keys, as its instructions so far left it; None: there is none."""
        self.clock = clock
        self.written: dict[int, Account] = {}
        """The changed ones, by their index, in the order of their first change."""
        self.logs: list[str] = []


class Call:
    """One instruction, to its program: the accounts it names and the data."""

    __slots__ = ("_indexes", "_run", "accounts", "data", "keys", "log", "named")

    def __init__(self, run: _Run, named: Named, data: bytes) -> None:
        self._run = run
        self._indexes = named.indexes
        self.accounts = run.accounts
        """Of the whole transaction, as it is now."""
        self.named = named
        self.keys = named.keys
        self.data = data
        self.log = run.logs.append
        """Writes a line."""

    @property
    def clock(self) -> Clock:
        return self._run.clock

    def get(self, position: int) -> Account | None:
        """Return the account the instruction names at that position; None if it does not exist."""
        try:
            return self.accounts[self._indexes[position]]
        except IndexError:
            raise ProgramError("NotEnoughAccountKeys") from None

    def account(self, address: bytes) -> Account | None:
        """Return any account of the transaction; None if it does not exist."""
        index = self._run.outline.index_of.get(address)
        return None if index is None else self.accounts[index]

    def key(self, position: int) -> bytes:
        """Raises ProgramError where the instruction names too few accounts."""
        try:
            return self.keys[position]
        except IndexError:
            raise ProgramError("NotEnoughAccountKeys") from None

    def put(self, position: int, account: Account) -> None:
        """Change an account. Raises ProgramError if the message says it is read-only."""
        index = self._indexes[position]
        if not self.named.writable[position]:
            before = self.accounts[index]
            keeps_lamports = account.lamports == (0 if before is None else before.lamports)
            raise ProgramError("ReadonlyDataModified" if keeps_lamports else "ReadonlyLamportChange")
        self._run.written[index] = account
        self.accounts[index] = account if account.lamports else None

    def is_writable(self, position: int) -> bool:
        writable = self.named.writable
        return position < len(writable) and writable[position] == 1

    def is_signer(self, position: int) -> bool:
        signed = self.named.signed
        return position < len(signed) and signed[position] == 1


class Bank:
    """Executes transactions with the programs it is given."""

    def __init__(self, programs: list[Program], fee_collector: bytes) -> None:
        self._fee_collector = fee_collector
        self._decimals: dict[bytes, int] = {}
        """Of mints that were met; they never change."""
        self._programs = {
            program.address: (program, f"{name} invoke [1]", f"{name} success", f"{name} ")
            for program in programs
            for name in (f"Program {Pubkey.from_bytes(program.address)}",)
        }
        """With what the log says before and after them, and how it begins when they fail."""

    def execute(
        self,
        transaction: Transaction,
        view: View,
        clock: Clock,
        *,
        revert: bool = False,
    ) -> Outcome:
        """Run a transaction whose blockhash and signatures are good, leaving what it did in `view`.

        `revert` makes it fail: for exceeded slippage at its swap or, without one, after its last instruction.
        """
        keys = transaction.keys
        before = view.get_all(keys)
        payer = before[0]
        refused = self._refusal(transaction, payer, before)
        if refused is not None:
            return Outcome(refused, None)
        assert payer is not None
        paid = Account(payer.lamports - transaction.fee, payer.owner, payer.data)
        run = _Run(transaction.outline, before.copy(), clock)
        run.written[0] = paid
        run.accounts[0] = paid if paid.lamports else None
        error, units = self._run(run, transaction, revert)
        if error is None:
            error = self._rent_error(run.written, before)
        if error is not None:
            run.written = {0: paid}
        after = before.copy()
        lamports = [account.lamports if account else 0 for account in before]
        lamports_after = lamports.copy()
        changed = view.changed
        for index, account in run.written.items():
            changed[keys[index]] = after[index] = account
            lamports_after[index] = account.lamports
        if transaction.fee:
            collector = view.get(self._fee_collector) or Account(0)
            view.put(self._fee_collector, Account(collector.lamports + transaction.fee, collector.owner))
        balances = self._token_balances(before, after, view)
        return Outcome(error, Meta(run.logs, units, lamports, lamports_after, balances))

    def _refusal(
        self, transaction: Transaction, payer: Account | None, accounts: list[Account | None]
    ) -> TransactionError | None:
        """Return why it may not even be charged; None if it may. `accounts` are those of its keys."""
        if transaction.misconfigured is not None:
            return transaction.misconfigured
        if transaction.outline.has_twins:
            return "AccountLoadedTwice"
        if payer is None:
            return "AccountNotFound"
        if payer.owner != SYSTEM or payer.data:
            return "InvalidAccountForFee"
        left = payer.lamports - transaction.fee
        if left < 0:
            return "InsufficientFundsForFee"
        if 0 < left < _RENT_OF_NOTHING:
            return {"InsufficientFundsForRent": {"account_index": 0}}
        for program in transaction.calls.programs:
            if transaction.keys[program] not in self._programs:
                return "ProgramAccountNotFound" if accounts[program] is None else "InvalidProgramForExecution"
        return None

    def _run(self, run: _Run, transaction: Transaction, revert: bool) -> tuple[TransactionError | None, int]:
        """Return the first error and the compute units used."""
        keys, calls, limit = transaction.keys, transaction.calls, transaction.compute_units
        logs = run.logs
        used = 0
        called = zip(calls.programs, calls.named, transaction.data, strict=True)
        for index, (key, named, data) in enumerate(called):
            program, invoke, success, other = self._programs[keys[key]]
            logs.append(invoke)
            used += program.compute_units
            try:
                if used > limit:
                    raise ProgramError("ComputationalBudgetExceeded")
                if revert and program.slippage_error is not None:
                    raise ProgramError(program.slippage_error)
                program.execute(Call(run, named, data))
            except Exception as error:
                if not isinstance(error, ProgramError):
                    # A defect costs the transaction that meets it, not the node.
                    logger.exception("%sraised an error; its data was %s", other, data.hex())
                    error = ProgramError("ProgramFailedToComplete")
                code = {"Custom": error.code} if isinstance(error.code, int) else error.code
                logs.extend(error.logs)
                logs.append(f"{other}failed: {_instruction_error_text(code)}")
                return {"InstructionError": [index, code]}, min(used, limit)
            logs.append(success)
        if revert:
            return {"InstructionError": [len(calls.programs) - 1, {"Custom": 1}]}, used
        return None, used

    def _rent_error(
        self, written: dict[int, Account], before: list[Account | None]
    ) -> TransactionError | None:
        """Accounts must end empty or rent-exempt; one that was below before may stay below."""
        for index, account in written.items():
            if 0 < account.lamports < rent_exempt_minimum(len(account.data)):
                earlier = before[index]
                if earlier is None or earlier.lamports >= rent_exempt_minimum(len(earlier.data)):
                    return {"InsufficientFundsForRent": {"account_index": index}}
        return None

    def _token_balances(
        self, before: list[Account | None], after: list[Account | None], view: View
    ) -> list[TokenBalance]:
        balances = []
        for index, later in enumerate(after):
            earlier = before[index]
            if later is earlier and (later is None or len(later.data) != TOKEN_ACCOUNT_SIZE):
                # Most are programs and mints.
                continue
            had = None if earlier is None else balance_if_any(earlier)
            has = had if later is earlier else None if later is None else balance_if_any(later)
            some = later if has is not None else earlier if had is not None else None
            if some is not None:
                mint = token_mint(some)
                decimals = self._mint_decimals(mint, view)
                balances.append(TokenBalance(index, mint, token_owner(some), decimals, had, has))
        return balances

    def _mint_decimals(self, mint: bytes, view: View) -> int:
        decimals = self._decimals.get(mint)
        if decimals is None:
            account = view.get(mint)
            if account is None or not is_mint(account):
                return 0
            decimals = self._decimals[mint] = mint_decimals(account)
        return decimals


def log_failure(program: bytes, code: int) -> tuple[str, str]:
    """Return the log lines of an inner call that failed; they come before the outer program's own."""
    name = Pubkey.from_bytes(program)
    return (f"Program {name} invoke [2]", f"Program {name} failed: custom program error: {code:#x}")
