"""What a process shows of itself over HTTP: `/status`, `/healthz`, `/readyz`, `/metrics`, and `/report`, its journal.

GET only. No value that comes from a record, a token or a tensor of one is ever shown, and no expert counts.
"""

import json
import logging
import math
import resource
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pcmoe_node.errors import ConfigError, ResourceError
from pcmoe_node.figures import Figures
from pcmoe_node.metrics import of_node

log = logging.getLogger("pcmoe")

JSON, TEXT = "application/json", "text/plain"
Answer = tuple[int, str, bytes]
"""Code, content type, body."""
TERMINATION_BYTES = 4096
"""Kubernetes keeps no more of a termination message."""
TERMINATION_CHARACTERS = 640
"""Of an error: with six bytes for each, the most that JSON takes, they leave room for the rest."""


class State(Figures):
    """A node's figures as what it shows."""

    __slots__ = ()

    def as_json(self) -> dict[str, object]:
        """The object that `/status` returns. JSON has no NaN: such a loss is null, and named in `notFinite`."""
        losses = {"trainLoss": self.train_loss, "heldOutLoss": self.held_out_loss}
        unfit = [key for key, loss in losses.items() if loss is not None and not math.isfinite(loss)]
        gpu = self.gpu()
        return {
            "participant": self.participant,
            "phase": self.phase,
            "view": self.view,
            "committed": self.committed,
            "waitingFor": self.waiting_for,
            "viewsLost": self.views_lost,
            "reconnections": self.reconnections,
            "round": self.round,
            "rounds": self.rounds,
            "step": self.step,
            "steps": self.steps,
            **losses,
            **dict.fromkeys(unfit),
            "notFinite": unfit,
            "tokens": self.tokens,
            "tokensPerSecond": self.tokens_per_second,
            "bytesSent": sum(t.bytes_sent for t in self.traffic.values()),
            "bytesReceived": sum(t.bytes_received for t in self.traffic.values()),
            "peersConnected": self.peers_connected,
            "peers": self.peers,
            "memory": {
                **resident(),
                "tensorBytes": self.tensor_bytes,
                "gpuBytes": None if gpu is None else gpu.by_kind(),
            },
            "error": self.error,
        }

    def metrics(self) -> Iterator[Metric]:
        """Every metric of the node, once."""
        return of_node(self, resident())


def resident() -> dict[str, int]:
    """Resident bytes of this process: now, and at most so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        fields = Path("/proc/self/statm").read_text().split()
        now = int(fields[1]) * resource.getpagesize()
    except OSError:
        now = peak
    return {"rssBytes": now, "peakRssBytes": peak}


class _Server(ThreadingHTTPServer):
    def server_bind(self) -> None:
        """Bind without asking DNS for the own name, which can take seconds in a cluster."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class Page(Protocol):
    """What a process has to show."""

    def as_json(self) -> Mapping[str, object]:
        """The object that `/status` returns."""

    @property
    def phase(self) -> str:
        """What it does, in a word."""

    @property
    def ready(self) -> bool:
        """Whether it does its work."""

    def metrics(self) -> Iterator[Metric]:
        """Every metric, once."""


class StatusServer:
    """Serves one process's page on its own thread and registry."""

    def __init__(self, listen: str, page: Page, report: Callable[[], bytes]) -> None:
        """`report` makes what `/report` answers, JSON."""
        host, _, port = listen.rpartition(":")
        registry = CollectorRegistry()
        registry.register(_Metrics(page))

        paths: dict[str, Callable[[], Answer]] = {
            "/status": lambda: (200, JSON, json.dumps(page.as_json()).encode()),
            "/metrics": lambda: (200, CONTENT_TYPE_LATEST, generate_latest(registry)),
            "/report": lambda: (200, JSON, report()),
            "/healthz": lambda: (200, TEXT, b"ok\n"),
            "/readyz": lambda: (200 if page.ready else 503, TEXT, f"{page.phase}\n".encode()),
        }

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = paths.get(self.path, lambda: (404, TEXT, f"{', '.join(paths)}\n".encode()))
                self._reply(*answer())

            def _reply(self, code: int, content_type: str, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """No access log: a poll a second would drown the rest."""

        Handler.timeout = 5
        try:
            self._server = _Server((host.strip("[]"), int(port)), Handler)
        except (ValueError, OverflowError):
            raise ConfigError(f"status_listen: {listen} must be host:port") from None
        except OSError as error:
            raise ResourceError(f"status_listen: {listen} can't be listened on: {error.strerror}") from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="status", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Metrics(Collector):
    """A page's metrics, made at each scrape."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def collect(self) -> Iterator[Metric]:
        """Every metric of the process, once."""
        return self._page.metrics()


def write_termination(path: str | None, page: Page, exit_code: int) -> None:
    """Leave the last status where Kubernetes shows it: the pod is gone by the time anybody asks."""
    if path is None:
        return
    text = json.dumps({"exitCode": exit_code, **page.as_json()})
    if len(text.encode()) > TERMINATION_BYTES:
        error = str(page.as_json().get("error") or "")
        text = json.dumps(
            {"exitCode": exit_code, "error": error[:TERMINATION_CHARACTERS]}, ensure_ascii=False
        )
    try:
        Path(path).write_bytes(text.encode(errors="replace"))
    except OSError as error:
        log.warning("%s: the last status can't be written: %s", path, error.strerror)
