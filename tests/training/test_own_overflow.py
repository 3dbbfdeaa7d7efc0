"""An overflow of one's own skips the step for all, is never sent, and ends the run when it doesn't stop."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.small import (
    HIDDEN,
    Steps,
    architecture,
    no_thread_left,
    outcomes,
    run_steps,
    small_configs,
)
from torch import Tensor, nn

import pcmoe_node.__main__ as entry
from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import DivergedError
from pcmoe_node.exchange.base import Kind, Message
from pcmoe_node.exchange.layout import REPLIES, REQUESTS, sections
from pcmoe_node.participant import assemble
from pcmoe_node.step import Participant, evaluate

INF = float("inf")
BERLIN = 1
Inject = Callable[[Participant], None]


def all_finite(sender: int, receiver: int, message: Message, deliver: Callable[[], None]) -> None:
    """A hook: nothing that isn't finite and within bounds may ever be sent."""
    header, payload = message.header, message.payload
    if header.kind in REQUESTS + REPLIES and header.rows:
        assert payload is not None
        values = torch.frombuffer(payload.view, dtype=torch.float32, count=header.rows * HIDDEN)
        assert float(values.abs().max()) <= 10_000, f"{header.kind.name} of {sender} isn't within bounds"
        at = sections(header, HIDDEN)
        if header.kind in (Kind.FORWARD, Kind.EVALUATE, Kind.BACKWARD_REPLY):
            slots = torch.frombuffer(payload.view, dtype=torch.float32, count=header.slots, offset=at.weights)
            assert bool(torch.isfinite(slots).all()), f"{header.kind.name} of {sender} isn't finite"
    deliver()


def spoil(name: str, change: Callable[[Any], Any], when: Callable[[int], bool]) -> Inject:
    """Change what a module gives, in the steps that `when` names."""

    def inject(node: Participant) -> None:
        def hook(_module: nn.Module, _args: object, output: Any) -> Any:
            return change(output) if when(node.conductor.machine.version) else output

        node.built.model.get_submodule(name).register_forward_hook(hook)

    return inject


def spoil_gradient(logits_BSV: Tensor) -> Tensor:
    logits_BSV.register_hook(lambda gradient: gradient * 1e30)
    return logits_BSV


def spoil_weights(output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    logits_TE, weights_TK, ids_TK = output
    return logits_TE, weights_TK * float("nan"), ids_TK


def in_step_1(version: int) -> bool:
    return version == 1


SPOILED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "hidden states": ("model.embed_tokens", lambda x: x * INF),
    "beyond the bound": ("model.layers.1.post_attention_layernorm", lambda x: x * 1e6),
    "in the last layer": ("model.layers.2.post_attention_layernorm", lambda x: x * INF),
    "router weights": ("model.layers.1.mlp.gate", spoil_weights),
    "loss": ("lm_head", lambda x: x * INF),
    "gradient": ("lm_head", spoil_gradient),
}


def skipped_in_the_middle(folder: Path, spoiled: dict[int, Inject], **overrides: Any) -> Steps:
    """Three steps of two nodes, step 1 spoiled; the masters before and after it are the same."""
    masters: dict[tuple[int, int], dict[str, Tensor]] = {}

    def before_step(index: int, node: Participant, step: int) -> None:
        both = node.backbone.masters | node.experts.masters
        masters[index, step] = {name: master.detach().clone() for name, master in both.items()}

    def prepare(index: int, node: Participant) -> None:
        if index in spoiled:
            spoiled[index](node)

    training = {"micro_batches_per_step": 2, "in_flight": 2, "steps_per_round": 3}
    configs = small_configs(folder, 2, architecture("olmoe"), training=training, **overrides)
    steps = run_steps(configs, steps=3, hook=all_finite, prepare=prepare, before_step=before_step)
    for index in range(2):
        assert [decision.apply for decision in steps.decisions[index]] == [True, False, True]
        first, second, third = (masters[index, step] for step in range(3))
        assert any(not torch.equal(first[name], second[name]) for name in first)
        assert all(torch.equal(second[name], third[name]) for name in second), "a skipped step was applied"
    return steps


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("what", SPOILED)
def test_a_step_with_an_own_overflow_is_skipped_by_all(
    what: str, checkpointing: bool, tmp_path: Path
) -> None:
    inject = spoil(*SPOILED[what], in_step_1)
    settings = {"gradient_checkpointing": checkpointing}
    one = skipped_in_the_middle(tmp_path / "one", {BERLIN: inject}, **settings)
    assert one.decisions[0][1].reason == one.decisions[1][1].reason == "owner berlin was not ok"
    assert one.nodes[BERLIN].overflows == 0


