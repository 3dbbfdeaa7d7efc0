"""The host: the same bits whatever it keeps and whatever arrives first."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.small import architecture, run_steps, small_configs
from torch import Tensor
from transformers import AutoConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

from pcmoe_node.experts import Batch, Shard
from pcmoe_node.host import Host
from pcmoe_node.protocol.effects import Phase

HIDDEN, HOSTED, LAYER = 16, 4, 2
Answers = dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]]


def make_shard(family: str = "olmoe", dtype: torch.dtype = torch.float32) -> Shard:
    fields = architecture(family, num_experts=HOSTED, num_local_experts=HOSTED)
    fields.pop("model_type")
    kind = {"olmoe": OlmoeExperts, "gpt_oss": GptOssExperts}[family]
    module = kind(AutoConfig.for_model(family, **fields)).to(dtype)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
            parameter.main_grad = torch.zeros(parameter.shape)
    return Shard(module)


def make_batch(seed: int, rows: int = 9, experts: int = HOSTED, dtype: torch.dtype = torch.float32) -> Batch:
    """Rows with one to three slots each."""
    generator = torch.Generator().manual_seed(seed)
    counts_R = torch.randint(1, 4, (rows,), generator=generator)
    slots = int(counts_R.sum())
    return Batch(
        torch.randn(rows, HIDDEN, generator=generator).to(dtype),
        counts_R,
        torch.cat([torch.randperm(experts, generator=generator)[:n] for n in counts_R.tolist()])
        if rows
        else torch.zeros(0, dtype=torch.int64),
        torch.rand(slots, generator=generator),
    )


def make_host(shard: Shard, *, budget: int = 1 << 30, ordered: bool = True) -> Host:
    host = Host({LAYER: shard}, activation_bytes=budget, ordered=ordered, backlog=4)
    host.begin_step((0, 1), 2)
    return host


def gradients(shard: Shard) -> list[Tensor]:
    return [p.main_grad.clone() for p in shard.module.parameters()]  # type: ignore[attr-defined]


EVERY = [(micro_batch, owner) for micro_batch in range(2) for owner in range(2)]


def serve(host: Host, order: list[tuple[int, int]], rows: int = 9) -> Answers:
    """Both owners' two micro-batches, in the given order of (micro-batch, owner); (y, dx, dweights) of each."""
    answers: Answers = {}
    outputs = {}
    for micro_batch, owner in order:
        batch = make_batch(10 * micro_batch + owner, rows)
        outputs[micro_batch, owner], _ = host.forward(Phase.FORWARD, (owner, micro_batch, LAYER), batch)
    for micro_batch, owner in order:
        generator = torch.Generator().manual_seed(100 + 10 * micro_batch + owner)
        dy_RH = torch.randn(rows, HIDDEN, generator=generator)
        dx_RH, dweights_S = host.backward((owner, micro_batch, LAYER), dy_RH)
        answers[micro_batch, owner] = (outputs[micro_batch, owner], dx_RH, dweights_S)
    host.deferred.play_all()
    return answers


def assert_same_bits(found: Answers, expected: Answers) -> None:
    for key in expected:
        assert all(torch.equal(a, b) for a, b in zip(found[key], expected[key], strict=True)), key


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_recomputing_gives_the_same_bits_as_keeping(family: str) -> None:
    kept, recomputed = make_shard(family), make_shard(family)
    expected = serve(make_host(kept), EVERY)
    found = serve(make_host(recomputed, budget=0), EVERY)
    assert_same_bits(found, expected)
    for ours, theirs in zip(gradients(recomputed), gradients(kept), strict=True):
        assert torch.equal(ours, theirs)
        assert float(ours.abs().max()) > 0


def test_a_budget_for_one_message_keeps_one_and_takes_it_back_after_its_backward() -> None:
    shard = make_shard()
    batch = make_batch(1)
    host = make_host(shard, budget=shard.activation_bytes(batch))
    assert host.forward(Phase.FORWARD, (0, 0, LAYER), batch)[1] is False, "kept: the input is not needed"
    assert host.forward(Phase.FORWARD, (1, 0, LAYER), batch)[1] is True, "beyond the budget: it is"
    host.backward((0, 0, LAYER), torch.ones(9, HIDDEN))
    assert host.forward(Phase.FORWARD, (0, 1, LAYER), batch)[1] is False


