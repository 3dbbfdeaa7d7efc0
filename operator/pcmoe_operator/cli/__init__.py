"""The command line, `pcmoe`: a few lines over one function each; errors are sentences on stderr."""

import sys

import typer

from pcmoe_operator.cli import manifest_commands, run_commands
from pcmoe_operator.errors import OperatorError

app = typer.Typer(
    name="pcmoe",
    help="Train one Mixture-of-Experts model together, with data and model parts that stay where they are.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100},
)


@app.callback()
def options(
    version: bool = typer.Option(
        False,
        "--version",
        help="Say the version and leave.",
        is_eager=True,
        callback=run_commands.tell_version,
    ),
) -> None:
    """Options before any command."""


for command in (
    manifest_commands.init,
    manifest_commands.validate,
    manifest_commands.plan,
    run_commands.run,
    run_commands.report,
    manifest_commands.agreement,
):
    app.command()(command)


def main() -> None:
    """Run the command line; an error of the user's ends in a sentence and its exit code."""
    try:
        app()
    except OperatorError as error:
        typer.echo(f"pcmoe: {error}", err=True)
        sys.exit(error.exit_code)
