"""The torch-free counts of `shape.py` against the models that transformers builds."""

import json
from typing import Any

import pytest
import torch
from tests.builders import OLMOE, QWEN3_MOE, architecture
from transformers import AutoConfig, AutoModelForCausalLM

from pcmoe_operator.shape import read_shape

QWEN2_MOE = {
    **{key: value for key, value in QWEN3_MOE.items() if key != "head_dim"},
    "model_type": "qwen2_moe",
    "shared_expert_intermediate_size": 24,
}
MIXTRAL = {
    **{key: value for key, value in OLMOE.items() if key != "num_experts"},
    "model_type": "mixtral",
    "num_local_experts": 8,
}

CASES: dict[str, dict[str, Any]] = {
    "olmoe": {**OLMOE},
    "olmoe tied": {**OLMOE, "tie_word_embeddings": True},
    "olmoe with biases": {**OLMOE, "attention_bias": True, "num_key_value_heads": 4},
    "olmoe without key heads": {key: value for key, value in OLMOE.items() if key != "num_key_value_heads"},
    "qwen3_moe": {**QWEN3_MOE},
    "qwen3_moe every second layer": {**QWEN3_MOE, "decoder_sparse_step": 2, "num_hidden_layers": 4},
    "qwen3_moe with a dense layer": {**QWEN3_MOE, "mlp_only_layers": [0], "attention_bias": True},
    "qwen2_moe": {**QWEN2_MOE},
    "qwen2_moe with a dense layer": {**QWEN2_MOE, "mlp_only_layers": [1], "qkv_bias": False},
    "mixtral": {**MIXTRAL},
    "mixtral tied, wide heads": {**MIXTRAL, "tie_word_embeddings": True, "head_dim": 16},
}


def build(config: dict[str, Any]) -> torch.nn.Module:
    settings = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        model: torch.nn.Module = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config["model_type"], **settings)
        )
    return model


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_counts_are_those_of_the_real_model(config: dict[str, Any]) -> None:
    shape = read_shape(config)
    sizes = {name: parameter.numel() for name, parameter in build(config).named_parameters()}
    experts = {name: size for name, size in sizes.items() if ".mlp.experts." in name}
    routers = {name: size for name, size in sizes.items() if name.endswith(".mlp.gate.weight")}
    assert shape.parameters == sum(sizes.values())
    assert shape.backbone_parameters == sum(sizes.values()) - sum(experts.values())
    assert shape.expert_parameters * shape.experts * len(shape.expert_layers) == sum(experts.values())
    assert shape.expert_layers == tuple(sorted({int(name.split(".")[2]) for name in experts}))
    assert [shape.router_parameters] * len(shape.expert_layers) == list(routers.values())
    assert shape.tied == ("lm_head.weight" not in sizes)


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_a_configuration_saved_by_transformers_has_the_same_shape(config: dict[str, Any]) -> None:
    settings = {key: value for key, value in config.items() if key != "model_type"}
    saved = AutoConfig.for_model(config["model_type"], **settings).to_json_string(use_diff=False)
    assert read_shape(json.loads(saved)) == read_shape(config)


def test_an_architecture_of_the_builders_can_be_built() -> None:
    for base in (OLMOE, QWEN3_MOE):
        build(json.loads(architecture(base)))
