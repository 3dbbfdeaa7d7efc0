"""Rules between fields of a manifest. Each has an id, and says which fields it reads.

A rule is not asked when one of the fields it reads is broken by itself: its answer would mislead.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pcmoe_operator.constants import BYTE_LEVEL_VOCABULARY, COORDINATOR
from pcmoe_operator.errors import Fault, ManifestError
from pcmoe_operator.scalars import expert_numbers, expert_ranges
from pcmoe_operator.schema import Consortium
from pcmoe_operator.shape import ModelShape, shape_in

Found = Iterator[tuple[str, object, str]]
"""(path, value, message) of each fault."""

A = "spec.agreement"
TRAINING = f"{A}.training"
SOURCE = f"{A}.model.source"
PARTICIPANTS = f"{A}.participants"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule between fields."""

    id: str
    reads: tuple[str, ...]
    """Fields it reads: paths without indices."""
    check: Callable[[Consortium], Found]


RULES: list[Rule] = []


def rule(name: str, *reads: str) -> Callable[[Callable[[Consortium], Found]], Callable[[Consortium], Found]]:
    """Register a rule under its id."""

    def register(check: Callable[[Consortium], Found]) -> Callable[[Consortium], Found]:
        RULES.append(Rule(name, reads, check))
        return check

    return register


def broken_rules(consortium: Consortium, broken: Sequence[str] = ()) -> list[Fault]:
    """Every fault between fields, but for rules that read a path of `broken` (paths without indices)."""
    faults = []
    for candidate in RULES:
        if not any(_touches(path, read) for path in broken for read in candidate.reads):
            faults += [
                Fault(path, value, candidate.id, text) for path, value, text in candidate.check(consortium)
            ]
    if not any(_touches(path, SOURCE) for path in broken):
        faults += _architecture_faults(consortium)
    return faults


def _touches(path: str, read: str) -> bool:
    return path == read or path.startswith(f"{read}.") or read.startswith(f"{path}.")


def config_path(consortium: Consortium) -> str:
    """Path of the model's configuration in this manifest."""
    return (
        f"{SOURCE}.checkpoint.config" if consortium.agreement.model.source.checkpoint else f"{SOURCE}.config"
    )


def _has_one_source(consortium: Consortium) -> bool:
    source = consortium.agreement.model.source
    return (source.checkpoint is None) != (source.config is None)


def _shape(consortium: Consortium) -> ModelShape | None:
    """The model's shape, or None if the configuration is at fault itself."""
    try:
        return shape_in(consortium.config) if _has_one_source(consortium) else None
    except ManifestError:
        return None


def _architecture_faults(consortium: Consortium) -> Sequence[Fault]:
    if not _has_one_source(consortium):
        return ()
    try:
        shape_in(consortium.config)
    except ManifestError as error:
        here = config_path(consortium)
        return [replace(fault, path=here + fault.path.removeprefix("config")) for fault in error.faults]
    return ()


def _twice(values: Sequence[str | None]) -> list[tuple[int, str]]:
    """(index, value) of every value that already stood before it."""
    return [(i, value) for i, value in enumerate(values) if value is not None and value in values[:i]]


@rule("one-source", SOURCE)
def _one_source(consortium: Consortium) -> Found:
    if not _has_one_source(consortium):
        given = "both" if consortium.agreement.model.source.config else "neither"
        yield SOURCE, given, f"must have exactly one of checkpoint and config, has {given}"


@rule("byte-level", SOURCE, f"{A}.model.tokenizer")
def _byte_level(consortium: Consortium) -> Found:
    model, shape = consortium.agreement.model, _shape(consortium)
    if model.source.config is not None and model.tokenizer != "ByteLevel":
        message = f"is {model.tokenizer}; must be ByteLevel with source.config, which brings no tokenizer"
        yield f"{A}.model.tokenizer", model.tokenizer, message
    if shape and model.tokenizer == "ByteLevel" and shape.vocabulary < BYTE_LEVEL_VOCABULARY:
        message = f"is {shape.vocabulary}; must be at least {BYTE_LEVEL_VOCABULARY} with tokenizer ByteLevel"
        yield f"{config_path(consortium)}.vocab_size", shape.vocabulary, message


