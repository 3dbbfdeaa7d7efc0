"""`pcmoe status`, `watch`, `logs`, `suspend`, `resume` and `must-gather`: what is done to a consortium in a cluster."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from pcmoe_operator.errors import UsageError
from pcmoe_operator.remote.access import Access, LogRange, reach

Result = TypeVar("Result")
Output = Literal["text", "json"]
INTERRUPTED = 130
WAIT_SECONDS = 600.0
COMPLETION_SECONDS = 2.0
COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "bright_cyan", "bright_magenta", "bright_green")


def _names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of consortia for the shell; none where there is no quick answer."""

    async def found(access: Access) -> list[str]:
        return [each["metadata"]["name"] for each in await access.consortia()]

    return _completed(ctx, incomplete, found)


def _members(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of a consortium's participants for the shell."""

    async def found(access: Access) -> list[str]:
        from pcmoe_operator.remote.logs import members

        return members(await access.consortium(ctx.params["name"]))

    return _completed(ctx, incomplete, found)


def _completed(
    ctx: typer.Context, incomplete: str, found: Callable[[Access], Awaitable[list[str]]]
) -> list[str]:
    async def asked() -> list[str]:
        async with asyncio.timeout(COMPLETION_SECONDS):
            async with reach(ctx.params.get("context"), ctx.params.get("namespace")) as access:
                return await found(access)

    try:
        return [name for name in asyncio.run(asked()) if name.startswith(incomplete)]
    except Exception:  # whatever it is, a shell's prompt is no place to tell it
        return []


Name = Annotated[
    str,
    typer.Argument(help="The consortium's name.", metavar="NAME", show_default=False, autocompletion=_names),
]
Context = Annotated[
    str | None, typer.Option("--context", help="Context of the kubeconfig; the current one without it.")
]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace; the context's without it.")
]
Format = Annotated[
    Output, typer.Option("--output", "-o", help="text, or json with stable keys (docs/cli.md).")
]
Timeout = Annotated[
    float | None, typer.Option("--timeout", help="Give up after so many seconds, with 75.", min=0.1)
]


def status(
    name: Annotated[
        str | None,
        typer.Argument(
            help="One consortium; all of the namespace without it.",
            metavar="NAME",
            show_default=False,
            autocompletion=_names,
        ),
    ] = None,
    everywhere: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="Consortia of all namespaces.")
    ] = False,
    output: Format = "text",
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Say what is wrong with consortia, and what to do.

    Without NAME one line each, with the first thing that is wrong. With NAME its first line says what is wrong and what
    to do; then come the participants that run in this cluster, and the last events.

    Exit code: 0 whatever the state is; 66 if there is no such consortium.
    """
    from pcmoe_operator.remote import tables
    from pcmoe_operator.remote.summary import summary

    if name is not None and everywhere:
        raise UsageError("status: NAME is in one namespace: --namespace instead of --all-namespaces")

    async def all_of(access: Access) -> tuple[list[dict[str, Any]], str]:
        return [summary(each) for each in await access.consortia(everywhere=everywhere)], access.namespace

    if name is not None:
        from pcmoe_operator.remote import live

        shown, problem = _run(lambda access: live.look(access, name), context, namespace)
        if output == "json":
            _print_json(shown)
        else:
            tables.print_tables(*tables.all_about(shown, problem))
        return
    found, where = _run(all_of, context, namespace)
    if output == "json":
        _print_json({"consortia": found})
    elif found:
        tables.print_tables(tables.consortia_table(found, everywhere=everywhere))
    else:
        place = "in any namespace" if everywhere else f"in namespace {where}; -A looks in all"
        typer.echo(f"No consortium {place}.", err=True)


def watch(
    name: Name,
    output: Format = "text",
    timeout: Timeout = None,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines instead of a table.")] = False,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Watch a consortium until it has ended.

    On a terminal a table that renews itself, else a line per change.
    It goes on while the consortium is suspended, and when the API server goes away for a while.

    Exit code: 0 when it has Completed, 1 when it has Failed, 66 if it is deleted, 75 after --timeout, 130 after Ctrl-C.
    """
    from pcmoe_operator.remote import live

    view: live.View = live.JsonView() if output == "json" else live.PlainView()
    if output == "text" and sys.stdout.isatty() and not plain:
        view = live.LiveView()

    async def look(access: Access) -> int:
        with view:
            return await live.watch(access, name, view, live.ended, timeout)

    raise typer.Exit(_run(look, context, namespace))


