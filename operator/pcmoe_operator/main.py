"""`pcmoe-operator --config FILE`: look after every consortium of the namespaces named there, one leader at a time.

Nothing here writes finalizers or bookkeeping annotations, so a consortium can be deleted while no operator runs.
"""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import uuid
from pathlib import Path

from pcmoe_operator.access import Access
from pcmoe_operator.cluster import ApiRequests, Cluster
from pcmoe_operator.errors import OperatorError
from pcmoe_operator.health import Health
from pcmoe_operator.leading import Leader, first
from pcmoe_operator.lease import Lease, WhileLeading
from pcmoe_operator.metrics import Metrics
from pcmoe_operator.serving import served
from pcmoe_operator.settings import Settings
from pcmoe_operator.tracing import Call, trace

log = logging.getLogger("pcmoe_operator")

AGAIN = 75
"""The exit code of one that leads no more, or can't watch: started again, it waits for its turn."""


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
        asyncio.run(_until_told(Settings.load(options.config), options.kubeconfig))
    except OperatorError as error:
        log.error("%s", error)
        sys.exit(error.exit_code)


async def _until_told(settings: Settings, kubeconfig: str | None) -> None:
    stop = asyncio.Event()
    _listen(stop)
    code = await operate(settings, kubeconfig, stop)
    logging.shutdown()
    os._exit(code)  # kopf's tasks may outlive that they were cancelled; nothing here needs a tidy end


def _listen(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def operate(settings: Settings, kubeconfig: str | None, stop: asyncio.Event) -> int:
    """Lead when it is our turn, and look after consortia until `stop`; returns the exit code."""
    health = Health(settings.watch_seconds)
    metrics = Metrics(health)

    def heard(call: Call, code: str) -> None:
        metrics.requested(call, code)
        if code.isdigit() and int(code) < 500 and code != "401":
            health.answered()

    # Before the lease is ours: a replica that waits has to be seen alive.
    async with served(settings.metrics_port, health, metrics):
        access = await Access.found(kubeconfig)
        # A name that no other process has, whatever its pod is called.
        identity = f"{socket.gethostname()}-{uuid.uuid4().hex[:12]}"
        requests = ApiRequests(access, trace(heard))
        lease = Lease(
            Cluster(requests), settings.lease_namespace, settings.lease_name, identity, settings.lease_seconds
        )
        metrics.leading = lambda: lease.leading
        try:
            cluster = Cluster(WhileLeading(requests, lease))
            return await _take_turns(
                Leader(settings, cluster, identity, health, metrics), access, lease, stop
            )
        finally:
            await lease.release()
            await requests.close()


async def _take_turns(leader: Leader, access: Access, lease: Lease, stop: asyncio.Event) -> int:
    """Watch, and lead once the lease is ours, until told to stop, or until the lease or the watches are lost.

    Who waits for its turn knows already what there is: a lease lasts longer than it takes to list it all.
    """
    started = asyncio.Event()

    async def in_turn() -> None:
        await lease.acquire()
        log.info("leading, as %s", lease.identity)
        await first(lease.hold(), leader.lead())

    async def told() -> None:
        await started.wait()
        _listen(stop)  # kopf has put its own handlers there
        await asyncio.Event().wait()

    try:
        ended = await first(stop.wait(), in_turn(), leader.watch(access, started), told())
    except OperatorError:
        raise
    except Exception as error:
        log.error("the watches have failed: %s: %s", type(error).__name__, error, exc_info=True)
        return AGAIN
    return 0 if ended == 0 else AGAIN


if __name__ == "__main__":
    main()