@rule("positions", SOURCE, f"{TRAINING}.sequenceLength")
def _positions(consortium: Consortium) -> Found:
    length, shape = consortium.agreement.training.sequence_length, _shape(consortium)
    if shape and length > shape.max_positions:
        message = f"is {length}; must be at most the model's max_position_embeddings ({shape.max_positions})"
        yield f"{TRAINING}.sequenceLength", length, message


@rule("local-layers-fit", SOURCE, f"{A}.experts.localLayers")
def _local_layers(consortium: Consortium) -> Found:
    local, shape = consortium.agreement.experts.local_layers, _shape(consortium)
    if shape and local.at_start + local.at_end >= len(shape.expert_layers):
        both = local.at_start + local.at_end
        message = (
            f"atStart + atEnd is {both}; must leave at least one of the model's "
            f"{len(shape.expert_layers)} layers with experts to share"
        )
        yield f"{A}.experts.localLayers", both, message


@rule("unique-participants", PARTICIPANTS)
def _unique_participants(consortium: Consortium) -> Found:
    for i, name in _twice([participant.name for participant in consortium.agreement.participants]):
        yield (
            f"{PARTICIPANTS}[{i}].name",
            name,
            f"is {name!r}, which is another participant's name; must be unique",
        )


@rule("reserved-name", PARTICIPANTS)
def _reserved(consortium: Consortium) -> Found:
    for i, participant in enumerate(consortium.agreement.participants):
        if participant.name == COORDINATOR:
            name = participant.name
            yield (
                f"{PARTICIPANTS}[{i}].name",
                name,
                f"is {name!r}, which is reserved for the coordinator's identity",
            )


@rule("coordinator-participates", f"{A}.coordinator", PARTICIPANTS)
def _coordinator(consortium: Consortium) -> Found:
    name = consortium.agreement.coordinator
    if name not in consortium.names:
        yield f"{A}.coordinator", name, f"is {name!r}; must be a participant: {', '.join(consortium.names)}"


@rule("in-flight-within-step", f"{TRAINING}.inFlight", f"{TRAINING}.microBatchesPerStep")
def _in_flight(consortium: Consortium) -> Found:
    training = consortium.agreement.training
    if training.in_flight > training.micro_batches_per_step:
        most = training.micro_batches_per_step
        message = f"is {training.in_flight}; must be at most microBatchesPerStep ({most})"
        yield f"{TRAINING}.inFlight", training.in_flight, message


@rule("sequential-turns", f"{TRAINING}.schedule", f"{TRAINING}.stepsPerRound", PARTICIPANTS)
def _sequential(consortium: Consortium) -> Found:
    training, count = consortium.agreement.training, len(consortium.names)
    steps = training.steps_per_round
    if training.schedule == "Sequential" and steps % count:
        message = f"is {steps}; must be a multiple of the {count} participants with schedule Sequential"
        yield f"{TRAINING}.stepsPerRound", steps, message


@rule("pinned-with-placement", f"{A}.experts.placement", f"{A}.experts.pinned")
def _pinned_with_placement(consortium: Consortium) -> Found:
    experts = consortium.agreement.experts
    if experts.placement == "Pinned" and not experts.pinned:
        yield f"{A}.experts.pinned", None, "must say who hosts which experts with placement Pinned"
    if experts.placement != "Pinned" and experts.pinned:
        yield f"{A}.experts.pinned", len(experts.pinned), f"must be absent with placement {experts.placement}"


@rule("pinned-participants", f"{A}.experts.pinned", f"{A}.experts.allowedJurisdictions", PARTICIPANTS)
def _pinned_participants(consortium: Consortium) -> Found:
    pinned = [entry.participant for entry in consortium.agreement.experts.pinned]
    hosts = _hosts(consortium)
    for i, name in enumerate(pinned):
        path = f"{A}.experts.pinned[{i}].participant"
        if name not in consortium.names:
            yield path, name, f"is {name!r}; must be a participant: {', '.join(consortium.names)}"
        elif name not in hosts:
            yield path, name, f"is {name!r}, whose jurisdiction is not one of allowedJurisdictions"
    for i, name in _twice(pinned):
        yield (
            f"{A}.experts.pinned[{i}].participant",
            name,
            f"is {name!r} a second time; one entry per participant",
        )


