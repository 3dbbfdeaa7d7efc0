"""The manifest as types: frozen, strict, closed. `manifests/crd.yaml` says the same to the API server.

Keys are camelCase in the manifest and snake_case here. Rules between fields are in `rules.py`.
"""

from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from pcmoe_operator.constants import (
    MAX_ATTEMPT,
    MAX_CONFIG_BYTES,
    MAX_OBJECT_NAME,
    MAX_PARTICIPANT_NAME,
    MAX_PARTICIPANTS,
    OPERATOR,
)
from pcmoe_operator.part import Part
from pcmoe_operator.pod import ResourceName, Template, Volumes
from pcmoe_operator.scalars import (
    CERTIFICATES,
    DECIMAL,
    ENDPOINT,
    EXPERTS,
    FINGERPRINT,
    JURISDICTION,
    LABEL,
    RELATIVE_PATH,
    Between,
    canonical_experts,
    config_text,
    endpoint_with_port,
    path_inside,
    sorted_set,
    unquoted_number,
)

DecimalText = Annotated[
    str, StringConstraints(pattern=DECIMAL, max_length=32), BeforeValidator(unquoted_number)
]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seconds = Annotated[int, Field(ge=1, le=604_800)]
ParticipantName = Annotated[str, StringConstraints(pattern=LABEL, max_length=MAX_PARTICIPANT_NAME)]
ConfigText = Annotated[
    str, StringConstraints(min_length=2, max_length=MAX_CONFIG_BYTES), AfterValidator(config_text)
]
Jurisdiction = Annotated[str, StringConstraints(pattern=JURISDICTION, max_length=16)]


class CheckpointSource(Part):
    """Every participant starts from the same checkpoint, which lies in its model volume."""

    fingerprint: Annotated[str, StringConstraints(pattern=FINGERPRINT, max_length=71)]
    config: ConfigText


class ModelSource(Part):
    """Where the first weights come from: exactly one of the two."""

    checkpoint: CheckpointSource | None = None
    config: ConfigText | None = None
    """Random weights of this architecture, drawn from `training.seed`."""


class Model(Part):
    """What is trained."""

    source: ModelSource
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    tokenizer: Literal["Checkpoint", "ByteLevel"] = "Checkpoint"


class LocalLayers(Part):
    """Layers with experts, counted from either end, whose experts every participant holds itself."""

    at_start: Annotated[int, Field(ge=0, le=1024)] = 0
    at_end: Annotated[int, Field(ge=0, le=1024)] = 1


class Pinned(Part):
    """The experts one participant hosts in every shared layer."""

    participant: ParticipantName
    experts: Annotated[
        str, StringConstraints(pattern=EXPERTS, max_length=1024), AfterValidator(canonical_experts)
    ]


class Experts(Part):
    """Who hosts which experts."""

    placement: Literal["RoundRobin", "CapacityWeighted", "Pinned"] = "RoundRobin"
    pinned: Annotated[tuple[Pinned, ...], Field(max_length=MAX_PARTICIPANTS)] = ()
    local_layers: LocalLayers = LocalLayers()
    allowed_jurisdictions: Annotated[
        tuple[Jurisdiction, ...], Field(max_length=64), AfterValidator(sorted_set)
    ] = ()


class Optimizer(Part):
    """AdamW, its learning rate over time, and clipping."""

    name: Literal["AdamW"] = "AdamW"
    learning_rate: Annotated[DecimalText, AfterValidator(Between("0", "1", above=True))] = "2e-5"
    beta1: Annotated[DecimalText, AfterValidator(Between("0", "1", below=True))] = "9e-1"
    beta2: Annotated[DecimalText, AfterValidator(Between("0", "1", below=True))] = "9.5e-1"
    epsilon: Annotated[DecimalText, AfterValidator(Between("0", "1", above=True))] = "1e-8"
    weight_decay: Annotated[DecimalText, AfterValidator(Between("0", "1"))] = "1e-1"
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 20
    decay: Literal["Constant", "Linear", "Cosine"] = "Cosine"
    max_grad_norm: Annotated[DecimalText, AfterValidator(Between("0", "1e6", above=True))] = "1e+0"


class Evaluation(Part):
    """Loss on documents held out from training."""

    sequences: Annotated[int, Field(ge=0, le=65_536)] = 64
    every_rounds: Count = 1


class Training(Part):
    """What a step and a round are."""

    objective: Literal["CausalLM"] = "CausalLM"
    schedule: Literal["Concurrent", "Sequential"] = "Concurrent"
    rounds: Count
    steps_per_round: Count = 25
    micro_batches_per_step: Annotated[int, Field(ge=1, le=1024)] = 4
    in_flight: Annotated[int, Field(ge=1, le=64)] = 4
    sequences_per_micro_batch: Annotated[int, Field(ge=1, le=1024)] = 4
    sequence_length: Annotated[int, Field(ge=2, le=131_072)] = 512
    optimizer: Optimizer = Optimizer()
    deterministic: bool = False
    evaluation: Evaluation = Evaluation()
    auxiliary_loss_coefficient: Annotated[DecimalText, AfterValidator(Between("0", "100"))] = "0e+0"
    seed: Annotated[int, Field(ge=0, le=2**53 - 1)] = 7


class Transport(Part):
    """How hidden states and gradients travel."""

    mode: Literal["TLS"] = "TLS"
    wire_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    connections: Annotated[int, Field(ge=1, le=16)] = 2
    max_abs: Annotated[DecimalText, AfterValidator(Between("0", "1e38", above=True))] = "1e+4"


