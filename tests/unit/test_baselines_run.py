"""The baselines after a local run, with stand-ins for their processes: started, told, ended, and run only once."""

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.builders import manifest
from tests.unit.crew import FAKE_NODE, is_running, wait_for
from typer.testing import CliRunner

from pcmoe_node.baselines.settings import Kind
from pcmoe_operator.cli import app, run_commands
from pcmoe_operator.local import baselines
from pcmoe_operator.local import prepare as prepare_module
from pcmoe_operator.local.baselines import AT_ONCE, baselines_of, run_baselines
from pcmoe_operator.local.prepare import PreparedRun, prepare, resume

NAMES = ("berlin", "lyon")
TITLES = (
    "baseline union",
    "baseline alone-all of berlin",
    "baseline alone-all of lyon",
    "baseline alone-shard of berlin",
    "baseline alone-shard of lyon",
)
STAND_IN = """
import json, os, pathlib, sys, time
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
output, kind = pathlib.Path(given["--output"]), given["--kind"]
configs = [pathlib.Path(value) for key, value in zip(sys.argv[1::2], sys.argv[2::2]) if key == "--config"]
names = [json.loads(path.read_text())["participant"] for path in configs]
with (output / "started").open("a") as file:
    print(kind, *names, file=file)
(output / f"pid-{os.getpid()}").touch()
try:
    behaviour = json.loads((output / "behaviour.json").read_text()).get(kind, {})
except FileNotFoundError:
    behaviour = {}
for name in names:
    folder = output / kind / name / "log"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict.fromkeys(("backbone", "experts", "gradients", "moments", "masters"), 1)
    memory = {"rssBytes": 3, "peakRssBytes": 4, "baselineRssBytes": 2, "tensorBytes": tensors, "gpuPeakBytes": None}
    same = {"time": 1.0, "seconds": 1.0, "trainLoss": 2.0, "tokens": 9, "stepsSkipped": 0, "secondsByPhase": {},
            "traffic": {}, "memory": memory}
    lines = [
        {"round": r, "step": r, "heldOutLoss": 3.5 - r if r != 1 else None, **same}
        for r in range(behaviour.get("rounds", 2) + 1)
    ]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines))
if "words" in behaviour:
    print(behaviour["words"], flush=True)
time.sleep(behaviour.get("seconds", 0))
sys.exit(behaviour.get("code", 0))
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedRun:
    """A run of two participants that is over, as far as baselines can tell."""
    monkeypatch.setattr(baselines, "COMMAND", (sys.executable, "-c", STAND_IN))
    for command in ("NODE_COMMAND", "COORDINATOR_COMMAND"):
        monkeypatch.setattr(prepare_module, command, (sys.executable, FAKE_NODE))
    for name in NAMES:
        folder = tmp_path / "volumes" / name / "dataset"
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text('{"text": "a"}\n')
    prepared = prepare(written(tmp_path), tmp_path / "run")
    (tmp_path / "run" / "baselines").mkdir()
    return prepared


def written(folder: Path, **overrides: Any) -> Path:
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(manifest(NAMES, overrides)))
    return path


def behave(run: PreparedRun, **behaviours: dict[str, Any]) -> None:
    text = json.dumps({kind.replace("_", "-"): behaviour for kind, behaviour in behaviours.items()})
    (run.folder.path / "baselines" / "behaviour.json").write_text(text)


def started(run: PreparedRun) -> list[str]:
    """Kind and participants of every process so far."""
    file = run.folder.path / "baselines" / "started"
    return file.read_text().splitlines() if file.exists() else []


def pids(run: PreparedRun) -> list[int]:
    """Of every process so far."""
    return [int(path.name.removeprefix("pid-")) for path in (run.folder.path / "baselines").glob("pid-*")]


def test_there_are_two_kinds_of_each_participant_and_one_of_all(run: PreparedRun) -> None:
    every = baselines_of(run)
    assert [baseline.title for baseline in every] == list(TITLES)
    assert every[0].names == NAMES
    assert {baseline.kind for baseline in every} == set(Kind)


def test_each_is_told_in_a_line_with_what_everybody_gets(run: PreparedRun) -> None:
    said: list[str] = []
    assert run_baselines(run, said.append) is None
    assert said[0].startswith("5 of 5 baselines to run, ")
    told = sorted(line.partition(" (")[0] for line in said[1:])
    losses = [f"{title}: held-out loss {title.split()[-1]} 1.500" for title in TITLES[1:]]
    assert told == sorted(["baseline union: held-out loss berlin 1.500, lyon 1.500", *losses])
    assert len(started(run)) == 5


def test_those_that_are_done_are_not_run_again(run: PreparedRun) -> None:
    run_baselines(run, lambda _: None)
    said: list[str] = []
    assert run_baselines(run, said.append) is None
    assert said == ["All 5 baselines are there already"]
    assert len(started(run)) == 5


def test_new_ports_of_a_resumed_run_make_no_baseline_outdated(run: PreparedRun) -> None:
    run_baselines(run, lambda _: None)
    again = resume(run.folder.path)
    assert all(baseline.done for baseline in baselines_of(again))


def test_what_was_trained_with_other_terms_is_made_anew(run: PreparedRun, tmp_path: Path) -> None:
    run_baselines(run, lambda _: None)
    changed = resume(run.folder.path, written(tmp_path, **{"agreement.training.rounds": 5}))
    assert not any(baseline.done for baseline in baselines_of(changed))
    run_baselines(changed, lambda _: None)
    assert len(started(run)) == 10


def test_one_that_fails_is_told_and_the_others_go_on(run: PreparedRun) -> None:
    behave(run, alone_shard={"code": 64, "words": "ERROR ConfigError: placement: berlin hosts no expert"})
    said: list[str] = []
    assert run_baselines(run, said.append) is None
    failed = [line for line in said if "failed" in line]
    assert [line.partition(" failed")[0] for line in failed] == list(TITLES[3:])
    assert "exit code 64" in failed[0]
    assert "berlin hosts no expert" in failed[0]
    assert str(run.folder.path / "baselines" / "alone-shard" / "berlin" / "node.log") in failed[0]
    assert sum("held-out loss" in line for line in said) == 3
    behave(run)
    run_baselines(run, lambda _: None)
    assert sorted(started(run)[5:]) == ["alone-shard berlin", "alone-shard lyon"]


def test_as_many_run_at_a_time_as_there_are_cores_but_two_at_most(
    run: PreparedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "_work_off", lambda *_: None)
    record = run.folder.load()
    said: list[str] = []
    for cores in (1, 2 * record.threads, 64 * record.threads):
        (run.folder.path / "run.json").write_text(json.dumps({**record.to_json(), "cores": cores}))
        run_baselines(run, said.append)
    counts = [line.split(", ")[1].split(" at a time")[0] for line in said]
    assert counts == ["1", "2", "2"]


def test_those_that_take_long_say_where_they_are(run: PreparedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "STILL_SECONDS", 0.0)
    behave(run, union={"seconds": 1.0})
    said: list[str] = []
    run_baselines(run, said.append)
    assert any("baseline union: round 2" in line for line in said)


def test_a_signal_ends_those_that_run_and_leaves_no_process(run: PreparedRun) -> None:
    record = run.folder.load()
    (run.folder.path / "run.json").write_text(json.dumps({**record.to_json(), "cores": 2 * record.threads}))
    behave(run, union={"seconds": 60}, alone_all={"seconds": 60})

    def interrupt() -> None:
        wait_for(lambda: len(pids(run)) == AT_ONCE, "both to be started")
        os.kill(os.getpid(), signal.SIGINT)

    said: list[str] = []
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        assert run_baselines(run, said.append) == signal.SIGINT
    finally:
        thread.join()
    assert not any("held-out loss" in line or "failed" in line for line in said)
    assert not any(baseline.done for baseline in baselines_of(run))
    assert [pid for pid in pids(run) if is_running(pid)] == []


def test_the_exit_code_of_a_run_stays_whatever_its_baselines_do(
    run: PreparedRun,
) -> None:
    behave(run, alone_all={"code": 70, "words": "ERROR a fault"})
    result = CliRunner().invoke(app, ["run", "--resume", str(run.folder.path), "--baselines", "--plain"])
    assert result.exit_code == 0, result.output
    assert result.output.count("failed with exit code 70") == 2
    assert result.output.index("held-out loss berlin 1.500") < result.output.index("Report: ")


def test_without_the_option_no_baseline_runs(run: PreparedRun) -> None:
    result = CliRunner().invoke(app, ["run", "--resume", str(run.folder.path), "--plain"])
    assert (result.exit_code, started(run)) == (0, [])


def test_baselines_that_can_not_even_start_are_told_and_change_nothing(
    run: PreparedRun,
) -> None:
    shutil.rmtree(run.folder.path / "baselines")
    (run.folder.path / "baselines").write_text("in the way")
    result = CliRunner().invoke(app, ["run", "--resume", str(run.folder.path), "--baselines", "--plain"])
    assert result.exit_code == 0, result.output
    assert "no baselines: " in result.output


def test_a_run_whose_baselines_were_stopped_says_how_to_get_the_missing_ones(
    run: PreparedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_commands, "run_baselines", lambda *_: signal.SIGINT)
    result = CliRunner().invoke(app, ["run", "--resume", str(run.folder.path), "--baselines", "--plain"])
    assert result.exit_code == 130
    assert "Report: " in result.output
    assert f"pcmoe run --resume {run.folder.path} --baselines" in result.output
