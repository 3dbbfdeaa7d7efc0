"""What a node shows of itself: `/status`, `/healthz`, `/readyz`, `/metrics`, and one line per round on disk.

HTTP GET only. No value that comes from a record, a token or a tensor of one is ever shown, and no expert counts.
"""

import json
import resource
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pcmoe_node.errors import ConfigError, ResourceError
from pcmoe_node.exchange.base import Traffic


@dataclass(slots=True)
class State:
    """The figures of `/status`; written by the run, read by the server."""

    participant: str
    rounds: int
    steps: int
    peers: int
    phase: str = "LOADING"
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


class StatusServer:
    """Serves one node's state on its own thread and registry."""

    def __init__(self, listen: str, state: State) -> None:
        host, _, port = listen.rpartition(":")
        registry = CollectorRegistry()
        registry.register(_Metrics(state))

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/status":
                    self._reply(200, "application/json", json.dumps(state.as_json()).encode())
                elif self.path == "/metrics":
                    self._reply(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                elif self.path == "/healthz":
                    self._reply(200, "text/plain", b"ok\n")
                elif self.path == "/readyz":
                    ready = state.phase not in ("LOADING", "CONNECTING", "FAILED")
                    self._reply(200 if ready else 503, "text/plain", f"{state.phase}\n".encode())
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
    """The state as Prometheus families, made at each scrape."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """Every metric of the node, once."""
        state = self._state
        yield GaugeMetricFamily("pcmoe_round", "Rounds finished.", state.round)
        yield GaugeMetricFamily("pcmoe_step", "Steps decided.", state.step)
        if state.train_loss is not None:
            help_text = "Mean training loss per token of the last finished round, own data."
            yield GaugeMetricFamily("pcmoe_train_loss", help_text, state.train_loss)
        if state.held_out_loss is not None:
            help_text = "Mean loss per token on held-out documents, own data."
            yield GaugeMetricFamily("pcmoe_held_out_loss", help_text, state.held_out_loss)
        yield CounterMetricFamily("pcmoe_tokens", "Supervised tokens trained on.", state.tokens)
        yield GaugeMetricFamily("pcmoe_peers_connected", "Peers connected.", state.peers_connected)
        sent = CounterMetricFamily("pcmoe_bytes_sent", "Bytes sent, padding included.", labels=["peer"])
        received = CounterMetricFamily(
            "pcmoe_bytes_received", "Bytes received, padding included.", labels=["peer"]
        )
        for peer, traffic in state.traffic.items():
            sent.add_metric([peer], traffic.bytes_sent)
            received.add_metric([peer], traffic.bytes_received)
        yield from (sent, received)
        memory = GaugeMetricFamily("pcmoe_memory_bytes", "Memory by kind.", labels=["kind"])
        now = resident()
        memory.add_metric(["rss"], now["rssBytes"])
        memory.add_metric(["rss_peak"], now["peakRssBytes"])
        memory.add_metric(["tensors"], state.tensor_bytes)
        for kind, count in state.gpu.items():
            memory.add_metric([f"gpu_{kind}"], count)
        yield memory


class Journal:
    """`rounds.jsonl` and `events.jsonl` of one node: append-only, one JSON object per line."""

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"{directory}: can't be used for logs: {error.strerror}") from error
        self._directory = directory

    def round(self, record: Mapping[str, object]) -> None:
        """A finished round."""
        self._append("rounds.jsonl", record)

    def event(self, kind: str, message: str) -> None:
        """Something an operator of this node may want to know later."""
        self._append("events.jsonl", {"time": time.time(), "kind": kind, "message": message})

    def _append(self, name: str, record: Mapping[str, object]) -> None:
        try:
            with open(self._directory / name, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise ResourceError(f"{self._directory / name}: can't be written: {error.strerror}") from error
