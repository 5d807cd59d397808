"""The order queue: taskiq over a Redis stream. A message says "look at these orders", nothing more.

taskiq brings the task protocol, the receiver and middlewares. The broker, which bounds what is under way, is
ours, a subclass of taskiq-redis's: the stock one (1.2.4, read and measured) loses, repeats or keeps messages.
Ours rests on one fact: PostgreSQL holds the orders and their leases. So

- a message is order ids and nothing else. It may be lost, repeated or forged; the claim in PostgreSQL
  decides, and the sweeper offers again what nobody claimed;
- a message is acknowledged and deleted as soon as its task returns, that is when the claim was tried,
  not when the order is done;
- `listen` outlives whatever Redis does: away, restarted, emptied, confused.

The life of a message, which Redis calls an entry: XADD -> XREADGROUP by one consumer, in whose hands it
then is -> task -> XACK + XDEL. While it is in hand its consumer keeps it fresh (XCLAIM to itself), so
an entry that has been idle belongs to a dead consumer and whoever finds it takes it (XAUTOCLAIM).
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from itertools import chain
from typing import Final
from uuid import UUID

from redis.exceptions import ResponseError
from taskiq import AckableMessage, AsyncBroker, BrokerMessage, TaskiqMessage
from taskiq.abc.formatter import TaskiqFormatter
from taskiq.acks import AcknowledgeType
from taskiq.receiver import Receiver
from taskiq_redis import RedisStreamBroker

from engine.coalesce import Coalescer
from engine.hints import are_order_ids, pack_order_ids, unpack_order_ids
from engine.redis_client import ANSWER_SECONDS, RECONNECT, REDIS_ERRORS, Command, RedisClient
from engine.settings import Settings
from engine.telemetry import (
    Trouble,
    hints_dropped_total,
    observe_batch,
    queue_messages_total,
    redis_up,
    stage_seconds,
)

TASK_NAME: Final = "execute_orders"
"""The one task: `async def execute_orders(order_ids: list[UUID])`; it returns once the claim was tried."""

STREAM: Final = "order_engine:offered"
GROUP: Final = "workers"

MAX_ORDER_IDS: Final = 100
"""Orders a message may carry. Longer ones are not ours and are dropped."""

ORDERS_PER_MESSAGE: Final = 25
"""Orders a message is given: few enough that a burst spreads over the workers."""

_FIELD: Final = b"orders"

_REST_SECONDS: Final = 1.0
"""How long offers are refused at once after Redis did not take one. A queue of them would only grow."""

_OFFER_INTERVAL_SECONDS: Final = 0.002
"""Least time between two offers. One takes over 100 us of CPU here, and an order in it less than one."""

_ACKNOWLEDGE_INTERVAL_SECONDS: Final = 0.05
"""Least time between two rounds of acknowledgements. Nobody waits for them; till then each is in hand."""

_OFFER_SECONDS: Final = 1.0
_ACKNOWLEDGE_SECONDS: Final = 1.0

_ROOM_SECONDS: Final = 0.02
"""How often a full worker asks whether there is room again."""

_FORGET_SECONDS: Final = 60.0
"""A consumer that holds nothing and was not heard of for so long is removed from the group."""

_DRAIN_SECONDS: Final = 10.0
"""How long a stopping worker waits for tasks under way."""

# In one step, because a consumer that comes back in between would lose what it reads: XGROUP DELCONSUMER
# drops the consumer's pending entries, which nobody would ever be given again.
_FORGET_SCRIPT: Final = """
for _, pairs in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #pairs, 2 do consumer[pairs[i]] = pairs[i + 1] end
  if consumer.pending == 0 and (consumer.idle >= tonumber(ARGV[2]) or consumer.name == ARGV[3]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
  end
end
"""

_run, _reclaimed, _dropped = (
    queue_messages_total.labels(result) for result in ("run", "reclaimed", "dropped")
)
_queue_seconds = stage_seconds.labels("queue")
_observe_offer = observe_batch("offer")

Entry = tuple[bytes, list[bytes] | None]
"""Id of a stream entry, and its fields: name, value, name, value ..."""

logger = logging.getLogger(__name__)


class OrderFormatter(TaskiqFormatter):
    """Turns a task into the bytes of its order ids and back. All else about it is known beforehand."""

    def dumps(self, message: TaskiqMessage) -> BrokerMessage:
        """Raise ValueError for another task, or for arguments other than one list of UUIDs."""
        if message.task_name != TASK_NAME or len(message.args) != 1 or message.kwargs:
            raise ValueError(f"{message.task_name} cannot be queued; only {TASK_NAME}(order_ids) can")
        return BrokerMessage(
            task_id=message.task_id,
            task_name=TASK_NAME,
            message=pack_order_ids(message.args[0]),
            labels={},
        )

    def loads(self, message: bytes) -> TaskiqMessage:
        """Raise ValueError for anything that is not 1 to MAX_ORDER_IDS UUIDs."""
        if not are_order_ids(message, MAX_ORDER_IDS):
            raise ValueError(f"{len(message)} bytes that are not order ids")
        order_ids = unpack_order_ids(message)
        # model_construct: everything here is of our own making, pydantic need not look at it again.
        return TaskiqMessage.model_construct(
            task_id=str(order_ids[0]),
            task_name=TASK_NAME,
            labels={},
            labels_types=None,
            args=[order_ids],
            kwargs={},
        )


class OrderBroker(RedisStreamBroker):
    """A taskiq broker on one Redis stream. Who makes orders due calls `offer_soon`, workers `run_tasks`.

    Entering it as a context manager, or `startup`, never waits for Redis: a broker without Redis
    refuses offers and listens patiently.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        capacity: int = 64,
        read_count: int = 16,
        block_seconds: float = 0.5,
        idle_seconds: float = 5.0,
    ) -> None:
        """`capacity` is how many messages this process has in hand at most, `read_count` how many it asks for
        at a time. `block_seconds` is how long it waits for one, and so how long it may take to stop.
        Entries that were idle for `idle_seconds` are taken from their consumer.
        """
        super().__init__(
            settings.redis_url,
            queue_name=STREAM,
            consumer_group_name=GROUP,
            consumer_name=f"{socket.gethostname()}-{os.getpid()}-{random.randbytes(4).hex()}",
            # From the first message, not from now on: what was offered before any worker was there is run.
            consumer_id="0",
        )
        self.formatter = OrderFormatter()
        self.capacity = capacity
        self.has_room: Callable[[], bool] = _always
        """While it returns False nothing more is read. What was just read may still come:
        `read_count` messages of ORDERS_PER_MESSAGE orders at most."""
        self._read_count = read_count
        self._block_ms = round(block_seconds * 1000)
        self._idle_seconds = idle_seconds
        # Ours, where the stock broker takes one of redis-py's for each call. Reading waits for what comes, so
        # it has one of its own. So have offers, few of which are answered: that other commands are is no sign
        # that Redis takes these, which it refuses while its memory is full.
        self._client = RedisClient(settings)
        self._reading = RedisClient(settings)
        self._offering = RedisClient(settings)
        self._offers: Coalescer[Sequence[UUID], None] = Coalescer(
            self._add, interval_seconds=_OFFER_INTERVAL_SECONDS
        )
        self._offer_trouble = Trouble(logger, "orders are not offered to workers", "they are offered again")
        self._rest_until = 0.0
        self._acknowledgements: Coalescer[bytes, None] = Coalescer(
            self._acknowledge,
            interval_seconds=_ACKNOWLEDGE_INTERVAL_SECONDS,
            observe=observe_batch("acknowledge"),
        )
        self._in_hand: set[bytes] = set()
        """Read and not acknowledged yet."""
        self._handing_out = False
        self._done: list[bytes] = []
        """Done while others of the same read were still being handed out."""
        self._unacknowledged: set[bytes] = set()
        """Done, but Redis could not be told yet."""
        self._freed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._has_group = False
        self._reclaim_from: bytes = b"0-0"
        self._refresh_time = self._reclaim_time = self._forget_time = 0.0
        self.up: bool | None = None
        """Whether Redis answered `listen` last time; None: not asked yet."""

    async def startup(self) -> None:
        """Start the middlewares. Redis is not needed for it: the group is made when `listen` reaches it."""
        await AsyncBroker.startup(self)

    # ---- Offering --------------------------------------------------------------------------------

    def offer_soon(self, order_ids: Sequence[UUID]) -> None:
        """Tell the workers that these orders are due, on the loop's next turn at the soonest. Never raises.

        Nobody waits for it, and offers that come while another is under way travel together. What Redis does
        not take is counted as dropped, and the sweeper finds it; in the second before Redis is found to be
        away or unwilling it may be lost uncounted.
        """
        if asyncio.get_running_loop().time() < self._rest_until:
            hints_dropped_total.labels("offer_failed").inc(len(order_ids))
        elif order_ids:
            self._offers.put(order_ids)

    async def kick(self, message: BrokerMessage) -> None:
        """Queue a task the way taskiq does: `broker.task(...)(...).kiq(order_ids)`."""
        await self._client("XADD", STREAM, "*", _FIELD, message.message)

    async def _add(self, offers: list[Sequence[UUID]]) -> list[None]:
        order_ids = list(dict.fromkeys([order_id.bytes for order_id in chain.from_iterable(offers)]))
        _observe_offer(len(order_ids))
        try:
            # No MAXLEN: it would cut off messages that nobody has read.
            messages: list[Command] = [
                ("XADD", STREAM, "*", _FIELD, b"".join(order_ids[at : at + ORDERS_PER_MESSAGE]))
                for at in range(0, len(order_ids), ORDERS_PER_MESSAGE)
            ]
            # What is lost unheard, as Redis goes away, is as late as what Redis lost then.
            if not self._offering.tell(messages):
                await self._offering.together(messages, seconds=_OFFER_SECONDS)
                self._offer_trouble.works()
        except REDIS_ERRORS as error:
            self._offer_trouble.fails(error)
            hints_dropped_total.labels("offer_failed").inc(len(order_ids))
            self._rest_until = asyncio.get_running_loop().time() + _REST_SECONDS
        return [None] * len(offers)

    # ---- Receiving -------------------------------------------------------------------------------

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Yield messages until `stop`, through whatever happens to Redis."""
        failures = 0
        while not self._stopping.is_set():
            try:
                entries = await self._next_entries()
            except REDIS_ERRORS as error:
                if self._has_group and str(error).startswith("NOGROUP"):
                    # FLUSHALL, or a Redis that came back empty, took the group along: make it again, at once.
                    self._has_group = False
                    continue
                failures += 1
                self._set_up(False, error)
                await self._pause(RECONNECT.delay_seconds(failures, random.random()))
                continue
            failures = 0
            self._handing_out = True
            for entry_id, fields in entries:
                body = _body(fields)
                if body is None:
                    _dropped.inc()
                    self._done.append(entry_id)
                    continue
                offered = int(entry_id.partition(b"-")[0]) / 1000
                _queue_seconds.observe(max(0.0, time.time() - offered))
                yield AckableMessage.model_construct(data=body, ack=partial(self._finish, entry_id))
            self._handing_out = False
            for entry_id in self._done:
                self._acknowledgements.put(entry_id)
            self._done.clear()

    def stop(self) -> None:
        """Have `listen` end within a block interval. What was read is still handed out."""
        self._stopping.set()
        self._freed.set()

    async def shutdown(self) -> None:
        """Send what was handed in, leave the group unless something is in hand, and close the connections."""
        await self._offers.drain()
        await self.drain()
        if self._has_group:
            try:
                await self._forget(self.consumer_name)
            except REDIS_ERRORS as error:
                logger.info("another worker will tidy up after this one: %s", error)
        self._client.close()
        self._reading.close()
        self._offering.close()
        await super().shutdown()

    async def _next_entries(self) -> list[Entry]:
        """Return what to work on next; nothing when there is no room, or nothing came in a block interval."""
        if not self._has_group:
            await self._create_group()
        if self._unacknowledged:
            await self._acknowledge(list(self._unacknowledged))
        now = asyncio.get_running_loop().time()
        if now >= self._refresh_time:
            self._refresh_time = now + self._idle_seconds / 4
            await self._refresh()
        if now >= self._forget_time:
            # Any of the workers will do: spread out, so that they do not all ask at once.
            self._forget_time = now + _FORGET_SECONDS * random.uniform(0.5, 1.5)
            await self._forget("")

        count = min(self._read_count, self.capacity - len(self._in_hand))
        if count <= 0 or not self.has_room():
            await self._wait_for_room()
            return []
        if now >= self._reclaim_time:
            reclaimed = await self._reclaim(count)
            if reclaimed:
                return reclaimed
            self._reclaim_time = now + self._idle_seconds * random.uniform(0.25, 0.5)
        return await self._read(count)

    async def _create_group(self) -> None:
        try:
            # From id 0, the start of the stream: what was offered before there was a group is work too.
            await self._client("XGROUP", "CREATE", STREAM, GROUP, self.consumer_id, "MKSTREAM")
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        self._has_group = True

    async def _read(self, count: int) -> list[Entry]:
        waiting = ("COUNT", count, "BLOCK", self._block_ms, "STREAMS", STREAM, ">")
        answer = await self._reading(
            "XREADGROUP",
            "GROUP",
            GROUP,
            self.consumer_name,
            *waiting,
            seconds=ANSWER_SECONDS + self._block_ms / 1000,
        )
        self._set_up(True)
        entries: list[Entry] = answer[0][1] if answer else []
        self._in_hand.update(entry_id for entry_id, _ in entries)
        return entries

    async def _reclaim(self, count: int) -> list[Entry]:
        """Take over entries whose consumer is gone, or which were lost on the way to us."""
        idle_ms = round(self._idle_seconds * 1000)
        answer = await self._client(
            "XAUTOCLAIM", STREAM, GROUP, self.consumer_name, idle_ms, self._reclaim_from, "COUNT", count
        )
        self._reclaim_from = answer[0]
        # Our own are here when this process stood still for so long; they are being worked on.
        known = self._in_hand | self._unacknowledged
        entries: list[Entry] = [(entry_id, fields) for entry_id, fields in answer[1] if entry_id not in known]
        self._in_hand.update(entry_id for entry_id, _ in entries)
        if entries:
            _reclaimed.inc(len(entries))
            logger.info("took over %d messages that were left behind", len(entries))
        return entries

    async def _refresh(self) -> None:
        """Reset the idle time of everything in hand, so that a slow task is not taken for a dead worker's."""
        if self._in_hand:
            # A minimum idle time of 0 takes back what another worker took while this process stood still.
            # Both run it then, whoever has it; the claim in PostgreSQL lets one of them.
            await self._client("XCLAIM", STREAM, GROUP, self.consumer_name, 0, *self._in_hand, "JUSTID")

    async def _forget(self, leaving: str) -> None:
        """Remove consumers from the group that hold nothing: silent ones, and the one that is `leaving`."""
        idle_ms = round(_FORGET_SECONDS * 1000)
        await self._client("EVAL", _FORGET_SCRIPT, 1, STREAM, GROUP, idle_ms, leaving)

    async def drain(self) -> None:
        """Return once what was done so far is acknowledged, or Redis could not be told."""
        await self._acknowledgements.drain()

    async def _finish(self, entry_id: bytes) -> None:
        """Have the entry of a task that returned acknowledged and deleted. Never raises."""
        _run.inc()
        if self._handing_out:
            # More of the same read are about to be done: `listen` acknowledges them all in one go.
            self._done.append(entry_id)
        else:
            self._acknowledgements.put(entry_id)

    async def _acknowledge(self, entry_ids: list[bytes]) -> list[None]:
        try:
            # In this order. Deleted and not acknowledged, an entry is cleared away by XAUTOCLAIM;
            # acknowledged and not deleted, it would stay in the stream for ever.
            await self._client.together(
                [("XDEL", STREAM, *entry_ids), ("XACK", STREAM, GROUP, *entry_ids)],
                seconds=_ACKNOWLEDGE_SECONDS,
            )
        except REDIS_ERRORS as error:
            logger.debug("%d acknowledgements wait for Redis: %s", len(entry_ids), error)
            self._unacknowledged.update(entry_ids)
        else:
            self._unacknowledged.difference_update(entry_ids)
        self._in_hand.difference_update(entry_ids)
        self._freed.set()
        return [None] * len(entry_ids)

    async def _wait_for_room(self) -> None:
        self._freed.clear()
        try:
            async with asyncio.timeout(_ROOM_SECONDS):
                await self._freed.wait()
        except TimeoutError:
            pass  # has_room may say otherwise by now

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass  # over, and not stopped

    def _set_up(self, up: bool, error: BaseException | None = None) -> None:
        if up == self.up:
            return
        self.up = up
        redis_up.labels("queue").set(int(up))
        if up:
            logger.info("listening to the queue")
        else:
            logger.warning("the queue is off until Redis is back: %s", str(error) or type(error).__name__)


