"""Clients that create many objects at once, a count of running pods, pods that answer, an operator to be measured."""

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import yaml

DEADLINE = 1800.0
PORT = 9400
METRICS_PORT = 8080
LOOKS = "pcmoe_operator_reconciles_total "
TICKS = os.sysconf("SC_CLK_TCK")
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
RUNNING = "fieldSelector=status.phase%3DRunning"
ANSWER = {
    "phase": "TRAINING",
    "state": "RUNNING",
    "view": 1,
    "round": 0,
    "rounds": 2,
    "step": 0,
    "committed": 0,
    "members": [],
    "reason": "",
    "error": None,
}
"""A node and a coordinator in one: each looks at what concerns it."""

Result = TypeVar("Result")


class Background:
    """An event loop in a thread of its own, so that the rest may wait for processes."""

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Its result; a TimeoutError after half an hour."""
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, DEADLINE), self._loop).result()


class Client:
    """Talks to the API server that a kubeconfig names, over as many connections as asked."""

    def __init__(self, kubeconfig: Path, connections: int) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._server = cluster["server"]
        self._tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
        self._tls.load_cert_chain(user["client-certificate"], user["client-key"])
        self._connections = connections

    async def create(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> None:
        """Create all, each connection one after the other."""
        left = iter(bodies)

        async def creator(session: aiohttp.ClientSession) -> None:
            for body in left:
                async with session.post(self._server + path, json=body) as answer:
                    if answer.status != 201:
                        raise RuntimeError(f"POST {path}: {answer.status}: {(await answer.text())[:500]}")

        async with self._session() as session, asyncio.TaskGroup() as tasks:
            for _ in range(self._connections):
                tasks.create_task(creator(session))

    async def until_running(self, namespace: str, count: int, say: Callable[[str], None]) -> None:
        """Wait until so many pods of a namespace have been seen running, by a watch that goes on where it broke off.

        The API server ends the watch of a client that is slow for a moment: everybody who watches has to go on.
        """
        path = f"{self._server}/api/v1/namespaces/{namespace}/pods?{RUNNING}"
        seen: set[str] = set()
        version, told = "0", time.monotonic()
        async with self._session() as session:
            while True:
                options = f"&watch=1&allowWatchBookmarks=true&resourceVersion={version}"
                async with session.get(path + options, headers={"Accept": METADATA}) as answer:
                    answer.raise_for_status()
                    async for event in _lines(answer):
                        if event["type"] == "ERROR":
                            version = "0"
                            break
                        version = event["object"]["metadata"]["resourceVersion"]
                        if event["type"] == "ADDED":
                            seen.add(event["object"]["metadata"]["uid"])
                        if len(seen) >= count:
                            return
                        if time.monotonic() - told > 10:
                            told = time.monotonic()
                            say(f"  {len(seen)} of {count} pods run")

    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=self._connections)
        return aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None, sock_read=300)
        )


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The events of a watch; a line may be longer than what aiohttp takes for one."""
    rest = b""
    async for chunk in answer.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield json.loads(line)


async def answer_at_every_address() -> None:
    """Begin to answer `/status` at every address of the loopback."""
    body = json.dumps(ANSWER).encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        await writer.drain()
        writer.close()

    await asyncio.start_server(serve, "0.0.0.0", PORT, backlog=1000)


@dataclass(frozen=True, slots=True)
class Used:
    """What a process has used so far."""

    cpu_seconds: float
    peak_mib: float


class Operator:
    """The operator as a process."""

    def __init__(self, kubeconfig: Path, settings: Path, log: Path) -> None:
        self._command = [sys.executable, "-m", "pcmoe_operator.main", "--config", str(settings)]
        self._command += ["--kubeconfig", str(kubeconfig)]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._lines = 0

    def start(self) -> None:
        """Start it."""
        self._lines = self._led()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(10)

    def until_leading(self) -> None:
        """Wait until it says that it leads."""
        end = time.monotonic() + 120
        while self._led() == self._lines:
            if time.monotonic() > end:
                raise TimeoutError(f"it doesn't lead after two minutes: {self._log.read_text()[-2000:]}")
            time.sleep(0.1)

    def used(self) -> Used:
        """CPU and memory up to now."""
        return Used(round(self._cpu(), 1), round(self._peak() / 1024, 1))

    def until_looked(self, count: int) -> None:
        """Wait until it has looked at so many consortia since its start."""
        end = time.monotonic() + 300
        while self._looks() < count:
            if time.monotonic() > end:
                raise TimeoutError(f"{self._looks():g} looks at {count} consortia after five minutes")
            time.sleep(0.2)

    def _looks(self) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith(LOOKS))

    def _led(self) -> int:
        return self._log.read_text().count("leading, as") if self._log.exists() else 0

    def _cpu(self) -> float:
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def _peak(self) -> int:
        assert self._process is not None
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
