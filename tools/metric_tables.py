"""Writes the tables of docs/metrics.md from what nodes, coordinator and operator show.

    python -m tools.metric_tables            write them
    python -m tools.metric_tables --check    only say whether they are up to date

Each stands between `<!-- metrics: PROCESS -->` and `<!-- end -->`; a test fails when one is not what this would write.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from pcmoe_node.coordination.page import CoordinatorPage, Shown
from pcmoe_node.exchange.base import Reach, Traffic
from pcmoe_node.exchange.tls.refusals import Refusals
from pcmoe_node.figures import GpuFigures, Replies
from pcmoe_node.status import State
from pcmoe_operator.health import Health
from pcmoe_operator.metrics import Metrics
from pcmoe_operator.tracing import Call

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
TABLE = re.compile(r"(<!-- metrics: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
RENEW = "run: python -m tools.metric_tables"

UNITS: Sequence[tuple[str, str]] = (
    ("_timestamp_seconds", "seconds since 1970"),
    ("_start_time_seconds", "seconds since 1970"),
    ("_seconds", "seconds"),
    ("_bytes", "bytes"),
    ("_ratio", "0 to 1"),
    ("_share", "0 to 1"),
    ("_watts", "watts"),
    ("_celsius", "°C"),
    ("_loss", "nats per token"),
)
"""By how a name ends; anything else is a number of something."""
WHETHER = frozenset({"leader", "peer_up", "phase", "state", "connected", "gpu_info"})
"""Names, without the process, of what is 0 or 1."""
OPEN: Mapping[str, str] = {
    "peer": "another participant's name",
    "participant": "a participant's name",
    "namespace": "a watched namespace",
    "verb": "as RBAC calls it",
    "resource": "as RBAC calls it",
    "code": "of HTTP, `none` or `other`",
    "version": "of the software",
    "le": "upper bounds",
}
"""Labels whose values are not written out, and what they are; all values of any other are shown from the start."""
_ROUND = "until this process has ended a round"
_CUDA = "unless it trains on CUDA"
_DRIVER = f"{_CUDA}, and where the driver doesn't tell"
ABSENT: Mapping[str, str] = {
    "pcmoe_node_last_commit_timestamp_seconds": "until this process has heard of a commit",
    "pcmoe_node_training_loss": "until its first own step",
    "pcmoe_node_held_out_loss": "until it has evaluated",
    "pcmoe_node_usual_round_seconds": _ROUND,
    "pcmoe_node_peer_rtt_seconds": "while the peer is away, and where the kernel doesn't tell",
    "pcmoe_node_sent_bytes": _ROUND,
    "pcmoe_node_received_bytes": _ROUND,
    "pcmoe_node_reply_seconds": _ROUND,
    "pcmoe_node_replies": _ROUND,
    "pcmoe_node_certificate_expiry_timestamp_seconds": "until it has read its certificate",
    "pcmoe_node_remote_token_share": _ROUND,
    "pcmoe_node_checkpoint_bytes": "until this process has stored a round",
    "pcmoe_node_checkpoint_seconds": "until this process has stored a round",
    "pcmoe_node_gpu_info": _CUDA,
    "pcmoe_node_torch_allocated_bytes": _CUDA,
    "pcmoe_node_torch_reserved_bytes": _CUDA,
    "pcmoe_node_torch_allocated_peak_bytes": _CUDA,
    "pcmoe_node_gpu_memory_used_bytes": _DRIVER,
    "pcmoe_node_gpu_memory_total_bytes": _DRIVER,
    "pcmoe_node_gpu_utilization_ratio": _DRIVER,
    "pcmoe_node_gpu_power_watts": _DRIVER,
    "pcmoe_node_gpu_temperature_celsius": _DRIVER,
    "pcmoe_node_gpu_errors": _DRIVER,
    "pcmoe_coordinator_last_commit_timestamp_seconds": "until this process has heard of a commit",
    "pcmoe_coordinator_connected": "until it listens",
    "pcmoe_coordinator_certificate_expiry_timestamp_seconds": "until it has read its certificate",
    "pcmoe_operator_api_requests": "before the first one",
    "pcmoe_operator_watch_age_seconds": "while it doesn't lead",
    "pcmoe_operator_watch_restarts": "while it doesn't lead",
}
"""When a metric has no sample, of those that a process which has just begun doesn't show."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Showing:
    """What a process shows: just begun, and with all that it may ever have to show."""

    fresh: Mapping[str, Metric]
    full: Mapping[str, Metric]

    @property
    def absent(self) -> set[str]:
        """What is not there from the start."""
        return {name for name in self.full if name not in self.fresh or not self.fresh[name].samples}


