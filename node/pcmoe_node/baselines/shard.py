"""A model cut down to one participant's experts: what it could train alone in the memory it has."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import ConfigError
from pcmoe_node.model import NodeModel, build, decoder_layers

log = logging.getLogger("pcmoe")

Auxiliary = Callable[..., Tensor]


def build_shard(config: NodeConfig, device: torch.device) -> NodeModel:
    """What the participant's node builds, with routers that know of no other experts than the hosted ones.

    `config` is the participant's own in the consortium, with everybody's placement.
    """
    built = build(config, device)
    layers = decoder_layers(built.model)
    for place in config.placement:
        if place.hosts is not None:
            mine = [expert for expert, host in enumerate(place.hosts) if host == config.index]
            _narrow(layers[place.layer], place.layer, mine)
    return replace(built, backbone=dict(built.model.named_parameters()))


def by_width(function: Auxiliary) -> Auxiliary:
    """The family's load-balancing loss where layers differ in their experts: the mean over all layers.

    The family's own takes all layers together, which needs as many experts in each. Where they have, this is the same.
    """

    def loss(logits: Sequence[Tensor], _experts: int, top_k: int) -> Tensor:
        groups: dict[int, list[Tensor]] = {}
        for layer_TE in logits:
            groups.setdefault(layer_TE.shape[-1], []).append(layer_TE)
        parts = [
            function(tuple(group), width, min(top_k, width)) * (len(group) / len(logits))
            for width, group in sorted(groups.items())
        ]
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]

    return loss


def _narrow(layer: nn.Module, number: int, mine: Sequence[int]) -> None:
    """Keep the router's rows of these experts; it goes on choosing as many, or all if there are fewer."""
    router = _router_of(layer, number)
    weight_EH = router.get_parameter("weight")
    router.weight = nn.Parameter(weight_EH.detach()[list(mine)].clone())
    router.num_experts = len(mine)  # type: ignore[assignment]
    wanted = int(router.top_k)  # type: ignore[arg-type]
    if wanted > len(mine):
        log.info("layer %d: %d experts per token instead of %d: no more are here", number, len(mine), wanted)
        router.top_k = len(mine)  # type: ignore[assignment]


def _router_of(layer: nn.Module, number: int) -> nn.Module:
    """The one module of a layer that scores its experts, in the form that every family here has."""
    found = [m for m in layer.modules() if type(m).__name__.endswith("TopKRouter")]
    if len(found) != 1 or {name for name, _ in found[0].named_parameters()} != {"weight"}:
        raise ConfigError(
            f"layer {number}: its router isn't one matrix of a row per expert: it can't be sliced"
        )
    return found[0]
