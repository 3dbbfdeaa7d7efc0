"""Runs of N nodes for the training tests: a shared tiny checkpoint, real text, known order secrets, any exchange."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.exchange.rigs import coordinating, node_configs, together
from tests.faults.nursery import Spawn, Spawned, forked
from tests.training.oracle import Oracle, Recipe
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from pcmoe_node.__main__ import run_node
from pcmoe_node.config import NodeConfig
from pcmoe_node.coordination.session import TlsPlace
from pcmoe_node.coordination.table import LocalTable
from pcmoe_node.data import open_corpus
from pcmoe_node.fingerprint import fingerprint
from pcmoe_node.tokenizer import ByteLevel

OLMOE = {
    "model_type": "olmoe",
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts": 10,
    "num_experts_per_tok": 3,
    "vocab_size": 258,
    "norm_topk_prob": False,
    "tie_word_embeddings": False,
    "eos_token_id": 256,
    "pad_token_id": 257,
    "max_position_embeddings": 64,
    "initializer_range": 0.06,
}
QWEN3_MOE = {
    **{key: OLMOE[key] for key in OLMOE if key not in ("model_type", "intermediate_size")},
    "model_type": "qwen3_moe",
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "head_dim": 16,
    "norm_topk_prob": True,
    "num_local_experts": 10,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
del QWEN3_MOE["num_local_experts"]


@dataclass(kw_only=True)
class Case:
    """What varies between runs."""

    n: int = 2
    schedule: str = "Concurrent"
    local_at_end: int = 1
    auxiliary: float = 0.0
    placement: str = "RoundRobin"
    checkpointing: bool = False
    deterministic: bool = False
    rounds: int = 2
    steps_per_round: int = 10
    micro_batches: int = 2
    in_flight: int = 2
    sequences: int = 1
    length: int = 16
    seed: int = 1
    learning_rate: float = 2e-4
    """Small beside the weights in long runs: rounding grows with it, whatever the exchange. Large enough in short
    ones that the change of a weight near 1 is many times what float32 can tell apart there."""
    epsilon: float = 1e-6
    """An element whose gradient is all rounding moves as far as any other while epsilon is smaller than that."""
    architecture: dict[str, Any] = field(default_factory=lambda: dict(OLMOE))
    overrides: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        names = ("n", "schedule", "placement", "local_at_end", "auxiliary", "checkpointing")
        return "-".join(str(getattr(self, name)) for name in names)

    @property
    def layers(self) -> int:
        return int(self.architecture["num_hidden_layers"])

    @property
    def local_layers(self) -> frozenset[int]:
        return frozenset(range(self.layers - self.local_at_end, self.layers))

    def hosts(self) -> list[int]:
        """The host of each expert: one after the other, by capacity 1, 2, 3 …, or the other way round in blocks."""
        experts = int(self.architecture["num_experts"])
        if self.placement == "RoundRobin":
            return [expert % self.n for expert in range(experts)]
        if self.placement == "CapacityWeighted":
            turns = [member for member in range(self.n) for _ in range(member + 1)]
            return [turns[expert % len(turns)] for expert in range(experts)]
        return [(experts - 1 - expert) * self.n // experts for expert in range(experts)]


def write_checkpoint(folder: Path, architecture: Mapping[str, Any], seed: int) -> None:
    """A random model whose routers are decided: small gaps between experts would make equality a matter of luck."""
    fields = {key: value for key, value in architecture.items() if key != "model_type"}
    config = AutoConfig.for_model(architecture["model_type"], **fields)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate.weight"):
                parameter.mul_(20.0)
    folder.mkdir(parents=True)
    save_file({n: p.contiguous() for n, p in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(architecture))


def write_texts(folder: Path, member: int) -> None:
    """Real text; the second participant's documents are tiny, so that token counts differ between owners."""
    import pydoc_data.topics as source

    folder.mkdir(parents=True)
    topics = [text for _, text in sorted(source.topics.items())][member::8]
    text = "\n".join(topics)[:6000]
    size = 12 if member == 1 else 400
    records = [text[start : start + size] for start in range(0, len(text), size)]
    lines = [json.dumps({"text": record}) for record in records if record.strip()]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")


def configs_of(case: Case, folder: Path) -> list[NodeConfig]:
    """Everything the nodes need, on disk under `folder`."""
    model = folder / "model"
    write_checkpoint(model, case.architecture, case.seed)
    placement = [
        {"layer": layer, "hosts": None if layer in case.local_layers else case.hosts()}
        for layer in range(case.layers)
    ]
    for member in range(case.n):
        write_texts(folder / f"data-{member}", member)
        (folder / f"secret-{member}").write_text(bytes([member, case.seed] * 16).hex())
    settings: dict[str, Any] = {
        "model": {
            "architecture": json.dumps(case.architecture, sort_keys=True),
            "checkpoint": str(model),
            "fingerprint": fingerprint(model),
        },
        "placement": placement,
        "training": {
            "schedule": case.schedule,
            "rounds": case.rounds,
            "steps_per_round": case.steps_per_round,
            "micro_batches_per_step": case.micro_batches,
            "in_flight": case.in_flight,
            "sequences_per_micro_batch": case.sequences,
            "sequence_length": case.length,
            "deterministic": case.deterministic,
            "evaluation_sequences": 2,
            "auxiliary_loss_coefficient": case.auxiliary,
            "optimizer": {
                "learning_rate": case.learning_rate,
                "beta1": 0.9,
                "beta2": 0.95,
                "epsilon": case.epsilon,
                "weight_decay": 0.1,
                "warmup_steps": 2,
                "decay": "Cosine",
                "max_grad_norm": 1.0,
            },
        },
        "quota": {"rows_per_message": case.sequences * case.length, "slots_per_row": 3},
        "dataset": lambda i: {"path": str(folder / f"data-{i}" / "records.jsonl"), "format": "JSONLines"},
        "order_secret_file": lambda i: str(folder / f"secret-{i}"),
        "gradient_checkpointing": case.checkpointing,
    }
    for key, value in case.overrides.items():
        settings[key] = {**settings[key], **value} if isinstance(settings.get(key), dict) else value
    return node_configs(case.n, folder / "nodes", **settings)


