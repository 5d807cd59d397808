"""Layouts read, write and patch bytes; token accounts, mints and addresses agree with published ones."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from solders.pubkey import Pubkey

from engine.solana.accounts import MINT, TOKEN_ACCOUNT, token_amount
from engine.solana.programs import associated_token_account, program_address
from engine.solana.wire import Layout, WireError, boolean, pubkey, raw, u8, u16, u64, u128
from tests.published_vectors import solana_cases

KEY = Pubkey.from_string("EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v")


@dataclass(frozen=True, slots=True)
class Thing:
    small: u8
    padding: Annotated[bytes, raw(3)]
    big: u128
    key: pubkey
    flag: boolean
    count: u64
    port: u16


LAYOUT = Layout(Thing, discriminator=b"thing---", size=100)
THING = Thing(small=7, padding=b"abc", big=2**127 + 1, key=KEY, flag=True, count=2**64 - 1, port=513)


def test_layout_encodes_little_endian_and_packed_behind_its_discriminator() -> None:
    data = LAYOUT.encode(THING)
    assert len(data) == LAYOUT.size == 100
    assert data[:12] == b"thing---\x07abc"
    assert data[12:28] == (2**127 + 1).to_bytes(16, "little")
    assert data[28:60] == bytes(KEY)
    assert data[60:71] == b"\x01" + b"\xff" * 8 + b"\x01\x02"
    assert data[71:] == bytes(29)


def test_layout_decodes_what_it_encodes() -> None:
    assert LAYOUT.decode(LAYOUT.encode(THING)) == THING


def test_patch_changes_the_named_fields_and_nothing_else() -> None:
    data = bytearray(LAYOUT.encode(THING))
    data[99] = 42
    patched = LAYOUT.patch(bytes(data), big=5, flag=False)
    changed = {index for index, byte in enumerate(data) if patched[index] != byte}
    assert changed <= {*range(12, 28), 60}
    assert LAYOUT.decode(patched).big == 5
    assert patched[99] == 42


def test_reader_reads_only_the_fields_it_names() -> None:
    assert LAYOUT.reader("small", "big", "count")(LAYOUT.encode(THING)) == (7, 2**127 + 1, 2**64 - 1)
    assert LAYOUT.reader("port")(LAYOUT.encode(THING)) == (513,)


def test_reader_refuses_fields_out_of_wire_order() -> None:
    with pytest.raises(ValueError, match="small comes before"):
        LAYOUT.reader("big", "small")


@pytest.mark.parametrize("data", [b"", b"thing---", b"another-" + bytes(92)])
def test_bytes_of_another_kind_are_refused(data: bytes) -> None:
    with pytest.raises(WireError, match="not a Thing"):
        LAYOUT.decode(data)
    with pytest.raises(WireError, match="not a Thing"):
        LAYOUT.patch(data, small=1)


def test_field_without_a_wire_type_is_refused_when_the_layout_is_made() -> None:
    @dataclass(frozen=True, slots=True)
    class Vague:
        size: int

    with pytest.raises(TypeError, match=r"Vague\.size"):
        Layout(Vague)


@pytest.mark.parametrize(
    "case",
    solana_cases("accounts_spl_token"),
    ids=lambda case: f"{case['account_type']}-{case['address'][:6]}",
)
def test_token_account_and_mint_agree_with_the_token_library(case: dict[str, Any]) -> None:
    layout: Layout[Any] = TOKEN_ACCOUNT if case["account_type"] == "TokenAccount" else MINT
    data = b64decode(case["data_base64"])
    account = layout.decode(data)
    for name, value in case["decoded"].items():
        if value is None:
            # A COption: none means that its tag is 0, whatever bytes follow.
            assert getattr(account, f"{name.removesuffix('_rent_reserve')}_option") == 0
        else:
            assert str(getattr(account, name)) == str(value), name
    assert layout.encode(account) == data
    if layout is TOKEN_ACCOUNT:
        assert str(token_amount(data)) == case["decoded"]["amount"]


@pytest.mark.parametrize(
    "case",
    solana_cases("pdas"),
    ids=lambda case: f"{case['name']}-{case['address'][:6]}",
)
def test_derived_address_agrees_with_the_sdks(case: dict[str, Any]) -> None:
    assert (
        str(program_address(Pubkey.from_string(case["program_id"]), *map(_seed, case["seeds"])))
        == (case["address"])
    )


def _seed(seed: dict[str, str]) -> bytes:
    if "utf8" in seed:
        return seed["utf8"].encode()
    return bytes.fromhex(seed["hex"]) if "hex" in seed else bytes(Pubkey.from_string(seed["pubkey"]))


def test_associated_token_account_agrees_with_the_token_library() -> None:
    case = next(
        case for case in solana_cases("instructions_spl_system") if case["instruction"] == "ata.create"
    )
    owner, mint, program = (
        Pubkey.from_string(case["inputs"][name]) for name in ("owner", "mint", "token_program")
    )
    assert str(associated_token_account(owner, mint, program)) == case["inputs"]["ata"]
