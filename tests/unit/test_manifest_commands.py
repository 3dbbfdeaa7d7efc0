"""`pcmoe init`, `validate`, `plan` and `agreement` as commands."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tests.builders import OLMOE, architecture, consortium, manifest
from tests.unit.clustered import here
from typer.testing import CliRunner, Result

from pcmoe_operator.agreement import canonical, digest
from pcmoe_operator.cli import app
from pcmoe_operator.errors import ManifestError, UsageError
from pcmoe_operator.plan import make_plan
from pcmoe_operator.spec import load

SAMPLES = Path(__file__).parents[2] / "manifests" / "samples"
CANARY = "Frau Mustermann, geb. 1951"


def pcmoe(*arguments: object) -> Result:
    """Run a command; errors of the user's come out as exceptions, which `main` turns into sentences."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def refusal(*arguments: object) -> str:
    result = pcmoe(*arguments)
    assert isinstance(result.exception, UsageError | ManifestError), result.output
    assert result.exception.exit_code == 64
    return str(result.exception)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return written(tmp_path / "good.yaml", manifest(3))


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content, indent=2))
    return path


def test_validate_says_who_takes_part_and_both_digests(good: Path) -> None:
    result = pcmoe("validate", good)
    assert result.exit_code == 0
    for said in ("valid", "berlin, lyon, oslo", digest(consortium(3)), make_plan(consortium(3)).digest):
        assert said in result.output


def test_validate_tells_every_fault_in_a_line_of_its_own(tmp_path: Path) -> None:
    changes = {"agreement.training.inFlight": 9, "agreement.transport.mode": "HTTP"}
    lines = refusal("validate", written(tmp_path / "bad.yaml", manifest(2, changes))).splitlines()
    assert lines[0] == "the manifest breaks 2 rules:"
    assert lines[1].startswith("  spec.agreement.training.inFlight: is 9; must be at most")
    assert lines[2].endswith("[enum]")


def test_validate_warns_of_decimals_that_kubectl_would_refuse(tmp_path: Path, good: Path) -> None:
    raw = manifest(2, {"agreement.training.optimizer": {"learningRate": 0.001}})
    result = pcmoe("validate", written(tmp_path / "unquoted.yaml", raw))
    assert result.exit_code == 0
    assert "kubectl apply will refuse it: spec.agreement.training.optimizer.learningRate" in result.stderr
    assert pcmoe("validate", good).stderr == ""


def test_validate_says_what_a_cluster_needs_only_if_it_is_asked_to() -> None:
    assert pcmoe("validate", SAMPLES / "pilot.yaml").exit_code == 0
    lines = refusal("validate", SAMPLES / "pilot.yaml", "--cluster").splitlines()
    assert lines[0] == "the manifest breaks 12 rules:"
    assert lines[1].startswith(
        "  spec.local[0].volumes.dataset: is missing; a participant in a cluster needs"
    )
    result = pcmoe("validate", SAMPLES / "suspended.yaml", "--cluster")
    assert (result.exit_code, "suspended.yaml: valid, also in a cluster" in result.output) == (0, True)


def test_validate_for_a_cluster_tells_all_that_the_api_server_and_the_operator_would(tmp_path: Path) -> None:
    decimal = {"agreement.training.optimizer": {"learningRate": 0.001}}
    partners = manifest(2, {"local": here(("lyon",))} | decimal)
    lines = refusal("validate", written(tmp_path / "partners.yaml", partners), "--cluster").splitlines()
    assert lines[0] == "the manifest breaks 3 rules:"
    assert lines[1].startswith("  spec.agreement.training.optimizer.learningRate: is 0.001; ")
    assert "has no caBundle of berlin" in lines[2] and "has no endpoint of berlin" in lines[3]
    assert "spec.local: is missing" in refusal(
        "validate", written(tmp_path / "bare.yaml", manifest(2)), "--cluster"
    )


