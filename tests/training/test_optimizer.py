"""Decay by name, clipping as torch does it, float32 masters, and state that comes back bit by bit."""

import math

import pytest
import torch
from tests.training.small import FAMILY_FIELDS, architecture
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from pcmoe_node.config import OptimizerConfig
from pcmoe_node.optimizer import ParameterSet, decays

CONFIG = OptimizerConfig(
    learning_rate=1e-2,
    beta1=0.9,
    beta2=0.95,
    epsilon=1e-8,
    weight_decay=0.1,
    warmup_steps=0,
    decay="Constant",
    max_grad_norm=1.0,
)
SHAPES = {
    "model.layers.0.mlp.experts.down_proj": (4, 3, 2),
    "model.layers.0.mlp.experts.down_proj_bias": (4, 3),
    "model.layers.0.input_layernorm.weight": (5,),
    "model.layers.0.mlp.gate.weight": (4, 5),
}


def parameters(seed: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for name, shape in SHAPES.items()
    }


def fill(group: ParameterSet, seed: int, scale: float = 1.0) -> None:
    """Gradients as a step's backward leaves them."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in group.parameters.values():
        gradient: Tensor = parameter.main_grad  # type: ignore[attr-defined]
        gradient.add_(torch.randn(gradient.shape, generator=generator) * scale)


def step(group: ParameterSet, tokens: int = 1, factor: float = 1.0) -> float:
    return group.apply(tokens=tokens, squared_norm=group.squared_norm() / tokens**2, factor=factor)


def test_norms_and_biases_of_every_family_are_not_decayed_and_everything_else_is() -> None:
    for family in FAMILY_FIELDS:
        fields = architecture(family)
        fields.pop("model_type")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields))
        for name, parameter in model.named_parameters():
            stacked = ".experts." in name
            vector = parameter.ndim == 1 or (stacked and parameter.ndim == 2)
            sinks = name.endswith(".sinks")
            assert decays(name) is (not vector or sinks), f"{family}: {name}"


def test_only_named_groups_shrink_without_a_gradient() -> None:
    group = ParameterSet(parameters(), CONFIG)
    before = {name: p.detach().clone() for name, p in group.parameters.items()}
    group.zero()
    step(group)
    for name, parameter in group.parameters.items():
        shrunk = before[name] * (1 - 1e-2 * 0.1)
        expected = shrunk if name.endswith(("down_proj", "gate.weight")) else before[name]
        assert torch.equal(parameter.detach(), expected), name


def test_an_expert_that_nobody_asked_still_decays_and_keeps_its_momentum() -> None:
    """As in one process: its gradient is zero, not missing."""
    group = ParameterSet(parameters(), CONFIG)
    fill(group, seed=2)
    step(group)
    group.zero()
    name = "model.layers.0.mlp.experts.down_proj"
    before = group.parameters[name].detach().clone()
    moment = group.state()[f"{name}#exp_avg"].clone()
    step(group)
    torch.testing.assert_close(group.state()[f"{name}#exp_avg"], moment * 0.9)
    assert not torch.allclose(group.parameters[name].detach(), before * (1 - 1e-2 * 0.1), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("tokens", [1, 37])
def test_a_step_is_that_of_torch_with_clip_grad_norm(scale: float, tokens: int) -> None:
    ours, theirs = ParameterSet(parameters(), CONFIG), parameters()
    decayed = [p for name, p in theirs.items() if decays(name)]
    plain = [p for name, p in theirs.items() if not decays(name)]
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    for number in range(4):
        ours.zero()
        fill(ours, number, scale)
        for name, parameter in theirs.items():
            parameter.grad = ours.parameters[name].main_grad / tokens  # type: ignore[attr-defined]
        factor = (number + 1) / 4
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        for options in adamw.param_groups:
            options["lr"] = 1e-2 * factor
        adamw.step()
        assert step(ours, tokens, factor) == pytest.approx(float(norm), rel=1e-6)
    for name, parameter in theirs.items():
        torch.testing.assert_close(ours.parameters[name], parameter, rtol=1e-5, atol=1e-7)


def test_clipping_takes_the_norm_of_the_whole_group_even_where_only_a_part_is_here() -> None:
    """Hosts hold parts of one pool: two halves with the pool's norm take the steps of the whole."""
    whole, halves = ParameterSet(parameters(), CONFIG), []
    names = list(SHAPES)
    for part in (names[:2], names[2:]):
        halves.append(ParameterSet({n: p for n, p in parameters().items() if n in part}, CONFIG))
    fill(whole, 3, 10.0)
    for half in halves:
        for name, parameter in half.parameters.items():
            parameter.main_grad.copy_(whole.parameters[name].main_grad)  # type: ignore[attr-defined]
    squared = whole.squared_norm()
    assert sum(half.squared_norm() for half in halves) == pytest.approx(squared, rel=1e-12)
    step(whole)
    for half in halves:
        half.apply(tokens=1, squared_norm=squared, factor=1.0)
        for name, parameter in half.parameters.items():
            assert torch.equal(parameter, whole.parameters[name])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_element_that_is_not_finite_shows_in_the_norm(value: float) -> None:
    group = ParameterSet(parameters(), CONFIG)
    fill(group, 1)
    assert math.isfinite(group.squared_norm())
    group.parameters["model.layers.0.mlp.gate.weight"].main_grad[1, 1] = value  # type: ignore[attr-defined]
    assert not math.isfinite(group.squared_norm())


