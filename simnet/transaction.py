"""From bytes to a transaction: decoding, sanity, fees, signatures.

solders decodes and verifies. Keys, blockhash and instructions are then sliced out of the bytes themselves.
Whatever follows from the accounts a message names is worked out once for all messages that name the same.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import msgspec
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction

from engine.solana.programs import CLOCK_SYSVAR, COMPUTE_BUDGET_PROGRAM, MEMO_PROGRAM, SYSTEM_PROGRAM
from simnet.accounts import LAMPORTS_PER_SIGNATURE

MAX_RAW_SIZE: Final = 1232
MAX_BASE64_SIZE: Final = 1644
MAX_BASE58_SIZE: Final = 1683
MAX_COMPUTE_UNITS: Final = 1_400_000
_DEFAULT_UNITS_PER_INSTRUCTION: Final = 200_000
_COMPUTE_BUDGET: Final = bytes(COMPUTE_BUDGET_PROGRAM)
_MEMO: Final = bytes(MEMO_PROGRAM)
_VERSIONED: Final = 0x80
_RESERVED: Final = {bytes(key) for key in (CLOCK_SYSVAR, SYSTEM_PROGRAM, COMPUTE_BUDGET_PROGRAM)}
"""The runtime's own accounts, of those that there are here: read-only whatever a message says of them."""

_MOST_KEPT: Final = 64
"""Of what an outline has worked out, of each kind; those of a wallet's swaps in a pool are fewer than ten. An
outline's transactions can have any number of others."""

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


class Named:
    """The accounts an instruction names, in its order."""

    __slots__ = ("indexes", "keys", "places", "pubkeys", "signed", "writable")

    def __init__(self, outline: Outline, indexes: bytes) -> None:
        self.indexes = indexes
        """Into the transaction's keys, one a byte."""
        self.keys = [outline.keys[index] for index in indexes]
        self.writable = bytes([outline.writable[index] for index in indexes])
        """1 for each that the instruction may change, else 0."""
        self.signed = bytes([index < outline.signature_count for index in indexes])
        self.pubkeys = [Pubkey.from_bytes(key) for key in self.keys]
        self.places: dict[Any, Any] = {}
        """What a program has found out about them, for its next call."""


class Calls(msgspec.Struct, frozen=True, eq=False):
    """The instructions of a transaction without their data: what is called, and with which accounts."""

    programs: tuple[int, ...]
    """Indexes into the transaction's keys."""
    named: tuple[Named, ...]
    fixed: tuple[bytes, ...]
    """The bytes before the first instruction's data, between them, and after the last one's."""
    unpack: Callable[[bytes], tuple[bytes, ...]]
    """Cuts bytes of that length into those and the data, in turn."""
    budget: tuple[int, ...]
    """Which instructions are the compute budget's."""
    memo: int | None
    """Which instruction is the first memo; None: there is none."""
    surplus: int
    """Bytes after the message's end: a node reads over them."""


class Outline:
    """What a message says of its accounts, worked out once: a wallet's swaps in one pool name the same."""

    __slots__ = (
        "calls",
        "has_twins",
        "index_of",
        "keys",
        "legacy",
        "named",
        "read_only_count",
        "signature_count",
        "writable",
        "writable_signer_count",
    )

    def __init__(self, head: bytes, legacy: bool) -> None:
        """`head` is the message's header, the number of its keys, and these."""
        self.legacy = legacy
        self.signature_count = signers = head[0]
        self.writable_signer_count = head[0] - head[1]
        self.read_only_count = head[2]
        self.keys = tuple([head[at : at + 32] for at in range(4, len(head), 32)])
        self.index_of = {key: index for index, key in enumerate(self.keys)}
        self.has_twins = len(self.index_of) < len(self.keys)
        """A key is there twice: such a transaction never lands."""
        asked = (
            b"\1" * self.writable_signer_count
            + bytes(signers - self.writable_signer_count)
            + b"\1" * (len(self.keys) - signers - self.read_only_count)
            + bytes(self.read_only_count)
        )
        self.writable = bytes(
            [flag and key not in _RESERVED for flag, key in zip(asked, self.keys, strict=False)]
        )
        """1 for each key that instructions may change, else 0."""
        self.named: dict[bytes, Named] = {}
        """By their indexes."""
        self.calls: dict[int, Calls] = {}
        """By the bytes they take up with their data, the last ones that did."""

    def read(self, raw: bytes) -> tuple[Calls, tuple[bytes, ...]]:
        """Return what the end of a message, from its instructions on, calls, and the data of each call.

        Raises Unsanitary.
        """
        calls = self.calls.get(len(raw))
        if calls is not None:
            pieces = calls.unpack(raw)
            # They are parted at the same places, then; one by one they take five times as long to find.
            if pieces[::2] == calls.fixed:
                return calls, pieces[1::2]
        return self._read_anew(raw)

    def _read_anew(self, raw: bytes) -> tuple[Calls, tuple[bytes, ...]]:
        count, at = _compact(raw, 0)
        programs, accounts, datas, fixed = [], [], [], []
        parted = 0
        for _ in range(count):
            programs.append(raw[at])
            length, at = _compact(raw, at + 1)
            accounts.append(raw[at : at + length])
            length, at = _compact(raw, at + length)
            fixed.append(raw[parted:at])
            datas.append(raw[at : at + length])
            parted = at = at + length
        fixed.append(raw[parted:])
        if not self.legacy and raw[parted]:
            raise Unsanitary(
                "invalid transaction: Transaction loads an address table account that doesn't exist"
            )
        key_count = len(self.keys)
        if (
            self.signature_count + self.read_only_count > key_count
            or self.writable_signer_count < 1
            or max(programs, default=0) >= key_count
            or max(b"".join(accounts), default=0) >= key_count
        ):
            raise Unsanitary("invalid transaction: Transaction failed to sanitize accounts offsets correctly")
        called = [self.keys[program] for program in programs]
        code = "".join([f"{len(fix)}s{len(data)}s" for fix, data in zip(fixed, datas, strict=False)])
        calls = Calls(
            tuple(programs),
            tuple([self._named(indexes) for indexes in accounts]),
            tuple(fixed),
            struct.Struct(f"{code}{len(fixed[-1])}s").unpack,
            budget=tuple([index for index, key in enumerate(called) if key == _COMPUTE_BUDGET]),
            memo=called.index(_MEMO) if _MEMO in called else None,
            surplus=len(raw) - parted - (0 if self.legacy else 1),
        )
        if len(self.calls) >= _MOST_KEPT:
            self.calls.clear()
        self.calls[len(raw)] = calls
        return calls, tuple(datas)

    def _named(self, indexes: bytes) -> Named:
        named = self.named.get(indexes)
        if named is None:
            if len(self.named) >= _MOST_KEPT:
                self.named.clear()
            named = self.named[indexes] = Named(self, indexes)
        return named


