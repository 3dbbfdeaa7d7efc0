"""What a process shows of itself: `/status`, `/healthz`, `/readyz`, `/metrics`, and lines of rounds and events on disk.

HTTP GET only. No value that comes from a record, a token or a tensor of one is ever shown, and no expert counts.
"""

import json
import logging
import resource
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pcmoe_node.errors import ConfigError, ResourceError
from pcmoe_node.exchange.base import Traffic

log = logging.getLogger("pcmoe")

NOT_READY = ("LOADING", "WAITING", "CONNECTING", "FAILED")
TERMINATION_BYTES = 4096
"""Kubernetes keeps no more of a termination message."""


@dataclass(slots=True)
class State:
    """The figures of `/status`; written by the run, read by the server."""

    participant: str
    rounds: int
    steps: int
    peers: int
    phase: str = "LOADING"
    view: int = 0
    committed: int = 0
    waiting_for: str | None = None
    """Who keeps the view from forming, for people; None while this node is in one."""
    views_lost: int = 0
    """Times that this node was in a view and had to leave it."""
    reconnections: int = 0
    """Connections within a view that took the place of one that broke."""
    round: int = 0
    step: int = 0
    train_loss: float | None = None
    held_out_loss: float | None = None
    tokens: int = 0
    tokens_per_second: float | None = None
    peers_connected: int = 0
    tensor_bytes: int = 0
    gpu: Mapping[str, int] = field(default_factory=dict)
    """GPU memory in bytes by kind: allocated, reserved (torch), used, total (the whole device); empty without one."""
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    error: str | None = None

    def as_json(self) -> dict[str, object]:
        """The object that `/status` returns."""
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
            "trainLoss": self.train_loss,
            "heldOutLoss": self.held_out_loss,
            "tokens": self.tokens,
            "tokensPerSecond": self.tokens_per_second,
            "bytesSent": sum(t.bytes_sent for t in self.traffic.values()),
            "bytesReceived": sum(t.bytes_received for t in self.traffic.values()),
            "peersConnected": self.peers_connected,
            "peers": self.peers,
            "memory": {**resident(), "tensorBytes": self.tensor_bytes, "gpuBytes": dict(self.gpu) or None},
            "error": self.error,
        }

    @property
    def ready(self) -> bool:
        """Whether this node is in a view."""
        return self.phase not in NOT_READY

    def metrics(self) -> Iterator[Metric]:
        """Every metric of the node, once."""
        yield GaugeMetricFamily("pcmoe_round", "Rounds finished.", self.round)
        yield GaugeMetricFamily("pcmoe_committed_round", "Newest round that everybody holds.", self.committed)
        yield GaugeMetricFamily("pcmoe_view", "Number of the view; rises with every loss.", self.view)
        yield CounterMetricFamily("pcmoe_views_lost", "Views that had to be left.", self.views_lost)
        yield CounterMetricFamily("pcmoe_reconnections", "Connections made anew.", self.reconnections)
        yield GaugeMetricFamily("pcmoe_step", "Steps decided.", self.step)
        if self.train_loss is not None:
            help_text = "Mean training loss per token of the last finished round, own data."
            yield GaugeMetricFamily("pcmoe_train_loss", help_text, self.train_loss)
        if self.held_out_loss is not None:
            help_text = "Mean loss per token on held-out documents, own data."
            yield GaugeMetricFamily("pcmoe_held_out_loss", help_text, self.held_out_loss)
        yield CounterMetricFamily("pcmoe_tokens", "Supervised tokens trained on.", self.tokens)
        yield GaugeMetricFamily("pcmoe_peers_connected", "Peers connected.", self.peers_connected)
        sent = CounterMetricFamily("pcmoe_bytes_sent", "Bytes sent, padding included.", labels=["peer"])
        received = CounterMetricFamily(
            "pcmoe_bytes_received", "Bytes received, padding included.", labels=["peer"]
        )
        for peer, traffic in self.traffic.items():
            sent.add_metric([peer], traffic.bytes_sent)
            received.add_metric([peer], traffic.bytes_received)
        yield from (sent, received)
        memory = GaugeMetricFamily("pcmoe_memory_bytes", "Memory by kind.", labels=["kind"])
        now = resident()
        memory.add_metric(["rss"], now["rssBytes"])
        memory.add_metric(["rss_peak"], now["peakRssBytes"])
        memory.add_metric(["tensors"], self.tensor_bytes)
        for kind, count in self.gpu.items():
            memory.add_metric([f"gpu_{kind}"], count)
        yield memory


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

    def __init__(self, listen: str, page: Page) -> None:
        host, _, port = listen.rpartition(":")
        registry = CollectorRegistry()
        registry.register(_Metrics(page))

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/status":
                    self._reply(200, "application/json", json.dumps(page.as_json()).encode())
                elif self.path == "/metrics":
                    self._reply(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                elif self.path == "/healthz":
                    self._reply(200, "text/plain", b"ok\n")
                elif self.path == "/readyz":
                    self._reply(200 if page.ready else 503, "text/plain", f"{page.phase}\n".encode())
                else:
                    self._reply(404, "text/plain", b"/status, /metrics, /healthz or /readyz\n")

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


class Journal:
    """`rounds.jsonl` and `events.jsonl` of one node: append-only, one JSON object per line."""

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"{directory}: can't be used for logs: {error.strerror}") from error
        self._directory = directory
        for name in ("rounds.jsonl", "events.jsonl"):
            self._mend(directory / name)

    def _mend(self, path: Path) -> None:
        """Take away a last line that a killed process left half written: what follows would make it a wrong one."""
        try:
            with open(path, "r+b") as file:
                whole = file.read()
                file.truncate(whole.rfind(b"\n") + 1)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ResourceError(f"{path}: can't be used: {error.strerror}") from error

    def round(self, record: Mapping[str, object]) -> None:
        """A finished round."""
        self._append("rounds.jsonl", record)

    def event(self, kind: str, message: str) -> None:
        """Something people may want to know later. That it can't be written is no reason to end a run."""
        try:
            self._append("events.jsonl", {"time": time.time(), "kind": kind, "message": message})
        except ResourceError as error:
            log.warning("event %s (%s) is not written down: %s", kind, message, error)

    def _append(self, name: str, record: Mapping[str, object]) -> None:
        try:
            with open(self._directory / name, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise ResourceError(f"{self._directory / name}: can't be written: {error.strerror}") from error


def write_termination(path: str | None, page: Page, exit_code: int) -> None:
    """Leave the last status where Kubernetes shows it: the pod is gone by the time anybody asks."""
    if path is None:
        return
    text = json.dumps({"exitCode": exit_code, **page.as_json()})
    if len(text.encode()) > TERMINATION_BYTES:
        text = json.dumps({"exitCode": exit_code, "error": page.as_json().get("error")})
    try:
        Path(path).write_bytes(text.encode()[:TERMINATION_BYTES])
    except OSError as error:
        log.warning("%s: the last status can't be written: %s", path, error.strerror)
