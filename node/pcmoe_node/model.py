"""Builds what one node holds of the model: the whole backbone, and of the experts only its own shards.

The model is built without memory (on the meta device); experts that live elsewhere are taken out before anything is
allocated, and their module asks `moe.RemoteExperts` instead. No family's code is touched or repeated.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from pcmoe_node.config import ModelConfig, NodeConfig
from pcmoe_node.errors import ConfigError, ResourceError
from pcmoe_node.experts import Shard, shard_of
from pcmoe_node.fingerprint import fingerprint
from pcmoe_node.weights import open_checkpoint

FAMILIES = frozenset({"mixtral", "olmoe", "qwen2_moe", "qwen3_moe"})
"""Families whose cut backward was compared with plain backward (tests/training/test_cut.py); others are refused."""

_RANDOM_FIELDS = (
    "attention_dropout",
    "hidden_dropout",
    "resid_dropout",
    "embd_dropout",
    "router_jitter_noise",
)
_DRAW = Lock()
"""torch's initialisers draw from one generator of the process; several nodes may be built in one process."""


@dataclass(frozen=True, slots=True)
class NodeModel:
    """What this node computes with."""

    model: nn.Module
    backbone: dict[str, nn.Parameter]
    """Every parameter of the backbone by name, local layers' experts included."""
    shards: dict[int, Shard]
    """Hosted experts by layer."""
    experts: dict[int, nn.Module]
    """The experts module of each remote layer, without weights, to hang `RemoteExperts` on."""
    hosted: dict[str, nn.Parameter]
    """Parameters of the shards, by the name they have in the whole model."""
    top_k: int


def build(config: NodeConfig, device: torch.device) -> NodeModel:
    """Build in float32, and fill with the checkpoint's weights or with random ones drawn from the agreement's seed."""
    model = _skeleton(config.model)
    layers = decoder_layers(model)
    shards, experts, names = _split(model, layers, config)
    model.to_empty(device=device)
    model.tie_weights()  # type: ignore[operator]  # leaving the meta device made two parameters of a tied one
    for shard in shards.values():
        shard.module.to_empty(device=device)
    with _DRAW, torch.random.fork_rng(devices=[]), torch.no_grad():
        _draw_backbone(model, config.model.seed)
    if config.model.checkpoint is None:
        _draw_experts(model, shards, config, names)
    else:
        _load(model, shards, config, names)
    model.train()
    hosted = {
        f"{names[layer]}.{key}": parameter
        for layer, shard in shards.items()
        for key, parameter in shard.module.named_parameters()
    }
    backbone = dict(model.named_parameters())
    top_k = int(model.config.num_experts_per_tok)  # type: ignore[union-attr,arg-type]
    return NodeModel(model, backbone, shards, experts, hosted, top_k)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of the model, in order."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def experts_of(layer: nn.Module) -> tuple[str, nn.Module] | None:
    """(name within the layer, module) of a decoder layer's experts, or None in a dense layer."""
    for name, module in layer.named_modules():
        if hasattr(module, "num_experts") and hasattr(module, "is_transposed"):
            return name, module
    return None


def auxiliary_loss_function(model: nn.Module) -> Callable[..., Tensor]:
    """The family's own load-balancing loss."""
    function = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
    if function is None:
        raise ConfigError(
            f"training.auxiliary_loss_coefficient: {type(model).__name__} has no load-balancing loss; must be 0"
        )
    assert callable(function)
    return function  # type: ignore[no-any-return]


