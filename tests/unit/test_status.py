"""What a node shows of itself over HTTP."""

import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pcmoe_node.errors import ConfigError, ResourceError
from pcmoe_node.exchange.base import Traffic
from pcmoe_node.figures import GpuFigures
from pcmoe_node.status import State, StatusServer, write_termination

STATUS_KEYS = {
    "participant",
    "phase",
    "view",
    "committed",
    "waitingFor",
    "viewsLost",
    "reconnections",
    "round",
    "rounds",
    "step",
    "steps",
    "trainLoss",
    "heldOutLoss",
    "notFinite",
    "tokens",
    "tokensPerSecond",
    "bytesSent",
    "bytesReceived",
    "peersConnected",
    "peers",
    "memory",
    "error",
}
REPORT = b'{"participant": "berlin", "rounds": [], "events": [], "truncated": false}'


@pytest.fixture
def state() -> State:
    return State(participant="berlin", rounds=20, steps=500, peers=2)


@pytest.fixture
def server(state: State) -> Iterator[StatusServer]:
    server = StatusServer("127.0.0.1:0", state, lambda: REPORT)
    yield server
    server.close()


def get(server: StatusServer, path: str, method: str = "GET") -> tuple[int, str, str]:
    """(code, content type, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.headers.get("Content-Type", ""), response.read().decode()
    finally:
        connection.close()


def train(state: State) -> None:
    """As if three rounds were over."""
    state.phase, state.round, state.step = "TRAINING", 3, 77
    state.train_loss, state.held_out_loss = 2.5, 2.75
    state.tokens, state.tokens_per_second = 153_600, 812.5
    state.peers_connected, state.tensor_bytes = 2, 4096
    state.view, state.committed, state.views_lost, state.reconnections = 4, 2, 3, 7
    state.traffic = {"lyon": Traffic(10, 20, 1, 2, 3), "porto": Traffic(5, 6, 1, 1, 1)}


def test_status_shows_the_state_as_json(server: StatusServer, state: State) -> None:
    train(state)
    code, kind, body = get(server, "/status")
    shown = json.loads(body)
    assert (code, kind) == (200, "application/json")
    assert set(shown) == STATUS_KEYS
    memory = shown.pop("memory")
    assert set(memory) == {"rssBytes", "peakRssBytes", "tensorBytes", "gpuBytes"}
    assert 0 < memory["rssBytes"] <= memory["peakRssBytes"] * 1.1 and memory["tensorBytes"] == 4096
    assert shown == {
        "participant": "berlin",
        "phase": "TRAINING",
        "view": 4,
        "committed": 2,
        "waitingFor": None,
        "viewsLost": 3,
        "reconnections": 7,
        "round": 3,
        "rounds": 20,
        "step": 77,
        "steps": 500,
        "trainLoss": 2.5,
        "heldOutLoss": 2.75,
        "notFinite": [],
        "tokens": 153_600,
        "tokensPerSecond": 812.5,
        "bytesSent": 15,
        "bytesReceived": 26,
        "peersConnected": 2,
        "peers": 2,
        "error": None,
    }


def test_a_status_says_null_for_what_is_not_known_yet(server: StatusServer) -> None:
    shown = json.loads(get(server, "/status")[2])
    assert shown["trainLoss"] is None and shown["heldOutLoss"] is None and shown["notFinite"] == []
    assert shown["tokensPerSecond"] is None and shown["bytesSent"] == 0
    assert shown["memory"]["gpuBytes"] is None


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_status_stays_json_when_a_loss_is_no_number_and_says_which(
    server: StatusServer, state: State, loss: float
) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    state.train_loss, state.held_out_loss = loss, 2.5
    shown = json.loads(get(server, "/status")[2], parse_constant=refuse)
    assert (shown["trainLoss"], shown["heldOutLoss"], shown["notFinite"]) == (None, 2.5, ["trainLoss"])


def test_a_status_shows_the_gpus_memory_where_there_is_one(server: StatusServer, state: State) -> None:
    figures = GpuFigures(state="ok", torch_allocated=5, torch_reserved=6, torch_peak=7, memory_used=8)
    state.gpu = lambda: figures
    shown = json.loads(get(server, "/status")[2])["memory"]["gpuBytes"]
    assert shown == {"allocated": 5, "reserved": 6, "used": 8}


def test_metrics_are_served_as_prometheus_reads_them(server: StatusServer, state: State) -> None:
    train(state)
    code, kind, body = get(server, "/metrics")
    assert code == 200 and kind.startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(body)}
    assert families["pcmoe_node_round"].samples[0].value == 3
    assert {name.startswith("pcmoe_node_") for name in families} == {True}


def test_a_report_is_served_as_it_is_made(server: StatusServer) -> None:
    assert get(server, "/report") == (200, "application/json", REPORT.decode())


@pytest.mark.parametrize(
    ("phase", "code"),
    [
        ("LOADING", 503),
        ("WAITING", 503),
        ("CONNECTING", 503),
        ("TRAINING", 200),
        ("EVALUATING", 200),
        ("CHECKPOINT", 200),
        ("DONE", 200),
        ("FAILED", 503),
    ],
)
def test_a_node_is_ready_once_it_is_connected_and_alive_from_the_start(
    server: StatusServer, state: State, phase: str, code: int
) -> None:
    state.phase = phase
    assert get(server, "/readyz")[::2] == (code, f"{phase}\n")
    assert get(server, "/healthz")[::2] == (200, "ok\n")


@pytest.mark.parametrize(
    "path", ["/", "/status/", "/status?all", "/report/1", "/metrics/experts", "/../etc/passwd"]
)
def test_any_other_path_is_not_found(server: StatusServer, path: str) -> None:
    assert get(server, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed_over_http(server: StatusServer, method: str) -> None:
    assert get(server, "/status", method)[0] == 501


def test_a_client_that_says_nothing_keeps_nobody_waiting(server: StatusServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5):
        assert get(server, "/healthz")[0] == 200


def test_a_port_in_use_is_a_resource_error_naming_it(server: StatusServer, state: State) -> None:
    with pytest.raises(ResourceError) as caught:
        StatusServer(f"127.0.0.1:{server.port}", state, lambda: REPORT)
    expected = f"status_listen: 127.0.0.1:{server.port} can't be listened on: Address already in use"
    assert str(caught.value) == expected


@pytest.mark.parametrize("listen", ["localhost", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_a_configuration_error(listen: str, state: State) -> None:
    with pytest.raises(ConfigError, match=f"status_listen: {re.escape(listen)} must be host:port"):
        StatusServer(listen, state, lambda: REPORT)


def test_the_port_is_free_again_once_the_server_is_closed(state: State) -> None:
    first = StatusServer("127.0.0.1:0", state, lambda: REPORT)
    first.close()
    again = StatusServer(f"127.0.0.1:{first.port}", state, lambda: REPORT)
    assert again.port == first.port
    again.close()


def test_the_last_status_is_left_where_kubernetes_shows_it_and_is_never_too_long(tmp_path: Path) -> None:
    state = State(participant="berlin", rounds=3, steps=9, peers=1, error="PeerLostError: lyon is lost")
    path = tmp_path / "termination"
    write_termination(str(path), state, 75)
    told = json.loads(path.read_text())
    assert (told["exitCode"], told["error"]) == (75, "PeerLostError: lyon is lost")
    state.waiting_for = "x" * 5000
    write_termination(str(path), state, 75)
    assert len(path.read_bytes()) <= 4096
    assert json.loads(path.read_text()) == {"exitCode": 75, "error": "PeerLostError: lyon is lost"}
    state.error = "\udce9" * 5000  # of a file's name that is no UTF-8
    write_termination(str(path), state, 75)
    assert json.loads(path.read_text())["error"] == "?" * 640
    for long in ("\0" * 5000, "\U0001f3e5" * 5000, '"' * 5000):
        state.error = long
        write_termination(str(path), state, 75)
        assert len(path.read_bytes()) <= 4096
        assert json.loads(path.read_text())["error"] == long[:640], "it is cut, and still JSON"
    write_termination(str(tmp_path / "no" / "folder"), state, 75)
    write_termination(None, state, 75)