def test_masters_move_where_bfloat16_would_stand_still() -> None:
    weights = parameters(dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in weights.values():
            parameter.fill_(1.0)
    group = ParameterSet(weights, CONFIG.model_copy(update={"learning_rate": 1e-5, "weight_decay": 0.0}))
    group.accumulate_from_autograd()
    positions = []
    for _ in range(600):
        group.zero()
        for parameter in group.parameters.values():
            parameter.main_grad.fill_(1.0)  # type: ignore[attr-defined]
        group.apply(tokens=1, squared_norm=1.0, factor=1.0)
        positions.append(float(next(iter(weights.values())).detach().flatten()[0]))
    assert positions[:100] == [1.0] * 100, "a single step is below bfloat16's resolution"
    for name, parameter in weights.items():
        master = group.masters[name].detach()
        torch.testing.assert_close(master, torch.full_like(master, 1 - 600e-5), rtol=0, atol=1e-4)
        assert torch.equal(parameter.detach(), master.bfloat16())
        assert float(parameter.detach().flatten()[0]) < 1.0


def test_gradients_of_bfloat16_weights_pile_up_in_float32() -> None:
    weight = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    group = ParameterSet({"a.weight": weight}, CONFIG)
    group.accumulate_from_autograd()
    for _ in range(300):
        (weight * torch.full((8,), 1.0, dtype=torch.bfloat16)).sum().backward()
    assert weight.grad is None, "memory for a second gradient"
    assert torch.equal(weight.main_grad, torch.full((8,), 300.0)), "bfloat16 stops at 256"  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_state_comes_back_bit_by_bit(dtype: torch.dtype) -> None:
    first = ParameterSet(parameters(dtype=dtype), CONFIG)
    for number in range(3):
        first.zero()
        fill(first, number)
        step(first)
    stored = {name: tensor.clone() for name, tensor in first.state().items()}
    again = ParameterSet(parameters(seed=8, dtype=dtype), CONFIG)
    again.load(stored)
    assert again.state().keys() == stored.keys()
    for group in (first, again):
        group.zero()
        fill(group, 9)
        step(group)
    for name in SHAPES:
        assert torch.equal(first.parameters[name], again.parameters[name])
    assert all(torch.equal(tensor, again.state()[name]) for name, tensor in first.state().items())
    assert not any(torch.equal(tensor, stored[name]) for name, tensor in first.state().items())


def test_what_was_loaded_is_a_copy() -> None:
    first = ParameterSet(parameters(), CONFIG)
    fill(first, 1)
    step(first)
    stored = {name: tensor.clone() for name, tensor in first.state().items()}
    kept = {name: tensor.clone() for name, tensor in stored.items()}
    again = ParameterSet(parameters(), CONFIG)
    again.load(stored)
    fill(again, 2)
    step(again)
    assert all(torch.equal(stored[name], kept[name]) for name in kept)


def test_state_before_the_first_step_comes_back_too() -> None:
    first, again = ParameterSet(parameters(), CONFIG), ParameterSet(parameters(seed=4), CONFIG)
    again.load(first.state())
    for group in (first, again):
        fill(group, 1)
        step(group)
    assert all(torch.equal(first.parameters[name], again.parameters[name]) for name in SHAPES)


def test_a_participant_without_experts_has_an_empty_set() -> None:
    empty = ParameterSet({}, CONFIG)
    empty.zero()
    assert empty.squared_norm() == 0.0 and empty.state() == {}
    empty.apply(tokens=3, squared_norm=2.0, factor=1.0)
    empty.load({})
    assert set(empty.bytes().values()) == {0}


@pytest.mark.parametrize(("dtype", "weights", "masters"), [(torch.float32, 4, 0), (torch.bfloat16, 2, 4)])
def test_bytes_are_those_of_the_tensors(dtype: torch.dtype, weights: int, masters: int) -> None:
    group = ParameterSet(parameters(dtype=dtype), CONFIG)
    count = sum(p.numel() for p in group.parameters.values())
    fill(group, 1)
    step(group)
    assert group.bytes() == {
        "weights": weights * count,
        "masters": masters * count,
        "gradients": 4 * count,
        "moments": 8 * count,
    }
    moments = [t for name, t in group.state().items() if name.endswith(("exp_avg", "exp_avg_sq"))]
    assert sum(t.numel() * t.element_size() for t in moments) == 8 * count
