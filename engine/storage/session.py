"""One connection to PostgreSQL that stands: its prepared statements, run one at a time.

psycopg connects and converts. Its cursors are left out, for all they do anew for each statement: a cursor,
descriptions of its columns, the socket watched and let go. A statement takes 60 us of CPU here instead of 120
to 200, and most carry one order or two unless there is a burst.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from itertools import count
from typing import Any, Final

import psycopg
from psycopg import abc, errors, pq
from psycopg.adapt import PyFormat, Transformer

_PLACEHOLDER: Final = re.compile(r"%\((\w+)\)([tb])")
"""As psycopg writes them: t for text, b for binary."""
_LOOK_SECONDS: Final = 1.0
"""How long an answer is waited for before the socket is looked at unasked, and watched anew."""
_LOOKS: Final = 15
"""After so many the connection is given up: a server that is there ends a statement after 10 s
(statement_timeout). Looks and not seconds, for a process that was stopped has heard nothing meanwhile."""
_FORMATS: Final = {"t": PyFormat.TEXT, "b": PyFormat.BINARY}


class _Statement:
    """A statement as libpq wants it: numbered parameters. It keeps what converts its values and its rows."""

    __slots__ = ("formats", "names", "prepared", "reads_rows", "text", "transformer")

    def __init__(self, text: str, transformer: abc.Transformer) -> None:
        self.transformer = transformer
        self.reads_rows = False
        """Whether the transformer knows its columns: to ask anew for each result costs 10 to 20 us."""
        self.prepared: dict[tuple[int, ...] | None, bytes] = {}
        """Its names at the server, by the types of its parameters."""
        formats = {name: _FORMATS[letter] for name, letter in _PLACEHOLDER.findall(text)}
        self.names = tuple(formats)
        self.formats = tuple(formats.values())
        numbers = {name: f"${number}" for number, name in enumerate(self.names, start=1)}
        self.text = _PLACEHOLDER.sub(lambda found: numbers[found[1]], text).encode()


class Session:
    """Runs statements on a connection of psycopg's, in autocommit, which nothing else uses from then on.

    It must not be told of a second statement before the first is answered.
    """

    def __init__(self, connection: psycopg.AsyncConnection) -> None:
        self._connection = connection
        self._libpq = connection.pgconn
        self._libpq.nonblocking = 1
        # A descriptor of our own to watch: libpq closes its own as soon as it finds the connection gone, and
        # the next connection gets the same number, whose watch we would end with ours.
        self._socket = os.dup(self._libpq.socket)
        self._statements: dict[str, _Statement] = {}
        self._names = (f"s{number}".encode() for number in count())
        self._loop = asyncio.get_running_loop()
        self._answered: asyncio.Future[None] | None = None
        self._results: list[pq.abc.PGresult] = []
        self._is_watched = False
        self._is_silent = False

    @property
    def is_broken(self) -> bool:
        """Whether the connection is gone, as far as was noticed."""
        return self._is_silent or self._libpq.status == pq.ConnStatus.BAD

    async def run(self, text: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows. Raises psycopg.Error, also where no answer comes.

        Cancelled, it leaves the session good for nothing but `close`.
        """
        statement = self._statements.get(text)
        if statement is None:
            statement = self._statements[text] = _Statement(text, Transformer(self._connection))
        transformer = statement.transformer
        parameters = transformer.dump_sequence([values[name] for name in statement.names], statement.formats)
        # An int and a float in the same place are two statements to PostgreSQL.
        types = transformer.types
        name = statement.prepared.get(types)
        if name is None:
            name = next(self._names)
            self._libpq.send_prepare(name, statement.text, types)
            await self._answer()
            statement.prepared[types] = name
        self._libpq.send_query_prepared(name, parameters, transformer.formats, result_format=pq.Format.BINARY)
        result = await self._answer()
        if result.status != pq.ExecStatus.TUPLES_OK:
            return []
        transformer.set_pgresult(result, set_loaders=not statement.reads_rows, format=pq.Format.BINARY)
        statement.reads_rows = True
        return transformer.load_rows(0, result.ntuples, tuple)

    async def close(self) -> None:
        """Hang up. PostgreSQL ends what it still does for us (client_connection_check_interval)."""
        self._watch(False)
        self._loop.remove_writer(self._socket)
        os.close(self._socket)
        await self._connection.close()

    # ---- The answer to what was sent

    async def _answer(self) -> pq.abc.PGresult:
        """Return the one result of what was sent, once the server is ready for more."""
        self._results.clear()
        self._answered = self._loop.create_future()
        self._watch(True)
        if self._libpq.flush():
            self._loop.add_writer(self._socket, self._on_writable)
        looking = self._loop.call_later(_LOOK_SECONDS, self._look_again, self._answered, 1)
        try:
            await self._answered
        finally:
            looking.cancel()
        results, self._results = self._results, []
        # Without a transaction around it a statement is committed after its result: an error may follow one.
        for result in results:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise errors.error_from_result(result)
        return results[-1]

    def _look_again(self, answered: asyncio.Future[None], looks: int) -> None:
        # Event loops watch descriptors by number. Who connects a socket elsewhere in the process and ends its
        # watch too late can end ours, and the answer would lie there unheard for ever.
        if answered is self._answered and not answered.done():
            self._watch(False)
            self._watch(True)
            self._on_readable()
            if answered.done():
                return
            if looks < _LOOKS:
                self._loop.call_later(_LOOK_SECONDS, self._look_again, answered, looks + 1)
                return
            self._is_silent = True
            answered.set_exception(psycopg.OperationalError("the server does not answer"))

    def _on_readable(self) -> None:
        answered = self._answered
        if answered is None or answered.done():
            self._listen_unasked()
            return
        try:
            self._libpq.consume_input()
            while not self._libpq.is_busy():
                result = self._libpq.get_result()
                if result is None:
                    answered.set_result(None)
                    return
                self._results.append(result)
        except psycopg.Error as error:
            answered.set_exception(error)

    def _listen_unasked(self) -> None:
        """Read what nobody waits for: a notice, or the connection's end, which `is_broken` then tells."""
        try:
            self._libpq.consume_input()
        except psycopg.Error:
            self._watch(False)
        else:
            if self.is_broken:
                self._watch(False)

    def _on_writable(self) -> None:
        try:
            if not self._libpq.flush():
                self._loop.remove_writer(self._socket)
        except psycopg.Error as error:
            self._loop.remove_writer(self._socket)
            if self._answered is not None and not self._answered.done():
                self._answered.set_exception(error)

    def _watch(self, is_watched: bool) -> None:
        if is_watched == self._is_watched:
            return
        self._is_watched = is_watched
        if is_watched:
            self._loop.add_reader(self._socket, self._on_readable)
        else:
            self._loop.remove_reader(self._socket)
