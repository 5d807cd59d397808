"""JSON-RPC: methods of a Solana node, those that the engine uses and some more, answered as a node does.

Methods take `params` and return the result, or a coroutine of it where the ledger must be read. Beside
a node's own methods there are those that only a simulation can have: simnet_*.
"""

from __future__ import annotations

import asyncio
from binascii import a2b_base64
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict
from itertools import count
from types import CoroutineType
from typing import Any, Final

import msgspec
from solders.hash import Hash
from solders.instruction import Instruction
from solders.keypair import Keypair
from solders.message import Message
from solders.pubkey import Pubkey
from solders.system_program import TransferParams, transfer
from solders.transaction import Transaction as SignedTransaction

from engine.domain.order import Side
from engine.domain.pools.pool import Clock
from engine.domain.tokens import SOL, Token, find_token
from engine.solana.programs import MEMO_PROGRAM
from engine.telemetry import requests_total
from simnet import base58, supply
from simnet.accounts import (
    Account,
    is_token_account,
    mint_decimals,
    rent_exempt_minimum,
    token_balance,
    token_mint,
)
from simnet.bank import Outcome, View, error_text
from simnet.chain import SLOTS_IN_EPOCH, Chain
from simnet.faults import FaultError
from simnet.genesis import GenesisPool
from simnet.history import History
from simnet.launch_rpc import LaunchRpc
from simnet.ledger import Landed
from simnet.programs.associated_token import address_of
from simnet.questions import (
    RpcFault,
    argument,
    fault_of,
    invalid,
    parse_address,
    parse_commitment,
    parse_data_slice,
    parse_filters,
    parse_named,
    parse_options,
    parse_signature,
    parse_whole,
)
from simnet.shapes import (
    MAX_BASE58_DATA,
    Encoded,
    Json,
    Pieces,
    account_json,
    address_text,
    is_versioned,
    memo_text,
    signature_text,
    sliced,
    status_json,
    token_amount_json,
    transaction_json,
)
from simnet.transaction import (
    MAX_BASE58_SIZE,
    MAX_BASE64_SIZE,
    MAX_RAW_SIZE,
    Transaction,
    Undecodable,
    Unsanitary,
)

