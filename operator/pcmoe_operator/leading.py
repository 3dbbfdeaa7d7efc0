"""Watches fill the queue; while this process leads, workers look at consortia, now and then at all."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Hashable
from datetime import UTC, datetime

import aiohttp

from pcmoe_operator.access import Access
from pcmoe_operator.cluster import Cluster, ClusterError
from pcmoe_operator.constants import KIND, OPERATOR
from pcmoe_operator.events import Events, conditions_of
from pcmoe_operator.health import Health
from pcmoe_operator.metrics import Metrics
from pcmoe_operator.reconcile import Reconciler
from pcmoe_operator.served_crd import ServedCRD, refused
from pcmoe_operator.settings import Settings
from pcmoe_operator.times import moment
from pcmoe_operator.watching import Object, Watching
from pcmoe_operator.workqueue import LONGEST_BACKOFF, WorkQueue
from pcmoe_operator.world import Key, World

log = logging.getLogger(__name__)

WORKERS = 8
BURST_SECONDS, LONGEST_BURST_SECONDS = 0.2, 1.0
"""Changes come in bursts, a pod's four within a second: one look at all of them is enough."""
BUSY_CONSORTIA = 250
"""With so many the API server takes so long from one change of a consortium to the next that bursts last longest."""
ASK_SECONDS = 2.0
MAX_ANSWER = 64 * 1024
END_SECONDS = 3.0
"""So long what was cancelled may take to end."""


class Leader:
    """Whoever leads, or waits for its turn. `cluster` writes only while it leads."""

    def __init__(
        self, settings: Settings, cluster: Cluster, identity: str, health: Health, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._health = health
        self._metrics = metrics
        self._queue = WorkQueue()
        self._world = World(self._changed)
        self._events = Events(cluster, identity)
        self._crd = ServedCRD(cluster, self._all_again)
        self._watching = Watching(cluster, health, metrics.requested, self._saw)
        self._reconciler: Reconciler | None = None

    async def watch(self, access: Access, ready: asyncio.Event) -> None:
        """Get to know what is there, whoever leads, until cancelled; `ready` is set once the watches have started."""
        await self._crd.there()
        await self._watching.run(access, self._settings.namespaces, self._settings.watch_seconds, ready)

    async def lead(self) -> None:
        """Look after everything until cancelled."""
        timeout = aiohttp.ClientTimeout(total=ASK_SECONDS)
        # As many at once as there are: those that don't answer would keep others from being asked.
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            self._reconciler = Reconciler(
                self._cluster, self._settings, self._world, lambda url: ask(session, url)
            )
            await self._crd.there()
            self._show()
            await first(
                self._look(),
                self._events.write(),
                self._resync(),
                self._crd.follow(self._settings.resync_seconds),
            )

    def _changed(self, key: Key) -> None:
        self._queue.add(key, after=burst_seconds(len(self._world.consortia)))

    def _show(self) -> None:
        self._health.stalled_seconds = lambda: self._queue.stalled_seconds
        self._metrics.queue, self._metrics.world = self._queue, self._world
        self._metrics.crd_missing = lambda: len(self._crd.missing)

    async def _look(self) -> None:
        """Look at consortia, once all that is there is known."""
        await self._watching.synced()
        log.info("%d consortia are there", len(self._world.consortia))
        await self._queue.run(self._work, WORKERS, self._failed)

    def _saw(self, event: str | None, seen: Object) -> None:
        """A watch tells of something."""
        if seen["kind"] == KIND:
            self._events.saw(event, seen, tell=self._reconciler is not None)
            if event == "DELETED" and self._reconciler is not None:
                self._reconciler.gone(seen["metadata"]["uid"])
        self._world.saw(event, seen)

    async def _work(self, key: Hashable) -> float | None:
        assert self._reconciler is not None and isinstance(key, tuple)
        with self._metrics.look():
            if self._crd.missing:
                return await self._refuse(key)
            return await self._reconciler.reconcile(key)

    async def _refuse(self, key: Key) -> float | None:
        """Say of a consortium that the CRD is too old, and do nothing more but to suspend it."""
        raw = self._world.consortia.get(key)
        if raw is None or (raw.get("spec") or {}).get("managedBy", OPERATOR) != OPERATOR:
            return None
        again = None
        if raw["spec"].get("suspend") is True and self._reconciler is not None:
            again = await self._reconciler.stop(key)
        now = moment(datetime.now(UTC), "seconds")
        status = refused(raw, self._crd.missing, now)
        if conditions_of(raw) != conditions_of({"status": status}):
            await self._cluster.write_status(raw, status)
        return again

    def _failed(self, key: Hashable, error: Exception) -> float | None:
        """A look at a consortium failed: the server's own wish for a pause counts."""
        self._metrics.failed(error)
        if isinstance(error, ClusterError):
            log.warning("%s: %s", key, error)
            return None if error.retry_after is None else min(error.retry_after, LONGEST_BACKOFF)
        log.error("%s: a fault of the program itself", key, exc_info=error)
        return None

    def _all_again(self) -> None:
        for key in list(self._world.consortia):
            self._queue.add(key)

    async def _resync(self) -> None:
        """Look at everything now and then, spread by chance: what no watch tells must not stay unnoticed for ever."""
        while True:
            await asyncio.sleep(self._settings.resync_seconds)
            loop = asyncio.get_running_loop()
            for key in list(self._world.consortia):
                loop.call_later(random.uniform(0.0, self._settings.resync_seconds / 2), self._doubt, key)

    def _doubt(self, key: Key) -> None:
        if self._reconciler is not None:
            self._reconciler.resync(key)
            self._queue.add(key)


def burst_seconds(consortia: int) -> float:
    """How long to wait for more changes after one."""
    share = min(1.0, consortia / BUSY_CONSORTIA)
    return max(BURST_SECONDS, LONGEST_BURST_SECONDS * share)


async def first(*works: object) -> int:
    """Run all until the first ends; which. The others are told to end; an error of any is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]  # type: ignore[call-overload]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        return min(tasks.index(task) for task in done)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=END_SECONDS)


async def ask(session: aiohttp.ClientSession, url: str) -> bytes | None:
    """What a pod says of itself; None if it doesn't in time. Of a longer answer the first `MAX_ANSWER` bytes."""
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
        async with session.get(url, allow_redirects=False) as answer:
            if answer.status != 200:
                return None
            found = bytearray()
            async for piece in answer.content.iter_any():  # one read gives what has arrived so far
                found += piece
                if len(found) >= MAX_ANSWER:
                    break
            return bytes(found[:MAX_ANSWER])
    return None
