"""The plan: pure, integer, deterministic. The same agreement gives the same plan at every partner.

`make_plan` says who hosts what, what it takes in memory and on the wire; `predict` turns that into seconds
for given machines and networks, and says what bounds them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import rfc8785

from pcmoe_operator.constants import PLAN_FORMAT
from pcmoe_operator.footprint import (
    Memory,
    checkpoint_bytes,
    disk_bytes,
    memory_of,
    served_bytes,
    single_process,
    static_bytes,
)
from pcmoe_operator.placement import LayerHosts
from pcmoe_operator.schema import Consortium
from pcmoe_operator.shape import ModelShape, shape_in
from pcmoe_operator.traffic import Layout, Traffic, layout_of, traffic_of


@dataclass(frozen=True, kw_only=True, slots=True)
class ParticipantPlan:
    """One participant's part."""

    name: str
    index: int
    experts: int
    """(layer, expert) pairs it hosts for all."""
    memory: Memory
    checkpoint: int
    """Bytes of one stored round on disk."""
    disk: int
    """Bytes of all rounds on disk, at most."""
    activation_bytes: int
    """Budget for others' tokens: enough for everything in flight under the worst routing."""
    step: Traffic
    """On average over the steps; in schedule Sequential owners take turns."""
    run: Traffic
    """Training and evaluation, from the first step to the last."""
    saving_per_mille: int
    """Of the memory that weights, gradients and moments take in one process that holds the whole model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalLayersCost:
    """What `experts.localLayers` costs, against sharing every layer."""

    bytes: int
    """More weights, gradients, moments and masters, over all participants."""
    saving_without_per_mille: int
    """The mean saving if no layer were local."""
    wire_per_step: int
    """Bytes sent less per step, over all participants."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Who hosts what, and what it takes."""

    names: tuple[str, ...]
    placement: tuple[LayerHosts, ...]
    rows_per_message: int
    slots_per_row: int
    participants: tuple[ParticipantPlan, ...]
    single_process: int
    """Bytes of weights, gradients, moments and masters of one process that holds the whole model."""
    local_layers: LocalLayersCost
    digest: str
    """`sha256:…` of names, placement and quotas: what peers must agree on."""

    @property
    def shared_layers(self) -> int:
        """Layers whose experts are spread over the participants."""
        return sum(layer.hosts is not None for layer in self.placement)

    @property
    def saving_per_mille(self) -> int:
        """Mean saving over the participants."""
        return sum(participant.saving_per_mille for participant in self.participants) // len(
            self.participants
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """Machines and network to predict for; the same at every participant."""

    bits_per_second: int = 1_000_000_000
    """Each way."""
    round_trip_microseconds: int = 20_000
    flops: int = 1_000_000_000_000
    """Floating-point operations per second that a participant really reaches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Seconds of one step, and what bounds them."""

    step_seconds: float
    run_seconds: float
    compute_seconds: float
    bandwidth_seconds: float
    latency_seconds: float
    bound: str
    """`compute`, `bandwidth` or `latency`."""


def shape_of(consortium: Consortium) -> ModelShape:
    """The model's shape; the configuration was checked when the manifest was parsed."""
    return shape_in(consortium.config)


def make_plan(consortium: Consortium) -> Plan:
    """The plan of a consortium. Of `local`, only `gradientCheckpointing` counts, in the memory estimate."""
    layout = layout_of(consortium)
    traffic = traffic_of(layout)
    participants = tuple(_participant(layout, index, *traffic[index]) for index in range(layout.count))
    return Plan(
        names=consortium.names,
        placement=layout.placement,
        rows_per_message=layout.wire.rows,
        slots_per_row=layout.wire.slots_per_row,
        participants=participants,
        single_process=single_process(layout),
        local_layers=_local_layers_cost(layout, participants),
        digest=_digest(layout, participants),
    )


def _participant(layout: Layout, index: int, step: Traffic, run: Traffic) -> ParticipantPlan:
    return ParticipantPlan(
        name=layout.consortium.names[index],
        index=index,
        experts=sum(layer.hosted_by(index) for layer in layout.placement),
        memory=memory_of(layout, index),
        checkpoint=checkpoint_bytes(layout, index),
        disk=disk_bytes(layout, index),
        activation_bytes=served_bytes(layout, index, worst=True),
        step=step,
        run=run,
        saving_per_mille=_saving(layout, index),
    )


