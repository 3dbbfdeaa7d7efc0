"""`pcmoe run` and `pcmoe report`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pcmoe_operator.errors import OperatorError, RunError, UsageError
from pcmoe_operator.local.baselines import run_baselines
from pcmoe_operator.local.continuations import run_continuations
from pcmoe_operator.local.folder import RunFolder
from pcmoe_operator.local.prepare import PreparedRun, VolumeOption, prepare, resume
from pcmoe_operator.local.supervise import Outcome, supervise
from pcmoe_operator.local.view import LiveView, PlainView, View
from pcmoe_operator.report import as_text, write_facts, write_report
from pcmoe_operator.report.figures import RunFacts, figures_of
from pcmoe_operator.report.folder import read_facts
from pcmoe_operator.report.headlines import headlines

VolumeOptions = Annotated[
    list[str] | None,
    typer.Option(
        help="Where a participant's data are: NAME:dataset=DIR, NAME:model=DIR, "
        "NAME:order-secret=FILE. Without it: volumes/NAME/{dataset,model} beside the manifest. "
        "May be given many times.",
        metavar="NAME:KIND=PATH",
    ),
]
Baselines = Annotated[
    bool,
    typer.Option(
        "--baselines",
        help="Then train what to compare with: each participant alone, and one process on all data.",
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        help="Text that NAME's model goes on with after training, for continuations.json and the report. Write one "
        "yourself, don't take it from records. May be given once for each NAME.",
        metavar="NAME=TEXT",
    ),
]


def run(  # noqa: PLR0913 - each is an option of the command
    manifest: Annotated[Path | None, typer.Argument(help="The manifest, YAML.", show_default=False)] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the new run; must be empty or not exist.")
    ] = None,
    resume_folder: Annotated[
        Path | None,
        typer.Option("--resume", help="Folder of a run to continue from its last checkpoint.", metavar="DIR"),
    ] = None,
    volume: VolumeOptions = None,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines instead of a table.")] = False,
    baselines: Baselines = False,
    prompt: Prompts = None,
) -> None:
    """Train: one process per participant on this machine, over mutual TLS, as in production.

    `pcmoe run MANIFEST --output DIR` starts a new run. `pcmoe run --resume DIR` continues one; with a
    MANIFEST too, it goes on with that one (more rounds, say). Logs, checkpoints and the report are in DIR.

    A small process more, the coordinator, keeps who is in and which rounds all have stored. With onPeerLoss
    Wait, a node that dies by a signal or loses its peers is started again, three times in a row at most, while
    the others wait; then all go on from the last round they have in common. With Fail its end ends the run.
    The coordinator is started again whenever it dies: training goes on without it for a while.

    With --baselines three more kinds of training follow, from the same weights, on the same tokens in the same order:
    alone-all, a participant's data and all experts; alone-shard, its data and the experts that the plan gives it;
    union, one model on everybody's data, which only one machine can have. That is three times the computing of the
    run itself. `pcmoe run --resume DIR --baselines` runs those that are missing.

    With --prompt, OUTPUT/continuations.json gets how NAME's text goes on, before training and after it: always the
    likeliest token, 40 at most. The model is put together from everybody's checkpoints, which only one machine can do.
    What follows may repeat text that was trained on. `pcmoe run --resume DIR --prompt NAME=TEXT` does it later.

    Exit code: 0 when the last round is stored; 64 for a bad manifest, folder, volume or prompt; else the code of the
    process that failed first; 130 after Ctrl-C, 143 after SIGTERM. That a baseline or the continuations fail is told
    and changes nothing.
    """
    options = tuple(VolumeOption.parse(text) for text in volume or ())
    console = Console()
    if resume_folder is not None:
        if output is not None or options:
            raise UsageError("--resume takes folder and volumes from the run: no --output, no --volume")
        folder = RunFolder(resume_folder.resolve())
        folder.load()
        with folder.locked():
            prepared = resume(resume_folder, manifest, prompt or ())
            _train(prepared, console, plain=plain, resumed=True, baselines=baselines)
        return
    if manifest is None or output is None:
        raise UsageError("say `pcmoe run MANIFEST --output DIR` or `pcmoe run --resume DIR`")
    prepared = prepare(manifest, output, options, prompt or ())
    with prepared.folder.locked():
        _train(prepared, console, plain=plain, resumed=False, baselines=baselines)


def _train(prepared: PreparedRun, console: Console, *, plain: bool, resumed: bool, baselines: bool) -> None:
    """Run to the end, report, and leave with the run's exit code."""
    folder = prepared.folder.path
    _say(console, f"Logs: {folder}/NAME/node.log   checkpoints: {folder}/NAME/checkpoint")
    table = console.is_terminal and not plain
    view: View = LiveView(console, prepared.title) if table else PlainView(console)
    outcome = supervise(prepared.crew, view, resumed=resumed)
    stopped_by = _afterwards(prepared, console, baselines=baselines) if outcome.exit_code == 0 else None
    _report(folder, console)
    _finish(outcome, folder)
    if stopped_by is not None:
        missing = [*["--prompt NAME=TEXT"] * bool(prepared.prompts), *["--baselines"] * baselines]
        typer.echo(f"Stopped. Go on with: pcmoe run --resume {folder} {' '.join(missing)}", err=True)
        raise typer.Exit(128 + stopped_by)


