"""The durable record: what landed, what every account holds, and how far the chain has come.

SQLite in WAL mode, one commit a slot. A commit survives kill -9 of the process at any point: the system has
it. Nothing waits for a disk, so a power cut may cost the ledger; what it records was never real. Its size
follows the transactions landed: what slots changed of the accounts is written one row a slot, and once
there are many of these, folded into a row an account.

Anybody may read it while simnet writes: LedgerReader opens the same file read-only.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from simnet.accounts import Account
from simnet.bank import Meta
from simnet.launches import Launch
from simnet.transaction import TransactionError, mentions

FILE_NAME: Final = "ledger.sqlite3"
_FORMAT: Final = 2
_FOLDED: Final = 64
"""Rows of changes that are folded into the accounts together."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS chain (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    format INTEGER NOT NULL,
    seed INTEGER NOT NULL,
    slot INTEGER NOT NULL,
    block_time INTEGER NOT NULL,
    transaction_count INTEGER NOT NULL,
    held_pools BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS accounts (
    address BLOB PRIMARY KEY,
    lamports INTEGER NOT NULL,
    owner BLOB NOT NULL,
    data BLOB NOT NULL,
    executable INTEGER NOT NULL
);
-- Newer than those: accounts as slots left them, in order. A slot changes some thirty accounts, on as many
-- pages of the table above; here they are on two (of a slot of twelve swaps: 22 us a swap, not 40).
CREATE TABLE IF NOT EXISTS changes (
    id INTEGER PRIMARY KEY,
    accounts BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS requested_launches (
    number INTEGER PRIMARY KEY,
    launch BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS transactions (
    sequence INTEGER PRIMARY KEY,
    signature BLOB NOT NULL UNIQUE,
    slot INTEGER NOT NULL,
    block_time INTEGER NOT NULL,
    error BLOB,
    fee INTEGER NOT NULL,
    memo TEXT,
    raw BLOB NOT NULL,
    meta BLOB NOT NULL
);
-- None on memo: it would be a fifth of what a transaction costs here (10 of 50 us), for questions that only
-- tests ask.
"""

_COLUMNS: Final = "sequence, signature, slot, block_time, error, fee, memo, raw, meta"

_encode = msgspec.msgpack.Encoder().encode
_decode_changes = msgspec.msgpack.Decoder(dict[bytes, tuple[int, bytes, bytes, bool]]).decode
_decode_launch = msgspec.msgpack.Decoder(Launch).decode
_decode_meta = msgspec.msgpack.Decoder(Meta).decode
_decode_error = msgspec.msgpack.Decoder().decode


class LedgerError(Exception):
    """The ledger cannot be used. The message is for the person who named its folder."""


class Landed(msgspec.Struct, frozen=True, gc=False):
    """A transaction on the chain."""

    sequence: int
    """1, 2, 3 ... in the order of execution, over the whole chain."""
    signature: bytes
    slot: int
    block_time: int
    """Unix seconds."""
    error: TransactionError | None
    """None: it did what it says. Else only its fee was taken."""
    fee: int
    """In lamports."""
    memo: str | None
    raw: bytes
    meta: Meta


class Progress(msgspec.Struct, frozen=True):
    """How far the chain has come."""

    seed: int
    slot: int
    block_time: int
    transaction_count: int
    held_pools: tuple[bytes, ...] = ()
    """Addresses of the pools the market leaves alone."""


class LedgerReader:
    """Reads a ledger, while simnet writes it or after."""

    def __init__(self, path: Path) -> None:
        """`path` is the file. Raises LedgerError if there is none."""
        try:
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False
            )
            self._connection.execute("SELECT 1 FROM chain").fetchone()
        except sqlite3.Error as error:
            raise LedgerError(f"{path} is no readable ledger of simnet: {error}") from error

    def close(self) -> None:
        self._connection.close()

    def progress(self) -> Progress | None:
        """Return how far the chain has come; None before its first slot."""
        row = self._connection.execute(
            "SELECT seed, slot, block_time, transaction_count, held_pools FROM chain"
        ).fetchone()
        if row is None:
            return None
        return Progress(row[0], row[1], row[2], row[3], tuple(msgspec.msgpack.decode(row[4])))

    def accounts(self) -> dict[bytes, Account]:
        """Return every account there is, by address."""
        rows = self._connection.execute(
            # In one statement, so that all of it is of one moment.
            "SELECT 0 AS id, address, lamports, owner, data, executable FROM accounts"
            " UNION ALL SELECT id, NULL, NULL, NULL, accounts, NULL FROM changes ORDER BY id"
        )
        accounts: dict[bytes, Account] = {}
        for row, address, lamports, owner, data, executable in rows:
            if row == 0:
                accounts[address] = Account(lamports, owner, data, bool(executable))
            else:
                accounts.update(_accounts(data))
        return {address: account for address, account in accounts.items() if account.lamports}

    def requested_launches(self) -> list[Launch]:
        """Return the launches of tokens that were requested, in that order."""
        rows = self._connection.execute("SELECT launch FROM requested_launches ORDER BY number")
        return [_decode_launch(launch) for (launch,) in rows]

    def find(self, signatures: Sequence[bytes]) -> dict[bytes, Landed]:
        """Return those of the signatures that landed."""
        found = {}
        for signature in signatures:
            row = self._connection.execute(
                f"SELECT {_COLUMNS} FROM transactions WHERE signature = ?", (signature,)
            ).fetchone()
            if row is not None:
                found[signature] = _landed(row)
        return found

    def since(self, slot: int) -> Iterator[Landed]:
        """Yield what landed in that slot and after it, newest first."""
        for row in self._connection.execute(f"SELECT {_COLUMNS} FROM transactions ORDER BY sequence DESC"):
            landed = _landed(row)
            if landed.slot < slot:
                return
            yield landed

    def naming(
        self,
        address: bytes,
        *,
        before: bytes | None,
        until: bytes | None,
        limit: int,
        max_slot: int,
        untold: Container[bytes] = frozenset(),
    ) -> list[Landed]:
        """Return transactions that name an address, newest first, between two signatures left out themselves.

        `untold` are signatures that count as unknown, as those after `max_slot` do. Nothing comes before an
        unknown signature, and an unknown `until` is no end: as on a node (anza-xyz/agave,
        ledger/src/blockstore.rs, get_confirmed_signatures_for_address2).

        There is no index of addresses: each transaction names twenty. The bytes are searched instead,
        from the newest on.
        """
        clauses, values = ["slot <= ?", "instr(raw, ?) > 0"], [max_slot, address]
        ends = {
            signature: landed.sequence
            for signature, landed in self.find([each for each in (before, until) if each is not None]).items()
            if landed.slot <= max_slot and signature not in untold
        }
        if before is not None:
            if before not in ends:
                return []
            clauses.append("sequence < ?")
            values.append(ends[before])
        if until is not None and until in ends:
            clauses.append("sequence > ?")
            values.append(ends[until])
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM transactions WHERE {' AND '.join(clauses)} ORDER BY sequence DESC",
            values,
        )
        # SQLite finds the address anywhere in the bytes: in a memo, or where two others meet.
        found = (
            landed
            for landed in map(_landed, rows)
            if mentions(landed.raw, address) and landed.signature not in untold
        )
        return list(islice(found, limit))

    def page(self, *, memo_prefix: str = "", after: int = 0, limit: int = 1000) -> list[Landed]:
        """Return landed transactions in the order of execution, from the one after `after` on.

        With a prefix, only those whose memo begins so.
        """
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM transactions WHERE sequence > ?1"
            " AND (?2 = '' OR substr(memo, 1, length(?2)) = ?2) ORDER BY sequence LIMIT ?3",
            (after, memo_prefix, limit),
        )
        return [_landed(row) for row in rows]


class Ledger(LedgerReader):
    """The one writer of a ledger. Use it from one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """Make the ledger in that folder if there is none. Raises LedgerError."""
        path = folder / FILE_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            # A swap's record has 2.2 kB: of 4 kB pages half would stay empty.
            self._connection.execute("PRAGMA page_size = 8192")
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = OFF")
            self._connection.executescript(_SCHEMA)
            row = self._connection.execute("SELECT format FROM chain").fetchone()
        except BlockingIOError:
            raise LedgerError(f"{folder} is in use by another simnet") from None
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"simnet cannot keep its ledger in {folder}: {error}") from error
        if row is not None and row[0] != _FORMAT:
            raise LedgerError(f"{path} has format {row[0]}; this simnet reads {_FORMAT}")
        self.path = path
        self._unfolded: dict[bytes, Account] = {}
        """What the rows of changes come to, so that they need not be read again."""
        for (changes,) in self._connection.execute("SELECT accounts FROM changes ORDER BY id"):
            self._unfolded.update(_accounts(changes))

    def close(self) -> None:
        super().close()
        os.close(self._lock)

    def commit(
        self,
        progress: Progress,
        accounts: Mapping[bytes, Account],
        landed: Iterable[Landed] = (),
        requested: Iterable[Launch] = (),
    ) -> None:
        """Record a slot: how far the chain is now, the accounts it changed and the transactions it holds.

        Or what came between slots; `requested` are launches that were then asked for.
        """
        with self._transaction():
            self._connection.execute(
                "INSERT INTO chain VALUES (1, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
                " slot = excluded.slot, block_time = excluded.block_time,"
                " transaction_count = excluded.transaction_count, held_pools = excluded.held_pools",
                (
                    _FORMAT,
                    progress.seed,
                    progress.slot,
                    progress.block_time,
                    progress.transaction_count,
                    _encode(progress.held_pools),
                ),
            )
            changes = {
                address: (account.lamports, account.owner, account.data, account.executable)
                for address, account in accounts.items()
            }
            row = self._connection.execute("INSERT INTO changes (accounts) VALUES (?)", (_encode(changes),))
            self._connection.executemany(
                "INSERT INTO transactions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        each.sequence,
                        each.signature,
                        each.slot,
                        each.block_time,
                        None if each.error is None else _encode(each.error),
                        each.fee,
                        each.memo,
                        each.raw,
                        _encode(each.meta),
                    )
                    for each in landed
                ],
            )
            self._connection.executemany(
                "INSERT INTO requested_launches (launch) VALUES (?)",
                [(_encode(launch),) for launch in requested],
            )
            folds = row.lastrowid is not None and row.lastrowid >= _FOLDED
            if folds:
                self._fold({**self._unfolded, **accounts})
        if folds:
            self._unfolded.clear()
        else:
            self._unfolded.update(accounts)

    def _fold(self, accounts: Mapping[bytes, Account]) -> None:
        """Bring the accounts up to the newest changes, which these are."""
        self._connection.executemany(
            "INSERT INTO accounts VALUES (?, ?, ?, ?, ?) ON CONFLICT (address) DO UPDATE SET"
            " lamports = excluded.lamports, owner = excluded.owner, data = excluded.data,"
            " executable = excluded.executable",
            [
                (address, account.lamports, account.owner, account.data, account.executable)
                for address, account in accounts.items()
                if account.lamports
            ],
        )
        self._connection.executemany(
            "DELETE FROM accounts WHERE address = ?",
            [(address,) for address, account in accounts.items() if not account.lamports],
        )
        self._connection.execute("DELETE FROM changes")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # After some errors, as of a full disk, SQLite has rolled back by itself.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


def _landed(row: tuple[int, bytes, int, int, bytes | None, int, str | None, bytes, bytes]) -> Landed:
    sequence, signature, slot, block_time, error, fee, memo, raw, meta = row
    return Landed(
        sequence,
        signature,
        slot,
        block_time,
        None if error is None else _decode_error(error),
        fee,
        memo,
        raw,
        _decode_meta(meta),
    )


def _accounts(changes: bytes) -> dict[bytes, Account]:
    """Return what a row of changes holds; accounts of 0 lamports are gone."""
    return {address: Account(*account) for address, account in _decode_changes(changes).items()}
