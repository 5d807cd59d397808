"""A Solana node, over JSON-RPC and its WebSocket.

Whatever is asked in one turn of the loop travels in one HTTP request, as a JSON-RPC batch. Sending
transactions and reading have separate lanes, so that a broadcast never waits behind a large read.
"""

from __future__ import annotations

import asyncio
import logging
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Container, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import aiohttp
import msgspec
from solders.pubkey import Pubkey
from solders.signature import Signature

from engine.coalesce import Coalescer
from engine.domain.errors import EngineError, NodeUnavailable, Refused
from engine.domain.tokens import Token, token_of_mint
from engine.settings import SettingsError
from engine.solana.http import HttpClient, HttpError
from engine.solana.transactions import Blockhash
from engine.telemetry import node_errors_total, observe_batch

logger = logging.getLogger(__name__)

MAX_ACCOUNTS: Final = 100
"""Accounts a node answers in one getMultipleAccounts."""
MAX_SIGNATURES: Final = 256
"""Signatures a node answers in one getSignatureStatuses."""
MAX_LISTED: Final = 1000
"""Transactions a node lists in one getSignaturesForAddress."""

_UNHEALTHY: Final = frozenset({-32004, -32005, -32014, -32016})
"""Errors that say: this node is behind. It may catch up, or another may know."""
_PREFLIGHT_FAILURE: Final = -32002
_SEND_INTERVAL_SECONDS: Final = 0.003
"""Between two requests that send transactions: a request costs as much as five transactions in it."""
_RECONNECT_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.4
_MAX_TEXT: Final = 16 * 2**20
"""Bytes of an announcement. An account has at most 10 MiB, of which base64 makes a third more."""
_UNHEARD_SECONDS: Final = 1.0
"""Slots are announced for so long after somebody last waited for one."""
_SILENT_SECONDS: Final = 5.0
"""A node that announces no slot for so long does not announce them: a slot takes 0.4 s, and few in a row are
skipped."""
_SLOTS_ID: Final = 1
"""Of the call that has slots announced, by which its answer is known."""
_BLOCKS_ID: Final = 3
"""Of the call that has blocks announced, by which its answer is known."""
_SIGNATURE_BASE64: Final = 88
"""So many characters of a transaction in base64 hold the number of its signatures, a byte, and the first."""


class RpcError(Refused):
    """The node answered, and refused."""

    reason = "NODE_REFUSED"

    def __init__(self, method: str, code: int, message: str, data: Any = None) -> None:
        self.code = code
        self.data = data
        super().__init__(f"{method}: {message} ({code})")


@dataclass(frozen=True, slots=True)
class ProgramWatch:
    """Which of a program's accounts are meant."""

    program: Pubkey
    data_size: int
    """Of the account, in bytes."""
    prefix: bytes = b""
    """What its first bytes are."""


class ProgramChange(NamedTuple):
    """An account of a program, as a change has left it."""

    program: Pubkey
    address: Pubkey
    data: bytes


class ChainPosition(msgspec.Struct, frozen=True, rename="camel"):
    """How far the chain has come. Some slots stay without a block, so the height never runs ahead of them."""

    absolute_slot: int
    block_height: int
    """Of that slot's block."""


class SignatureStatus(msgspec.Struct, frozen=True, rename="camel"):
    """What the chain says of a transaction that it has seen."""

    slot: int
    err: Any
    """None: it did what it should. Else the TransactionError as JSON."""
    confirmation_status: str
    """processed, confirmed or finalized."""

    def reached(self, commitment: str) -> bool:
        """Say whether it is as final as `commitment` asks."""
        return _FINALITY.index(self.confirmation_status) >= _FINALITY.index(commitment)


_FINALITY: Final = ("processed", "confirmed", "finalized")


class SignatureInfo(msgspec.Struct, frozen=True, rename="camel"):
    """What a node's list of an address's transactions says of one."""

    signature: str
    slot: int
    err: Any
    """None: it did what it should. Else the TransactionError as JSON."""
    memo: str | None
    """As the node writes it: "[7] order-1", with the length in bytes. None: there is none."""
    block_time: int | None
    """Unix seconds. None: the node does not know."""


class _TokenAmount(msgspec.Struct, frozen=True):
    amount: str
    decimals: int


