"""One transaction on accounts: all of it, or nothing but its fee.

A View is the accounts as a slot is building them; a transaction works on its own copy above it, which
is kept if every instruction succeeds and thrown away if one does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
from solders.pubkey import Pubkey

from engine.domain.pools.pool import Clock
from simnet.accounts import (
    SYSTEM,
    Account,
    is_mint,
    is_token_account,
    mint_decimals,
    rent_exempt_minimum,
    token_balance,
    token_mint,
    token_owner,
)
from simnet.transaction import Transaction, TransactionError

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
    "InvalidInstructionData": "invalid instruction data",
    "InvalidAccountData": "invalid account data for instruction",
    "IncorrectProgramId": "incorrect program id for instruction",
    "MissingRequiredSignature": "missing required signature for instruction",
    "NotEnoughAccountKeys": "insufficient account keys for instruction",
    "InvalidSeeds": "Provided seeds do not result in a valid address",
    "IllegalOwner": "Provided owner is not allowed",
    "ReadonlyDataModified": "instruction modified data of a read-only account",
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

    def get_all(self, addresses: Sequence[bytes]) -> list[Account | None]:
        changed, below = self.changed.get, self.below.get
        found = [changed(address) or below(address) for address in addresses]
        return [account if account is not None and account.lamports else None for account in found]

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
    """A transaction under way: the accounts it names, as its instructions so far left them."""

    __slots__ = ("accounts", "clock", "logs", "transaction", "written")

    def __init__(self, transaction: Transaction, accounts: dict[bytes, Account | None], clock: Clock) -> None:
        self.transaction = transaction
        self.accounts = accounts
        self.clock = clock
        self.written: dict[bytes, Account] = {}
        self.logs: list[str] = []


class Call:
    """One instruction, to its program: the accounts it names and the data."""

    __slots__ = ("_accounts", "_indexes", "_run", "data", "keys")

    def __init__(self, run: _Run, indexes: bytes, data: bytes) -> None:
        self._run = run
        self._accounts = run.accounts
        self._indexes = indexes
        self.data = data
        keys = run.transaction.keys
        self.keys = [keys[index] for index in indexes]

    @property
    def clock(self) -> Clock:
        return self._run.clock

    def get(self, position: int) -> Account | None:
        """Return the account the instruction names at that position; None if it does not exist."""
        keys = self.keys
        if position >= len(keys):
            raise ProgramError("NotEnoughAccountKeys")
        account = self._accounts.get(keys[position])
        return account if account is not None and account.lamports else None

    def account(self, address: bytes) -> Account | None:
        """Return any account of the transaction; None if it does not exist."""
        account = self._accounts.get(address)
        return account if account is not None and account.lamports else None

    def key(self, position: int) -> bytes:
        """Raises ProgramError where the instruction names too few accounts."""
        if position >= len(self.keys):
            raise ProgramError("NotEnoughAccountKeys")
        return self.keys[position]

    def put(self, position: int, account: Account) -> None:
        """Change an account. Raises ProgramError if the message says it is read-only."""
        run = self._run
        if not run.transaction.writable[self._indexes[position]]:
            raise ProgramError("ReadonlyDataModified")
        address = self.keys[position]
        run.written[address] = self._accounts[address] = account

    def is_writable(self, position: int) -> bool:
        indexes = self._indexes
        return position < len(indexes) and self._run.transaction.writable[indexes[position]] == 1

    def is_signer(self, position: int) -> bool:
        return (
            position < len(self._indexes) and self._indexes[position] < self._run.transaction.signature_count
        )

    def log(self, line: str) -> None:
        self._run.logs.append(line)


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
        refused, payer = self._load(transaction, view)
        if refused is not None:
            return Outcome(refused, None)
        assert payer is not None
        keys = transaction.keys
        before = view.get_all(keys)
        paid = Account(payer.lamports - transaction.fee, payer.owner, payer.data)
        run = _Run(transaction, dict(zip(keys, before, strict=True)), clock)
        run.written[keys[0]] = run.accounts[keys[0]] = paid
        error, units = self._run(run, revert)
        if error is None:
            error = self._rent_error(run, before)
        if error is None:
            view.changed.update(run.written)
        else:
            view.put(keys[0], paid)
        if transaction.fee:
            collector = view.get(self._fee_collector) or Account(0)
            view.put(self._fee_collector, Account(collector.lamports + transaction.fee, collector.owner))
        kept = run.written if error is None else {keys[0]: paid}
        after = [kept.get(key, earlier) for key, earlier in zip(keys, before, strict=True)]
        return Outcome(
            error,
            Meta(
                logs=run.logs,
                compute_units=units,
                lamports_before=[account.lamports if account else 0 for account in before],
                lamports_after=[account.lamports if account else 0 for account in after],
                token_balances=self._token_balances(before, after, view),
            ),
        )

    def _load(self, transaction: Transaction, view: View) -> tuple[TransactionError | None, Account | None]:
        """Return why it may not even be charged, or else the payer's account."""
        if transaction.misconfigured is not None:
            return transaction.misconfigured, None
        keys = transaction.keys
        if len(set(keys)) != len(keys):
            return "AccountLoadedTwice", None
        payer = view.get(keys[0])
        if payer is None:
            return "AccountNotFound", None
        if payer.owner != SYSTEM or payer.data:
            return "InvalidAccountForFee", None
        left = payer.lamports - transaction.fee
        if left < 0:
            return "InsufficientFundsForFee", None
        if 0 < left < rent_exempt_minimum(0):
            return {"InsufficientFundsForRent": {"account_index": 0}}, None
        for instruction in transaction.instructions:
            program = keys[instruction.program]
            if program not in self._programs:
                return (
                    "ProgramAccountNotFound" if view.get(program) is None else "InvalidProgramForExecution"
                ), None
        return None, payer

    def _run(self, run: _Run, revert: bool) -> tuple[TransactionError | None, int]:
        """Return the first error and the compute units used."""
        transaction = run.transaction
        logs = run.logs
        used = 0
        for index, instruction in enumerate(transaction.instructions):
            program, invoke, success, other = self._programs[transaction.keys[instruction.program]]
            logs.append(invoke)
            used += program.compute_units
            try:
                if used > transaction.compute_units:
                    raise ProgramError("ComputationalBudgetExceeded")
                if revert and program.slippage_error is not None:
                    raise ProgramError(program.slippage_error)
                program.execute(Call(run, instruction.accounts, instruction.data))
            except ProgramError as error:
                code = {"Custom": error.code} if isinstance(error.code, int) else error.code
                logs.extend(error.logs)
                logs.append(f"{other}failed: {_instruction_error_text(code)}")
                return {"InstructionError": [index, code]}, min(used, transaction.compute_units)
            logs.append(success)
        if revert:
            return {"InstructionError": [len(transaction.instructions) - 1, {"Custom": 1}]}, used
        return None, used

    def _rent_error(self, run: _Run, before: list[Account | None]) -> TransactionError | None:
        """Accounts must end empty or rent-exempt; one that was below before may stay below."""
        for address, account in run.written.items():
            if 0 < account.lamports < rent_exempt_minimum(len(account.data)):
                index = run.transaction.keys.index(address)
                earlier = before[index]
                if earlier is None or earlier.lamports >= rent_exempt_minimum(len(earlier.data)):
                    return {"InsufficientFundsForRent": {"account_index": index}}
        return None

    def _token_balances(
        self, before: list[Account | None], after: list[Account | None], view: View
    ) -> list[TokenBalance]:
        balances = []
        for index, earlier in enumerate(before):
            later = after[index]
            held = earlier is not None and is_token_account(earlier)
            holds = held if later is earlier else later is not None and is_token_account(later)
            if not (held or holds):
                continue
            some = later if holds else earlier
            assert some is not None
            mint = token_mint(some)
            balances.append(
                TokenBalance(
                    index,
                    mint,
                    token_owner(some),
                    self._mint_decimals(mint, view),
                    token_balance(earlier) if earlier is not None and held else None,
                    token_balance(later) if later is not None and holds else None,
                )
            )
        return balances

    def _mint_decimals(self, mint: bytes, view: View) -> int:
        decimals = self._decimals.get(mint)
        if decimals is None:
            account = view.get(mint)
            if account is None or not is_mint(account):
                return 0
            decimals = self._decimals[mint] = mint_decimals(account)
        return decimals


def log_failure(program: bytes, code: int, *, depth: int = 2) -> tuple[str, str]:
    """Return the log lines of an inner call that failed; they come before the outer program's own."""
    name = Pubkey.from_bytes(program)
    return (f"Program {name} invoke [{depth}]", f"Program {name} failed: custom program error: {code:#x}")
