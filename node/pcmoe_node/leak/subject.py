"""The model that is measured: whole, in one process, with the weights of the start or of the newest stored round.

A participant holds its own experts and no others, so at a stored round its peers' experts are those of the start. There
must be memory for the whole model, four bytes per parameter, and for the rows of every layer.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pcmoe_node.config import NodeConfig
from pcmoe_node.model import auxiliary_loss_function, record_router_logits
from pcmoe_node.whole import Whole, build_whole, take_round


@dataclass(slots=True)
class Subject:
    """The whole model, and what every partner knows of it."""

    config: NodeConfig
    whole: Whole
    head_VH: Tensor
    norm_H: Tensor
    """Output embeddings and final norm of the start, on the CPU: what partners have, whatever is trained since."""
    logits: list[Tensor]
    """Router logits of what ran last, where the loss needs them."""

    @property
    def model(self) -> nn.Module:
        """What is run."""
        return self.whole.model

    @property
    def experts(self) -> dict[int, nn.Module]:
        """The experts module of every layer that has one."""
        return self.whole.experts

    def auxiliary(self, tokens: int) -> Tensor:
        """What training adds to the summed loss of so many tokens."""
        logits, self.logits[:] = tuple(self.logits), []
        function = auxiliary_loss_function(self.model)
        top_k = int(self.model.config.num_experts_per_tok)  # type: ignore[union-attr,arg-type]
        balance = function(logits, logits[0].shape[-1], top_k)
        return self.config.training.auxiliary_loss_coefficient * tokens * balance


def make_subject(config: NodeConfig, device: torch.device) -> Subject:
    """The model at the start of the run."""
    whole = build_whole(config, device)
    head = whole.model.get_output_embeddings().weight  # type: ignore[operator]
    norm = whole.model.get_decoder().norm.weight  # type: ignore[operator]
    subject = Subject(config, whole, head.float().cpu().clone(), norm.float().cpu().clone(), [])
    if config.training.auxiliary_loss_coefficient:
        record_router_logits(whole.model, subject.logits.append)
    whole.cast(config)
    return subject


def newest_round(config: NodeConfig) -> Path | None:
    """Folder of the newest stored round, None without one. Only looks: a node may be writing there."""
    rounds = Path(config.checkpoint_directory).glob("round-" + "[0-9]" * 6)
    return max(rounds, default=None)


def load_round(subject: Subject, folder: Path) -> None:
    """Take the backbone and the own experts of a stored round. `ConfigError` where they aren't this run's."""
    take_round(subject.whole, subject.config, folder)