def shown() -> Mapping[str, Showing]:
    """Every process's figures, from the collectors themselves."""
    makers = {"node": _node, "coordinator": _coordinator, "operator": _operator}
    return {name: Showing(fresh=make(full=False), full=make(full=True)) for name, make in makers.items()}


def _node(*, full: bool) -> Mapping[str, Metric]:
    state = State(
        participant="berlin", rounds=20, steps=500, peers=1, peer_names=("lyon",), in_flight_limit=2
    )
    state.refused = Refusals().counts
    if full:
        gpu = GpuFigures(
            state="ok", torch_allocated=1, torch_reserved=1, torch_peak=1, memory_used=1, memory_total=1,
            utilization=0.5, power=1.0, temperature=1.0, ecc_corrected=0, ecc_uncorrected=0,
        )  # fmt: skip
        state.reach, state.gpu = (lambda: {"lyon": Reach(up=True, round_trip=0.1)}), (lambda: gpu)
        state.traffic, state.replies = {"lyon": Traffic()}, {"lyon": Replies()}
        state.train_loss = state.held_out_loss = state.usual_round_seconds = state.remote_share = 0.5
        state.last_commit, state.certificate_ends = 0.0, lambda: 0.0
        state.checkpoint_bytes, state.checkpoint_seconds = 1, 1.0
    return _by_name(state.metrics())


def _coordinator(*, full: bool) -> Mapping[str, Metric]:
    page = CoordinatorPage()
    if full:
        page.shown = Shown(members=({"name": "berlin", "connected": True},))
        page.last_commit, page.certificate_ends = 0.0, lambda: 0.0
    return _by_name(page.metrics())


def _operator(*, full: bool) -> Mapping[str, Metric]:
    health = Health(30.0)
    metrics = Metrics(health)
    if full:
        health.expect([("pods", "training")])
        metrics.requested(Call(verb="list", resource="pods", namespace="training"), "200")
    return _by_name(text_string_to_metric_families(metrics.page().decode()))


def _by_name(families: Iterable[Metric]) -> Mapping[str, Metric]:
    return {family.name: family for family in families}


def rendered(page: str) -> str:
    """The page with its tables written anew; KeyError for a table that nobody makes."""
    made = {process: "".join(_lines(found)) for process, found in shown().items()}
    return TABLE.sub(lambda found: f"{found[1]}{made[found[2]]}{found[3]}", page)


def _lines(of: Showing) -> Iterator[str]:
    rows = [("metric", "type", "labels", "unit", "what it is", "absent"), ("---",) * 6]
    for name, family in of.full.items():
        suffix = "_total" if family.type == "counter" else ""
        meaning, absent = family.documentation.rstrip("."), ABSENT.get(name, "")
        rows.append((f"`{name}{suffix}`", family.type, _labels(family), _unit(name), meaning, absent))
    return (f"| {' | '.join(row)} |\n" for row in rows)


def _labels(family: Metric) -> str:
    values: dict[str, dict[str, None]] = {}
    for sample in family.samples:
        for label, value in sample.labels.items():
            values.setdefault(label, {})[value] = None
    return "; ".join(
        f"`{label}`: {OPEN[label] if label in OPEN else ', '.join(f'`{each}`' for each in found)}"
        for label, found in values.items()
    )


def _unit(name: str) -> str:
    if name.endswith("_build_info"):
        return "1"
    if name.split("_", 2)[-1] in WHETHER:
        return "0 or 1"
    return next((unit for end, unit in UNITS if name.endswith(end)), "number")


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description="The tables of docs/metrics.md.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 if it is out of date"
    )
    check = parser.parse_args().check
    before = PAGE.read_text()
    after = rendered(before)
    if check and before != after:
        sys.exit(f"{PAGE.name} is out of date; {RENEW}")
    if not check:
        PAGE.write_text(after)


if __name__ == "__main__":
    main()