def test_evaluation_keeps_nothing() -> None:
    shard = make_shard()
    host = make_host(shard)
    batch = make_batch(1)
    y_RH, needed = host.forward(Phase.EVALUATE, (0, 0, LAYER), batch)
    assert not needed and not y_RH.requires_grad and not host._kept
    assert torch.equal(y_RH, host.forward(Phase.FORWARD, (0, 0, LAYER), batch)[0])


@pytest.mark.parametrize("order", list(itertools.permutations(EVERY)), ids=str)
def test_ordered_sums_have_the_same_bits_whatever_arrives_first(order: tuple[tuple[int, int], ...]) -> None:
    first, other = make_shard(), make_shard()
    serve(make_host(first), EVERY)
    serve(make_host(other), list(order))
    for ours, theirs in zip(gradients(other), gradients(first), strict=True):
        assert torch.equal(ours, theirs)


def test_additions_are_made_by_micro_batch_then_owner_and_none_before_its_turn() -> None:
    host = make_host(make_shard())
    made: list[tuple[int, int]] = []
    for micro_batch, owner in reversed(EVERY[1:]):
        host.deferred.put((owner, micro_batch, LAYER), partial(made.append, (micro_batch, owner)))
    assert not host.deferred.play_one(), "the first one's turn has not come"
    host.deferred.put((0, 0, LAYER), lambda: made.append((0, 0)))
    host.deferred.play_all()
    assert made == EVERY


def test_only_so_many_additions_may_be_put_off() -> None:
    host = make_host(make_shard(), ordered=False)
    for _ in range(4):
        host.deferred.put((0, 0, LAYER), lambda: None)
    assert not host.deferred.crowded
    host.deferred.put((0, 0, LAYER), lambda: None)
    assert host.deferred.crowded
    host.deferred.play_one()
    assert not host.deferred.crowded


def test_a_step_that_was_skipped_leaves_nothing_for_the_next() -> None:
    """The votes of a skipped step are cast without adding up what waits; it must never be added."""
    for ordered in (True, False):
        shard = make_shard()
        host = make_host(shard, ordered=ordered)
        host.forward(Phase.FORWARD, (0, 0, LAYER), make_batch(1))
        host.backward((0, 0, LAYER), torch.ones(9, HIDDEN))
        host.forward(Phase.FORWARD, (1, 1, LAYER), make_batch(2))  # its BACKWARD never comes
        host.begin_step((0, 1), 2)
        host.deferred.play_all()
        assert all(float(g.abs().max()) == 0 for g in gradients(shard)), f"ordered: {ordered}"
        assert host._bytes_kept == 0
        assert_same_bits(serve(host, EVERY), serve(make_host(make_shard()), EVERY))


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_experts_without_a_row_keep_zero_gradients(family: str) -> None:
    shard = make_shard(family)
    host = make_host(shard)
    batch = make_batch(1, experts=2)
    only_two = Batch(batch.x_RH, batch.counts_R.clamp(max=1), batch.experts_S[:9] % 2, batch.weights_S[:9])
    host.forward(Phase.FORWARD, (0, 0, LAYER), only_two)
    host.backward((0, 0, LAYER), torch.ones(9, HIDDEN))
    host.deferred.play_all()
    for gradient in gradients(shard):
        assert bool((gradient[2:] == 0).all())
        assert float(gradient[:2].abs().max()) > 0


