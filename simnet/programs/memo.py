"""Memo v2: UTF-8 text in the log, and the signatures of whatever accounts it names."""

from __future__ import annotations

from engine.solana.programs import MEMO_PROGRAM
from simnet.bank import Call, Program, ProgramError


class Memo(Program):
    address = bytes(MEMO_PROGRAM)
    compute_units = 5_000

    def execute(self, call: Call) -> None:
        for position in range(len(call.keys)):
            if not call.is_signer(position):
                raise ProgramError("MissingRequiredSignature")
        try:
            text = call.data.decode("utf-8")
        except UnicodeDecodeError:
            raise ProgramError("InvalidInstructionData") from None
        call.log(f'Program log: Memo (len {len(call.data)}): "{text}"')
