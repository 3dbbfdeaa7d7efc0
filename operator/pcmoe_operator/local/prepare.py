"""From a manifest to the folder of a run, and from the folder of a run to what is to be started."""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, TypedDict

from pcmoe_node.continuation.prompts import prompts_of
from pcmoe_node.errors import ConfigError
from pcmoe_operator import spec
from pcmoe_operator.agreement import canonical
from pcmoe_operator.constants import COORDINATOR
from pcmoe_operator.errors import UsageError
from pcmoe_operator.local.certificates import Leaf
from pcmoe_operator.local.folder import PRIVATE_FOLDER, Address, RunFolder, RunRecord, Seat, Volumes
from pcmoe_operator.local.ports import LOOPBACK, free_ports
from pcmoe_operator.local.processes import Crew, Member
from pcmoe_operator.nodeconfig import NodePlaces, Places, coordinator_config, identity_of, node_config
from pcmoe_operator.pki import write_participant, write_private
from pcmoe_operator.plan import Plan, make_plan
from pcmoe_operator.schema import Consortium

NODE_COMMAND = (sys.executable, "-m", "pcmoe_node")
COORDINATOR_COMMAND = (sys.executable, "-m", "pcmoe_node.coordination")
SOFTWARE = ("pcmoe", "torch", "transformers", "safetensors", "cryptography", "pydantic")

