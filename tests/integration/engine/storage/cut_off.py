"""A wire to PostgreSQL that can be cut, before a statement arrives or after its COMMIT is done."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import TracebackType
from typing import Self

from engine.settings import Settings


class Wire:
    """Passes bytes on between `settings` and the database. Use as `async with`."""

    def __init__(self, database: Settings) -> None:
        self._database = database
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.lose_questions = 0
        """So many statements do not arrive at the database: the wire breaks instead."""
        self.lose_answers = 0
        """So many answers of the database do not arrive: the wire breaks instead."""
        self.refuses = False
        """New connections are closed at once."""
        self._silent: set[asyncio.StreamWriter] = set()

    @property
    def settings(self) -> Settings:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return replace(self._database, db_host="127.0.0.1", db_port=port)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._writers:
            writer.transport.abort()

    def silence(self) -> None:
        """Have nothing more arrive over the connections there are, as from a host that is gone."""
        self._silent |= self._writers

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        if self.refuses:
            writer.transport.abort()
            return
        host, port = self._database.db_host, self._database.db_port
        if host.startswith("/"):
            upstream = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            upstream = await asyncio.open_connection(host, port)
        writers = {writer, upstream[1]}
        self._writers |= writers
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on(reader, upstream[1], answers=False))
                group.create_task(self._pass_on(upstream[0], writer, answers=True))
        finally:
            self._writers -= writers
            for each in writers:
                each.transport.abort()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                if answers and self.lose_answers:
                    self.lose_answers -= 1
                    break
                if not answers and self.lose_questions:
                    self.lose_questions -= 1
                    break
                if writer in self._silent:
                    continue
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            # One direction ends with the other.
            self.cut_pair(writer)

    def cut_pair(self, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()
