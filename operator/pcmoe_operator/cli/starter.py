"""A first manifest from folders of text: what `pcmoe init` writes."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcmoe_node.errors import NodeError
from pcmoe_node.fingerprint import fingerprint
from pcmoe_operator.constants import BYTE_LEVEL_VOCABULARY, COORDINATOR, MAX_OBJECT_NAME, MAX_PARTICIPANT_NAME
from pcmoe_operator.errors import UsageError
from pcmoe_operator.shape import parse_config, read_shape
from pcmoe_operator.spec import read_yaml

_SAMPLE_RECORDS = 50
_LIKELY_FIELDS = ("text", "content", "body", "document")
_IGNORED_KEYS = (
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "torch_dtype",
    "transformers_version",
)

_TRIAL_MODEL = {
    "model_type": "olmoe",
    "vocab_size": BYTE_LEVEL_VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 1024,
    "eos_token_id": 256,
    "pad_token_id": 257,
}
"""What is trained, from random weights, when no model is given: enough to see a loss fall."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Records:
    """What lies in one folder."""

    participant: str
    folder: Path
    format: str
    text_field: str | None
    """None for text files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartingModel:
    """The architecture, and the checkpoint that has it."""

    config: dict[str, Any]
    fingerprint: str | None
    """None: random weights."""
    tokenizer: str


def find_records(folders: Sequence[Path]) -> tuple[Records, ...]:
    """What each folder holds; participants are called as their folders are. UsageError if one holds nothing."""
    taken: set[str] = {COORDINATOR}
    return tuple(_records(folder, _free_name(_speaking_name(folder), taken)) for folder in folders)


def _speaking_name(folder: Path) -> str:
    """The folder's name, or its parent's if it says nothing about whose it is."""
    whole = folder.resolve()
    return whole.parent.name if whole.name in ("data", "dataset") else whole.name


def _free_name(folder: str, taken: set[str]) -> str:
    name = label(folder, MAX_PARTICIPANT_NAME - 3) or "participant"
    free = next(n for n in (name, *(f"{name}-{i}" for i in range(2, 100))) if n not in taken)
    taken.add(free)
    return free


def label(text: str, longest: int = MAX_OBJECT_NAME) -> str:
    """Text as a DNS label; empty if nothing of it can stay."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:longest].strip("-")


def _records(folder: Path, participant: str) -> Records:
    if not folder.is_dir():
        raise UsageError(
            f"{folder}: is not a folder; give one folder of *.txt or *.jsonl files per participant"
        )
    found = {suffix: sorted(folder.rglob(f"*{suffix}")) for suffix in (".txt", ".jsonl")}
    size = {suffix: sum(file.stat().st_size for file in files) for suffix, files in found.items()}
    if not any(size.values()):
        raise UsageError(f"{folder}: holds no *.txt and no *.jsonl file with anything in it")
    if size[".txt"] >= size[".jsonl"]:
        return Records(participant=participant, folder=folder, format="Text", text_field=None)
    field = _text_field(next(file for file in found[".jsonl"] if file.stat().st_size))
    return Records(participant=participant, folder=folder, format="JSONLines", text_field=field)


def _text_field(file: Path) -> str:
    """The field with the text: of those that are text in every record looked at, a likely name or the longest."""
    lengths: dict[str, int] | None = None
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in zip(range(1, _SAMPLE_RECORDS + 1), lines, strict=False):
            if line.strip():
                texts = _texts(file, number, line)
                lengths = {
                    name: size + (lengths or {}).get(name, 0)
                    for name, size in texts.items()
                    if lengths is None or name in lengths
                }
    if not lengths:
        raise UsageError(f"{file}: no field is text in each of the first {_SAMPLE_RECORDS} records")
    likely = [name for name in _LIKELY_FIELDS if name in lengths]
    return likely[0] if likely else max(lengths, key=lambda name: lengths[name])


