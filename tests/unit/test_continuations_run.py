"""`pcmoe run --prompt`, with a stand-in for its process: checked, started, told, ended, and never quoted."""

import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import yaml
from tests.builders import manifest
from tests.unit.crew import FAKE_NODE, is_running, wait_for
from typer.testing import CliRunner, Result

from pcmoe_operator.cli import app, run_commands
from pcmoe_operator.errors import UsageError
from pcmoe_operator.local import continuations
from pcmoe_operator.local import prepare as prepare_module
from pcmoe_operator.local.continuations import run_continuations
from pcmoe_operator.local.prepare import PreparedRun, prepare, resume

NAMES = ("berlin", "lyon")
TEXT = "Whoever quince-heron-58213 = 'x'"
PROMPT = ("--prompt", f"lyon={TEXT}")
STAND_IN = """
import json, os, pathlib, sys, time
given = [(key, value) for key, value in zip(sys.argv[1::2], sys.argv[2::2])]
output = pathlib.Path(dict(given)["--output"])
(output.parent / "continuations" / "pid").write_text(str(os.getpid()))
behaviour = json.loads(os.environ.get("BEHAVIOUR", "{}"))
time.sleep(behaviour.get("seconds", 0))
if "words" in behaviour:
    print(behaviour["words"], flush=True)
    sys.exit(behaviour["code"])
prompts = dict(value.split("=", 1) for key, value in given if key == "--prompt")
configs = [json.loads(pathlib.Path(value).read_text())["participant"] for key, value in given if key == "--config"]
found = {name: {"prompt": text, "base": "b", "consortium": "c", "newTokens": 40} for name, text in prompts.items()}
output.write_text(json.dumps({"round": 3, "organisations": found, "configs": configs}))
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The manifest of a run of two, whose processes are all stand-ins."""
    monkeypatch.setattr(continuations, "COMMAND", (sys.executable, "-c", STAND_IN))
    for command in ("NODE_COMMAND", "COORDINATOR_COMMAND"):
        monkeypatch.setattr(prepare_module, command, (sys.executable, FAKE_NODE))
    for name in NAMES:
        folder = tmp_path / "volumes" / name / "dataset"
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text('{"text": "a"}\n')
    path = tmp_path / "manifest.yaml"
    path.write_text(yaml.safe_dump(manifest(NAMES, {})))
    return path


@pytest.fixture
def run(written: Path) -> PreparedRun:
    """A run that is over, as far as its prompts can tell."""
    return prepare(written, written.parent / "run", prompts=[PROMPT[1]])


def invoked(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["run", *arguments, "--plain"])


def holding(folder: Path, text: str) -> list[str]:
    """Files with a text in them."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.name for path in files if text.encode() in path.read_bytes())


def test_a_new_run_goes_on_with_its_prompts_between_training_and_report(written: Path) -> None:
    output = written.parent / "run"
    result = invoked(str(written), "--output", str(output), *PROMPT, "--prompt", "berlin=x=y")
    assert result.exit_code == 0, result.output
    found = json.loads((output / "continuations.json").read_text())
    assert found["configs"] == list(NAMES)
    assert {name: each["prompt"] for name, each in found["organisations"].items()} == {
        "lyon": TEXT,
        "berlin": "x=y",
    }
    told = [
        result.output.index(words) for words in ("Going on with 2 prompts", "Continuations: ", "Report: ")
    ]
    assert told == sorted(told)


def test_a_run_that_is_over_can_be_asked_for_it_later(run: PreparedRun) -> None:
    result = invoked("--resume", str(run.folder.path), "--prompt", "berlin=Good morning")
    assert result.exit_code == 0, result.output
    found = json.loads((run.folder.path / "continuations.json").read_text())
    assert list(found["organisations"]) == ["berlin"]


def test_a_prompt_is_in_that_file_and_the_report_and_nowhere_else(run: PreparedRun) -> None:
    result = invoked("--resume", str(run.folder.path), *PROMPT)
    assert result.exit_code == 0, result.output
    assert "continuations.json" in holding(run.folder.path, "quince-heron-58213")
    allowed = {"continuations.json", "report.json", "report.html"}
    assert set(holding(run.folder.path, "quince-heron-58213")) <= allowed
    assert "quince-heron" not in result.output


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (f"bonn={TEXT}", "--prompt: 'bonn' is no participant, must be one of berlin, lyon"),
        (TEXT.replace("=", ""), "--prompt, number 1: must be NAME=TEXT, and neither may be empty"),
        ("lyon=", "--prompt, number 1: must be NAME=TEXT, and neither may be empty"),
    ],
)
def test_a_bad_prompt_is_refused_before_anything_is_made(given: str, sentence: str, written: Path) -> None:
    output = written.parent / "run"
    result = invoked(str(written), "--output", str(output), "--prompt", given)
    assert isinstance(result.exception, UsageError)
    assert sentence in str(result.exception)
    assert "quince" not in f"{result.output}{result.exception}"
    assert not output.exists()


def test_a_name_may_be_given_once(run: PreparedRun) -> None:
    with pytest.raises(UsageError, match="--prompt lyon: must be given once"):
        resume(run.folder.path, prompts=["lyon=a", "lyon=b"])


def test_without_a_prompt_nothing_of_it_happens(run: PreparedRun) -> None:
    result = invoked("--resume", str(run.folder.path))
    assert result.exit_code == 0, result.output
    assert "Going on with" not in result.output
    assert not (run.folder.path / "continuations").exists()


def test_one_that_fails_is_told_with_its_log_and_changes_nothing(
    run: PreparedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "2026 ERROR ConfigError: --prompt lyon: is 900 tokens"
    monkeypatch.setenv("BEHAVIOUR", json.dumps({"code": 64, "words": words}))
    result = invoked("--resume", str(run.folder.path), *PROMPT)
    assert result.exit_code == 0, result.output
    told = result.output.partition("continuations failed with exit code 64: ")[2]
    assert "Its last words: 2026 ERROR ConfigError: --prompt lyon: is 900 tokens" in told
    assert f"Its log: {run.folder.path / 'continuations' / 'node.log'}" in told
    assert "Report: " in result.output


def test_one_that_can_not_even_start_is_told_and_changes_nothing(run: PreparedRun) -> None:
    (run.folder.path / "continuations").write_text("in the way")
    result = invoked("--resume", str(run.folder.path), *PROMPT)
    assert result.exit_code == 0, result.output
    assert "no continuations: " in result.output


def test_a_signal_ends_it_and_leaves_no_process(run: PreparedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHAVIOUR", json.dumps({"seconds": 60}))
    pid = run.folder.path / "continuations" / "pid"

    def interrupt() -> None:
        wait_for(lambda: pid.exists() and bool(pid.read_text()), "the process to be started")
        os.kill(os.getpid(), signal.SIGINT)

    said: list[str] = []
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        assert run_continuations(run, said.append) == signal.SIGINT
    finally:
        thread.join()
    assert len(said) == 1
    assert not is_running(int(pid.read_text()))


def test_what_comes_after_one_that_was_stopped_is_not_begun_and_how_to_go_on_is_said(
    run: PreparedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(run_commands, "run_continuations", lambda *_: signal.SIGINT)
    monkeypatch.setattr(run_commands, "run_baselines", lambda *_: begun.append("baselines"))
    result = invoked("--resume", str(run.folder.path), *PROMPT, "--baselines")
    assert result.exit_code == 130
    assert begun == []
    assert f"pcmoe run --resume {run.folder.path} --prompt NAME=TEXT --baselines" in result.output
