"""`pcmoe run` and `pcmoe report`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pcmoe_operator.errors import OperatorError, RunError, UsageError
from pcmoe_operator.local.folder import RunFolder
from pcmoe_operator.local.prepare import PreparedRun, VolumeOption, prepare, resume, software
from pcmoe_operator.local.supervise import Outcome, supervise
from pcmoe_operator.local.view import LiveView, PlainView, View
from pcmoe_operator.report import write_report


def tell_version(asked: bool) -> None:
    """Print the version and leave, if asked."""
    if asked:
        typer.echo(f"pcmoe {software().get('pcmoe', '(not installed)')}")
        raise typer.Exit


def run(
    manifest: Annotated[Path | None, typer.Argument(help="The manifest, YAML.", show_default=False)] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the new run; must be empty or not exist.")
    ] = None,
    resume_folder: Annotated[
        Path | None,
        typer.Option("--resume", help="Folder of a run to continue from its last checkpoint.", metavar="DIR"),
    ] = None,
    volume: Annotated[
        list[str] | None,
        typer.Option(
            help="Where a participant's data are: NAME:dataset=DIR, NAME:model=DIR, "
            "NAME:order-secret=FILE. Without it: volumes/NAME/{dataset,model} beside the manifest. "
            "May be given many times.",
            metavar="NAME:KIND=PATH",
        ),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines instead of a table.")] = False,
) -> None:
    """Train: one process per participant on this machine, over mutual TLS, as in production.

    `pcmoe run MANIFEST --output DIR` starts a new run. `pcmoe run --resume DIR` continues one; with a
    MANIFEST too, it goes on with that one (more rounds, say). Logs, checkpoints and the report are in DIR.

    A small process more, the coordinator, keeps who is in and which rounds all have stored. With onPeerLoss
    Wait, a node that dies by a signal or loses its peers is started again, three times in a row at most, while
    the others wait; then all go on from the last round they have in common. With Fail its end ends the run.
    The coordinator is started again whenever it dies: training goes on without it for a while.

    Exit code: 0 when the last round is stored; 64 for a bad manifest, folder or volume; else the code of the
    process that failed first; 130 after Ctrl-C, 143 after SIGTERM.
    """
    options = tuple(VolumeOption.parse(text) for text in volume or ())
    console = Console()
    if resume_folder is not None:
        if output is not None or options:
            raise UsageError("--resume takes folder and volumes from the run: no --output, no --volume")
        folder = RunFolder(resume_folder.resolve())
        folder.load()
        with folder.locked():
            _train(resume(resume_folder, manifest), console, plain=plain, resumed=True)
        return
    if manifest is None or output is None:
        raise UsageError("say `pcmoe run MANIFEST --output DIR` or `pcmoe run --resume DIR`")
    prepared = prepare(manifest, output, options)
    with prepared.folder.locked():
        _train(prepared, console, plain=plain, resumed=False)


def _train(prepared: PreparedRun, console: Console, *, plain: bool, resumed: bool) -> None:
    """Run to the end, report, and leave with the run's exit code."""
    folder = prepared.folder.path
    _say(console, f"Logs: {folder}/NAME/node.log   checkpoints: {folder}/NAME/checkpoint")
    table = console.is_terminal and not plain
    view: View = LiveView(console, prepared.title) if table else PlainView(console)
    outcome = supervise(prepared.crew, view, resumed=resumed)
    _report(folder, console)
    _finish(outcome, folder)


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


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, finished or not.", show_default=False)],
) -> None:
    """Write report.html and report.json of a run anew."""
    written = write_report(folder)
    typer.echo(f"Report: {written.page}")
    typer.echo(f"Figures: {written.data}")
