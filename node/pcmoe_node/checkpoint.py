"""Rounds on disk: tensors and a JSON beside them, complete or not there at all.

    <directory>/round-000012/state.safetensors   weights, masters, moments
    <directory>/round-000012/state.json          step, secret, digests, data fingerprint: mode 0600
    <directory>/membership.json                  the last view accepted, the last round known to be committed
    <directory>/finished                         everybody has taken leave of everybody
    <directory>/owner                            the process that writes here

A round is written under a temporary name, fsynced, and renamed; the folder's own entry is fsynced too. A reader
takes the newest complete one.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pcmoe_node.errors import ConfigError, IdentityError, StorageError

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


@dataclass(frozen=True, slots=True)
class Membership:
    """What a node must not forget of the views it was in."""

    view: int = 0
    """The highest number of a view it ever accepted."""
    committed: int = 0
    """The newest round it knows to be committed."""


def membership_in(directory: Path) -> Membership:
    """What the participant that stores its rounds there remembers; nothing yet where nothing is written."""
    path = directory / "membership.json"
    try:
        found = Membership(**json.loads(path.read_text("utf-8")))
        if not all(isinstance(number, int) and number >= 0 for number in (found.view, found.committed)):
            raise ValueError("must be numbers")
        return found
    except FileNotFoundError:
        return Membership()
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: can't be used: {type(error).__name__}") from error


def round_folder(directory: Path, round_number: int) -> Path:
    """Where a participant stores a round."""
    return directory / f"round-{round_number:06d}"


class Checkpoints:
    """The rounds one participant has stored."""

    def __init__(self, directory: Path, keep: int) -> None:
        """Keeps the newest `keep` rounds, at least 2, and the newest committed one."""
        self.directory = directory
        self._keep = keep
        with _faults_of(directory, "used"):
            directory.mkdir(parents=True, exist_ok=True)
            for leftover in directory.glob("*.tmp"):
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink()
            self.membership = membership_in(directory)
        self._owner: str | None = None

    def claim(self, incarnation: str) -> None:
        """Be the one that writes here. Whoever did before finds out before it writes again."""
        with _faults_of(self.directory, "used"):
            (self.directory / "owner").write_text(incarnation)
            _fsync(self.directory / "owner")
        self._owner = incarnation

    def check_owner(self) -> None:
        """Raise an `IdentityError` if another process has claimed this folder since.

        Kubernetes may start a second pod while the first, cut off, still lives; both may reach one volume.
        """
        try:
            mine = self._owner is None or (self.directory / "owner").read_text() == self._owner
        except OSError:
            return  # what is written next will say what is wrong
        if not mine:
            raise IdentityError(f"{self.directory}: another process of this participant writes here since")

    def rounds(self) -> tuple[int, ...]:
        """Complete rounds, ascending."""
        found = (_ROUND.fullmatch(path.name) for path in self.directory.iterdir())
        return tuple(sorted(int(match[1]) for match in found if match))

    def newest(self) -> int:
        """The newest complete round; 0 where there is none."""
        return max(self.rounds(), default=0)

    def remember(self, *, view: int | None = None, committed: int | None = None) -> None:
        """Store, durably, that a view was accepted, or that a round is committed; either only ever rises."""
        before = self.membership
        now = Membership(max(before.view, view or 0), max(before.committed, committed or 0))
        if now == before:
            return
        self.check_owner()
        path = self.directory / "membership.json"
        temporary = path.with_suffix(".json.tmp")
        with _faults_of(path, "stored"):
            temporary.write_text(json.dumps(asdict(now)))
            _fsync(temporary)
            temporary.rename(path)
            _fsync(self.directory)
        self.membership = now
        self._prune()

    def finish(self, rounds: int) -> None:
        """Remember that all have stored the last of `rounds`, and nobody needs this participant any more."""
        self.check_owner()
        with _faults_of(self.directory, "used"):
            (self.directory / "finished").write_text(str(rounds))
            _fsync(self.directory / "finished")
            _fsync(self.directory)

    def finished(self, rounds: int) -> bool:
        """Whether a run of `rounds` is over for everybody; one of fewer rounds says nothing about it."""
        path = self.directory / "finished"
        return path.exists() and path.read_text() == str(rounds)

    def save(self, position: Position, tensors: Mapping[str, Tensor]) -> int:
        """Store a round durably, then drop rounds that nobody can need any more; the bytes it takes."""
        self.check_owner()
        final = self._folder(position.round)
        temporary = final.with_suffix(".tmp")
        with _faults_of(final, "stored"):
            if temporary.exists():
                shutil.rmtree(temporary)
            temporary.mkdir(mode=0o700)
            save_file({name: t.contiguous() for name, t in tensors.items()}, temporary / "state.safetensors")
            descriptor = os.open(temporary / "state.json", os.O_WRONLY | os.O_CREAT, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(asdict(position), file, indent=1)
            files = (temporary / "state.safetensors", temporary / "state.json")
            for path in (*files, temporary):
                _fsync(path)
            size = sum(path.stat().st_size for path in files)
            if final.exists():
                self._drop(position.round)
            temporary.rename(final)
            _fsync(self.directory)
        self._prune()
        return size

    def _prune(self) -> None:
        """Keep the newest rounds, and the newest committed one.

        Members are never more than one round apart, so two rounds each are enough to have one in common even while
        nothing is committed because the coordinator is away: the disk fills no further.
        """
        rounds = self.rounds()
        kept = {*rounds[-self._keep :], max((r for r in rounds if r <= self.membership.committed), default=0)}
        for old in rounds:
            if old not in kept:
                self._drop(old)

    def load(self, round_number: int) -> tuple[Position, dict[str, Tensor]]:
        """A stored round; `ConfigError` where it isn't there or isn't whole."""
        path = self._folder(round_number) / "state.safetensors"
        position = self.position(round_number)
        try:
            return position, load_file(path)
        except (OSError, ValueError, SafetensorError) as error:
            raise ConfigError(f"{path.parent}: can't be resumed from: {type(error).__name__}") from error

    def position(self, round_number: int) -> Position:
        """Where a stored round stands, without its tensors; `ConfigError` as in `load`."""
        folder = self._folder(round_number)
        try:
            return Position(**json.loads((folder / "state.json").read_text("utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{folder}: can't be resumed from: {type(error).__name__}") from error

    def drop_after(self, round_number: int) -> None:
        """Forget rounds that not everybody has."""
        self.check_owner()
        for later in self.rounds():
            if later > round_number:
                self._drop(later)

    def _drop(self, round_number: int) -> None:
        """Take a round out of sight, then delete it: one that is half deleted must not look like a stored one."""
        folder = self._folder(round_number)
        gone = folder.with_name(f"{folder.name}.old.tmp")
        with _faults_of(folder, "removed"):
            if gone.exists():
                shutil.rmtree(gone)
            folder.rename(gone)
            shutil.rmtree(gone)

    def _folder(self, round_number: int) -> Path:
        return round_folder(self.directory, round_number)


@contextmanager
def _faults_of(path: Path, done: str) -> Iterator[None]:
    """What the file system refuses, as a `StorageError` that names path and reason."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise StorageError(f"{path}: can't be {done}: {reason}") from error


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
