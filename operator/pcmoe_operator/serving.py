"""`/metrics`, `/healthz` and `/readyz`, from before the lease is ours until the end."""

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from pcmoe_operator.errors import UsageError
from pcmoe_operator.health import Health
from pcmoe_operator.metrics import Metrics


@contextlib.asynccontextmanager
async def served(port: int, health: Health, metrics: Metrics) -> AsyncIterator[None]:
    """Answer at `port`, on every address; `UsageError` if it is taken."""

    async def page(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.page(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_request: web.Request) -> web.Response:
        faults = health.faults()
        return web.Response(
            text="".join(f"{line}\n" for line in faults or ["ok"]), status=503 if faults else 200
        )

    async def readyz(_request: web.Request) -> web.Response:
        if health.ready:
            return web.Response(text="ok\n")
        return web.Response(text="the API server has not answered yet\n", status=503)

    application = web.Application()
    application.add_routes(
        [web.get("/metrics", page), web.get("/healthz", healthz), web.get("/readyz", readyz)]
    )
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, None, port).start()
        except OSError as error:
            raise UsageError(f"metricsPort: {port} can't be listened on: {error.strerror}") from error
        yield
    finally:
        await runner.cleanup()