@rule("pinned-once", f"{A}.experts.pinned", f"{A}.experts.placement", SOURCE)
def _pinned_once(consortium: Consortium) -> Found:
    entries, shape = consortium.agreement.experts.pinned, _shape(consortium)
    if not entries or shape is None:
        return
    seen: set[int] = set()
    for i, entry in enumerate(entries):
        path, mine = f"{A}.experts.pinned[{i}].experts", set(expert_numbers(entry.experts))
        if outside := tuple(mine - set(range(shape.experts))):
            text = f"names {expert_ranges(outside)}; the model's experts are 0-{shape.experts - 1}"
            yield path, entry.experts, text
        if twice := tuple(mine & seen):
            yield (
                path,
                entry.experts,
                f"names {expert_ranges(twice)}, pinned to another participant; must be pinned once",
            )
        seen |= mine
    if missing := tuple(set(range(shape.experts)) - seen):
        yield (
            f"{A}.experts.pinned",
            None,
            f"leaves out {expert_ranges(missing)}; every expert must be pinned once",
        )


def _hosts(consortium: Consortium) -> list[str]:
    allowed = consortium.agreement.experts.allowed_jurisdictions
    return [p.name for p in consortium.agreement.participants if not allowed or p.jurisdiction in allowed]


@rule("jurisdiction-hosts", f"{A}.experts.allowedJurisdictions", PARTICIPANTS)
def _jurisdictions(consortium: Consortium) -> Found:
    allowed = consortium.agreement.experts.allowed_jurisdictions
    if not _hosts(consortium):
        text = f"is {', '.join(allowed)}; at least one participant must have such a jurisdiction, to host"
        yield f"{A}.experts.allowedJurisdictions", list(allowed), text
    for i, participant in enumerate(consortium.agreement.participants):
        if allowed and participant.jurisdiction is None:
            yield (
                f"{PARTICIPANTS}[{i}].jurisdiction",
                None,
                "is missing; must be said when allowedJurisdictions is",
            )


@rule("known-roster", "spec.roster", PARTICIPANTS)
def _roster(consortium: Consortium) -> Found:
    names = [entry.name for entry in consortium.spec.roster]
    yield from _known("spec.roster", names, consortium)


@rule("known-local", "spec.local", PARTICIPANTS)
def _local(consortium: Consortium) -> Found:
    names = [entry.name for entry in consortium.spec.local]
    yield from _known("spec.local", names, consortium)


def _known(path: str, names: Sequence[str], consortium: Consortium) -> Found:
    for i, name in enumerate(names):
        if name not in consortium.names:
            yield (
                f"{path}[{i}].name",
                name,
                f"is {name!r}; must be a participant: {', '.join(consortium.names)}",
            )
    for i, name in _twice(names):
        yield f"{path}[{i}].name", name, f"is {name!r} a second time; one entry per participant"


@rule("unique-endpoints", "spec.roster")
def _endpoints(consortium: Consortium) -> Found:
    for i, endpoint in _twice([entry.endpoint for entry in consortium.spec.roster]):
        yield (
            f"spec.roster[{i}].endpoint",
            endpoint,
            f"is {endpoint!r}, another participant's endpoint; must be unique",
        )


@rule("device-has-gpu", "spec.local")
def _device(consortium: Consortium) -> Found:
    for i, entry in enumerate(consortium.spec.local):
        if entry.device == "CUDA" and entry.gpus == 0 and not entry.template.resource_claims:
            message = "is CUDA with gpus 0; must have gpus 1, or a device by template.resourceClaims"
            yield f"spec.local[{i}].device", entry.device, message
        if entry.device == "CPU" and entry.gpus > 0:
            yield f"spec.local[{i}].device", entry.device, "is CPU with gpus 1; must have gpus 0"


@rule("deterministic-thread", "spec.local", f"{TRAINING}.deterministic")
def _deterministic(consortium: Consortium) -> Found:
    if consortium.agreement.training.deterministic:
        for i, entry in enumerate(consortium.spec.local):
            if entry.cpu_threads > 1:
                message = f"is {entry.cpu_threads}; must be 0 or 1 with training.deterministic"
                yield f"spec.local[{i}].cpuThreads", entry.cpu_threads, message


