"""Figures as Prometheus' metrics. Pure: nothing is measured here.

Every family is always declared; one whose figure isn't known has no sample. The labels `namespace`, `pod`, `consortium`
and `participant` come from whoever scrapes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from pcmoe_node.figures import GPU_STATES, PHASES, SPENT_ON, Figures

VERSION = version("pcmoe")


class Families:
    """Makes families whose names begin alike."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def gauge(self, name: str, text: str, value: float | None) -> Metric:
        """One number that goes up and down; None: not known."""
        family = GaugeMetricFamily(self._prefix + name, text)
        if value is not None:
            family.add_metric([], value)
        return family

    def counter(self, name: str, text: str, value: float) -> Metric:
        """One number that only rises; `_total` is appended."""
        return CounterMetricFamily(self._prefix + name, text, value=value)

    def gauges(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        """A gauge by one label."""
        family = GaugeMetricFamily(self._prefix + name, text, labels=[label])
        for key, value in values.items():
            family.add_metric([key], value)
        return family

    def counters(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        """A counter by one label; `_total` is appended."""
        family = CounterMetricFamily(self._prefix + name, text, labels=[label])
        for key, value in values.items():
            family.add_metric([key], value)
        return family

    def one_of(self, name: str, text: str, label: str, states: Iterable[str], now: str | None) -> Metric:
        """1 for the state that it is in, 0 for the others; None: no sample."""
        values = {} if now is None else {state: float(state == now) for state in states}
        return self.gauges(name, text, label, values)

    def build_info(self) -> Metric:
        """The version of this program."""
        return self.gauges("build_info", "Version of this program; always 1.", "version", {VERSION: 1.0})

    def door(self, refused: Mapping[str, int], certificate_ends: float | None) -> Iterator[Metric]:
        """Who was turned down, and until when the own certificate is good."""
        text = "Connections turned down, by reason; closing and another-view pass by themselves."
        yield self.counters("refused_connections", text, "reason", refused)
        text = "When the own certificate expires, Unix seconds."
        yield self.gauge("certificate_expiry_timestamp_seconds", text, certificate_ends)


_NODE = Families("pcmoe_node_")
Section = Callable[[Figures], Iterator[Metric]]


def of_node(figures: Figures, memory: Mapping[str, int]) -> Iterator[Metric]:
    """Every metric of a node, once; `memory` as `status.resident` gives it."""
    for section in (_progress, _learning, _time, _peers, _rounds, _gpu):
        yield from section(figures)
    yield _NODE.gauge("resident_memory_bytes", "Resident memory of the process.", memory["rssBytes"])
    text = "Largest resident memory of the process so far."
    yield _NODE.gauge("resident_memory_peak_bytes", text, memory["peakRssBytes"])
    text = "Exact bytes of weights, gradients and optimizer state, at the end of the last round."
    yield _NODE.gauge("tensor_bytes", text, figures.tensor_bytes)
    yield _NODE.build_info()


def _progress(figures: Figures) -> Iterator[Metric]:
    yield _NODE.one_of("phase", "1 for what the node does, 0 for the rest.", "phase", PHASES, figures.phase)
    yield _NODE.gauge("view", "Number of the view; rises with every loss.", figures.view)
    yield _NODE.counter("views_lost", "Views that had to be left.", figures.views_lost)
    yield _NODE.gauge("rounds", "Rounds agreed.", figures.rounds)
    yield _NODE.gauge("round", "Rounds finished.", figures.round)
    yield _NODE.gauge("committed_round", "Newest round that everybody holds.", figures.committed)
    yield _NODE.gauge("step", "Steps decided.", figures.step)
    yield _NODE.counter("steps_skipped", "Steps that were skipped by all.", figures.steps_skipped)
    text = "When this process last heard of a commit, Unix seconds; after a resume, first when it started."
    yield _NODE.gauge("last_commit_timestamp_seconds", text, figures.last_commit)


def _learning(figures: Figures) -> Iterator[Metric]:
    text = "Mean training loss per token of this round so far, own data; NaN: the last own step overflowed."
    yield _NODE.gauge("training_loss", text, figures.train_loss)
    text = "Mean loss per token on held-out documents, own data; NaN when it overflowed."
    yield _NODE.gauge("held_out_loss", text, figures.held_out_loss)
    text = "Supervised tokens that this process trained on."
    yield _NODE.counter("tokens", text, figures.tokens_trained)


def _time(figures: Figures) -> Iterator[Metric]:
    seconds = {phase: figures.seconds.get(phase, 0.0) for phase in SPENT_ON}
    text = "Seconds within views by what they were spent on; they never overlap."
    yield _NODE.counters("phase_seconds", text, "phase", seconds)
    text = "Median of the last five finished rounds of this process."
    yield _NODE.gauge("usual_round_seconds", text, figures.usual_round_seconds)


def _peers(figures: Figures) -> Iterator[Metric]:
    reach = figures.reach()
    up = {name: float(name in reach and reach[name].up) for name in figures.peer_names}
    yield _NODE.gauge("peers", "Other participants.", figures.peers)
    yield _NODE.gauges("peer_up", "Whether all connections with a peer stand.", "peer", up)
    trips = {name: one.round_trip for name, one in reach.items() if one.up and one.round_trip is not None}
    text = "Round trip to a peer as TCP has it, smoothed; the least of its connections."
    yield _NODE.gauges("peer_rtt_seconds", text, "peer", trips)
    sent = {name: float(traffic.bytes_sent) for name, traffic in figures.traffic.items()}
    text = "Bytes sent to a peer, padding included; told at the end of a round."
    yield _NODE.counters("sent_bytes", text, "peer", sent)
    received = {name: float(traffic.bytes_received) for name, traffic in figures.traffic.items()}
    text = "Bytes received from a peer, padding included; told at the end of a round."
    yield _NODE.counters("received_bytes", text, "peer", received)
    waited = {name: replies.seconds for name, replies in figures.replies.items()}
    text = "From sending requests to taking up a peer's answers; told at the end of a round."
    yield _NODE.counters("reply_seconds", text, "peer", waited)
    counts = {name: float(replies.count) for name, replies in figures.replies.items()}
    yield _NODE.counters("replies", "Answers of a peer; told at the end of a round.", "peer", counts)
    yield _NODE.gauge("requests_in_flight", "Own micro-batches under way.", figures.travelling())
    yield _NODE.gauge("in_flight_limit", "Micro-batches that may be under way.", figures.in_flight_limit)
    yield _NODE.counter("reconnections", "Connections made anew within a view.", figures.reconnections)
    yield from _NODE.door(figures.refused(), figures.certificate_ends())


def _rounds(figures: Figures) -> Iterator[Metric]:
    text = "Share of the last round's own rows, one per token and shared-out layer, that a peer saw."
    yield _NODE.gauge("remote_token_share", text, figures.remote_share)
    yield _NODE.gauge("checkpoint_bytes", "Size of the last stored round.", figures.checkpoint_bytes)
    text = "How long storing the last round took."
    yield _NODE.gauge("checkpoint_seconds", text, figures.checkpoint_seconds)


def _gpu(figures: Figures) -> Iterator[Metric]:
    gpu = figures.gpu()
    state = None if gpu is None else gpu.state
    text = "1 for how the driver answers for this GPU: ok, mig (a slice), no_driver, lost."
    yield _NODE.one_of("gpu_info", text, "state", GPU_STATES, state)
    for name, text, attribute in (
        ("torch_allocated_bytes", "GPU memory held by torch's tensors.", "torch_allocated"),
        ("torch_reserved_bytes", "GPU memory held by torch's allocator.", "torch_reserved"),
        ("torch_allocated_peak_bytes", "The most that torch's tensors held at once.", "torch_peak"),
        ("gpu_memory_used_bytes", "GPU memory in use by anybody, as the driver says.", "memory_used"),
        ("gpu_memory_total_bytes", "GPU memory that there is.", "memory_total"),
        ("gpu_utilization_ratio", "Share of the time in which a kernel ran.", "utilization"),
        ("gpu_power_watts", "Power that the GPU draws.", "power"),
        ("gpu_temperature_celsius", "Temperature of the GPU.", "temperature"),
    ):
        yield _NODE.gauge(name, text, None if gpu is None else getattr(gpu, attribute))
    errors = {}
    for kind in ("ecc_corrected", "ecc_uncorrected"):
        count = None if gpu is None else getattr(gpu, kind)
        if count is not None:
            errors[kind] = float(count)
    text = "Memory errors of the GPU since its driver was loaded."
    yield _NODE.counters("gpu_errors", text, "kind", errors)
