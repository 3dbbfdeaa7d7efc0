"""What one host would be sent for own micro-batches, and the truth that only the owner knows.

    T tokens of a micro-batch   R rows at the host   H hidden size

One process, the whole model, plain autograd, no exchange: the experts' inputs and the gradients of their outputs are
taken where the dispatch takes them, and go through the same functions (`routing.routes`, `gather_gradients`, the wire's
dtype). A test compares them with the messages of a real step. Not reproduced: what the rounding of answers on a
bfloat16 wire does to the layers after them. No row leaves the process.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn

from pcmoe_node.cut import sum_loss
from pcmoe_node.leak.sample import Marked
from pcmoe_node.packing import NO_LABEL
from pcmoe_node.routing import ExpertMap, gather_gradients, routes


@dataclass(frozen=True, slots=True)
class Seen:
    """Rows of one layer, and what they are of. All on the CPU."""

    hidden_RH: Tensor
    gradients_RH: Tensor
    current_R: Tensor
    next_R: Tensor
    """`NO_LABEL` where a token predicts nothing."""
    document_R: Tensor

    token_R: Tensor
    """Number of the token among all that were run."""

    @property
    def supervised(self) -> "Seen":
        """The rows with a next token."""
        return self.where(self.next_R != NO_LABEL)

    def where(self, keep_R: Tensor) -> "Seen":
        """Some of the rows."""
        return Seen(*(getattr(self, each.name)[keep_R] for each in fields(self)))


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's rows."""

    received: Seen
    """What the host is sent."""
    every: Seen
    """Of every token, wherever its experts are; what whoever runs a text of its own through the same weights has."""


@dataclass(kw_only=True, slots=True)
class Recorder:
    """Listens at every layer's experts while a model runs forward and backward."""

    model: nn.Module
    layers: Mapping[int, tuple[nn.Module, tuple[int, ...]]]
    """Experts module and the host of each expert, by layer."""
    host: int
    wire: torch.dtype
    auxiliary: Callable[[int], Tensor] | None = None
    """What is added to the loss of so many tokens, from what the model has just computed."""
    _heard: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def record(self, batches: Iterable[Marked]) -> dict[int, Layer]:
        """Run the micro-batches; the rows of each layer."""
        hooks = [self._listen(layer, module) for layer, (module, _) in self.layers.items()]
        parts: dict[int, list[Layer]] = {layer: [] for layer in self.layers}
        before = 0
        try:
            for marked in batches:
                self._run(marked)
                for layer, part in parts.items():
                    part.append(self._layer(layer, marked, before))
                self._heard.clear()
                before += marked.document_BS.numel()
        finally:
            for hook in hooks:
                hook.remove()
        return {
            layer: Layer(_joined([each.received for each in part]), _joined([each.every for each in part]))
            for layer, part in parts.items()
        }

    def _listen(self, layer: int, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, given: tuple[Tensor, Tensor, Tensor], y_TH: Tensor) -> Tensor:
            y_TH.retain_grad()
            self._heard[layer] = (*given, y_TH)
            return y_TH.clone()  # families add a shared expert in place

        return module.register_forward_hook(hook)

    def _run(self, marked: Marked) -> None:
        """Forward and backward of the summed loss, as a step does it, but with no gradient of any weight."""
        embed = self.model.get_input_embeddings()  # type: ignore[operator]
        device = embed.weight.device
        x_BSH = embed(marked.batch.ids_BS.to(device)).detach().requires_grad_()
        output = self.model(
            inputs_embeds=x_BSH, position_ids=marked.batch.positions_BS.to(device), use_cache=False
        )
        loss = sum_loss(output.logits, marked.batch.labels_BS.to(device))
        if self.auxiliary is not None:
            loss = loss + self.auxiliary(marked.batch.tokens)
        loss.backward()  # type: ignore[no-untyped-call]

    def _layer(self, layer: int, marked: Marked, before: int) -> Layer:
        x_TH, ids_TK, weights_TK, y_TH = self._heard[layer]
        assert y_TH.grad is not None
        dy_TH, hosts = y_TH.grad, ExpertMap.of(self.layers[layer][1])
        # A row says the same wherever it stands in its message, so the order needs no secret here.
        order_T = torch.arange(len(x_TH))
        with torch.no_grad():
            count = 1 + max(self.host, int(hosts.host_E.max()))
            route = routes(ids_TK, weights_TK, hosts, order_T, count)[self.host]
            received = self._seen(
                x_TH.index_select(0, route.rows_R), gather_gradients(route, dy_TH), route.rows_R.cpu(), marked
            )
            every = self._seen(x_TH, dy_TH, order_T, marked)
        received.token_R.add_(before)
        every.token_R.add_(before)
        return Layer(received, every)

    def _seen(self, hidden_RH: Tensor, gradients_RH: Tensor, rows_R: Tensor, marked: Marked) -> Seen:
        seen = Seen(
            hidden_RH.to(self.wire).float().cpu(),
            gradients_RH.to(self.wire).float().cpu(),
            marked.batch.ids_BS.flatten()[rows_R],
            marked.batch.labels_BS.flatten()[rows_R],
            marked.document_BS.flatten()[rows_R],
            rows_R,
        )
        return seen.where(seen.document_R >= 0)


def _joined(parts: list[Seen]) -> Seen:
    return Seen(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(Seen)))