def logs(  # noqa: PLR0913 - each is an option of the command
    name: Name,
    participants: Annotated[
        list[str] | None,
        typer.Argument(
            help="Whose; all that run here, and the coordinator, without them.",
            metavar="PARTICIPANT",
            show_default=False,
            autocompletion=_members,
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on, also in pods that come later.")
    ] = False,
    previous: Annotated[
        bool, typer.Option("--previous", "-p", help="Of the containers before the last restart.")
    ] = False,
    since: Annotated[
        str | None, typer.Option("--since", help="Not older than 90s, 10m, 2h or 1d.", show_default=False)
    ] = None,
    tail: Annotated[
        int | None, typer.Option("--tail", help="The last so many lines of each pod.", min=0)
    ] = None,
    output: Format = "text",
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Print the logs of a consortium's pods as one.

    Lines are in the order of time, each with its participant.
    With --follow it goes on until the consortium has ended; a pod that is started again or replaced is followed on.
    """
    from pcmoe_operator.remote import logs as of

    if follow and previous:
        raise UsageError("logs: --previous has an end: no --follow with it")
    wanted = LogRange(
        follow=follow, previous=previous, since=None if since is None else of.seconds_of(since), tail=tail
    )
    show = (
        _json_line if output == "json" else _coloured(sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    )

    async def read(access: Access) -> None:
        lines = of.lines(access, name, participants or (), wanted, _note)
        async with contextlib.aclosing(lines):
            async for line in lines:
                sys.stdout.write(show(of.shown(line)) + "\n")
                sys.stdout.flush()

    _run(read, context, namespace)


def suspend(
    name: Name,
    wait: Annotated[bool, typer.Option("--wait", help="Until no participant has a pod.")] = False,
    timeout: Timeout = WAIT_SECONDS,
    output: Format = "text",
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Suspend a consortium, and free its GPUs.

    Its nodes end within 30 s; what is stored stays.
    """
    _switch(name, suspend=True, wait=timeout if wait else None, output=output, where=(context, namespace))


def resume(
    name: Name,
    wait: Annotated[bool, typer.Option("--wait", help="Until everybody here trains.")] = False,
    timeout: Timeout = WAIT_SECONDS,
    output: Format = "text",
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Resume a suspended consortium.

    All go on after the last round that everybody has stored.
    """
    _switch(name, suspend=False, wait=timeout if wait else None, output=output, where=(context, namespace))


def must_gather(
    name: Name,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file; NAME-must-gather-TIME.tar.gz without it.", metavar="FILE.tar.gz"
        ),
    ] = None,
    operator_namespace: Annotated[
        str | None,
        typer.Option("--operator-namespace", help="Where the operator runs; pcmoe-system without it."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print what it holds as JSON.")] = False,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Take all that helps to understand a run into one file.

    Manifest and status, Jobs, pods, Events, configurations, claims, logs, /status and /metrics of every pod, and the
    operator's. No value of a Secret, no environment, no key. It takes what your rights allow; problems.txt in it says
    what it couldn't have.
    """
    from pcmoe_operator.remote import gather

    now = datetime.now(UTC)
    found = _run(lambda access: gather.Gatherer(access, name, operator_namespace).run(), context, namespace)
    path = output or gather.usual_name(name, now)
    contents = gather.write(found, path, now)
    if json_:
        _print_json({"file": str(path), "contents": contents, "problems": found.problems})
        return
    typer.echo(f"{path}: {len(contents)} files; contents.txt in it says what each is")
    if found.problems:
        typer.echo(
            f"could not be had: {len(found.problems)}; problems.txt in it says what, and why", err=True
        )


def _switch(
    name: str, *, suspend: bool, wait: float | None, output: Output, where: tuple[str | None, str | None]
) -> None:
    from pcmoe_operator.remote import live, switching

    async def act(access: Access) -> int | None:
        consortium, changed = await switching.switch(access, name, suspend=suspend)
        if output == "json":
            _print_json({"name": name, "namespace": access.namespace, "suspend": suspend, "changed": changed})
        else:
            typer.echo(switching.foretold(consortium, suspend=suspend, changed=changed))
        if wait is None:
            return None
        view = live.SilentView() if output == "json" else live.PlainView()
        done = switching.settled(consortium["metadata"]["generation"], suspend=suspend)
        return await live.watch(access, name, view, done, wait)

    raise typer.Exit(_run(act, *where) or 0)


def _run(work: Callable[[Access], Awaitable[Result]], context: str | None, namespace: str | None) -> Result:
    """Do something with a session; Ctrl-C ends with 130, a reader that went away with 0."""

    async def inside() -> Result:
        async with reach(context, namespace) as access:
            return await work(access)

    try:
        return asyncio.run(inside())
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to flush
        raise typer.Exit from None


def _print_json(found: object) -> None:
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False))


def _json_line(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False)


def _coloured(colour: bool) -> Callable[[dict[str, Any]], str]:
    """How a line is shown: its participant before it, in a colour of its own. Control characters are left out."""
    colours: dict[str, str] = {}

    def show(line: dict[str, Any]) -> str:
        who = line["participant"]
        colours.setdefault(who, COLOURS[len(colours) % len(COLOURS)])
        text = "".join(c for c in line["line"] if c.isprintable() or c == "\t")
        return f"{typer.style(who, fg=colours[who]) if colour else who} {text}"

    return show


def _note(sentence: str) -> None:
    typer.echo(f"pcmoe: {sentence}", err=True)