class _TokenBalance(msgspec.Struct, frozen=True, rename="camel"):
    account_index: int
    mint: str
    owner: str
    ui_token_amount: _TokenAmount


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    err: Any
    fee: int
    pre_token_balances: list[_TokenBalance] | None = None
    post_token_balances: list[_TokenBalance] | None = None


class TransactionRecord(msgspec.Struct, frozen=True):
    """A transaction as it went."""

    slot: int
    meta: _Meta

    @property
    def err(self) -> Any:
        """None: it did what it should."""
        return self.meta.err

    @property
    def fee(self) -> int:
        """Lamports."""
        return self.meta.fee

    def exchanged(self, wallet: str, input_mint: str, output_mint: str) -> tuple[int, int]:
        """Return what the pools took of input_mint and gave of output_mint, in base units.

        Seen from the pools, because a wallet's SOL also pays fees and rent.
        """
        taken = given = 0
        # An account that was opened or closed on the way is missing from one of the two: it held nothing.
        for sign, balances in ((-1, self.meta.pre_token_balances), (1, self.meta.post_token_balances)):
            for balance in balances or ():
                if balance.owner != wallet:
                    if balance.mint == input_mint:
                        taken += sign * int(balance.ui_token_amount.amount)
                    elif balance.mint == output_mint:
                        given -= sign * int(balance.ui_token_amount.amount)
        return taken, given


class WholeTransaction(TransactionRecord, frozen=True):
    """A transaction as it went, with its bytes."""

    transaction: tuple[str, str]
    """Base64, and the word that says so."""

    @property
    def raw(self) -> bytes:
        return b64decode(self.transaction[0])

    def moved(self, wallet: str, accounts: Container[int]) -> dict[Token, int]:
        """Return how much more of each token these accounts hold after it, in base units.

        By their places among the transaction's accounts; the wallet's own are left out.
        """
        moved: dict[Token, int] = {}
        for sign, balances in ((-1, self.meta.pre_token_balances), (1, self.meta.post_token_balances)):
            for balance in balances or ():
                if balance.account_index in accounts and balance.owner != wallet:
                    token = token_of_mint(balance.mint, balance.ui_token_amount.decimals)
                    amount = int(balance.ui_token_amount.amount)
                    moved[token] = moved.get(token, 0) + sign * amount
        return moved


# ---- What the node answers, as far as it is read: msgspec passes over the rest without making objects of it.


class _Context(msgspec.Struct):
    slot: int


class _AccountData(msgspec.Struct):
    data: tuple[str, str]
    """Base64, and the word that says so."""


class Account(msgspec.Struct, frozen=True, rename={"encoded": "data"}):
    lamports: int
    owner: str
    """Base58 address of the program that owns it."""
    encoded: tuple[str, str]
    """Data in base64, and the word that says so. Two equal texts are two equal data, and need no decoding."""

    @property
    def data_base64(self) -> str:
        return self.encoded[0]

    @property
    def data(self) -> bytes:
        """Raises NodeUnavailable for what is no base64."""
        return _bytes_of(self.encoded[0])


class _Accounts(msgspec.Struct):
    context: _Context
    value: list[Account | None]


class _ProgramAccount(msgspec.Struct):
    pubkey: str
    account: _AccountData


class _BlockhashJson(msgspec.Struct, rename="camel"):
    blockhash: str
    last_valid_block_height: int


class _LatestBlockhash(msgspec.Struct):
    value: _BlockhashJson


class _Statuses(msgspec.Struct):
    context: _Context
    value: list[SignatureStatus | None]


class _RpcErrorJson(msgspec.Struct):
    code: int = 0
    message: str = ""
    data: Any = None


class _Answer(msgspec.Struct):
    id: int | None = None
    result: msgspec.Raw = msgspec.Raw()
    error: _RpcErrorJson | None = None


class _Request(msgspec.Struct):
    id: int
    method: str
    params: list[Any]
    jsonrpc: str = "2.0"


class _BlockTransaction(msgspec.Struct):
    transaction: tuple[str, str]
    """Base64, and the word that says so."""
    meta: msgspec.Raw
    """Decoded only where it is wanted: most are somebody else's."""


class _Block(msgspec.Struct):
    transactions: list[_BlockTransaction]


class _BlockUpdate(msgspec.Struct):
    slot: int
    block: _Block | None = None
    """None: the node cannot show it now."""


class _Announced(msgspec.Struct):
    """A slot or a block."""

    slot: int | None = None
    value: _BlockUpdate | None = None


