"""bfloat16 is for compute and the wire; what is trained, summed and stored stays float32."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.exchange.rigs import changed
from tests.training.runs import QWEN3_MOE, Case, configs_of, rounds_of, run_local

CASE = Case(n=2, rounds=2, steps_per_round=6, learning_rate=2e-3, length=32, architecture=dict(QWEN3_MOE))


@pytest.mark.parametrize("wire", ["bfloat16", "float32"])
def test_bfloat16_compute_learns_as_float32_does(wire: str, tmp_path: Path) -> None:
    exact, rounded = configs_of(CASE, tmp_path / "exact"), configs_of(CASE, tmp_path / "rounded")
    rounded = [
        changed(config, model={"dtype": "bfloat16"}, transport={"wire_dtype": wire}) for config in rounded
    ]
    run_local(exact)
    run_local(rounded)
    for one, other in zip(exact, rounded, strict=True):
        first, *_, last = rounds_of(one)
        assert last["heldOutLoss"] < first["heldOutLoss"]
        assert rounds_of(other)[-1]["heldOutLoss"] == pytest.approx(last["heldOutLoss"], rel=0.01)


def test_masters_keep_what_bfloat16_would_round_away(tmp_path: Path) -> None:
    configs = [changed(config, model={"dtype": "bfloat16"}) for config in configs_of(CASE, tmp_path)]
    run_local(configs)
    for config in configs:
        stored = load_file(Path(config.checkpoint_directory) / "round-000002" / "state.safetensors")
        masters = {name: tensor for name, tensor in stored.items() if name.endswith("#master")}
        assert masters
        for name, master in masters.items():
            assert master.dtype == torch.float32, name
        kept = [master for master in masters.values() if not torch.equal(master, master.bfloat16().float())]
        assert len(kept) == len(masters)


def test_masters_start_with_every_bit_of_a_float32_checkpoint(tmp_path: Path) -> None:
    still = changed(configs_of(CASE, tmp_path)[0]).training.optimizer.model_copy(
        update={"learning_rate": 1e-30, "weight_decay": 0.0}
    )
    configs = [
        changed(config, model={"dtype": "bfloat16"}, training={"optimizer": still.model_dump()})
        for config in configs_of(CASE, tmp_path / "again")
    ]
    run_local(configs)
    start = load_file(tmp_path / "again" / "model" / "model.safetensors")
    stored = load_file(Path(configs[0].checkpoint_directory) / "round-000002" / "state.safetensors")
    for name, master in stored.items():
        if name.startswith("backbone/") and name.endswith("#master"):
            assert torch.equal(master, start[name.removeprefix("backbone/").removesuffix("#master")]), name
