"""What a real run shows and writes down, held to the list of what may leave (tests/exposed.py)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.exposed import (
    EVENT_KINDS,
    EVENTS,
    LABELS,
    METRICS,
    ROUNDS,
    SHARE,
    STATUS,
    WIRE,
    lines,
    paths,
    unexplained,
)
from tests.training.runs import Case, configs_of, run_local

from pcmoe_node import rounds
from pcmoe_node.config import NodeConfig
from pcmoe_node.journal import Journal
from pcmoe_node.status import State

Labels = tuple[tuple[str, str], ...]
Samples = Mapping[tuple[str, Labels], float]
"""Values by a metric's name and its labels."""
STEPS, ROUNDS_RUN = 3, 2
OF_ROWS = frozenset({WIRE, SHARE})
"""Why something may leave that follows from how many rows went to whom: it changes only at the end of a round."""


@dataclass
class Seen:
    """What a node showed, after every step."""

    pages: list[tuple[int, Samples]] = field(default_factory=list)
    """(rounds finished, metrics)."""
    statuses: list[tuple[int, dict[str, object]]] = field(default_factory=list)


def samples(state: State) -> Samples:
    """All that a scrape would find."""
    return {
        (family.name, tuple(sample.labels.items())): sample.value
        for family in state.metrics()
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[NodeConfig], Mapping[str, Seen]]:
    """Two nodes, two rounds of three steps; what they showed meanwhile."""
    configs = configs_of(
        Case(rounds=ROUNDS_RUN, steps_per_round=STEPS, micro_batches=1), tmp_path_factory.mktemp("run")
    )
    seen = {config.participant: Seen() for config in configs}
    progress = rounds._progress

    def watched(of: rounds.Run) -> None:
        progress(of)
        mine = seen[of.state.participant]
        mine.pages.append((of.state.round, samples(of.state)))
        mine.statuses.append((of.state.round, of.state.as_json()))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rounds, "_progress", watched)
        run_local(configs)
    return configs, seen


Run = tuple[list[NodeConfig], Mapping[str, Seen]]


def test_all_that_follows_from_rows_stays_as_it_is_while_a_round_lasts(run: Run) -> None:
    _, seen = run
    for mine in seen.values():
        assert len(mine.pages) == ROUNDS_RUN * STEPS
        within: dict[int, set[str]] = {}
        for finished, page in mine.pages:
            kept = {key: value for key, value in page.items() if METRICS[key[0]] in OF_ROWS}
            within.setdefault(finished, set()).add(str(sorted(kept.items())))
        assert [len(values) for values in within.values()] == [1] * ROUNDS_RUN
        assert len(set.union(*within.values())) == ROUNDS_RUN, "at the end of a round it changes"


def test_the_same_holds_for_the_status(run: Run) -> None:
    _, seen = run
    for mine in seen.values():
        within: dict[int, set[str]] = {}
        for finished, status in mine.statuses:
            kept = {name: status[name] for name, why in STATUS.items() if why in OF_ROWS}
            within.setdefault(finished, set()).add(json.dumps(kept))
        assert [len(values) for values in within.values()] == [1] * ROUNDS_RUN


def test_what_has_a_label_of_a_peer_is_of_a_round_or_of_its_connection(run: Run) -> None:
    _, seen = run
    for mine in seen.values():
        for name, labels in (key for _, page in mine.pages for key in page):
            of_a_peer = any(label == "peer" for label, _ in labels)
            assert not of_a_peer or METRICS[name] in OF_ROWS or name.startswith("pcmoe_node_peer_"), name


def test_every_metric_and_field_of_a_status_has_a_reason_to_leave(run: Run) -> None:
    configs, seen = run
    names = [config.participant for config in configs]
    for mine in seen.values():
        assert unexplained({name for _, page in mine.pages for name, _ in page}, METRICS, "/metrics") == []
        found = {path for _, status in mine.statuses for path in paths(status, names)}
        assert unexplained(found, STATUS, "/status") == []


def test_every_field_of_rounds_and_events_has_a_reason_to_leave(run: Run) -> None:
    configs, _ = run
    names = [config.participant for config in configs]
    for config in configs:
        log = Path(config.log_directory)
        recorded = lines((log / "rounds.jsonl").read_text())
        assert len(recorded) == ROUNDS_RUN + 1
        found = {path for each in recorded for path in paths(each, names)}
        assert unexplained(found, ROUNDS, "rounds.jsonl") == []
        events = lines((log / "events.jsonl").read_text())
        assert unexplained({path for each in events for path in paths(each)}, EVENTS, "events.jsonl") == []
        assert {each["kind"] for each in events} <= EVENT_KINDS


def test_what_a_node_answers_for_a_report_is_its_journal_and_nothing_more(run: Run) -> None:
    configs, _ = run
    for config in configs:
        answer = json.loads(Journal(Path(config.log_directory)).report(config.participant))
        assert set(answer) == {"participant", "rounds", "events", "truncated"}
        assert (answer["participant"], answer["truncated"]) == (config.participant, False)
        for key in ("rounds", "events"):
            assert answer[key] == lines((Path(config.log_directory) / f"{key}.jsonl").read_text())


def test_peers_are_the_only_names_that_a_run_brings_into_labels(run: Run) -> None:
    configs, seen = run
    names = frozenset(config.participant for config in configs)
    for mine in seen.values():
        for label, value in {pair for _, page in mine.pages for _, labels in page for pair in labels}:
            known = names if label == "peer" else LABELS.get(label)
            assert label == "version" or (known and value in known), f"{label}={value!r}"