class _AnnouncementParams(msgspec.Struct):
    result: _Announced
    subscription: int


class _Announcement(msgspec.Struct):
    """A notification, or the answer to a call."""

    id: int | None = None
    result: Any = None
    """The subscription's number."""
    error: _RpcErrorJson | None = None
    params: _AnnouncementParams | None = None


class _ProgramValue(msgspec.Struct):
    value: _ProgramAccount


class _ProgramNotificationParams(msgspec.Struct):
    subscription: int
    result: _ProgramValue


class _ProgramNotification(msgspec.Struct):
    """A notification, or the answer to a subscription."""

    id: int | None = None
    result: int | None = None
    """The subscription's number."""
    error: _RpcErrorJson | None = None
    params: _ProgramNotificationParams | None = None


_decode_program_notification: Final = msgspec.json.Decoder(_ProgramNotification).decode
_decode_announcement: Final = msgspec.json.Decoder(_Announcement).decode
_decode_meta: Final = msgspec.json.Decoder(_Meta).decode
_encode: Final = msgspec.json.Encoder().encode
_decode_answers: Final = msgspec.json.Decoder(list[_Answer] | _Answer).decode


class _Method:
    """A method of the node, and the shape of what it answers."""

    def __init__(self, name: str, result: Any) -> None:
        self.name = name
        self.decode = msgspec.json.Decoder(result).decode


_GET_LATEST_BLOCKHASH: Final = _Method("getLatestBlockhash", _LatestBlockhash)
_GET_EPOCH_INFO: Final = _Method("getEpochInfo", ChainPosition)
_GET_FIRST_AVAILABLE_BLOCK: Final = _Method("getFirstAvailableBlock", int)
_GET_SLOT: Final = _Method("getSlot", int)
_GET_MULTIPLE_ACCOUNTS: Final = _Method("getMultipleAccounts", _Accounts)
_GET_PROGRAM_ACCOUNTS: Final = _Method("getProgramAccounts", list[_ProgramAccount])
_SEND_TRANSACTION: Final = _Method("sendTransaction", str)
_GET_SIGNATURE_STATUSES: Final = _Method("getSignatureStatuses", _Statuses)
_GET_SIGNATURES_FOR_ADDRESS: Final = _Method("getSignaturesForAddress", list[SignatureInfo])
_GET_TRANSACTION: Final = _Method("getTransaction", TransactionRecord | None)
_GET_WHOLE_TRANSACTION: Final = _Method("getTransaction", WholeTransaction | None)

_SEND_OPTIONS: Final = msgspec.Raw(b'{"encoding":"base64","skipPreflight":true,"maxRetries":0}')
"""Written once, not for every transaction."""

_Call = tuple[_Method, list[Any]]
"""Method and parameters."""


