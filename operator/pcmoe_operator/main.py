"""`pcmoe-operator --config FILE`: look after every consortium of the namespaces named there, one leader at a time.

kopf watches; its handlers only note what they saw and queue a key. Nothing here writes finalizers or bookkeeping
annotations, so a consortium can be deleted while no operator runs.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import aiohttp
import kopf
from kubernetes.aio.client import ApiClient

from pcmoe_operator.cluster import ApiRequests, Cluster, ClusterError, connect
from pcmoe_operator.constants import GROUP, VERSION
from pcmoe_operator.errors import OperatorError
from pcmoe_operator.lease import Lease
from pcmoe_operator.objects.names import CONSORTIUM
from pcmoe_operator.reconcile import Reconciler
from pcmoe_operator.settings import Settings
from pcmoe_operator.workqueue import WorkQueue
from pcmoe_operator.world import World

log = logging.getLogger("pcmoe_operator")

WORKERS = 8
ASK_SECONDS = 2.0
MAX_ANSWER = 64 * 1024
HOLDING = 3
"""Place of the lease among what runs while leading."""
LOST_LEASE = 75
"""Another one leads: started again, this one waits for its turn."""


def main() -> None:
    """Read the settings and run until told to stop."""
    parser = argparse.ArgumentParser(prog="pcmoe-operator", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="settings as JSON, rendered by the chart")
    parser.add_argument("--kubeconfig", help="outside a cluster: the kubeconfig to use")
    options = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    logging.getLogger("kopf").setLevel(logging.WARNING)  # a line for every object it sees
    try:
        sys.exit(asyncio.run(_until_told(Settings.load(options.config), options.kubeconfig)))
    except OperatorError as error:
        log.error("%s", error)
        sys.exit(error.exit_code)


async def _until_told(settings: Settings, kubeconfig: str | None) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return await operate(settings, kubeconfig, stop)


async def operate(settings: Settings, kubeconfig: str | None, stop: asyncio.Event) -> int:
    """Lead when it is our turn, and look after consortia until `stop`; returns the exit code."""
    api = await connect(kubeconfig)
    cluster = Cluster(ApiRequests(api))
    identity = f"{socket.gethostname()}-{os.getpid()}"
    lease = Lease(cluster, settings.lease_namespace, settings.lease_name, identity, settings.lease_seconds)
    try:
        if await _first(lease.acquire(), stop.wait()) == 1:
            return 0
        log.info("leading, as %s", identity)
        try:
            return await _lead(settings, api, cluster, lease, stop)
        finally:
            await lease.release()
    finally:
        await api.close()  # type: ignore[no-untyped-call]


async def _lead(
    settings: Settings, api: ApiClient, cluster: Cluster, lease: Lease, stop: asyncio.Event
) -> int:
    timeout = aiohttp.ClientTimeout(total=ASK_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        queue = WorkQueue()
        world = World(lambda key: queue.add(key))
        reconciler = Reconciler(cluster, settings, world, lambda url: _ask(session, url))

        async def work(key: Hashable) -> float | None:
            if not lease.leading:
                return 1.0  # nothing may be done now; the process is about to end
            return await reconciler.reconcile(key)  # type: ignore[arg-type]

        ended = await _first(
            queue.run(work, WORKERS, _failed),
            _watch(settings, api, world, reconciler),
            _resync(settings, world, reconciler, queue),
            lease.hold(),
            stop.wait(),
        )
    return LOST_LEASE if ended == HOLDING else 0  # kopf ends by itself when it is told to stop, as we do


async def _first(*works: Any) -> int:
    """Run all until the first ends; which. The others are ended; an error of any is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        return min(tasks.index(task) for task in done)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(session: aiohttp.ClientSession, url: str) -> bytes | None:
    """What a pod says of itself; None if it doesn't in time."""
    try:
        async with session.get(url, allow_redirects=False) as answer:
            return await answer.content.read(MAX_ANSWER) if answer.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None


def _failed(key: Hashable, error: Exception) -> float | None:
    """A look at a consortium failed: the server's own wish for a pause counts."""
    if isinstance(error, ClusterError):
        log.warning("%s: %s", key, error)
        return error.retry_after
    log.error("%s: a fault of the program itself", key, exc_info=error)
    return None


async def _resync(settings: Settings, world: World, reconciler: Reconciler, queue: WorkQueue) -> None:
    """Look at everything now and then, spread by chance: what no watch tells must not stay unnoticed for ever."""
    while True:
        await asyncio.sleep(settings.resync_seconds)
        for key in list(world.consortia):
            reconciler.resync(key)
            queue.add(key, after=random.uniform(0.0, settings.resync_seconds / 2))


async def _watch(settings: Settings, api: ApiClient, world: World, reconciler: Reconciler) -> None:
    """kopf, as a watcher of three kinds."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await _connection(api)

    @kopf.on.event(GROUP, VERSION, "pcmoeconsortia", registry=registry)
    async def consortium(event: Any, **_: Any) -> None:
        seen = dict(event["object"])
        if event["type"] == "DELETED":
            reconciler.gone(seen["metadata"]["uid"])
        world.saw(event["type"], seen)

    @kopf.on.event("batch", "v1", "jobs", labels={CONSORTIUM: kopf.PRESENT}, registry=registry)
    @kopf.on.event("", "v1", "pods", labels={CONSORTIUM: kopf.PRESENT}, registry=registry)
    async def child(event: Any, **_: Any) -> None:
        world.saw(event["type"], dict(event["object"]))

    configured = kopf.OperatorSettings()
    configured.posting.enabled = False
    configured.scanning.disabled = True
    with contextlib.suppress(AttributeError):
        configured.execution.default_backoff = 5
    await kopf.operator(
        registry=registry,
        settings=configured,
        namespaces=settings.namespaces,
        standalone=True,
    )


async def _connection(api: ApiClient) -> kopf.ConnectionInfo:
    """The client's way into the cluster, for kopf."""
    configuration = api.configuration
    scheme, token = None, None
    header = await configuration.get_api_key_with_prefix("BearerToken")
    if header:
        scheme, _, token = header.partition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        scheme=scheme,
        token=token,
    )


if __name__ == "__main__":
    main()
