"""Every metric of a node and of the coordinator: name, type, labels; what isn't known has no sample."""

import math
import re
from collections.abc import Iterable
from dataclasses import fields, replace

import pytest
from prometheus_client.metrics_core import Metric

from pcmoe_node.coordination.page import CoordinatorPage, Shown
from pcmoe_node.errors import IdentityError
from pcmoe_node.exchange.base import Reach, Traffic
from pcmoe_node.exchange.tls.handshake import NotAdmittedError, Refusal
from pcmoe_node.exchange.tls.refusals import REASONS, Refusals
from pcmoe_node.figures import GPU_STATES, PHASES, SPENT_ON, GpuFigures, Replies
from pcmoe_node.metrics import VERSION
from pcmoe_node.status import State

Samples = dict[tuple[str, str], float]
NODE = {
    "phase": ("gauge", "phase"),
    "view": ("gauge", ""),
    "views_lost_total": ("counter", ""),
    "rounds": ("gauge", ""),
    "round": ("gauge", ""),
    "committed_round": ("gauge", ""),
    "step": ("gauge", ""),
    "steps_skipped_total": ("counter", ""),
    "last_commit_timestamp_seconds": ("gauge", ""),
    "training_loss": ("gauge", ""),
    "held_out_loss": ("gauge", ""),
    "tokens_total": ("counter", ""),
    "phase_seconds_total": ("counter", "phase"),
    "usual_round_seconds": ("gauge", ""),
    "peers": ("gauge", ""),
    "peer_up": ("gauge", "peer"),
    "peer_rtt_seconds": ("gauge", "peer"),
    "sent_bytes_total": ("counter", "peer"),
    "received_bytes_total": ("counter", "peer"),
    "reply_seconds_total": ("counter", "peer"),
    "replies_total": ("counter", "peer"),
    "requests_in_flight": ("gauge", ""),
    "in_flight_limit": ("gauge", ""),
    "reconnections_total": ("counter", ""),
    "refused_connections_total": ("counter", "reason"),
    "certificate_expiry_timestamp_seconds": ("gauge", ""),
    "remote_token_share": ("gauge", ""),
    "checkpoint_bytes": ("gauge", ""),
    "checkpoint_seconds": ("gauge", ""),
    "gpu_info": ("gauge", "state"),
    "torch_allocated_bytes": ("gauge", ""),
    "torch_reserved_bytes": ("gauge", ""),
    "torch_allocated_peak_bytes": ("gauge", ""),
    "gpu_memory_used_bytes": ("gauge", ""),
    "gpu_memory_total_bytes": ("gauge", ""),
    "gpu_utilization_ratio": ("gauge", ""),
    "gpu_power_watts": ("gauge", ""),
    "gpu_temperature_celsius": ("gauge", ""),
    "gpu_errors_total": ("counter", "kind"),
    "resident_memory_bytes": ("gauge", ""),
    "resident_memory_peak_bytes": ("gauge", ""),
    "tensor_bytes": ("gauge", ""),
    "build_info": ("gauge", "version"),
}
COORDINATOR = {
    "state": ("gauge", "state"),
    "view": ("gauge", ""),
    "views_total": ("counter", ""),
    "committed_round": ("gauge", ""),
    "last_commit_timestamp_seconds": ("gauge", ""),
    "connected": ("gauge", "participant"),
    "refused_connections_total": ("counter", "reason"),
    "certificate_expiry_timestamp_seconds": ("gauge", ""),
    "build_info": ("gauge", "version"),
}
LATER = {
    "last_commit_timestamp_seconds",
    "training_loss",
    "held_out_loss",
    "usual_round_seconds",
    "peer_rtt_seconds",
    "remote_token_share",
    "checkpoint_bytes",
    "checkpoint_seconds",
}
"""What a node can't know at its start."""
CUDA = {name for name in NODE if name.startswith(("gpu_", "torch_"))}
GPU = GpuFigures(
    state="ok",
    torch_allocated=1 << 30,
    torch_reserved=2 << 30,
    torch_peak=3 << 30,
    memory_used=4 << 30,
    memory_total=80 << 30,
    utilization=0.93,
    power=412.5,
    temperature=61.0,
    ecc_corrected=2,
    ecc_uncorrected=0,
)


def fresh() -> State:
    """A node that has just started, among three."""
    peers = ("lyon", "porto")
    return State(
        participant="berlin",
        rounds=20,
        steps=500,
        peers=2,
        peer_names=peers,
        in_flight_limit=4,
        traffic={peer: Traffic() for peer in peers},
        replies={peer: Replies() for peer in peers},
        refused=Refusals().counts,
        certificate_ends=lambda: 1.9e9,
    )


