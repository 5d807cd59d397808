"""What an error of the chain means for an order."""

from __future__ import annotations

from typing import Any, Final

from engine.domain.order import FailureReason
from engine.solana.programs import ASSOCIATED_TOKEN_PROGRAM, SYSTEM_PROGRAM, TOKEN_PROGRAM
from engine.solana.transactions import called_instruction
from engine.venues import VENUE_BY_PROGRAM

_MOVE_TOKENS: Final = frozenset({TOKEN_PROGRAM, SYSTEM_PROGRAM, ASSOCIATED_TOKEN_PROGRAM})
_INSUFFICIENT_FUNDS: Final = 1
"""An error of each of these."""


def explain_error(err: Any, raw_transaction: bytes) -> tuple[FailureReason, str]:
    """Return what the chain's error of our transaction means for its order, with a sentence for its user.

    `err` is a TransactionError as JSON, as getSignatureStatuses and getTransaction have it. One that keeps a
    transaction from landing at all (no fee, an old blockhash) is not among them.
    """
    name = next(iter(err)) if isinstance(err, dict) else err
    if name == "InsufficientFundsForRent":
        return FailureReason.INSUFFICIENT_FUNDS, "the wallet has too little SOL for the fees"
    if name != "InstructionError":
        return FailureReason.TRANSACTION_REVERTED, f"the transaction was reverted: {err}"
    index, cause = err["InstructionError"]
    program, data = called_instruction(raw_transaction, index) or (None, b"")
    code = cause.get("Custom") if isinstance(cause, dict) else None
    venue = None if program is None else VENUE_BY_PROGRAM.get(program)
    if venue is not None and isinstance(code, int):
        return venue.failure_reason(code, data)
    if program in _MOVE_TOKENS and code == _INSUFFICIENT_FUNDS:
        return FailureReason.INSUFFICIENT_FUNDS, "the wallet has too little of the input token"
    return (
        FailureReason.TRANSACTION_REVERTED,
        f"the transaction was reverted: instruction {index} ended with {cause}",
    )