def test_agreement_prints_text_and_digest(good: Path) -> None:
    assert pcmoe("agreement", good).output.splitlines() == [canonical(consortium(3)), digest(consortium(3))]


def test_two_agreements_that_are_the_same_end_in_0(good: Path, tmp_path: Path) -> None:
    other = written(
        tmp_path / "other.yaml", manifest(3, {"suspend": True, "agreement.transport.connections": 2})
    )
    result = pcmoe("agreement", good, other)
    assert (result.exit_code, "the same" in result.output) == (0, True)


def test_two_agreements_that_differ_end_in_1_with_paths_and_both_values(good: Path, tmp_path: Path) -> None:
    changes = {"agreement.training.seed": 8, "agreement.participants[0].capacity": 5}
    other = written(tmp_path / "other.yaml", manifest(3, changes))
    result = pcmoe("agreement", good, other)
    lines = result.output.splitlines()
    assert result.exit_code == 1
    assert lines[:6] == [
        "spec.agreement.participants[berlin].capacity",
        f"  {good}: (absent or default)",
        f"  {other}: 5",
        "spec.agreement.training.seed",
        f"  {good}: (absent or default)",
        f"  {other}: 8",
    ]


def test_plan_as_json_has_everything_the_plan_has(good: Path) -> None:
    said = json.loads(
        pcmoe("plan", good, "-o", "json", "--bandwidth", 10, "--rtt", 50, "--flops", 2).output,
    )
    plan = make_plan(consortium(3))
    assert said["digest"] == plan.digest
    assert [p["memory"]["total"] for p in said["participants"]] == [p.memory.total for p in plan.participants]
    assert said["network"] == {
        "bits_per_second": 10_000_000,
        "round_trip_microseconds": 50_000,
        "flops": 2_000_000_000,
    }
    assert said["prediction"]["bound"] == "latency"
    assert said["placement"][0] == {"layer": 0, "hosts": [0, 1, 2, 0, 1, 2, 0, 1]}


def test_plan_as_a_table_names_everybody_and_what_bounds_the_run(good: Path) -> None:
    output = pcmoe("plan", good).output
    for said in (
        "berlin",
        "lyon",
        "oslo",
        "One process that holds the whole model",
        "bound by latency",
        "2 of 3",
        "disk at most",
        "at most 4 checkpoints of each: 2 to keep",
    ):
        assert said in output


def text_folder(parent: Path, name: str, content: str = "A short text.\n") -> Path:
    folder = parent / name
    folder.mkdir(parents=True)
    (folder / "one.txt").write_text(content)
    return folder


