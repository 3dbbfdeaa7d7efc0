"""What a transformers configuration says about sizes, read without torch or transformers.

Counts are in parameters, not bytes. *Backbone* is everything but the routed experts: embeddings, attention,
norms, routers, shared experts, dense layers and the head.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import rfc8785

from pcmoe_operator.errors import Fault, ManifestError

Config = Mapping[str, Any]
KEPT_CONFIGURATIONS = 64
"""Of so many texts what follows is kept: there are far fewer models than consortia."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Sizes of a Mixture-of-Experts language model. A layer is a decoder layer."""

    model_type: str
    hidden_size: int
    vocabulary: int
    layers: int
    expert_layers: tuple[int, ...]
    """Indices of the layers that have routed experts, ascending."""
    experts: int
    """Routed experts of each such layer."""
    top_k: int
    """Routed experts that one token uses."""
    expert_width: int
    """Intermediate size of one routed expert."""
    attention_width: int
    """Elements of query, key and value of one token."""
    query_width: int
    """Elements of the query alone: what attention returns per token."""
    dense_width: int
    """Intermediate size of the shared expert or of dense layers, whichever is larger; 0 without either."""
    max_positions: int
    tied: bool
    """The head shares the embedding's weights."""
    embedding_parameters: int
    head_parameters: int
    """0 if tied."""
    attention_parameters: int
    """Of all layers together, with the norms beside them."""
    dense_parameters: int
    """Dense layers' FFNs and shared experts with their gates, all layers together."""
    router_parameters: int
    """Of one layer."""
    expert_parameters: int
    """Of one routed expert in one layer."""
    norm_parameters: int
    """The final norm."""

    @property
    def backbone_parameters(self) -> int:
        """Everything but the routed experts."""
        return (
            self.embedding_parameters
            + self.head_parameters
            + self.attention_parameters
            + self.dense_parameters
            + self.router_parameters * len(self.expert_layers)
            + self.norm_parameters
        )

    @property
    def parameters(self) -> int:
        """The whole model, as one process would hold it."""
        return self.backbone_parameters + self.expert_parameters * self.experts * len(self.expert_layers)


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How one model family names and counts things; `defaults` are its transformers configuration's."""

    defaults: Mapping[str, Any]
    expert_width: str
    """Key of a routed expert's intermediate size."""
    norms_per_attention: Callable[[Config, int], int]
    """(configuration, head size) -> parameters of the query and key norms."""
    query_bias: str | None = None
    """Key that turns on biases of query, key and value."""
    output_bias: bool = False
    """The same key turns on a bias of the output projection too."""
    sparse_step: bool = False
    """`decoder_sparse_step` and `mlp_only_layers` say which layers have experts; otherwise all do."""
    shared_expert: bool = False


def _no_norms(config: Config, head: int) -> int:
    return 0


_COMMON = {"tie_word_embeddings": False, "max_position_embeddings": 4096}

FAMILIES: Mapping[str, Family] = {
    "olmoe": Family(
        defaults={**_COMMON, "num_key_value_heads": None, "attention_bias": False},
        expert_width="intermediate_size",
        norms_per_attention=lambda c, head: c["hidden_size"] + head * c["num_key_value_heads"],
        query_bias="attention_bias",
        output_bias=True,
    ),
    "qwen3_moe": Family(
        defaults={
            **_COMMON,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "attention_bias": False,
            "intermediate_size": 6144,
        },
        expert_width="moe_intermediate_size",
        norms_per_attention=lambda c, head: 2 * head,
        query_bias="attention_bias",
        output_bias=True,
        sparse_step=True,
    ),
    "qwen2_moe": Family(
        defaults={
            **_COMMON,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 16,
            "qkv_bias": True,
            "intermediate_size": 5632,
        },
        expert_width="moe_intermediate_size",
        norms_per_attention=_no_norms,
        query_bias="qkv_bias",
        sparse_step=True,
        shared_expert=True,
    ),
    "mixtral": Family(
        defaults={**_COMMON, "max_position_embeddings": 131072, "num_key_value_heads": 8},
        expert_width="intermediate_size",
        norms_per_attention=_no_norms,
    ),
}
"""Families whose training is proven equal to plain transformers; the rest is refused."""

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_experts_per_tok",
    "num_experts",
)


def parse_config(text: str) -> dict[str, Any]:
    """The object that a configuration text holds; raises ValueError with a reason if it isn't one."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not a number in JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    try:
        config = json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(config, dict):
        raise ValueError("it is not an object")
    return config


@lru_cache(maxsize=KEPT_CONFIGURATIONS)
def canonical_config(text: str) -> str:
    """RFC 8785 JSON of a configuration text, to which 8 and 8.0 are one; ValueError with a reason."""
    try:
        return str(rfc8785.dumps(parse_config(text)), "utf-8")
    except (rfc8785.CanonicalizationError, UnicodeError) as error:
        raise ValueError(str(error)) from None


def read_shape(config: Config, path: str = "config") -> ModelShape:
    """The shape that a configuration describes; a `ManifestError` has every reason against training it."""
    faults = [_fault(path, *reason) for reason in _refusals(config)]
    if faults:
        raise ManifestError(faults)
    return _shape(FAMILIES[config["model_type"]], _complete(config))


@lru_cache(maxsize=KEPT_CONFIGURATIONS)
def shape_in(text: str) -> ModelShape:
    """The same of a configuration's text."""
    return read_shape(json.loads(text))


def _fault(path: str, key: str, value: object, rule: str, message: str) -> Fault:
    return Fault(f"{path}.{key}" if key else path, value, rule, message)


