"""From bytes to a transaction: decoding, sanity, fees, signatures.

solders decodes and verifies. Keys and blockhash are then sliced out of the bytes themselves, which is
several times cheaper than making an object of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from solders.transaction import VersionedTransaction

from engine.solana.programs import COMPUTE_BUDGET_PROGRAM, MEMO_PROGRAM
from simnet.accounts import LAMPORTS_PER_SIGNATURE

MAX_RAW_SIZE: Final = 1232
MAX_BASE64_SIZE: Final = 1644
MAX_BASE58_SIZE: Final = 1683
MAX_COMPUTE_UNITS: Final = 1_400_000
_DEFAULT_UNITS_PER_INSTRUCTION: Final = 200_000
_COMPUTE_BUDGET: Final = bytes(COMPUTE_BUDGET_PROGRAM)
_MEMO: Final = bytes(MEMO_PROGRAM)
_VERSIONED: Final = 0x80

TransactionError = str | dict[str, Any]
"""As JSON-RPC spells it: "BlockhashNotFound", {"InstructionError": [2, {"Custom": 6005}]}."""


class Undecodable(Exception):
    """The bytes are no transaction; the message is the node's own."""


class Unsanitary(Exception):
    """Decoded, but against the rules of a message; the message is the node's own."""


@dataclass(frozen=True, slots=True)
class Instruction:
    program: int
    """Index into the transaction's keys."""
    accounts: bytes
    """One index a byte."""
    data: bytes


class Transaction:
    """A decoded transaction. Its id is its first signature."""

    __slots__ = (
        "blockhash",
        "compute_units",
        "decoded",
        "fee",
        "instructions",
        "keys",
        "legacy",
        "memo",
        "misconfigured",
        "raw",
        "read_only_count",
        "signature",
        "signature_count",
        "writable_signer_count",
    )

    def __init__(self, raw: bytes) -> None:
        """Raises Undecodable or Unsanitary."""
        try:
            decoded = VersionedTransaction.from_bytes(raw)
        except Exception as error:
            raise Undecodable(
                "failed to deserialize solana_transaction::versioned::VersionedTransaction: "
                + str(error).removeprefix("Deserialization error: ")
            ) from None
        message = decoded.message
        header = message.header
        signed = header.num_required_signatures
        self.raw = raw
        self.decoded = decoded
        self.signature_count = signed
        self.writable_signer_count = signed - header.num_readonly_signed_accounts
        self.read_only_count = header.num_readonly_unsigned_accounts

        # In 1232 bytes there is room for fewer than 128 signatures or keys: each count is one byte.
        at = 1 + 64 * raw[0]
        self.signature = raw[1:65]
        self.legacy = raw[at] != _VERSIONED
        at += 3 if self.legacy else 4
        count = raw[at]
        at += 1
        self.keys = [raw[start : start + 32] for start in range(at, at + 32 * count, 32)]
        at += 32 * count
        self.blockhash = raw[at : at + 32]
        self.instructions = [
            Instruction(each.program_id_index, each.accounts, each.data) for each in message.instructions
        ]
        self._sanitize(raw[0], 0 if self.legacy else len(message.address_table_lookups))  # type: ignore[union-attr]

        self.memo: str | None = None
        self.misconfigured: TransactionError | None = None
        """What is wrong with its compute budget; it then never lands."""
        self.compute_units, self.fee = self._budget()

    def is_writable(self, index: int) -> bool:
        if index < self.signature_count:
            return index < self.writable_signer_count
        return index < len(self.keys) - self.read_only_count

    def verified(self) -> bool:
        """Say whether every signature is its key's, over these bytes."""
        return all(self.decoded.verify_with_results())

    def _sanitize(self, given_signatures: int, lookups: int) -> None:
        count = len(self.keys)
        if lookups:
            raise Unsanitary(
                "invalid transaction: Transaction loads an address table account that doesn't exist"
            )
        if (
            self.signature_count != given_signatures
            or self.signature_count + self.read_only_count > count
            or self.writable_signer_count < 1
            or any(not 0 < each.program < count for each in self.instructions)
            or any(each.accounts and max(each.accounts) >= count for each in self.instructions)
        ):
            raise Unsanitary("invalid transaction: Transaction failed to sanitize accounts offsets correctly")

    def _budget(self) -> tuple[int, int]:
        """Return the compute units it may use and its fee in lamports; notice a memo on the way."""
        limit: int | None = None
        price: int | None = None
        others = 0
        seen = set()
        for index, instruction in enumerate(self.instructions):
            program = self.keys[instruction.program]
            if program == _MEMO and self.memo is None:
                self.memo = instruction.data.decode("utf-8", "replace")
            if program != _COMPUTE_BUDGET:
                others += 1
                continue
            data = instruction.data
            kind = data[0] if data else None
            if kind in seen:
                self.misconfigured = {"DuplicateInstruction": index}
                break
            seen.add(kind)
            if kind == 2 and len(data) >= 5:
                limit = int.from_bytes(data[1:5], "little")
            elif kind == 3 and len(data) >= 9:
                price = int.from_bytes(data[1:9], "little")
            elif not (kind in (1, 4) and len(data) >= 5):
                self.misconfigured = {"InstructionError": [index, "InvalidInstructionData"]}
                break
        units = min(_DEFAULT_UNITS_PER_INSTRUCTION * others if limit is None else limit, MAX_COMPUTE_UNITS)
        fee = LAMPORTS_PER_SIGNATURE * self.signature_count
        if price:
            fee -= -units * price // 1_000_000
        return units, fee
