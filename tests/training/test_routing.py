"""From choices to one message per host and back: exact, in a secret order, and checked against each other."""

import itertools
from dataclasses import replace

import pytest
import torch
from tests.training.small import architecture
from torch import Tensor
from transformers import AutoConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

from pcmoe_node.exchange.base import WireDtype
from pcmoe_node.experts import Batch, Shard
from pcmoe_node.moe import INTEGRITY_TOLERANCE
from pcmoe_node.routing import (
    ExpertMap,
    Route,
    combine,
    gather_gradients,
    integrity_gap,
    routes,
    scatter_gradients,
    secret_order,
)

SECRET = bytes(range(32))
HOSTS = (0, 1, 2, 0, 1, 2, 0, 1, 0, 2)


def draw(seed: int, *, tokens: int = 40, top_k: int = 3, experts: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """(ids [T, K], weights [T, K], order [T]) at random; a token's experts differ from each other."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, experts, generator=generator)
    weights_TK, ids_TK = scores.softmax(-1).topk(top_k)
    return ids_TK, weights_TK, secret_order(SECRET, "rows", (0, seed, 0, 1), tokens)


def slots_of(route: Route) -> Tensor:
    """Slots per row, counted again from the rows of the slots."""
    return torch.bincount(route.row_of_S, minlength=route.rows_R.shape[0])


@pytest.mark.parametrize("seed", range(5))
def test_every_slot_goes_out_exactly_once_to_the_host_of_its_expert(seed: int) -> None:
    ids_TK, weights_TK, order_T = draw(seed)
    experts = ExpertMap.of(HOSTS)
    out = routes(ids_TK, weights_TK, experts, order_T, 3)
    every = torch.cat([route.slots_S for route in out])
    assert torch.equal(every.sort().values, torch.arange(ids_TK.numel()))
    mine = {host: [e for e, at in enumerate(HOSTS) if at == host] for host in range(3)}
    for host, route in enumerate(out):
        chosen = ids_TK.reshape(-1)[route.slots_S]
        assert [mine[host][local] for local in route.experts_S.tolist()] == chosen.tolist()
        assert torch.equal(route.rows_R[route.row_of_S], route.slots_S // ids_TK.shape[1])
        assert len(set(route.rows_R.tolist())) == route.rows_R.shape[0], "a token is sent once to a host"
        assert torch.equal(slots_of(route), route.counts_R)
        assert torch.equal(route.row_of_S, route.row_of_S.sort().values), "slots are sorted by row"


def expert_outputs(ids_TK: Tensor, weights_TK: Tensor, hidden: int = 8) -> tuple[Tensor, Tensor]:
    """(outputs of each slot's expert [T, K, H], the direct formula Σ w·y [T, H]) in float64."""
    generator = torch.Generator().manual_seed(3)
    y_TKH = torch.randn(*ids_TK.shape, hidden, generator=generator, dtype=torch.float64)
    return y_TKH, (weights_TK.double().unsqueeze(-1) * y_TKH).sum(1)


def host_rows(route: Route, y_TKH: Tensor) -> Tensor:
    """What an honest host returns: Σ of its weighted outputs per row."""
    flat = y_TKH.reshape(-1, y_TKH.shape[-1]).float()
    rows = torch.zeros(route.rows_R.shape[0], flat.shape[1])
    return rows.index_add_(0, route.row_of_S, flat[route.slots_S] * route.weights_S.unsqueeze(1))


@pytest.mark.parametrize(("tokens", "top_k"), [(40, 3), (1, 1), (7, 6)])
def test_combining_the_hosts_rows_gives_the_direct_formula(tokens: int, top_k: int) -> None:
    ids_TK, weights_TK, order_T = draw(1, tokens=tokens, top_k=top_k)
    y_TKH, expected_TH = expert_outputs(ids_TK, weights_TK)
    out = routes(ids_TK, weights_TK, ExpertMap.of(HOSTS), order_T, 3)
    found = combine(out, [host_rows(route, y_TKH) for route in out], torch.zeros(tokens, 8))
    torch.testing.assert_close(found.double(), expected_TH, rtol=1e-6, atol=1e-6)


def test_scattered_gradients_are_those_of_the_direct_formula() -> None:
    ids_TK, weights_TK, order_T = draw(2)
    y_TKH, _ = expert_outputs(ids_TK, weights_TK)
    dy_TH = torch.randn(40, 8, generator=torch.Generator().manual_seed(4))
    out = routes(ids_TK, weights_TK, ExpertMap.of(HOSTS), order_T, 3)
    flat = y_TKH.reshape(-1, 8).float()
    dx, dweights = [], []
    for route in out:
        dy_RH = gather_gradients(route, dy_TH)
        dweights.append((dy_RH[route.row_of_S] * flat[route.slots_S]).sum(1))
        # An expert that hands its input's gradient back unchanged: dx of a slot = w·dy.
        dx_SH = dy_RH[route.row_of_S] * route.weights_S.unsqueeze(1)
        dx.append(torch.zeros_like(dy_RH).index_add_(0, route.row_of_S, dx_SH))
    dx_TH, dweights_TK = scatter_gradients(out, dx, dweights, dy_TH, 3)
    torch.testing.assert_close(dx_TH, dy_TH * weights_TK.sum(1, keepdim=True), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        dweights_TK.double(), (dy_TH.unsqueeze(1).double() * y_TKH).sum(-1), rtol=1e-5, atol=1e-6
    )


def test_weights_are_normalised_per_row_and_host() -> None:
    ids_TK, weights_TK, order_T = draw(3)
    for route in routes(ids_TK, weights_TK, ExpertMap.of(HOSTS), order_T, 3):
        sums = torch.zeros_like(route.scale_R).index_add_(0, route.row_of_S, route.weights_S)
        torch.testing.assert_close(sums, torch.ones_like(sums))
        single = route.counts_R[route.row_of_S] == 1
        assert bool((route.weights_S[single] == 1).all()), "a single slot carries no weight at all"
        torch.testing.assert_close(
            route.weights_S * route.scale_R[route.row_of_S], weights_TK.reshape(-1)[route.slots_S]
        )


def test_rows_whose_weights_sum_to_zero_stay_exact() -> None:
    ids_TK = torch.tensor([[0, 3], [0, 3], [1, 2]])
    weights_TK = torch.tensor([[0.5, -0.5], [0.0, 0.0], [0.0, 1.0]])
    out = routes(ids_TK, weights_TK, ExpertMap.of(HOSTS), torch.tensor([2, 0, 1]), 3)
    assert torch.equal(out[0].scale_R, torch.ones(2))
    assert out[0].weights_S.tolist() == [0.5, -0.5, 0.0, 0.0]
    y_TKH, expected_TH = expert_outputs(ids_TK, weights_TK)
    found = combine(out, [host_rows(route, y_TKH) for route in out], torch.zeros(3, 8))
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found.double(), expected_TH, rtol=1e-6, atol=1e-6)


def test_a_host_that_no_token_chose_gets_an_empty_route() -> None:
    ids_TK = torch.tensor([[0, 3], [3, 6]])
    weights_TK = torch.full((2, 2), 0.5)
    out = routes(ids_TK, weights_TK, ExpertMap.of(HOSTS), torch.arange(2), 4)
    for route in out[1:]:
        assert route.rows_R.shape == route.counts_R.shape == route.slots_S.shape == (0,)
        assert integrity_gap(route, (torch.zeros(0, 8), torch.zeros(0)), torch.zeros(0, 8)) == 0.0
    y_TKH, expected_TH = expert_outputs(ids_TK, weights_TK)
    rows = [host_rows(route, y_TKH) for route in out]
    torch.testing.assert_close(combine(out, rows, torch.zeros(2, 8)).double(), expected_TH)
    assert gather_gradients(out[1], torch.zeros(2, 8)).shape == (0, 8)


def test_the_order_is_a_permutation_that_depends_on_secret_purpose_and_every_number() -> None:
    numbers = (7, 1, 2, 1)
    first = secret_order(SECRET, "rows", numbers, 64)
    assert torch.equal(first.sort().values, torch.arange(64))
    assert torch.equal(first, secret_order(SECRET, "rows", numbers, 64))
    others = [secret_order(SECRET[::-1], "rows", numbers, 64), secret_order(SECRET, "other", numbers, 64)]
    for place in range(4):
        changed = tuple(n + (i == place) for i, n in enumerate(numbers))
        others.append(secret_order(SECRET, "rows", changed, 64))
    for a, b in itertools.combinations([first, *others], 2):
        assert not torch.equal(a, b)


def test_the_order_does_not_depend_on_the_public_seed_or_any_generator() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = secret_order(SECRET, "rows", (0, 0, 0, 1), 32)
        state = torch.get_rng_state()
        torch.manual_seed(2)
        assert torch.equal(first, secret_order(SECRET, "rows", (0, 0, 0, 1), 32))
        torch.manual_seed(1)
        assert torch.equal(state, torch.get_rng_state()), "the shared generator was drawn from"


def test_the_order_takes_more_of_the_secret_than_a_host_could_try_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch.Generator keeps 32 bits of a seed on the CPU: an order drawn from it could be found by trying all."""

    def forbidden(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a generator with 32 bits of state")

    monkeypatch.setattr(torch, "randperm", forbidden)
    assert sorted(secret_order(SECRET, "rows", (1,), 8).tolist()) == list(range(8))
    assert secret_order(SECRET, "rows", (1,), 0).tolist() == []
    assert secret_order(SECRET, "rows", (1,), 1).tolist() == [0]


# ---- the integrity check: outputs and gradients fit together


def shard(dtype: torch.dtype = torch.float32) -> Shard:
    """The experts of a host: four of OLMoE's, hidden size 16."""
    fields = architecture("olmoe", num_experts=4)
    fields.pop("model_type")
    module = OlmoeExperts(AutoConfig.for_model("olmoe", **fields)).to(dtype)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(9)
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return Shard(module)


def exchange(
    host: Shard, seed: int, wire: torch.dtype, dtype: torch.dtype = torch.float32
) -> tuple[Route, tuple[Tensor, Tensor], Tensor]:
    """(route, (dy as the owner has it, dweights as returned), y as returned) of an honest host over the wire."""
    ids_TK, weights_TK, order_T = draw(seed, tokens=30, experts=4, top_k=2)
    (route,) = routes(ids_TK, weights_TK, ExpertMap.of((0,) * 4), order_T, 1)
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** float(torch.randint(-9, 3, (), generator=generator))
    x_TH = torch.randn(30, 16, generator=generator).to(dtype)
    dy_TH = (torch.randn(30, 16, generator=generator) * scale).to(dtype)
    batch = Batch(x_TH[route.rows_R].to(wire).to(dtype), route.counts_R, route.experts_S, route.weights_S)
    y_RH, saved = host.forward(batch, keep=True)
    assert saved is not None
    dy_RH = gather_gradients(route, dy_TH)
    _, dweights_S, _ = host.backward(saved, dy_RH.to(wire).to(dtype))
    return route, (dy_RH, dweights_S), y_RH.to(wire).to(dtype)


@pytest.mark.parametrize(
    ("wire", "dtype"),
    [
        (WireDtype.FLOAT32, torch.float32),
        (WireDtype.BFLOAT16, torch.float32),
        (WireDtype.BFLOAT16, torch.bfloat16),
    ],
    ids=["fp32", "bf16 wire", "bf16"],
)
def test_honest_answers_stay_well_below_the_tolerance(wire: WireDtype, dtype: torch.dtype) -> None:
    host = shard(dtype)
    wire_dtype = {WireDtype.FLOAT32: torch.float32, WireDtype.BFLOAT16: torch.bfloat16}[wire]
    draws = 300 if dtype is torch.float32 else 60  # bfloat16 is slow on the CPU
    worst = max(integrity_gap(*exchange(host, seed, wire_dtype, dtype)) for seed in range(draws))
    assert worst < INTEGRITY_TOLERANCE[wire] / 3


@pytest.mark.parametrize("wire", [WireDtype.FLOAT32, WireDtype.BFLOAT16])
def test_swapped_rows_stale_weights_and_corruption_are_found(wire: WireDtype) -> None:
    host = shard()
    wire_dtype = {WireDtype.FLOAT32: torch.float32, WireDtype.BFLOAT16: torch.bfloat16}[wire]
    tolerance = INTEGRITY_TOLERANCE[wire]
    for seed in range(30):
        route, (dy_RH, dweights_S), y_RH = exchange(host, seed, wire_dtype)
        assert integrity_gap(route, (dy_RH, dweights_S), y_RH) < tolerance
        assert integrity_gap(route, (dy_RH, dweights_S), y_RH.roll(1, 0)) > tolerance
        assert integrity_gap(route, (dy_RH, dweights_S.roll(1)), y_RH) > tolerance
        one_row = y_RH.clone()
        products = (dy_RH * y_RH).sum(1).abs()
        one_row[products.argsort()[15]] *= -1  # neither the largest nor the smallest
        assert integrity_gap(route, (dy_RH, dweights_S), one_row) > tolerance
        half = torch.cat([y_RH[:, :8], torch.zeros_like(y_RH[:, 8:])], dim=1)
        assert integrity_gap(route, (dy_RH, dweights_S), half) > tolerance


@pytest.mark.parametrize("hidden", [64, 4096])
@pytest.mark.parametrize("outlier", [1.0, 300.0], ids=["even", "one massive feature"])
def test_in_bfloat16_the_check_tells_rounding_from_swapped_rows_at_every_width(
    hidden: int, outlier: float
) -> None:
    ids_TK, weights_TK, order_T = draw(1, tokens=30, experts=4, top_k=2)
    (route,) = routes(ids_TK, weights_TK, ExpertMap.of((0,) * 4), order_T, 1)
    generator = torch.Generator().manual_seed(hidden)
    y_SH = torch.randn(60, hidden, generator=generator)
    dy_RH = torch.randn(30, hidden, generator=generator)
    y_SH[:, 0] *= outlier
    dy_RH[:, 0] *= outlier
    y_RH = torch.zeros(30, hidden).index_add_(0, route.row_of_S, y_SH * route.weights_S.unsqueeze(1))
    y_RH, sent_RH = y_RH.bfloat16().float(), dy_RH.bfloat16().float()
    dweights_S = (sent_RH[route.row_of_S] * y_SH).sum(1)
    tolerance = INTEGRITY_TOLERANCE[WireDtype.BFLOAT16]
    assert integrity_gap(route, (dy_RH, dweights_S), y_RH) < tolerance / 3
    assert integrity_gap(route, (dy_RH, dweights_S), y_RH.roll(1, 0)) > tolerance


def test_an_answer_of_other_weights_is_found() -> None:
    """A host whose backward runs on another version of its experts than its forward did."""
    host = shard()
    route, (dy_RH, dweights_S), _ = exchange(host, 1, torch.float32)
    with torch.no_grad():
        for parameter in host.module.parameters():
            parameter.mul_(1.1)
    _, _, newer_RH = exchange(host, 1, torch.float32)
    assert integrity_gap(route, (dy_RH, dweights_S), newer_RH) > INTEGRITY_TOLERANCE[WireDtype.FLOAT32]
    _, _, same_RH = exchange(shard(), 1, torch.float32)
    other = replace(route, weights_S=route.weights_S.flip(0))
    assert integrity_gap(other, (dy_RH, dweights_S), same_RH) > INTEGRITY_TOLERANCE[WireDtype.FLOAT32]


def test_vanishing_gradients_are_not_mistaken_for_a_fault() -> None:
    """A confident model's gradients may be far below what float32 can square."""
    host = shard()
    for exponent in (-15, -19, -21, -25, -30, -38):
        ids_TK, weights_TK, order_T = draw(1, tokens=30, experts=4, top_k=2)
        (route,) = routes(ids_TK, weights_TK, ExpertMap.of((0,) * 4), order_T, 1)
        generator = torch.Generator().manual_seed(1)
        x_RH = torch.randn(30, 16, generator=generator)
        dy_RH = torch.randn(30, 16, generator=generator) * 10.0**exponent
        y_RH, saved = host.forward(Batch(x_RH, route.counts_R, route.experts_S, route.weights_S), keep=True)
        assert saved is not None
        _, dweights_S, _ = host.backward(saved, dy_RH)
        assert integrity_gap(route, (dy_RH, dweights_S), y_RH) < 1e-4


def test_zero_gradients_fit_and_a_gap_that_is_no_number_does_not() -> None:
    route, (dy_RH, dweights_S), y_RH = exchange(shard(), 1, torch.float32)
    zeros = torch.zeros_like(dy_RH), torch.zeros_like(dweights_S)
    assert integrity_gap(route, zeros, y_RH) == 0.0
    huge = dweights_S.clone()
    row = int(torch.nonzero(route.counts_R > 1)[0])
    slots = torch.nonzero(route.row_of_S == row).flatten()
    huge[slots[0]], huge[slots[1]] = 3e38, -3e38
    twice = replace(route, weights_S=route.weights_S * 10)
    assert not integrity_gap(twice, (dy_RH, huge), y_RH) <= 1e-3