VolumeKind = Literal["dataset", "model", "order-secret"]
KINDS: tuple[VolumeKind, ...] = ("dataset", "model", "order-secret")


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeOption:
    """One `--volume NAME:KIND=PATH`."""

    participant: str
    kind: VolumeKind
    path: Path

    @staticmethod
    def parse(text: str) -> "VolumeOption":
        """The option in its text; raises `UsageError` with the form it must have."""
        place, equals, path = text.partition("=")
        name, colon, kind = place.partition(":")
        for known in KINDS:
            if equals and colon and name and path and kind == known:
                return VolumeOption(participant=name, kind=known, path=Path(path))
        raise UsageError(f"--volume {text!r}: must be NAME:KIND=PATH with KIND one of {', '.join(KINDS)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRun:
    """A run that can be started."""

    folder: RunFolder
    title: str
    crew: Crew
    prompts: Mapping[str, str] = field(default_factory=dict)
    """What models are to go on with after training, by participant. Kept in memory only: no file of the run has it."""


def prepare(
    manifest: Path, output: Path, volumes: tuple[VolumeOption, ...] = (), prompts: Sequence[str] = ()
) -> PreparedRun:
    """Make the folder of a new run. Everything is checked before anything is written.

    `prompts`: each NAME=TEXT. Raises `ManifestError` for a bad manifest and `UsageError` for a folder, a volume or a
    prompt that can't be used.
    """
    consortium = spec.load(manifest)
    plan = make_plan(consortium)
    texts = _prompts(consortium, prompts)
    own_volumes = _new_volumes(consortium, manifest.resolve().parent / "volumes", volumes)
    folder = RunFolder(output.resolve())
    folder.make()
    folder.manifest.write_bytes(manifest.read_bytes())
    threads = max(1, _cores() // len(consortium.names))
    for name in consortium.names:
        folder.of(name).mkdir(mode=PRIVATE_FOLDER)
        write_participant(folder.certificates(name), name, consortium.agreement.id)
    for own in (folder.of(COORDINATOR), folder.certificates(COORDINATOR)):
        own.mkdir(mode=PRIVATE_FOLDER)
    _coordinator_leaf(folder, consortium).renew()
    coordinator, seats = _seated(own_volumes)
    record = RunRecord(
        version=software().get("pcmoe", ""),
        frozen=_frozen(consortium),
        threads=threads,
        cores=_cores(),
        software=software(),
        participants=seats,
        coordinator=coordinator,
    )
    return replace(_ready(folder, consortium, plan, record), prompts=texts)


def resume(output: Path, manifest: Path | None = None, prompts: Sequence[str] = ()) -> PreparedRun:
    """Make a stopped run ready to go on: new ports, and `manifest` instead of its own if one is given.

    Raises `UsageError` if the folder holds no run, the manifest changes what is frozen by then, or a prompt can't be
    used.
    """
    folder = RunFolder(output.resolve())
    record = folder.load()
    source = manifest or folder.manifest
    consortium = spec.load(source)
    plan = make_plan(consortium)
    if _frozen(consortium) != record.frozen:
        raise UsageError(
            f"{source}: id, model, experts and participants of the agreement must stay as they were when "
            f"{folder.path} was made; start a new run for another consortium"
        )
    texts = _prompts(consortium, prompts)
    own_volumes = {name: seat.volumes for name, seat in record.participants.items()}
    for name, volumes in own_volumes.items():
        _check_volumes(name, volumes, consortium)
    for leaf in _leaves(folder, consortium):
        leaf.renew()  # leaves last for days, a run may stand still for longer
    coordinator, seats = _seated(own_volumes)
    if manifest is not None:
        folder.manifest.write_bytes(manifest.read_bytes())
    record = replace(record, participants=seats, coordinator=coordinator, software=software())
    return replace(_ready(folder, consortium, plan, record), prompts=texts)


def _ready(folder: RunFolder, consortium: Consortium, plan: Plan, record: RunRecord) -> PreparedRun:
    """Write every configuration, then the record that makes the folder a run."""
    crew = Crew(
        members=tuple(_member(folder, consortium, plan, record, name) for name in consortium.names),
        coordinator=_coordinator(folder, consortium, plan, record),
        on_peer_loss=consortium.agreement.failure_policy.on_peer_loss,
        leaves=_leaves(folder, consortium),
    )
    folder.store(record, consortium.metadata.name)
    return PreparedRun(folder=folder, title=consortium.metadata.name, crew=crew)


def _leaves(folder: RunFolder, consortium: Consortium) -> tuple[Leaf, ...]:
    """Every certificate of a run: each participant's own CA signs for it."""
    nodes = tuple(
        Leaf(
            owner=name,
            identity=identity_of(name, consortium.agreement.id),
            folder=folder.certificates(name),
            authority=folder.certificates(name),
        )
        for name in consortium.names
    )
    return (*nodes, _coordinator_leaf(folder, consortium))


def _coordinator_leaf(folder: RunFolder, consortium: Consortium) -> Leaf:
    """The coordinator has no CA: that of the participant which runs it signs for it."""
    return Leaf(
        owner=COORDINATOR,
        identity=identity_of(COORDINATOR, consortium.agreement.id),
        folder=folder.certificates(COORDINATOR),
        authority=folder.certificates(consortium.agreement.coordinator),
    )


def _coordinator(folder: RunFolder, consortium: Consortium, plan: Plan, record: RunRecord) -> Member:
    address = record.coordinator
    places = Places(
        listen=address.endpoint,
        status_listen=address.status.removeprefix("http://"),
        certificates=folder.certificates(COORDINATOR),
        log=folder.of(COORDINATOR) / "log",
        **_shared(folder, record),
    )
    text = coordinator_config(consortium, plan, places).model_dump_json(indent=2)
    write_private(folder.config(COORDINATOR), text + "\n")
    return Member(
        name=COORDINATOR,
        folder=folder.of(COORDINATOR),
        status_url=address.status,
        command=(*COORDINATOR_COMMAND, "--config", str(folder.config(COORDINATOR))),
        threads=1,
    )


def _member(folder: RunFolder, consortium: Consortium, plan: Plan, record: RunRecord, name: str) -> Member:
    seat = record.participants[name]
    volumes = seat.volumes
    places = NodePlaces(
        listen=seat.endpoint,
        status_listen=seat.status.removeprefix("http://"),
        certificates=folder.certificates(name),
        log=folder.of(name) / "log",
        dataset=Path(volumes.dataset),
        model=Path(volumes.model) if volumes.model else None,
        checkpoint=folder.of(name) / "checkpoint",
        order_secret=Path(volumes.order_secret) if volumes.order_secret else None,
        **_shared(folder, record),
    )
    config = node_config(consortium, plan, name, places)
    threads = config.threads or record.threads
    text = config.model_copy(update={"threads": threads}).model_dump_json(indent=2)
    write_private(folder.config(name), text + "\n")
    return Member(
        name=name,
        folder=folder.of(name),
        status_url=seat.status,
        command=(*NODE_COMMAND, "--config", str(folder.config(name))),
        threads=threads,
    )


class _Shared(TypedDict):
    """Places that are the same for everybody in the run."""

    coordinator: str
    endpoints: Mapping[str, str | None]
    ca_bundles: Mapping[str, str]


def _shared(folder: RunFolder, record: RunRecord) -> _Shared:
    return {
        "coordinator": record.coordinator.endpoint,
        "endpoints": {peer: seat.endpoint for peer, seat in record.participants.items()},
        "ca_bundles": {
            peer: (folder.certificates(peer) / "ca.crt").read_text() for peer in record.participants
        },
    }


def _seated(volumes: Mapping[str, Volumes]) -> tuple[Address, dict[str, Seat]]:
    """Free ports for the coordinator and for every participant."""
    ports = iter(free_ports(2 * (1 + len(volumes))))
    coordinator, *addresses = (
        Address(status=f"http://{LOOPBACK}:{next(ports)}", endpoint=f"{LOOPBACK}:{next(ports)}")
        for _ in range(1 + len(volumes))
    )
    seats = {
        name: Seat(status=address.status, endpoint=address.endpoint, volumes=own)
        for (name, own), address in zip(volumes.items(), addresses, strict=True)
    }
    return coordinator, seats


def _new_volumes(consortium: Consortium, root: Path, options: tuple[VolumeOption, ...]) -> dict[str, Volumes]:
    """The volumes of each participant; all of them run here, so each needs its own here."""
    absent = sorted(set(consortium.names) - {local.name for local in consortium.local})
    if absent:
        raise UsageError(f"spec.local: has no {', '.join(absent)}; a local run needs every participant")
    chosen = _by_participant(consortium, options)
    found = {}
    for name in consortium.names:
        own = chosen.get(name, {})
        secret = own.get("order-secret")
        found[name] = Volumes(
            dataset=str(own.get("dataset", root / name / "dataset").resolve()),
            model=str(own.get("model", root / name / "model").resolve())
            if _needs_model(consortium)
            else None,
            order_secret=str(secret.resolve()) if secret else None,
        )
        _check_volumes(name, found[name], consortium)
    return found


def _by_participant(
    consortium: Consortium, options: tuple[VolumeOption, ...]
) -> Mapping[str, Mapping[VolumeKind, Path]]:
    chosen: dict[str, dict[VolumeKind, Path]] = {}
    for option in options:
        if option.participant not in consortium.names:
            known = ", ".join(consortium.names)
            raise UsageError(f"--volume {option.participant}:…: no such participant; there are {known}")
        chosen.setdefault(option.participant, {})[option.kind] = option.path
    return chosen


def _prompts(consortium: Consortium, given: Sequence[str]) -> dict[str, str]:
    """Text by participant."""
    try:
        return prompts_of(given, consortium.names)
    except ConfigError as error:
        raise UsageError(str(error)) from None


def _needs_model(consortium: Consortium) -> bool:
    return consortium.agreement.model.source.checkpoint is not None


def _check_volumes(name: str, volumes: Volumes, consortium: Consortium) -> None:
    """A run that would fail at its start for lack of a file isn't started."""
    data = Path(volumes.dataset) / consortium.local_entry(name).dataset.path
    if not data.exists():
        raise UsageError(
            f"{name}: dataset {data} doesn't exist; say where it is with --volume {name}:dataset=DIR"
        )
    if volumes.model is not None and not (Path(volumes.model) / "config.json").exists():
        raise UsageError(
            f"{name}: {volumes.model} holds no model (no config.json); "
            f"say where it is with --volume {name}:model=DIR"
        )
    if volumes.order_secret is not None and not Path(volumes.order_secret).is_file():
        raise UsageError(f"{name}: order secret {volumes.order_secret} doesn't exist")


def _frozen(consortium: Consortium) -> str:
    """Digest of what may not change once training began."""
    agreement = json.loads(canonical(consortium))
    parts = {key: agreement.get(key) for key in ("id", "model", "experts", "participants")}
    return "sha256:" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def software() -> dict[str, str]:
    """Versions of what computes, without importing any of it."""
    found = {"Python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for name in SOFTWARE:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
