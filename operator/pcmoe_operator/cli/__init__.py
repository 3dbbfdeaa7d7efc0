"""The command line, `pcmoe`: a few lines over one function each; errors are sentences on stderr."""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from pcmoe_operator.errors import OperatorError

if TYPE_CHECKING:
    from typer.core import TyperCommand

COMMANDS = {
    "init": "manifest_commands",
    "validate": "manifest_commands",
    "plan": "manifest_commands",
    "run": "run_commands",
    "report": "run_commands",
    "exposure": "exposure_commands",
    "agreement": "manifest_commands",
    "status": "cluster_commands",
    "watch": "cluster_commands",
    "logs": "cluster_commands",
    "suspend": "cluster_commands",
    "resume": "cluster_commands",
    "must-gather": "cluster_commands",
}
"""Where each command is, in the order of the help. Only what is called is imported, which is most of its time."""
SETTINGS: dict[str, Any] = {
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "context_settings": {"max_content_width": 100},
}


class Commands(TyperGroup):
    """Commands that are imported when somebody asks for them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> "TyperCommand | None":
        """A command by its name."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"pcmoe_operator.cli.{COMMANDS[cmd_name]}")
        single = typer.Typer(add_completion=False, **SETTINGS)
        single.command(cmd_name)(getattr(module, cmd_name.replace("-", "_")))
        return typer.main.get_command(single)  # type: ignore[return-value]


app = typer.Typer(
    name="pcmoe",
    cls=Commands,
    help="Train one Mixture-of-Experts model together, with data and model parts that stay where they are.",
    no_args_is_help=True,
    **SETTINGS,
)


def tell_version(asked: bool) -> None:
    """Print the version and leave, if asked."""
    if not asked:
        return
    from importlib import metadata  # takes as long to import as all else here

    try:
        typer.echo(f"pcmoe {metadata.version('pcmoe')}")
    except metadata.PackageNotFoundError:
        typer.echo("pcmoe (not installed)")
    raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", help="Say the version and leave.", is_eager=True, callback=tell_version
    ),
) -> None:
    """Options before any command."""


def main() -> None:
    """Run the command line; an error of the user's ends in a sentence and its exit code."""
    plugin = Path(sys.argv[0]).name.startswith("kubectl-")
    try:
        app(prog_name="kubectl pcmoe" if plugin else "pcmoe")
    except OperatorError as error:
        typer.echo(f"pcmoe: {error}", err=True)
        sys.exit(error.exit_code)


def complete() -> None:
    """What kubectl calls as `kubectl_complete-pcmoe WORD…` to complete the last word, in its own format."""
    words = ["pcmoe", *sys.argv[1:]]
    os.environ["_PCMOE_COMPLETE"] = "complete_bash"
    os.environ["COMP_WORDS"] = " ".join(words)
    os.environ["COMP_CWORD"] = str(len(words) - 1)
    try:
        app(prog_name="pcmoe")
    except SystemExit:
        typer.echo(":4")  # cobra's directive: these, and no files