def full() -> State:
    """A node with all that a node can have."""
    state = fresh()
    state.phase, state.round, state.step, state.view, state.committed = "TRAINING", 3, 77, 4, 2
    state.views_lost, state.reconnections, state.steps_skipped = 3, 7, 5
    state.train_loss, state.held_out_loss = 2.5, 2.75
    state.tokens, state.tokens_trained = 153_600, 160_000
    state.seconds = {phase: float(number) for number, phase in enumerate(SPENT_ON, 1)}
    state.usual_round_seconds, state.last_commit = 61.5, 1.8e9
    state.checkpoint_bytes, state.checkpoint_seconds = 4096, 1.5
    state.remote_share, state.tensor_bytes = 0.75, 8192
    state.traffic = {"lyon": Traffic(10, 20, 1, 2, 3), "porto": Traffic(5, 6, 1, 1, 1)}
    state.replies = {"lyon": Replies(1.5, 30), "porto": Replies(0.5, 30)}
    state.reach = lambda: {"lyon": Reach(True, 0.02), "porto": Reach(False, 0.03)}
    state.travelling = lambda: 3
    state.gpu = lambda: GPU
    return state


def shown(metrics: Iterable[Metric], prefix: str) -> Samples:
    """Value by (name without prefix, label's value)."""
    return {
        (sample.name.removeprefix(prefix), "".join(sample.labels.values())): sample.value
        for family in metrics
        for sample in family.samples
    }


def node(state: State) -> Samples:
    """A node's samples."""
    return shown(state.metrics(), "pcmoe_node_")


def names(samples: Samples) -> set[str]:
    """The names of all samples."""
    return {name for name, _ in samples}


def described(metrics: Iterable[Metric], prefix: str) -> dict[str, tuple[str, str]]:
    """Type and label by sample name, of every family that has samples."""
    return {
        sample.name.removeprefix(prefix): (family.type, "".join(sample.labels))
        for family in metrics
        for sample in family.samples
    }


def page() -> CoordinatorPage:
    """A coordinator that has seen everything."""
    page = CoordinatorPage()
    members = ({"name": "berlin", "connected": True}, {"name": "lyon", "connected": False})
    page.shown = Shown("RUNNING", 4, 12, "", None, members)
    page.views, page.last_commit, page.certificate_ends = 4, 1.8e9, lambda: 1.9e9
    return page


def test_a_full_page_of_a_node_has_every_metric_with_its_type_and_label() -> None:
    assert described(full().metrics(), "pcmoe_node_") == NODE


def test_a_full_page_of_the_coordinator_has_every_metric_with_its_type_and_label() -> None:
    assert described(page().metrics(), "pcmoe_coordinator_") == COORDINATOR


@pytest.mark.parametrize(
    "metrics", [full().metrics, fresh().metrics, page().metrics, CoordinatorPage().metrics]
)
def test_names_and_texts_are_as_promtool_wants_them(metrics) -> None:  # type: ignore[no-untyped-def]
    """The rules of `promtool check metrics`: help, `_total` for counters alone, base units, no type in a name."""
    families = list(metrics())
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.documentation.endswith(".") and "\n" not in family.documentation, family.name
        assert re.fullmatch(r"pcmoe_(node|coordinator)_[a-z_]+", family.name)
        assert not re.search(r"_(gauge|counter|milliseconds|ms|kilobytes|mib|percent|minutes)\b", family.name)
        assert {sample.name for sample in family.samples} <= {
            family.name + ("_total" if family.type == "counter" else "")
        }
        assert not (family.type == "gauge" and family.name.endswith(("_total", "_count", "_sum")))


def test_the_figures_are_those_of_the_state() -> None:
    found = node(full())
    assert found["round", ""] == 3 and found["rounds", ""] == 20 and found["step", ""] == 77
    assert found["view", ""] == 4 and found["committed_round", ""] == 2
    assert found["views_lost_total", ""] == 3 and found["reconnections_total", ""] == 7
    assert found["steps_skipped_total", ""] == 5 and found["tokens_total", ""] == 160_000
    assert found["training_loss", ""] == 2.5 and found["held_out_loss", ""] == 2.75
    assert found["sent_bytes_total", "lyon"] == 10 and found["received_bytes_total", "porto"] == 6
    assert found["reply_seconds_total", "lyon"] == 1.5 and found["replies_total", "porto"] == 30
    assert found["requests_in_flight", ""] == 3 and found["in_flight_limit", ""] == 4
    assert found["usual_round_seconds", ""] == 61.5 and found["last_commit_timestamp_seconds", ""] == 1.8e9
    assert found["checkpoint_bytes", ""] == 4096 and found["checkpoint_seconds", ""] == 1.5
    assert found["remote_token_share", ""] == 0.75
    assert found["gpu_power_watts", ""] == 412.5 and found["gpu_errors_total", "ecc_corrected"] == 2
    assert found["tensor_bytes", ""] == 8192 and found["build_info", VERSION] == 1
    assert 0 < found["resident_memory_bytes", ""] <= found["resident_memory_peak_bytes", ""] * 1.1


@pytest.mark.parametrize("phase", PHASES)
def test_all_phases_are_there_and_one_of_them_is_1(phase: str) -> None:
    state = fresh()
    state.phase = phase
    assert {key: value for (name, key), value in node(state).items() if name == "phase"} == {
        each: float(each == phase) for each in PHASES
    }