def _complete(config: Config) -> dict[str, Any]:
    """The configuration with the family's defaults and one name for each thing."""
    family = FAMILIES[config["model_type"]]
    whole = {**family.defaults, **config}
    if "num_experts" not in whole and "num_local_experts" in whole:
        whole["num_experts"] = whole["num_local_experts"]
    if whole["num_key_value_heads"] is None:
        whole["num_key_value_heads"] = whole["num_attention_heads"]
    return whole


def _refusals(config: Config) -> list[tuple[str, object, str, str]]:
    """(key, value, rule, message) of everything that keeps the configuration from being trained."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        return [
            (
                "model_type",
                kind,
                "model-type",
                f"{kind!r} is not a supported model family: must be one of {known}",
            )
        ]
    found = [
        (key, value, "no-randomness", f"{key} is {value!r}: dropout and router noise must be 0")
        for key, value in sorted(config.items())
        if ("dropout" in key or "jitter" in key) and value not in (0, None)
    ]
    if config.get("quantization_config") is not None:
        found.append(
            (
                "quantization_config",
                "…",
                "not-quantized",
                "a quantized model can't be trained: must be absent",
            )
        )
    return found + _size_refusals(_complete(config))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1 << 24


def _size_refusals(whole: Config) -> list[tuple[str, object, str, str]]:
    family = FAMILIES[whole["model_type"]]
    keys = [*_SIZES, "num_key_value_heads", "max_position_embeddings", family.expert_width]
    keys += ["shared_expert_intermediate_size"] if family.shared_expert else []
    keys += ["intermediate_size"] if family.sparse_step else []
    keys += [key for key in ("head_dim", "decoder_sparse_step") if whole.get(key) is not None]
    found = [
        _size(key, whole.get(key), "must be a whole number of at least 1")
        for key in keys
        if not _is_count(whole.get(key))
    ]
    dense = whole.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(layer, int) for layer in dense):
        found.append(_size("mlp_only_layers", dense, "must be a list of whole numbers"))
    return found or _relations(family, whole)


def _relations(family: Family, whole: Config) -> list[tuple[str, object, str, str]]:
    """What must hold between sizes that are sound by themselves."""
    found = []
    hidden, heads = whole["hidden_size"], whole["num_attention_heads"]
    if whole["num_experts_per_tok"] > whole["num_experts"]:
        rule = f"must be at most num_experts ({whole['num_experts']})"
        found.append(_size("num_experts_per_tok", whole["num_experts_per_tok"], rule))
    if whole.get("head_dim") is None and hidden % heads:
        found.append(_size("num_attention_heads", heads, f"must divide hidden_size ({hidden})"))
    if heads % whole["num_key_value_heads"]:
        rule = f"must divide num_attention_heads ({heads})"
        found.append(_size("num_key_value_heads", whole["num_key_value_heads"], rule))
    if not _expert_layers(family, whole):
        found.append(
            _size(
                "num_hidden_layers", whole["num_hidden_layers"], "must leave at least one layer with experts"
            )
        )
    return found


def _size(key: str, value: object, rule: str) -> tuple[str, object, str, str]:
    return key, value, "config-sizes", f"{key} is {value!r}: {rule}"


def _expert_layers(family: Family, whole: Config) -> tuple[int, ...]:
    layers = range(whole["num_hidden_layers"])
    if not family.sparse_step:
        return tuple(layers)
    step, dense = whole.get("decoder_sparse_step") or 1, whole.get("mlp_only_layers") or ()
    return tuple(layer for layer in layers if layer not in dense and (layer + 1) % step == 0)


def _shape(family: Family, whole: Config) -> ModelShape:
    hidden, layers, experts = whole["hidden_size"], whole["num_hidden_layers"], whole["num_experts"]
    head = whole.get("head_dim") or hidden // whole["num_attention_heads"]
    query, key = head * whole["num_attention_heads"], head * whole["num_key_value_heads"]
    bias = bool(family.query_bias and whole[family.query_bias])
    attention = hidden * (query + 2 * key) + query * hidden
    attention += (query + 2 * key if bias else 0) + (hidden if bias and family.output_bias else 0)
    attention += family.norms_per_attention(whole, head) + 2 * hidden

    expert_layers = _expert_layers(family, whole)
    dense_width = whole.get("intermediate_size", 0) if len(expert_layers) < layers else 0
    shared_width = whole["shared_expert_intermediate_size"] if family.shared_expert else 0
    dense = 3 * hidden * dense_width * (layers - len(expert_layers))
    dense += (3 * hidden * shared_width + hidden) * len(expert_layers) if family.shared_expert else 0
    embedding = whole["vocab_size"] * hidden
    tied = bool(whole["tie_word_embeddings"])
    return ModelShape(
        model_type=whole["model_type"],
        hidden_size=hidden,
        vocabulary=whole["vocab_size"],
        layers=layers,
        expert_layers=expert_layers,
        experts=experts,
        top_k=whole["num_experts_per_tok"],
        expert_width=whole[family.expert_width],
        attention_width=query + 2 * key,
        query_width=query,
        dense_width=max(dense_width, shared_width),
        max_positions=whole["max_position_embeddings"],
        tied=tied,
        embedding_parameters=embedding,
        head_parameters=0 if tied else embedding,
        attention_parameters=attention * layers,
        dense_parameters=dense,
        router_parameters=experts * hidden,
        expert_parameters=3 * hidden * whole[family.expert_width],
        norm_parameters=hidden,
    )