def _saving(layout: Layout, index: int) -> int:
    whole = single_process(layout)
    return 1000 * (whole - static_bytes(layout, index)) // whole


def _local_layers_cost(layout: Layout, participants: Sequence[ParticipantPlan]) -> LocalLayersCost:
    shared = layout_of(layout.consortium.with_all_layers_shared())
    everyone = range(layout.count)
    return LocalLayersCost(
        bytes=sum(static_bytes(layout, i) - static_bytes(shared, i) for i in everyone),
        saving_without_per_mille=sum(_saving(shared, i) for i in everyone) // layout.count,
        wire_per_step=sum(step.sent for step, _ in traffic_of(shared))
        - sum(p.step.sent for p in participants),
    )


def _digest(layout: Layout, participants: Sequence[ParticipantPlan]) -> str:
    content = {
        "participants": list(layout.consortium.names),
        "placement": [{"layer": layer.layer, "hosts": layer.hosts} for layer in layout.placement],
        "rowsPerMessage": layout.wire.rows,
        "slotsPerRow": layout.wire.slots_per_row,
        "activationBytes": [participant.activation_bytes for participant in participants],
    }
    return "sha256:" + hashlib.sha256(f"{PLAN_FORMAT}\n".encode() + rfc8785.dumps(content)).hexdigest()


def predict(consortium: Consortium, plan: Plan, network: Network) -> Prediction:
    """Seconds of a step at the slowest participant.

    A micro-batch computes for c seconds, moves bytes for b and waits two round trips per shared layer, w.
    With f of them in flight a wave takes max(f·c, f·b, c + b + w): the wait of one is hidden behind the work
    of the others.
    """
    terms = consortium.agreement.training
    flops = max(_flops(consortium, plan, participant) for participant in plan.participants)
    sent = max(max(participant.step.sent, participant.step.received) for participant in plan.participants)
    batches, in_flight = terms.micro_batches_per_step, terms.in_flight
    compute = flops / network.flops / batches
    bandwidth = 8 * sent / network.bits_per_second / batches
    trip = network.round_trip_microseconds / 1e6
    wait = 2 * plan.shared_layers * trip if len(plan.names) > 1 else 0.0
    seconds = 0.0
    for first in range(0, batches, in_flight):
        wave = min(in_flight, batches - first)
        seconds += max(wave * compute, wave * bandwidth, compute + bandwidth + wait)
    seconds += 2 * trip if len(plan.names) > 1 else 0.0
    waves = -(-batches // in_flight)
    parts = {"compute": batches * compute, "bandwidth": batches * bandwidth, "latency": waves * wait}
    return Prediction(
        step_seconds=seconds,
        run_seconds=seconds * terms.rounds * terms.steps_per_round,
        compute_seconds=parts["compute"],
        bandwidth_seconds=parts["bandwidth"],
        latency_seconds=parts["latency"],
        bound=max(parts, key=lambda part: parts[part]),
    )


def _flops(consortium: Consortium, plan: Plan, participant: ParticipantPlan) -> int:
    """Floating-point operations of one participant in an average step: 2 per weight forward, 4 backward."""
    shape, terms = shape_of(consortium), consortium.agreement.training
    count = len(plan.names)
    owners = count if terms.schedule == "Concurrent" else 1
    tokens = plan.rows_per_message * terms.micro_batches_per_step
    dense = shape.backbone_parameters - (0 if shape.tied else shape.embedding_parameters)
    local = sum(layer.hosts is None for layer in plan.placement)
    own = 6 * dense + 6 * local * shape.top_k * shape.expert_parameters
    own += 6 * shape.layers * shape.query_width * terms.sequence_length
    if consortium.checkpoints_gradients(participant.name):
        own += 2 * dense
    served = 6 * participant.experts * shape.top_k * shape.expert_parameters // shape.experts
    return tokens * (own * owners // count + served * owners)
