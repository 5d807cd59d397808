"""What JSON-RPC answers look like: accounts, balances, transactions as a node writes them."""

from __future__ import annotations

from base64 import b64encode
from binascii import b2a_base64
from functools import lru_cache
from typing import Any, Final

import msgspec
from solders.pubkey import Pubkey
from solders.signature import Signature

from simnet import base58
from simnet.accounts import TOKEN, Account
from simnet.ledger import Landed
from simnet.transaction import Transaction, TransactionError

Json = dict[str, Any]
Pieces = list[bytes]
"""JSON, to be put together once: what is large is not copied at every step of its making."""


class Encoded(msgspec.Struct, frozen=True, gc=False):
    """A value that is JSON already."""

    pieces: Pieces


MAX_BASE58_DATA: Final = 128
"""Bytes of an account that are told in base58; the time that it takes grows with their square."""
_NEVER_PAYS_RENT: Final = 2**64 - 1
_encode: Final = msgspec.json.Encoder().encode
_TOKEN_TEXT: Final = str(Pubkey.from_bytes(TOKEN))


def address_text(address: bytes) -> str:
    return str(Pubkey.from_bytes(address))


def signature_text(signature: bytes) -> str:
    return str(Signature.from_bytes(signature))


def account_json(account: Account, encoding: str, data_slice: tuple[int, int] | None) -> Json:
    """`encoding` is base64 or base58; `data_slice` is offset and length and leaves `space` as it is."""
    data = sliced(account.data, data_slice)
    if encoding == "base64":
        text = b64encode(data).decode()
    elif len(data) <= MAX_BASE58_DATA:
        text = base58.encode(data)
    else:
        text = "error: data too large for bs58 encoding"
    return {
        "data": [text, encoding],
        "executable": account.executable,
        "lamports": account.lamports,
        "owner": address_text(account.owner),
        "rentEpoch": _NEVER_PAYS_RENT,
        "space": len(account.data),
    }


def sliced(data: bytes, data_slice: tuple[int, int] | None) -> bytes:
    if data_slice is None:
        return data
    offset, length = data_slice
    return data[offset : offset + length]


def token_amount_json(amount: int, decimals: int) -> Json:
    ui_amount, ui_text = _ui_amount(amount, decimals)
    return {"amount": str(amount), "decimals": decimals, "uiAmount": ui_amount, "uiAmountString": ui_text}


def status_json(
    slot: int, error: TransactionError | None, commitment: str, confirmations: int | None
) -> Json:
    return {
        "slot": slot,
        "confirmations": confirmations,
        "err": error,
        "status": result_json(error),
        "confirmationStatus": commitment,
    }


def result_json(error: TransactionError | None) -> Json:
    return {"Ok": None} if error is None else {"Err": error}


def memo_text(memo: str | None) -> str | None:
    """Return a memo as getSignaturesForAddress writes it: with its length in bytes."""
    return None if memo is None else f"[{len(memo.encode())}] {memo}"


def transaction_json(landed: Landed, encoding: str, *, with_version: bool) -> Encoded:
    """Return getTransaction's answer; `encoding` is base64, base58 or json."""
    parts = _recorded_json(landed, encoding, with_version=with_version, shows_rewards=True)
    return Encoded([b'{"slot":%d,"blockTime":%d,%b}' % (landed.slot, landed.block_time, parts)])


def block_transaction_json(landed: Landed) -> bytes:
    """Return a transaction as one of its block's: in base64, with its version and without rewards."""
    return b"{%b}" % _recorded_json(landed, "base64", with_version=True, shows_rewards=False)


