"""Puts one node together from its configuration, joins it to a view, and takes it up again from a stored round."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

from pcmoe_node.checkpoint import Checkpoints, Position
from pcmoe_node.conductor import Conductor
from pcmoe_node.config import NodeConfig
from pcmoe_node.cut import checkpointing_function
from pcmoe_node.data import open_corpus
from pcmoe_node.errors import ConfigError, ResourceError
from pcmoe_node.exchange.base import Transport, WireDtype
from pcmoe_node.exchange.limits import Limits
from pcmoe_node.host import Host
from pcmoe_node.model import NodeModel, auxiliary_loss_function, build, record_router_logits
from pcmoe_node.moe import Owner, RemoteExperts
from pcmoe_node.optimizer import ParameterSet
from pcmoe_node.patience import Patience
from pcmoe_node.payloads import Codec
from pcmoe_node.protocol.effects import Phase
from pcmoe_node.protocol.round import Farewell
from pcmoe_node.protocol.step import StepMachine
from pcmoe_node.step import Participant, Tally
from pcmoe_node.tokenizer import load_tokenizer

DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(config: NodeConfig) -> torch.device:
    """The device the configuration asks for; `ResourceError` where CUDA is asked for and absent."""
    if config.device == "CUDA" and not torch.cuda.is_available():
        raise ResourceError("device: CUDA was asked for, and torch finds no CUDA device here")
    cuda = config.device == "CUDA" or (config.device == "Auto" and torch.cuda.is_available())
    return torch.device("cuda") if cuda else torch.device("cpu")


def order_secret(config: NodeConfig, stored: str | None) -> bytes:
    """The 32 bytes that order the data and the rows: from the file, else as stored, else drawn now."""
    if config.order_secret_file is None:
        return bytes.fromhex(stored) if stored else os.urandom(32)
    try:
        secret = bytes.fromhex(Path(config.order_secret_file).read_text("ascii").strip())
    except (OSError, ValueError):
        secret = b""
    if len(secret) != 32:
        raise ConfigError(f"order_secret_file: {config.order_secret_file} must hold 32 bytes in hex")
    return secret


def frozen_digest(config: NodeConfig) -> str:
    """Digest of what a resumed run must share with the stored one."""
    frozen = {
        "agreement": config.identity.agreement_id,
        "participant": config.participant,
        "participants": [peer.name for peer in config.participants],
        "model": config.model.model_dump(
            include={"architecture", "fingerprint", "dtype", "tokenizer", "seed"}
        ),
        "placement": [place.model_dump() for place in config.placement],
    }
    return "sha256:" + hashlib.sha256(json.dumps(frozen, sort_keys=True).encode()).hexdigest()


def stored_position(config: NodeConfig, checkpoints: Checkpoints) -> Position | None:
    """The newest stored position, which must belong to this consortium; None where nothing is stored."""
    newest = checkpoints.newest()
    if newest == 0:
        return None
    position = checkpoints.position(newest)
    if position.frozen != frozen_digest(config):
        raise ConfigError(
            f"checkpoint_directory: {checkpoints.directory} belongs to another consortium, participant, model or "
            "placement; these are frozen after the first stored round"
        )
    return position


def assemble(
    config: NodeConfig, secret: bytes, build_model: Callable[[NodeConfig, torch.device], NodeModel] = build
) -> Participant:
    """Build model, data and optimizer; `join` connects them to others."""
    if config.training.deterministic:
        torch.set_num_threads(1)
    elif config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config)
    tokenizer = load_tokenizer(config.model.tokenizer, config.model.checkpoint)
    corpus = open_corpus(config.dataset, tokenizer, secret, config.training.sequence_length)
    built = build_model(config, device)
    vocabulary = int(built.model.config.vocab_size)  # type: ignore[union-attr,arg-type]
    if tokenizer.vocabulary_size > vocabulary:
        raise ConfigError(
            f"model.tokenizer: has {tokenizer.vocabulary_size} ids, the model's vocab_size is {vocabulary}"
        )
    wire_dtype = {"float32": WireDtype.FLOAT32, "bfloat16": WireDtype.BFLOAT16}[config.transport.wire_dtype]
    owner = Owner(secret=secret, wire_dtype=wire_dtype)
    _hook(config, built, owner)
    optimizer = config.training.optimizer
    backbone = ParameterSet(built.backbone, optimizer, DTYPE[config.model.dtype])
    backbone.accumulate_from_autograd()
    return Participant(
        config=config,
        built=built,
        owner=owner,
        corpus=corpus,
        backbone=backbone,
        experts=ParameterSet(built.hosted, optimizer, DTYPE[config.model.dtype]),
        device=device,
        auxiliary=auxiliary_loss_function(built.model)
        if config.training.auxiliary_loss_coefficient
        else None,
    )


def join(node: Participant, transport: Transport, first_step: int) -> None:
    """Be ready for `first_step` over this transport; nothing of an earlier view is left."""
    node.conductor = node.owner.conductor = _conductor(node, transport, first_step)
    node.owner.running.clear()
    node.tally = Tally()
    node.begin(first_step)


def position(node: Participant, round_number: int, tokens: int) -> Position:
    """Where the run stands, for the checkpoint."""
    return Position(
        round=round_number,
        step=node.conductor.machine.version,
        secret=node.owner.secret.hex(),
        frozen=frozen_digest(node.config),
        agreement_digest=node.config.identity.agreement_digest,
        corpus=node.corpus.fingerprint,
        tokens=tokens,
    )


def tensors(node: Participant) -> dict[str, torch.Tensor]:
    """Everything a resumed run needs beside its position."""
    state = {f"backbone/{name}": tensor for name, tensor in node.backbone.state().items()}
    state |= {f"experts/{name}": tensor for name, tensor in node.experts.state().items()}
    return state


def restore(node: Participant, stored: dict[str, torch.Tensor]) -> None:
    """Take weights and moments back."""
    for prefix, group in (("backbone/", node.backbone), ("experts/", node.experts)):
        group.load({k.removeprefix(prefix): t for k, t in stored.items() if k.startswith(prefix)})


def _conductor(node: Participant, transport: Transport, first_step: int) -> Conductor:
    config, built = node.config, node.built
    names = tuple(peer.name for peer in config.participants)
    training = config.training
    hidden_size = int(built.model.config.hidden_size)  # type: ignore[union-attr,arg-type]
    return Conductor(
        me=config.index,
        names=names,
        transport=transport,
        limits=Limits.from_config(config),
        codec=Codec(hidden_size, DTYPE[config.model.dtype], node.device, config.transport.max_abs),
        host=Host(
            built.shards,
            activation_bytes=config.quota.activation_bytes,
            ordered=training.deterministic,
            backlog=len(names) * training.in_flight,
            max_abs=config.transport.max_abs,
        ),
        machine=StepMachine(
            me=config.index,
            members=len(names),
            micro_batches=training.micro_batches_per_step,
            in_flight=training.in_flight,
            served_layers=tuple(sorted(built.shards)),
            first_step=first_step,
            names=names,
            evaluation_batches=-(-training.evaluation_sequences // training.sequences_per_micro_batch),
            tokens_per_step=(
                training.micro_batches_per_step
                * training.sequences_per_micro_batch
                * training.sequence_length
            ),
        ),
        farewell=Farewell(config.index, len(names)),
        patience=Patience(
            me=config.index,
            names=names,
            progress_timeout=float(config.transport.progress_timeout_seconds),
            rejoin_timeout=float(config.transport.rejoin_timeout_seconds),
        ),
        ordered=training.deterministic,
        ledger=node.ledger,
    )


def _hook(config: NodeConfig, built: NodeModel, owner: Owner) -> None:
    """Cut the model's graph at its layers and hang the remote experts on it."""
    placed = {place.layer: place.hosts for place in config.placement}
    for layer, module in built.experts.items():
        hosts = placed[layer]
        assert hosts is not None
        module.pcmoe = RemoteExperts(owner, layer, hosts)  # type: ignore[assignment]
    function = checkpointing_function(owner.current, config.gradient_checkpointing)
    built.model._set_gradient_checkpointing(True, function)  # type: ignore[operator]
    if config.training.auxiliary_loss_coefficient:

        def keep(logits_TE: torch.Tensor) -> None:
            micro_batch = owner.current()
            if micro_batch.phase is Phase.FORWARD:
                micro_batch.layer.logits_TE = logits_TE

        record_router_logits(built.model, keep)
