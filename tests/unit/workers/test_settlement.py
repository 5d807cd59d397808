"""What proves the end of a transaction, against a node that answers what the test tells it to."""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from solders.signature import Signature

from engine.domain.errors import NodeUnavailable
from engine.domain.frozen import replace
from engine.domain.lifecycle import Landed, Lapsed, Reverted
from engine.domain.order import Attempt, FailureReason, Order, OrderSpec, OrderStatus, Side
from engine.domain.tokens import SOL, USDC
from engine.solana.rpc import ChainPosition, NodeClient, SignatureStatus
from tests.fake_node import FakeNode
from workers.settlement import Outcome, Settlement

WALLET = "9xQeWvG816bUx9EPjHmaT23yvVM2ZWbrrpZb9PusVFin"
TX_HASH = "5" * 88
LAST_VALID = 1000
SIGNED = b"the signed bytes"
WHOLE, STATUS = "getTransaction", "getSignatureStatuses"
ORDER = Order(
    UUID(int=7),
    OrderSpec(Side.SELL, 1_500_000_000, SOL, USDC),
    OrderStatus.SUBMITTED,
    tx_hash=TX_HASH,
    open_attempt=Attempt(1, TX_HASH, SIGNED, LAST_VALID),
)


class Chain:
    """A node whose chain is what the test says it is."""

    def __init__(self, fake: FakeNode) -> None:
        self.fake = fake
        self.height = LAST_VALID - 100
        """Of the finalized block."""
        self.finalized_slot = 1
        self.history_slot = 0
        """Of the oldest block that the node has."""
        self.lag = 0
        """So many slots behind the finalized one is the node that is asked for statuses."""
        self.status: dict[str, Any] | None = None
        self.sent: list[bytes] = []
        self.refusals = 0
        """So many sends are answered with an error."""
        self.client: NodeClient | None = None
        """Whose settlement it is."""
        self._slot = 1
        fake.answers = {
            "sendTransaction": self._send,
            "getEpochInfo": self._position,
            "getFirstAvailableBlock": lambda _: {"result": self.history_slot},
            "getSignatureStatuses": self._statuses,
            "getTransaction": self._transaction,
            "getSlot": lambda _: {"result": self._slot},
        }

    def landed(self, status: str = "confirmed", err: object = None) -> None:
        self.status = {"slot": 5, "confirmations": 1, "err": err, "confirmationStatus": status}

    async def tick(self) -> None:
        """Announce a slot and return once the look-up it leads to is done."""
        looked = self._look_count()
        await self.announce()
        await self.until(lambda: self._look_count() > looked)

    def _look_count(self) -> int:
        return self.fake.calls["getSignatureStatuses"] + self.fake.calls["getTransaction"]

    def pass_unannounced(self) -> None:
        self._slot += 1

    async def announce(self) -> None:
        """Announce a slot."""
        self._slot += 1
        async with asyncio.timeout(10):
            await self.fake.subscribed.wait()
        await self.fake.announce(self._slot)

    async def passed(self) -> None:
        """Announce a slot and return once whatever is asked because of it is answered."""
        assert self.client is not None
        await self.announce()
        async with asyncio.timeout(10):
            while self.client.newest_slot < self._slot:
                await self.client.next_slot(None)
        # What is asked with the slot is asked in the turns before this is, and answered with it or before.
        for _ in range(3):
            await self.client.slot()

    async def tell(self, err: object = None) -> None:
        """Tell of the transaction as it landed, and return once that is heard."""
        meta = LANDED_TRANSACTION["meta"] | {"err": err}
        raw = b"\1" + bytes(Signature.from_string(TX_HASH)) + b"the rest"
        transaction = {"transaction": [b64encode(raw).decode(), "base64"], "meta": meta, "version": 0}
        async with asyncio.timeout(10):
            await self.fake.subscribed.wait()
        await self.fake.tell_block(self._slot, {"transactions": [transaction]})
        await self.passed()

    @property
    def looks(self) -> list[str]:
        """What was asked of transactions, in order."""
        methods = [call["method"] for calls in self.fake.requests for call in calls]
        return [method for method in methods if method in (WHOLE, STATUS)]

    async def asked_again(self) -> None:
        """Announce a slot and return once anything is asked."""
        asked = len(self.fake.requests)
        await self.announce()
        await self.until(lambda: len(self.fake.requests) > asked)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once the node has been asked what makes the condition true."""
        async with asyncio.timeout(10):
            while not condition():
                self.fake.asked.clear()
                await self.fake.asked.wait()

    def _send(self, params: list[Any]) -> dict[str, Any]:
        self.sent.append(b64decode(params[0]))
        assert params[1]["skipPreflight"]
        if self.refusals:
            self.refusals -= 1
            return {"error": {"code": -32603, "message": "Internal error"}}
        return {"result": TX_HASH}

    def _position(self, params: list[Any]) -> dict[str, Any]:
        assert params == [{"commitment": "finalized"}]
        return {"result": {"absoluteSlot": self.finalized_slot, "blockHeight": self.height}}

    def _transaction(self, params: list[Any]) -> dict[str, Any]:
        """What landed, once it is as final as is asked."""
        levels = ("processed", "confirmed", "finalized")
        status, least = self.status, params[1]["commitment"]
        if status is None or levels.index(status["confirmationStatus"]) < levels.index(least):
            return {"result": None}
        meta = LANDED_TRANSACTION["meta"] | {"err": status["err"]}
        return {"result": LANDED_TRANSACTION | {"meta": meta}}

    def _statuses(self, params: list[Any]) -> dict[str, Any]:
        assert params == [[TX_HASH], {"searchTransactionHistory": True}]
        return {"result": {"context": {"slot": self.finalized_slot - self.lag}, "value": [self.status]}}


def balance(index: int, owner: str, mint: str, amount: int) -> dict[str, Any]:
    return {
        "accountIndex": index,
        "owner": owner,
        "mint": mint,
        "uiTokenAmount": {"amount": str(amount), "decimals": 6},
    }


LANDED_TRANSACTION: dict[str, Any] = {
    "slot": 5,
    "meta": {
        "err": None,
        "fee": 5000,
        "preTokenBalances": [balance(1, "pool", SOL.mint, 10**12), balance(2, "pool", USDC.mint, 10**12)],
        "postTokenBalances": [
            balance(1, "pool", SOL.mint, 10**12 + 1_500_000_000),
            balance(2, "pool", USDC.mint, 10**12 - 158_000_000),
            balance(3, WALLET, USDC.mint, 158_000_000),
        ],
    },
}


@pytest.fixture
async def chain() -> AsyncIterator[Chain]:
    async with FakeNode() as fake:
        yield Chain(fake)


@asynccontextmanager
async def settling(
    chain: Chain, node: Any = None, *, commitment: str = "confirmed", resend_seconds: float = 3600.0
) -> AsyncIterator[asyncio.Task[Outcome]]:
    """The settlement of the order, sent once and looked up with each tick."""
    async with NodeClient(chain.fake.url, chain.fake.ws_url) as client:
        chain.client = client
        settlement = Settlement(
            node(client) if node else client,
            WALLET,
            commitment=commitment,
            resend_seconds=resend_seconds,
            jitter=lambda: 0.5,
        )
        following = asyncio.ensure_future(settlement.run())
        outcome = asyncio.ensure_future(settlement.settle(ORDER))
        try:
            await chain.until(lambda: bool(chain.sent))
            # By the answer to this, the answer to the send is here too.
            await client.slot()
            yield outcome
        finally:
            outcome.cancel()
            following.cancel()
            await asyncio.wait([outcome, following])


async def result(outcome: asyncio.Task[Outcome]) -> Outcome:
    async with asyncio.timeout(10):
        return await outcome


async def undecided(chain: Chain, outcome: asyncio.Task[Outcome]) -> None:
    """Look three more times and fail if anything is concluded."""
    for _ in range(3):
        await chain.tick()
    assert not outcome.done()


async def test_landed_with_what_was_really_exchanged(chain: Chain) -> None:
    async with settling(chain) as outcome:
        await undecided(chain, outcome)
        chain.landed()
        await chain.tick()
        assert await result(outcome) == Landed(1_500_000_000, 158_000_000)
    assert chain.sent == [SIGNED]


@pytest.mark.parametrize(
    ("commitment", "not_yet", "enough"),
    [("confirmed", "processed", "confirmed"), ("finalized", "confirmed", "finalized")],
)
async def test_landed_only_at_the_commitment_of_the_settings(
    commitment: str, not_yet: str, enough: str, chain: Chain
) -> None:
    async with settling(chain, commitment=commitment) as outcome:
        chain.landed(not_yet)
        await undecided(chain, outcome)
        chain.landed(enough)
        await chain.tick()
        assert isinstance(await result(outcome), Landed)


async def test_an_error_on_chain_counts_once_it_is_finalized(chain: Chain) -> None:
    error = {"InsufficientFundsForRent": {"account_index": 0}}
    async with settling(chain) as outcome:
        for status in ("processed", "confirmed"):
            chain.landed(status, error)
            await undecided(chain, outcome)
        # The fork with the error was left; on the other one it landed.
        chain.landed("finalized", error)
        await chain.tick()
        found = await result(outcome)
    assert isinstance(found, Reverted)
    assert found.reason is FailureReason.INSUFFICIENT_FUNDS


async def test_an_error_on_a_fork_that_was_left_proves_nothing(chain: Chain) -> None:
    async with settling(chain) as outcome:
        chain.landed("confirmed", {"InstructionError": [0, {"Custom": 1}]})
        await undecided(chain, outcome)
        chain.landed("confirmed")
        await chain.tick()
        assert isinstance(await result(outcome), Landed)


async def test_it_has_lapsed_only_beyond_its_last_valid_height(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.settlement._HEIGHT_SECONDS", 0.0)
    async with settling(chain) as outcome:
        chain.height = LAST_VALID
        await undecided(chain, outcome)
        chain.height = LAST_VALID + 1
        await chain.tick()
        assert await result(outcome) == Lapsed()


async def test_seen_though_not_final_it_has_not_lapsed(chain: Chain) -> None:
    chain.height = LAST_VALID + 500
    chain.landed("processed")
    async with settling(chain) as outcome:
        await undecided(chain, outcome)


# ---- A node that does not know what landed ----------------------------------------------------------


@pytest.fixture
def asked_every_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """How far the chain has come, and how far back the history reaches."""
    monkeypatch.setattr("workers.settlement._HEIGHT_SECONDS", 0.0)
    monkeypatch.setattr("workers.settlement._HISTORY_SECONDS", 0.0)


@pytest.mark.usefixtures("asked_every_slot")
async def test_a_node_that_lags_behind_the_finalized_block_proves_nothing(chain: Chain) -> None:
    """It landed in its last valid block, which one node of several at the address has not come to."""
    chain.height, chain.finalized_slot, chain.lag = LAST_VALID + 1, 50_000, 1
    async with settling(chain) as outcome:
        await undecided(chain, outcome)
        chain.lag = 0
        await chain.tick()
        assert await result(outcome) == Lapsed()


@pytest.mark.usefixtures("asked_every_slot")
@pytest.mark.parametrize(
    ("early", "late", "first_slot"),
    [
        # 151 blocks since its blockhash's, each ten slots after the one before it.
        (None, (50_000, LAST_VALID + 1), 50_000 - 1_510),
        # Worker and node were away for a while. How many slots were skipped meanwhile is not known.
        (None, (50_000, LAST_VALID + 850), 50_000 - 10_000),
        # The block of its blockhash was seen to be final, ten blocks later, or was not final yet.
        ((40_000, LAST_VALID - 150), (50_000, LAST_VALID + 1), 50_000 - 1_510),
        ((49_000, LAST_VALID - 150), (50_000, LAST_VALID + 1), 49_000),
        ((49_000, LAST_VALID - 140), (50_000, LAST_VALID + 1), 48_900),
        ((49_000, LAST_VALID - 182), (50_000, LAST_VALID + 1), 49_000),
    ],
)
async def test_a_history_that_begins_after_it_may_have_landed_proves_nothing(
    chain: Chain,
    caplog: pytest.LogCaptureFixture,
    early: tuple[int, int] | None,
    late: tuple[int, int],
    first_slot: int,
) -> None:
    """The node was put back from a snapshot, or has purged what is older."""
    chain.history_slot = first_slot + 1
    async with settling(chain) as outcome:
        if early is not None:
            chain.finalized_slot, chain.height = early
            await undecided(chain, outcome)
        chain.finalized_slot, chain.height = late
        await undecided(chain, outcome)
        # Said once, not with every slot.
        (record,) = caplog.records
        assert TX_HASH in record.getMessage()
        assert f"from slot {first_slot} on" in record.getMessage()
        assert vars(record)["order_id"] == ORDER.order_id
        chain.history_slot = first_slot
        await chain.tick()
        assert await result(outcome) == Lapsed()


@pytest.mark.usefixtures("asked_every_slot")
async def test_it_landed_though_it_could_not_be_told_for_a_while(chain: Chain) -> None:
    chain.height, chain.finalized_slot, chain.history_slot = LAST_VALID + 1, 50_000, 49_000
    async with settling(chain, resend_seconds=0.0) as outcome:
        await undecided(chain, outcome)
        # It can land no more, so that it need not be sent.
        assert chain.sent == [SIGNED]
        chain.landed("finalized")
        await chain.tick()
        await chain.tick()
        assert isinstance(await result(outcome), Landed)


@pytest.mark.usefixtures("asked_every_slot")
async def test_a_node_that_does_not_tell_how_far_back_it_reaches_proves_nothing(chain: Chain) -> None:
    known = chain.fake.answers["getFirstAvailableBlock"]
    chain.fake.answers["getFirstAvailableBlock"] = lambda _: {"error": {"code": -32601, "message": "no"}}
    chain.height = LAST_VALID + 1
    async with settling(chain) as outcome:
        await undecided(chain, outcome)
        chain.fake.answers["getFirstAvailableBlock"] = known
        await chain.tick()
        assert await result(outcome) == Lapsed()


async def test_the_history_is_asked_for_with_the_statuses_once_a_second_where_it_matters(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.settlement._HEIGHT_SECONDS", 0.0)
    monkeypatch.setattr("workers.settlement._HISTORY_SECONDS", 3600.0)
    chain.history_slot, chain.finalized_slot = 49_000, 50_000
    async with settling(chain) as outcome:
        chain.height = LAST_VALID
        await undecided(chain, outcome)
        assert chain.fake.calls["getFirstAvailableBlock"] == 0
        chain.height = LAST_VALID + 1
        await undecided(chain, outcome)
    (request,) = (
        methods
        for calls in chain.fake.requests
        if "getFirstAvailableBlock" in (methods := [call["method"] for call in calls])
    )
    assert request == [STATUS, "getFirstAvailableBlock"]


# ---- Height first, then status ---------------------------------------------------------------------


class Landing(Chain):
    """Between the two questions of a look-up the transaction lands, in its last valid block."""

    def __init__(self, fake: FakeNode) -> None:
        super().__init__(fake)

    def _position(self, params: list[Any]) -> dict[str, Any]:
        return self._answered(super()._position(params))

    def _statuses(self, params: list[Any]) -> dict[str, Any]:
        return self._answered(super()._statuses(params))

    def _answered(self, answer: dict[str, Any]) -> dict[str, Any]:
        self.height = LAST_VALID + 1
        self.landed("finalized")
        return answer


class StatusesFirst:
    """The mutant: a node client that reads the statuses before it reads the height."""

    def __init__(self, node: NodeClient) -> None:
        self._node = node
        self._statuses: tuple[int, Sequence[SignatureStatus | None]] = (0, ())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    async def position(self, commitment: str) -> ChainPosition:
        self._statuses = await self._node.signature_statuses([TX_HASH])
        return await self._node.position(commitment)

    async def signature_statuses(self, _: Sequence[str]) -> tuple[int, Sequence[SignatureStatus | None]]:
        return self._statuses


@pytest.mark.parametrize(("node", "found"), [(None, Landed), (StatusesFirst, Lapsed)])
async def test_the_height_is_read_before_the_statuses(node: Any, found: type[Outcome]) -> None:
    """In the other order a transaction that landed in between is taken for one that never can."""
    async with FakeNode() as fake:
        chain = Landing(fake)
        # Finalized: what is confirmed is read along, which would show the mutant that it is wrong.
        async with settling(chain, node, commitment="finalized") as outcome:
            await chain.tick()
            assert isinstance(await result(outcome), found)


# ---- A node that is no help ------------------------------------------------------------------------


async def test_an_error_as_the_answer_to_a_send_proves_nothing(chain: Chain) -> None:
    chain.refusals = 1
    async with settling(chain) as outcome:
        await undecided(chain, outcome)
        chain.landed()
        await chain.tick()
        assert isinstance(await result(outcome), Landed)


async def test_a_node_that_is_away_proves_nothing(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.settlement._HEIGHT_SECONDS", 0.0)
    async with settling(chain) as outcome:
        chain.height = LAST_VALID + 1
        chain.fake.http_status = 503
        for _ in range(2):
            await chain.asked_again()
        assert not outcome.done()
        chain.fake.http_status = 200
        chain.landed()
        await chain.tick()
        assert isinstance(await result(outcome), Landed)


async def test_what_is_open_is_left_to_others_where_the_node_has_not_answered_for_a_while(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.settlement._AWAY_SECONDS", 0.2)
    async with settling(chain) as outcome:
        with pytest.raises(NodeUnavailable, match="not been heard of"):
            await result(outcome)


async def test_so_it_is_where_it_announces_slots_and_answers_nothing(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.settlement._AWAY_SECONDS", 0.2)
    async with settling(chain) as outcome:
        chain.fake.http_status = 503
        async with asyncio.timeout(10):
            while not outcome.done():
                await chain.announce()
                await asyncio.sleep(0.02)
        with pytest.raises(NodeUnavailable, match="not been heard of"):
            outcome.result()


async def test_the_same_bytes_are_sent_again_until_it_is_seen(chain: Chain) -> None:
    async with settling(chain, resend_seconds=0.0) as outcome:
        for _ in range(3):
            await chain.tick()
        await chain.until(lambda: len(chain.sent) >= 3)
        chain.landed("processed")
        await chain.tick()
        count = len(chain.sent)
        await undecided(chain, outcome)
        # One more may have been on its way when it was seen.
        assert len(chain.sent) <= count + 1
    assert set(chain.sent) == {SIGNED}


async def test_all_open_transactions_are_looked_up_in_one_call(chain: Chain) -> None:
    orders = [
        Order(
            UUID(int=number),
            ORDER.spec,
            OrderStatus.SUBMITTED,
            open_attempt=Attempt(1, f"{number:0>88}", SIGNED, LAST_VALID),
        )
        for number in range(1, 31)
    ]
    chain.fake.answers["getSignatureStatuses"] = lambda params: {
        "result": {
            "context": {"slot": 1},
            "value": [{"slot": 1, "err": None, "confirmationStatus": "finalized"} for _ in params[0]],
        }
    }
    chain.fake.answers["getTransaction"] = lambda _: {"result": LANDED_TRANSACTION}
    async with NodeClient(chain.fake.url, chain.fake.ws_url) as client:
        settlement = Settlement(client, WALLET, commitment="finalized", resend_seconds=3600)
        following = asyncio.ensure_future(settlement.run())
        outcomes = [asyncio.ensure_future(settlement.settle(order)) for order in orders]
        await chain.until(lambda: len(chain.sent) == len(orders))
        await client.slot()
        await chain.tick()
        async with asyncio.timeout(10):
            found = await asyncio.gather(*outcomes)
        following.cancel()
        await asyncio.wait([following])
    assert found == [Landed(1_500_000_000, 158_000_000)] * 30
    assert chain.fake.calls["getSignatureStatuses"] == 1
    sends = [calls for calls in chain.fake.requests if calls[0]["method"] == "sendTransaction"]
    assert len(sends) < len(orders)


async def test_an_order_without_a_transaction_cannot_be_settled(chain: Chain) -> None:
    async with NodeClient(chain.fake.url, chain.fake.ws_url) as client:
        settlement = Settlement(client, WALLET, commitment="confirmed", resend_seconds=1)
        with pytest.raises(ValueError, match="has no open transaction"):
            await settlement.settle(Order(UUID(int=1), ORDER.spec))


def _kept(make: Callable[[NodeClient], Any], made: list[Any]) -> Callable[[NodeClient], Any]:
    """Return what makes one and keeps it where the test can reach it."""

    def node(client: NodeClient) -> Any:
        made.append(make(client))
        return made[-1]

    return node


class _SlotWhileReading:
    """A node on which the next slot passes while a landed transaction is read."""

    def __init__(self, client: NodeClient) -> None:
        self._client = client
        self._newest = 0
        self._passed = asyncio.Condition()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def pass_slot(self) -> None:
        """Announce a slot."""
        async with self._passed:
            self._newest += 1
            self._passed.notify_all()

    async def next_slot(self, after: int | None) -> int:
        before = self._newest if after is None else after
        async with self._passed:
            await self._passed.wait_for(lambda: self._newest > before)
        return self._newest

    async def transactions(self, *arguments: Any) -> Any:
        found = await self._client.transactions(*arguments)
        await self.pass_slot()
        return found


async def test_what_is_proved_is_not_looked_up_again(chain: Chain) -> None:
    chain.landed()
    nodes: list[_SlotWhileReading] = []
    async with settling(chain, _kept(_SlotWhileReading, nodes)) as outcome:
        await nodes[0].pass_slot()
        assert isinstance(await result(outcome), Landed)
        # What would be asked for the slot that passed meanwhile has been asked before this is answered.
        await nodes[0].slot()
    assert (chain.fake.calls["getTransaction"], chain.fake.calls["getSignatureStatuses"]) == (1, 0)


async def test_what_may_be_confirmed_is_asked_for_whole_and_else_its_status(chain: Chain) -> None:
    async with settling(chain) as outcome:
        for status in (None, "processed", "processed", "processed", "confirmed"):
            if status:
                chain.landed(status)
            await chain.tick()
        assert isinstance(await result(outcome), Landed)
    assert chain.looks == [WHOLE, STATUS, WHOLE, STATUS, WHOLE]


async def test_amounts_that_the_node_does_not_tell_keep_no_status_from_being_looked_up(
    chain: Chain,
) -> None:
    chain.fake.answers["getTransaction"] = lambda _: {"error": {"code": -32603, "message": "Internal error"}}
    async with settling(chain, resend_seconds=0.0) as outcome:
        chain.landed("processed")
        await undecided(chain, outcome)
        # Its fork was left: it is sent again.
        chain.status, sent = None, len(chain.sent)
        await chain.tick()
        await chain.until(lambda: len(chain.sent) > sent)
        chain.landed("finalized", {"InsufficientFundsForRent": {"account_index": 0}})
        await chain.tick()
        assert isinstance(await result(outcome), Reverted)


async def test_a_transaction_that_cannot_be_read_holds_up_no_other(
    chain: Chain, caplog: pytest.LogCaptureFixture
) -> None:
    unread, read = "4" * 88, "5" * 88
    orders = [
        replace(ORDER, order_id=UUID(int=number), open_attempt=Attempt(1, tx_hash, SIGNED, LAST_VALID))
        for number, tx_hash in enumerate((unread, read))
    ]
    status = {"slot": 5, "err": None, "confirmationStatus": "finalized"}
    chain.fake.answers["getSignatureStatuses"] = lambda params: {
        "result": {"context": {"slot": 9}, "value": [status for _ in params[0]]}
    }
    chain.fake.answers["getTransaction"] = lambda params: {
        "result": {"slot": 5, "meta": None} if params[0] == unread else LANDED_TRANSACTION
    }
    async with NodeClient(chain.fake.url, chain.fake.ws_url) as client:
        settlement = Settlement(client, WALLET, commitment="finalized", resend_seconds=3600)
        following = asyncio.ensure_future(settlement.run())
        outcomes = [asyncio.ensure_future(settlement.settle(order)) for order in orders]
        await chain.until(lambda: len(chain.sent) == len(orders))
        await client.slot()
        await chain.tick()
        assert await result(outcomes[1]) == Landed(1_500_000_000, 158_000_000)
        assert not outcomes[0].done()
        (record,) = caplog.records
        assert "1 of 2 landed transactions cannot be read" in record.getMessage()
        # The node has found it.
        chain.fake.answers["getTransaction"] = lambda _: {"result": LANDED_TRANSACTION}
        await chain.tick()
        assert isinstance(await result(outcomes[0]), Landed)
        following.cancel()
        await asyncio.wait([following])


class Silent:
    """A node that takes a transaction and does not say so before it is told to."""

    def __init__(self, client: NodeClient) -> None:
        self._client = client
        self.answering = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def send_transaction(self, raw_transaction: bytes) -> None:
        await self._client.send_transaction(raw_transaction)
        await self.answering.wait()


async def test_it_is_looked_up_though_nobody_answers_to_its_being_sent(chain: Chain) -> None:
    nodes: list[Silent] = []
    chain.landed()
    async with settling(chain, _kept(Silent, nodes), resend_seconds=0.0) as outcome:
        await chain.tick()
        nodes[0].answering.set()
        assert isinstance(await result(outcome), Landed)


# ---- A node that tells what landed ------------------------------------------------------------------


@pytest.fixture
def telling(chain: Chain) -> Chain:
    """A node that tells what landed, once it is asked to."""
    chain.fake.block_answer = {"result": 9}
    return chain


@pytest.mark.parametrize("commitment", ["confirmed", "finalized"])
async def test_what_the_node_tells_of_is_not_asked_for(telling: Chain, commitment: str) -> None:
    async with settling(telling, commitment=commitment) as outcome:
        await telling.passed()
        await telling.passed()
        await telling.tell()
        assert await result(outcome) == Landed(1_500_000_000, 158_000_000)
    assert telling.looks == []
    (call,) = telling.fake.block_calls
    assert call["params"][0] == {"mentionsAccountOrProgram": WALLET}
    assert call["params"][1]["commitment"] == commitment


async def test_what_the_node_does_not_tell_of_is_looked_up_some_slots_later(telling: Chain) -> None:
    async with settling(telling) as outcome:
        for _ in range(3):
            await telling.passed()
        assert telling.looks == []
        await telling.tick()
        assert telling.looks == [WHOLE]
        telling.landed()
        await telling.tick()
        await telling.tick()
        assert isinstance(await result(outcome), Landed)
    assert telling.looks == [WHOLE, STATUS, WHOLE]


async def test_silence_proves_nothing(telling: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.settlement._HEIGHT_SECONDS", 0.0)
    telling.height = LAST_VALID
    async with settling(telling) as outcome:
        for _ in range(3):
            await telling.passed()
        await undecided(telling, outcome)
        telling.height = LAST_VALID + 1
        await telling.tick()
        assert await result(outcome) == Lapsed()


async def test_it_may_be_told_of_before_the_answer_to_its_being_sent(telling: Chain) -> None:
    nodes: list[Silent] = []
    async with settling(telling, _kept(Silent, nodes)) as outcome:
        await telling.passed()
        await telling.tell()
        nodes[0].answering.set()
        assert await result(outcome) == Landed(1_500_000_000, 158_000_000)
    assert telling.looks == []


@pytest.mark.parametrize("answered", [True, False], ids=["sent", "being sent"])
async def test_an_error_that_is_told_is_looked_up_at_once_and_counts_once_it_is_finalized(
    telling: Chain, answered: bool
) -> None:
    error = {"InsufficientFundsForRent": {"account_index": 0}}
    nodes: list[Silent] = []
    async with settling(telling, _kept(Silent, nodes)) as outcome:
        if answered:
            nodes[0].answering.set()
        await telling.passed()
        telling.landed("confirmed", error)
        await telling.tell(error)
        assert telling.looks == [STATUS]
        await undecided(telling, outcome)
        telling.landed("finalized", error)
        await telling.tick()
        nodes[0].answering.set()
        found = await result(outcome)
    assert isinstance(found, Reverted)
    assert found.reason is FailureReason.INSUFFICIENT_FUNDS
    assert set(telling.looks) == {STATUS}


async def test_an_error_that_is_told_of_a_fork_that_was_left_proves_nothing(telling: Chain) -> None:
    error = {"InstructionError": [0, {"Custom": 1}]}
    async with settling(telling) as outcome:
        await telling.passed()
        telling.landed("confirmed", error)
        await telling.tell(error)
        assert not outcome.done()
        await telling.tell()
        assert isinstance(await result(outcome), Landed)


async def test_what_is_open_when_the_node_ceases_to_tell_is_looked_up_as_if_it_never_had(
    telling: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.solana.rpc._POLL_SECONDS", 0.01)
    async with settling(telling) as outcome:
        await telling.passed()
        assert telling.client is not None
        assert telling.client.tells_landed
        telling.landed()
        # The slots that follow are polled, or announced by a connection that tells no more.
        telling.fake.block_answer = None
        await telling.fake.drop_sockets()
        telling.pass_unannounced()
        assert await result(outcome) == Landed(1_500_000_000, 158_000_000)
    assert telling.looks == [WHOLE]
