"""The host: this node's shard of the experts, computed for whoever sends tokens.

A shard's forward is transformers' own `grouped_mm` experts function on a copy of the family's experts module that
holds only the hosted experts, so no family's arithmetic is written down here. Shapes:

    R rows (distinct tokens of one message)   S slots ((row, expert) pairs)   H hidden size   e hosted experts

Backward comes in two halves. `backward` gives the owner its rows at once; the weights' gradients wait on a `Tape`
until nobody is waiting (or, for reproducible sums, until their turn).
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.integrations.moe import grouped_mm_experts_forward

from pcmoe_node.errors import ConfigError

_GROUPED_MM = {getattr(torch.nn.functional, "grouped_mm", None), getattr(torch, "_grouped_mm", None)} - {None}


def shard_of(experts: nn.Module, hosted: int, name: str) -> nn.Module:
    """A copy of an experts module (on the meta device) with room for `hosted` experts instead of all.

    Raises `ConfigError` where a parameter's first dimension isn't the number of experts: such a family keeps
    something that its experts share, and can't be split by expert.
    """
    shard = copy.copy(experts)
    shard._parameters = {}
    total = int(experts.num_experts)  # type: ignore[arg-type]
    for key, parameter in experts.named_parameters(recurse=False):
        if parameter.shape[0] != total:
            raise ConfigError(
                f"{name}.{key}: first dimension is {parameter.shape[0]}, must be the number of experts {total}"
            )
        shape = (hosted, *parameter.shape[1:])
        shard.register_parameter(key, nn.Parameter(torch.empty(shape, dtype=parameter.dtype, device="meta")))
    shard.num_experts = hosted  # type: ignore[assignment]
    return shard


@dataclass(slots=True)
class Tape:
    """Gradients of weights that are still to be added up: closures in the order they were recorded."""

    entries: list[Callable[[], None]] = field(default_factory=list)

    def play(self) -> None:
        """Add everything recorded into the gradients."""
        with torch.no_grad():
            for entry in self.entries:
                entry()
        self.entries.clear()


class _GroupedLinear(torch.autograd.Function):
    """`grouped_mm` whose backward gives dX at once and leaves dW on a tape."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x_SK: Tensor,
        weight_eKN: Tensor,
        offsets_e: Tensor,
        tape: Tape,
    ) -> Tensor:
        ctx.save_for_backward(x_SK, weight_eKN, offsets_e)
        ctx.tape = tape  # type: ignore[attr-defined]
        return torch.nn.functional.grouped_mm(x_SK, weight_eKN, offs=offsets_e)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, dy_SN: Tensor) -> tuple[Tensor, None, None, None]:
        x_SK, weight_eKN, offsets_e = ctx.saved_tensors  # type: ignore[attr-defined]
        dy_SN = dy_SN.contiguous()
        tape: Tape = ctx.tape  # type: ignore[attr-defined]
        tape.entries.append(lambda: _add_weight_gradient(x_SK, dy_SN, weight_eKN, offsets_e))
        dx_SK = torch.nn.functional.grouped_mm(dy_SN, weight_eKN.transpose(-2, -1), offs=offsets_e)
        return dx_SK, None, None, None


def _add_weight_gradient(x_SK: Tensor, dy_SN: Tensor, weight_eKN: Tensor, offsets_e: Tensor) -> None:
    """gradient[e] += x[rows of e]ᵀ · dy[rows of e], in the layout the parameter has."""
    parameter = weight_eKN if weight_eKN._base is None else weight_eKN._base
    transposed = weight_eKN._base is not None
    gradient: Tensor = parameter.main_grad  # type: ignore[attr-defined]
    if x_SK.device.type != "cpu":
        left, right = (dy_SN, x_SK) if transposed else (x_SK, dy_SN)
        gradient.add_(torch.nn.functional.grouped_mm(left.t(), right, offs=offsets_e))
        return
    start = 0
    for expert, end in enumerate(offsets_e.tolist()):
        if end > start:
            left, right = (dy_SN, x_SK) if transposed else (x_SK, dy_SN)
            if gradient.dtype == x_SK.dtype:
                gradient[expert].addmm_(left[start:end].t(), right[start:end])
            else:
                gradient[expert].add_(left[start:end].t() @ right[start:end])
        start = end


