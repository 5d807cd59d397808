"""What breaks in the big fault tests: a deck of faults, shuffled by a seed, dealt one after the other."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from typing import Final

import psycopg
from redis.exceptions import RedisError

from tests.e2e.faults.cluster import Cluster

SMOKE: Final[Mapping[str, int]] = {
    "kill worker": 11,
    "kill all workers": 1,
    "freeze worker": 4,
    "kill server": 5,
    "kill gateway": 5,
    "kill valkey": 2,
    "empty valkey": 2,
    "freeze valkey": 1,
    "kill postgres": 3,
    "freeze postgres": 1,
    "crash postgres": 1,
    "cut postgres": 4,
    "kill simnet": 2,
    "freeze simnet": 1,
    "terminate worker": 2,
    "terminate server": 1,
    "terminate gateway": 1,
}
"""How often each fault comes. With three workers that is 31 kills, and more that is not a kill."""


class Chaos:
    """Deals the deck over `seconds`. Faults overlap: the next one does not wait until the last is mended."""

    def __init__(self, cluster: Cluster, deck: Mapping[str, int], random_numbers: random.Random) -> None:
        self.dealt: Counter[str] = Counter()
        self._cluster = cluster
        self._random = random_numbers
        self._cards = [card for card, count in deck.items() for _ in range(count)]
        random_numbers.shuffle(self._cards)
        self._busy: set[str] = set()
        """Whom a fault has, and nobody else may touch."""

    async def run(self, seconds: float) -> None:
        """Deal all cards, and return when what they broke is running again."""
        pause = seconds / len(self._cards)
        async with asyncio.TaskGroup() as group:
            for card in self._cards:
                await asyncio.sleep(pause * self._random.uniform(0.5, 1.5))
                what, _, whom = card.partition(" ")
                group.create_task(self._play(card, what, whom))

    async def _play(self, card: str, what: str, whom: str) -> None:
        cluster = self._cluster
        if whom == "worker":
            names = [self._random.choice(cluster.workers)]
        else:
            names = list(cluster.workers) if whom == "all workers" else [whom]
        away_seconds = self._random.choice((0.0, 0.0, 0.3, 1.0, 2.0))
        # One after the other on one process; what is dealt is played.
        while self._busy.intersection(names):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        self._busy.update(names)
        try:
            self.dealt[card] += 1
            if what in ("empty", "cut", "crash"):
                await self._disturb(what)
                return
            if what == "freeze":
                for name in names:
                    cluster.freeze(name)
                lease_seconds = cluster.settings.lease_seconds
                await asyncio.sleep(lease_seconds * 2 if whom == "worker" else away_seconds + 0.5)
                for name in names:
                    cluster.thaw(name)
                return
            for name in names:
                while not cluster.running(name):  # noqa: ASYNC110 - it found a service away, and is started again
                    await asyncio.sleep(0.05)
                if what == "kill":
                    cluster.kill(name)
                else:
                    await cluster.terminate(name)
            await asyncio.sleep(away_seconds)
            for name in names:
                cluster.start(name)
        finally:
            self._busy.difference_update(names)

    async def _disturb(self, what: str) -> None:
        """Do something to a service that goes on running."""
        cluster = self._cluster
        try:
            if what == "empty":
                await cluster.empty_valkey()
            else:
                await cluster.cut_connections(self._random, crash=what == "crash")
        except (OSError, RedisError, psycopg.OperationalError) as error:
            cluster.note(f"{what}: nobody there: {error!r}")
