"""The floor: its sums, and what a whole engine is set beside."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bench.floor import Line, Meter, Use, floors, main, measured_costs, print_floors

LINES = [
    Line("sign", 40.0, uses=[Use("workers", 1, 1)]),
    Line("submit, 100", 20.0, 30.0, [Use("server", 1, 0)], [Use("postgres", 1, 0)]),
    Line("frame", 2.0, uses=[Use("gateway", 0.5, 5), Use("server", 0, 5)]),
]
REPORT = {
    "results": [
        {
            "scenario": {"mode": "burst"},
            "costs": {
                "workers": {"cpu_ms_per_order": 0.1},
                "server-1": {"cpu_ms_per_order": 0.03},
                "server-2": {"cpu_ms_per_order": 0.05},
            },
        },
        {"scenario": {"mode": "burst"}, "costs": {"workers": {"cpu_ms_per_order": 9.0}}},
    ]
}


def test_a_process_pays_for_each_line_as_often_as_an_order_needs_it() -> None:
    assert floors(LINES) == {
        "workers": (40.0, 40.0),
        "server": (20.0, 10.0),
        "postgres": (30.0, 0.0),
        "gateway": (1.0, 10.0),
    }


def test_what_was_measured_is_summed_by_kind_of_process_in_the_first_run() -> None:
    assert measured_costs(REPORT) == {
        "burst": {"workers": pytest.approx(100.0), "server": pytest.approx(80.0)}
    }


def test_each_process_is_told_how_far_it_is_above_its_floor() -> None:
    out = StringIO()
    print_floors(Console(file=out, width=150), LINES, measured_costs(REPORT))
    rows = {
        cells[0]: cells[1:]
        for line in out.getvalue().splitlines()
        if len(cells := [cell.strip() for cell in line.strip("│").split("│")]) > 2
    }
    assert rows["workers"] == ["40", "100", "2.5", "40", "", ""]
    assert rows["server"] == ["20", "80", "4.0", "10", "", ""]
    assert rows["gateway"] == ["1", "", "", "10", "", ""]
    assert rows["together"] == ["91", "180", "2.0", "60", "", ""]


async def test_an_operation_is_repeated_until_it_has_taken_its_time() -> None:
    meter, done = Meter(0.01), 0

    def operation() -> None:
        nonlocal done
        done += 1

    async def waiting() -> None:
        operation()

    assert meter.pure(operation) > 0
    assert done >= 300
    done = 0
    here, elsewhere = await meter.shared(waiting)
    assert here > elsewhere == 0
    assert done > 3


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_file_that_is_no_report_is_one_clear_sentence(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    report.write_text(text)
    assert main(["--report", str(report)]) == 2
    assert f"bench.floor: {report} is no report of bench" in capsys.readouterr().err
