"""Tiny nodes of every family, joined by the local exchange, and what their gradients must be."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.exchange.rigs import node_configs, together
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from pcmoe_node.__main__ import run_node
from pcmoe_node.config import NodeConfig
from pcmoe_node.coordination.table import LocalTable
from pcmoe_node.exchange.base import Message
from pcmoe_node.exchange.local import Hook, LocalNetwork
from pcmoe_node.experts import Batch, Saved, Shard, shard_of
from pcmoe_node.fingerprint import fingerprint
from pcmoe_node.model import decoder_layers, experts_of
from pcmoe_node.participant import assemble, join
from pcmoe_node.protocol.effects import Decision, Phase
from pcmoe_node.routing import (
    ExpertMap,
    Route,
    combine,
    gather_gradients,
    routes,
    scatter_gradients,
    secret_order,
)
from pcmoe_node.step import Participant, run_step

EXPERTS, TOP_K, HIDDEN = 6, 2, 16
COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": TOP_K,
    "vocab_size": 258,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": 257,
}
FAMILY_FIELDS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": EXPERTS},
    "olmoe": {"num_experts": EXPERTS},
    "qwen2_moe": {
        "num_experts": EXPERTS,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 12,
        "mlp_only_layers": [0],
    },
    "qwen3_moe": {
        "num_experts": EXPERTS,
        "moe_intermediate_size": 8,
        "head_dim": 8,
        "mlp_only_layers": [0],
        "norm_topk_prob": True,
    },
    "deepseek_v3": {
        "n_routed_experts": EXPERTS,
        "moe_intermediate_size": 8,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 2,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "n_shared_experts": 1,
    },
    "gpt_oss": {"num_local_experts": EXPERTS, "head_dim": 8},
}
"""Fields of a tiny model of each family: with a dense first layer and a shared expert where the family has them."""


def architecture(family: str, **changes: Any) -> dict[str, Any]:
    """A tiny model of a family."""
    return {"model_type": family, **COMMON, **FAMILY_FIELDS[family], **changes}


def expert_layers(fields: dict[str, Any]) -> list[int]:
    """Decoder layers that have experts."""
    dense = set(fields.get("mlp_only_layers", range(fields.get("first_k_dense_replace", 0))))
    return [layer for layer in range(int(fields["num_hidden_layers"])) if layer not in dense]


def write_checkpoint(folder: Path, fields: dict[str, Any]) -> None:
    """Random weights, large enough that every expert and its gradient matter."""
    plain = {key: value for key, value in fields.items() if key != "model_type"}
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(fields["model_type"], **plain), dtype=torch.float32
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "embed" in name:
                continue
            parameter.normal_(std=0.5)
    folder.mkdir(parents=True)
    tied = "lm_head.weight" if fields["tie_word_embeddings"] else None
    state = {n: p.clone() for n, p in model.state_dict().items() if n != tied}
    save_file(state, folder / "model.safetensors")


def small_configs(folder: Path, n: int, fields: dict[str, Any], **overrides: Any) -> list[NodeConfig]:
    """Configurations of `n` nodes of two short micro-batches a step; every layer with experts is spread."""
    write_checkpoint(folder / "model", fields)
    for index in range(n):
        notes = folder / f"data-{index}"
        notes.mkdir()
        for line in range(60):
            (notes / f"{line:02}.txt").write_text(f"Participant {index} writes line {line} of its own.\n")
        (folder / f"secret-{index}").write_text(bytes([index + 1] * 32).hex())
    hosts = [expert % n for expert in range(EXPERTS)]
    dataset = {"held_out_percent": 0, **overrides.pop("dataset", {})}
    training = {
        "rounds": 1,
        "steps_per_round": 2,
        "micro_batches_per_step": 1,
        "in_flight": 1,
        "sequences_per_micro_batch": 2,
        "sequence_length": 12,
        "deterministic": True,
        "evaluation_sequences": 0,
    }
    settings: dict[str, Any] = {
        "model": {
            "architecture": json.dumps(fields, sort_keys=True),
            "checkpoint": str(folder / "model"),
            "fingerprint": fingerprint(folder / "model"),
        },
        "placement": [{"layer": layer, "hosts": hosts} for layer in expert_layers(fields)],
        "training": {**training, **overrides.pop("training", {})},
        "quota": {"rows_per_message": 24, "slots_per_row": TOP_K, **overrides.pop("quota", {})},
        "dataset": lambda i: {"path": str(folder / f"data-{i}"), **dataset},
        "order_secret_file": lambda i: str(folder / f"secret-{i}"),
        **overrides,
    }
    return node_configs(n, folder / "nodes", **settings)


def secret_of(config: NodeConfig) -> bytes:
    """The order secret that the configuration names."""
    assert config.order_secret_file is not None
    return bytes.fromhex(Path(config.order_secret_file).read_text())


@dataclass(kw_only=True)
class Gradients:
    """Gradients of the sum loss, as a node was about to apply them."""

    backbone: dict[str, Tensor] = field(default_factory=dict)
    experts: dict[str, Tensor] = field(default_factory=dict)
    loss: float = 0.0


@dataclass(kw_only=True)
class Steps:
    """A few steps of N nodes in one process."""

    nodes: list[Participant]
    gradients: list[list[Gradients]]
    """Of each node, one entry per applied step."""
    decisions: list[list[Decision]]


def run_steps(
    configs: list[NodeConfig],
    steps: int = 1,
    *,
    hook: Hook | None = None,
    prepare: Callable[[int, Participant], None] = lambda _index, _node: None,
    before_step: Callable[[int, Participant, int], None] = lambda _index, _node, _step: None,
) -> Steps:
    """Assemble every node and let all take `steps` steps; the gradients are recorded before they are applied."""
    network = LocalNetwork(configs, hook)
    nodes = [assemble(c, secret_of(c)) for c in configs]
    for index, node in enumerate(nodes):
        join(node, network.transport(index), 0)
    result = Steps(nodes=nodes, gradients=[[] for _ in nodes], decisions=[[] for _ in nodes])

    def run(index: int, node: Participant) -> None:
        record_gradients(node, result.gradients[index])
        prepare(index, node)
        for step in range(steps):
            before_step(index, node, step)
            result.decisions[index].append(run_step(node, step))

    try:
        together([partial(run, i, n) for i, n in enumerate(nodes)])
    finally:
        for index in range(len(configs)):
            network.transport(index).close()
    return result


def record_gradients(node: Participant, into: list[Gradients]) -> None:
    """Keep a copy of what `apply` is given, of both parameter sets."""
    experts_apply, backbone_apply = node.experts.apply, node.backbone.apply

    def experts(**given: Any) -> float:
        into.append(Gradients(loss=node.tally.loss))
        into[-1].experts = copies(node.experts.masters)
        return experts_apply(**given)

    def backbone(**given: Any) -> float:
        into[-1].backbone = copies(node.backbone.masters)
        return backbone_apply(**given)

    node.experts.apply = experts  # type: ignore[method-assign]
    node.backbone.apply = backbone  # type: ignore[method-assign]


def copies(parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """The gradients, copied."""
    return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


class PlainShards:
    """The experts of one layer computed by the same shards and formulas, but inside plain autograd: no cut, no lanes,
    no messages."""

    def __init__(self, module: Any, layer: int, hosts: tuple[int, ...], name: str) -> None:
        self.layer, self.map, self.n = layer, ExpertMap.of(hosts), max(hosts) + 1
        self.secret = b""
        self.shards: list[Shard] = []
        for host in range(self.n):
            mine = [expert for expert, at in enumerate(hosts) if at == host]
            shard = shard_of(module, len(mine), name).to_empty(device="cpu")
            with torch.no_grad():
                for key, parameter in shard.named_parameters():
                    parameter.copy_(module.get_parameter(key)[mine])
                    parameter.main_grad = torch.zeros_like(parameter)  # type: ignore[attr-defined]
            self.shards.append(Shard(shard))
        self.names = [f"{name}.{key}" for key, _ in self.shards[0].module.named_parameters()]

    def gradients(self, host: int) -> dict[str, Tensor]:
        """What has piled up for a host's experts, by name in the whole model."""
        parameters = self.shards[host].module.parameters()
        return {n: p.main_grad for n, p in zip(self.names, parameters, strict=True)}  # type: ignore[attr-defined]


