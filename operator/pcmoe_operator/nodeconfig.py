"""From the plan to what each node is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pcmoe_node.config import (
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
from pcmoe_operator.pki import identity_of as identity_of
from pcmoe_operator.plan import Plan
from pcmoe_operator.schema import Consortium


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where things are for one node: folders on its machine, and where its peers listen."""

    listen: str | None
    """`host:port` to listen on; None: it only dials out."""
    status_listen: str
    endpoints: Mapping[str, str | None] = field(default_factory=dict)
    """By participant; one that is missing or None is taken from the roster, or only dials out."""
    ca_bundles: Mapping[str, str] = field(default_factory=dict)
    """PEM text by participant; one that is missing is taken from the roster."""
    certificates: Path
    dataset: Path
    """The dataset volume; `local[].dataset.path` is below it."""
    model: Path | None = None
    """The model volume; needed when the model starts from a checkpoint."""
    checkpoint: Path
    log: Path
    order_secret: Path | None = None


def node_config(consortium: Consortium, plan: Plan, participant: str, places: Places) -> NodeConfig:
    """All that one node is told. KeyError if the participant doesn't run here."""
    local = consortium.local_entry(participant)
    agreement = consortium.agreement
    return NodeConfig(
        version="pcmoe-node/1",
        participant=participant,
        participants=tuple(_peer(consortium, name, places) for name in consortium.names),
        identity=_identity(consortium, plan, places),
        model=_model(consortium, places),
        placement=tuple(LayerPlacement(layer=item.layer, hosts=item.hosts) for item in plan.placement),
        training=_training(consortium),
        transport=_transport(consortium),
        quota=QuotaConfig(
            rows_per_message=plan.rows_per_message,
            slots_per_row=plan.slots_per_row,
            activation_bytes=plan.participants[plan.names.index(participant)].activation_bytes,
        ),
        dataset=DatasetConfig(
            path=str(places.dataset / local.dataset.path),
            format=local.dataset.format,
            text_field=local.dataset.text_field,
            held_out_percent=local.dataset.held_out_percent,
        ),
        device=local.device,
        gradient_checkpointing=local.gradient_checkpointing,
        threads=1 if agreement.training.deterministic else local.cpu_threads,
        order_secret_file=None if places.order_secret is None else str(places.order_secret),
        checkpoint_directory=str(places.checkpoint),
        checkpoint_keep=agreement.checkpoint.keep,
        log_directory=str(places.log),
        status_listen=places.status_listen,
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


def _model(consortium: Consortium, places: Places) -> ModelConfig:
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
        max_abs=float(transport.max_abs),
    )