API_VERSION: Final = "2.2.7"
MAX_ACCOUNTS: Final = 100
MAX_SIGNATURES: Final = 256
_MAX_PAGE: Final = 1000
_MAX_HISTORY: Final = 10_000
_MAX_ADVANCE: Final = 10_000
_BREATH: Final = 100
"""Slots produced before anybody else gets a turn of the loop."""
_ACCOUNT_CACHE: Final = 20_000
_LOADED_DATA_SIZE: Final = 311_042
"""A figure of a node's own program cache; it says nothing here."""

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class Rpc:
    """Answers the bodies of HTTP requests."""

    def __init__(self, chain: Chain, faucet: Keypair, history: History | None = None) -> None:
        """`history` None: none is kept."""
        self._chain = chain
        self._history = history
        self._faucet = faucet
        self._airdrops = count(1)
        self._lamports = sum(account.lamports for account in chain.accounts.values())
        """What all accounts held at the start, and what was given since."""
        self._account_cache: dict[bytes, tuple[Account, bytes]] = {}
        self._methods: dict[str, Callable[[list[Any]], Any]] = {
            "getAccountInfo": self.get_account_info,
            "getBalance": self.get_balance,
            "getBlockHeight": self.get_block_height,
            "getEpochInfo": self.get_epoch_info,
            "getFirstAvailableBlock": self.get_first_available_block,
            "getHealth": self.get_health,
            "getLatestBlockhash": self.get_latest_blockhash,
            "getMinimumBalanceForRentExemption": self.get_minimum_balance_for_rent_exemption,
            "getMultipleAccounts": self.get_multiple_accounts,
            "getProgramAccounts": self.get_program_accounts,
            "getSignatureStatuses": self.get_signature_statuses,
            "getSignaturesForAddress": self.get_signatures_for_address,
            "getSlot": self.get_slot,
            "getTokenAccountBalance": self.get_token_account_balance,
            "getTransaction": self.get_transaction,
            "getVersion": self.get_version,
            "isBlockhashValid": self.is_blockhash_valid,
            "requestAirdrop": self.request_airdrop,
            "sendTransaction": self.send_transaction,
            "simulateTransaction": self.simulate_transaction,
            "simnet_advance": self.simnet_advance,
            "simnet_faults": self.simnet_faults,
            "simnet_fund": self.simnet_fund,
            "simnet_history": self.simnet_history,
            "simnet_ledger": self.simnet_ledger,
            "simnet_move_price": self.simnet_move_price,
            "simnet_pause": self.simnet_pause,
            "simnet_pools": self.simnet_pools,
            "simnet_resume": self.simnet_resume,
            **LaunchRpc(chain).methods,
        }
        self._answered = dict.fromkeys(self._methods, 0)
        """How often each was, since it was last told to the metrics."""

    def answer(self, body: bytes) -> Pieces | Coroutine[Any, Any, Pieces]:
        """Return the answer to one call or to a batch of them; a coroutine of it where one takes longer."""
        try:
            request = _decode(body)
        except (msgspec.DecodeError, RecursionError):
            return _answer_pieces(None, RpcFault(-32700, "Parse error"))
        if not isinstance(request, list):
            request_id, result = self._begin(request)
            if isinstance(result, CoroutineType):
                return self._answer_later([(request_id, result)], is_batch=False)
            return _answer_pieces(request_id, result)
        if not request:
            return _answer_pieces(None, RpcFault(-32600, "Invalid request"))
        answers = [self._begin(each) for each in request]
        if CoroutineType in {type(result) for _, result in answers}:
            return self._answer_later(answers, is_batch=True)
        return _joined(answers)

    def count_answered(self) -> None:
        """Have the metrics say how many calls were answered; at every call that takes 1.5 us."""
        for name, times in self._answered.items():
            requests_total.labels(name, "ok").inc(times)
        self._answered = dict.fromkeys(self._methods, 0)

    async def _answer_later(self, answers: list[tuple[Any, Any]], *, is_batch: bool) -> Pieces:
        done = await asyncio.gather(*(self._finished(*each) for each in answers))
        return _joined(done) if is_batch else _answer_pieces(*done[0])

    def _begin(self, request: Any) -> tuple[Any, Any]:
        """Return a call's id and its result, fault, or coroutine of either."""
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return None, RpcFault(-32600, "Invalid request")
        request_id = request.get("id")
        name = request["method"]
        method = self._methods.get(name)
        if method is None:
            return request_id, RpcFault(-32601, "Method not found")
        params = request.get("params")
        if params is None:
            params = []
        elif isinstance(params, dict):
            params = [params]
        try:
            result = method(params)
        except Exception as error:
            fault = fault_of(error)
            requests_total.labels(name, fault.code).inc()
            return request_id, fault
        self._answered[name] += 1
        return request_id, result

    async def _finished(self, request_id: Any, result: Any) -> tuple[Any, Any]:
        if isinstance(result, CoroutineType):
            try:
                result = await result
            except Exception as error:
                result = fault_of(error)
        return request_id, result

    # ---- Time

    def get_slot(self, params: list[Any]) -> int:
        return self._slot_asked(parse_options(params, 0))

    def get_block_height(self, params: list[Any]) -> int:
        return self._chain.block_height(self.get_slot(params))

    def get_epoch_info(self, params: list[Any]) -> Json:
        slot = self.get_slot(params)
        return {
            "absoluteSlot": slot,
            "blockHeight": self._chain.block_height(slot),
            "epoch": slot // SLOTS_IN_EPOCH,
            "slotIndex": slot % SLOTS_IN_EPOCH,
            "slotsInEpoch": SLOTS_IN_EPOCH,
            "transactionCount": self._chain.transaction_count,
        }

    def get_first_available_block(self, _params: list[Any]) -> int:
        # The whole ledger is kept.
        return 0

    def get_latest_blockhash(self, params: list[Any]) -> Json:
        slot = self._slot_asked(parse_options(params, 0))
        return _with_context(slot, self._blockhash_json(slot))

    def is_blockhash_valid(self, params: list[Any]) -> Json:
        blockhash = parse_address(argument(params, 0, 1))
        options = parse_options(params, 1)
        slot = self._slot_asked(options)
        return _with_context(slot, self._chain.is_blockhash_valid(blockhash, parse_commitment(options)))

    def get_health(self, _params: list[Any]) -> str:
        return "ok"

    def get_version(self, _params: list[Any]) -> Json:
        return {"solana-core": API_VERSION, "feature-set": 3294202862}

    def _blockhash_json(self, slot: int) -> Json:
        return {
            "blockhash": address_text(self._chain.blockhash(slot)),
            "lastValidBlockHeight": self._chain.block_height(slot) + self._chain.timing.blockhash_blocks,
        }

    # ---- Accounts

    def get_account_info(self, params: list[Any]) -> Json:
        address = parse_address(argument(params, 0, 1))
        slot, encode = self._account_reader(parse_options(params, 1))
        return _with_context(slot, msgspec.Raw(encode(address)))

    def get_multiple_accounts(self, params: list[Any]) -> Encoded:
        addresses = argument(params, 0, 1)
        if not isinstance(addresses, list):
            raise invalid("Invalid params: invalid type, expected a sequence")
        if len(addresses) > MAX_ACCOUNTS:
            raise invalid(f"Too many inputs provided; max {MAX_ACCOUNTS}")
        slot, encode = self._account_reader(parse_options(params, 1), "base64")
        pieces = [b'{"context":{"slot":%d,"apiVersion":"%b"},"value":[' % (slot, API_VERSION.encode())]
        for text in addresses:
            pieces.append(encode(parse_address(text)))
            pieces.append(b",")
        pieces[-1 if addresses else 1 :] = [b"]}"]
        return Encoded(pieces)

    def get_balance(self, params: list[Any]) -> Json:
        address = parse_address(argument(params, 0, 1))
        slot = self._slot_asked(parse_options(params, 1))
        account = self._chain.accounts_at(slot).get(address)
        return _with_context(slot, account.lamports if account else 0)

    def get_token_account_balance(self, params: list[Any]) -> Json:
        address = parse_address(argument(params, 0, 1))
        slot = self._chain.slot_of(parse_commitment(parse_options(params, 1)))
        accounts = self._chain.accounts_at(slot)
        account = accounts.get(address)
        if account is None:
            raise invalid("Invalid param: could not find account")
        if not is_token_account(account):
            raise invalid("Invalid param: not a Token account")
        mint = accounts.get(token_mint(account))
        decimals = mint_decimals(mint) if mint is not None else 0
        return _with_context(slot, token_amount_json(token_balance(account), decimals))

    def get_program_accounts(self, params: list[Any]) -> Any:
        program = parse_address(argument(params, 0, 1))
        options = parse_options(params, 1)
        slot, encode = self._account_reader(options)
        wanted = parse_filters(options.get("filters"))
        accounts = self._chain.accounts_at(slot)
        found = []
        for address in list(self._chain.accounts):
            account = accounts.get(address)
            if (
                account is not None
                and account.owner == program
                and all(matches(account.data) for matches in wanted)
            ):
                found.append({"pubkey": address_text(address), "account": msgspec.Raw(encode(address))})
        return _with_context(slot, found) if options.get("withContext") else found

    def get_minimum_balance_for_rent_exemption(self, params: list[Any]) -> int:
        return rent_exempt_minimum(parse_whole(argument(params, 0, 1), "length", 0, 10 * 2**20))

    def _account_reader(
        self, options: Json, usual_encoding: str = "base58"
    ) -> tuple[int, Callable[[bytes], bytes]]:
        """Return the slot to read at, and what turns an address into its account's JSON."""
        slot = self._slot_asked(options)
        accounts = self._chain.accounts_at(slot)
        encoding = options.get("encoding") or usual_encoding
        if encoding not in ("base64", "base58"):
            raise invalid(f"Invalid params: encoding {encoding!r} is not supported; use base64")
        data_slice = parse_data_slice(options.get("dataSlice"))
        if encoding == "base58" or data_slice is not None:

            def encode(address: bytes) -> bytes:
                account = accounts.get(address)
                if account is None:
                    return b"null"
                if encoding == "base58" and len(sliced(account.data, data_slice)) > MAX_BASE58_DATA:
                    raise RpcFault(
                        -32600,
                        f"Encoded binary (base 58) data should be less than {MAX_BASE58_DATA} bytes,"
                        " please use Base64 encoding.",
                    )
                return _encode(account_json(account, encoding, data_slice))

            return slot, encode
        cache = self._account_cache

        def encode_cached(address: bytes) -> bytes:
            account = accounts.get(address)
            if account is None:
                return b"null"
            known = cache.get(address)
            # Accounts never change, they are replaced: the same one has the same JSON.
            if known is None or known[0] is not account:
                if len(cache) >= _ACCOUNT_CACHE:
                    cache.clear()
                known = cache[address] = (account, _encode(account_json(account, "base64", None)))
            return known[1]

        return slot, encode_cached

    # ---- Transactions

    def send_transaction(self, params: list[Any]) -> str:
        options = parse_options(params, 1)
        transaction = _transaction(argument(params, 0, 1), options.get("encoding") or "base58")
        skips_preflight = options.get("skipPreflight")
        commitment = "processed" if skips_preflight else parse_commitment(options, "preflightCommitment")
        self._check_context(options, commitment)
        if not skips_preflight:
            self._preflight(transaction, commitment)
        elif not self._chain.has(transaction.signature) and not transaction.verified():
            # Forwarded unseen and thrown away by the next node: the sender hears nothing of it.
            return signature_text(transaction.signature)
        fate = self._chain.accept(transaction)
        if fate.answered_with_error:
            raise RpcFault(-32603, "Internal error")
        return signature_text(transaction.signature)

    def simulate_transaction(self, params: list[Any]) -> Json:
        options = parse_options(params, 1)
        transaction = _transaction(argument(params, 0, 1), options.get("encoding") or "base58")
        commitment = parse_commitment(options)
        slot = self._slot_asked(options)
        replace = bool(options.get("replaceRecentBlockhash"))
        if options.get("sigVerify"):
            if replace:
                raise invalid("sigVerify may not be used with replaceRecentBlockhash")
            if not transaction.verified():
                raise RpcFault(-32003, "Transaction signature verification failure")
        outcome, view = self._chain.simulate(transaction, commitment, any_blockhash=replace)
        value = _simulation_json(outcome)
        wanted = options.get("accounts")
        if wanted is not None:
            value["accounts"] = _simulated_accounts(wanted, outcome, view)
        if replace:
            value["replacementBlockhash"] = self._blockhash_json(slot)
        return _with_context(slot, value)

    def request_airdrop(self, params: list[Any]) -> str:
        wallet = parse_address(argument(params, 0, 2))
        lamports = parse_whole(argument(params, 1, 2), "lamports", 1, 2**63 - 1)
        payer = self._faucet.pubkey()
        message = Message.new_with_blockhash(
            [
                transfer(
                    TransferParams(from_pubkey=payer, to_pubkey=Pubkey.from_bytes(wallet), lamports=lamports)
                ),
                # Two airdrops of one amount in one slot would otherwise be one transaction.
                Instruction(MEMO_PROGRAM, f"airdrop {next(self._airdrops)}".encode(), []),
            ],
            payer,
            Hash.from_bytes(self._chain.blockhash(self._chain.slot)),
        )
        signed = SignedTransaction([self._faucet], message, message.recent_blockhash)
        transaction = Transaction(bytes(signed))
        self._chain.accept(transaction)
        return signature_text(transaction.signature)

    def get_signature_statuses(self, params: list[Any]) -> Any:
        texts = argument(params, 0, 1)
        if not isinstance(texts, list):
            raise invalid("Invalid params: invalid type, expected a sequence")
        if len(texts) > MAX_SIGNATURES:
            raise invalid(f"Too many inputs provided; max {MAX_SIGNATURES}")
        signatures = [parse_signature(text) for text in texts]
        search = parse_options(params, 1).get("searchTransactionHistory")
        older = self._chain.history(signatures) if search else {}
        return _with_context(
            self._chain.slot,
            [
                self._landed_status_json(older[each].slot, older[each].error)
                if each in older
                else self._status_json(each)
                for each in signatures
            ],
        )

    def get_transaction(self, params: list[Any]) -> Any:
        signature = parse_signature(argument(params, 0, 1))
        given = params[1] if len(params) > 1 else None
        options = {"encoding": given} if isinstance(given, str) else parse_options(params, 1)
        commitment = parse_commitment(options)
        if commitment == "processed":
            raise invalid("Method does not support commitment below `confirmed`")
        encoding = options.get("encoding") or "json"
        if encoding not in ("json", "base58", "base64"):
            raise invalid(f"Invalid params: encoding {encoding!r} is not supported; use base64")
        versioned = options.get("maxSupportedTransactionVersion") is not None
        return self._transaction_json(self._chain.record(signature), commitment, encoding, versioned)

    def get_signatures_for_address(self, params: list[Any]) -> Any:
        address = parse_address(argument(params, 0, 1))
        options = parse_options(params, 1)
        commitment = parse_commitment(options)
        self._check_context(options, commitment)
        if commitment == "processed":
            raise invalid("Method does not support commitment below `confirmed`")
        limit = options.get("limit")
        if limit is None:
            limit = _MAX_PAGE
        elif isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= _MAX_PAGE:
            raise invalid(f"Invalid limit; max {_MAX_PAGE}")
        before, until = (
            None if options.get(name) is None else parse_signature(options[name])
            for name in ("before", "until")
        )
        return self._signatures_json(address, before, until, limit, commitment)

    def _preflight(self, transaction: Transaction, commitment: str) -> None:
        """Raise the fault that a node's look at the transaction, ahead of forwarding it, ends in."""
        if not transaction.verified():
            raise RpcFault(-32003, "Transaction signature verification failure")
        outcome, _ = self._chain.simulate(transaction, commitment)
        if outcome.error is not None:
            raise RpcFault(
                -32002,
                f"Transaction simulation failed: {error_text(outcome.error)}",
                _simulation_json(outcome)
                | dict.fromkeys(
                    (
                        "fee",
                        "preBalances",
                        "postBalances",
                        "preTokenBalances",
                        "postTokenBalances",
                        "loadedAddresses",
                    )
                ),
            )

    def _status_json(self, signature: bytes) -> Json | None:
        status = self._chain.status(signature)
        return None if status is None else self._landed_status_json(status.slot, status.error)

    def _landed_status_json(self, slot: int, error: Any) -> Json:
        commitment = self._chain.commitment_of(slot)
        return status_json(
            slot, error, commitment, None if commitment == "finalized" else self._chain.slot - slot
        )

    def _transaction_json(
        self, landed: Landed | None, commitment: str, encoding: str, versioned: bool
    ) -> Encoded | None:
        if landed is None or landed.slot > self._chain.slot_of(commitment):
            return None
        if is_versioned(landed) and not versioned:
            raise RpcFault(
                -32015,
                "Transaction version (0) is not supported by the requesting client. Please try the request"
                " again with the following configuration parameter:"
                ' "maxSupportedTransactionVersion": 0',
            )
        return transaction_json(landed, encoding, with_version=versioned)

    async def _signatures_json(
        self, address: bytes, before: bytes | None, until: bytes | None, limit: int, commitment: str
    ) -> list[Json]:
        found = await self._chain.naming(
            address, before=before, until=until, limit=limit, commitment=commitment
        )
        return [
            {
                "signature": signature_text(each.signature),
                "slot": each.slot,
                "err": each.error,
                "memo": memo_text(each.memo),
                "blockTime": each.block_time,
                "confirmationStatus": self._chain.commitment_of(each.slot),
            }
            for each in found
        ]

    def _slot_asked(self, options: Json) -> int:
        """Return the newest slot of the commitment asked for."""
        commitment = parse_commitment(options)
        self._check_context(options, commitment)
        return self._chain.slot_of(commitment)

    def _check_context(self, options: Json, commitment: str) -> None:
        least = options.get("minContextSlot")
        if least is not None:
            slot = self._chain.slot_of(commitment)
            if slot < parse_whole(least, "minContextSlot", 0, 2**64 - 1):
                raise RpcFault(-32016, "Minimum context slot has not been reached", {"contextSlot": slot})

    # ---- What only a simulation can do

    def simnet_fund(self, params: list[Any]) -> Json:
        """{wallet, mint (address, symbol or "SOL"), amount in base units}: give, at once, from nowhere."""
        asked = parse_named(params, "wallet", "mint", "amount")
        wallet = parse_address(asked["wallet"])
        amount = parse_whole(asked["amount"], "amount", 1, 2**63 - 1)
        mint = asked["mint"]
        if mint == SOL.symbol:
            address = wallet

            def give(view: View, _clock: Clock) -> None:
                supply.give_lamports(view, wallet, amount, self._lamports)

        else:
            mint_address = _mint(mint)
            address = address_of(wallet, mint_address)

            def give(view: View, _clock: Clock) -> None:
                supply.give(view, wallet, mint_address, amount)

        try:
            self._chain.change(give)
        except supply.SupplyError as error:
            raise invalid(str(error)) from None
        if address == wallet:
            self._lamports += amount
        account = self._chain.accounts[address]
        balance = account.lamports if address == wallet else token_balance(account)
        return {"account": address_text(address), "balance": str(balance)}

    def simnet_faults(self, params: list[Any]) -> Json:
        """{drop: 0.1, ...}: change those figures; without any, only tell. Returns all of them."""
        try:
            self._chain.faults = self._chain.faults.changed(parse_options(params, 0))
        except FaultError as error:
            raise invalid(str(error)) from None
        return asdict(self._chain.faults)

    def simnet_history(self, params: list[Any]) -> list[Json]:
        """{inputToken, outputToken (symbols or mints), side ("sell" or "buy"), amount in base units, after}:
        the best single pool for the whole amount, at the end of each slot after `after` in which a pool of
        the pair changed, and of the oldest slot known. `pool` null: none could fill it.

        At most 10,000 slots; the next ones are had `after` the last one. Refused where
        SIMNET_HISTORY_SLOTS is 0.
        """
        asked = parse_named(params, "inputToken", "outputToken", "side", "amount")
        input_mint, output_mint = (
            Pubkey.from_bytes(_mint(asked[name])) for name in ("inputToken", "outputToken")
        )
        if asked["side"] not in ("sell", "buy"):
            raise invalid("side must be sell or buy")
        amount = parse_whole(asked["amount"], "amount", 1, 2**64 - 1)
        after = parse_whole(asked.get("after", 0), "after", 0, 2**63 - 1)
        if self._history is None:
            raise invalid("no history is kept; set SIMNET_HISTORY_SLOTS to how many slots back it is to go")
        found = self._history.best(input_mint, output_mint, Side(asked["side"]), amount, after, _MAX_HISTORY)
        return [
            {
                "slot": best.slot,
                "pool": None if best.pool is None else best.pool.name,
                "inputAmount": None if best.pool is None else str(best.input_amount),
                "outputAmount": None if best.pool is None else str(best.output_amount),
            }
            for best in found
        ]

    def simnet_pools(self, _params: list[Any]) -> list[Json]:
        """Every pool, with the price of a whole base token in quote tokens, before fees."""
        view = View(self._chain.accounts)
        return [self._pool_json(view, pool) for pool in self._chain.market.pools]

    def simnet_move_price(self, params: list[Any]) -> list[Json]:
        """{pool or pair ("SOL/USDC"), bps, hold}: move the base token's price by so many basis points.

        Moved by swaps, at once. `hold` true: the market leaves the pool alone from now on; false: it
        brings it back in line again; left out: as it was. Returns the pools concerned.
        """
        asked = parse_options(params, 0)
        pools = self._pools_named(asked)
        bps = parse_whole(asked.get("bps", 0), "bps", -9_000, 1_000_000)
        hold = asked.get("hold")
        market = self._chain.market

        def push(view: View, clock: Clock) -> None:
            for pool in pools:
                market.push(view, pool, bps, clock)
                if hold is not None:
                    (market.held.add if hold else market.held.discard)(bytes(pool.keys.pool))

        held = set(market.held)
        try:
            self._chain.change(push)
        except BaseException:
            market.held = held
            raise
        view = View(self._chain.accounts)
        return [self._pool_json(view, pool) for pool in pools]

    async def simnet_ledger(self, params: list[Any]) -> Json:
        """{memoPrefix, after, limit}: landed transactions in the order of execution, a page at a time.

        The next page starts `after` the last one's `sequence`. The record is what the ledger's file holds.
        """
        asked = parse_options(params, 0)
        prefix = asked.get("memoPrefix") or ""
        if not isinstance(prefix, str):
            raise invalid("memoPrefix must be text")
        after = parse_whole(asked.get("after", 0), "after", 0, 2**63 - 1)
        limit = parse_whole(asked.get("limit", _MAX_PAGE), "limit", 1, _MAX_PAGE)
        page = await self._chain.page(prefix, after, limit)
        return {"slot": self._chain.slot, "transactions": [_ledger_json(each) for each in page]}

    def simnet_pause(self, _params: list[Any]) -> int:
        """Stop producing slots. Returns the slot it stopped at."""
        self._chain.producing = False
        return self._chain.slot

    def simnet_resume(self, _params: list[Any]) -> int:
        self._chain.producing = True
        return self._chain.slot

    async def simnet_advance(self, params: list[Any]) -> int:
        """{slots}: produce so many slots now, one after the other, paused or not. Returns the last."""
        for done in range(parse_whole(parse_options(params, 0).get("slots", 1), "slots", 1, _MAX_ADVANCE)):
            if done % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)
            self._chain.advance()
        return self._chain.slot

    def _pools_named(self, asked: Json) -> list[GenesisPool]:
        if "pool" in asked:
            pool = self._chain.market.find(parse_address(asked["pool"]))
            pools = [] if pool is None else [pool]
        else:
            pair = asked.get("pair")
            pools = [
                pool for pool in self._chain.market.pools if f"{pool.base.symbol}/{pool.quote.symbol}" == pair
            ]
        if not pools:
            raise invalid("there is no such pool or pair; simnet_pools lists them")
        return pools

    def _pool_json(self, view: View, pool: GenesisPool) -> Json:
        price = self._chain.market.price(view, pool)
        if not pool.a_is_base:
            price = 1 / price
        vaults = (pool.keys.vault_a, pool.keys.vault_b)
        base_vault, quote_vault = vaults if pool.a_is_base else vaults[::-1]
        return {
            "pool": str(pool.keys.pool),
            "venue": pool.venue.name,
            "kind": pool.venue.kind,
            "base": pool.base.symbol,
            "quote": pool.quote.symbol,
            "feePpm": pool.fee_ppm,
            "price": price * _units(pool.base) / _units(pool.quote),
            "baseVault": str(base_vault),
            "quoteVault": str(quote_vault),
            "baseAmount": str(_vault_balance(view, base_vault)),
            "quoteAmount": str(_vault_balance(view, quote_vault)),
            "held": bytes(pool.keys.pool) in self._chain.market.held,
        }


