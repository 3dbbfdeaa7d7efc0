"""A real HTTP server between an operator and the API server that answers otherwise, late or never, as a test wants."""

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web
from tests.cluster.authority import write_kubeconfig

HOP = {"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "content-encoding"}
"""Headers that are not handed on."""


@dataclass(kw_only=True)
class Fault:
    """What happens to the next `times` requests of a method whose path and query have `path` in them."""

    method: str
    path: str
    times: int = 1
    status: int | None = None
    """Answered with it instead of being handed on."""
    headers: Mapping[str, str] = field(default_factory=dict)
    reset: bool = False
    """The connection is closed: before it is handed on, or after it if `sent`."""
    sent: bool = False
    slow: float = 0.0
    """Seconds before it is handed on."""
    gone: bool = False
    """A watch that begins with 410."""


@dataclass(kw_only=True, slots=True)
class Passed:
    """A request that came along."""

    at: float
    method: str
    path: str
    status: int
    """0: without an answer."""


class FaultyApi:
    """Listens on the loopback and hands on to the API server that a kubeconfig leads to, also for others' tokens.

    with FaultyApi(plane.kubeconfig) as api:
        connect with api.kubeconfig(plane.kubeconfig)
    """

    def __init__(self, real: Path) -> None:
        cluster = json.loads(real.read_text())["clusters"][0]["cluster"]
        self._target = cluster["server"]
        self._trust = ssl.create_default_context(cafile=cluster["certificate-authority"])
        self._faults: list[Fault] = []
        self._streams: list[tuple[web.Request, asyncio.Event]] = []
        """Open watches, and whether they go on."""
        self.passed: list[Passed] = []
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._start).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._end).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def kubeconfig(self, real: Path) -> Path:
        """A kubeconfig of the same user, by token, that leads here."""
        config = json.loads(real.read_text())
        authority = Path(config["clusters"][0]["cluster"]["certificate-authority"])
        made = real.with_name(f"{real.stem}-faulty.kubeconfig")
        return write_kubeconfig(made, self.url, authority, config["users"][0]["user"])

    def fault(self, method: str, path: str, **what: Any) -> Fault:
        """Plant a fault."""
        made = Fault(method=method, path=path, **what)
        self._faults.append(made)
        return made

    def heal(self) -> None:
        """Forget all faults that are left."""
        self._faults.clear()

    @property
    def watches(self) -> int:
        """How many are open and let something through."""
        return sum(going.is_set() for _, going in self._streams)

    def drop_watches(self) -> None:
        """Close the connection of every open watch."""

        def drop() -> None:
            for request, going in self._streams:
                going.set()
                if request.transport is not None:
                    request.transport.abort()

        self._loop.call_soon_threadsafe(drop)

    def freeze_watches(self) -> None:
        """Let nothing through any more on open watches, and keep their connections: they are half open."""

        def freeze() -> None:
            for _, going in self._streams:
                going.clear()

        self._loop.call_soon_threadsafe(freeze)

    def _call(self, work: Callable[[], Any]) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(work(), self._loop)

    async def _start(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._trust, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )
        application = web.Application(client_max_size=1 << 24)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0]
        self.url = f"http://{host}:{port}"

    async def _end(self) -> None:
        await self._session.close()
        await self._runner.cleanup()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _due(self, method: str, path: str) -> Fault | None:
        for fault in self._faults:
            if fault.times > 0 and fault.method == method and fault.path in path:
                fault.times -= 1
                return fault
        return None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        passed = Passed(at=time.monotonic(), method=request.method, path=request.path_qs, status=0)
        self.passed.append(passed)
        fault = self._due(request.method, request.path_qs)
        if fault is not None:
            if fault.slow:
                await asyncio.sleep(fault.slow)
            if fault.reset and not fault.sent:
                return self._reset(request)
            if fault.status is not None:
                passed.status = fault.status
                body = {"kind": "Status", "code": fault.status, "message": "planted"}
                return web.json_response(body, status=fault.status, headers=fault.headers)
            if fault.gone:
                passed.status = 200
                error = {"kind": "Status", "code": 410, "reason": "Expired", "message": "planted"}
                return web.json_response({"type": "ERROR", "object": error})
        try:
            return await self._hand_on(request, passed, fault)
        except (aiohttp.ClientError, OSError):
            return self._reset(request)

    async def _hand_on(self, request: web.Request, passed: Passed, fault: Fault | None) -> web.StreamResponse:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP}
        headers["Accept-Encoding"] = "identity"
        async with self._session.request(
            request.method, self._target + request.path_qs, headers=headers, data=await request.read() or None
        ) as answer:
            if fault is not None and fault.reset:
                return self._reset(request)
            passed.status = answer.status
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP}
            if "watch=true" not in request.query_string or answer.status != 200:
                return web.Response(status=answer.status, headers=kept, body=await answer.read())
            response = web.StreamResponse(headers=kept)
            await response.prepare(request)
            going = asyncio.Event()
            going.set()
            self._streams.append((request, going))
            try:
                async for chunk in answer.content.iter_any():
                    await going.wait()
                    await response.write(chunk)
                await going.wait()
            finally:
                self._streams.remove((request, going))
            return response

    @staticmethod
    def _reset(request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=599)
