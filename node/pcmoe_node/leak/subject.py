"""The model that is measured: whole, in one process, with the weights of the start or of the newest stored round.

A participant holds its own experts and no others, so at a stored round its peers' experts are those of the start. There
must be memory for the whole model, four bytes per parameter, and for the rows of every layer.
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
from pcmoe_node.model import auxiliary_loss_function, build, decoder_layers, experts_of, record_router_logits
from pcmoe_node.participant import DTYPE, frozen_digest
from pcmoe_node.routing import ExpertMap

MASTER = "#master"


@dataclass(slots=True)
class Subject:
    """The whole model, and what every partner knows of it."""

    config: NodeConfig
    model: nn.Module
    experts: dict[int, nn.Module]
    """The experts module of every layer that has one."""
    head_VH: Tensor
    norm_H: Tensor
    """Output embeddings and final norm of the start, on the CPU: what partners have, whatever is trained since."""
    logits: list[Tensor]
    """Router logits of what ran last, where the loss needs them."""

    def auxiliary(self, tokens: int) -> Tensor:
        """What training adds to the summed loss of so many tokens."""
        logits, self.logits[:] = tuple(self.logits), []
        function = auxiliary_loss_function(self.model)
        top_k = int(self.model.config.num_experts_per_tok)  # type: ignore[union-attr,arg-type]
        balance = function(logits, logits[0].shape[-1], top_k)
        return self.config.training.auxiliary_loss_coefficient * tokens * balance


def make_subject(config: NodeConfig, device: torch.device) -> Subject:
    """The model at the start of the run."""
    alone = [place.model_copy(update={"hosts": None}) for place in config.placement]
    model = build(config.model_copy(update={"placement": tuple(alone)}), device).model
    model.requires_grad_(False)
    found = {place.layer: experts_of(decoder_layers(model)[place.layer]) for place in config.placement}
    experts = {layer: pair[1] for layer, pair in found.items() if pair is not None}
    head = model.get_output_embeddings().weight  # type: ignore[operator]
    norm = model.get_decoder().norm.weight  # type: ignore[operator]
    subject = Subject(config, model, experts, head.float().cpu().clone(), norm.float().cpu().clone(), [])
    if config.training.auxiliary_loss_coefficient:
        record_router_logits(model, subject.logits.append)
    _cast(model, DTYPE[config.model.dtype])
    return subject


def newest_round(config: NodeConfig) -> Path | None:
    """Folder of the newest stored round, None without one. Only looks: a node may be writing there."""
    rounds = Path(config.checkpoint_directory).glob("round-" + "[0-9]" * 6)
    return max(rounds, default=None)


def load_round(subject: Subject, folder: Path) -> None:
    """Take the backbone and the own experts of a stored round. `ConfigError` where they aren't this run's."""
    try:
        position = Position(**json.loads((folder / "state.json").read_text("utf-8")))
        if position.frozen != frozen_digest(subject.config):
            raise ConfigError(f"{folder}: belongs to another consortium, participant, model or placement")
        with safe_open(folder / "state.safetensors", framework="pt") as stored, torch.no_grad():
            for name in stored.keys():  # noqa: SIM118  # no dict
                if name.endswith(MASTER):
                    _take(subject, name.removesuffix(MASTER), stored.get_tensor(name))
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise ConfigError(f"{folder}: can't be read: {type(error).__name__}") from error


def _take(subject: Subject, name: str, tensor: Tensor) -> None:
    kind, _, inner = name.partition("/")
    parameter = subject.model.get_parameter(inner)
    if kind == "backbone":
        parameter.copy_(tensor)
        return
    for place in subject.config.placement:
        module = subject.experts[place.layer]
        if place.hosts is not None and any(parameter is p for p in module.parameters()):
            mine = (ExpertMap.of(place.hosts).host_E == subject.config.index).nonzero().flatten()
            parameter[mine.to(parameter.device)] = tensor.to(parameter)


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Parameters in the dtype of compute; buffers stay, as in training."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
