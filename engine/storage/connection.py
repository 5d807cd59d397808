"""One PostgreSQL connection that comes back, and says what a failure on it proves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from struct import Struct
from typing import Any, ClassVar, Final, Self
from uuid import UUID

import psycopg
from psycopg import adapt, pq
from psycopg.adapt import PyFormat
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import TextBinaryLoader

from engine.domain.errors import OutcomeUnknown, StoreUnavailable
from engine.storage.session import Session

# Every statement is a look-up by key or a walk along an index, planned once for arrays of any length.
# Planned on a fresh, empty database, a hash or merge join over a whole table would look as good, and
# would stay in the prepared plan while the table grows. So would any index and a sort, where there is
# an index that has the order.
_OPTIONS: Final = (
    "-c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c enable_hashjoin=off"
    " -c enable_mergejoin=off -c enable_sort=off -c jit=off -c statement_timeout=10s -c TimeZone=UTC"
    " -c client_connection_check_interval=2s"
)

_READ_ONLY: Final = "25006"
"""What a standby answers to a write, and where others run PostgreSQL, one whose disk is full."""

# Refusals that pass: too many connections, out of memory or disk, starting up, shutting down,
# deadlock, serialization, lock or statement timeout, a disk that fails, writes not taken.
_PASSING: Final = ("53", "57", "40", "55", "58", _READ_ONLY)


class Connection:
    """A connection of one edge of the store: connects when needed, one statement at a time.

    One that ended while nobody used it, as all do when PostgreSQL restarts, is followed by another: no
    statement fails for it, and `break_count` tells.
    Raises, from `run`:
      StoreUnavailable  it did not happen: there is no connection, or the database refused for now
      OutcomeUnknown    the connection broke while a write was under way: it may have happened
      psycopg.Error     the database refused for good: a defect of ours
    """

    def __init__(self, conninfo: str, edge: str) -> None:
        self._conninfo = conninfo
        self._edge = edge
        self._lock = asyncio.Lock()
        self._session: Session | None = None
        self._break_count = 0

    @property
    def break_count(self) -> int:
        """How often it broke or was given up, as far as was noticed."""
        return self._break_count + (self._session is not None and self._session.is_broken)

    async def run(self, statement: str, values: Mapping[str, Any], *, reads: bool = False) -> list[Any]:
        """Run one statement and return its rows. A read whose connection broke is run once more."""
        async with self._lock:
            try:
                return await self._run(statement, values)
            except OutcomeUnknown as error:
                if not reads:
                    raise
                try:
                    return await self._run(statement, values)
                except OutcomeUnknown:
                    raise StoreUnavailable(str(error)) from error

    async def close(self) -> None:
        """Close the connection; a later `run` opens a new one."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _give_up(self) -> None:
        self._break_count += 1
        await self.close()

    async def _run(self, statement: str, values: Mapping[str, Any]) -> list[Any]:
        session = await self._connected()
        try:
            return await session.run(statement, values)
        except psycopg.Error as error:
            # The state an error leaves tells what it proves: a server that answers has not done it,
            # a connection that broke has left us not knowing.
            if session.is_broken:
                await self._give_up()
                raise OutcomeUnknown(f"the connection to PostgreSQL broke: {first_line(error)}") from error
            if error.sqlstate == _READ_ONLY:
                # The writes may be another server's by now, which this connection would never find.
                await self._give_up()
            if error.sqlstate is not None and error.sqlstate.startswith(_PASSING):
                raise StoreUnavailable(f"PostgreSQL refused for now: {first_line(error)}") from error
            raise
        except asyncio.CancelledError:
            # The answer was not read.
            await self.close()
            raise

    async def _connected(self) -> Session:
        if self._session is not None and not self._session.is_broken:
            return self._session
        if self._session is not None:
            await self._give_up()
        try:
            connection = await psycopg.AsyncConnection.connect(
                self._conninfo,
                autocommit=True,
                connect_timeout=3,
                # Milliseconds. A host that is gone says nothing: what it does not acknowledge ends it.
                tcp_user_timeout=5000,
                application_name=f"order-engine {self._edge}",
                options=_OPTIONS,
            )
        except psycopg.OperationalError as error:
            raise StoreUnavailable(f"PostgreSQL cannot be reached: {first_line(error)}") from error
        _adapt(connection.adapters)
        self._session = Session(connection)
        return self._session


