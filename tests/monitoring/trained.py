"""Real nodes and a real coordinator that train, as what Kubernetes would show of them to Prometheus."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.exchange.rigs import changed
from tests.faults.consortium import Consortium
from tests.monitoring.prometheus import Target
from tests.training.small import architecture, small_configs

from pcmoe_node.config import NodeConfig
from pcmoe_node.fingerprint import fingerprint

NAMESPACE, NAME = "hospital", "pilot"
SLOWLY = {
    "learning_rate": 1e-6,
    "beta1": 0.9,
    "beta2": 0.95,
    "epsilon": 1e-8,
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "decay": "Constant",
    "max_grad_norm": 1.0,
}
"""So little is learnt that the loss stays as it is: a text learnt by heart has losses near zero, which double soon."""
TRAINING: Mapping[str, Any] = {
    "rounds": 100_000,
    "steps_per_round": 5,
    "evaluation_sequences": 2,
    "optimizer": SLOWLY,
}
TRANSPORT = {
    "peer_timeout_seconds": 2,
    "progress_timeout_seconds": 60,
    "rejoin_timeout_seconds": 120,
    "on_peer_loss": "Wait",
}

SOON_TOO_FAST = {**SLOWLY, "learning_rate": 5.0, "weight_decay": 0.2, "warmup_steps": 500}
"""An absurd rate of learning, reached slowly: the loss falls within 50 steps, then rises, and nothing overflows."""


def configs_of(
    folder: Path, participants: int = 2, training: Mapping[str, Any] | None = None, **transport: float
) -> list[NodeConfig]:
    """Small nodes that train for longer than any test waits; the rest changes what is agreed."""
    fields = architecture("olmoe", num_hidden_layers=1)
    overrides: dict[str, Any] = {
        "training": {**TRAINING, **(training or {})},
        "transport": {**TRANSPORT, **transport},
        "dataset": {"held_out_percent": 30},
    }
    return small_configs(folder, participants, fields, **overrides)


def overflowing(configs: Sequence[NodeConfig]) -> list[NodeConfig]:
    """The same with an output layer whose weights are finite and whose logits are not."""
    folder = Path(str(configs[0].model.checkpoint))
    weights = load_file(folder / "model.safetensors")
    head = weights["lm_head.weight"]
    head *= torch.finfo(head.dtype).max / head.abs().max() / 2
    save_file(weights, folder / "model.safetensors")
    return [changed(config, model={"fingerprint": fingerprint(folder)}) for config in configs]


def targets(consortium: Consortium) -> list[Target]:
    """Its pages, labelled as the chart's PodMonitor labels them."""
    shared = {"namespace": NAMESPACE, "consortium": NAME}
    found = [
        Target(
            listen=config.status_listen,
            labels={**shared, "participant": config.participant, "pod": f"{NAME}.{config.participant}.1-x"},
        )
        for config in consortium.configs
    ]
    coordinator = Target(
        listen=consortium.coordinator_status, labels={**shared, "pod": f"{NAME}.coordinator-x"}
    )
    return [*found, coordinator]
