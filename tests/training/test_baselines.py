"""The baselines: the same arithmetic as the consortium's, less the others; held to one member, and to the oracle."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.exchange.rigs import changed, node_configs
from tests.training import small
from tests.training.oracle import Oracle
from tests.training.runs import (
    QWEN3_MOE,
    Case,
    configs_of,
    oracle_of,
    rounds_of,
    run_local,
    stored_of,
)
from torch import Tensor

from pcmoe_node.baselines.settings import Kind, baseline_of
from pcmoe_node.baselines.shard import build_shard, by_width
from pcmoe_node.baselines.training import Training, run_baseline
from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import ConfigError
from pcmoe_node.model import FAMILIES, auxiliary_loss_function, build, decoder_layers
from pcmoe_node.participant import tensors
from pcmoe_node.step import Participant

CASE = Case(
    n=1, deterministic=True, rounds=2, steps_per_round=4, auxiliary=0.01, architecture=dict(QWEN3_MOE)
)
SPREAD = replace(CASE, n=3, placement="CapacityWeighted", rounds=2, steps_per_round=3)


def baseline(kind: Kind, configs: list[NodeConfig], output: Path) -> Training:
    """Train one, from the configurations as `pcmoe run` writes them."""
    return run_baseline(baseline_of(kind, configs), output)


def lines_of(output: Path, kind: Kind, name: str) -> list[dict[str, Any]]:
    """What a baseline wrote for one participant."""
    config = NodeConfig.model_construct(log_directory=str(output / kind / name / "log"))
    return rounds_of(config)


def weights_of(node: Participant) -> dict[str, Tensor]:
    """Every master weight by name."""
    return {name: t.detach().clone() for name, t in tensors(node).items() if name.endswith("#master")}


def assert_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == []


@pytest.mark.parametrize("kind", [Kind.ALONE_ALL, Kind.ALONE_SHARD, Kind.UNION])
def test_a_consortium_of_one_is_each_of_its_baselines_bit_for_bit(kind: Kind, tmp_path: Path) -> None:
    configs = configs_of(CASE, tmp_path)
    run_local(configs)
    trained = baseline(kind, configs, tmp_path / "baselines")
    assert_bits(tensors(trained.node), stored_of(configs, CASE.rounds)[0])
    mine, node = lines_of(tmp_path / "baselines", kind, configs[0].participant), rounds_of(configs[0])
    for own, other in zip(mine, node, strict=True):
        same = ("round", "step", "trainLoss", "heldOutLoss", "tokens", "stepsApplied", "stepsSkipped", "gpus")
        assert {key: own[key] for key in same} == {key: other[key] for key in same}
        assert own["memory"]["tensorBytes"] == other["memory"]["tensorBytes"]
        assert own["memory"].keys() == other["memory"].keys()
        assert own.keys() == other.keys()


def test_alone_with_all_experts_equals_an_oracle_with_one_member(tmp_path: Path) -> None:
    """Whoever it is in the consortium, and however its experts were placed there."""
    configs = configs_of(SPREAD, tmp_path)
    trained = baseline(Kind.ALONE_ALL, configs[1:2], tmp_path / "baselines")
    oracle = oracle_of(replace(SPREAD, n=1), configs[1:2])
    losses = [oracle.step(step)[0] for step in range(SPREAD.rounds * SPREAD.steps_per_round)]
    assert oracle.smallest_gap > 1e-5
    assert_near(trained.node, oracle)
    lines = lines_of(tmp_path / "baselines", Kind.ALONE_ALL, configs[1].participant)
    half = SPREAD.steps_per_round
    for line, steps in zip(lines[1:], (losses[:half], losses[half:]), strict=True):
        expected = sum(loss for loss, _ in steps) / sum(tokens for _, tokens in steps)
        assert line["trainLoss"] == pytest.approx(expected, rel=1e-6)
        assert line["tokens"] == sum(tokens for _, tokens in steps)


def assert_near(node: Participant, oracle: Oracle) -> None:
    """The weights of a baseline beside those of an oracle with one model."""
    expected = oracle.backbones[0] | oracle.shared
    found = {name.partition("/")[2].removesuffix("#master"): t for name, t in weights_of(node).items()}
    assert set(found) == set(expected)
    for name, weight in found.items():
        gap = torch.linalg.vector_norm(weight - expected[name].detach())
        assert float(gap) <= 1e-6 * float(torch.linalg.vector_norm(weight)), name


def test_the_shard_is_exactly_what_the_plan_gives_and_its_routers_know_no_other(tmp_path: Path) -> None:
    configs = configs_of(SPREAD, tmp_path)
    whole = baseline(Kind.ALONE_ALL, configs[1:2], tmp_path / "all").node
    trained = baseline(Kind.ALONE_SHARD, configs[1:2], tmp_path / "shard")
    node, hosts = trained.node, SPREAD.hosts()
    mine = [expert for expert, host in enumerate(hosts) if host == 1]
    assert 0 < len(mine) < len(hosts)
    for layer, module in enumerate(decoder_layers(node.built.model)):
        router = module.get_submodule("mlp.gate")
        local = layer in SPREAD.local_layers
        rows = len(hosts) if local else len(mine)
        assert router.get_parameter("weight").shape[0] == router.num_experts == rows
        assert router.top_k == 3
        assert (layer in node.built.shards) is not local
        if not local:
            held = node.built.shards[layer].module
            assert {parameter.shape[0] for parameter in held.parameters()} == {len(mine)}
    full, own = whole.experts.bytes(), node.experts.bytes()
    assert own["weights"] * len(hosts) == full["weights"] * len(mine)
    assert node.backbone.bytes()["weights"] < whole.backbone.bytes()["weights"]


def test_the_shard_begins_with_the_plans_rows_and_experts(tmp_path: Path) -> None:
    case = replace(SPREAD, learning_rate=1e-30)
    configs = configs_of(case, tmp_path)
    whole = weights_of(baseline(Kind.ALONE_ALL, configs[2:], tmp_path / "all").node)
    own = weights_of(baseline(Kind.ALONE_SHARD, configs[2:], tmp_path / "shard").node)
    mine = [expert for expert, host in enumerate(case.hosts()) if host == 2]
    for name, weight in own.items():
        expected = whole[name]
        torch.testing.assert_close(weight, expected if weight.shape == expected.shape else expected[mine])
    assert sum(own[name].shape != whole[name].shape for name in own) == 3 * (case.layers - case.local_at_end)


def test_fewer_experts_than_a_token_uses_are_all_used_and_that_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    case = replace(CASE, n=5)  # ten experts, two each, three per token
    node = baseline(Kind.ALONE_SHARD, configs_of(case, tmp_path)[3:4], tmp_path / "shard").node
    shared = decoder_layers(node.built.model)[0].get_submodule("mlp.gate")
    assert [shared.top_k, shared.num_experts] == [2, 2]
    assert decoder_layers(node.built.model)[-1].get_submodule("mlp.gate").top_k == 3
    assert "layer 0: 2 experts per token instead of 3: no more are here" in caplog.text


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_router_of_every_family_can_be_cut_down(family: str, tmp_path: Path) -> None:
    fields = small.architecture(family)
    hosts = [0, 1, 1, 0, 0, 0]
    placement = [{"layer": layer, "hosts": hosts} for layer in small.expert_layers(fields)]
    config = node_configs(2, tmp_path, model={"architecture": json.dumps(fields)}, placement=placement)[0]
    whole, own = (make(config, torch.device("cpu")) for make in (build, build_shard))
    routers = [name for name in own.backbone if name.endswith(".gate.weight")]
    assert len(routers) == len(placement)
    for name, parameter in own.backbone.items():
        rows = [0, 3, 4, 5] if name in routers else slice(None)
        assert torch.equal(parameter, whole.backbone[name][rows]), name
    hidden = torch.randn(7, small.HIDDEN)
    for name in routers:
        _, weights, chosen = own.model.get_submodule(name.removesuffix(".weight"))(hidden)
        assert weights.shape == chosen.shape == (7, small.TOP_K)
        assert int(chosen.max()) < 4


def test_a_participant_without_experts_has_no_shard_to_train_with(tmp_path: Path) -> None:
    configs = configs_of(CASE, tmp_path)
    placement = [{"layer": i, "hosts": [1] * 10} for i in range(2)] + [{"layer": 2, "hosts": None}]
    with pytest.raises(ConfigError, match="hosts no expert of layer 0"):
        baseline_of(Kind.ALONE_SHARD, [changed(configs[0], placement=placement)])


@pytest.mark.parametrize("schedule", ["Concurrent", "Sequential"])
def test_every_kind_trains_on_exactly_the_consortiums_tokens(schedule: str, tmp_path: Path) -> None:
    case = replace(SPREAD, schedule=schedule, steps_per_round=5, micro_batches=1)
    configs = configs_of(case, tmp_path)
    run_local(configs)
    node = {config.participant: rounds_of(config) for config in configs}
    output = tmp_path / "baselines"
    for config in configs:
        for kind in (Kind.ALONE_ALL, Kind.ALONE_SHARD):
            baseline(kind, [config], output)
            found = [(line["step"], line["tokens"]) for line in lines_of(output, kind, config.participant)]
            assert found == [(line["step"], line["tokens"]) for line in node[config.participant]]
    baseline(Kind.UNION, configs[::-1], output)
    every = [sum(line["tokens"] for line in lines) for lines in zip(*node.values(), strict=True)]
    for config in configs:
        assert [line["tokens"] for line in lines_of(output, Kind.UNION, config.participant)] == every


def test_before_training_everybodys_held_out_loss_is_the_consortiums(tmp_path: Path) -> None:
    configs = configs_of(SPREAD, tmp_path)
    run_local(configs)
    output = tmp_path / "baselines"
    baseline(Kind.UNION, configs, output)
    losses = [lines_of(output, Kind.UNION, config.participant)[0]["heldOutLoss"] for config in configs]
    expected = [rounds_of(config)[0]["heldOutLoss"] for config in configs]
    assert losses == pytest.approx(expected, rel=1e-6)
    assert len(set(losses)) == len(configs)


def test_the_union_equals_plain_training_of_one_model_on_all_batches(tmp_path: Path) -> None:
    configs = configs_of(replace(SPREAD, schedule="Concurrent"), tmp_path)
    trained = baseline(Kind.UNION, configs, tmp_path / "baselines")
    several = oracle_of(SPREAD, configs).recipe
    one = oracle_of(replace(SPREAD, n=1), configs[:1])
    one.recipe = replace(
        several,
        owners=lambda _step: [0],
        batches=lambda _owner, step: [
            batch for owner in range(SPREAD.n) for batch in several.batches(owner, step)
        ],
    )
    for step in range(SPREAD.rounds * SPREAD.steps_per_round):
        one.step(step)
    assert one.smallest_gap > 1e-5
    assert_near(trained.node, one)


def test_an_order_drawn_by_the_node_is_taken_from_its_last_stored_round(tmp_path: Path) -> None:
    configs = [changed(config, order_secret_file=None) for config in configs_of(CASE, tmp_path)]
    with pytest.raises(ConfigError, match="has no stored round"):
        baseline(Kind.ALONE_ALL, configs, tmp_path / "baselines")
    run_local(configs)
    expected = stored_of(configs, CASE.rounds)[0]
    under_way = Path(configs[0].checkpoint_directory) / "round-000009.tmp"
    under_way.mkdir()
    trained = baseline(Kind.ALONE_ALL, configs, tmp_path / "baselines")
    assert_bits(tensors(trained.node), expected)
    assert under_way.exists(), "it must only read"


def test_a_second_try_writes_its_journal_from_the_beginning(tmp_path: Path) -> None:
    configs = configs_of(replace(CASE, rounds=1), tmp_path)
    for _ in range(2):
        baseline(Kind.ALONE_ALL, configs, tmp_path / "baselines")
    lines = lines_of(tmp_path / "baselines", Kind.ALONE_ALL, configs[0].participant)
    assert [line["round"] for line in lines] == [0, 1]


def test_the_balance_of_layers_of_one_width_is_the_familys_own(tmp_path: Path) -> None:
    model = baseline(Kind.ALONE_ALL, configs_of(CASE, tmp_path), tmp_path / "x").node.built.model
    function = auxiliary_loss_function(model)
    torch.manual_seed(1)
    wide, narrow = [torch.randn(12, 10) for _ in range(3)], [torch.randn(12, 4) for _ in range(2)]
    assert torch.equal(by_width(function)(wide, 10, 3), function(tuple(wide), 10, 3))
    mixed = by_width(function)([*narrow, *wide], 10, 3)
    assert float(mixed) == pytest.approx(
        float(function(tuple(narrow), 4, 3)) * 0.4 + float(function(tuple(wide), 10, 3)) * 0.6
    )
