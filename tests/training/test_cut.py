"""The cut backward on unmodified models of every family is plain backward, and sends nothing twice."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training import small
from tests.training.small import Steps, architecture, plain_gradients, run_steps, small_configs
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from pcmoe_node import model as node_model
from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import ConfigError
from pcmoe_node.exchange.base import Kind, Message
from pcmoe_node.experts import shard_of
from pcmoe_node.lanes import Lane
from pcmoe_node.model import FAMILIES, build


class _EagerAttention:
    """Builds models as `AutoModelForCausalLM` does, with eager attention: gpt-oss has no other on the CPU."""

    @staticmethod
    def from_config(config: Any, **settings: Any) -> Any:
        return AutoModelForCausalLM.from_config(config, **{**settings, "attn_implementation": "eager"})


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Names of the gradients that are not the same bit by bit, with the largest difference."""
    assert set(found) == set(expected), sorted(set(found) ^ set(expected))
    return [
        f"{name}: {float((found[name] - expected[name]).abs().max()):.1e}"
        for name in found
        if not torch.equal(found[name], expected[name])
    ]


def assert_exact(configs: list[NodeConfig], steps: Steps) -> None:
    """Bitwise what plain backward computes with the same experts function."""
    owners, experts = plain_gradients(configs[0], shards=True)
    for index, owner in enumerate(owners):
        found = steps.gradients[index][0]
        assert differing(found.backbone, owner.backbone) == []
        assert found.loss == owner.loss
        mine = {name.partition("/")[2]: g for name, g in experts.items() if name.startswith(f"{index}/")}
        assert differing(found.experts, mine) == []
        assert all(float(g.abs().max()) > 0 for g in found.experts.values()), "a test of nothing"


def assert_close_to_transformers(configs: list[NodeConfig], steps: Steps) -> None:
    """What stock transformers computes on one model, up to rounding."""
    owners, experts = plain_gradients(configs[0], shards=False)
    for index, owner in enumerate(owners):
        found = steps.gradients[index][0]
        for name, gradient in owner.backbone.items():
            torch.testing.assert_close(found.backbone[name], gradient, rtol=1e-4, atol=1e-5 * _size(gradient))
    for place in configs[0].placement:
        assert place.hosts is not None
        for name, whole in experts.items():
            if f"layers.{place.layer}." not in name:
                continue
            for host in range(len(configs)):
                mine = [expert for expert, at in enumerate(place.hosts) if at == host]
                found_rows = steps.gradients[host][0].experts[name]
                torch.testing.assert_close(found_rows, whole[mine], rtol=1e-4, atol=1e-5 * _size(whole))


def _size(gradient: Tensor) -> float:
    return float(gradient.abs().max())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_gradients_of_the_cut_are_those_of_plain_backward(
    family: str, n: int, checkpointing: bool, tmp_path: Path
) -> None:
    auxiliary = 0.01 if n == 2 else 0.0
    configs = small_configs(
        tmp_path,
        n,
        architecture(family),
        training={"auxiliary_loss_coefficient": auxiliary},
        gradient_checkpointing=checkpointing,
    )
    steps = run_steps(configs)
    assert_exact(configs, steps)
    assert_close_to_transformers(configs, steps)


