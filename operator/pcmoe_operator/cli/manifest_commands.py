"""`pcmoe init`, `validate`, `plan` and `agreement`: what a manifest says, before anything starts."""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from pcmoe_operator import agreement as agreements
from pcmoe_operator import units
from pcmoe_operator.cli import starter
from pcmoe_operator.errors import Fault, ManifestError, UsageError
from pcmoe_operator.objects.inputs import Inputs
from pcmoe_operator.objects.names import Owner
from pcmoe_operator.objects.needs import cluster_faults
from pcmoe_operator.plan import Network, Plan, Prediction, make_plan, predict
from pcmoe_operator.schema import Consortium
from pcmoe_operator.settings import Settings
from pcmoe_operator.spec import load, load_text, refused_by_the_api

ManifestFile = Annotated[Path, typer.Argument(help="The manifest, YAML.", show_default=False)]


class Format(StrEnum):
    """How `pcmoe plan` prints."""

    TABLE = "table"
    JSON = "json"


def validate(
    manifest: ManifestFile,
    cluster: Annotated[
        bool,
        typer.Option(
            "--cluster",
            help="Also hold it to what a cluster needs: volumes, partners' certificates and endpoints, decimals in "
            "quotes. It is taken that all of spec.local run there (the chart's partner.participants is empty).",
        ),
    ] = False,
) -> None:
    """Check a manifest: every broken rule at once, with field, value and rule.

    Exit code: 0 if it may be run, 64 if not.
    """
    consortium = load(manifest)
    plan_ = make_plan(consortium)
    unquoted = refused_by_the_api(manifest)
    if cluster and (faults := [*unquoted, *_cluster_faults(consortium, plan_)]):
        raise ManifestError(faults)
    console = _console()
    _say(console, f"{manifest}: valid{', also in a cluster' if cluster else ''}")
    _say(console, f"participants  {', '.join(consortium.names)}")
    _say(console, f"agreement     {agreements.digest(consortium)}")
    _say(console, f"plan          {plan_.digest}")
    for fault in unquoted:
        typer.echo(f"note: runs here, but kubectl apply will refuse it: {fault}", err=True)


def agreement(
    manifest: ManifestFile,
    other: Annotated[
        Path | None, typer.Argument(help="A second manifest, to compare with.", show_default=False)
    ] = None,
) -> None:
    """Print the agreement's canonical text and digest, or where two manifests' agreements differ.

    Exit code: 0; with two manifests 1 if their agreements differ.
    """
    first = agreements.canonical(load(manifest))
    if other is None:
        typer.echo(first)
        typer.echo(agreements.digest_of(first))
        return
    second = agreements.canonical(load(other))
    found = agreements.differences(first, second)
    if not found:
        typer.echo(f"The agreements are the same: {agreements.digest_of(first)}")
        return
    for path, one, two in found:
        typer.echo(f"{path}\n  {manifest}: {_value(one)}\n  {other}: {_value(two)}")
    typer.echo(f"The agreements differ in {len(found)} fields, {manifest} has")
    typer.echo(f"{agreements.digest_of(first)}, {other} {agreements.digest_of(second)}")
    raise typer.Exit(1)


def plan(
    manifest: ManifestFile,
    bandwidth: Annotated[
        float, typer.Option(min=0.001, help="Mbit/s of each participant, each way.", metavar="MBIT/S")
    ] = 1000,
    rtt: Annotated[float, typer.Option(min=0, help="Round trip between participants.", metavar="MS")] = 20,
    flops: Annotated[
        float, typer.Option(min=0.001, help="What a participant's machine really reaches.", metavar="GFLOP/S")
    ] = 1000,
    output: Annotated[Format, typer.Option("--output", "-o", help="table or json.")] = Format.TABLE,
) -> None:
    """Say who hosts what, and what it takes in memory, disk, traffic and hours, before anything starts.

    The figures are estimates: they assume that every expert is as likely as any other, and leave out what
    libraries take for themselves.
    """
    consortium = load(manifest)
    network = Network(
        bits_per_second=round(bandwidth * 1e6),
        round_trip_microseconds=round(rtt * 1e3),
        flops=round(flops * 1e9),
    )
    made = make_plan(consortium)
    prediction = predict(consortium, made, network)
    if output is Format.JSON:
        typer.echo(json.dumps(_plan_json(made, network, prediction), indent=2))
        return
    _print_plan(_console(), consortium, made, prediction)


