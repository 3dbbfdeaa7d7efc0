"""Clients that create many objects at once, a count of running pods, pods that answer, an operator to be measured."""

import asyncio
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import yaml

DEADLINE = 1800.0
PORT = 9400
TICKS = os.sysconf("SC_CLK_TCK")
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


class Connection:
    """One kept connection to the API server that a kubeconfig names."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        context = ssl.create_default_context(cafile=cluster["certificate-authority"])
        if "client-certificate" in user:
            context.load_cert_chain(user["client-certificate"], user["client-key"])
        self._headers = {"Content-Type": "application/json"}
        if "token" in user:
            self._headers["Authorization"] = f"Bearer {user['token']}"
        address = urlsplit(cluster["server"])
        assert address.hostname is not None
        self._http = http.client.HTTPSConnection(address.hostname, address.port, context=context, timeout=60)

    def post(self, path: str, body: Mapping[str, Any]) -> None:
        """Create an object; anything but success is an error."""
        self._http.request("POST", path, json.dumps(body), self._headers)
        answer = self._http.getresponse()
        text = answer.read()
        if answer.status != 201:
            raise RuntimeError(f"POST {path}: {answer.status}: {text[:500].decode(errors='replace')}")

    def watch(self, path: str) -> http.client.HTTPResponse:
        """The stream of events of a collection."""
        self._http.timeout = DEADLINE
        self._http.request("GET", path, headers=self._headers)
        return self._http.getresponse()

    def close(self) -> None:
        """End it, whoever reads from it."""
        if self._http.sock is not None:
            self._http.sock.shutdown(2)
        self._http.close()


class Clients:
    """So many threads, each with its connection."""

    def __init__(self, kubeconfig: Path, count: int) -> None:
        self._kubeconfig = kubeconfig
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def create(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> None:
        """Create all, as fast as the API server takes them."""
        for done in [self._pool.submit(self._post, path, body) for body in bodies]:
            done.result(DEADLINE)

    def _post(self, path: str, body: Mapping[str, Any]) -> None:
        if not hasattr(self._local, "connection"):
            self._local.connection = Connection(self._kubeconfig)
        self._local.connection.post(path, body)


class PodCount:
    """How many pods of a namespace have been seen running, by one watch that sees each of them once."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self._connection = Connection(kubeconfig)
        self._path = f"/api/v1/namespaces/{namespace}/pods?watch=1&fieldSelector=status.phase%3DRunning"
        self._count = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def reach(self, count: int) -> None:
        """Wait until so many have run."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._count >= count, DEADLINE):
                raise TimeoutError(f"{self._count} of {count} pods run after {DEADLINE:g} s")

    def _read(self) -> None:
        try:
            for line in self._connection.watch(self._path):
                if line.startswith(b'{"type":"ADDED"'):
                    with self._changed:
                        self._count += 1
                        self._changed.notify_all()
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            return  # closed by __exit__


class Answering:
    """One server that answers `/status` at every address of the loopback."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        body = json.dumps(ANSWER).encode()
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(answer)
            await writer.drain()
            writer.close()

        starting = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(serve, "0.0.0.0", PORT, backlog=1000), self._loop
        )
        starting.result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)


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
        assert self._process is not None
        return Used(round(self._cpu(), 1), round(self._peak() / 1024, 1))

    def busy_seconds(self, quiet: float) -> float:
        """Seconds from now until it has used hardly any CPU for `quiet` seconds, without those."""
        began = last = time.monotonic()
        before = self._cpu()
        while time.monotonic() - last < quiet:
            time.sleep(0.5)
            now = self._cpu()
            if now - before > 0.1:
                last = time.monotonic()
            before = now
        return last - began

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