# ---- Answers


def _joined(answers: Sequence[tuple[Any, Any]]) -> Pieces:
    """Return the answer to a batch, which is not empty."""
    pieces = [b"["]
    for request_id, result in answers:
        pieces += _answer_pieces(request_id, result)
        pieces.append(b",")
    pieces[-1] = b"]"
    return pieces


def _answer_pieces(request_id: Any, result: Any) -> Pieces:
    if isinstance(result, Encoded):
        return [b'{"jsonrpc":"2.0","result":', *result.pieces, b',"id":', _encode(request_id), b"}"]
    if isinstance(result, RpcFault):
        return [_encode(_error_json(request_id, result))]
    return [_encode({"jsonrpc": "2.0", "result": result, "id": request_id})]


def _error_json(request_id: Any, fault: RpcFault) -> Json:
    error: Json = {"code": fault.code, "message": fault.message}
    if fault.data is not None:
        error["data"] = fault.data
    return {"jsonrpc": "2.0", "error": error, "id": request_id}


def _with_context(slot: int, value: Any) -> Json:
    return {"context": {"slot": slot, "apiVersion": API_VERSION}, "value": value}


def _simulation_json(outcome: Outcome) -> Json:
    meta = outcome.meta
    return {
        "err": outcome.error,
        "logs": [] if meta is None else meta.logs,
        "accounts": None,
        "unitsConsumed": 0 if meta is None else meta.compute_units,
        "loadedAccountsDataSize": _LOADED_DATA_SIZE,
        "returnData": None,
        "innerInstructions": None,
        "replacementBlockhash": None,
    }