class Transaction:
    """A decoded transaction. Its id is its first signature."""

    __slots__ = (
        "blockhash",
        "calls",
        "compute_units",
        "data",
        "decoded",
        "fee",
        "keys",
        "legacy",
        "memo",
        "message_hash",
        "misconfigured",
        "outline",
        "raw",
        "signature",
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
        self.decoded = decoded
        self.signature = raw[1:65]
        self.legacy = raw[at] != _VERSIONED
        if not self.legacy:
            at += 1
        end = at + 4 + 32 * raw[at + 3]
        self.outline = outline = _outline(raw[at:end], self.legacy)
        self.keys = outline.keys
        self.blockhash = raw[end : end + 32]
        calls, data = outline.read(raw[end + 32 :])
        if outline.signature_count != raw[0]:
            raise Unsanitary("invalid transaction: Transaction failed to sanitize accounts offsets correctly")
        self.raw = raw = raw[: -calls.surplus] if calls.surplus else raw
        self.message_hash = message_hash(raw)
        self.calls = calls
        self.data = data
        """Of each call."""
        self.memo = None if calls.memo is None else data[calls.memo].decode("utf-8", "replace")
        self.compute_units, self.fee, self.misconfigured = _budget(
            tuple([(index, data[index]) for index in calls.budget]), len(data), raw[0]
        )
        """Of the last: what is wrong with its compute budget; it then never lands."""

    @property
    def instructions(self) -> list[Instruction]:
        calls = self.calls
        return [
            Instruction(program, named.indexes, data)
            for program, named, data in zip(calls.programs, calls.named, self.data, strict=True)
        ]

    def verified(self) -> bool:
        """Say whether every signature is its key's, over these bytes."""
        return all(self.decoded.verify_with_results())


def message_hash(raw: bytes) -> int:
    """Return what tells a transaction's message from others, whoever signed it and however often.

    Python's own hash: 64 bits, keyed anew in each process, at a third of what sha256 takes.
    """
    return hash(raw[1 + 64 * raw[0] :])


def mentions(raw: bytes, address: bytes) -> bool:
    """Say whether a transaction, which was decoded before, names an account."""
    at = 1 + 64 * raw[0]
    if raw[at] == _VERSIONED:
        at += 1
    first = at + 4
    return any(raw[key : key + 32] == address for key in range(first, first + 32 * raw[at + 3], 32))


_outline = lru_cache(maxsize=1024)(Outline)


@lru_cache(maxsize=4096)
def _budget(
    asked: tuple[tuple[int, bytes], ...], instruction_count: int, signature_count: int
) -> tuple[int, int, TransactionError | None]:
    """Return the compute units a transaction may use, its fee in lamports and what is wrong with both.

    `asked` are the instructions to the compute budget program: their place and data.
    """
    limit: int | None = None
    price: int | None = None
    misconfigured: TransactionError | None = None
    seen = set()
    for index, data in asked:
        kind = data[0] if data else None
        if kind in seen:
            misconfigured = {"DuplicateInstruction": index}
            break
        seen.add(kind)
        if kind == 2 and len(data) >= 5:
            limit = int.from_bytes(data[1:5], "little")
        elif kind == 3 and len(data) >= 9:
            price = int.from_bytes(data[1:9], "little")
        elif not (kind in (1, 4) and len(data) >= 5):
            misconfigured = {"InstructionError": [index, "InvalidInstructionData"]}
            break
    others = instruction_count - len(asked)
    units = min(_DEFAULT_UNITS_PER_INSTRUCTION * others if limit is None else limit, MAX_COMPUTE_UNITS)
    fee = LAMPORTS_PER_SIGNATURE * signature_count
    if price:
        fee -= -units * price // 1_000_000
    return units, fee, misconfigured


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