def test_what_a_node_cannot_know_at_its_start_is_absent_and_the_rest_is_there() -> None:
    found = node(fresh())
    assert names(found) == set(NODE) - LATER - CUDA
    assert {key: value for (name, key), value in found.items() if name == "phase_seconds_total"} == (
        dict.fromkeys(SPENT_ON, 0.0)
    )
    assert {key: found["peer_up", key] for key in ("lyon", "porto")} == {"lyon": 0.0, "porto": 0.0}
    assert found["sent_bytes_total", "lyon"] == 0.0 and found["replies_total", "porto"] == 0.0


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_shown_as_such(loss: float) -> None:
    state = full()
    state.train_loss = state.held_out_loss = loss
    found = node(state)
    for name in ("training_loss", "held_out_loss"):
        assert math.isnan(found[name, ""]) if math.isnan(loss) else found[name, ""] == loss


def test_a_peer_that_is_down_has_no_round_trip() -> None:
    found = node(full())
    assert (found["peer_up", "lyon"], found["peer_up", "porto"]) == (1.0, 0.0)
    assert [key for name, key in found if name == "peer_rtt_seconds"] == ["lyon"]


def test_a_peer_whose_round_trip_the_kernel_does_not_tell_is_up_without_one() -> None:
    state = full()
    state.reach = lambda: {"lyon": Reach(True), "porto": Reach(True)}
    found = node(state)
    assert found["peer_up", "lyon"] == 1.0 and "peer_rtt_seconds" not in names(found)


def test_what_the_driver_does_not_tell_is_absent() -> None:
    state = full()
    told = {"state": "mig", "torch_allocated": 1, "torch_reserved": 2, "torch_peak": 3}
    state.gpu = lambda: GpuFigures(**told, memory_used=4, memory_total=5)  # type: ignore[arg-type]
    found = node(state)
    absent = {"gpu_utilization_ratio", "gpu_power_watts", "gpu_temperature_celsius", "gpu_errors_total"}
    assert CUDA - names(found) == absent


@pytest.mark.parametrize("now", GPU_STATES)
def test_the_state_of_a_gpu_is_one_of_four(now: str) -> None:
    state = full()
    state.gpu = lambda: replace(GPU, state=now)
    assert {key: value for (name, key), value in node(state).items() if name == "gpu_info"} == {
        each: float(each == now) for each in GPU_STATES
    }


def test_an_ecc_count_of_zero_is_shown_and_one_that_is_not_told_is_not() -> None:
    state = full()
    state.gpu = lambda: replace(GPU, ecc_corrected=None)
    assert [key for name, key in node(state) if name == "gpu_errors_total"] == ["ecc_uncorrected"]


def test_nothing_about_experts_is_shown() -> None:
    """Counts of experts or of tokens per expert would say what the data is about."""
    state = full()
    text = [f"{sample.name} {sample.labels}" for family in state.metrics() for sample in family.samples]
    assert not re.search("expert|rout(?!e)|slot|layer", "\n".join(text) + str(state.as_json()), re.IGNORECASE)
    labels = {label for family in state.metrics() for sample in family.samples for label in sample.labels}
    assert labels == {"peer", "phase", "reason", "state", "kind", "version"}
    assert not [f.name for f in fields(State) if re.search("expert|rout|slot", f.name)]


def test_every_reason_of_a_refusal_is_there_from_zero_and_counted_by_itself() -> None:
    refusals, error = Refusals(), IdentityError("no")
    assert refusals.counts() == dict.fromkeys(REASONS, 0)
    for code in Refusal:
        refusals.count(NotAdmittedError(error, code=code, claimed=1, verified=False))
    refusals.count(NotAdmittedError(error, code=None, claimed=1, verified=True))
    refusals.count(NotAdmittedError(error, code=None, claimed=None, verified=False))
    assert refusals.counts() == dict.fromkeys(REASONS, 1) | {"agreement": 2}


def test_a_node_that_left_its_view_reaches_nobody() -> None:
    state = full()
    state.leave_view()
    found = node(state)
    assert found["peer_up", "lyon"] == 0.0 and found["requests_in_flight", ""] == 0.0
    assert "peer_rtt_seconds" not in names(found)


def test_a_coordinator_shows_its_figures_and_at_its_start_no_commit() -> None:
    found = shown(page().metrics(), "pcmoe_coordinator_")
    assert found["state", "RUNNING"] == 1 and found["state", "FAILED"] == 0 and found["views_total", ""] == 4
    assert (found["connected", "berlin"], found["connected", "lyon"]) == (1.0, 0.0)
    assert found["committed_round", ""] == 12 and found["view", ""] == 4
    assert found["refused_connections_total", "identity"] == 0
    start = names(shown(CoordinatorPage().metrics(), "pcmoe_coordinator_"))
    absent = {"last_commit_timestamp_seconds", "connected", "certificate_expiry_timestamp_seconds"}
    assert start == set(COORDINATOR) - absent
