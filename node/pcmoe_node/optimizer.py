"""Master weights, their float32 gradients, and AdamW; one set for the backbone, one for the hosted experts.

A parameter's gradient of the *sum* loss piles up in `main_grad` (float32, zeros at the start of each step, so that
an expert nobody asked still sees weight decay and momentum, as it would in one process). `apply` divides by the
step's tokens, clips, and steps.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pcmoe_node.config import OptimizerConfig
from pcmoe_node.protocol.vote import clip_scale


def decays(name: str) -> bool:
    """Whether weight decay applies, by name: fused experts' biases have two dimensions, so `ndim` can't tell."""
    parts = name.split(".")
    return not (parts[-1].endswith("bias") or any("norm" in part for part in parts))


class ParameterSet:
    """Parameters that are clipped and stepped together."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: OptimizerConfig,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Take over `parameters`, whose values become the float32 masters, and cast them to `dtype` for compute."""
        self.parameters = dict(sorted(parameters.items()))
        self.masters: dict[str, nn.Parameter] = {}
        for name, parameter in self.parameters.items():
            full = parameter.dtype == dtype == torch.float32
            master = parameter if full else nn.Parameter(parameter.detach().float())
            if dtype != torch.float32:
                parameter.data = parameter.data.to(dtype)
            master.grad = torch.zeros_like(master)
            parameter.main_grad = master.grad  # type: ignore[attr-defined]
            self.masters[name] = master
        groups = [
            {
                "params": [m for n, m in self.masters.items() if decays(n) is decayed],
                "weight_decay": config.weight_decay if decayed else 0.0,
            }
            for decayed in (True, False)
        ]
        self._config = config
        self._adamw = (
            torch.optim.AdamW(
                [group for group in groups if group["params"]] or [{"params": []}],
                lr=config.learning_rate,
                betas=(config.beta1, config.beta2),
                eps=config.epsilon,
            )
            if self.masters
            else None
        )

    def accumulate_from_autograd(self) -> None:
        """Let autograd's gradients pile up in `main_grad` in float32, whatever the parameter's dtype."""
        for parameter in self.parameters.values():
            if parameter.dtype != torch.float32:
                parameter.register_post_accumulate_grad_hook(_move_to_main_grad)  # type: ignore[no-untyped-call]

    def zero(self) -> None:
        """Start a step."""
        for master in self.masters.values():
            assert master.grad is not None
            master.grad.zero_()

    def squared_norm(self) -> float:
        """Squared norm of the gradient of the sum loss; not finite if any element isn't."""
        norms: list[float] = []
        for master in self.masters.values():
            assert master.grad is not None
            norms.append(float(torch.linalg.vector_norm(master.grad)))
        total = 0.0
        for norm in norms:
            total += norm * norm
        return total

    def apply(self, *, tokens: int, squared_norm: float, factor: float) -> float:
        """One AdamW step on the mean gradient, clipped; returns its norm before clipping.

        `squared_norm` is that of the whole clip group's mean gradient, `factor` the schedule's.
        """
        norm = math.sqrt(squared_norm)
        scale = clip_scale(norm, self._config.max_grad_norm) / tokens
        for master in self.masters.values():
            assert master.grad is not None
            master.grad.mul_(scale)
        if self._adamw is not None:
            for group in self._adamw.param_groups:
                group["lr"] = self._config.learning_rate * factor
            self._adamw.step()
        self._copy_back()
        return norm

    def _copy_back(self) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if parameter is not self.masters[name]:
                    parameter.copy_(self.masters[name])

    # ---- checkpoints

    def state(self) -> dict[str, Tensor]:
        """Masters and moments by name; on the CPU where they are, not copied."""
        tensors = {}
        for name, master in self.masters.items():
            tensors[f"{name}#master"] = master.detach()
            if self._adamw is not None:
                for key, value in self._adamw.state[master].items():
                    tensors[f"{name}#{key}"] = value
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(tensors[f"{name}#master"])
                moments = {
                    key: tensors[f"{name}#{key}"].to(master.device if key != "step" else "cpu").clone()
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"{name}#{key}" in tensors
                }
                if self._adamw is not None:
                    self._adamw.state.pop(master, None)
                    if moments:
                        self._adamw.state[master] = moments
        self._copy_back()

    def bytes(self) -> dict[str, int]:
        """Exact bytes by kind: weights, gradients, moments, masters (0 where the weights are the masters)."""
        weights = _bytes(self.parameters.values())
        masters = _bytes(m for n, m in self.masters.items() if m is not self.parameters[n])
        full = 4 * sum(m.numel() for m in self.masters.values())
        return {"weights": weights, "gradients": full, "moments": 2 * full, "masters": masters}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _move_to_main_grad(parameter: Tensor) -> None:
    assert parameter.grad is not None
    parameter.main_grad.add_(parameter.grad)  # type: ignore[attr-defined]
    parameter.grad = None
