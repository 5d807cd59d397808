"""The floor's lines, each against the real thing."""

from __future__ import annotations

from bench.floor import floors, measure_lines


async def test_every_line_costs_something_and_every_process_has_some() -> None:
    lines = await measure_lines(0.002)
    assert len({line.operation for line in lines}) == len(lines)
    assert all(line.us > 0 for line in lines)
    assert {line.operation.partition(":")[0] for line in lines if line.other_us} == {"Redis", "SQL"}
    sums = floors(lines)
    assert set(sums) == {"gateway", "server", "workers", "simnet", "postgres", "valkey"}
    assert all(burst > 0 and closed > 0 for burst, closed in sums.values())
