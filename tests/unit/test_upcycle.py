"""A dense model and the Mixture-of-Experts model made of it compute the same."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from pcmoe_node.errors import ConfigError, ResourceError
from pcmoe_node.fingerprint import fingerprint
from pcmoe_node.upcycle import Settings, main, router_row, upcycle

SETTINGS = Settings(experts=6, top_k=2)
FIRST_OF_ROW = [0.516951, -0.835857, 0.306854]
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def dense_model(folder: Path, family: str = "qwen3", **overrides: object) -> Any:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **overrides})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(folder)
    return model


def load(folder: Path) -> Any:
    config = AutoConfig.for_model(**json.loads((folder / "config.json").read_text()))
    model = AutoModelForCausalLM.from_config(config).eval()
    tensors = {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
    model.load_state_dict(tensors, strict=True)
    return model


@pytest.mark.parametrize(("family", "top_k"), [("qwen3", 1), ("qwen3", 2), ("mistral", 2), ("qwen3", 6)])
def test_the_upcycled_model_computes_what_the_dense_one_computed(
    tmp_path: Path, family: str, top_k: int
) -> None:
    dense = dense_model(tmp_path / "dense", family)
    upcycle(tmp_path / "dense", tmp_path / "moe", Settings(experts=6, top_k=top_k))
    moe = load(tmp_path / "moe")
    ids_BS = torch.randint(0, 64, (2, 32))
    with torch.no_grad():
        theirs, ours = dense(input_ids=ids_BS).logits, moe(input_ids=ids_BS).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert theirs.std() > 0.5, "logits far enough from 0 for the comparison to mean something"


def test_experts_are_equal_copies_and_routers_differ_per_layer_and_expert(tmp_path: Path) -> None:
    dense = dense_model(tmp_path / "dense")
    upcycle(tmp_path / "dense", tmp_path / "moe", SETTINGS)
    weights = load(tmp_path / "moe").state_dict()
    for layer in range(2):
        experts = weights[f"model.layers.{layer}.mlp.experts.down_proj"]
        assert experts.shape == (6, 32, 48)
        assert all(e.equal(dense.model.layers[layer].mlp.down_proj.weight) for e in experts)
    routers = torch.cat([weights[f"model.layers.{layer}.mlp.gate.weight"] for layer in range(2)])
    assert len({tuple(row.tolist()) for row in routers}) == 12


def test_a_router_row_is_the_same_on_every_machine_and_nearly_normal() -> None:
    settings = Settings(experts=1, top_k=1, seed=5, router_std=0.5)
    row = router_row(settings, 3, 2, 10_000)
    assert [round(x, 6) for x in row[:3].tolist()] == FIRST_OF_ROW
    assert abs(float(row.mean())) < 0.02
    assert float(row.std()) == pytest.approx(0.5, rel=0.03)
    assert float(((row / 0.5).abs() > 2).float().mean()) == pytest.approx(0.045, abs=0.01)


def test_the_fingerprint_is_printed_and_the_same_settings_are_not_made_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense_model(tmp_path / "dense")

    def run(*more: str) -> str:
        command = [
            str(tmp_path / "dense"),
            "--experts",
            "6",
            "--top-k",
            "2",
            "--output",
            str(tmp_path / "moe"),
            *more,
        ]
        assert main(command) == 0
        return capsys.readouterr().out.strip()

    first = run()
    assert first == fingerprint(tmp_path / "moe")
    written = (tmp_path / "moe" / "config.json").stat().st_mtime_ns
    assert run() == first
    assert (tmp_path / "moe" / "config.json").stat().st_mtime_ns == written
    (tmp_path / "moe" / "layer-00000.safetensors").write_bytes(b"broken")
    assert run() == first
    assert run("--seed", "1") not in ("", first)
    assert not (tmp_path / "moe.partial").exists()


def test_a_changed_file_is_noticed_and_made_again(tmp_path: Path) -> None:
    dense_model(tmp_path / "dense")
    first = upcycle(tmp_path / "dense", tmp_path / "moe", SETTINGS)
    file = tmp_path / "moe" / "layer-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert upcycle(tmp_path / "dense", tmp_path / "moe", SETTINGS) == first == fingerprint(tmp_path / "moe")


def test_tokenizer_files_of_the_base_are_carried_over(tmp_path: Path) -> None:
    dense_model(tmp_path / "dense")
    (tmp_path / "dense" / "tokenizer.json").write_text("{}")
    upcycle(tmp_path / "dense", tmp_path / "moe", SETTINGS)
    assert (tmp_path / "moe" / "tokenizer.json").read_text() == "{}"


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    dense_model(tmp_path / "dense")
    (tmp_path / "moe").mkdir()
    (tmp_path / "moe" / "thesis.txt").write_text("precious")
    with pytest.raises(ResourceError, match="was not made by this command"):
        upcycle(tmp_path / "dense", tmp_path / "moe", SETTINGS)
    assert (tmp_path / "moe" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("more", "code", "reason"),
    [
        (["--experts", "2", "--top-k", "3"], 64, "top-k: 3: must be between 1 and experts (2)"),
        (["--experts", "0", "--top-k", "0"], 64, "top-k: 0"),
    ],
)
def test_impossible_settings_end_with_the_exit_code_of_a_configuration_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: Sequence[str], code: int, reason: str
) -> None:
    assert main([str(tmp_path), "--output", str(tmp_path / "moe"), *more]) == code
    assert reason in capsys.readouterr().err


def test_families_that_would_not_compute_the_same_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="config.json: can't be read"):
        upcycle(tmp_path, tmp_path / "moe", SETTINGS)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        upcycle(tmp_path, tmp_path / "moe", SETTINGS)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match="model_type: 'gpt2': must be qwen3 or mistral"):
        upcycle(tmp_path, tmp_path / "moe", SETTINGS)
    dense_model(tmp_path / "biased")
    config = json.loads((tmp_path / "biased" / "config.json").read_text())
    tensors = load_file(tmp_path / "biased" / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.bias"] = torch.zeros(48)
    save_file(tensors, tmp_path / "biased" / "model.safetensors")
    assert config["model_type"] == "qwen3"
    with pytest.raises(ConfigError, match="layer 0: its mlp must be"):
        upcycle(tmp_path / "biased", tmp_path / "moe", SETTINGS)