def _recorded_json(landed: Landed, encoding: str, *, with_version: bool, shows_rewards: bool) -> bytes:
    """Return how a transaction went, what it is, and its version, as what is between the braces."""
    # Put together by hand: every confirmed order is told once, and as objects it took twice the time.
    meta = landed.meta
    before: list[bytes] = []
    after: list[bytes] = []
    for balance in meta.token_balances:
        head = _token_balance_head(balance.account_index, balance.mint, balance.owner)
        if balance.before is not None:
            before.append(head + _amount_text(balance.before, balance.decimals))
        if balance.after is not None:
            after.append(head + _amount_text(balance.after, balance.decimals))
    if encoding == "base64":
        transaction = b'["%b","base64"]' % b2a_base64(landed.raw, newline=False)
    elif encoding == "base58":
        transaction = _encode([base58.encode(landed.raw), "base58"])
    else:
        transaction = _encode(_message_json(Transaction(landed.raw)))
    version = b""
    if with_version:
        version = b',"version":"legacy"' if _is_legacy(landed.raw) else b',"version":0'
    error = landed.error
    return (
        b'"meta":{"err":%b,"status":%b,"fee":%d,"preBalances":%b,"postBalances":%b'
        b',"innerInstructions":[],"logMessages":%b,"preTokenBalances":[%b],"postTokenBalances":[%b]'
        b',"rewards":%b,"loadedAddresses":{"writable":[],"readonly":[]},"computeUnitsConsumed":%d}'
        b',"transaction":%b%b'
        % (
            b"null" if error is None else _encode(error),
            b'{"Ok":null}' if error is None else _encode(result_json(error)),
            landed.fee,
            _encode(meta.lamports_before),
            _encode(meta.lamports_after),
            _encode(meta.logs),
            b",".join(before),
            b",".join(after),
            # As a node: null where they were not asked for, and there are none.
            b"[]" if shows_rewards else b"null",
            meta.compute_units,
            transaction,
            version,
        )
    )


def is_versioned(landed: Landed) -> bool:
    return not _is_legacy(landed.raw)


def _is_legacy(raw: bytes) -> bool:
    return raw[1 + 64 * raw[0]] != 0x80


@lru_cache(maxsize=16_384)
def _token_balance_head(index: int, mint: bytes, owner: bytes) -> bytes:
    """Return a token balance up to its amount."""
    return (
        f'{{"accountIndex":{index},"mint":"{address_text(mint)}","owner":"{address_text(owner)}"'
        f',"programId":"{_TOKEN_TEXT}","uiTokenAmount":'
    ).encode()


@lru_cache(maxsize=16_384)
def _amount_text(amount: int, decimals: int) -> bytes:
    """Return a token balance's amount and its end. What one swap leaves, the next one finds."""
    ui_amount, ui_text = _ui_amount(amount, decimals)
    return (
        f'{{"amount":"{amount}","decimals":{decimals},"uiAmount":{ui_amount!r},"uiAmountString":"{ui_text}"}}}}'
    ).encode()


def _ui_amount(amount: int, decimals: int) -> tuple[float, str]:
    """Return an amount in whole tokens, as a number and as text."""
    scale = 10**decimals
    whole, rest = divmod(amount, scale)
    return amount / float(scale), f"{whole}.{rest:0{decimals}d}".rstrip("0") if rest else str(whole)


def _message_json(transaction: Transaction) -> Json:
    outline = transaction.outline
    message: Json = {
        "header": {
            "numRequiredSignatures": outline.signature_count,
            "numReadonlySignedAccounts": outline.signature_count - outline.writable_signer_count,
            "numReadonlyUnsignedAccounts": outline.read_only_count,
        },
        "accountKeys": [address_text(key) for key in transaction.keys],
        "recentBlockhash": address_text(transaction.blockhash),
        "instructions": [
            {
                "programIdIndex": instruction.program,
                "accounts": list(instruction.accounts),
                "data": base58.encode(instruction.data),
                "stackHeight": None,
            }
            for instruction in transaction.instructions
        ],
    }
    if not transaction.legacy:
        message["addressTableLookups"] = []
    return {"signatures": [str(each) for each in transaction.decoded.signatures], "message": message}
