"""Rounds on disk: tensors and a JSON beside them, complete or not there at all.

    <directory>/round-000012/state.safetensors   weights, masters, moments
    <directory>/round-000012/state.json          step, secret, digests, data fingerprint: mode 0600

A round is written under a temporary name, fsynced, and renamed; the folder's own entry is fsynced too. A reader
takes the newest complete one.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pcmoe_node.errors import ConfigError, ResourceError

_ROUND = re.compile(r"round-(\d{6})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """What must be known beside the tensors to go on as if nothing had happened."""

    round: int
    step: int
    """Steps decided so far."""
    secret: str
    """The participant's order secret, hex."""
    frozen: str
    """Digest of what must not change between runs: agreement id, model, placement, participants."""
    agreement_digest: str
    corpus: str
    """Fingerprint of the data, keyed by the secret."""
    tokens: int
    """Supervised tokens trained on so far."""


class Checkpoints:
    """The rounds one participant has stored."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self._keep = keep
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob("*.tmp"):
            shutil.rmtree(leftover)

    def rounds(self) -> list[int]:
        """Complete rounds, ascending."""
        found = (_ROUND.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def newest(self) -> int:
        """The newest complete round; 0 where there is none."""
        return max(self.rounds(), default=0)

    def save(self, position: Position, tensors: Mapping[str, Tensor]) -> None:
        """Store a round durably, then drop rounds beyond the number to keep."""
        final = self._folder(position.round)
        temporary = final.with_suffix(".tmp")
        try:
            if temporary.exists():
                shutil.rmtree(temporary)
            temporary.mkdir(mode=0o700)
            save_file({name: t.contiguous() for name, t in tensors.items()}, temporary / "state.safetensors")
            descriptor = os.open(temporary / "state.json", os.O_WRONLY | os.O_CREAT, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(asdict(position), file, indent=1)
            for path in (temporary / "state.safetensors", temporary / "state.json", temporary):
                _fsync(path)
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
            _fsync(self.directory)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ResourceError(f"{final}: can't be stored: {reason}") from error
        for old in self.rounds()[: -self._keep]:
            shutil.rmtree(self._folder(old))

    def load(self, round_number: int) -> tuple[Position, dict[str, Tensor]]:
        """A stored round; `ConfigError` where it isn't there or isn't whole."""
        folder = self._folder(round_number)
        try:
            position = Position(**json.loads((folder / "state.json").read_text("utf-8")))
            return position, load_file(folder / "state.safetensors")
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise ConfigError(f"{folder}: can't be resumed from: {type(error).__name__}") from error

    def drop_after(self, round_number: int) -> None:
        """Forget rounds that not everybody has."""
        for later in self.rounds():
            if later > round_number:
                shutil.rmtree(self._folder(later))

    def _folder(self, round_number: int) -> Path:
        return self.directory / f"round-{round_number:06d}"


def common_round(newest: Mapping[str, int]) -> int:
    """The round everybody can resume from, given each participant's newest.

    A participant is at most one round behind, because no step of a round is decided before everybody has stored the
    round before; more means that it lost its disk.
    """
    first, last = min(newest.values()), max(newest.values())
    if last - first > 1:
        behind = ", ".join(f"{name} (round {r})" for name, r in sorted(newest.items()) if r < last - 1)
        raise ConfigError(
            f"checkpoint_directory: others have stored round {last}, but {behind} is further behind than one round "
            "can be: its checkpoints are lost or not mounted"
        )
    return first


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