class _Receiver(Receiver):
    """taskiq's, with a `listen` that starts what the broker hands out and nothing more.

    taskiq's own has three tasks, two semaphores and a queue between the broker and a task: 45 us a message.
    They bound what is under way and can end a read in the middle; here the broker does the one and nobody may
    do the other, or what Redis just handed out would lie idle.
    """

    async def listen(self, finish_event: asyncio.Event) -> None:
        """Run tasks until the broker's `listen` ends, and return when they are done."""
        async with asyncio.TaskGroup() as group:
            async for message in self.broker.listen():
                group.create_task(self.callback(message))


async def run_tasks(broker: OrderBroker, stopping: asyncio.Event) -> None:
    """Run the broker's tasks as they come, until `stopping`; then finish those under way, and return."""
    broker.is_worker_process = True
    receiver = _Receiver(
        broker,
        max_async_tasks=broker.capacity,
        ack_type=AcknowledgeType.WHEN_EXECUTED,
        validate_params=False,  # the formatter did
        run_startup=False,
    )
    async with asyncio.TaskGroup() as group:
        listening = group.create_task(receiver.listen(asyncio.Event()))
        await stopping.wait()
        broker.stop()
        done, _ = await asyncio.wait([listening], timeout=_DRAIN_SECONDS)
        if not done:
            listening.cancel()
    await broker.drain()


def _body(fields: list[bytes] | None) -> bytes | None:
    """Return the order ids of a well-formed entry, still packed; None for anything else."""
    if fields is None or len(fields) != 2 or fields[0] != _FIELD:
        return None
    return fields[1] if are_order_ids(fields[1], MAX_ORDER_IDS) else None


def _always() -> bool:
    return True
