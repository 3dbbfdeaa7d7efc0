"""What a baseline is told: the participant's own configuration, as that of a consortium of one. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pcmoe_node.config import LayerPlacement, NodeConfig, TrainingConfig
from pcmoe_node.errors import ConfigError
from pcmoe_node.protocol.round import owners

EVALUATIONS = 4
"""A baseline evaluates before training and at most so often after it: its last loss counts, the others draw a line."""


class Kind(StrEnum):
    """What is compared with the consortium."""

    ALONE_ALL = "alone-all"
    """One participant's data; every expert of every layer is held and trained here: N times the experts' memory."""
    ALONE_SHARD = "alone-shard"
    """One participant's data; only the experts that the plan gives it, and of its routers only their rows."""
    UNION = "union"
    """One backbone and every expert, everybody's data: only where all data may lie on one machine. A reference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """One process to run."""

    kind: Kind
    of: tuple[NodeConfig, ...]
    """As the consortium's nodes are told, in participant order: one of them, or with `union` all."""
    config: NodeConfig
    """What this process is told: one member, all of its steps as one round."""
    steps_of_rounds: tuple[int, ...]
    """Its own steps in each round of the consortium."""
    evaluate_every: int
    """Rounds."""

    @property
    def name(self) -> str:
        """Kind and participant, for people."""
        return self.kind if self.kind is Kind.UNION else f"{self.kind} of {self.of[0].participant}"


def baseline_of(kind: Kind, configs: Sequence[NodeConfig]) -> Baseline:
    """The baseline of one participant, or of all; `ConfigError` where these configurations make none."""
    own = _checked(kind, configs)
    first, steps = own[0], _steps_of_rounds(kind, own[0])
    members = len(first.participants)
    training = first.training
    sole = first.model_copy(
        update={
            "participants": (first.participants[first.index],),
            "placement": tuple(_placed(kind, first, place) for place in first.placement),
            "training": _training(kind, training, members, sum(steps)),
        }
    )
    return Baseline(
        kind=kind,
        of=own,
        config=sole,
        steps_of_rounds=steps,
        evaluate_every=max(training.evaluation_every_rounds, -(-training.rounds // EVALUATIONS)),
    )


def _checked(kind: Kind, configs: Sequence[NodeConfig]) -> tuple[NodeConfig, ...]:
    """The configurations in participant order, if they are what this kind needs."""
    own = sorted(configs, key=lambda config: config.index)
    if kind is not Kind.UNION:
        if len(own) != 1:
            raise ConfigError(f"--config: {kind} is about one participant, {len(own)} were given")
        return tuple(own)
    names = [config.participant for config in own]
    wanted = [peer.name for peer in own[0].participants] if own else []
    if names != wanted:
        raise ConfigError(
            f"--config: union needs every participant's once, {', '.join(wanted)}; given: {', '.join(names)}"
        )
    if len({config.identity.agreement_digest for config in own}) != 1:
        raise ConfigError("--config: union needs configurations of one agreement; their digests differ")
    return tuple(own)


def _steps_of_rounds(kind: Kind, config: NodeConfig) -> tuple[int, ...]:
    """Alone, a participant takes its own turns only: as many steps on as many tokens as in the consortium."""
    training, members = config.training, len(config.participants)

    def counts(step: int) -> bool:
        return kind is Kind.UNION or config.index in owners(
            training.schedule, step, members, config.model.seed
        )

    per_round = training.steps_per_round
    return tuple(
        sum(counts(step) for step in range(number * per_round, (number + 1) * per_round))
        for number in range(training.rounds)
    )


def _placed(kind: Kind, config: NodeConfig, place: LayerPlacement) -> LayerPlacement:
    """Everything that is here is hosted by the only member; local layers stay what they are."""
    if place.hosts is None:
        return place
    held = len(place.hosts) if kind is not Kind.ALONE_SHARD else place.hosts.count(config.index)
    if held == 0:
        raise ConfigError(
            f"placement: {config.participant} hosts no expert of layer {place.layer}: it can't train with its own alone"
        )
    return LayerPlacement(layer=place.layer, hosts=(0,) * held)


def _training(kind: Kind, training: TrainingConfig, members: int, steps: int) -> TrainingConfig:
    """Nothing travels, so one micro-batch at a time. With turns, the schedule passes over the own ones."""
    turns = training.schedule == "Sequential" and kind is not Kind.UNION
    together = members if training.schedule == "Concurrent" and kind is Kind.UNION else 1
    warmup = training.optimizer.warmup_steps
    optimizer = training.optimizer.model_copy(
        update={"warmup_steps": -(-warmup // members) if turns else warmup}
    )
    return training.model_copy(
        update={
            "schedule": "Concurrent",
            "rounds": 1,
            "steps_per_round": steps,
            "micro_batches_per_step": together * training.micro_batches_per_step,
            "in_flight": 1,
            "optimizer": optimizer,
        }
    )
