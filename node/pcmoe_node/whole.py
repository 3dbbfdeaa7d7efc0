"""The whole model in one process: the family's plain module with every expert, which no node of a consortium holds.

At first it has the weights of the start. `take_round` puts in what one participant has stored: its backbone, its own
experts, or both. With one backbone and everybody's experts it computes what that participant's node evaluates, but for
rounding: rows of experts are added up in another order. There must be memory for the whole model, four bytes per
parameter while it is built.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pcmoe_node.checkpoint import Position
from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import ConfigError
from pcmoe_node.model import build, decoder_layers, experts_of
from pcmoe_node.participant import DTYPE, frozen_digest
from pcmoe_node.routing import ExpertMap

MASTER = "#master"
BACKBONE, EXPERTS = "backbone", "experts"


@dataclass(frozen=True, slots=True)
class Whole:
    """A model that needs nobody."""

    model: nn.Module
    experts: dict[int, nn.Module]
    """The experts module of every layer that has one."""

    def cast(self, config: NodeConfig) -> None:
        """Parameters to the dtype of compute; buffers stay, as in training."""
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(DTYPE[config.model.dtype])


def build_whole(config: NodeConfig, device: torch.device) -> Whole:
    """The model at the start of the run, in float32; its weights ask for no gradient."""
    alone = tuple(place.model_copy(update={"hosts": None}) for place in config.placement)
    model = build(config.model_copy(update={"placement": alone}), device).model
    model.requires_grad_(False)
    found = {place.layer: experts_of(decoder_layers(model)[place.layer]) for place in config.placement}
    return Whole(model, {layer: pair[1] for layer, pair in found.items() if pair is not None})


def take_round(
    whole: Whole, config: NodeConfig, folder: Path, kinds: tuple[str, ...] = (BACKBONE, EXPERTS)
) -> None:
    """Put in the backbone and the own experts that `config`'s participant stored in `folder`, or one of the two.

    Only looks: a node may be writing beside it. `ConfigError` where it can't be read or isn't this run's.
    """
    try:
        position = Position(**json.loads((folder / "state.json").read_text("utf-8")))
        if position.frozen != frozen_digest(config):
            raise ConfigError(f"{folder}: belongs to another consortium, participant, model or placement")
        with safe_open(folder / "state.safetensors", framework="pt") as stored, torch.no_grad():
            for name in stored.keys():  # noqa: SIM118  # no dict
                kind, _, inner = name.removesuffix(MASTER).partition("/")
                if name.endswith(MASTER) and kind in kinds:
                    _take(whole, config, kind, inner, stored.get_tensor(name))
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise ConfigError(f"{folder}: can't be read: {type(error).__name__}") from error


def _take(whole: Whole, config: NodeConfig, kind: str, name: str, tensor: Tensor) -> None:
    parameter = whole.model.get_parameter(name)
    if kind == BACKBONE:
        parameter.copy_(tensor)
        return
    for place in config.placement:
        module = whole.experts[place.layer]
        if place.hosts is not None and any(parameter is p for p in module.parameters()):
            mine = (ExpertMap.of(place.hosts).host_E == config.index).nonzero().flatten()
            parameter[mine.to(parameter.device)] = tensor.to(parameter)
