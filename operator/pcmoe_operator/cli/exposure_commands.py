"""`pcmoe exposure`."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pcmoe_operator.report.exposure import (
    Exposure,
    PeerExposure,
    exposure_figures,
    exposures_in,
    share,
    times_shown,
)
from pcmoe_operator.units import size

FORMAT = "pcmoe-exposure-sums/1"
PARTS = {
    "hiddenStates": "hidden states",
    "gradients": "gradients",
    "outputs": "outputs of its own experts",
    "returnedGradients": "gradients of its own experts' inputs",
    "weights": "weights of choices",
    "weightGradients": "gradients of weights",
    "experts": "chosen experts",
    "counts": "choices per row",
    "padding": "padding",
    "gaps": "alignment",
    "header": "headers",
}


class Output(StrEnum):
    """How to print."""

    TEXT = "text"
    JSON = "json"


def exposure(
    folder: Annotated[Path, typer.Argument(help="Folder of a local run.", metavar="DIR", show_default=False)],
    participant: Annotated[
        str | None, typer.Option(help="Only this one's; all without it.", metavar="NAME")
    ] = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="text or json.")] = Output.TEXT,
) -> None:
    """Say what left each participant, and to whom: tokens, gradients, documents, bytes.

    From DIR/NAME/log/exposure.jsonl, the ledger that a participant keeps for itself. Tokens count each time they are
    read, also in a round that is done again. Hidden states and gradients are text-equivalent to whoever gets them.

    Exit code: 0; 64 where there is no ledger, or it can't be read.
    """
    found = exposures_in(folder, participant)
    if output is Output.JSON:
        figures = {name: exposure_figures(each) for name, each in found.items()}
        typer.echo(json.dumps({"format": FORMAT, "participants": figures}, indent=2, ensure_ascii=False))
        return
    typer.echo("\n\n".join("\n".join(_told(each)) for each in found.values()))


def _told(exposure: Exposure) -> list[str]:
    again = f" ({exposure.again} done again)" if exposure.again else ""
    lines = [
        f"{exposure.participant}: {_rounds(exposure)}{again}, "
        f"{exposure.tokens:,} tokens read in training, {exposure.held_out:,} in evaluations"
    ]
    if exposure.refused_frames:
        lines.append(f"  frames refused: {exposure.refused_frames}")
    if exposure.open_views:
        views = ", ".join(map(str, exposure.open_views))
        lines.append(
            f"  view {views}: its end is not written down (it goes on, or was killed): at least this much"
        )
    if not exposure.peers:
        lines.append("  nothing left: there is nobody else")
    for name, peer in sorted(exposure.peers.items()):
        lines += [f"  to {name}:", *(f"    {what:<22}{words}" for what, words in _rows(exposure, peer))]
    return lines


def _rounds(exposure: Exposure) -> str:
    """Those of training; round 0 is an evaluation."""
    number = len(exposure.rounds - {0})
    return f"{number} round{'' if number == 1 else 's'}"


def _rows(exposure: Exposure, peer: PeerExposure) -> list[tuple[str, str]]:
    times = ", ".join(f"{often}: {number:,}" for often, number in times_shown(exposure, peer).items())
    rows = [
        ("tokens seen", f"{_of(peer.tokens, exposure.tokens)}, at one layer or more"),
        ("next tokens", f"{_of(peer.targets, exposure.targets)} by their gradient"),
        ("held-out tokens seen", _of(peer.held_out, exposure.held_out)),
        ("documents", f"{_of(len(peer.documents), exposure.documents)}; by pieces seen: {times or 'none'}"),
        ("smallest request", "none" if peer.smallest is None else f"{peer.smallest:,} rows"),
        ("sent about own data", _bytes(peer.asked)),
        ("sent in answer", _bytes(peer.answered)),
        ("sent about steps", size(peer.control)),
        ("sent in all", f"{size(peer.bytes)} in {peer.messages:,} messages"),
    ]
    rows += [("certificate", leaf) for leaf in sorted(peer.leaves)]
    rows += [("signed by one of", authority) for authority in sorted(peer.authorities)]
    return rows


def _of(part: int, whole: int) -> str:
    percent = share(part, whole)
    return "none" if percent is None else f"{part:,} of {whole:,} ({percent:.1f} %)"


def _bytes(parts: dict[str, int]) -> str:
    known = [*PARTS, *sorted(set(parts) - set(PARTS))]
    told = [f"{size(parts[part])} {PARTS.get(part, part)}" for part in known if parts.get(part)]
    return f"{size(sum(parts.values()))}: {', '.join(told)}" if told else "nothing"