class FailurePolicy(Part):
    """What happens when a participant is lost, and how long anyone waits."""

    on_peer_loss: Literal["Fail", "Wait"] = "Wait"
    peer_timeout_seconds: Seconds = 30
    progress_timeout_seconds: Seconds = 600
    rejoin_timeout_seconds: Seconds = 1800


class Checkpoint(Part):
    """What is kept on disk."""

    keep: Annotated[int, Field(ge=2, le=100)] = 2


class Participant(Part):
    """One organisation."""

    name: ParticipantName
    capacity: Annotated[int, Field(ge=1, le=1000)] = 1
    jurisdiction: Jurisdiction | None = None
    release: Literal["None"] = "None"
    share_loss: Literal["None"] = "None"


class Agreement(Part):
    """What all partners hold identically."""

    id: Annotated[str, StringConstraints(pattern=LABEL, max_length=63)]
    model: Model
    experts: Experts = Experts()
    training: Training
    transport: Transport = Transport()
    failure_policy: FailurePolicy = FailurePolicy()
    checkpoint: Checkpoint = Checkpoint()
    coordinator: ParticipantName
    participants: Annotated[tuple[Participant, ...], Field(min_length=1, max_length=MAX_PARTICIPANTS)]
    """As the manifest lists them; `Consortium.participants` has them sorted."""


class RosterEntry(Part):
    """Where a participant is, and which CAs may sign for it."""

    name: ParticipantName
    endpoint: (
        Annotated[
            str, StringConstraints(pattern=ENDPOINT, max_length=262), AfterValidator(endpoint_with_port)
        ]
        | None
    ) = None
    ca_bundle: Annotated[str, StringConstraints(pattern=CERTIFICATES, max_length=16_384)] | None = None


class Dataset(Part):
    """A participant's own records, in its dataset volume."""

    path: Annotated[
        str, StringConstraints(pattern=RELATIVE_PATH, max_length=1024), AfterValidator(path_inside)
    ] = "train.jsonl"
    format: Literal["Text", "JSONLines"] = "JSONLines"
    text_field: Annotated[str, StringConstraints(min_length=1, max_length=128)] = "text"
    held_out_percent: Annotated[int, Field(ge=0, le=50)] = 10


class Local(Part):
    """A participant that runs here."""

    name: ParticipantName
    gpus: Annotated[int, Field(ge=0, le=1)] = 0
    resource_name: ResourceName = "nvidia.com/gpu"
    """The extended resource that `gpus` counts; `nvidia.com/mig-1g.10gb` for a slice of one."""
    device: Literal["Auto", "CUDA", "CPU"] = "Auto"
    gradient_checkpointing: bool = False
    cpu_threads: Annotated[int, Field(ge=0, le=1024)] = 0
    dataset: Dataset = Dataset()
    volumes: Volumes = Volumes()
    template: Template = Template()


class Spec(Part):
    """The `spec` of a `PCMoEConsortium`."""

    suspend: bool | None = None
    managed_by: Annotated[str, StringConstraints(min_length=1, max_length=253)] = OPERATOR
    attempt: Annotated[int, Field(ge=1, le=MAX_ATTEMPT)] = 1
    agreement: Agreement
    roster: Annotated[tuple[RosterEntry, ...], Field(max_length=MAX_PARTICIPANTS)] = ()
    local: Annotated[tuple[Local, ...], Field(max_length=MAX_PARTICIPANTS)] = ()


class Metadata(BaseModel):
    """The object's metadata; what Kubernetes adds to it is left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    name: Annotated[str, StringConstraints(pattern=LABEL, max_length=MAX_OBJECT_NAME)]


class Consortium(Part):
    """A whole `PCMoEConsortium`, as parsed by `spec.load` or `spec.parse`."""

    api_version: Literal["pcmoe.dev/v1alpha1"]
    kind: Literal["PCMoEConsortium"]
    metadata: Metadata
    spec: Spec

    @property
    def agreement(self) -> Agreement:
        """What all partners hold identically."""
        return self.spec.agreement

    @cached_property
    def participants(self) -> tuple[Participant, ...]:
        """The participants sorted by name; a participant's index here is its number everywhere."""
        return tuple(sorted(self.agreement.participants, key=lambda participant: participant.name))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the participants, sorted."""
        return tuple(participant.name for participant in self.participants)

    @property
    def config(self) -> str:
        """The model's configuration as compact JSON text with sorted keys."""
        source = self.agreement.model.source
        config = source.checkpoint.config if source.checkpoint else source.config
        assert config is not None
        return config

    @property
    def local(self) -> tuple[Local, ...]:
        """Participants that run here, by name; with no `local` in the manifest, all of them with defaults."""
        entries = self.spec.local or tuple(Local(name=name) for name in self.names)
        return tuple(sorted(entries, key=lambda entry: entry.name))

    def local_entry(self, name: str) -> Local:
        """The entry of one participant that runs here; KeyError for others."""
        return {entry.name: entry for entry in self.local}[name]

    def roster_entry(self, name: str) -> RosterEntry | None:
        """Where a participant is, if the manifest says so."""
        return next((entry for entry in self.spec.roster if entry.name == name), None)

    def checkpoints_gradients(self, name: str) -> bool:
        """Whether a participant runs here and computes layers again in its backward pass."""
        return any(entry.name == name and entry.gradient_checkpointing for entry in self.spec.local)

    def with_all_layers_shared(self) -> "Consortium":
        """The same with no local layers, to compare with."""
        experts = self.agreement.experts.model_copy(
            update={"local_layers": LocalLayers().model_copy(update={"at_end": 0})}
        )
        agreement = self.agreement.model_copy(update={"experts": experts})
        return self.model_copy(update={"spec": self.spec.model_copy(update={"agreement": agreement})})
