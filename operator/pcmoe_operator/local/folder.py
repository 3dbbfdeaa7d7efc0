"""What lies where in the folder of a run, and the record that makes it one: `run.json`."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pcmoe_operator.errors import UsageError
from pcmoe_operator.pki import write_private

RECORD = "run.json"
MANIFEST = "manifest.yaml"
TARGETS = "prometheus-targets.json"
"""For a Prometheus on this machine: `file_sd_configs` takes it as it is."""
PRIVATE_FOLDER = 0o700


@dataclass(frozen=True, kw_only=True, slots=True)
class Volumes:
    """Where a participant's data lie on this machine; absolute paths."""

    dataset: str
    model: str | None = None
    """None: the model starts from random weights."""
    order_secret: str | None = None
    """File with the secret that orders its data; None: the node draws one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a process of a run can be reached; changes when the run is resumed."""

    status: str
    """URL under which it answers `/status` and `/metrics`."""
    endpoint: str
    """`host:port` that other processes of the run connect to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seat(Address):
    """One participant in a run: its addresses and its volumes."""

    volumes: Volumes


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """`run.json`: what a later `--resume` and the report need to know."""

    version: str
    """Version of the software that made the run."""
    frozen: str
    """Digest of what may not change once a round is stored: id, model, experts, participants."""
    threads: int
    """CPU threads of each node."""
    cores: int
    """CPU cores that this machine gave the run."""
    software: Mapping[str, str]
    """Versions of what computes: Python, torch and so on, and the platform."""
    participants: Mapping[str, Seat]
    coordinator: Address

    def to_json(self) -> dict[str, Any]:
        """The record as written."""
        given = asdict(self)
        return {"manifest": MANIFEST, **given}

    @staticmethod
    def parse(text: str) -> "RunRecord":
        """The record in a `run.json`; raises ValueError, KeyError or TypeError for anything else."""
        given = json.loads(text)
        seats = {
            name: Seat(status=seat["status"], endpoint=seat["endpoint"], volumes=Volumes(**seat["volumes"]))
            for name, seat in given["participants"].items()
        }
        return RunRecord(
            version=given["version"],
            frozen=given["frozen"],
            threads=given["threads"],
            cores=given["cores"],
            software=given["software"],
            participants=seats,
            coordinator=Address(**given["coordinator"]),
        )


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of a run."""

    path: Path

    @property
    def manifest(self) -> Path:
        """The manifest as given."""
        return self.path / MANIFEST

    def of(self, participant: str) -> Path:
        """A participant's own folder, or the coordinator's: no participant may be called so."""
        return self.path / participant

    def certificates(self, participant: str) -> Path:
        """Its CA and its certificate; the coordinator has only a certificate."""
        return self.of(participant) / "certificates"

    def config(self, participant: str) -> Path:
        """Its configuration."""
        return self.of(participant) / "config.json"

    def make(self) -> None:
        """Make the folder of a new run; refuses one that holds anything."""
        if (self.path / RECORD).exists():
            raise UsageError(
                f"{self.path} holds a run already: continue it with `pcmoe run --resume {self.path}`, "
                "or choose another folder"
            )
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UsageError(f"{self.path} is not an empty folder: choose a new one for the run")
        try:
            self.path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.path} can't be made: {error.strerror}") from error

    def load(self) -> RunRecord:
        """The record of a run that exists."""
        path = self.path / RECORD
        try:
            return RunRecord.parse(path.read_text())
        except FileNotFoundError:
            raise UsageError(f"{self.path} holds no run: there is no {RECORD} in it") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path} can't be used: {type(error).__name__}: {error}") from error

    def store(self, record: RunRecord, consortium: str) -> None:
        """Write where the metrics are, then the record that makes the folder a run; each whole or not at all."""
        write_private(self.path / TARGETS, json.dumps(_targets(record, consortium), indent=2) + "\n")
        write_private(self.path / RECORD, json.dumps(record.to_json(), indent=2) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from running the same folder at the same time; the lock dies with its process."""
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"{self.path} is in use by another `pcmoe run`") from None
            yield


def _targets(record: RunRecord, consortium: str) -> list[dict[str, Any]]:
    """Every process with the labels that its pod would give it; the coordinator is no participant."""
    labels: dict[str, dict[str, str]] = {record.coordinator.status: {"consortium": consortium}}
    for name, seat in record.participants.items():
        labels[seat.status] = {"consortium": consortium, "participant": name}
    return [
        {"targets": [status.removeprefix("http://")], "labels": given} for status, given in labels.items()
    ]
