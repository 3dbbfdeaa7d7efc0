"""What a node shows of itself over HTTP, and what it writes down once a round."""

import http.client
import json
import math
import re
import socket
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pcmoe_node.errors import ConfigError, ResourceError
from pcmoe_node.exchange.base import Traffic
from pcmoe_node.status import Journal, State, StatusServer, write_termination

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
    "tokens",
    "tokensPerSecond",
    "bytesSent",
    "bytesReceived",
    "peersConnected",
    "peers",
    "memory",
    "error",
}
METRICS = {
    "pcmoe_round",
    "pcmoe_committed_round",
    "pcmoe_view",
    "pcmoe_views_lost",
    "pcmoe_reconnections",
    "pcmoe_step",
    "pcmoe_train_loss",
    "pcmoe_held_out_loss",
    "pcmoe_tokens",
    "pcmoe_peers_connected",
    "pcmoe_bytes_sent",
    "pcmoe_bytes_received",
    "pcmoe_memory_bytes",
}


@pytest.fixture
def state() -> State:
    return State(participant="berlin", rounds=20, steps=500, peers=2)


@pytest.fixture
def server(state: State) -> Iterator[StatusServer]:
    server = StatusServer("127.0.0.1:0", state)
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
        "tokens": 153_600,
        "tokensPerSecond": 812.5,
        "bytesSent": 15,
        "bytesReceived": 26,
        "peersConnected": 2,
        "peers": 2,
        "error": None,
    }


def test_metrics_are_read_by_a_prometheus_parser(server: StatusServer, state: State) -> None:
    train(state)
    code, kind, body = get(server, "/metrics")
    assert code == 200 and kind.startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(body)}
    assert set(families) == METRICS
    assert all(family.documentation for family in families.values())
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert samples["pcmoe_round", ()] == 3 and samples["pcmoe_step", ()] == 77
    assert samples["pcmoe_view", ()] == 4 and samples["pcmoe_committed_round", ()] == 2
    assert samples["pcmoe_views_lost_total", ()] == 3 and samples["pcmoe_reconnections_total", ()] == 7
    assert samples["pcmoe_train_loss", ()] == 2.5 and samples["pcmoe_held_out_loss", ()] == 2.75
    assert samples["pcmoe_tokens_total", ()] == 153_600
    assert samples["pcmoe_bytes_sent_total", (("peer", "lyon"),)] == 10
    assert samples["pcmoe_bytes_received_total", (("peer", "porto"),)] == 6
    assert samples["pcmoe_memory_bytes", (("kind", "tensors"),)] == 4096
    assert families["pcmoe_tokens"].type == "counter" and families["pcmoe_round"].type == "gauge"
    assert all(math.isfinite(value) for value in samples.values())


def test_what_is_not_known_yet_is_left_out_of_the_metrics_and_null_in_the_status(
    server: StatusServer,
) -> None:
    names = {family.name for family in text_string_to_metric_families(get(server, "/metrics")[2])}
    assert names == METRICS - {"pcmoe_train_loss", "pcmoe_held_out_loss"}
    shown = json.loads(get(server, "/status")[2])
    assert shown["trainLoss"] is None and shown["heldOutLoss"] is None
    assert shown["tokensPerSecond"] is None and shown["bytesSent"] == 0


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


@pytest.mark.parametrize("path", ["/", "/status/", "/status?all", "/metrics/experts", "/../etc/passwd"])
def test_any_other_path_is_not_found(server: StatusServer, path: str) -> None:
    assert get(server, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed_over_http(server: StatusServer, method: str) -> None:
    assert get(server, "/status", method)[0] == 501


def test_a_client_that_says_nothing_keeps_nobody_waiting(server: StatusServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5):
        assert get(server, "/healthz")[0] == 200


def test_nothing_about_experts_is_shown(server: StatusServer, state: State) -> None:
    """Counts of experts or of tokens per expert would say what the data is about."""
    train(state)
    shown = get(server, "/status")[2] + get(server, "/metrics")[2]
    assert not re.search("expert|rout|slot|layer", shown, re.IGNORECASE)
    labels = set(re.findall(r'(\w+)="', get(server, "/metrics")[2]))
    assert labels == {"peer", "kind"}
    assert not [f.name for f in fields(State) if re.search("expert|rout|slot", f.name)]


def test_a_port_in_use_is_a_resource_error_naming_it(server: StatusServer, state: State) -> None:
    with pytest.raises(ResourceError) as caught:
        StatusServer(f"127.0.0.1:{server.port}", state)
    expected = f"status_listen: 127.0.0.1:{server.port} can't be listened on: Address already in use"
    assert str(caught.value) == expected


@pytest.mark.parametrize("listen", ["localhost", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_a_configuration_error(listen: str, state: State) -> None:
    with pytest.raises(ConfigError, match=f"status_listen: {re.escape(listen)} must be host:port"):
        StatusServer(listen, state)


def test_the_port_is_free_again_once_the_server_is_closed(state: State) -> None:
    first = StatusServer("127.0.0.1:0", state)
    first.close()
    again = StatusServer(f"127.0.0.1:{first.port}", state)
    assert again.port == first.port
    again.close()


def test_the_journal_appends_one_object_per_line(tmp_path: Path) -> None:
    for number in (1, 2):
        journal = Journal(tmp_path / "log")
        journal.round({"round": number, "trainLoss": None})
        journal.event("Failed", "berlin\nfell silent")
    rounds = (tmp_path / "log" / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in rounds] == [
        {"round": 1, "trainLoss": None},
        {"round": 2, "trainLoss": None},
    ]
    events = (tmp_path / "log" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["message"] for line in events] == ["berlin\nfell silent"] * 2


def test_a_journal_that_cannot_be_written_is_a_resource_error_naming_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    (tmp_path / "rounds.jsonl").mkdir()
    with pytest.raises(ResourceError, match=r"rounds\.jsonl: can't be written: Is a directory"):
        journal.round({"round": 1})
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"file: .*File exists"):
        Journal(tmp_path / "file")


def test_a_line_that_a_killed_process_left_half_written_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / "rounds.jsonl").write_text('{"round": 1}\n{"rou')
    Journal(tmp_path).round({"round": 2})
    lines = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"round": 1}, {"round": 2}]


def test_an_event_that_can_not_be_written_is_no_reason_to_end_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path)
    (tmp_path / "events.jsonl").mkdir()
    journal.event("ViewLeft", "berlin is lost")
    assert "event ViewLeft (berlin is lost) is not written down" in caplog.text


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
    write_termination(str(tmp_path / "no" / "folder"), state, 75)
    write_termination(None, state, 75)