def records_folder(parent: Path, name: str, records: list[Any]) -> Path:
    folder = parent / name
    folder.mkdir(parents=True)
    (folder / "notes.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


def test_init_writes_a_valid_commented_manifest(tmp_path: Path) -> None:
    folders = [
        text_folder(tmp_path, "Klinik Nord"),
        records_folder(tmp_path, "lyon", [{"id": "7", "note": "x" * 30}, {"id": "8", "note": "y" * 30}]),
        text_folder(tmp_path / "oslo", "dataset"),
    ]
    output = tmp_path / "new.yaml"
    result = pcmoe("init", *folders, "--output", output, "--name", "Three Houses")
    assert result.exit_code == 0, result.output
    made = load(output)
    assert made.names == ("klinik-nord", "lyon", "oslo")
    assert (made.metadata.name, made.agreement.id) == ("three-houses", "three-houses")
    assert [entry.dataset.format for entry in made.local] == ["Text", "JSONLines", "Text"]
    assert made.local_entry("lyon").dataset.text_field == "note"
    assert output.read_text().count("#") >= 8
    assert f"--volume lyon:dataset={folders[1]}" in result.output
    assert f"--volume klinik-nord:dataset='{folders[0]}'" in result.output


@pytest.mark.parametrize("count", [1, 2, 3, 7, 23])
def test_init_fits_any_number_of_folders_and_turns(tmp_path: Path, count: int) -> None:
    folders = [text_folder(tmp_path, f"site{i}") for i in range(count)]
    pcmoe("init", *folders, "--output", tmp_path / "m.yaml")
    made = load(tmp_path / "m.yaml")
    assert len(made.names) == count
    assert made.agreement.training.steps_per_round % count == 0


def test_init_gives_each_folder_a_name_of_its_own(tmp_path: Path) -> None:
    folders = [
        text_folder(tmp_path / str(i), name)
        for i, name in enumerate(("coordinator", "A!", "a", "...b", "no", "1"))
    ]
    pcmoe("init", *folders, "--output", tmp_path / "m.yaml")
    assert load(tmp_path / "m.yaml").names == ("1", "a", "a-2", "b", "coordinator-2", "no")


def checkpoint(folder: Path, **changes: Any) -> Path:
    """A folder with a configuration and two tensors, written byte by byte."""
    folder.mkdir()
    (folder / "config.json").write_text(architecture(OLMOE, architectures=["OlmoeForCausalLM"], **changes))
    tensors = {
        "b.weight": ("F32", [2], struct.pack("<2f", 1, 2)),
        "a.weight": ("BF16", [1, 2], b"\x80\x3f\x00\x40"),
    }
    header: dict[str, Any] = {}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder


def test_init_takes_architecture_and_fingerprint_from_a_checkpoint(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model")
    result = pcmoe("init", text_folder(tmp_path, "lyon"), "--model", model, "-o", tmp_path / "m.yaml")
    assert result.exit_code == 0, result.output
    source = load(tmp_path / "m.yaml").agreement.model.source
    total = hashlib.sha256()
    for name, dtype, shape, content in (
        ("a.weight", "BF16", "[1,2]", b"\x80\x3f\x00\x40"),
        ("b.weight", "F32", "[2]", struct.pack("<2f", 1, 2)),
    ):
        total.update(f"{name}\n{dtype}\n{shape}\n{hashlib.sha256(content).hexdigest()}\n".encode())
    assert source.checkpoint is not None
    assert source.checkpoint.fingerprint == f"sha256:{total.hexdigest()}"
    assert json.loads(source.checkpoint.config) == dict(OLMOE)
    assert f"--volume lyon:model={model}" in result.output


def test_init_refuses_what_it_cannot_train(tmp_path: Path) -> None:
    folder, output = text_folder(tmp_path, "lyon"), tmp_path / "m.yaml"
    dense = checkpoint(tmp_path / "dense", model_type="llama")
    assert "model_type: 'llama' is not a supported" in refusal("init", folder, "--model", dense, "-o", output)
    (dense / "config.json").unlink()
    assert "config.json: can't be read" in refusal("init", folder, "--model", dense, "-o", output)
    bare = checkpoint(tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    assert "no *.safetensors" in refusal("init", folder, "--model", bare, "-o", output)
    assert not output.exists()


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("mine")
    assert "is there already" in refusal("init", text_folder(tmp_path, "lyon"), "-o", tmp_path / "m.yaml")
    assert (tmp_path / "m.yaml").read_text() == "mine"


def test_init_refuses_folders_without_records(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    output = tmp_path / "m.yaml"
    assert "holds no *.txt" in refusal("init", empty, "-o", output)
    assert "is not a folder" in refusal("init", tmp_path / "none", "-o", output)


def test_init_never_quotes_a_record(tmp_path: Path) -> None:
    output = tmp_path / "m.yaml"
    for name, records in (("list", [[CANARY]]), ("number", [{"text": CANARY}, {"text": 5}])):
        said = refusal("init", records_folder(tmp_path, name, records), "-o", output)
        assert CANARY not in said
        assert "notes.jsonl" in said
    broken = records_folder(tmp_path, "broken", [])
    (broken / "notes.jsonl").write_text('{"text": "ok"}\n{"text": "' + CANARY)
    said = refusal("init", broken, "-o", output)
    assert "record 2 is not a JSON object" in said
    assert CANARY not in said
