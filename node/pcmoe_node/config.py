"""NodeConfig and CoordinatorConfig: all that one process is told, written by the operator (or `pcmoe run`).

Imports neither torch nor Kubernetes: it is the contract between the two halves of the project.
Every length is in the unit its name ends with; decimals of the agreement arrive as floats.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pcmoe_node.errors import ConfigError

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """Frozen, strict, and closed: an unknown key is an error, and errors never print the input."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class ModelConfig(Part):
    """The model's shape and where its first weights come from."""

    architecture: str
    """The transformers configuration as canonical JSON text; `model_type` names the family."""
    checkpoint: str | None
    """Folder with the starting weights (safetensors), or None: random weights drawn from `seed`."""
    fingerprint: str | None
    """`sha256:…` that the checkpoint must have, or None for random weights."""
    dtype: Literal["float32", "bfloat16"]
    """Dtype of compute. Master weights, gradients and moments are float32 either way."""
    tokenizer: Literal["Checkpoint", "ByteLevel"]
    """`Checkpoint`: the tokenizer files beside the weights. `ByteLevel`: UTF-8 bytes and two special ids."""
    seed: Natural
    """Public seed of random weights and of the order of turns. Never of anything about data."""


class LayerPlacement(Part):
    """Who hosts the experts of one decoder layer that has experts."""

    layer: Natural
    """Index of the decoder layer in the model."""
    hosts: tuple[Natural, ...] | None
    """Host (index into `participants`) of each expert, or None: a local layer, every participant holds all."""


class OptimizerConfig(Part):
    """AdamW and its learning-rate schedule."""

    learning_rate: Annotated[float, Field(gt=0)]
    beta1: Annotated[float, Field(ge=0, lt=1)]
    beta2: Annotated[float, Field(ge=0, lt=1)]
    epsilon: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_steps: Natural
    """Steps over which the learning rate rises linearly from 0."""
    decay: Literal["Constant", "Linear", "Cosine"]
    """How the rate falls after warm-up, reaching 0 after the last step."""
    max_grad_norm: Annotated[float, Field(gt=0)]
    """Each clip group (one backbone each; all experts together as one) is scaled down to this norm."""


class TrainingConfig(Part):
    """What a step and a round are."""

    schedule: Literal["Concurrent", "Sequential"]
    """Concurrent: all are owners in every step. Sequential: each step has one owner, in seeded random turns."""
    rounds: Count
    steps_per_round: Count
    micro_batches_per_step: Count
    in_flight: Count
    """Micro-batches travelling at once, at most `micro_batches_per_step`."""
    sequences_per_micro_batch: Count
    sequence_length: Count
    """Tokens per packed sequence."""
    deterministic: bool
    """Fix every order of summation: same inputs, same bits. Costs speed; one thread."""
    evaluation_sequences: Natural
    """Held-out sequences per evaluation, as many at every participant; 0 turns evaluation off."""
    evaluation_every_rounds: Count
    auxiliary_loss_coefficient: Annotated[float, Field(ge=0)]
    optimizer: OptimizerConfig


class TransportConfig(Part):
    """How messages travel and how long anyone waits."""

    wire_dtype: Literal["float32", "bfloat16"]
    """Dtype of hidden states and gradients on the wire; weights and their gradients are float32."""
    connections: Count
    """Data connections per pair of participants, beside one for control."""
    peer_timeout_seconds: Count
    """No byte from a peer for so long: the peer is lost."""
    progress_timeout_seconds: Count
    """A wait so long without any progress ends the run."""
    rejoin_timeout_seconds: Count
    """So long a participant may take to load, to connect, or to come back."""
    on_peer_loss: Literal["Fail", "Wait"]
    """When a peer is lost. Fail: end, naming it. Wait: hold until it is back, and go on from the last common round."""
    max_abs: Annotated[float, Field(gt=0)]
    """Largest absolute value that may be in a hidden state or gradient received."""


class PeerConfig(Part):
    """One participant of the agreement, oneself included; sorted by name, the index is its number everywhere.

    Also the coordinator, which is no participant and has no number.
    """

    name: str
    identity: str
    """dNSName in its certificate: `<participant>.<agreement id>.pcmoe.internal`."""
    endpoint: str | None
    """`host:port` where it listens, or None: it only dials out."""
    ca_bundle: str
    """PEM text of the CA certificates that may sign for it."""


