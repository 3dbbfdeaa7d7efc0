"""The oracle: all N backbones and the shared experts in one process, in plain transformers and torch.

Written from the rules alone. It takes batches and hyper-parameters, and imports nothing of the node's exchange,
moe, rounds, optimizer or protocol.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the oracle is told."""

    architecture: str
    checkpoint: Path
    local_layers: frozenset[int]
    total_steps: int
    owners: Callable[[int], Sequence[int]]
    """Owners of a step."""
    batches: Callable[[int, int], Sequence[tuple[Tensor, Tensor, Tensor]]]
    """(owner, step) to its micro-batches: ids, labels (shifted, -100 = none), positions; each [B, S]."""
    auxiliary: float
    learning_rate: float
    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    warmup: int
    max_norm: float


def build(architecture: str, checkpoint: Path) -> Any:
    """A whole, unmodified model with the checkpoint's weights."""
    fields = json.loads(architecture)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, experts_implementation="grouped_mm")
    weights = load_file(checkpoint / "model.safetensors")
    model.load_state_dict(weights, strict=True)
    return model.train()


class Oracle:
    """N models that share the experts modules of every layer that isn't local."""

    def __init__(self, members: int, recipe: Recipe) -> None:
        self.recipe = recipe
        self.models = [build(recipe.architecture, recipe.checkpoint) for _ in range(members)]
        self.shared: dict[str, nn.Parameter] = {}
        self.smallest_gap = math.inf
        self.decisions = 0
        for index, layer in enumerate(self.models[0].model.layers):
            if index in recipe.local_layers or not hasattr(layer.mlp, "experts"):
                continue
            for other in self.models[1:]:
                other.model.layers[index].mlp.experts = layer.mlp.experts
            for name, parameter in layer.mlp.experts.named_parameters():
                self.shared[f"model.layers.{index}.mlp.experts.{name}"] = parameter
        shared = {id(parameter) for parameter in self.shared.values()}
        self.backbones = [
            {name: p for name, p in model.named_parameters() if id(p) not in shared} for model in self.models
        ]
        self.optimizers = [self._adamw(b) for b in self.backbones]
        self.experts_optimizer = self._adamw(self.shared)
        for model in self.models:
            for module in model.modules():
                if type(module).__name__.endswith("Router"):
                    module.register_forward_hook(self._watch_gap)

    def _adamw(self, parameters: dict[str, nn.Parameter]) -> torch.optim.AdamW | None:
        if not parameters:
            return None
        plain = [p for n, p in parameters.items() if "norm" in n or n.endswith("bias")]
        decayed = [p for n, p in parameters.items() if not ("norm" in n or n.endswith("bias"))]
        recipe = self.recipe
        return torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": recipe.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            betas=recipe.betas,
            eps=recipe.epsilon,
        )

    def _watch_gap(self, module: Any, _args: object, output: tuple[Tensor, ...]) -> None:
        """The smallest difference between the last expert chosen and the first one not."""
        ordered = output[0].detach().sort(dim=-1, descending=True).values
        gaps = ordered[:, module.top_k - 1] - ordered[:, module.top_k]
        self.smallest_gap = min(self.smallest_gap, float(gaps.min()))
        self.decisions += gaps.numel()

    def step(self, step: int) -> dict[int, tuple[float, int]]:
        """One step; returns each owner's summed loss and supervised tokens."""
        recipe, owners = self.recipe, self.recipe.owners(step)
        for parameter in (*self.shared.values(), *(p for b in self.backbones for p in b.values())):
            parameter.grad = torch.zeros_like(parameter)
        losses: dict[int, tuple[float, int]] = {}
        total = 0
        for owner in owners:
            summed, tokens = 0.0, 0
            for batch in recipe.batches(owner, step):
                supervised = int((batch[1] != -100).sum())
                summed += self._backward(self.models[owner], batch, supervised)
                tokens += supervised
            losses[owner] = summed, tokens
            total += tokens
        groups = [(self.shared, self.experts_optimizer)]
        groups += [(self.backbones[owner], self.optimizers[owner]) for owner in owners]
        for parameters, optimizer in groups:
            self._apply(parameters, optimizer, total, step)
        return losses

    def _backward(self, model: Any, batch: tuple[Tensor, Tensor, Tensor], tokens: int) -> float:
        ids, labels, positions = batch
        coefficient = self.recipe.auxiliary
        out = model(
            input_ids=ids, position_ids=positions, use_cache=False, output_router_logits=coefficient > 0
        )
        loss = nn.functional.cross_entropy(
            out.logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
        )
        total = loss + coefficient * out.aux_loss * tokens if coefficient else loss
        total.backward()
        return float(loss.detach())

    def _apply(
        self, parameters: dict[str, nn.Parameter], optimizer: torch.optim.AdamW | None, total: int, step: int
    ) -> None:
        if optimizer is None:
            return
        for parameter in parameters.values():
            assert parameter.grad is not None
            parameter.grad /= total
        nn.utils.clip_grad_norm_(parameters.values(), self.recipe.max_norm)
        for group in optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * self._factor(step)
        optimizer.step()

    def _factor(self, step: int) -> float:
        warmup, total = self.recipe.warmup, self.recipe.total_steps
        if step < warmup:
            return (step + 1) / warmup
        return (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