def _texts(file: Path, number: int, line: str) -> dict[str, int]:
    """Length of every text in a record. Errors name the record and never its content."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise UsageError(f"{file}: record {number} is not a JSON object")
    return {name: len(value) for name, value in record.items() if isinstance(value, str)}


def trial_model() -> StartingModel:
    """A small model with random weights over bytes."""
    return StartingModel(config=dict(_TRIAL_MODEL), fingerprint=None, tokenizer="ByteLevel")


def find_model(folder: Path) -> StartingModel:
    """The model in a checkpoint folder; reads every byte of its weights once, for the fingerprint."""
    try:
        config = parse_config((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{folder}/config.json: can't be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{folder}/config.json: is not a configuration: {error}") from None
    config = {key: value for key, value in config.items() if key not in _IGNORED_KEYS}
    read_shape(config, str(folder / "config.json"))
    try:
        found = fingerprint(folder)
    except NodeError as error:
        raise UsageError(str(error)) from error
    has_tokenizer = (folder / "tokenizer.json").exists() or (folder / "tokenizer_config.json").exists()
    return StartingModel(
        config=config, fingerprint=found, tokenizer="Checkpoint" if has_tokenizer else "ByteLevel"
    )


def starter(name: str, records: Sequence[Records], model: StartingModel) -> str:
    """The text of a commented manifest."""
    shape = read_shape(model.config)
    local_layers = 1 if len(shape.expert_layers) > 1 else 0
    learning_rate = "2e-5" if model.fingerprint else "1e-3"
    participants = "\n".join(f"      - {{name: {_scalar(entry.participant)}}}" for entry in records)
    local = "\n".join(map(_local, records))
    return f"""\
# Written by `pcmoe init`. `pcmoe plan` says what it takes, `pcmoe run` trains it on this machine.
apiVersion: pcmoe.dev/v1alpha1
kind: PCMoEConsortium
metadata: {{name: {_scalar(label(name))}}}
spec:
  # What all partners hold identically; `pcmoe agreement` prints its digest.
  agreement:
    id: {_scalar(label(name))}
    model:
      source:
{_source(model)}
      dtype: float32               # or bfloat16: half the memory of compute, float32 masters
      tokenizer: {model.tokenizer}
    experts:
      placement: RoundRobin        # or CapacityWeighted, by participants[].capacity, or Pinned
      localLayers: {{atEnd: {local_layers}}}      # last layers whose experts everyone holds itself; see `pcmoe plan`
    training:
      schedule: Concurrent         # or Sequential: owners take turns
      rounds: 10
      stepsPerRound: {_steps(len(records))}
      microBatchesPerStep: 2
      inFlight: 2                  # micro-batches travelling at once
      sequencesPerMicroBatch: 4
      sequenceLength: {min(256, shape.max_positions)}
      optimizer: {{learningRate: "{learning_rate}", warmupSteps: 10}}
      evaluation: {{sequences: 16}}  # held-out sequences per participant and round
    transport: {{wireDtype: float32}}   # bfloat16 halves what travels
    coordinator: {_scalar(min(entry.participant for entry in records))}
    participants:
{participants}
  # What runs here, and on which records. Nothing of this is agreed on, and no record leaves its participant.
  local:
{local}
"""


def _scalar(text: str) -> str:
    """Text in YAML: quoted where `no` or `2026` would be read as something else."""
    return text if read_yaml(f"text: {text}")["text"] == text else json.dumps(text)


def _steps(participants: int) -> int:
    """About 20, and a multiple of the participants, so that turns come out even."""
    return max(participants, 20 // participants * participants)


def _source(model: StartingModel) -> str:
    config = "'" + json.dumps(model.config, ensure_ascii=False).replace("'", "''") + "'"
    if model.fingerprint is None:
        comment = "# Random weights, to try it out; `pcmoe init --model DIR` starts from a checkpoint."
        return f"        {comment}\n        config: {config}"
    return f"        checkpoint:\n          fingerprint: {model.fingerprint}\n          config: {config}"


def _local(entry: Records) -> str:
    dataset = f'path: ".", format: {entry.format}'
    if entry.text_field is not None:
        dataset += f", textField: {json.dumps(entry.text_field, ensure_ascii=False)}"
    return f"    - name: {_scalar(entry.participant)}\n      dataset: {{{dataset}}}"


def run_command(manifest: Path, records: Sequence[Records], model: Path | None) -> str:
    """The command that trains the manifest on these folders."""
    volumes = [f"--volume {entry.participant}:dataset={_shell(entry.folder)}" for entry in records]
    if model is not None:
        volumes += [f"--volume {entry.participant}:model={_shell(model)}" for entry in records]
    return " \\\n    ".join(
        [f"pcmoe run {_shell(manifest)} --output {_shell(manifest.with_suffix(''))}-run", *volumes]
    )


def _shell(path: Path) -> str:
    text = str(path)
    return text if re.fullmatch(r"[\w./+-]+", text) else "'" + text.replace("'", "'\\''") + "'"
