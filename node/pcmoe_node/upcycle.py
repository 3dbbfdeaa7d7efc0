"""Makes a Mixture-of-Experts checkpoint out of a dense one: "sparse upcycling".

    python -m pcmoe_node.upcycle BASE --experts 16 --top-k 2 --output DIR

Every layer's feed-forward network becomes `experts` equal copies, with a small random router before them. The
top-k weights sum to 1, so the result computes what the dense model computed; the copies drift apart in
training, because the router sends each of them other tokens. Everything else is carried over as it is.

Prints the fingerprint, which goes into the manifest: the same base and settings give the same one on any
machine, since the routers are drawn with integers. Writes one file per layer, and holds one layer in memory.
"""

import argparse
import hashlib
import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from pcmoe_node.errors import ConfigError, NodeError, ResourceError
from pcmoe_node.fingerprint import fingerprint, read_headers
from pcmoe_node.weights import CheckpointReader

log = logging.getLogger(__name__)

RECORD = "upcycle.json"
"""What the folder was made from; its presence also says that we made it, and may replace it."""

_MLP = re.compile(
    r"^(?P<layer>.*\.layers\.(?P<index>\d+)\.mlp)\.(?P<part>gate_proj|up_proj|down_proj)\.weight$"
)
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_NOT_CARRIED = (".safetensors", ".safetensors.index.json")
_SPREAD_OF_FOUR_INT16 = (4 * (2**32 - 1) / 12) ** 0.5
"""Standard deviation of the sum of four uniformly distributed 16-bit integers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What, beside the base, decides the result."""

    experts: int
    top_k: int
    seed: int = 0
    router_std: float = 0.02
    """Standard deviation of the routers' weights."""


def upcycle(base: Path, output: Path, settings: Settings) -> str:
    """Write the checkpoint into `output` and return its fingerprint. An unchanged result is not made again.

    Raises `ConfigError` for settings or a family that can't be upcycled exactly, `ResourceError` for files.
    """
    if not 1 <= settings.top_k <= settings.experts:
        raise ConfigError(f"top-k: {settings.top_k}: must be between 1 and experts ({settings.experts})")
    config = moe_config(_read_config(base), settings)
    record = {"base": fingerprint(base), **asdict(settings)}
    if output.is_dir() and any(output.iterdir()):
        made = _read_record(output)
        if made is None:
            raise ResourceError(
                f"{output}: is not empty and was not made by this command; choose another folder"
            )
        found = made.pop("fingerprint", None)
        if made == record and found == _fingerprint_if_whole(output):
            log.info("%s: is up to date", output)
            return str(found)
    return _write(base, output, config, settings, record)


def moe_config(dense: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The MoE model's configuration. Raises `ConfigError` for families that don't carry over exactly."""
    family = dense.get("model_type")
    if family == "qwen3":
        theirs = {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "moe_intermediate_size": dense["intermediate_size"],
            "num_experts": settings.experts,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    elif family == "mistral":
        theirs = {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "num_local_experts": settings.experts,
        }
    else:
        raise ConfigError(
            f"model_type: {family!r}: must be qwen3 or mistral, whose MoE families match exactly"
        )
    kept = {key: value for key, value in dense.items() if key != "layer_types"}
    return {**kept, **theirs, "num_experts_per_tok": settings.top_k}


def router_row(settings: Settings, layer: int, expert: int, hidden_size: int) -> Tensor:
    """One expert's router weights [hidden_size], from (seed, layer, expert) alone; nearly normal."""
    stream = hashlib.shake_256(f"pcmoe router {settings.seed} {layer} {expert}".encode())
    numbers = torch.frombuffer(bytearray(stream.digest(hidden_size * 8)), dtype=torch.int16)
    sums = numbers.view(hidden_size, 4).sum(dim=1, dtype=torch.int32)
    return sums.to(torch.float32) * (settings.router_std / _SPREAD_OF_FOUR_INT16)


def _write(
    base: Path, output: Path, config: dict[str, Any], settings: Settings, record: dict[str, Any]
) -> str:
    scratch = output.with_name(output.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for file in base.iterdir():
        if file.is_file() and not file.name.endswith(_NOT_CARRIED) and file.name != RECORD:
            shutil.copyfile(file, scratch / file.name)
    _write_json(scratch / "config.json", config)
    for name, tensors in _layers(base, settings):
        (scratch / f"{name}.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
        log.info("%s: %d tensors", name, len(tensors))
    made = fingerprint(scratch)
    _write_json(scratch / RECORD, {**record, "fingerprint": made})
    shutil.rmtree(output, ignore_errors=True)
    scratch.rename(output)
    return made


def _layers(base: Path, settings: Settings) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(file name, its tensors): first what belongs to no layer, then layer by layer."""
    reader = CheckpointReader(base)
    shapes = {name: entry.shape for name, entry in read_headers(base).items()}
    groups: dict[int, list[str]] = {}
    for name in sorted(shapes):
        layer = _LAYER.search(name)
        groups.setdefault(int(layer[1]) if layer else -1, []).append(name)
    for index, names in sorted(groups.items()):
        tensors = {name: reader.read(name, shapes[name]) for name in names}
        if index >= 0:
            _replace_mlp(tensors, index, settings)
        yield (f"layer-{index:05}" if index >= 0 else "outside-layers"), tensors


def _replace_mlp(tensors: dict[str, Tensor], index: int, settings: Settings) -> None:
    """Turn one layer's feed-forward weights into experts and a router, laid out as transformers has them."""
    found = [match for name in tensors if (match := _MLP.match(name))]
    parts = {match["part"]: tensors.pop(match[0]) for match in found}
    if len(parts) != 3 or any(".mlp." in name for name in tensors):
        raise ConfigError(f"layer {index}: its mlp must be gate_proj, up_proj and down_proj without bias")
    name = found[0]["layer"]
    gate_up_JH = torch.cat([parts["gate_proj"], parts["up_proj"]])
    for key, tensor in (("gate_up_proj", gate_up_JH), ("down_proj", parts["down_proj"])):
        tensors[f"{name}.experts.{key}"] = tensor.expand(settings.experts, *tensor.shape).contiguous()
    hidden = gate_up_JH.shape[1]
    rows = [router_row(settings, index, expert, hidden) for expert in range(settings.experts)]
    tensors[f"{name}.gate.weight"] = torch.stack(rows).to(gate_up_JH.dtype)


def _read_config(base: Path) -> dict[str, Any]:
    path = base / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResourceError(f"{path}: can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON") from error
    return config


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record


def _fingerprint_if_whole(folder: Path) -> str | None:
    try:
        return fingerprint(folder)
    except ResourceError:
        return None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pcmoe_node.upcycle",
        description="Make a Mixture-of-Experts checkpoint out of a dense one.",
    )
    parser.add_argument(
        "base", type=Path, help="folder with config.json and *.safetensors of a qwen3 or mistral model"
    )
    parser.add_argument("--experts", type=int, required=True, help="experts per layer")
    parser.add_argument("--top-k", type=int, required=True, help="experts per token")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder to write; replaced if made by this command"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the routers (default: 0)")
    parser.add_argument(
        "--router-std", type=float, default=0.02, help="of the routers' weights (default: 0.02)"
    )
    given = parser.parse_args(arguments)
    settings = Settings(
        experts=given.experts, top_k=given.top_k, seed=given.seed, router_std=given.router_std
    )
    try:
        sys.stdout.write(upcycle(given.base, given.output, settings) + "\n")
    except NodeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