@rule("held-out-for-evaluation", "spec.local", f"{TRAINING}.evaluation")
def _held_out(consortium: Consortium) -> Found:
    if consortium.agreement.training.evaluation.sequences:
        for i, entry in enumerate(consortium.spec.local):
            if entry.dataset.held_out_percent == 0:
                yield (
                    f"spec.local[{i}].dataset.heldOutPercent",
                    0,
                    "is 0; must be at least 1 with evaluation.sequences",
                )


@rule("one-volume", "spec.local.volumes")
def _one_volume(consortium: Consortium) -> Found:
    for i, entry in enumerate(consortium.spec.local):
        for kind in ("dataset", "model"):
            volume = getattr(entry.volumes, kind)
            if volume is not None:
                given = (volume.persistent_volume_claim, volume.image)
                yield from _one_of(
                    f"spec.local[{i}].volumes.{kind}", given, "persistentVolumeClaim and image"
                )
        if (checkpoint := entry.volumes.checkpoint) is not None:
            given = (checkpoint.persistent_volume_claim, checkpoint.size)
            yield from _one_of(f"spec.local[{i}].volumes.checkpoint", given, "persistentVolumeClaim and size")


def _one_of(path: str, given: Sequence[object], names: str) -> Found:
    count = sum(value is not None for value in given)
    if count != 1:
        has = "both" if count else "neither"
        yield path, has, f"must have exactly one of {names}, has {has}"


@rule("claim-made-here", "spec.local.volumes.checkpoint")
def _claim_made_here(consortium: Consortium) -> Found:
    for i, entry in enumerate(consortium.spec.local):
        checkpoint, path = entry.volumes.checkpoint, f"spec.local[{i}].volumes.checkpoint"
        if checkpoint is None or checkpoint.size is not None:
            continue
        if checkpoint.storage_class_name is not None:
            yield (
                f"{path}.storageClassName",
                checkpoint.storage_class_name,
                f"is {checkpoint.storage_class_name}; must come with size, for a claim that is to be made",
            )
        if checkpoint.on_delete == "Delete":
            message = "is Delete; must come with size: a claim that was there is never deleted"
            yield f"{path}.onDelete", checkpoint.on_delete, message


@rule("own-checkpoint", "spec.local.volumes.checkpoint")
def _own_checkpoint(consortium: Consortium) -> Found:
    """Two that write to one claim would go on from each other's rounds."""
    local = consortium.spec.local
    volumes = [entry.volumes.checkpoint for entry in local]
    claims = [volume.persistent_volume_claim if volume else None for volume in volumes]
    given = [claim.claim_name if claim else None for claim in claims]
    made = {f"{consortium.metadata.name}.{each.name}": each.name for each in local}
    path = "spec.local[{}].volumes.checkpoint.persistentVolumeClaim.claimName"
    for i, name in _twice(given):
        yield (
            path.format(i),
            name,
            f"is {name!r} a second time; each participant must have a claim of its own",
        )
    for i, claim in enumerate(given):
        if (other := made.get(claim or "", local[i].name)) != local[i].name:
            yield path.format(i), claim, f"is {claim!r}, which is made for {other}; must be one of its own"


@rule("one-claim", "spec.local.template.resourceClaims")
def _one_claim(consortium: Consortium) -> Found:
    for i, entry in enumerate(consortium.spec.local):
        path = f"spec.local[{i}].template.resourceClaims"
        for j, claim in enumerate(entry.template.resource_claims):
            given = (claim.resource_claim_name, claim.resource_claim_template_name)
            yield from _one_of(f"{path}[{j}]", given, "resourceClaimName and resourceClaimTemplateName")
        for j, name in _twice([claim.name for claim in entry.template.resource_claims]):
            yield f"{path}[{j}].name", name, f"is {name!r} a second time; must be unique"


@rule("gpus-counted-once", "spec.local.template.resources", "spec.local.resourceName")
def _gpus_counted_once(consortium: Consortium) -> Found:
    for i, entry in enumerate(consortium.spec.local):
        resources = entry.template.resources
        for kind in ("requests", "limits") if resources else ():
            if entry.resource_name in (getattr(resources, kind) or ()):
                message = f"names {entry.resource_name}; must leave it to gpus"
                yield f"spec.local[{i}].template.resources.{kind}", entry.resource_name, message