def record_router_logits(model: nn.Module, keep: Callable[[Tensor], None]) -> None:
    """Call `keep` with each MoE layer's router logits [T, E] as its router computes them."""
    recorder = getattr(model, "_can_record_outputs", {}).get("router_logits")
    if recorder is None:
        raise ConfigError(
            f"training.auxiliary_loss_coefficient: {type(model).__name__} doesn't show its router logits"
        )
    router = getattr(recorder, "target_class", recorder)
    index = getattr(recorder, "index", 0)

    def hook(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        keep(output[index] if isinstance(output, tuple) else output)

    for module in model.modules():
        if isinstance(module, router):
            module.register_forward_hook(hook)


def transformers_config(config: ModelConfig) -> PreTrainedConfig:
    """The architecture as transformers takes it; `ConfigError` where it can't be trained here."""
    fields = json.loads(config.architecture)
    family = fields.pop("model_type", None)
    if family not in FAMILIES:
        raise ConfigError(
            f"model.architecture: model_type is {family!r}, must be one of {', '.join(sorted(FAMILIES))}"
        )
    for name in _RANDOM_FIELDS:
        if fields.get(name):
            raise ConfigError(
                f"model.architecture: {name} is {fields[name]}, must be 0: it would draw at random"
            )
    if fields.get("quantization_config"):
        raise ConfigError(
            "model.architecture: quantization_config must be absent: quantised weights can't be trained"
        )
    fields.pop("dtype", None)
    fields.pop("torch_dtype", None)
    return AutoConfig.for_model(family, **fields)


def _skeleton(config: ModelConfig) -> nn.Module:
    """The family's unmodified model on the meta device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            transformers_config(config),
            dtype=torch.float32,
            attn_implementation="sdpa",
            experts_implementation="pcmoe",
        )
    assert isinstance(model, nn.Module)
    return model


def _split(
    model: nn.Module, layers: list[nn.Module], config: NodeConfig
) -> tuple[dict[int, Shard], dict[int, nn.Module], dict[int, str]]:
    """Take experts that are spread out of the model: (own shards, bare modules, their names in the model)."""
    shards: dict[int, Shard] = {}
    bare: dict[int, nn.Module] = {}
    names: dict[int, str] = {}
    full_names = {id(module): name for name, module in model.named_modules()}
    placed = {place.layer: place for place in config.placement}
    for index, layer in enumerate(layers):
        found = experts_of(layer)
        if (found is not None) != (index in placed):
            raise ConfigError(f"placement: decoder layer {index} {'has' if found else 'has no'} experts")
        if found is None or placed[index].hosts is None:
            continue
        _, module = found
        hosts = placed[index].hosts
        assert hosts is not None
        if len(hosts) != module.num_experts:
            raise ConfigError(
                f"placement: layer {index} has {module.num_experts} experts, {len(hosts)} are placed"
            )
        names[index] = full_names[id(module)]
        hosted = hosts.count(config.index)
        if hosted:
            shards[index] = Shard(shard_of(module, hosted, names[index]))
        for key in list(module._parameters):
            del module._parameters[key]
        bare[index] = module
    return shards, bare, names


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(":".join(map(str, parts)).encode()).digest()[:8], "little") >> 1


def _draw_backbone(model: nn.Module, seed: int) -> None:
    """The family's own initialisation, module by module, each from (seed, name); fills rotary tables too."""
    for name, module in model.named_modules():
        if experts_of(module) and hasattr(module, "is_transposed"):
            if dict(module.named_parameters(recurse=False)):
                _draw_each_expert(model, module, list(range(int(module.num_experts))), seed, name)
            continue
        torch.manual_seed(_seed(seed, name))
        model._init_weights(module)  # type: ignore[operator]


def _draw_experts(
    model: nn.Module, shards: dict[int, Shard], config: NodeConfig, names: dict[int, str]
) -> None:
    placed = {place.layer: place.hosts for place in config.placement}
    with _DRAW, torch.random.fork_rng(devices=[]), torch.no_grad():
        for layer, shard in shards.items():
            mine = [e for e, host in enumerate(placed[layer] or ()) if host == config.index]
            _draw_each_expert(model, shard.module, mine, config.model.seed, names[layer])


def _draw_each_expert(model: nn.Module, module: nn.Module, experts: list[int], seed: int, name: str) -> None:
    """Each expert's weights depend on (seed, name of the layer's experts, expert) only, wherever it is hosted."""
    for row, expert in enumerate(experts):
        one = shard_of(module, 1, name).to_empty(device="cpu")
        torch.manual_seed(_seed(seed, name, expert))
        model._init_weights(one)  # type: ignore[operator]
        for key, parameter in module.named_parameters(recurse=False):
            parameter[row].copy_(one.get_parameter(key)[0])


def _load(model: nn.Module, shards: dict[int, Shard], config: NodeConfig, names: dict[int, str]) -> None:
    assert config.model.checkpoint is not None
    folder = Path(config.model.checkpoint)
    found = fingerprint(folder)
    if config.model.fingerprint not in (None, found):
        raise ResourceError(
            f"{folder}: fingerprint is {found}, the agreement says {config.model.fingerprint}"
        )
    reader = open_checkpoint(folder)
    placed = {place.layer: place.hosts for place in config.placement}
    tied = _tied_names(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            source = next((n for n in (name, *tied.get(name, ())) if n in reader), name)
            parameter.copy_(reader.read(source, parameter.shape))
        for layer, shard in shards.items():
            hosts = placed[layer] or ()
            mine = [expert for expert, host in enumerate(hosts) if host == config.index]
            for key, parameter in shard.module.named_parameters():
                shape = (len(hosts), *parameter.shape[1:])
                parameter.copy_(reader.read_rows(f"{names[layer]}.{key}", mine, shape))


def _tied_names(model: nn.Module) -> dict[str, list[str]]:
    """Other names of each parameter that is shared under several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: group for group in names.values() if len(group) > 1 for name in group}