class _PlainExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TH: Tensor, weights_TK: Tensor, ids_TK: Tensor, plain: PlainShards) -> Tensor:
        order_T = secret_order(plain.secret, "rows", (0, 0, plain.layer, Phase.FORWARD), x_TH.shape[0])
        ctx.routes = routes(ids_TK, weights_TK, plain.map, order_T, plain.n)
        ctx.plain, ctx.like, ctx.top_k = plain, x_TH, ids_TK.shape[1]
        rows, ctx.saved = [], []
        for shard, route in zip(plain.shards, ctx.routes, strict=True):
            batch = Batch(
                x_TH.index_select(0, route.rows_R), route.counts_R, route.experts_S, route.weights_S
            )
            y_RH, saved = shard.forward(batch, keep=True)
            rows.append(y_RH)
            ctx.saved.append(saved)
        return combine(ctx.routes, rows, x_TH)

    @staticmethod
    def backward(ctx: Any, dy_TH: Tensor) -> tuple[Tensor, Tensor, None, None]:
        dx, dweights = [], []
        every: list[tuple[Shard, Route, Saved]] = list(
            zip(ctx.plain.shards, ctx.routes, ctx.saved, strict=True)
        )
        for shard, route, saved in every:
            dx_RH, dweights_S, add = shard.backward(saved, gather_gradients(route, dy_TH))
            add()
            dx.append(dx_RH)
            dweights.append(dweights_S)
        dx_TH, dweights_TK = scatter_gradients(ctx.routes, dx, dweights, ctx.like, ctx.top_k)
        return dx_TH, dweights_TK, None, None