def _simulated_accounts(wanted: Any, outcome: Outcome, view: View) -> list[Json | None] | None:
    addresses = wanted.get("addresses") if isinstance(wanted, dict) else None
    if not isinstance(addresses, list):
        raise invalid("Invalid params: missing field `addresses`")
    if wanted.get("encoding") not in (None, "base64"):
        raise invalid("base58 encoding not supported")
    if outcome.error is not None:
        return [None for _ in addresses]
    accounts = [view.get(parse_address(text)) for text in addresses]
    return [None if account is None else account_json(account, "base64", None) for account in accounts]


def _ledger_json(landed: Landed) -> Json:
    return {
        "sequence": landed.sequence,
        "signature": signature_text(landed.signature),
        "slot": landed.slot,
        "blockTime": landed.block_time,
        "err": landed.error,
        "fee": landed.fee,
        "memo": landed.memo,
        "amounts": [
            {
                "owner": address_text(balance.owner),
                "mint": address_text(balance.mint),
                "before": str(balance.before or 0),
                "after": str(balance.after or 0),
                "change": str((balance.after or 0) - (balance.before or 0)),
            }
            for balance in landed.meta.token_balances
        ],
    }


# ---- Questions


def _transaction(text: Any, encoding: Any) -> Transaction:
    if not isinstance(text, str) or not isinstance(encoding, str):
        raise invalid("Invalid params: invalid type, expected a string")
    most = {"base64": MAX_BASE64_SIZE, "base58": MAX_BASE58_SIZE}.get(encoding)
    if most is None:
        raise invalid(f"unsupported encoding: {encoding}. Supported encodings: base58, base64")
    kind = "solana_transaction::versioned::VersionedTransaction"
    if len(text) > most:
        raise invalid(
            f"{encoding} encoded {kind} too large: {len(text)} bytes (max: encoded/raw {most}/{MAX_RAW_SIZE})"
        )
    try:
        raw = _from_base64(text) if encoding == "base64" else base58.decode(text)
    except ValueError as error:
        raise invalid(f"invalid {encoding} encoding: {error}") from None
    if len(raw) > MAX_RAW_SIZE:
        raise invalid(f"decoded {kind} too large: {len(raw)} bytes (max: {MAX_RAW_SIZE} bytes)")
    try:
        return Transaction(raw)
    except (Undecodable, Unsanitary) as error:
        raise invalid(str(error)) from None


def _from_base64(text: str) -> bytes:
    """Raises ValueError."""
    try:
        # 1 us for a swap's, where binascii takes 5.
        return msgspec.convert(text, bytes)
    except msgspec.ValidationError:
        # It knows what is wrong, or forgives a little more.
        return a2b_base64(text, strict_mode=True)


def _mint(asked: Any) -> bytes:
    """Return the mint that a symbol or an address names."""
    token = find_token(asked) if isinstance(asked, str) else None
    return parse_address(token.mint if token else asked)


# ---- Pools


def _units(token: Token) -> float:
    return float(10**token.decimals)


def _vault_balance(view: View, vault: Pubkey) -> int:
    account = view.get(bytes(vault))
    return 0 if account is None else token_balance(account)