def run_local(configs: list[NodeConfig], timeout: float = 60.0) -> None:
    """All nodes in this process, over the local exchange."""
    table = LocalTable(configs)
    together([partial(run_node, config, table.place(i)) for i, config in enumerate(configs)], timeout)


def run_tls_threads(configs: list[NodeConfig]) -> None:
    """All nodes in this process, over mutual TLS on loopback."""
    with coordinating(configs):
        together([partial(run_node, config, TlsPlace(config)) for config in configs])


def start_process(config: NodeConfig, spawn: Spawn = forked) -> Spawned:
    """One node as its own process; `interpreter` starts it as `pcmoe run` does."""
    path = Path(config.checkpoint_directory).parent / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config.model_dump_json())
    return spawn(
        ["-m", "pcmoe_node", "--config", str(path)], path.with_name("node.log"), {"OMP_NUM_THREADS": "1"}
    )


def node_log(config: NodeConfig) -> str:
    """What a node's process has said so far."""
    return (Path(config.checkpoint_directory).parent / "node.log").read_text()


def run_processes(configs: list[NodeConfig], timeout: float = 90) -> list[int]:
    """All nodes as separate processes over mutual TLS; their exit codes."""
    with coordinating(configs):
        processes = [start_process(config) for config in configs]
        try:
            return [process.wait(timeout) for process in processes]
        finally:
            for process in processes:
                process.kill()


def final_weights(configs: list[NodeConfig]) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """(each backbone by name, the shared experts put together again) from the last stored round."""
    backbones: list[dict[str, Tensor]] = []
    shared: dict[str, Tensor] = {}
    for config in configs:
        newest = max(Path(config.checkpoint_directory).glob("round-*"))
        stored = load_file(newest / "state.safetensors")
        masters = {key[: -len("#master")]: t for key, t in stored.items() if key.endswith("#master")}
        backbones.append(
            {k.removeprefix("backbone/"): t for k, t in masters.items() if k.startswith("backbone/")}
        )
        for name, rows in masters.items():
            if name.startswith("experts/"):
                _place(shared, name.removeprefix("experts/"), rows, config)
    return backbones, shared


def stored_of(configs: list[NodeConfig], rounds: int) -> list[dict[str, Tensor]]:
    """Everything of the last stored round, which must be this one: weights, masters and moments."""
    newest = [max(Path(config.checkpoint_directory).glob("round-*")) for config in configs]
    assert {folder.name for folder in newest} == {f"round-{rounds:06d}"}
    return [load_file(folder / "state.safetensors") for folder in newest]


def assert_same_bits(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    """Equal names, equal bits."""
    for mine, other in zip(found, expected, strict=True):
        assert set(mine) == set(other)
        different = [name for name, tensor in mine.items() if not torch.equal(tensor, other[name])]
        assert not different


def _place(shared: dict[str, Tensor], name: str, rows: Tensor, config: NodeConfig) -> None:
    layer = int(name.split(".")[2])
    hosts = next(place.hosts for place in config.placement if place.layer == layer)
    assert hosts is not None
    mine = [expert for expert, host in enumerate(hosts) if host == config.index]
    whole = shared.setdefault(name, torch.full((len(hosts), *rows.shape[1:]), torch.nan))
    whole[mine] = rows


def oracle_of(case: Case, configs: list[NodeConfig]) -> Oracle:
    """The oracle for these configurations: same checkpoint, same batches, same hyper-parameters."""
    training = configs[0].training
    corpora = [
        open_corpus(
            c.dataset, ByteLevel(), bytes.fromhex(Path(str(c.order_secret_file)).read_text()), case.length
        )
        for c in configs
    ]

    def owners(step: int) -> list[int]:
        # The order of turns is public and agreed; it is taken from the nodes, everything else is not.
        from pcmoe_node.protocol.round import owners as agreed

        return sorted(agreed(training.schedule, step, case.n, configs[0].model.seed))

    def batches(owner: int, step: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        turn = step if case.schedule == "Concurrent" else step // case.n
        result = []
        for number in range(case.micro_batches):
            first = (turn * case.micro_batches + number) * case.sequences
            batch = corpora[owner].training_batch(first, case.sequences)
            result.append((batch.ids_BS, batch.labels_BS, batch.positions_BS))
        return result

    optimizer = training.optimizer
    assert configs[0].model.checkpoint is not None
    return Oracle(
        case.n,
        Recipe(
            architecture=configs[0].model.architecture,
            checkpoint=Path(configs[0].model.checkpoint),
            local_layers=case.local_layers,
            total_steps=training.rounds * training.steps_per_round,
            owners=owners,
            batches=batches,
            auxiliary=case.auxiliary,
            learning_rate=optimizer.learning_rate,
            betas=(optimizer.beta1, optimizer.beta2),
            epsilon=optimizer.epsilon,
            weight_decay=optimizer.weight_decay,
            warmup=optimizer.warmup_steps,
            max_norm=optimizer.max_grad_norm,
        ),
    )


def rounds_of(config: NodeConfig) -> list[dict[str, Any]]:
    """The node's journal."""
    text = (Path(config.log_directory) / "rounds.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
