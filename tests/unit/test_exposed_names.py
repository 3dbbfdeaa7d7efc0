"""Everything that a process shows has a reason to leave: names, labels, fields. The rule is in tests/exposed.py."""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from tests import exposed
from tests.exposed import (
    ANY,
    COORDINATOR_STATUS,
    EVENT_KINDS,
    EVENTS,
    EXCEPTED,
    FORBIDDEN,
    LABELS,
    LOG_FIELDS,
    METRICS,
    OPEN_FIELDS,
    OTHER_LABELS,
    REASONS,
    REPORT,
    ROUNDS,
    STATUS,
    Names,
    lines,
    paths,
    unexplained,
)
from tests.unit.test_report import NAMES, make_run
from tools.metric_tables import shown

from pcmoe_node.coordination.page import CoordinatorPage, Shown
from pcmoe_node.exchange.base import Traffic
from pcmoe_node.figures import GpuFigures
from pcmoe_node.journal import Journal
from pcmoe_node.status import State
from pcmoe_operator.metrics import ALL_VERBS, CODES, OTHER, RESOURCES
from pcmoe_operator.report import write_report

LISTS: Mapping[str, Names] = {
    "the metrics": METRICS,
    "/status": STATUS,
    "the coordinator's /status": COORDINATOR_STATUS,
    "rounds.jsonl": ROUNDS,
    "events.jsonl": EVENTS,
    "report.json": REPORT,
    "a log": LOG_FIELDS,
}
SOURCES = [
    path
    for package in ("node/pcmoe_node", "operator/pcmoe_operator")
    for path in sorted((Path(__file__).parents[2] / package).rglob("*.py"))
]


def families() -> Iterator[Metric]:
    """Every family of every page, with all that it may ever have to show."""
    for page in shown().values():
        yield from page.full.values()


# Metrics


def test_every_metric_has_a_reason_to_leave() -> None:
    assert unexplained((family.name for family in families()), METRICS, "/metrics") == []


def test_no_reason_is_kept_for_a_metric_that_is_not_shown_any_more() -> None:
    assert set(METRICS) - {family.name for family in families()} == set()


def test_a_metric_shows_nothing_but_samples_under_its_own_name() -> None:
    ends = ("", "_total", "_bucket", "_count", "_sum")
    for family in families():
        assert {sample.name for sample in family.samples} <= {f"{family.name}{end}" for end in ends}


def test_every_label_has_only_values_that_are_known_before_the_run_begins() -> None:
    for family in families():
        for sample in family.samples:
            for label, value in sample.labels.items():
                assert label in LABELS or label in OTHER_LABELS, (
                    f"label {label} of {family.name} {exposed.ASK}"
                )
                assert value in LABELS.get(label, {value}), (
                    f"{label}={value!r} of {family.name} {exposed.ASK}"
                )


def test_the_operator_counts_requests_by_words_that_are_known() -> None:
    assert ALL_VERBS | {OTHER} == LABELS["verb"]
    assert {each for each in RESOURCES | {OTHER} if "/" not in each} == LABELS["resource"] - {
        "pcmoeconsortia/status"
    }
    assert {each.removesuffix("/status") for each in RESOURCES} <= LABELS["resource"]
    assert all(re.fullmatch(r"[1-5]\d\d|none", code) for code in CODES)


def test_labels_of_no_metric_combine_a_peer_with_anything_else() -> None:
    """Together with a layer, a step or a kind of message a figure of a peer would be a finer one than was agreed."""
    for family in families():
        for sample in family.samples:
            assert "peer" not in sample.labels or set(sample.labels) == {"peer"}, family.name


# Names


@pytest.mark.parametrize("where", LISTS)
def test_every_reason_is_one_of_a_few(where: str) -> None:
    assert set(LISTS[where].values()) <= REASONS


@pytest.mark.parametrize("where", LISTS)
def test_no_name_speaks_of_texts_tokens_positions_experts_or_single_steps(where: str) -> None:
    assert [name for name in LISTS[where] if FORBIDDEN.search(name) and name not in EXCEPTED] == []


def test_what_labels_may_say_speaks_of_none_of_that_either() -> None:
    words = {*LABELS, *OTHER_LABELS, *(value for values in LABELS.values() for value in values)}
    assert [word for word in sorted(words) if FORBIDDEN.search(word)] == []


@pytest.mark.parametrize(
    "name",
    [
        "pcmoe_node_expert_tokens",
        "pcmoe_node_layer_rows",
        "routedTokens",
        "routing",
        "lastTokenIds",
        "token_id",
        "text",
        "sample_text",
        "position",
        "documentsSeen",
        "bytesPerStep",
        "rowsSent",
        "gateMass",
        "hiddenNorm",
        "prompt",
    ],
)
def test_a_name_that_speaks_of_them_is_found(name: str) -> None:
    assert FORBIDDEN.search(name)


def test_a_new_name_fails_with_what_to_think_about() -> None:
    (told,) = unexplained(["trainLoss", "surprise"], STATUS, "/status")
    assert told.startswith("surprise of /status is shown, and nobody has said why it may be. Ask: ")
    assert "tests/exposed.py" in told


# Status


@pytest.fixture
def state() -> State:
    """A node's figures with all that there may be."""
    made = State(participant="berlin", rounds=20, steps=500, peers=2, peer_names=("lyon", "porto"))
    made.traffic = {"lyon": Traffic(10, 20, 1, 2, 3)}
    made.train_loss, made.held_out_loss, made.error = float("nan"), 2.5, "words"
    gpu = GpuFigures(
        state="ok", torch_allocated=1, torch_reserved=1, torch_peak=1, memory_used=1, memory_total=1
    )
    made.gpu = lambda: gpu
    return made