def test_a_message_without_rows_is_answered_and_adds_nothing() -> None:
    shard = make_shard()
    host = make_host(shard)
    answers = serve(host, EVERY, rows=0)
    for y_RH, dx_RH, dweights_S in answers.values():
        assert y_RH.shape == dx_RH.shape == (0, HIDDEN) and dweights_S.shape == (0,)
    assert all(float(g.abs().max()) == 0 for g in gradients(shard))


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_gradients_are_those_of_a_loop_over_experts_in_float64(family: str) -> None:
    shard = make_shard(family)
    host = make_host(shard)
    batch = make_batch(3)
    dy_RH = torch.randn(9, HIDDEN, generator=torch.Generator().manual_seed(1))
    y_RH, _ = host.forward(Phase.FORWARD, (0, 0, LAYER), batch)
    dx_RH, dweights_S = host.backward((0, 0, LAYER), dy_RH)
    host.deferred.play_all()

    exact = make_shard(family).module.double()
    x, weights = batch.x_RH.double().requires_grad_(), batch.weights_S.double().requires_grad_()
    expected = direct_formula(family, exact, x, weights, batch)
    expected.backward(dy_RH.double())
    torch.testing.assert_close(y_RH.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert x.grad is not None and weights.grad is not None
    torch.testing.assert_close(dx_RH.double(), x.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dweights_S.double(), weights.grad, rtol=1e-4, atol=1e-5)
    for ours, parameter in zip(gradients(shard), exact.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(ours.double(), parameter.grad, rtol=1e-4, atol=1e-5)


def direct_formula(family: str, exact: Any, x: Tensor, weights: Tensor, batch: Batch) -> Tensor:
    """Slot by slot, as the family's definition reads."""
    rows = torch.repeat_interleave(batch.counts_R).tolist()
    sums = [torch.zeros(HIDDEN, dtype=torch.float64) for _ in range(x.shape[0])]
    p = dict(exact.named_parameters())
    for slot, (row, expert) in enumerate(zip(rows, batch.experts_S.tolist(), strict=True)):
        if family == "olmoe":
            gate, up = (p["gate_up_proj"][expert] @ x[row]).chunk(2)
            out = p["down_proj"][expert] @ (torch.nn.functional.silu(gate) * up)
        else:
            both = x[row] @ p["gate_up_proj"][expert] + p["gate_up_proj_bias"][expert]
            gate, up = both[::2].clamp(max=exact.limit), both[1::2].clamp(-exact.limit, exact.limit)
            glu = gate * torch.sigmoid(gate * exact.alpha)
            out = ((up + 1) * glu) @ p["down_proj"][expert] + p["down_proj_bias"][expert]
        sums[row] = sums[row] + weights[slot] * out
    return torch.stack(sums)


def test_gradients_of_bfloat16_experts_are_added_in_float32() -> None:
    shard = make_shard(dtype=torch.bfloat16)
    host = make_host(shard, ordered=False)
    for micro_batch in range(2):
        for owner in range(2):
            batch = make_batch(micro_batch, dtype=torch.bfloat16)
            host.forward(Phase.FORWARD, (owner, micro_batch, LAYER), batch)
            host.backward((owner, micro_batch, LAYER), torch.ones(9, HIDDEN, dtype=torch.bfloat16))
    host.deferred.play_all()
    for gradient in gradients(shard):
        assert gradient.dtype == torch.float32
        assert not torch.equal(gradient, gradient.bfloat16().float()), "rounded to bfloat16 on the way"


@pytest.mark.parametrize("budget", [0, 2000], ids=["none", "some"])
def test_a_run_with_a_small_budget_has_the_same_bits_as_one_without_limit(
    budget: int, tmp_path: Path
) -> None:
    runs = [
        run_steps(
            small_configs(
                tmp_path / str(bytes_),
                2,
                architecture("olmoe"),
                training={"micro_batches_per_step": 2, "in_flight": 2},
                quota={"activation_bytes": bytes_},
            ),
            steps=2,
        )
        for bytes_ in (1 << 30, budget)
    ]
    for index in range(2):
        for ours, theirs in zip(runs[1].gradients[index], runs[0].gradients[index], strict=True):
            assert ours.loss == theirs.loss
            assert all(torch.equal(ours.backbone[n], theirs.backbone[n]) for n in theirs.backbone)
            assert all(torch.equal(ours.experts[n], theirs.experts[n]) for n in theirs.experts)