class IdentityConfig(Part):
    """Who this node is."""

    listen: str | None
    """`host:port` to listen on, or None: dial out only."""
    certificate_directory: str
    """Folder with `tls.crt` (leaf, then any intermediates) and `tls.key`, PEM."""
    agreement_id: str
    agreement_digest: str
    """`sha256:…` of the canonical agreement."""
    plan_digest: str
    """`sha256:…` of the plan; peers must agree on it too."""
    agreement: str
    """The canonical agreement text (at most 64 KiB), sent to a verified peer whose digest differs."""


class DatasetConfig(Part):
    """This participant's own records. Nothing here is ever sent."""

    path: str
    """A file or a folder of files."""
    format: Literal["Text", "JSONLines"]
    text_field: str
    """Key of the text in each record of JSON Lines."""
    held_out_percent: Annotated[int, Field(ge=0, le=50)]
    """Share of the documents kept for evaluation, chosen by the private secret."""


class QuotaConfig(Part):
    """Limits of what one owner may ask of one host, computed from the agreement by the plan."""

    rows_per_message: Count
    """Distinct tokens in one message: at most a micro-batch's tokens."""
    slots_per_row: Count
    """Experts of one host that one token may use: min(top-k, experts hosted)."""
    activation_bytes: Natural
    """Budget for activations kept for others' tokens; beyond it a host keeps inputs and recomputes."""


class _Told(Part):
    """What nodes and coordinator read alike."""

    @classmethod
    def load(cls, *paths: Path) -> Self:
        """Read a configuration, its fields in one file or in several, each field in one of them.

        Raises:
            ConfigError: it is broken; names each field and rule.
        """
        where = ", ".join(map(str, paths))
        try:
            return cls.model_validate_json(_together(paths))
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ConfigError(f"{where}: {faults}") from None


def _together(paths: Sequence[Path]) -> bytes:
    """The text of a file, or of an object with the fields of all."""
    texts = []
    for path in paths:
        try:
            texts.append(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    if len(texts) == 1:
        return texts[0]
    fields: dict[str, object] = {}
    for path, text in zip(paths, texts, strict=True):
        try:
            part = json.loads(text)
        except ValueError:
            part = None
        if not isinstance(part, dict):
            raise ConfigError(f"{path}: must be an object in JSON")
        if twice := sorted(fields.keys() & part.keys()):
            raise ConfigError(f"{path}: {', '.join(twice)}: said in another file already")
        fields |= part
    return json.dumps(fields).encode()


class CoordinatorConfig(_Told):
    """All that the coordinator is told. It never sees a tensor, a token or a participant's key."""

    version: Literal["pcmoe-coordinator/1"]
    participants: Annotated[tuple[PeerConfig, ...], Field(min_length=1, max_length=64)]
    coordinator: PeerConfig
    """Itself; its certificate is signed by the CA of the participant that runs it."""
    identity: IdentityConfig
    """`listen` must be set."""
    peer_timeout_seconds: Count
    """No byte from a node for so long: its session is over. That alone ends nothing else."""
    log_directory: str
    """`events.jsonl` goes here."""
    status_listen: str
    """`host:port` of `/metrics`, `/healthz`, `/readyz`, `/status` and `/report`; port 0 picks one."""


class NodeConfig(_Told):
    """All that one node is told."""

    version: Literal["pcmoe-node/1"]
    participant: str
    """This node's name, one of `participants`."""
    participants: Annotated[tuple[PeerConfig, ...], Field(min_length=1, max_length=64)]
    coordinator: PeerConfig
    """Who says which view stands; `endpoint` must be set."""
    identity: IdentityConfig
    model: ModelConfig
    placement: tuple[LayerPlacement, ...]
    """Every decoder layer that has experts, ascending."""
    training: TrainingConfig
    transport: TransportConfig
    quota: QuotaConfig
    dataset: DatasetConfig
    device: Literal["Auto", "CUDA", "CPU"]
    gradient_checkpointing: bool
    threads: Natural
    """CPU threads of one torch operation; 0: all cores. `deterministic` uses one."""
    order_secret_file: str | None
    """File with a 32-byte secret in hex that orders the data and the rows; None: drawn once, kept in the checkpoint."""
    checkpoint_directory: str
    checkpoint_keep: Annotated[int, Field(ge=2)]
    log_directory: str
    """`rounds.jsonl` and `events.jsonl` go here."""
    status_listen: str
    """`host:port` of `/metrics`, `/healthz`, `/readyz`, `/status` and `/report`; port 0 picks one."""
    termination_message: str | None
    """File for the last status, at most 4 KiB of JSON, written at the end (Kubernetes' termination log), or None."""

    @property
    def index(self) -> int:
        """This node's number among the participants."""
        return next(i for i, peer in enumerate(self.participants) if peer.name == self.participant)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.training.rounds * self.training.steps_per_round
