"""From bytes to a transaction: decoding, sanity, fees, signatures.

solders decodes and verifies. Keys and blockhash are then sliced out of the bytes themselves, which is
several times cheaper than making an object of each.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import msgspec
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


class Instruction(msgspec.Struct, frozen=True, gc=False):
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
        "writable",
        "writable_signer_count",
    )

    def __init__(self, raw: bytes) -> None:
        """Raises Undecodable or Unsanitary."""
        try:
            decoded = VersionedTransaction.from_bytes(raw)
        except Exception:
            # solders has words of its own; a node of this version has these, for whatever cannot be read.
            raise Undecodable(
                "failed to deserialize solana_transaction::versioned::VersionedTransaction:"
                " io error: unexpected end of file"
            ) from None
        # The decoder has vetted every length, so the bytes can be cut up without another look. In 1232 of
        # them there is room for fewer than 128 signatures or keys: each of those counts is one byte.
        at = 1 + 64 * raw[0]
        self.raw = raw
        self.decoded = decoded
        self.signature = raw[1:65]
        self.legacy = raw[at] != _VERSIONED
        if not self.legacy:
            at += 1
        self.signature_count = raw[at]
        self.writable_signer_count = raw[at] - raw[at + 1]
        self.read_only_count = raw[at + 2]
        count = raw[at + 3]
        at += 4
        self.keys = _split_keys(raw[at : at + 32 * count])
        at += 32 * count
        self.blockhash = raw[at : at + 32]
        instruction_count, at = _compact(raw, at + 32)
        self.instructions: list[Instruction] = []
        for _ in range(instruction_count):
            program = raw[at]
            length, at = _compact(raw, at + 1)
            accounts = raw[at : at + length]
            length, at = _compact(raw, at + length)
            self.instructions.append(Instruction(program, accounts, raw[at : at + length]))
            at += length
        self._sanitize(lookups=0 if self.legacy else raw[at])
        signers, read_only = self.signature_count, self.read_only_count
        self.writable = (
            b"\1" * self.writable_signer_count
            + bytes(signers - self.writable_signer_count)
            + b"\1" * (count - signers - read_only)
            + bytes(read_only)
        )
        """1 for each key that instructions may change, else 0."""

        self.memo: str | None = None
        self.misconfigured: TransactionError | None = None
        """What is wrong with its compute budget; it then never lands."""
        self.compute_units, self.fee = self._budget()

    def verified(self) -> bool:
        """Say whether every signature is its key's, over these bytes."""
        return all(self.decoded.verify_with_results())

    def _sanitize(self, lookups: int) -> None:
        count = len(self.keys)
        if lookups:
            raise Unsanitary(
                "invalid transaction: Transaction loads an address table account that doesn't exist"
            )
        if (
            self.signature_count != self.raw[0]
            or self.signature_count + self.read_only_count > count
            or self.writable_signer_count < 1
            or max([each.program for each in self.instructions], default=0) >= count
            or max(b"".join([each.accounts for each in self.instructions]), default=0) >= count
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


@lru_cache(maxsize=4096)
def _split_keys(keys: bytes) -> tuple[bytes, ...]:
    """Return each key by itself. Swaps of one pool name the same ones; the same objects are found faster."""
    return tuple([keys[start : start + 32] for start in range(0, len(keys), 32)])


def _compact(raw: bytes, at: int) -> tuple[int, int]:
    """Return a compact-u16 and where it ends: 7 bits a byte, low ones first, a high bit where more follow."""
    value = raw[at]
    at += 1
    if value >= 0x80:
        value = value & 0x7F | raw[at] << 7
        at += 1
        if value >= 0x4000:
            value = value & 0x3FFF | raw[at] << 14
            at += 1
    return value, at
