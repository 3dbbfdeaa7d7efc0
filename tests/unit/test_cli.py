"""The command line as a user meets it: a process with arguments, two outputs and an exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from tests.builders import manifest

from pcmoe_node.config import CoordinatorConfig, NodeConfig

NAMES = ("berlin", "lyon")
FAKE_NODE = str(Path(__file__).with_name("fake_node.py"))
PROGRAM = f"""
import sys
from pcmoe_operator.local import prepare
prepare.NODE_COMMAND = prepare.COORDINATOR_COMMAND = (sys.executable, {FAKE_NODE!r})
from pcmoe_operator.local import restarts
restarts.BACK_OFF_SECONDS = (0.05, 0.05, 0.05)
from pcmoe_operator.cli import main
main()
"""
DEADLINE_SECONDS = 30.0
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "120", "TERM": "dumb"}


def pcmoe(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end, with the stand-in as node."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        env=ENVIRONMENT,
        check=False,
    )


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A manifest of two participants with their datasets beside it."""
    path = tmp_path / "manifest.yaml"
    write(path)
    for name in NAMES:
        folder = tmp_path / "volumes" / name / "dataset"
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text('{"text": "a"}\n')
    return path


def write(path: Path, **overrides: Any) -> None:
    path.write_text(yaml.safe_dump(manifest(NAMES, {"agreement.training.rounds": 2} | overrides)))


def behave(run: Path, name: str, **behaviour: Any) -> None:
    (run / name / "behaviour.json").write_text(json.dumps(behaviour))


def finished(given: Path) -> Path:
    """A run that went well."""
    run = given.parent / "run"
    done = pcmoe("run", given, "--output", run)
    assert done.returncode == 0, done.stderr
    return run


def test_a_run_ends_with_0_and_says_where_logs_and_report_are(given: Path) -> None:
    run = given.parent / "run"
    done = pcmoe("run", given, "--output", run)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert f"Logs: {run}/NAME/node.log" in done.stdout
    assert f"Report: {run}/report.html" in done.stdout
    assert "berlin: round 2" in done.stdout
    assert (run / "report.html").exists()


def test_keys_and_folders_of_a_run_are_for_their_owner_alone(given: Path) -> None:
    run = finished(given)
    assert run.stat().st_mode & 0o077 == 0
    for name in (*NAMES, "coordinator"):
        assert (run / name).stat().st_mode & 0o077 == 0
        assert (run / name / "certificates" / "tls.key").stat().st_mode & 0o077 == 0
        assert (run / name / "config.json").stat().st_mode & 0o077 == 0


def test_each_participant_has_its_own_ca_and_knows_that_of_the_others(given: Path) -> None:
    run = finished(given)
    configs = {name: json.loads((run / name / "config.json").read_text()) for name in NAMES}
    bundles = [peer["ca_bundle"] for peer in configs["berlin"]["participants"]]
    assert len(set(bundles)) == 2
    assert bundles == [(run / name / "certificates" / "ca.crt").read_text() for name in NAMES]
    assert configs["lyon"]["participants"] == configs["berlin"]["participants"]