def _plain_shards_forward(module: Any, x_TH: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
    y_TH: Tensor = _PlainExperts.apply(x_TH, weights_TK, ids_TK, module.plain_shards)
    return y_TH


ALL_EXPERTS_FUNCTIONS.register("plain-shards", _plain_shards_forward)


def plain_model(config: NodeConfig) -> Any:
    """A whole, unmodified model with the checkpoint's weights."""
    assert config.model.checkpoint is not None
    fields = json.loads(config.model.architecture)
    hf = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = AutoModelForCausalLM.from_config(hf, dtype=torch.float32, experts_implementation="grouped_mm")
    stored = load_file(Path(config.model.checkpoint) / "model.safetensors")
    missing, unexpected = model.load_state_dict(stored, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.train()


def plain_gradients(config: NodeConfig, *, shards: bool) -> tuple[list[Gradients], dict[str, Tensor]]:
    """(each owner's first step, all experts' gradients together) by plain backward on a whole, unmodified model.

    `shards`: with the nodes' own experts function in the place of transformers'.
    """
    coefficient, n = config.training.auxiliary_loss_coefficient, len(config.participants)
    model = plain_model(config)
    spread, names = _split_plain(config, model) if shards else ([], {})
    owners: list[Gradients] = []
    for index in range(n):
        model.zero_grad()
        for plain in spread:
            plain.secret = bytes([index + 1] * 32)
        ids_BS, labels_BS, positions_BS = first_batch(config, index)
        out = model(
            input_ids=ids_BS,
            position_ids=positions_BS,
            use_cache=False,
            output_router_logits=coefficient > 0,
        )
        loss = torch.nn.functional.cross_entropy(
            out.logits.flatten(0, 1), labels_BS.flatten(), ignore_index=-100, reduction="sum"
        )
        tokens = int((labels_BS != -100).sum())
        (loss + coefficient * tokens * out.aux_loss if coefficient else loss).backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        backbone = {name: g.clone() for name, g in found.items() if ".experts." not in name}
        experts = {name: g.clone() for name, g in found.items() if ".experts." in name}
        owners.append(Gradients(backbone=backbone, experts=experts, loss=float(loss.detach())))
    if shards:
        return owners, {f"{host}/{n}": g for (host, n), g in _of_shards(spread, names).items()}
    return owners, {name: sum_of(owner.experts[name] for owner in owners) for name in owners[0].experts}


def sum_of(tensors: Any) -> Tensor:
    """The sum of some tensors."""
    return torch.stack(list(tensors)).sum(0)


def _split_plain(config: NodeConfig, model: Any) -> tuple[list[PlainShards], dict[int, str]]:
    full_names = {id(module): name for name, module in model.named_modules()}
    model.set_experts_implementation("plain-shards")
    spread, names, layers = [], {}, decoder_layers(model)
    for place in config.placement:
        found = experts_of(layers[place.layer])
        assert found is not None and place.hosts is not None
        names[place.layer] = full_names[id(found[1])]
        found[1].plain_shards = PlainShards(found[1], place.layer, place.hosts, names[place.layer])  # type: ignore[assignment]
        spread.append(found[1].plain_shards)
    return spread, names  # type: ignore[return-value]


def _of_shards(spread: list[PlainShards], names: dict[int, str]) -> dict[tuple[int, str], Tensor]:
    assert len(spread) == len(names)
    return {
        (host, name): gradient
        for plain in spread
        for host in range(plain.n)
        for name, gradient in plain.gradients(host).items()
    }


def first_batch(config: NodeConfig, owner: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, labels, positions) of an owner's first micro-batch."""
    from pcmoe_node.data import open_corpus
    from pcmoe_node.tokenizer import ByteLevel

    folder = Path(config.dataset.path).parent / f"data-{owner}"
    dataset = config.dataset.model_copy(update={"path": str(folder)})
    training = config.training
    corpus = open_corpus(dataset, ByteLevel(), bytes([owner + 1] * 32), training.sequence_length)
    batch = corpus.training_batch(0, training.sequences_per_micro_batch)
    return batch.ids_BS, batch.labels_BS, batch.positions_BS


def every_message(into: list[tuple[int, int, Message]]) -> Hook:
    """A hook that notes (sender, receiver, message) and delivers at once."""

    def hook(sender: int, receiver: int, message: Message, deliver: Callable[[], None]) -> None:
        into.append((sender, receiver, message))
        deliver()

    return hook


def outcomes(configs: list[NodeConfig], hook: Hook | None = None, timeout: float = 30) -> list[Any]:
    """Run every node to its end in this process; what each of them raised, or None."""
    table = LocalTable(configs, hook)
    results: list[BaseException | None] = [None] * len(configs)

    def run(index: int) -> None:
        try:
            run_node(configs[index], table.place(index))
        except BaseException as error:
            results[index] = error

    together([partial(run, i) for i in range(len(configs))], timeout)
    return results


@contextmanager
def no_thread_left(deadline: float = 5) -> Iterator[None]:
    """Fails if a thread that was started inside still runs after it."""
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + deadline
    for thread in set(threading.enumerate()) - before:
        thread.join(max(0.0, end - time.monotonic()))
        assert not thread.is_alive(), f"{thread.name} still runs"
