"""The program in the client package's docstring, run as a newcomer would: word for word."""

from __future__ import annotations

import asyncio
import re
import sys
import textwrap
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path

import client
from client import OrderClient
from engine.settings import Settings
from tests.serving import Worker, address, order_server, with_grpc_port

ROOT = Path(__file__).parents[3]


def example() -> str:
    """The indented part of the docstring."""
    assert client.__doc__ is not None
    found = re.search(r"\n\n((?: {4}.*\n|\n)+)", client.__doc__)
    assert found is not None
    return textwrap.dedent(found[1])


async def test_the_example_submits_an_order_and_ends_with_it(
    settings: Settings, free_port: Callable[[], int]
) -> None:
    settings = with_grpc_port(settings, free_port)
    default = "127.0.0.1:50051"
    assert default in example()
    async with order_server(settings), Worker(settings) as worker, OrderClient(address(settings)) as orders:
        program = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", example().replace(default, address(settings))),
            cwd=ROOT,
            stdout=PIPE,
            stderr=PIPE,
        )
        async with asyncio.timeout(30):
            while not (page := await orders.list_page()).orders:
                assert program.returncode is None, await program.communicate()
                await asyncio.sleep(0.05)
            await worker.execute(page.orders[0].order_id)
            said, errors = await program.communicate()
    assert (program.returncode, errors.decode()) == (0, "")
    lines = said.decode().splitlines()
    assert [line.split()[:2] for line in lines[:5]] == [
        ["1", "pending"], ["2", "routing"], ["3", "building"], ["4", "submitted"], ["5", "confirmed"],
    ]  # fmt: skip
    assert lines[5].endswith(" USDC, " + "5" * 88)