def leaf_of(run: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((run / name / "certificates" / "tls.crt").read_bytes())


def test_the_coordinator_has_a_folder_with_a_certificate_that_its_hosts_ca_signed(given: Path) -> None:
    write(given, **{"agreement.coordinator": "lyon"})
    run = finished(given)
    told = CoordinatorConfig.load(run / "coordinator" / "config.json")
    authority = (run / "lyon" / "certificates" / "ca.crt").read_text()
    assert told.coordinator.ca_bundle == authority
    leaf_of(run, "coordinator").verify_directly_issued_by(x509.load_pem_x509_certificate(authority.encode()))
    assert not list((run / "coordinator").rglob("ca.key"))
    record = json.loads((run / "run.json").read_text())
    assert record["coordinator"]["endpoint"] == told.identity.listen == told.coordinator.endpoint
    assert record["coordinator"]["status"] == f"http://{told.status_listen}"
    node = NodeConfig.load(run / "berlin" / "config.json")
    assert node.coordinator == told.coordinator
    assert node.termination_message is None
    assert (run / "coordinator" / "coordinator.log").exists()


def test_the_coordinator_is_no_participant_of_the_report(given: Path) -> None:
    figures = json.loads((finished(given) / "report.json").read_text())
    assert set(figures["loss"]) == set(NAMES)


def test_a_resumed_run_gives_its_coordinator_a_new_certificate_and_new_ports(given: Path) -> None:
    run = finished(given)
    before, leaf = json.loads((run / "run.json").read_text())["coordinator"], leaf_of(run, "coordinator")
    write(given, **{"agreement.coordinator": "lyon"})
    assert pcmoe("run", given, "--resume", run).returncode == 0
    after, renewed = json.loads((run / "run.json").read_text())["coordinator"], leaf_of(run, "coordinator")
    assert not set(before.values()) & set(after.values())
    assert (leaf.issuer, renewed.issuer) == (leaf_of(run, "berlin").issuer, leaf_of(run, "lyon").issuer)


def test_a_node_that_was_killed_is_started_again_and_the_run_ends_with_0(given: Path) -> None:
    run = finished(given)
    (run / "lyon" / "lives").unlink()
    behave(run, "lyon", by_signal=int(signal.SIGKILL), lives=2)
    done = pcmoe("run", "--resume", run)
    assert done.returncode == 0, done.stderr
    assert "lyon: died by SIGKILL; started again in 0.05 s (2 of 3)" in done.stdout
    assert f"Report: {run}/report.html" in done.stdout


def test_resuming_keeps_folders_and_takes_new_ports(given: Path) -> None:
    run = finished(given)
    before = json.loads((run / "run.json").read_text())
    authority = (run / "lyon" / "certificates" / "ca.crt").read_text()
    done = pcmoe("run", "--resume", run)
    assert done.returncode == 0, done.stderr
    after = json.loads((run / "run.json").read_text())
    assert after["participants"]["lyon"]["volumes"] == before["participants"]["lyon"]["volumes"]
    assert after["participants"]["lyon"]["endpoint"] != before["participants"]["lyon"]["endpoint"]
    assert (run / "lyon" / "certificates" / "ca.crt").read_text() == authority


def test_a_run_can_be_resumed_with_more_rounds_but_not_with_other_participants(given: Path) -> None:
    run = finished(given)
    write(given, **{"agreement.training.rounds": 3})
    assert pcmoe("run", given, "--resume", run).returncode == 0
    assert json.loads((run / "berlin" / "config.json").read_text())["training"]["rounds"] == 3
    write(given, **{"agreement.participants[1].capacity": 2})
    refused = pcmoe("run", given, "--resume", run)
    assert refused.returncode == 64
    assert "id, model, experts and participants of the agreement must stay" in refused.stderr


def test_a_failed_node_gives_its_exit_code_and_a_sentence_with_name_words_and_log(given: Path) -> None:
    run = finished(given)
    words = "ERROR ResourceError: no space left on the disk of the checkpoints"
    behave(run, "berlin", after_peer_fails="lyon", code=75, words="ERROR PeerLostError: lost lyon")
    behave(run, "lyon", code=66, words=words)
    done = pcmoe("run", "--resume", run)
    assert done.returncode == 66
    assert "pcmoe: lyon failed with exit code 66: something this machine must have is missing." in done.stderr
    assert words in done.stderr
    assert f"{run}/lyon/node.log" in done.stderr
    assert f"Report: {run}/report.html" in done.stdout


def test_ctrl_c_ends_the_run_with_130_and_says_how_to_go_on(given: Path) -> None:
    run = finished(given)
    for name in NAMES:
        behave(run, name, forever=True)
        (run / name / "ready").unlink()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "run", "--resume", str(run)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not all((run / name / "ready").exists() for name in NAMES):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 130
    assert told == f"Stopped. Continue with: pcmoe run --resume {run}\n"


def test_a_bad_manifest_ends_with_64_and_names_field_value_and_rule(given: Path) -> None:
    write(given, **{"agreement.training.rounds": 0})
    done = pcmoe("run", given, "--output", given.parent / "run")
    assert done.returncode == 64
    assert "spec.agreement.training.rounds" in done.stderr
    assert not (given.parent / "run").exists()


def test_a_folder_that_holds_something_is_refused(given: Path) -> None:
    other = given.parent / "other"
    other.mkdir()
    (other / "letter.txt").write_text("mine")
    done = pcmoe("run", given, "--output", other)
    assert (done.returncode, done.stderr) == (
        64,
        f"pcmoe: {other} is not an empty folder: choose a new one for the run\n",
    )
    assert [path.name for path in other.iterdir()] == ["letter.txt"]


def test_a_folder_that_holds_a_run_says_how_to_continue_it(given: Path) -> None:
    run = finished(given)
    done = pcmoe("run", given, "--output", run)
    assert done.returncode == 64
    assert f"continue it with `pcmoe run --resume {run}`" in done.stderr


def test_resuming_where_no_run_is_is_refused(given: Path) -> None:
    done = pcmoe("run", "--resume", given.parent)
    assert done.returncode == 64
    assert "holds no run: there is no run.json in it" in done.stderr


def test_a_missing_dataset_is_found_before_anything_starts(given: Path) -> None:
    (given.parent / "volumes" / "lyon" / "dataset" / "train.jsonl").unlink()
    done = pcmoe("run", given, "--output", given.parent / "run")
    assert done.returncode == 64
    assert "lyon: dataset" in done.stderr
    assert "--volume lyon:dataset=DIR" in done.stderr
    assert not (given.parent / "run").exists()


def test_a_volume_given_by_option_is_used(given: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (given.parent / "volumes" / "lyon" / "dataset").rename(elsewhere)
    run = tmp_path / "run"
    done = pcmoe("run", given, "--output", run, "--volume", f"lyon:dataset={elsewhere}")
    assert done.returncode == 0, done.stderr
    config = json.loads((run / "lyon" / "config.json").read_text())
    assert config["dataset"]["path"] == str(elsewhere / "train.jsonl")


@pytest.mark.parametrize("text", ["lyon", "lyon:dataset", "lyon:cache=/x", ":dataset=/x", "oslo:dataset=/x"])
def test_a_volume_option_of_another_form_is_refused_with_the_right_one(given: Path, text: str) -> None:
    done = pcmoe("run", given, "--output", given.parent / "run", "--volume", text)
    assert done.returncode == 64
    assert "NAME:KIND=PATH" in done.stderr or "no such participant" in done.stderr


def test_report_makes_the_report_of_a_run_anew(given: Path) -> None:
    run = finished(given)
    (run / "report.html").unlink()
    done = pcmoe("report", run)
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").exists()


@pytest.mark.parametrize("command", ["", "init", "validate", "plan", "agreement", "run", "report"])
def test_every_command_has_help(command: str) -> None:
    done = pcmoe(*([command] if command else []), "--help")
    assert done.returncode == 0, done.stderr
    assert f"pcmoe {command}".strip() in done.stdout or "Usage" in done.stdout
    assert len(done.stdout.splitlines()) > 5


def test_the_version_is_told() -> None:
    done = pcmoe("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("pcmoe ")


def test_an_unknown_command_or_option_is_refused_on_stderr() -> None:
    for arguments in (["fly"], ["run", "--fly"]):
        done = pcmoe(*arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert "Usage" in done.stderr