def _afterwards(prepared: PreparedRun, console: Console, *, baselines: bool) -> int | None:
    """Do what was asked for beside the training, the shorter first; the signal that stopped it.

    That something can't be done doesn't change how the run ended.
    """
    asked = {"continuations": run_continuations} if prepared.prompts else {}
    if baselines:
        asked["baselines"] = run_baselines
    for made, work in asked.items():
        try:
            stopped_by = work(prepared, partial(_say, console))
        except (OperatorError, OSError) as error:
            typer.echo(f"pcmoe: no {made}: {error}", err=True)
            continue
        if stopped_by is not None:
            return stopped_by
    return None


def _report(folder: Path, console: Console) -> None:
    """Write the report; that it can't be written doesn't change how the run ended."""
    try:
        _say(console, f"Report: {write_report(folder).page}")
    except (OperatorError, OSError) as error:
        typer.echo(f"pcmoe: no report: {error}", err=True)


def _finish(outcome: Outcome, folder: Path) -> None:
    if outcome.stopped_by is not None:
        typer.echo(f"Stopped. Continue with: pcmoe run --resume {folder}", err=True)
        raise typer.Exit(outcome.exit_code)
    if outcome.failure is not None:
        raise RunError(outcome.failure.sentence(), outcome.exit_code)


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def report(  # noqa: PLR0913 - each is an option of the command
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder of a local run, finished or not.", metavar="DIR", show_default=False),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Instead of DIR: a consortium in a cluster.", metavar="NAME")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Its namespace, if not the context's.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="Of the kubeconfig, if not the current one.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for both files. Default: DIR, or ./NAME-report.", metavar="DIR"),
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the figures, and write files only to --output.")
    ] = False,
    no_pods: Annotated[
        bool, typer.Option("--no-pods", help="Make no pods to read volumes: running nodes only.")
    ] = False,
) -> None:
    """Write report.html and report.json of a run, on this machine or in a cluster.

    In a cluster each participant's journal is asked of its pod, through the API server; once that is gone, a small
    pod that mounts the participant's checkpoint volume read-only prints it, and is deleted. A part that can't be
    had is named, with the reason, and the report is made of the others. Participants in other clusters keep theirs.

    Exit code: 0, also where parts are missing; 64 for a bad folder; 66, 75 or 77 where the consortium is not there,
    the cluster doesn't answer, or refuses.
    """
    if (folder is None) == (cluster is None):
        raise UsageError("say `pcmoe report DIR` or `pcmoe report --cluster NAME`")
    if folder is not None:
        facts, place = read_facts(folder), output or folder
    else:
        facts, place = _gathered(str(cluster), namespace, context, make_pods=not no_pods)
        place = output or place
    if json_:
        typer.echo(as_text(figures_of(facts)))
    if output is not None or not json_:
        written = write_facts(facts, place)
        typer.echo("\n".join(headlines(written.figures)), err=json_)
        typer.echo(f"Report: {written.page}", err=json_)
        typer.echo(f"Figures: {written.data}", err=json_)


def _gathered(
    cluster: str, namespace: str | None, context: str | None, *, make_pods: bool
) -> tuple[RunFacts, Path]:
    """The facts of a consortium in a cluster, and the folder for its report."""
    from pcmoe_operator.remote.report import facts_from  # no other command of this module needs a cluster

    def tell(sentence: str) -> None:
        typer.echo(sentence, err=True)

    try:
        facts = facts_from(cluster, context=context, namespace=namespace, make_pods=make_pods, tell=tell)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    for name, why in facts.left_out.items():
        tell(f"Not in the report: {name}: {why}")
    return facts, Path(f"{facts.title}-report")
