"""What the programs themselves answered, for tests to agree with.

All of it is read from ../shared/vectors and ../shared/solana/vectors, where these lie beside the repository;
otherwise the sample of it in tests/vectors. Each file says at its head where it comes from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

_SAMPLES = Path(__file__).parent / "vectors"
_SHARED = Path(__file__).parents[2] / "shared"


def swap_vectors(name: str) -> list[Any]:
    """Return the swaps of one curve: cases of `in` and `out`, as pytest parameters."""
    whole = _SHARED / "vectors" / f"{name}.json"
    document = json.loads((whole if whole.exists() else _SAMPLES / f"{name}.json").read_text())
    return [pytest.param(case["in"], case["out"], id=case["id"]) for case in document["vectors"]]


def published_unit_tests(source: str) -> list[dict[str, Any]]:
    """Return the numbers of one of the programs' own unit tests, by its name, its module or its file."""
    whole = _SHARED / "vectors" / "published_unit_tests.json"
    document = json.loads((whole if whole.exists() else _SAMPLES / whole.name).read_text())
    return [
        case
        for numbers in document["sets"]
        if source in numbers["source"].values()
        for case in numbers["vectors"]
    ]


def solana_cases(name: str) -> list[dict[str, Any]]:
    """Return the cases of one file of wire facts."""
    cases: list[dict[str, Any]] = json.loads(_solana_file(name).read_text())["cases"]
    return cases


def solana_fixture(name: str) -> dict[str, Any]:
    """Return a set of accounts that executions start from."""
    fixture: dict[str, Any] = json.loads(_solana_file(f"fixtures/{name}").read_text())
    return fixture


def _solana_file(name: str) -> Path:
    whole = _SHARED / "solana" / "vectors" / f"{name}.json"
    return whole if whole.exists() else _SAMPLES / "solana" / f"{name}.json"
