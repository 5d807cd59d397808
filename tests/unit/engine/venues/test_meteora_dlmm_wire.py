"""Meteora DLMM accounts and instructions against its SDK's bytes, and swaps against its program's."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from solders.pubkey import Pubkey

from engine.domain.order import FailureReason, Side
from engine.domain.pools.meteora_dlmm import MeteoraDlmmPool, bin_price
from engine.domain.pools.pool import Clock, Swap, SwapError, SwapRefusal
from engine.solana.accounts import MINT, TOKEN_ACCOUNT, token_amount
from engine.solana.programs import TOKEN_2022_PROGRAM, TOKEN_PROGRAM
from engine.solana.wire import WireError
from engine.venues.meteora_dlmm import (
    ARRAYS_AHEAD,
    BIN,
    BIN_ARRAY,
    BINS_IN_ARRAY,
    BITMAP_EXTENSION,
    LB_PAIR,
    MAX_BINS,
    ORACLE,
    VENUE,
    BinArrayBitmapExtension,
    BinState,
    MeteoraDlmmKeys,
    bin_array_address,
    bin_array_indexes,
)
from engine.venues.venue import SwapCall
from tests.published_vectors import solana_cases, solana_fixture

NOW = Clock(slot=500_000_000, unix_timestamp=1_750_000_000)
LAYOUTS: dict[str, Any] = {
    "LbPair": LB_PAIR,
    "BinArray": BIN_ARRAY,
    "BinArrayBitmapExtension": BITMAP_EXTENSION,
    "Oracle": ORACLE,
    "TokenAccount": TOKEN_ACCOUNT,
    "Mint": MINT,
}
NO_KEY = Pubkey.default()


def _flat(decoded: dict[str, Any]) -> dict[str, str]:
    """Return a decoded account in our names, its bytes in hex."""
    flat: dict[str, Any] = {}
    for name, value in decoded.items():
        if name in ("parameters", "v_parameters"):
            flat |= value
        elif name == "protocol_fee":
            flat |= {"protocol_fee_x": value["amountX"], "protocol_fee_y": value["amountY"]}
        elif name == "bin_array_bitmap":
            flat[name] = b"".join(int(word).to_bytes(8, "little") for word in value).hex()
        elif name not in ("non_empty_bins", "bin_array_indexes", "mint_authority"):
            flat[name] = bool(value) if name == "is_initialized" else value
    return {name: str(value) for name, value in flat.items()}


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


@pytest.mark.parametrize(
    "case",
    solana_cases("accounts_meteora_dlmm"),
    ids=lambda case: f"{case['account_type']}-{case['address'][:6]}",
)
def test_account_decodes_and_encodes_to_the_same_bytes(case: dict[str, Any]) -> None:
    layout, data = LAYOUTS[case["account_type"]], b64decode(case["data_base64"])
    account = layout.decode(data)
    told = _flat(case["decoded"])
    assert {name: _text(getattr(account, name)) for name in told} == told
    # Beyond its layout the oracle has its prices, and Token-2022 its extensions.
    assert layout.encode(account) == data[: layout.size]
    assert len(data) == case["size"]


@pytest.mark.parametrize(
    "case",
    [case for case in solana_cases("accounts_meteora_dlmm") if case["account_type"] == "BinArray"],
    ids=lambda case: case["address"][:6],
)
def test_bins_decode_and_encode_to_the_same_bytes(case: dict[str, Any]) -> None:
    array = BIN_ARRAY.decode(b64decode(case["data_base64"]))
    places = [array.bins[at : at + BIN.size] for at in range(0, len(array.bins), BIN.size)]
    assert len(places) == BINS_IN_ARRAY
    bins = [BIN.decode(place) for place in places]
    assert [BIN.encode(one) for one in bins] == places
    assert [
        {
            "offset": at,
            "bin_id": array.index * BINS_IN_ARRAY + at,
            "amount_x": str(one.amount_x),
            "amount_y": str(one.amount_y),
            "price": str(one.price),
            "liquidity_supply": str(one.liquidity_supply),
            "open_order_amount": str(one.open_order_amount),
            "processed_order_remaining_amount": str(one.processed_order_remaining_amount),
        }
        for at, one in enumerate(bins)
        if one.amount_x or one.amount_y
    ] == case["decoded"]["non_empty_bins"]


# ---- Where the bin arrays are


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in solana_cases("accounts_meteora_dlmm")
        if case["account_type"] == "BinArrayBitmapExtension"
    ],
    ids=lambda case: case["address"][:6],
)
def test_bitmap_extension_names_the_arrays_beyond_the_pools_own_bitmap(case: dict[str, Any]) -> None:
    extension = b64decode(case["data_base64"])
    indexes = case["decoded"]["bin_array_indexes"]
    assert bin_array_indexes(-6656, bytes(128), extension, down=False, count=100) == indexes
    assert bin_array_indexes(6655, bytes(128), extension, down=True, count=100) == indexes[::-1]


@pytest.mark.parametrize(
    "case",
    [case for case in solana_cases("index_math") if case["kind"] == "dlmm.next_bin_array"],
    ids=lambda case: f"{case['active_id']}-{'down' if case['swap_for_y'] else 'up'}",
)
def test_next_bin_array_is_the_sdks(case: dict[str, Any]) -> None:
    extension = case["extension_base64"]
    found = bin_array_indexes(
        case["active_id"] // BINS_IN_ARRAY,
        bytes.fromhex(case["lb_pair_bitmap_hex"]),
        None if extension is None else b64decode(extension),
        down=case["swap_for_y"],
        count=1,
    )
    assert found == ([] if case["bin_array_index"] is None else [case["bin_array_index"]])


@pytest.mark.parametrize(
    "case",
    [case for case in solana_cases("index_math") if case["kind"] == "dlmm.bin_array_index"],
    ids=lambda case: str(case["bin_id"]),
)
def test_bin_lies_in_the_array_that_the_sdk_says(case: dict[str, Any]) -> None:
    index, offset = divmod(case["bin_id"], BINS_IN_ARRAY)
    assert (index, offset) == (case["bin_array_index"], case["offset_in_array"])
    # The pool's own bitmap knows that array, or none.
    found = bin_array_indexes(index, b"\xff" * 128, None, down=True, count=1)
    assert found == ([index] if case["in_lb_pair_bitmap"] else [])


# ---- Swap instructions


def _keys(inputs: dict[str, Any]) -> MeteoraDlmmKeys:
    return MeteoraDlmmKeys(
        pool=Pubkey.from_string(inputs["lb_pair"]),
        mint_a=Pubkey.from_string(inputs["token_x_mint"]),
        mint_b=Pubkey.from_string(inputs["token_y_mint"]),
        vault_a=Pubkey.from_string(inputs["reserve_x"]),
        vault_b=Pubkey.from_string(inputs["reserve_y"]),
        token_program_a=Pubkey.from_string(inputs["token_x_program"]),
        token_program_b=Pubkey.from_string(inputs["token_y_program"]),
        oracle=Pubkey.from_string(inputs["oracle"]),
        bitmap_extension=Pubkey.from_string(inputs["bin_array_bitmap_extension"] or str(NO_KEY)),
    )


@pytest.mark.parametrize(
    "case", solana_cases("instructions_meteora_dlmm"), ids=lambda case: case["instruction"]
)
def test_swap_instruction_reads_as_the_sdk_meant_it(case: dict[str, Any]) -> None:
    inputs = case["inputs"]
    accounts = [Pubkey.from_string(meta["pubkey"]) for meta in case["accounts"]]
    paid_from = Pubkey.from_string(inputs["user_token_in"])
    input_mint = inputs["token_x_mint"] if inputs["swap_for_y"] else inputs["token_y_mint"]
    call = VENUE.read_swap(
        accounts, bytes.fromhex(case["data_hex"]), {paid_from: Pubkey.from_string(input_mint)}
    )
    sells = case["instruction"] in ("swap", "swap2")
    amounts = ("amount_in", "min_amount_out") if sells else ("out_amount", "max_in_amount")
    assert call.side is (Side.SELL if sells else Side.BUY)
    assert (str(call.amount), str(call.threshold_amount)) == tuple(inputs[name] for name in amounts)
    assert call.a_to_b is inputs["swap_for_y"]
    assert str(call.pool) == inputs["lb_pair"]
    assert str(call.owner) == inputs["user"]
    assert str(call.input_account) == inputs["user_token_in"]
    assert str(call.output_account) == inputs["user_token_out"]
    # What transfer hooks take comes before the arrays; here the SDK put arrays in its place.
    hooks = sum(part["length"] for part in inputs.get("remaining_accounts_info") or ())
    assert [str(array) for array in call.arrays] == inputs["bin_arrays"][hooks:]


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in solana_cases("instructions_meteora_dlmm")
        if case["instruction"] in ("swap2", "swap_exact_out2")
        and case["inputs"]["host_fee_in"] is None
        and not any(part["length"] for part in case["inputs"]["remaining_accounts_info"])
    ],
    ids=lambda case: f"{case['instruction']}-{case['inputs']['lb_pair'][:4]}",
)
def test_swap_instruction_is_the_sdks(case: dict[str, Any]) -> None:
    inputs = case["inputs"]
    keys = _keys(inputs)
    sells = case["instruction"] == "swap2"
    # The arrays are the pool's to say, so they are tested with pools, below.
    instruction = VENUE.swap_instruction(
        keys,
        {} if inputs["bin_array_bitmap_extension"] is None else {keys.bitmap_extension: b""},
        a_to_b=inputs["swap_for_y"],
        side=Side.SELL if sells else Side.BUY,
        amount=int(inputs["amount_in" if sells else "out_amount"]),
        threshold_amount=int(inputs["min_amount_out" if sells else "max_in_amount"]),
        owner=Pubkey.from_string(inputs["user"]),
        input_account=Pubkey.from_string(inputs["user_token_in"]),
        output_account=Pubkey.from_string(inputs["user_token_out"]),
    )
    assert str(instruction.program_id) == case["program_id"]
    data = bytes.fromhex(case["data_hex"])
    if inputs["remaining_accounts_info"]:
        # That there are no accounts for hooks is said by naming both and none of either, or like this.
        data = data[:24] + bytes(4)
    assert bytes(instruction.data) == data
    named = [(meta["pubkey"], meta["signer"], meta["writable"]) for meta in case["accounts"]]
    assert [(str(meta.pubkey), meta.is_signer, meta.is_writable) for meta in instruction.accounts] == (
        named[: -len(inputs["bin_arrays"])]
    )


@pytest.mark.parametrize(
    "case",
    [case for case in solana_cases("executions_meteora_dlmm") if case["fixture"] == "dlmm_9t3E"],
    ids=lambda case: case["user"][:4],
)
def test_swap_that_the_program_ran_is_made_of_the_accounts_again(case: dict[str, Any]) -> None:
    keys, before = _fixture(case["fixture"])
    accounts = [Pubkey.from_string(meta["pubkey"]) for meta in case["accounts"]]
    call = _call(case, keys, accounts)
    instruction = VENUE.swap_instruction(
        keys,
        before,
        a_to_b=call.a_to_b,
        side=call.side,
        amount=call.amount,
        threshold_amount=call.threshold_amount,
        owner=call.owner,
        input_account=call.input_account,
        output_account=call.output_account,
    )
    assert bytes(instruction.data).hex() == case["data_hex"]
    assert [(str(meta.pubkey), meta.is_signer, meta.is_writable) for meta in instruction.accounts] == [
        (meta["pubkey"], meta["signer"], meta["writable"]) for meta in case["accounts"]
    ]


# ---- Swaps


def _fixture(name: str) -> tuple[MeteoraDlmmKeys, dict[Pubkey, bytes]]:
    fixture = solana_fixture(name)
    address = Pubkey.from_string(fixture["pool"])
    accounts = {
        Pubkey.from_string(address): b64decode(account["data_base64"])
        for address, account in fixture["accounts"].items()
    }
    pair = LB_PAIR.decode(accounts[address])
    programs = [
        TOKEN_2022_PROGRAM if flag else TOKEN_PROGRAM
        for flag in (pair.token_mint_x_program_flag, pair.token_mint_y_program_flag)
    ]
    # Token-2022 is not traded, but its pools are the same in all else.
    plain = LB_PAIR.patch(accounts[address], token_mint_x_program_flag=0, token_mint_y_program_flag=0)
    keys = VENUE.keys(address, plain)
    assert keys is not None
    return replace(keys, token_program_a=programs[0], token_program_b=programs[1]), accounts


def _call(case: dict[str, Any], keys: MeteoraDlmmKeys, accounts: list[Pubkey]) -> SwapCall:
    paid = keys.mint_a if case["args"]["swap_for_y"] else keys.mint_b
    return VENUE.read_swap(accounts, bytes.fromhex(case["data_hex"]), {accounts[4]: paid})


@pytest.mark.parametrize(
    "case",
    solana_cases("executions_meteora_dlmm"),
    ids=lambda case: f"{case['fixture']}-{case['user'][:4]}",
)
def test_swap_leaves_the_accounts_as_the_program_does(case: dict[str, Any]) -> None:
    keys, before = _fixture(case["fixture"])
    call = _call(case, keys, [Pubkey.from_string(meta["pubkey"]) for meta in case["accounts"]])
    input_mint, output_mint = (keys.mint_a, keys.mint_b) if call.a_to_b else (keys.mint_b, keys.mint_a)
    # As the program is given them: of the arrays only those that the swap names.
    known = {key: data for key, data in before.items() if key in (keys.pool, *call.arrays)}
    taken_on_the_way = (_TransferFee(before[input_mint]), _TransferFee(before[output_mint]))
    outcome = _outcome(keys, known, call, Clock(case["slot"], case["unix_timestamp"]), *taken_on_the_way)
    if not case["ok"]:
        assert outcome == case["error_code"]
        return
    assert isinstance(outcome, tuple)
    swap, paid, received = outcome
    assert case["user_delta"] == {str(input_mint): str(-paid), str(output_mint): str(received)}

    written = VENUE.written(keys, before, call.a_to_b, swap)
    assert written[keys.pool] == b64decode(case["pool_after_base64"])
    into, out_of = (keys.vault_a, keys.vault_b) if call.a_to_b else (keys.vault_b, keys.vault_a)
    assert token_amount(written[into]) - token_amount(before[into]) == swap.input_amount
    assert token_amount(before[out_of]) - token_amount(written[out_of]) == swap.output_amount
    assert _changed_bins(keys, before, before | written) == case["bins_changed"]


class _TransferFee:
    """What Token-2022 keeps of a transfer: the newer fee of the first extension in the mint."""

    def __init__(self, mint: bytes) -> None:
        self._bps, self._most = 0, 0
        if len(mint) > MINT.size:
            kind, size = (int.from_bytes(mint[at : at + 2], "little") for at in (166, 168))
            assert (kind, size) == (1, 108)
            self._most = int.from_bytes(mint[268:276], "little")
            self._bps = int.from_bytes(mint[276:278], "little")

    def arrives(self, sent: int) -> int:
        return sent - min(self._most, -(-sent * self._bps // 10_000))

    def sent(self, arriving: int) -> int:
        """Return the least transfer of which so much arrives."""
        sent = arriving
        while self.arrives(sent) < arriving:
            sent += arriving - self.arrives(sent)
        return sent


def _outcome(
    keys: MeteoraDlmmKeys,
    accounts: Mapping[Pubkey, bytes],
    call: SwapCall,
    clock: Clock,
    input_fee: _TransferFee,
    output_fee: _TransferFee,
) -> tuple[Swap, int, int] | int:
    """Return the swap with what the user pays and receives, or the custom error that it ends with."""
    pool = VENUE.pool(keys, accounts)
    try:
        if call.side is Side.SELL:
            swap = pool.swap_exact_in(call.a_to_b, input_fee.arrives(call.amount), clock)
            paid, received = call.amount, output_fee.arrives(swap.output_amount)
            misses = received < call.threshold_amount
        else:
            if not input_fee.arrives(call.threshold_amount):
                return VENUE.error_code(SwapRefusal.ZERO_OUTPUT)
            swap = pool.swap_exact_out(call.a_to_b, output_fee.sent(call.amount), clock)
            paid, received = input_fee.sent(swap.input_amount), call.amount
            misses = paid > call.threshold_amount
    except SwapError as error:
        return VENUE.error_code(error.reason)
    return VENUE.slippage_errors[call.side] if misses else (swap, paid, received)


def _changed_bins(
    keys: MeteoraDlmmKeys, before: Mapping[Pubkey, bytes], after: Mapping[Pubkey, bytes]
) -> list[list[Any]]:
    """Return id and amounts of the bins that changed; nothing else in a bin array may have."""
    changed = []
    for index in range(-2, 3):
        address = bin_array_address(keys.pool, index)
        if address not in before:
            continue
        one, other = BIN_ARRAY.decode(before[address]), BIN_ARRAY.decode(after[address])
        for at in range(BINS_IN_ARRAY):
            place = slice(at * BIN.size, (at + 1) * BIN.size)
            if one.bins[place] != other.bins[place]:
                was, now = BIN.decode(one.bins[place]), BIN.decode(other.bins[place])
                amounts: dict[str, Any] = {"amount_x": now.amount_x, "amount_y": now.amount_y}
                assert now == replace(was, **amounts)
                changed.append([index * BINS_IN_ARRAY + at, *map(str, amounts.values())])
    return changed


# ---- Pools


class Made:
    """A pool of 1,000 tokens x and 100,000 tokens y, as the venue itself makes it."""

    def __init__(self) -> None:
        self.mint_x, self.mint_y = (Pubkey.from_bytes(bytes([number]) * 32) for number in (8, 9))
        self.address, made = VENUE.new_pool(self.mint_x, self.mint_y, 1_000 * 10**9, 100_000 * 10**6, 2_500)
        self.data = {address: account.data for address, account in made.items()}
        keys = VENUE.keys(self.address, self.data[self.address])
        assert keys is not None
        self.keys = keys
        self.pair = LB_PAIR.decode(self.data[self.address])

    def set_bin(self, bin_id: int, **changes: Any) -> None:
        index, at = divmod(bin_id, BINS_IN_ARRAY)
        address = bin_array_address(self.address, index)
        array = BIN_ARRAY.decode(self.data[address])
        place = slice(at * BIN.size, (at + 1) * BIN.size)
        bins = bytearray(array.bins)
        bins[place] = BIN.encode(replace(BIN.decode(array.bins[place]), **changes))
        self.data[address] = BIN_ARRAY.encode(replace(array, bins=bytes(bins)))

    def set_pair(self, **changes: Any) -> None:
        self.data[self.address] = LB_PAIR.patch(self.data[self.address], **changes)

    def pool(self) -> MeteoraDlmmPool:
        return VENUE.pool(self.keys, self.data)


@pytest.fixture
def made() -> Made:
    return Made()


def test_new_pool_is_at_its_price_with_all_its_tokens_in_bins(made: Made) -> None:
    pool = made.pool()
    output, input_ = pool.price(True)
    # One x is 100 y; the bins are 20 basis points apart.
    assert 0.998 * 0.1 < output / input_ <= 0.1
    assert sum(one.amount_x for one in pool.bins) == 1_000 * 10**9
    assert sum(one.amount_y for one in pool.bins) == 100_000 * 10**6
    assert all(one.price == bin_price(one.bin_id, 20) for one in pool.bins)
    assert pool.parameters.numerator(20, 0) == 2_500_000


def test_pools_with_token_2022_mints_are_left_alone(made: Made) -> None:
    for flag in ("token_mint_x_program_flag", "token_mint_y_program_flag"):
        assert VENUE.keys(made.address, LB_PAIR.patch(made.data[made.address], **{flag: 1})) is None


def test_pool_without_a_known_array_ends_before_it(made: Made) -> None:
    whole = made.pool()
    start = made.pair.active_id // BINS_IN_ARRAY
    missing = bin_array_indexes(start, made.pair.bin_array_bitmap, None, down=False, count=ARRAYS_AHEAD)[-1]
    assert missing > start
    del made.data[bin_array_address(made.address, missing)]
    assert made.pool().bins == tuple(one for one in whole.bins if one.bin_id < missing * BINS_IN_ARRAY)
    with pytest.raises(SwapError) as refused:
        made.pool().swap_exact_out(False, 1_000 * 10**9, NOW)
    assert refused.value.reason is SwapRefusal.INSUFFICIENT_LIQUIDITY


def test_arrays_follow_the_price(made: Made) -> None:
    before = VENUE.quote_accounts(made.keys, made.data)
    assert VENUE.quote_accounts(made.keys, {}) == before[:2] == (made.address, made.keys.bitmap_extension)
    # All of the pool's arrays are near; beyond the last one there are none ahead, and the same behind.
    made.set_pair(active_id=made.pair.active_id + 10 * BINS_IN_ARRAY)
    after = VENUE.quote_accounts(made.keys, made.data)
    assert set(after) == set(before)
    assert VENUE.pool(made.keys, made.data).swap_exact_in(True, 10**9, NOW).output_amount > 0
    with pytest.raises(SwapError):
        VENUE.pool(made.keys, made.data).swap_exact_in(False, 10**6, NOW)


def test_swap_names_the_next_arrays_in_its_direction_and_no_more_than_are_quoted(made: Made) -> None:
    active = made.pair.active_id // BINS_IN_ARRAY
    made.set_pair(bin_array_bitmap=b"\xff" * 128)
    for a_to_b, step in ((True, -1), (False, 1)):
        instruction = VENUE.swap_instruction(
            made.keys,
            made.data,
            a_to_b=a_to_b,
            side=Side.SELL,
            amount=1,
            threshold_amount=0,
            owner=NO_KEY,
            input_account=NO_KEY,
            output_account=NO_KEY,
        )
        assert [meta.pubkey for meta in instruction.accounts[16:]] == [
            bin_array_address(made.address, active + step * ahead) for ahead in range(ARRAYS_AHEAD)
        ]


@pytest.mark.parametrize("a_to_b", [True, False])
@pytest.mark.parametrize("orders", ["open_order_amount", "processed_order_remaining_amount"])
def test_liquidity_ends_with_a_bin_that_limit_orders_lie_in(made: Made, a_to_b: bool, orders: str) -> None:
    whole = made.pool()
    step = -1 if a_to_b else 1
    last = made.pair.active_id + 3 * step
    # Orders on the other side of that bin are not in the way.
    made.set_bin(last, **{orders: 5}, limit_order_ask_side=1 if a_to_b else 0)
    assert made.pool() == whole
    made.set_bin(last, limit_order_ask_side=0 if a_to_b else 1)
    bins = made.pool().bins
    assert (bins[0] if a_to_b else bins[-1]).bin_id == last
    assert (bins[-1] if a_to_b else bins[0]) == (whole.bins[-1] if a_to_b else whole.bins[0])
    # Up to there every swap is as it was.
    held = sum(one.amount_y if a_to_b else one.amount_x for one in bins)
    now, was = (pool.swap_exact_out(a_to_b, held, NOW) for pool in (made.pool(), whole))
    assert (now.input_amount, now.output_amount, now.fee_amount) == (
        was.input_amount,
        was.output_amount,
        was.fee_amount,
    )
    with pytest.raises(SwapError):
        made.pool().swap_exact_out(a_to_b, held + 1, NOW)
    assert whole.swap_exact_out(a_to_b, held + 1, NOW).output_amount == held + 1


def test_price_that_a_bin_does_not_tell_yet_is_computed_and_written(made: Made) -> None:
    whole = made.pool()
    made.set_bin(made.pair.active_id, price=0)
    assert made.pool() == whole
    swap = made.pool().swap_exact_in(True, 10**9, NOW)
    index, at = divmod(made.pair.active_id, BINS_IN_ARRAY)
    array = BIN_ARRAY.decode(
        VENUE.written(made.keys, made.data, True, swap)[bin_array_address(made.address, index)]
    )
    assert BIN.decode(array.bins[at * BIN.size :][: BIN.size]).price == bin_price(made.pair.active_id, 20)


@pytest.mark.parametrize("a_to_b", [True, False])
def test_swap_over_many_arrays_reads_back_from_the_bytes_written(made: Made, a_to_b: bool) -> None:
    # Of 70 bins that hold it.
    amount = 55_000 * 10**6 if a_to_b else 550 * 10**9
    swap = made.pool().swap_exact_out(a_to_b, amount, NOW)
    made.data |= VENUE.written(made.keys, made.data, a_to_b, swap)
    assert made.pool() == swap.pool
    assert abs(made.pool().active_id - made.pair.active_id) == 38


@pytest.mark.parametrize("a_to_b", [True, False])
def test_swap_through_more_bins_than_compute_units_are_asked_for_is_refused(made: Made, a_to_b: bool) -> None:
    pool = made.pool()
    held = [one.amount_y if a_to_b else one.amount_x for one in pool.bins]
    reached = sum([one for one in (held[::-1] if a_to_b else held) if one][:MAX_BINS])
    swap = pool.swap_exact_out(a_to_b, reached, NOW)
    assert isinstance(swap.pool, MeteoraDlmmPool)
    assert abs(swap.pool.active_id - pool.active_id) == MAX_BINS - 1
    assert len(list(pool.segments(a_to_b, NOW))) == MAX_BINS
    with pytest.raises(SwapError) as refused:
        pool.swap_exact_out(a_to_b, reached + 1, NOW)
    assert refused.value.reason is SwapRefusal.INSUFFICIENT_LIQUIDITY
    # From there the next one goes on.
    assert swap.pool.swap_exact_out(a_to_b, 1, NOW).output_amount == 1


def test_array_of_another_kind_is_refused(made: Made) -> None:
    index = made.pair.active_id // BINS_IN_ARRAY
    made.data[bin_array_address(made.address, index)] = bytes(BIN_ARRAY.size)
    with pytest.raises(WireError, match="BinArray"):
        made.pool()


def test_bins_that_the_extension_tells_are_traded(made: Made) -> None:
    active_id = 700 * BINS_IN_ARRAY
    array = BIN_ARRAY.decode(made.data[bin_array_address(made.address, made.pair.active_id // BINS_IN_ARRAY)])
    bins = BIN.encode(BinState(amount_y=10**6)) + bytes(BIN.size * (BINS_IN_ARRAY - 1))
    made.data[bin_array_address(made.address, 700)] = BIN_ARRAY.encode(replace(array, index=700, bins=bins))
    made.set_pair(active_id=active_id, bin_step=1)
    assert made.pool().bins == ()
    made.data[made.keys.bitmap_extension] = BITMAP_EXTENSION.encode(
        BinArrayBitmapExtension(made.address, (1 << 700 - 512).to_bytes(768, "little"))
    )
    held = made.pool().bins[-1]
    assert (held.bin_id, held.amount_y, held.price) == (active_id, 10**6, bin_price(active_id, 1))
    assert bin_array_address(made.address, 700) in VENUE.quote_accounts(made.keys, made.data)


def test_price_beyond_the_arrays_that_were_named_is_slippage() -> None:
    assert VENUE.failure_reason(3005)[0] is FailureReason.SLIPPAGE_EXCEEDED


@pytest.mark.parametrize("size", [27, 29])
def test_list_of_hook_accounts_that_ends_early_is_no_swap(size: int) -> None:
    (case, *_) = [
        case for case in solana_cases("instructions_meteora_dlmm") if case["data_hex"].endswith("0100")
    ]
    accounts = [Pubkey.from_string(meta["pubkey"]) for meta in case["accounts"]]
    with pytest.raises(ValueError, match="not a swap"):
        VENUE.read_swap(accounts, bytes.fromhex(case["data_hex"])[:size], {accounts[4]: accounts[6]})