class NodeClient:
    """Calls one node. Use as `async with`.

    Every method raises NodeUnavailable when there was no answer (unreachable, too slow, overloaded or
    behind), which says nothing about what became of a transaction; and RpcError when the node refused.
    """

    def __init__(self, url: str, ws_url: str, *, timeout_seconds: float = 5.0) -> None:
        """Raises SettingsError where `url` is no address."""
        self._ws_url = ws_url
        try:
            self._http = HttpClient(url, timeout_seconds=timeout_seconds)
        except ValueError as error:
            raise SettingsError(f"SOLANA_RPC_URL: {error}") from None
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None
        self._announcements = _Announcements(self._connected, self.slot)
        self._group = asyncio.TaskGroup()
        self._following: asyncio.Task[None] | None = None
        # 50 calls a batch: what public nodes accept.
        self._read = Coalescer[_Call, Any](
            self._post, max_batch=50, max_concurrent=4, observe=observe_batch("node_read")
        )
        self._send = Coalescer[_Call, Any](
            self._post,
            max_batch=50,
            max_concurrent=4,
            interval_seconds=_SEND_INTERVAL_SECONDS,
            observe=observe_batch("node_send"),
        )

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=self._timeout)
        await self._group.__aenter__()
        self._following = self._group.create_task(self._announcements.follow())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._following is not None
        self._following.cancel()
        # An error of the block is not the group's, which would wrap it; a cancellation may be the group's.
        is_cancelled = isinstance(error, asyncio.CancelledError)
        try:
            await self._group.__aexit__(*((kind, error, trace) if is_cancelled else (None, None, None)))
        finally:
            await self._read.drain()
            await self._send.drain()
            self._http.close()
            if self._session is not None:
                await self._session.close()
                self._session = None

    # ---- Time

    async def latest_blockhash(self, commitment: str = "confirmed") -> Blockhash:
        """Return the newest blockhash, and how long it is good for."""
        value = (await self._read((_GET_LATEST_BLOCKHASH, [{"commitment": commitment}]))).value
        return Blockhash(value.blockhash, value.last_valid_block_height)

    async def position(self, commitment: str) -> ChainPosition:
        """Return slot and height of the newest block; `finalized` for proof that a transaction expired."""
        position: ChainPosition = await self._read((_GET_EPOCH_INFO, [{"commitment": commitment}]))
        return position

    async def first_available_slot(self) -> int:
        """Return the slot of the oldest block that the node has: of what landed before, it does not know."""
        slot: int = await self._read((_GET_FIRST_AVAILABLE_BLOCK, []))
        return slot

    async def slot(self, commitment: str = "processed") -> int:
        """Return the newest slot."""
        slot: int = await self._read((_GET_SLOT, [{"commitment": commitment}]))
        return slot

    async def next_slot(self, after: int | None) -> int:
        """Return the newest slot, once there is one after that: as the node announces it, else by asking.

        None: after the newest there is.
        However many wait, slots are announced once, and not at all while nobody does.
        """
        return await self._announcements.next_slot(after)

    @property
    def newest_slot(self) -> int:
        """The newest slot that anybody waited for."""
        return self._announcements.newest_slot

    # ---- Accounts

    async def program_changes(
        self, watches: Sequence[ProgramWatch]
    ) -> AsyncGenerator[ProgramChange | None, None]:
        """Yield each account that fits a watch as it is created or changed, for ever.

        None comes first, and again whenever the connection was made anew: from there on every change is
        told, and those before it were missed. List the accounts then, as processed. Without a connection
        nothing comes; it is tried again every second. An account that fits two watches of one program is
        told for each.
        """
        while True:
            try:
                async with aclosing(self._announced_changes(watches)) as announced:
                    async for change in announced:
                        yield change
            except (
                aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError, RpcError, NodeUnavailable
            ) as error:  # fmt: skip
                logger.warning("announcements of changed accounts lost: %r", error)
                node_errors_total.labels("changes_lost").inc()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _announced_changes(
        self, watches: Sequence[ProgramWatch]
    ) -> AsyncGenerator[ProgramChange | None, None]:
        """Yield changes of one connection. Raises RpcError where the node refuses a watch."""
        async with self._connected() as socket, aclosing(_texts(socket)) as texts:
            for index, watch in enumerate(watches):
                options = {
                    "encoding": "base64",
                    "commitment": "processed",
                    "filters": _filters(watch.data_size, watch.prefix),
                }
                call = {"jsonrpc": "2.0", "id": index, "method": "programSubscribe"}
                await socket.send_str(_encode(call | {"params": [str(watch.program), options]}).decode())
            unanswered = set(range(len(watches)))
            standing: dict[int, ProgramWatch] = {}
            early: list[_ProgramNotificationParams] = []
            async for text in texts:
                answer = _decode_program_notification(text)
                if answer.error is not None:
                    raise RpcError("programSubscribe", answer.error.code, answer.error.message)
                if answer.params is not None:
                    if unanswered:
                        early.append(answer.params)
                    else:
                        yield _program_change(answer.params, standing)
                elif answer.id in unanswered and answer.result is not None:
                    unanswered.remove(answer.id)
                    standing[answer.result] = watches[answer.id]
                    if not unanswered:
                        yield None
                        for params in early:
                            yield _program_change(params, standing)

    async def multiple_accounts(
        self, addresses: Sequence[Pubkey], commitment: str = "processed"
    ) -> tuple[int, list[Account | None]]:
        """Return any number of accounts in order, None where there is none.

        The slot is the oldest of those that the answer's parts were read at.
        """
        options = {"encoding": "base64", "commitment": commitment}
        calls = [
            (_GET_MULTIPLE_ACCOUNTS, [[_address_text(address) for address in chunk], options])
            for chunk in _chunks(addresses, MAX_ACCOUNTS)
        ]
        slots, accounts = [], []
        for answer, (_, (asked, _)) in zip(await self._read_all(calls), calls, strict=True):
            _check_count("getMultipleAccounts", answer.value, asked)
            slots.append(answer.context.slot)
            accounts += answer.value
        return min(slots, default=0), accounts

    async def program_accounts(
        self,
        program: Pubkey,
        *,
        data_size: int,
        prefix: bytes = b"",
        contains: tuple[int, bytes] | None = None,
        data_slice: tuple[int, int] | None = None,
        commitment: str = "confirmed",
    ) -> list[tuple[Pubkey, bytes]]:
        """Return a program's accounts of that size that start with `prefix`, or only a slice of each.

        `contains` narrows them to those that have some bytes somewhere: offset and bytes. `data_slice` is
        offset and length, in bytes.
        """
        filters = _filters(data_size, prefix, contains)
        options: dict[str, Any] = {"encoding": "base64", "commitment": commitment, "filters": filters}
        if data_slice is not None:
            options["dataSlice"] = {"offset": data_slice[0], "length": data_slice[1]}
        found = await self._read((_GET_PROGRAM_ACCOUNTS, [str(program), options]))
        return [(_address_of(item.pubkey), _bytes_of(item.account.data[0])) for item in found]

    # ---- Transactions

    async def send_transaction(self, raw_transaction: bytes) -> None:
        """Hand a signed transaction to the node, which forwards it without checking it.

        The node does not resend it on its own: whoever recorded it does, and knows when to stop.
        """
        try:
            await self._send((_SEND_TRANSACTION, [b64encode(raw_transaction).decode(), _SEND_OPTIONS]))
        except RpcError as error:
            # Sent before and landed: what was to happen has happened.
            if (
                error.code != _PREFLIGHT_FAILURE
                or not isinstance(error.data, Mapping)
                or error.data.get("err") != "AlreadyProcessed"
            ):
                raise

    async def signature_statuses(self, signatures: Sequence[str]) -> tuple[int, list[SignatureStatus | None]]:
        """Return what the node says of any number of transactions, in order; None: it has not seen it.

        The slot is how far the node had come: the oldest of those that the answer's parts were read at.
        """
        calls = [
            (_GET_SIGNATURE_STATUSES, [list(chunk), {"searchTransactionHistory": True}])
            for chunk in _chunks(signatures, MAX_SIGNATURES)
        ]
        answers = await self._read_all(calls)
        for answer, (_, (asked, _)) in zip(answers, calls, strict=True):
            _check_count("getSignatureStatuses", answer.value, asked)
        slot = min((answer.context.slot for answer in answers), default=0)
        return slot, [status for answer in answers for status in answer.value]

    async def signatures_of(
        self, address: str, before: str | None = None, *, seen_slot: int = 0
    ) -> list[SignatureInfo]:
        """Return confirmed transactions that name an address, reverted ones among them, newest first.

        In one call, the newest MAX_LISTED there are, or that there are before the signature `before`, which
        is left out itself. A node lists nothing before a signature that it does not know, nor if it has not
        come to `seen_slot`: that raises NodeUnavailable.
        """
        options: dict[str, Any] = {"limit": MAX_LISTED, "commitment": "confirmed"}
        if seen_slot:
            options["minContextSlot"] = seen_slot
        if before is not None:
            options["before"] = before
        listed: list[SignatureInfo] = await self._read((_GET_SIGNATURES_FOR_ADDRESS, [address, options]))
        return listed

    async def transactions(
        self, signatures: Sequence[str], commitment: str = "confirmed"
    ) -> list[TransactionRecord | EngineError | None]:
        """Return how transactions went, in order; None where the node has none of that signature.

        What cannot be read has the error in its place. Where nothing can, the first error is raised.
        """
        options = {"encoding": "base64", "commitment": commitment, "maxSupportedTransactionVersion": 0}
        calls: list[_Call] = [(_GET_TRANSACTION, [signature, options]) for signature in signatures]
        answers: list[Any] = await self._read.many(calls)
        errors = [answer for answer in answers if isinstance(answer, Exception)]
        for error in errors:
            # A defect of ours is no answer of the node, and is not to be passed over.
            if len(errors) == len(answers) or not isinstance(error, EngineError):
                raise error
        return answers

    async def whole_transaction(self, signature: str) -> WholeTransaction | None:
        """Return a confirmed transaction with its bytes; None where the node has none of that signature."""
        options = {"encoding": "base64", "commitment": "confirmed", "maxSupportedTransactionVersion": 0}
        whole: WholeTransaction | None = await self._read((_GET_WHOLE_TRANSACTION, [signature, options]))
        return whole

    def follow_landed(
        self,
        wallet: str,
        commitment: str,
        awaited: Container[str],
        on_landed: Callable[[str, TransactionRecord], None],
    ) -> None:
        """Have the node tell how a wallet's transactions went, as they reach the commitment.

        `on_landed` is called with each whose signature is then among those `awaited`, before those who wait
        for the slot go on. That is so only while somebody waits for slots, and what was missed is not told
        again: silence says nothing. To be called once, before anybody waits.
        """
        options = {
            "commitment": commitment,
            "encoding": "base64",
            "transactionDetails": "full",
            "maxSupportedTransactionVersion": 0,
            "showRewards": False,
        }
        call = _Request(_BLOCKS_ID, "blockSubscribe", [{"mentionsAccountOrProgram": wallet}, options])
        self._announcements.landed = _LandedWatch(_encode(call).decode(), awaited, on_landed)

    @property
    def tells_landed(self) -> bool:
        """Whether the node now tells what it was asked to by `follow_landed`; not every node does."""
        return self._announcements.tells_landed

    # ---- The wire

    def _connected(self) -> _Connecting:
        """Return a new WebSocket, to be used as `async with`."""
        if self._session is None:
            raise RuntimeError("NodeClient is used outside of its `async with`")
        return self._session.ws_connect(self._ws_url, heartbeat=15.0, max_msg_size=_MAX_TEXT)

    async def _read_all(self, calls: Sequence[_Call]) -> list[Any]:
        """Return every answer, or raise the first error once all have come."""
        answers = await self._read.many(calls)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    async def _post(self, calls: list[_Call]) -> list[Any]:
        """Make the calls in one HTTP request; an answer that is an exception belongs to its caller alone."""
        requests = [_Request(index, method.name, params) for index, (method, params) in enumerate(calls)]
        # Alone it goes as itself: some nodes count a batch of one as a batch.
        body = _encode(requests if len(requests) > 1 else requests[0])
        try:
            status, text = await self._http.post(body)
        except TimeoutError:
            raise _unavailable("timeout", "did not answer in time") from None
        except (HttpError, OSError) as error:
            raise _unavailable("unreachable", f"is unreachable: {error}") from error
        if status == 429 or status >= 500:
            raise _unavailable(f"http_{status}", f"answered HTTP {status}")
        try:
            answers = _decode_answers(text)
        except msgspec.DecodeError:
            raise _unavailable("not_json_rpc", "answered something that is not JSON-RPC") from None
        by_id = {answer.id: answer for answer in (answers if isinstance(answers, list) else [answers])}
        return [_result(method, by_id.get(index)) for index, (method, _) in enumerate(calls)]