@pytest.mark.parametrize("ordered", [True, False], ids=["deterministic", "as it comes"])
def test_gradients_of_a_skipped_step_are_never_added_to_the_next(ordered: bool, tmp_path: Path) -> None:
    """The step after has the gradients it would have if nobody had contributed anything to the skipped one."""
    steps = []
    for spoiled in ((BERLIN,), (0, BERLIN)):
        inject = spoil(*SPOILED["loss"], in_step_1)
        configs = small_configs(
            tmp_path / str(len(spoiled)),
            2,
            architecture("olmoe"),
            training={"deterministic": ordered, "steps_per_round": 3},
        )
        steps.append(
            run_steps(
                configs,
                steps=3,
                prepare=lambda i, node, to=spoiled, do=inject: do(node) if i in to else None,  # type: ignore[misc]
            )
        )
    for index in range(2):
        ours, theirs = (run.gradients[index][-1].experts for run in steps)
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def grow(node: Participant, factor: float) -> None:
    """Make the hosted experts' outputs too large for anybody."""
    with torch.no_grad():
        for name, parameter in node.built.hosted.items():
            if name.endswith("down_proj"):
                parameter.mul_(factor)


@pytest.mark.parametrize("factor", [1e6, INF], ids=str)
def test_a_host_whose_experts_overflow_skips_the_step_and_is_not_taken_for_a_liar(
    factor: float, tmp_path: Path
) -> None:
    def before_step(index: int, node: Participant, step: int) -> None:
        if index == BERLIN and step in (1, 2):
            if step == 1:
                kept.update({n: p.detach().clone() for n, p in node.built.hosted.items()})
                grow(node, factor)
            else:
                with torch.no_grad():
                    for name, parameter in node.built.hosted.items():
                        parameter.copy_(kept[name])

    kept: dict[str, Tensor] = {}
    configs = small_configs(tmp_path, 2, architecture("olmoe"), training={"steps_per_round": 3})
    steps = run_steps(configs, steps=3, hook=all_finite, before_step=before_step)
    for decisions in steps.decisions:
        assert [decision.apply for decision in decisions] == [True, False, True]
        assert "berlin" in (decisions[1].reason or "")
    assert [node.overflows for node in steps.nodes] == [0, 0]


def with_nodes(monkeypatch: pytest.MonkeyPatch, change: Inject) -> None:
    """Let `change` spoil berlin's node in whole runs."""

    def assembled(config: NodeConfig, secret: bytes) -> Participant:
        node = assemble(config, secret)
        if config.participant == "berlin":
            change(node)
        return node

    monkeypatch.setattr(entry, "assemble", assembled)


WHOLE_RUNS: dict[str, Inject] = {
    "own losses": spoil("lm_head", lambda x: x * INF, lambda version: version >= 2),
    "own experts": lambda node: grow(node, 1e6),
}


@pytest.mark.parametrize("what", WHOLE_RUNS)
def test_ten_overflows_in_a_row_end_the_run_naming_whose_they_were(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_nodes(monkeypatch, WHOLE_RUNS[what])
    configs = small_configs(tmp_path, 3, architecture("olmoe"), training={"steps_per_round": 30})
    with no_thread_left():
        errors = outcomes(configs, all_finite)
    assert all(isinstance(error, DivergedError) for error in errors), errors
    assert errors[BERLIN].exit_code == 69
    last = 11 if what == "own losses" else 9
    assert "10 steps in a row" in str(errors[BERLIN]) and str(errors[BERLIN]).endswith(f"is {last}")
    for index in (0, 2):
        assert "berlin ended the run: own losses" in str(errors[index])


def test_an_overflow_now_and_then_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_nodes(monkeypatch, spoil("lm_head", lambda x: x * INF, lambda version: version % 5 != 4))
    configs = small_configs(
        tmp_path, 2, architecture("olmoe", num_hidden_layers=1), training={"steps_per_round": 20}
    )
    assert outcomes(configs, all_finite) == [None, None]


@pytest.mark.parametrize("schedule", ["Concurrent", "Sequential"])
def test_a_learning_rate_that_blows_everything_up_ends_everywhere_as_diverged(
    schedule: str, tmp_path: Path
) -> None:
    configs = small_configs(
        tmp_path,
        2,
        architecture("olmoe"),
        training={
            "steps_per_round": 60,
            "schedule": schedule,
            "optimizer": {
                "learning_rate": 1e6,
                "beta1": 0.9,
                "beta2": 0.95,
                "epsilon": 1e-8,
                "weight_decay": 0.1,
                "warmup_steps": 0,
                "decay": "Constant",
                "max_grad_norm": 1.0,
            },
        },
    )
    errors = outcomes(configs, all_finite)
    assert all(isinstance(error, DivergedError) for error in errors), errors


def test_a_held_out_loss_of_numbers_that_overflow_is_no_number(tmp_path: Path) -> None:
    """Metrics show it as such; `/status` and the journal have no NaN, and say null."""
    found: dict[int, float | None] = {}

    def prepare(index: int, node: Participant) -> None:
        if index == BERLIN:
            WHOLE_RUNS["own losses"](node)
            spoil("model.layers.1.post_attention_layernorm", lambda x: x * 1e6, lambda _: True)(node)
        found[index] = evaluate(node)

    configs = small_configs(
        tmp_path,
        2,
        architecture("olmoe"),
        training={"evaluation_sequences": 2},
        dataset={"held_out_percent": 10},
    )
    run_steps(configs, steps=1, hook=all_finite, prepare=prepare)
    assert math.isnan(found[BERLIN] or 0.0)
    assert math.isfinite(found[0] or math.nan)
