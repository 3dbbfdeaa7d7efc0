"""A node reads its own share of a checkpoint, in the layout of the module and in the one that is published."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.exchange.rigs import changed
from tests.training.runs import OLMOE, QWEN3_MOE, Case, configs_of
from transformers import AutoConfig, AutoModelForCausalLM

from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import ResourceError
from pcmoe_node.fingerprint import fingerprint
from pcmoe_node.model import NodeModel, build

CPU = torch.device("cpu")


def published(architecture: dict[str, Any], fused: Path, folder: Path) -> None:
    """The same weights as transformers itself would publish them: one tensor per expert."""
    fields = {key: value for key, value in architecture.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture["model_type"], **fields))
    model.load_state_dict(load_file(fused / "model.safetensors"))
    model.save_pretrained(folder)


def with_model(config: NodeConfig, folder: Path) -> NodeConfig:
    return changed(config, model={"checkpoint": str(folder), "fingerprint": fingerprint(folder)})


def assert_same_weights(found: NodeModel, expected: NodeModel) -> None:
    for mine, other in ((found.backbone, expected.backbone), (found.hosted, expected.hosted)):
        assert set(mine) == set(other)
        assert [name for name in mine if not torch.equal(mine[name], other[name])] == []


@pytest.mark.parametrize("architecture", [OLMOE, QWEN3_MOE], ids=["olmoe", "qwen3_moe"])
def test_one_tensor_per_expert_gives_the_same_shares(
    architecture: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    configs = configs_of(Case(n=3, architecture=dict(architecture)), tmp_path)
    published(architecture, tmp_path / "model", tmp_path / "published")
    names = load_file(tmp_path / "published" / "model.safetensors")
    assert any(".experts.0." in name for name in names), (
        "transformers no longer publishes one tensor per expert"
    )
    for config in configs:
        with caplog.at_level(logging.WARNING, logger="pcmoe"):
            found = build(with_model(config, tmp_path / "published"), CPU)
        assert_same_weights(found, build(config, CPU))
    assert "the whole model is loaded first" in caplog.text


def test_shares_put_together_are_the_checkpoint(tmp_path: Path) -> None:
    configs = configs_of(Case(n=3), tmp_path)
    whole = load_file(tmp_path / "model" / "model.safetensors")
    for config in configs:
        built = build(config, CPU)
        for name, parameter in built.backbone.items():
            assert torch.equal(parameter, whole[name]), name
        for name, parameter in built.hosted.items():
            assert torch.equal(parameter, whole[name][config.index :: 3]), name


def test_a_missing_tensor_and_a_wrong_shape_are_named(tmp_path: Path) -> None:
    config = configs_of(Case(n=1), tmp_path)[0]
    whole = load_file(tmp_path / "model" / "model.safetensors")
    for change, message in (("drop", "has no tensor lm_head.weight"), ("cut", "lm_head.weight: shape is")):
        folder = tmp_path / change
        folder.mkdir()
        rest = {name: tensor for name, tensor in whole.items() if name != "lm_head.weight"}
        if change == "cut":
            rest["lm_head.weight"] = whole["lm_head.weight"][:5].clone()
        save_file(rest, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(OLMOE))
        with pytest.raises(ResourceError, match=message):
            build(with_model(config, folder), CPU)


def test_another_checkpoint_than_agreed_is_refused(tmp_path: Path) -> None:
    config = configs_of(Case(n=1), tmp_path)[0]
    other = changed(config, model={"fingerprint": "sha256:" + "0" * 64})
    with pytest.raises(ResourceError, match="fingerprint is sha256:.*, the agreement says sha256:000"):
        build(other, CPU)