_Connecting = AbstractAsyncContextManager[aiohttp.ClientWebSocketResponse]


async def _texts(socket: aiohttp.ClientWebSocketResponse) -> AsyncGenerator[str, None]:
    """Yield each text that comes. Raises ClientError or OSError at the end."""
    async for message in socket:
        if message.type is aiohttp.WSMsgType.TEXT:
            yield message.data
    raise socket.exception() or ConnectionResetError("the node hung up")


@dataclass(frozen=True, slots=True)
class _LandedWatch:
    subscribe: str
    """The call that has the wallet's blocks announced."""
    awaited: Container[str]
    on_landed: Callable[[str, TransactionRecord], None]


class _Announcements:
    """The newest slot, for as many as wait for it, and what lands of a wallet; followed only while somebody
    waits for a slot."""

    def __init__(self, connect: Callable[[], _Connecting], ask: Callable[[], Awaitable[int]]) -> None:
        """`ask` reads the newest slot, where nothing announces it."""
        self._connect = connect
        self._ask = ask
        self.newest_slot = -1
        self._passed = asyncio.Event()
        self._waiting_count = 0
        self._left_time = 0.0
        """When somebody last stopped waiting, by the loop's clock."""
        self._wanted = asyncio.Event()
        self._lost = asyncio.Event()
        """Set from the loss of the announcements until a slot is announced again: meanwhile it is polled."""
        self.landed: _LandedWatch | None = None
        """What is told of what lands; None: nothing."""
        self._lose()

    def _lose(self) -> None:
        """Begin without a connection, again."""
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._is_subscribed = False
        self._silence: asyncio.Timeout | None = None
        """Ends the connection when no slot is announced in time; None while there is none."""
        self._blocks: int | None = None
        """The number of the subscription to blocks; None while there is none."""
        self._has_blocks = True
        """False once they were refused over this connection."""

    @property
    def tells_landed(self) -> bool:
        return self._blocks is not None

    async def next_slot(self, after: int | None) -> int:
        """Return the newest slot, once there is one after that; None: after the newest that is known."""
        after = self.newest_slot if after is None else after
        self._waiting_count += 1
        self._wanted.set()
        try:
            await self._subscribe()
            while self.newest_slot <= after:
                await self._passed.wait()
        finally:
            self._waiting_count -= 1
            self._left_time = asyncio.get_running_loop().time()
        return self.newest_slot

    async def follow(self) -> None:
        """Follow slots whenever somebody waits for one, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._poll())
            await self._listen()

    async def _listen(self) -> None:
        while True:
            await self._wanted.wait()
            try:
                async with self._connect() as self._socket:
                    await self._hear(self._socket)
            except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError, ValueError) as error:
                self._on_lost(error)
                node_errors_total.labels("slots_lost").inc()
                if isinstance(error, msgspec.DecodeError | ValueError):
                    # Blocks in a shape we do not know are not to cost us the slots again.
                    self.landed = None
            finally:
                self._lose()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _hear(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Take what one connection tells, until it ends. Raises ClientError, OSError or TimeoutError then."""
        try:
            async with asyncio.timeout(None) as silence, aclosing(_texts(socket)) as texts:
                self._silence = silence
                await self._subscribe()
                async for text in texts:
                    await self._on_text(socket, text)
        except TimeoutError:
            if not silence.expired():
                raise
            error = ConnectionResetError(f"no slot was announced for {_SILENT_SECONDS:g} s")
            # Before the connection is closed: a node that hangs takes its time over that.
            self._on_lost(error)
            raise error from None
        finally:
            self._silence = None

    async def _poll(self) -> None:
        """Ask for slots while nothing announces them, a connection that is tried again included."""
        while True:
            await self._lost.wait()
            await self._wanted.wait()
            with suppress(NodeUnavailable, RpcError):
                self._pass(await self._ask())
            await asyncio.sleep(_POLL_SECONDS)

    def _on_lost(self, error: Exception) -> None:
        # The same again with every try is no news.
        level = logging.DEBUG if self._lost.is_set() else logging.WARNING
        logger.log(level, "slot announcements lost, polling: %s", _without_address(error))
        self._lost.set()

    def _expect_slot(self) -> None:
        """Have the connection end unless a slot is announced in time; while there are to be any."""
        if self._silence is not None:
            now = asyncio.get_running_loop().time()
            self._silence.reschedule(now + _SILENT_SECONDS if self._is_subscribed else None)

    async def _subscribe(self) -> None:
        socket = self._socket
        if socket is not None and not self._is_subscribed:
            self._is_subscribed = True
            self._expect_slot()
            # A connection that has ended is noticed where it is read.
            with suppress(aiohttp.ClientError, OSError):
                if self.landed is not None and self._has_blocks:
                    await socket.send_str(self.landed.subscribe)
                await socket.send_str(_encode(_Request(_SLOTS_ID, "slotSubscribe", [])).decode())

    async def _on_text(self, socket: aiohttp.ClientWebSocketResponse, text: str) -> None:
        announcement = _decode_announcement(text)
        if announcement.params is None:
            if announcement.id == _BLOCKS_ID:
                await self._on_blocks_answer(socket, announcement)
            elif announcement.id == _SLOTS_ID and announcement.error is not None:
                # As a node does that has as many subscriptions as it takes. The socket would stand, silent.
                raise ConnectionResetError(f"slotSubscribe was refused: {announcement.error.message}")
            return
        announced = announcement.params.result
        if announced.value is not None:
            self._tell_landed(announced.value)
        elif announced.slot is not None:
            self._lost.clear()
            self._pass(announced.slot)
            if self._is_subscribed and not self._wanted.is_set():
                self._is_subscribed = False
                await self._unsubscribe(socket, "slotUnsubscribe", announcement.params.subscription)
                if self._blocks is not None:
                    blocks, self._blocks = self._blocks, None
                    await self._unsubscribe(socket, "blockUnsubscribe", blocks)
            self._expect_slot()

    async def _on_blocks_answer(self, socket: aiohttp.ClientWebSocketResponse, answer: _Announcement) -> None:
        if answer.error is not None:
            # As any that was not started with --rpc-pubsub-enable-block-subscription.
            logger.info("the node does not tell what lands, so it is asked: %s", answer.error.message)
            self._has_blocks = False
        elif self._is_subscribed and self._blocks is None:
            self._blocks = answer.result
        else:
            # Nobody waited for a slot any more when this was answered, or did again.
            await self._unsubscribe(socket, "blockUnsubscribe", answer.result)

    def _tell_landed(self, update: _BlockUpdate) -> None:
        watch = self.landed
        if watch is None or update.block is None:
            return
        for each in update.block.transactions:
            start = b64decode(each.transaction[0][:_SIGNATURE_BASE64])
            signature = str(Signature.from_bytes(start[1:65]))
            if signature in watch.awaited:
                watch.on_landed(signature, TransactionRecord(update.slot, _decode_meta(each.meta)))

    async def _unsubscribe(
        self, socket: aiohttp.ClientWebSocketResponse, method: str, subscription: int
    ) -> None:
        await socket.send_str(_encode(_Request(2, method, [subscription])).decode())

    def _pass(self, slot: int) -> None:
        if slot > self.newest_slot:
            self.newest_slot = slot
            self._passed.set()
            self._passed.clear()
        now = asyncio.get_running_loop().time()
        if not self._waiting_count and now - self._left_time >= _UNHEARD_SECONDS:
            self._wanted.clear()