class _DeferWeights(TorchFunctionMode):
    """Turns the experts function's `grouped_mm` calls into `_GroupedLinear`."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func in _GROUPED_MM:
            return _GroupedLinear.apply(args[0], args[1], kwargs["offs"], self.tape)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Batch:
    """What an owner asks of one layer of a host."""

    x_RH: Tensor
    counts_R: Tensor
    """Slots of each row, int64 on the CPU."""
    experts_S: Tensor
    """The host's own expert numbers, int64, sorted by row."""
    weights_S: Tensor
    """float32."""


@dataclass(frozen=True, slots=True)
class Saved:
    """The graph that a forward leaves for its backward."""

    y_RH: Tensor
    x_RH: Tensor
    weights_S: Tensor
    tape: Tape


class Shard:
    """The experts this node hosts in one layer."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def forward(self, batch: Batch, *, keep: bool) -> tuple[Tensor, Saved | None]:
        """Outputs of the hosted experts, weighted and summed per row: y [R, H] in x's dtype.

        `keep` saves the graph for `backward`; otherwise nothing is kept.
        """
        if not keep:
            with torch.no_grad():
                return self._compute(batch.x_RH, batch.weights_S, batch, Tape()), None
        tape = Tape()
        with torch.enable_grad():
            x_RH = batch.x_RH.detach().requires_grad_()
            weights_S = batch.weights_S.detach().requires_grad_()
            y_RH = self._compute(x_RH, weights_S, batch, tape)
        return y_RH.detach(), Saved(y_RH, x_RH, weights_S, tape)

    def backward(self, saved: Saved, dy_RH: Tensor) -> tuple[Tensor, Tensor, Callable[[], None]]:
        """(dx [R, H], dweights [S] float32, add): `add()` puts this message into the weights' gradients."""
        if saved.x_RH.shape[0] == 0:
            return torch.zeros_like(saved.x_RH), torch.zeros_like(saved.weights_S), lambda: None
        # Biases and the like are small: autograd gives their gradients here, and they are added with the rest.
        rest = [p for p in self.module.parameters() if p.ndim < 3]
        gradients = torch.autograd.grad(saved.y_RH, [saved.x_RH, saved.weights_S, *rest], dy_RH)
        tape = saved.tape

        def add() -> None:
            tape.play()
            for parameter, gradient in zip(rest, gradients[2:], strict=True):
                parameter.main_grad.add_(gradient)  # type: ignore[attr-defined]

        return gradients[0], gradients[1], add

    def _compute(self, x_RH: Tensor, weights_S: Tensor, batch: Batch, tape: Tape) -> Tensor:
        """transformers' function on S rows with one slot each, then a sum per row in float32."""
        rows, slots = x_RH.shape[0], batch.experts_S.shape[0]
        if rows == 0:
            return torch.zeros_like(x_RH)
        one_slot_each = rows == slots
        row_S = None if one_slot_each else torch.repeat_interleave(batch.counts_R).to(x_RH.device)
        x_SH = x_RH if row_S is None else x_RH.index_select(0, row_S)
        ids_S1 = batch.experts_S.to(x_RH.device).unsqueeze(1)
        with _DeferWeights(tape):
            y_SH: Tensor = grouped_mm_experts_forward(self.module, x_SH, ids_S1, weights_S.unsqueeze(1))
        if row_S is None:
            return y_SH
        y_RH = torch.zeros(x_RH.shape, dtype=torch.float32, device=x_RH.device)
        return y_RH.index_add(0, row_S, y_SH.float()).to(x_RH.dtype)

    def activation_bytes(self, batch: Batch) -> int:
        """Bytes a kept graph holds: per slot the input, both halves, their product, and the output."""
        per_slot = sum(p.shape[1] + p.shape[2] for p in self.module.parameters() if p.ndim == 3)
        per_slot += batch.x_RH.shape[1]
        return batch.experts_S.shape[0] * per_slot * batch.x_RH.element_size()


def parameters_of(shards: dict[int, Shard]) -> Iterator[tuple[int, str, nn.Parameter]]:
    """(layer, name, parameter) of every hosted weight, layers ascending."""
    for layer in sorted(shards):
        for name, parameter in shards[layer].module.named_parameters():
            yield layer, name, parameter
