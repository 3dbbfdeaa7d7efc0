"""A micro-batch whose graph is cut at every decoder layer and around every layer's experts.

    B sequences   S tokens per sequence   H hidden size   T = B·S tokens   K experts per token   E experts

transformers hands every `GradientCheckpointingLayer` to a function of our choice; ours makes the layer's input and
the experts' output leaves. So autograd never runs across a layer, and never waits for the network: the backward of
a layer is two calls with the exchange between them.

    dy = grad(out, y, d_out)                                          send dy, wait for dx and dweights
    backward([out, x, weights, router logits], [d_out, dx, dweights, d_logits])

With gradient checkpointing a layer's graph is built only here, from the cached experts' output: nothing is sent twice.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from pcmoe_node.ledger import Exposed
from pcmoe_node.protocol.effects import Phase


class RemoteCall(Protocol):
    """The experts of one layer, asked for one micro-batch; made by `moe.py`."""

    y_TH: Tensor
    """The combined output."""

    def backward(self, dy_TH: Tensor) -> tuple[Tensor, Tensor]:
        """(dx [T, H], dweights [T, K]) from the hosts; waits."""


@dataclass(slots=True)
class ExpertsCut:
    """Where the graph is cut around one layer's experts."""

    call: RemoteCall
    x_TH: Tensor
    weights_TK: Tensor
    y_TH: Tensor
    """The experts' output as a leaf."""


@dataclass(slots=True)
class LayerCut:
    """One decoder layer of one micro-batch."""

    source: Tensor
    """What the layer got: its gradient goes on to the layer before."""
    x_BSH: Tensor
    """The same as a leaf."""
    run: Callable[[Tensor], Tensor]
    out_BSH: Tensor | None = None
    result_BSH: Tensor | None = None
    """The layer's output as a leaf, for the layer after."""
    experts: ExpertsCut | None = None
    logits_TE: Tensor | None = None
    """Router logits, where the auxiliary loss needs them."""
    logits_leaf_TE: Tensor | None = None


@dataclass(slots=True)
class MicroBatch:
    """One micro-batch's way through the model."""

    phase: Phase
    step: int
    number: int
    layers: list[LayerCut] = field(default_factory=list)
    replaying: LayerCut | None = None
    """The layer whose forward is run a second time, for its graph only."""
    exposed: Exposed | None = None
    """Keeps account of which tokens each peer was shown."""
    ok: bool = True
    """False once a value of our own was not finite or out of bounds: then zeros travel, and the step is skipped."""

    @property
    def layer(self) -> LayerCut:
        """The decoder layer that is being run."""
        return self.replaying or self.layers[-1]

    @property
    def shown(self) -> Exposed | None:
        """Where to note what a peer is shown now; None: nobody keeps account, or zeros travel."""
        return self.exposed if self.ok else None

    def run_layer(
        self, checkpointing: bool, run: Callable[..., Tensor], x_BSH: Tensor, args: tuple[object, ...]
    ) -> Tensor:
        """Run one decoder layer between two cuts; what transformers' checkpointing function is for."""
        leaf_BSH = x_BSH.detach().requires_grad_()
        cut = LayerCut(source=x_BSH, x_BSH=leaf_BSH, run=lambda x: run(x, *args))
        self.layers.append(cut)
        if checkpointing:
            with torch.no_grad():
                out_BSH = cut.run(leaf_BSH)
        else:
            out_BSH = cut.out_BSH = cut.run(leaf_BSH)
        cut.result_BSH = out_BSH.detach().requires_grad_()
        return cut.result_BSH

    def backward(self) -> None:
        """From the last layer's output gradient to the embeddings, waiting only between the layers."""
        while self.layers:
            cut = self.layers[-1]
            if self.ok:
                self._backward_layer(cut)
            elif cut.experts is not None:
                cut.experts.call.backward(torch.zeros_like(cut.experts.call.y_TH))
            self.layers.pop()

    def _backward_layer(self, cut: LayerCut) -> None:
        assert cut.result_BSH is not None
        d_out_BSH = cut.result_BSH.grad
        if cut.out_BSH is None:
            self.replaying = cut
            cut.out_BSH = cut.run(cut.x_BSH)
            self.replaying = None
        roots, gradients = [cut.out_BSH], [d_out_BSH]
        if cut.experts is not None:
            experts = cut.experts
            (dy_TH,) = torch.autograd.grad(cut.out_BSH, experts.y_TH, d_out_BSH, retain_graph=True)
            dx_TH, dweights_TK = experts.call.backward(dy_TH)
            roots += [experts.x_TH, experts.weights_TK]
            gradients += [dx_TH, dweights_TK.to(experts.weights_TK.dtype)]
        if cut.logits_leaf_TE is not None:
            assert cut.logits_TE is not None
            roots.append(cut.logits_TE)
            gradients.append(cut.logits_leaf_TE.grad)
        torch.autograd.backward(roots, gradients)
        if cut.source.requires_grad:
            torch.autograd.backward(cut.source, cut.x_BSH.grad)


def sum_loss(logits_BSV: Tensor, labels_BS: Tensor) -> Tensor:
    """Cross-entropy summed over supervised tokens (labels are already shifted; −100 = none), float32 scalar."""
    flat = logits_BSV.float().view(-1, logits_BSV.shape[-1])
    return torch.nn.functional.cross_entropy(flat, labels_BS.reshape(-1), ignore_index=-100, reduction="sum")


def auxiliary_loss(layers: list[LayerCut], function: Callable[..., Tensor], top_k: int) -> Tensor:
    """The family's own load-balancing loss over the router logits of every layer, as leaves."""
    leaves = []
    for cut in layers:
        if cut.logits_TE is not None:
            cut.logits_leaf_TE = cut.logits_TE.detach().requires_grad_()
            leaves.append(cut.logits_leaf_TE)
    return function(tuple(leaves), leaves[0].shape[-1], top_k)


def checkpointing_function(current: Callable[[], MicroBatch], checkpointing: bool) -> Callable[..., Tensor]:
    """What to hand to `model._set_gradient_checkpointing(True, …)`; `current` finds the running micro-batch."""

    def function(run: partial[Tensor], x_BSH: Tensor, *args: object) -> Tensor:
        return current().run_layer(checkpointing, run, x_BSH, args)

    return function