def _result(method: _Method, answer: _Answer | None) -> Any:
    """Return the result, or the exception that is this call's alone."""
    if answer is not None and answer.error is not None:
        error = answer.error
        if error.code in _UNHEALTHY:
            return _unavailable("unhealthy", f"is not healthy: {error.message}")
        node_errors_total.labels(str(error.code)).inc()
        return RpcError(method.name, error.code, error.message, error.data)
    if answer is None or not answer.result:
        return _unavailable("no_answer", f"did not answer {method.name}")
    try:
        return method.decode(answer.result)
    except msgspec.DecodeError as error:
        return _unavailable("not_understood", f"answered {method.name} in a shape we do not know: {error}")


def _without_address(error: Exception) -> str:
    """Return what went wrong. Some of aiohttp's errors tell the URL, whose query may hold an API key."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"the node answers {error.status} {error.message}"
    return "SOLANA_WS_URL is not an address" if isinstance(error, aiohttp.InvalidURL) else str(error)


def _unavailable(reason: str, what: str) -> NodeUnavailable:
    node_errors_total.labels(reason).inc()
    return NodeUnavailable(f"the Solana node {what}")


def _check_count(method: str, found: Collection[Any], asked: Collection[Any]) -> None:
    """Raise NodeUnavailable unless there is an answer for each: whose is missing cannot be told."""
    if len(found) != len(asked):
        what = f"answered {method} for {len(found)} of {len(asked)}"
        raise _unavailable("not_understood", what)


def _bytes_of(text: str) -> bytes:
    try:
        return b64decode(text)
    except ValueError:
        raise _unavailable("not_understood", "answered data that are no base64") from None


def _address_of(text: str) -> Pubkey:
    try:
        return Pubkey.from_string(text)
    except ValueError:
        raise _unavailable("not_understood", "answered an address that is none") from None


# The same accounts are asked for again and again.
_address_text = lru_cache(maxsize=4096)(str)


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _filters(
    data_size: int, prefix: bytes, contains: tuple[int, bytes] | None = None
) -> list[dict[str, Any]]:
    """Return the filters of getProgramAccounts and programSubscribe."""
    filters: list[dict[str, Any]] = [{"dataSize": data_size}]
    for offset, wanted in ((0, prefix), contains or (0, b"")):
        if wanted:
            filters.append(
                {"memcmp": {"offset": offset, "bytes": b64encode(wanted).decode(), "encoding": "base64"}}
            )
    return filters


def _program_change(
    params: _ProgramNotificationParams, standing: Mapping[int, ProgramWatch]
) -> ProgramChange:
    """Raises ConnectionResetError for what nobody subscribed to, NodeUnavailable for what cannot be read."""
    found = params.result.value
    watch = standing.get(params.subscription)
    if watch is None:
        raise ConnectionResetError(f"subscription {params.subscription} is none of ours")
    return ProgramChange(watch.program, _address_of(found.pubkey), _bytes_of(found.account.data[0]))