def test_tied_embeddings_stay_one_parameter(tmp_path: Path) -> None:
    configs = small_configs(tmp_path, 2, architecture("olmoe", tie_word_embeddings=True))
    steps = run_steps(configs)
    assert "lm_head.weight" not in steps.nodes[0].backbone.parameters
    assert_exact(configs, steps)


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss"])
def test_the_cut_alone_would_hold_for_families_that_are_refused_for_other_reasons(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSeek's router bias is a buffer that no checkpoint is read into; gpt-oss has no sdpa attention."""
    assert family not in FAMILIES
    monkeypatch.setattr(node_model, "FAMILIES", FAMILIES | {family})
    if family == "gpt_oss":
        monkeypatch.setattr(node_model, "AutoModelForCausalLM", _EagerAttention)
    configs = small_configs(tmp_path, 2, architecture(family))
    assert_exact(configs, run_steps(configs))


def test_several_micro_batches_in_flight_add_up_to_the_same_gradients(tmp_path: Path) -> None:
    fields = architecture("olmoe")
    together_, alone = (
        run_steps(
            small_configs(
                tmp_path / str(flight),
                2,
                fields,
                training={
                    "micro_batches_per_step": 4,
                    "in_flight": flight,
                    "sequences_per_micro_batch": 1,
                },
            )
        )
        for flight in (4, 1)
    )
    for index in range(2):
        found, expected = together_.gradients[index][0], alone.gradients[index][0]
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
        for ours, theirs in ((found.backbone, expected.backbone), (found.experts, expected.experts)):
            for name in theirs:
                torch.testing.assert_close(
                    ours[name], theirs[name], rtol=1e-4, atol=1e-5 * _size(theirs[name])
                )


def test_no_message_is_sent_twice_with_gradient_checkpointing(tmp_path: Path) -> None:
    counts = {}
    for checkpointing in (False, True):
        messages: list[tuple[int, int, Message]] = []
        configs = small_configs(
            tmp_path / str(checkpointing),
            2,
            architecture("olmoe"),
            training={"micro_batches_per_step": 3, "in_flight": 2},
            gradient_checkpointing=checkpointing,
        )
        run_steps(configs, steps=2, hook=small.every_message(messages))
        counts[checkpointing] = Counter(
            (sender, m.header.kind, m.header.step, m.header.micro_batch, m.header.layer)
            for sender, _, m in messages
        )
    assert counts[True] == counts[False]
    assert set(counts[True].values()) == {1}
    pairs = 2 * 2 * 3 * 3  # owners, steps, micro-batches, layers
    for kind in (Kind.FORWARD, Kind.FORWARD_REPLY, Kind.BACKWARD, Kind.BACKWARD_REPLY):
        assert sum(n for key, n in counts[True].items() if key[1] is kind) == pairs


class _Never:
    ready = False


def test_a_wait_inside_autograd_raises() -> None:
    class Waits(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:
            lane.wait(_Never())
            return dy

    def work() -> None:
        Waits.apply(torch.ones(2, requires_grad=True)).sum().backward()

    lane = Lane(work, "a lane")
    with pytest.raises(AssertionError, match="inside autograd"):
        lane.resume()
    assert lane.finished
    lane.cancel()


def test_a_cancelled_lane_unwinds_its_stack_and_ends_its_thread() -> None:
    unwound: list[bool] = []

    def work() -> None:
        try:
            lane.wait(_Never())
        finally:
            unwound.append(True)

    lane = Lane(work, "a lane")
    lane.resume()
    assert not lane.finished and not lane.ready
    lane.cancel()
    assert unwound == [True] and lane.finished
    not_begun = Lane(work, "a second lane")
    not_begun.cancel()
    assert unwound == [True] and not_begun.finished


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "granitemoe"}, "model_type is 'granitemoe'"),
        ({"model_type": None}, "model_type is None"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1, must be 0"),
        ({"model_type": "mixtral", "router_jitter_noise": 0.01}, "router_jitter_noise is 0.01, must be 0"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config must be absent"),
    ],
    ids=["family", "no family", "dropout", "jitter", "quantised"],
)
def test_an_architecture_that_cannot_be_trained_is_refused_naming_the_field(
    fields: dict[str, Any], named: str, tmp_path: Path
) -> None:
    configs = small_configs(tmp_path, 1, architecture("olmoe"))
    broken = {**architecture("olmoe"), **fields}
    model = configs[0].model.model_copy(update={"architecture": json.dumps(broken)})
    with pytest.raises(ConfigError, match="model.architecture: ") as caught:
        build(configs[0].model_copy(update={"model": model}), torch.device("cpu"))
    assert named in str(caught.value)


def test_experts_with_a_parameter_they_share_are_refused_naming_it() -> None:
    class Experts(nn.Module):
        num_experts = 4
        is_transposed = False

        def __init__(self) -> None:
            super().__init__()
            self.down_proj = nn.Parameter(torch.empty(4, 3, 2, device="meta"))
            self.shared_scale = nn.Parameter(torch.empty(2, 3, device="meta"))

    with pytest.raises(ConfigError) as caught:
        shard_of(Experts(), 2, "model.layers.1.mlp.experts")
    assert str(caught.value) == (
        "model.layers.1.mlp.experts.shared_scale: first dimension is 2, must be the number of experts 4"
    )


def test_an_auxiliary_loss_is_refused_for_a_family_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_model, "FAMILIES", FAMILIES | {"deepseek_v3"})
    configs = small_configs(
        tmp_path, 1, architecture("deepseek_v3"), training={"auxiliary_loss_coefficient": 0.01}
    )
    with pytest.raises(ConfigError, match="training.auxiliary_loss_coefficient"):
        run_steps(configs)


def test_a_placement_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    configs = small_configs(tmp_path, 1, architecture("qwen3_moe"))
    place = configs[0].placement[0]
    wrong = (
        ((place.model_copy(update={"layer": 0}),), "decoder layer 0 has no experts"),
        (configs[0].placement[:1], "decoder layer 2 has experts"),
        (
            (place.model_copy(update={"hosts": (0, 0)}), configs[0].placement[1]),
            "layer 1 has 6 experts, 2 are placed",
        ),
    )
    for placement, rule in wrong:
        with pytest.raises(ConfigError, match=rule):
            build(configs[0].model_copy(update={"placement": placement}), torch.device("cpu"))