def init(
    folders: Annotated[
        list[Path],
        typer.Argument(help="One folder of *.txt or *.jsonl files per participant.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The manifest to write.")] = Path(
        "manifest.yaml"
    ),
    model: Annotated[
        Path | None,
        typer.Option(help="Checkpoint to start from: config.json and *.safetensors.", metavar="DIR"),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the consortium.")] = "consortium",
) -> None:
    """Write a manifest from folders of text, one folder per participant, and say how to run it.

    Without --model it trains a small model from random weights, byte by byte.
    """
    if output.exists():
        raise UsageError(f"{output}: is there already; choose another --output")
    if not starter.label(name):
        raise UsageError(f"--name {name!r}: must have a letter or digit of a-z and 0-9")
    records = starter.find_records(folders)
    chosen = starter.trial_model() if model is None else starter.find_model(model)
    text = starter.starter(name, records, chosen)
    load_text(text, str(output))
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{output}: can't be written: {error.strerror}") from error
    for entry in records:
        field = f", text in {entry.text_field!r}" if entry.text_field else ""
        typer.echo(f"{entry.participant}: {entry.format} in {entry.folder}{field}")
    typer.echo(f"Wrote {output}. What it takes: pcmoe plan {output}. To train:\n")
    typer.echo(starter.run_command(output, records, model))


def _cluster_faults(consortium: Consortium, plan: Plan) -> list[Fault]:
    """What the operator would say of it besides, were it installed with the chart's defaults."""
    name, namespace = consortium.metadata.name, "default"
    settings = Settings(namespaces=(namespace,), node_image="", operator_image="", lease_namespace=namespace)
    owner = Owner(name=name, namespace=namespace, uid="")
    return cluster_faults(Inputs(owner=owner, consortium=consortium, plan=plan, settings=settings))


def _console() -> Console:
    return Console(highlight=False)


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, markup=False, soft_wrap=True)


def _value(value: object) -> str:
    return "(absent or default)" if value is None else json.dumps(value, ensure_ascii=False)


def _percent(per_mille: int) -> str:
    return f"{per_mille / 10:.1f} %"


def _plan_json(plan: Plan, network: Network, prediction: Prediction) -> dict[str, Any]:
    """The plan as JSON; sizes in bytes, times in seconds."""
    participants = [
        {**asdict(participant), "memory": {**asdict(participant.memory), "total": participant.memory.total}}
        for participant in plan.participants
    ]
    return {
        **asdict(plan),
        "participants": participants,
        "saving_per_mille": plan.saving_per_mille,
        "network": asdict(network),
        "prediction": asdict(prediction),
    }


def _print_plan(console: Console, consortium: Consortium, plan: Plan, prediction: Prediction) -> None:
    title = f"{consortium.metadata.name}: {plan.shared_layers} of {len(plan.placement)} layers' experts are shared"
    parts = ("backbone", "experts", "optimizer", "activations", "others", "buffers", "total")
    memory = _table(f"{title}\nmemory while training", parts)
    rest = _table(
        "the rest", ("experts hosted", "a checkpoint", "disk at most", "sent per step", "memory saved")
    )
    for participant in plan.participants:
        own = participant.memory
        optimizer = own.gradients + own.moments + own.masters
        others = own.served + own.put_off
        kinds = (own.backbone, own.experts, optimizer, own.activations, others, own.buffers, own.total)
        memory.add_row(participant.name, *map(units.size, kinds))
        rest.add_row(
            participant.name,
            str(participant.experts),
            units.size(participant.checkpoint),
            units.size(participant.disk),
            units.size(participant.step.sent),
            _percent(participant.saving_per_mille),
        )
    console.print(memory)
    console.print(rest)
    for sentence in _sentences(consortium, plan, prediction):
        _say(console, sentence)


def _table(title: str, columns: tuple[str, ...]) -> Table:
    """A row per participant, narrow enough for 80 columns."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _sentences(consortium: Consortium, plan: Plan, prediction: Prediction) -> list[str]:
    """What the table doesn't say."""
    terms, local = consortium.agreement.training, plan.local_layers
    keep = consortium.agreement.checkpoint.keep
    sent = sum(participant.run.sent for participant in plan.participants)
    steps = terms.rounds * terms.steps_per_round
    parts = ", ".join(
        f"{name} {seconds:.3g} s"
        for name, seconds in (
            ("compute", prediction.compute_seconds),
            ("bandwidth", prediction.bandwidth_seconds),
            ("latency", prediction.latency_seconds),
        )
    )
    local_layers = len(plan.placement) - plan.shared_layers
    return [
        f"One process that holds the whole model needs {units.size(plan.single_process)} for weights, gradients "
        f"and moments; a participant saves {_percent(plan.saving_per_mille)} of that.",
        f"Local layers ({local_layers}) cost {units.size(local.bytes)} over all participants: without them "
        f"{_percent(local.saving_without_per_mille)} would be saved, and hosts of the last layer could read text.",
        f"The run sends {units.size(sent)} in {steps} steps and takes about "
        f"{units.duration(prediction.run_seconds)}: {prediction.step_seconds:.3g} s per step, bound by "
        f"{prediction.bound} ({parts}).",
        f"On disk are at most {keep + 2} checkpoints of each: {keep} to keep, the last that all are known to have, and "
        "the one being written.",
        "`others` is for other participants' tokens. Estimates: every expert as likely as any other; without what "
        "libraries take.",
        f"Plan {plan.digest}",
    ]