class _ArrayDumper(adapt.Dumper):
    """Writes a list as PostgreSQL's array text, which the statement's cast gives its type; a tuple is a row.

    psycopg's own dumpers look at every element to find out what the array is of: 25 us for an array, where
    this takes 2. The formats: postgresql.org/docs/current/arrays.html#ARRAYS-IO and rowtypes.html.
    """

    def get_key(self, _obj: list[Any], _format: PyFormat) -> type:
        return list

    def upgrade(self, _obj: list[Any], _format: PyFormat) -> Self:
        return self

    def dump(self, obj: list[Any]) -> bytes:
        return f"{{{','.join([_ELEMENT[type(item)](item) for item in obj])}}}".encode()


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _row(values: tuple[Any, ...]) -> str:
    return f'"({",".join([_FIELD[type(value)](value) for value in values])})"'


def _field(text: str) -> str:
    # Most are a word or a number, which needs no quotes.
    if text.isalnum():
        return text
    # Quoted as a row's field, and that once more as an array's element.
    escaped = text.replace("\\", "\\\\\\\\").replace('"', '\\"\\"')
    return f'\\"{escaped}\\"'


_ELEMENT: Final[Mapping[type, Callable[[Any], str]]] = {
    type(None): lambda _: "NULL",
    bool: lambda value: "t" if value else "f",
    int: str,
    float: repr,
    str: _quoted,
    bytes: lambda value: f'"\\\\x{value.hex()}"',
    UUID: lambda value: f"{value.int:032x}",
    datetime: lambda value: f'"{value.isoformat()}"',
    tuple: _row,
}
_FIELD: Final[Mapping[type, Callable[[Any], str]]] = {
    **_ELEMENT,
    type(None): lambda _: "",
    str: _field,
    bytes: lambda value: f"\\\\\\\\x{value.hex()}",
    datetime: datetime.isoformat,
}


class BinaryArray(list[bytes | None]):
    """Elements that travel as they are: to quote and unquote what is long costs as much as its row."""

    element_oid: ClassVar[int]


class JsonArray(BinaryArray):
    """A json[], of JSON text."""

    element_oid = 114


class ByteaArray(BinaryArray):
    """A bytea[]."""

    element_oid = 17


class UuidArray(BinaryArray):
    """A uuid[], of 16 bytes each."""

    element_oid = 2950


class Int8Array(BinaryArray):
    """A bigint[], of 8 bytes each, the highest first."""

    element_oid = 20


class _BinaryArrayDumper(adapt.Dumper):
    """Writes one of these as PostgreSQL's array_recv reads it: a header; each element after its length."""

    format = pq.Format.BINARY

    def dump(self, obj: BinaryArray) -> bytes:
        # Dimensions, whether there are NULLs, type; of the one dimension its length and where it begins.
        parts = [_HEADER.pack(1, 1, obj.element_oid, len(obj), 1)]
        for item in obj:
            if item is None:
                parts.append(_NULL)
            else:
                parts += (_LENGTH.pack(len(item)), item)
        return b"".join(parts)


_HEADER: Final = Struct("!iiIii")
_LENGTH: Final = Struct("!i")
_NULL: Final = _LENGTH.pack(-1)


def _adapt(adapters: adapt.AdaptersMap) -> None:
    adapters.register_dumper(list, _ArrayDumper)
    for array in (JsonArray, ByteaArray, UuidArray, Int8Array):
        adapters.register_dumper(array, _BinaryArrayDumper)
    # psycopg chooses int2, int4 or int8 by value, so that the same statement would be prepared once for
    # every mixture of widths in its arrays.
    adapters.register_dumper(int, Int8BinaryDumper)
    # Types it does not know are our enums: their labels.
    adapters.register_loader(0, TextBinaryLoader)


def first_line(error: BaseException) -> str:
    """Return what the error says, without the details that psycopg adds; its type where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
