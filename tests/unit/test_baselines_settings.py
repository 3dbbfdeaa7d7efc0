"""What a baseline is told, from what the consortium's nodes are told."""

from pathlib import Path
from typing import Any

import pytest
from tests.exchange.rigs import changed, node_configs

from pcmoe_node.baselines.settings import Baseline, Kind, baseline_of
from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import ConfigError
from pcmoe_node.protocol.round import owners

TRAINING: dict[str, Any] = {"rounds": 6, "steps_per_round": 5, "micro_batches_per_step": 2, "in_flight": 2}


@pytest.fixture
def configs(tmp_path: Path) -> list[NodeConfig]:
    return node_configs(3, tmp_path, training=TRAINING)


def sequential(configs: list[NodeConfig]) -> list[NodeConfig]:
    optimizer = configs[0].training.optimizer.model_dump() | {"warmup_steps": 7}
    return [changed(c, training={"schedule": "Sequential", "optimizer": optimizer}) for c in configs]


def hosts_of(baseline: Baseline) -> list[tuple[int, ...] | None]:
    return [place.hosts for place in baseline.config.placement]


@pytest.mark.parametrize("kind", [Kind.ALONE_ALL, Kind.ALONE_SHARD])
def test_alone_is_a_consortium_of_one_with_as_many_steps(kind: Kind, configs: list[NodeConfig]) -> None:
    made = baseline_of(kind, configs[1:2])
    told, own = made.config, configs[1]
    assert [peer.name for peer in told.participants] == [own.participant]
    assert (told.index, told.total_steps) == (0, own.total_steps)
    assert made.steps_of_rounds == (5,) * 6
    kept = (
        "model",
        "dataset",
        "transport",
        "quota",
        "order_secret_file",
        "gradient_checkpointing",
        "threads",
    )
    assert all(getattr(told, name) == getattr(own, name) for name in kept)
    terms, agreed = told.training, own.training
    same = (
        "micro_batches_per_step",
        "sequences_per_micro_batch",
        "sequence_length",
        "optimizer",
        "deterministic",
    )
    assert all(getattr(terms, name) == getattr(agreed, name) for name in same)
    assert terms.evaluation_sequences == agreed.evaluation_sequences
    assert terms.auxiliary_loss_coefficient == agreed.auxiliary_loss_coefficient


def test_all_experts_are_at_home_or_only_those_of_the_plan(configs: list[NodeConfig]) -> None:
    placement = [{"layer": 0, "hosts": [0, 1, 2, 0, 1, 2, 0, 1]}, {"layer": 2, "hosts": None}]
    own = changed(configs[1], placement=placement)
    assert hosts_of(baseline_of(Kind.ALONE_ALL, [own])) == [(0,) * 8, None]
    assert hosts_of(baseline_of(Kind.ALONE_SHARD, [own])) == [(0,) * 3, None]


def test_the_union_has_everybodys_micro_batches_in_each_step(configs: list[NodeConfig]) -> None:
    made = baseline_of(Kind.UNION, configs[::-1])
    assert [config.participant for config in made.of] == [config.participant for config in configs]
    assert made.config.training.micro_batches_per_step == 3 * 2
    assert made.config.total_steps == configs[0].total_steps
    assert made.name == "union"


def test_with_turns_a_participant_alone_takes_its_own_only(configs: list[NodeConfig]) -> None:
    turns = sequential(configs)
    made = [baseline_of(Kind.ALONE_ALL, [config]) for config in turns]
    total = turns[0].total_steps
    for index, baseline in enumerate(made):
        mine = [s for s in range(total) if index in owners("Sequential", s, 3, turns[0].model.seed)]
        assert baseline.config.total_steps == len(mine) == sum(baseline.steps_of_rounds)
        assert baseline.config.training.optimizer.warmup_steps == 3
    assert [sum(steps) for steps in zip(*(b.steps_of_rounds for b in made), strict=True)] == [5] * 6


def test_with_turns_the_union_takes_all_of_them(configs: list[NodeConfig]) -> None:
    made = baseline_of(Kind.UNION, sequential(configs))
    assert made.steps_of_rounds == (5,) * 6
    assert made.config.training.micro_batches_per_step == 2
    assert made.config.training.optimizer.warmup_steps == 7


@pytest.mark.parametrize(
    ("rounds", "agreed", "every"), [(1, 1, 1), (4, 1, 1), (5, 1, 2), (8, 1, 2), (20, 1, 5), (8, 3, 3)]
)
def test_it_evaluates_four_times_at_most_after_the_beginning(
    rounds: int, agreed: int, every: int, configs: list[NodeConfig]
) -> None:
    config = changed(configs[0], training={"rounds": rounds, "evaluation_every_rounds": agreed})
    assert baseline_of(Kind.ALONE_ALL, [config]).evaluate_every == every


def test_alone_is_about_one_participant(configs: list[NodeConfig]) -> None:
    with pytest.raises(ConfigError, match="alone-all is about one participant, 2 were given"):
        baseline_of(Kind.ALONE_ALL, configs[:2])


def test_the_union_misses_nobody_and_has_one_agreement(configs: list[NodeConfig]) -> None:
    with pytest.raises(
        ConfigError, match="needs every participant's once, amsterdam, berlin, lyon; given: amsterdam"
    ):
        baseline_of(Kind.UNION, configs[:2])
    other = changed(configs[2], identity={"agreement_digest": "sha256:" + "0" * 64})
    with pytest.raises(ConfigError, match="of one agreement"):
        baseline_of(Kind.UNION, [*configs[:2], other])


def test_who_hosts_no_expert_has_nothing_to_train_with_alone(configs: list[NodeConfig]) -> None:
    own = changed(configs[2], placement=[{"layer": 0, "hosts": [0, 1] * 4}])
    with pytest.raises(ConfigError, match="lyon hosts no expert of layer 0"):
        baseline_of(Kind.ALONE_SHARD, [own])
