"""What JSON-RPC answers look like: accounts, balances, transactions as a node writes them."""

from __future__ import annotations

from base64 import b64encode
from functools import lru_cache
from typing import Any, Final

import msgspec
from solders.pubkey import Pubkey
from solders.signature import Signature

from simnet import base58
from simnet.accounts import TOKEN, Account
from simnet.bank import TokenBalance
from simnet.ledger import Landed
from simnet.transaction import Transaction, TransactionError

Json = dict[str, Any]

_NEVER_PAYS_RENT: Final = 2**64 - 1
_TOKEN_TEXT: Final = str(Pubkey.from_bytes(TOKEN))


def address_text(address: bytes) -> str:
    return str(Pubkey.from_bytes(address))


def signature_text(signature: bytes) -> str:
    return str(Signature.from_bytes(signature))


def account_json(account: Account, encoding: str, data_slice: tuple[int, int] | None) -> Json:
    """`encoding` is base64 or base58; `data_slice` is offset and length and leaves `space` as it is."""
    data = account.data
    if data_slice is not None:
        offset, length = data_slice
        data = data[offset : offset + length]
    text = b64encode(data).decode() if encoding == "base64" else base58.encode(data)
    return {
        "data": [text, encoding],
        "executable": account.executable,
        "lamports": account.lamports,
        "owner": address_text(account.owner),
        "rentEpoch": _NEVER_PAYS_RENT,
        "space": len(account.data),
    }


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


def transaction_json(landed: Landed, encoding: str, *, with_version: bool) -> Json:
    """Return getTransaction's answer; `encoding` is base64, base58 or json."""
    meta = landed.meta
    answer: Json = {
        "slot": landed.slot,
        "blockTime": landed.block_time,
        "meta": {
            "err": landed.error,
            "status": result_json(landed.error),
            "fee": landed.fee,
            "preBalances": meta.lamports_before,
            "postBalances": meta.lamports_after,
            "innerInstructions": [],
            "logMessages": meta.logs,
            "preTokenBalances": [
                _token_balance_json(balance, balance.before)
                for balance in meta.token_balances
                if balance.before is not None
            ],
            "postTokenBalances": [
                _token_balance_json(balance, balance.after)
                for balance in meta.token_balances
                if balance.after is not None
            ],
            "rewards": [],
            "loadedAddresses": {"writable": [], "readonly": []},
            "computeUnitsConsumed": meta.compute_units,
        },
    }
    if with_version:
        answer["version"] = "legacy" if _is_legacy(landed.raw) else 0
    if encoding == "base64":
        answer["transaction"] = [b64encode(landed.raw).decode(), "base64"]
    elif encoding == "base58":
        answer["transaction"] = [base58.encode(landed.raw), "base58"]
    else:
        answer["transaction"] = _message_json(Transaction(landed.raw))
    return answer


def is_versioned(landed: Landed) -> bool:
    return not _is_legacy(landed.raw)


def _is_legacy(raw: bytes) -> bool:
    return raw[1 + 64 * raw[0]] != 0x80


def _token_balance_json(balance: TokenBalance, amount: int) -> msgspec.Raw:
    # By hand: a swap's record has sixteen of these, and every confirmed order is read once.
    ui_amount, ui_text = _ui_amount(amount, balance.decimals)
    return msgspec.Raw(
        (
            f'{{"accountIndex":{balance.account_index},"mint":"{_known_text(balance.mint)}"'
            f',"owner":"{_known_text(balance.owner)}","programId":"{_TOKEN_TEXT}"'
            f',"uiTokenAmount":{{"amount":"{amount}","decimals":{balance.decimals}'
            f',"uiAmount":{ui_amount!r},"uiAmountString":"{ui_text}"}}}}'
        ).encode()
    )


def _ui_amount(amount: int, decimals: int) -> tuple[float, str]:
    """Return an amount in whole tokens, as a number and as text."""
    digits = str(amount).rjust(decimals + 1, "0")
    whole, fraction = digits[: len(digits) - decimals], digits[len(digits) - decimals :].rstrip("0")
    return amount / float(10**decimals), f"{whole}.{fraction}" if fraction else whole


_known_text = lru_cache(maxsize=4096)(address_text)
"""For addresses that come again and again."""


def _message_json(transaction: Transaction) -> Json:
    message: Json = {
        "header": {
            "numRequiredSignatures": transaction.signature_count,
            "numReadonlySignedAccounts": transaction.signature_count - transaction.writable_signer_count,
            "numReadonlyUnsignedAccounts": transaction.read_only_count,
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