def test_every_field_of_a_nodes_status_has_a_reason_to_leave(state: State) -> None:
    found = set(paths(state.as_json()))
    assert unexplained(found, STATUS, "/status") == []
    assert set(STATUS) - found == {"exitCode"}, "only of a termination message"


def test_a_status_has_no_figures_of_a_single_peer(state: State) -> None:
    assert [path for path in paths(state.as_json()) if exposed.PEER in path] == []


def test_every_field_of_the_coordinators_status_has_a_reason_to_leave() -> None:
    page = CoordinatorPage()
    member = {"name": "berlin", "connected": True, "phase": "TRAINING", "round": 1, "lost": ""}
    page.shown = Shown(members=(member,))
    found = set(paths(page.as_json()))
    assert unexplained(found, COORDINATOR_STATUS, "the coordinator's /status") == []
    assert found == set(COORDINATOR_STATUS)


# What is served

SERVED = {
    "node/pcmoe_node/status.py": {"/status", "/metrics", "/report", "/healthz", "/readyz"},
    "operator/pcmoe_operator/serving.py": {"/metrics", "/healthz", "/readyz"},
}


@pytest.mark.parametrize("server", SERVED)
def test_nothing_else_is_served(server: str) -> None:
    (source,) = (path for path in SOURCES if path.as_posix().endswith(server))
    found = {word for word in words_of(ast.parse(source.read_text())) if re.fullmatch(r"/[a-z]+", word)}
    assert found == SERVED[server], f"a page that {exposed.ASK}"


# What is written down


def test_every_field_of_an_event_has_a_reason_to_leave(tmp_path: Path) -> None:
    Journal(tmp_path).event("ViewLeft", "words")
    (event,) = lines((tmp_path / "events.jsonl").read_text())
    assert set(paths(event)) == set(EVENTS)


def test_every_field_of_a_report_has_a_reason_to_leave(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    Journal(folder / NAMES[0] / "log").event("ViewLeft", "words")
    (folder / NAMES[1] / "log" / "rounds.jsonl").unlink()  # a report tells what is missing
    written = json.loads(write_report(folder).data.read_text())
    found = {OPEN_FIELDS.sub(rf"\1.{ANY}", path) for path in paths(written, NAMES)}
    assert unexplained(found, REPORT, "report.json") == []


def calls(path: Path, names: frozenset[str]) -> Iterator[ast.Call]:
    """Calls of methods that are called so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:
            yield node


def words_of(node: ast.AST) -> set[str]:
    """The texts of an expression."""
    return {
        each.value
        for each in ast.walk(node)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    }


def test_events_are_of_kinds_that_are_known() -> None:
    kinds: set[str] = set()
    for path in (path for path in SOURCES if "pcmoe_node" in path.parts):
        for call in calls(path, frozenset({"event", "_say"})):
            if len(call.args) == 2:
                kinds |= words_of(call.args[0])
    assert kinds == EVENT_KINDS


# Logs

LOGGED = frozenset({"debug", "info", "warning", "error", "exception", "critical"})


def log_calls() -> Iterator[tuple[Path, ast.Call]]:
    """Every call of a log."""
    for path in SOURCES:
        for call in calls(path, LOGGED):
            if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in ("log", "logger"):
                yield path, call


def test_a_line_of_a_log_has_no_fields_but_time_level_and_sentence() -> None:
    formats = 0
    for path in SOURCES:
        for call in calls(path, frozenset({"basicConfig"})):
            for form in words_of(call):
                formats += 1
                assert unexplained(re.findall(r"%\((\w+)\)", form), LOG_FIELDS, "a log") == []
    assert formats == 4, "a node and what runs beside one, coordinator, operator, the measured leak"
    for path, call in log_calls():
        extra = [keyword.arg for keyword in call.keywords if keyword.arg not in ("exc_info",)]
        assert unexplained(map(str, extra), LOG_FIELDS, f"a log in {path.name}") == []


LOGGED_SIZES = re.compile(
    r"documents for training with|one tensor per expert|the dataset has changed|experts per"
)
"""About sizes of the own corpus, the form of a file, an order of data that begins anew, a baseline's own shape."""


def test_no_line_of_a_log_is_about_texts_tokens_positions_or_experts() -> None:
    found = 0
    for path, call in log_calls():
        found += 1
        sentence = " ".join(sorted(words_of(call.args[0])))
        assert not FORBIDDEN.search(sentence) or LOGGED_SIZES.search(sentence), f"{path.name}: {sentence}"
    assert found > 20


def arguments(call: ast.Call) -> set[str]:
    """Names of what is put into a sentence."""
    return {
        each.attr if isinstance(each, ast.Attribute) else each.id
        for argument in call.args[1:]
        for each in ast.walk(argument)
        if isinstance(each, ast.Attribute | ast.Name)
    }


def test_no_tensor_is_put_into_a_log() -> None:
    """Tensors' names carry their shape, as in `ids_TK`."""
    shaped = re.compile(r"_[A-Z]{1,4}$")
    for path, call in log_calls():
        assert [name for name in arguments(call) if shaped.search(name)] == [], path.name


def strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def test_texts_of_a_status_are_names_phases_and_sentences_for_people(state: State) -> None:
    state.waiting_for = "lyon isn't there"
    told = state.as_json()
    assert set(strings(told)) == {"berlin", "LOADING", "trainLoss", "lyon isn't there", "words"}
