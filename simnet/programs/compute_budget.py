"""Compute budget: read when the transaction is decoded; does nothing when it runs."""

from __future__ import annotations

from engine.solana.programs import COMPUTE_BUDGET_PROGRAM
from simnet.bank import Call, Program


class ComputeBudget(Program):
    address = bytes(COMPUTE_BUDGET_PROGRAM)

    def execute(self, call: Call) -> None:
        """Succeed: a transaction whose budget is malformed was refused before any instruction ran."""
