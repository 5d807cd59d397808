"""System program: transfers of lamports."""

from __future__ import annotations

from typing import Final

from simnet.accounts import SYSTEM, Account
from simnet.bank import Call, Program, ProgramError

TRANSFER: Final = 2
NOT_ENOUGH_LAMPORTS: Final = 1


class System(Program):
    address = SYSTEM

    def execute(self, call: Call) -> None:
        if len(call.data) < 12 or int.from_bytes(call.data[:4], "little") != TRANSFER:
            raise ProgramError("InvalidInstructionData")
        lamports = int.from_bytes(call.data[4:12], "little")
        call.key(1)
        if not call.is_signer(0):
            raise ProgramError("MissingRequiredSignature")
        source = call.get(0) or Account(0)
        if source.data or source.owner != SYSTEM:
            raise ProgramError("InvalidArgument", "Transfer: `from` must not carry data")
        if source.lamports < lamports:
            raise ProgramError(
                NOT_ENOUGH_LAMPORTS,
                f"Transfer: insufficient lamports {source.lamports}, need {lamports}",
            )
        call.put(0, Account(source.lamports - lamports))
        # Read only now: a transfer to oneself must not make money.
        target = call.get(1) or Account(0)
        call.put(1, Account(target.lamports + lamports, target.owner, target.data, target.executable))
