"""From the plan to what each node, and the coordinator, is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcmoe_node.config import (
    CoordinatorConfig,
    DatasetConfig,
    IdentityConfig,
    LayerPlacement,
    ModelConfig,
    NodeConfig,
    OptimizerConfig,
    PeerConfig,
    QuotaConfig,
    TrainingConfig,
    TransportConfig,
)
from pcmoe_operator.agreement import canonical, digest_of
from pcmoe_operator.constants import COORDINATOR
from pcmoe_operator.pki import identity_of as identity_of
from pcmoe_operator.plan import Plan
from pcmoe_operator.schema import Consortium


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where things are for one process: folders on its machine, and where the others listen."""

    listen: str | None
    """`host:port` to listen on; None: it only dials out."""
    status_listen: str
    coordinator: str
    """`host:port` where the coordinator listens."""
    endpoints: Mapping[str, str | None] = field(default_factory=dict)
    """By participant; one that is missing or None is taken from the roster, or only dials out."""
    ca_bundles: Mapping[str, str] = field(default_factory=dict)
    """PEM text by participant; one that is missing is taken from the roster."""
    certificates: Path
    log: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class NodePlaces(Places):
    """Where things are for one node: its volumes too."""

    dataset: Path
    """The dataset volume; `local[].dataset.path` is below it."""
    model: Path | None = None
    """The model volume; needed when the model starts from a checkpoint."""
    checkpoint: Path
    order_secret: Path | None = None
    termination_message: Path | None = None
    """Where it leaves its last status, for whoever started it."""


def node_config(consortium: Consortium, plan: Plan, participant: str, places: NodePlaces) -> NodeConfig:
    """All that one node is told. KeyError if the participant doesn't run here."""
    agreement = consortium.agreement
    return NodeConfig(
        **own_fields(consortium, plan, participant, places),
        version="pcmoe-node/1",
        participants=_peers(consortium, places),
        coordinator=_coordinator(consortium, places),
        identity=_identity(consortium, plan, places),
        model=_model(consortium, places),
        placement=tuple(LayerPlacement(layer=item.layer, hosts=item.hosts) for item in plan.placement),
        training=_training(consortium),
        transport=_transport(consortium),
        order_secret_file=None if places.order_secret is None else str(places.order_secret),
        checkpoint_directory=str(places.checkpoint),
        checkpoint_keep=agreement.checkpoint.keep,
        log_directory=str(places.log),
        status_listen=places.status_listen,
        termination_message=None if places.termination_message is None else str(places.termination_message),
    )


def own_fields(consortium: Consortium, plan: Plan, participant: str, places: NodePlaces) -> dict[str, Any]:
    """The fields of its configuration in which a node differs from those that have the same places."""
    local = consortium.local_entry(participant)
    return {
        "participant": participant,
        "quota": QuotaConfig(
            rows_per_message=plan.rows_per_message,
            slots_per_row=plan.slots_per_row,
            activation_bytes=plan.participants[plan.names.index(participant)].activation_bytes,
        ),
        "dataset": DatasetConfig(
            path=str(places.dataset / local.dataset.path),
            format=local.dataset.format,
            text_field=local.dataset.text_field,
            held_out_percent=local.dataset.held_out_percent,
        ),
        "device": local.device,
        "gradient_checkpointing": local.gradient_checkpointing,
        "threads": 1 if consortium.agreement.training.deterministic else local.cpu_threads,
    }


def coordinator_config(consortium: Consortium, plan: Plan, places: Places) -> CoordinatorConfig:
    """All that the coordinator is told; `places.listen` must be set."""
    return CoordinatorConfig(
        version="pcmoe-coordinator/1",
        participants=_peers(consortium, places),
        coordinator=_coordinator(consortium, places),
        identity=_identity(consortium, plan, places),
        peer_timeout_seconds=consortium.agreement.failure_policy.peer_timeout_seconds,
        log_directory=str(places.log),
        status_listen=places.status_listen,
    )


def _peers(consortium: Consortium, places: Places) -> tuple[PeerConfig, ...]:
    return tuple(_peer(consortium, name, places) for name in consortium.names)


def _coordinator(consortium: Consortium, places: Places) -> PeerConfig:
    """The coordinator as others see it: whoever may sign for its host may sign for it."""
    return PeerConfig(
        name=COORDINATOR,
        identity=identity_of(COORDINATOR, consortium.agreement.id),
        endpoint=places.coordinator,
        ca_bundle=_peer(consortium, consortium.agreement.coordinator, places).ca_bundle,
    )


def _peer(consortium: Consortium, name: str, places: Places) -> PeerConfig:
    entry = consortium.roster_entry(name)
    return PeerConfig(
        name=name,
        identity=identity_of(name, consortium.agreement.id),
        endpoint=places.endpoints.get(name) or (entry.endpoint if entry else None),
        ca_bundle=places.ca_bundles.get(name) or (entry.ca_bundle if entry and entry.ca_bundle else ""),
    )


def _identity(consortium: Consortium, plan: Plan, places: Places) -> IdentityConfig:
    text = canonical(consortium)
    return IdentityConfig(
        listen=places.listen,
        certificate_directory=str(places.certificates),
        agreement_id=consortium.agreement.id,
        agreement_digest=digest_of(text),
        plan_digest=plan.digest,
        agreement=text,
    )


def _model(consortium: Consortium, places: NodePlaces) -> ModelConfig:
    model = consortium.agreement.model
    checkpoint = model.source.checkpoint
    return ModelConfig(
        architecture=consortium.config,
        checkpoint=str(places.model) if checkpoint and places.model else None,
        fingerprint=checkpoint.fingerprint if checkpoint else None,
        dtype=model.dtype,
        tokenizer=model.tokenizer,
        seed=consortium.agreement.training.seed,
    )


def _training(consortium: Consortium) -> TrainingConfig:
    terms = consortium.agreement.training
    optimizer = terms.optimizer
    return TrainingConfig(
        schedule=terms.schedule,
        rounds=terms.rounds,
        steps_per_round=terms.steps_per_round,
        micro_batches_per_step=terms.micro_batches_per_step,
        in_flight=terms.in_flight,
        sequences_per_micro_batch=terms.sequences_per_micro_batch,
        sequence_length=terms.sequence_length,
        deterministic=terms.deterministic,
        evaluation_sequences=terms.evaluation.sequences,
        evaluation_every_rounds=terms.evaluation.every_rounds,
        auxiliary_loss_coefficient=float(terms.auxiliary_loss_coefficient),
        optimizer=OptimizerConfig(
            learning_rate=float(optimizer.learning_rate),
            beta1=float(optimizer.beta1),
            beta2=float(optimizer.beta2),
            epsilon=float(optimizer.epsilon),
            weight_decay=float(optimizer.weight_decay),
            warmup_steps=optimizer.warmup_steps,
            decay=optimizer.decay,
            max_grad_norm=float(optimizer.max_grad_norm),
        ),
    )


def _transport(consortium: Consortium) -> TransportConfig:
    transport, policy = consortium.agreement.transport, consortium.agreement.failure_policy
    return TransportConfig(
        wire_dtype=transport.wire_dtype,
        connections=transport.connections,
        peer_timeout_seconds=policy.peer_timeout_seconds,
        progress_timeout_seconds=policy.progress_timeout_seconds,
        rejoin_timeout_seconds=policy.rejoin_timeout_seconds,
        on_peer_loss=policy.on_peer_loss,
        max_abs=float(transport.max_abs),
    )
