"""What a node shows while it really trains: where seconds went, and only once a round what would tell of experts."""

import json
import threading
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from tests.exchange.rigs import coordinating, together
from tests.training.runs import Case, configs_of, rounds_of, run_local

import pcmoe_node.__main__ as entry
from pcmoe_node import rounds
from pcmoe_node.config import NodeConfig
from pcmoe_node.coordination.session import TlsPlace
from pcmoe_node.coordination.table import LocalTable
from pcmoe_node.errors import StorageError
from pcmoe_node.figures import SPENT_ON
from pcmoe_node.host import Host
from pcmoe_node.journal import Journal
from pcmoe_node.rounds import Run
from pcmoe_node.status import State

Samples = dict[tuple[str, str], float]
OF_A_ROUND = (
    "sent_bytes_total",
    "received_bytes_total",
    "reply_seconds_total",
    "replies_total",
    "remote_token_share",
)
"""What follows from how many rows went to a peer."""
OF_A_STEP = ("step", "tokens_total", "phase_seconds_total")


def values(families: Iterable[Metric], prefix: str) -> Samples:
    """Value by (name without prefix, label's value)."""
    return {
        (sample.name.removeprefix(prefix), "".join(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def samples(state: State) -> Samples:
    """What a node shows."""
    return values(state.metrics(), "pcmoe_node_")


def of(found: Samples, names: tuple[str, ...]) -> Samples:
    """The samples of some metrics."""
    return {key: value for key, value in found.items() if key[0] in names}


class Looker:
    """Looks at every node's page at each step, and keeps the last one of each node."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: dict[str, list[tuple[int, Samples, dict[str, object]]]] = {}
        """Of each node: (the round it is in, metrics, status) at the end of each step."""
        real = rounds._progress

        def progress(run: Run) -> None:
            self.look(run.state)
            real(run)
            self.look(run.state)

        monkeypatch.setattr(rounds, "_progress", progress)

    def look(self, state: State) -> None:
        """Note what it shows."""
        entries = self.seen.setdefault(state.participant, [])
        entries.append((state.round + 1, samples(state), state.as_json()))


@pytest.fixture
def looker(monkeypatch: pytest.MonkeyPatch) -> Looker:
    return Looker(monkeypatch)


def run_with_states(configs: list[NodeConfig]) -> tuple[list[State], Samples]:
    """All nodes in this process over mutual TLS; what each of them knew at the end, and the coordinator's metrics."""
    states = [entry._state(config) for config in configs]

    def live(index: int) -> None:
        config = configs[index]
        entry._live(config, TlsPlace(config), states[index], Journal(Path(config.log_directory)), 0)

    with coordinating(configs) as server:
        together([partial(live, index) for index in range(len(configs))])
        return states, values(server.page.metrics(), "pcmoe_coordinator_")


@pytest.mark.parametrize("schedule", ["Concurrent", "Sequential"])
def test_seconds_by_phase_are_all_that_passed_and_no_more(tmp_path: Path, schedule: str) -> None:
    configs = configs_of(Case(schedule=schedule, checkpointing=True), tmp_path)
    began = time.perf_counter()
    run_local(configs)
    passed = time.perf_counter() - began
    mostly = set(SPENT_ON) - {"exchange_wait", "vote"}  # a node whose peer is quick may not wait at all
    for config in configs:
        records = rounds_of(config)
        for record in records:
            spent = record["secondsByPhase"]
            assert sum(spent.values()) == pytest.approx(record["seconds"])
            work = {"evaluation", "host_compute", "other"} if record["round"] == 0 else mostly
            assert {phase for phase, seconds in spent.items() if seconds > 0} - {
                "exchange_wait",
                "vote",
            } == work
        assert sum(record["seconds"] for record in records) < passed
    waits = [record["secondsByPhase"] for config in configs for record in rounds_of(config)]
    for phase in ("exchange_wait", "vote"):
        assert sum(spent.get(phase, 0.0) for spent in waits) > 0


def test_while_a_node_computes_as_host_it_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the request came while it was waiting: what its host takes is counted there, and there alone."""
    pause, slow = 0.02, threading.Event()
    real = Host.forward

    def forward(host: Host, *given: Any) -> Any:
        if threading.current_thread().name == "slow":
            slow.wait(pause)  # nobody sets it: a deadline
        return real(host, *given)

    monkeypatch.setattr(Host, "forward", forward)
    configs = configs_of(Case(rounds=1, steps_per_round=3), tmp_path)
    table = LocalTable(configs)

    def run(index: int) -> None:
        if index == 1:
            threading.current_thread().name = "slow"
        entry.run_node(configs[index], table.place(index))

    together([partial(run, index) for index in range(2)])
    late = rounds_of(configs[1])[-1]["secondsByPhase"]
    asked = 3 * 2 * 2 * 2  # steps, micro-batches, spread layers, owners
    assert late["host_compute"] >= asked * pause
    assert sum(late.values()) - late["host_compute"] >= late.get("exchange_wait", 0.0) + late.get("vote", 0.0)


def test_what_says_how_many_rows_went_to_a_peer_changes_only_at_the_end_of_a_round(
    tmp_path: Path, looker: Looker
) -> None:
    """Step by step it would be a count of the experts that the data asks for. So would the status."""
    run_local(configs_of(Case(rounds=3, steps_per_round=3), tmp_path))
    for entries in looker.seen.values():
        by_round: dict[int, list[Samples]] = {}
        status: dict[int, set[str]] = {}
        for number, found, shown in entries:
            by_round.setdefault(number, []).append(of(found, OF_A_ROUND))
            status.setdefault(number, set()).add(json.dumps([shown["bytesSent"], shown["bytesReceived"]]))
        assert sorted(by_round) == [1, 2, 3]
        for number, pages in by_round.items():
            assert len(pages) == 6 and all(page == pages[0] for page in pages)
            assert len(status[number]) == 1
        sent = [
            page[0]["sent_bytes_total", peer] for page in by_round.values() for _, peer in list(page[0])[:1]
        ]
        assert sent == sorted(set(sent))


def test_what_may_be_told_at_every_step_is(tmp_path: Path, looker: Looker) -> None:
    run_local(configs_of(Case(rounds=1, steps_per_round=4), tmp_path))
    for entries in looker.seen.values():
        ends = [of(found, OF_A_STEP) for _, found, _ in entries[1::2]]
        assert len({json.dumps(sorted(end.items())) for end in ends}) == 4
        for key in ends[0]:
            values = [end[key] for end in ends]
            assert values == sorted(values)


def test_every_figure_of_a_run_is_that_of_the_run(tmp_path: Path, looker: Looker) -> None:
    case = Case(rounds=2, steps_per_round=4, micro_batches=3, in_flight=2)
    configs = configs_of(case, tmp_path)
    states, coordinator = run_with_states(configs)
    assert coordinator["views_total", ""] == 1 and coordinator["committed_round", ""] == 2
    assert coordinator["certificate_expiry_timestamp_seconds", ""] > time.time()
    assert 0.0 < coordinator["last_commit_timestamp_seconds", ""] <= time.time()
    for config, state in zip(configs, states, strict=True):
        records = rounds_of(config)
        found, (peer,) = samples(state), state.peer_names
        total = {
            key: sum(record["traffic"][peer][key] for record in records)
            for key in ("bytesSent", "bytesReceived")
        }
        assert found["sent_bytes_total", peer] == total["bytesSent"] > 0
        assert found["received_bytes_total", peer] == total["bytesReceived"] > 0
        evaluated = -(-2 // case.sequences)
        asked = 2 * (case.rounds * case.steps_per_round * case.micro_batches * 2 + 3 * evaluated)
        assert (
            found["replies_total", peer] == asked
        )  # of two spread layers, forward and backward; three evaluations
        assert 0.0 < found["reply_seconds_total", peer] < 120.0 * asked
        answers = [record["traffic"][peer] for record in records]
        assert sum(each["replies"] for each in answers) == asked
        assert sum(each["replySeconds"] for each in answers) == pytest.approx(
            found["reply_seconds_total", peer]
        )
        assert 0.0 < records[-1]["remoteTokenShare"] < 1.0
        assert found["remote_token_share", ""] == records[-1]["remoteTokenShare"]
        assert found["tokens_total", ""] == sum(record["tokens"] for record in records) == state.tokens
        assert found["checkpoint_bytes", ""] == records[-1]["checkpointBytes"] == stored_bytes(config)
        assert found["checkpoint_seconds", ""] == records[-1]["checkpointSeconds"] > 0.0
        assert records[0]["checkpointBytes"] is records[0]["checkpointSeconds"] is None
        assert [record["gpus"] for record in records] == [0, 0, 0]
        seconds = [record["seconds"] for record in records[1:]]
        assert found["usual_round_seconds", ""] == pytest.approx(sum(seconds) / 2)
        assert found["phase", "DONE"] == 1 and found["in_flight_limit", ""] == 2
        assert (
            found["certificate_expiry_timestamp_seconds", ""]
            > found["last_commit_timestamp_seconds", ""]
            > 1.7e9
        )
        assert found["committed_round", ""] == found["round", ""] == found["rounds", ""] == 2
        during = [page for _, page, _ in looker.seen[config.participant]]
        assert all(page["peer_up", peer] == 1.0 for page in during)
        assert 0.0 < during[-1]["peer_rtt_seconds", peer] < 5.0
        assert found["peer_up", peer] == 0.0 and found["requests_in_flight", ""] == 0.0


def stored_bytes(config: NodeConfig) -> int:
    """Size of the newest round on disk."""
    newest = max(Path(config.checkpoint_directory).glob("round-*"))
    return sum(path.stat().st_size for path in newest.iterdir())


def test_a_round_that_cannot_be_stored_is_not_shown_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pcmoe_node.checkpoint.save_file", full)
    seen: list[State] = []
    real = entry._state

    def noted(config: NodeConfig) -> State:
        seen.append(real(config))
        return seen[-1]

    monkeypatch.setattr(entry, "_state", noted)
    configs = configs_of(Case(n=1, rounds=1, steps_per_round=1), tmp_path)
    with pytest.raises(StorageError, match="No space left on device"):
        run_local(configs)
    found = samples(seen[0])
    assert found["phase", "FAILED"] == 1
    assert ("checkpoint_bytes", "") not in found and ("last_commit_timestamp_seconds", "") not in found


def test_a_node_that_resumes_counts_the_last_commit_from_its_start(tmp_path: Path) -> None:
    configs = configs_of(Case(rounds=1, steps_per_round=1), tmp_path)
    first, _ = run_with_states(configs)
    longer = [
        config.model_copy(update={"training": config.training.model_copy(update={"rounds": 2})})
        for config in configs
    ]
    second, _ = run_with_states(longer)
    for before, after in zip(first, second, strict=True):
        assert before.last_commit is not None and after.last_commit is not None
        assert after.last_commit > before.last_commit and after.tokens > after.tokens_trained > 0
