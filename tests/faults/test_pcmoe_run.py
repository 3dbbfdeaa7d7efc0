"""`pcmoe run` under fire: whoever is killed is started again, and the run ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.builders import manifest

NAMES = ("berlin", "lyon")
ROUNDS = 8
DEADLINE = 120.0


def write_manifest(folder: Path, policy: str) -> list[str]:
    """A manifest, texts and secrets; the arguments that name them."""
    overrides = {
        "agreement.training.rounds": ROUNDS,
        "agreement.training.deterministic": True,
        "agreement.failurePolicy": {
            "onPeerLoss": policy,
            "peerTimeoutSeconds": 3,
            "progressTimeoutSeconds": 60,
            "rejoinTimeoutSeconds": 120,
        },
        "local": [
            {"name": name, "gpus": 0, "device": "CPU", "dataset": {"path": ".", "format": "Text"}}
            for name in NAMES
        ],
    }
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(manifest(NAMES, overrides)))
    arguments = [str(path)]
    for index, name in enumerate(NAMES):
        texts = folder / f"{name}-texts"
        texts.mkdir()
        for number in range(60):
            (texts / f"{number:02}.txt").write_text(
                f"{name} writes note {number} of its own, and no other.\n"
            )
        secret = folder / f"{name}-secret"
        secret.write_text(bytes([index + 1] * 32).hex())
        arguments += ["--volume", f"{name}:dataset={texts}", "--volume", f"{name}:order-secret={secret}"]
    return arguments


def start(arguments: list[str], output: Path) -> "subprocess.Popen[str]":
    """`pcmoe run`, as a user starts it in a terminal without colours."""
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("pcmoe")), "run", *arguments, "--output", str(output), "--plain"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def pids(output: Path) -> dict[str, int]:
    """Process numbers of the run's processes, by the folder of their configuration."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "--config" in words and str(output) in words[words.index("--config") + 1]:
            found[Path(words[words.index("--config") + 1]).parent.name] = int(entry.name)
    return found


def round_of(output: Path, name: str) -> int:
    """The last round that a participant has written down."""
    path = output / name / "log" / "rounds.jsonl"
    return len(path.read_text().splitlines()) - 1 if path.exists() else -1


def until_round(output: Path, number: int, process: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + DEADLINE
    while round_of(output, "lyon") < number:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.02)  # between two looks; the deadline is above


def end_of(process: "subprocess.Popen[str]", output: Path) -> str:
    """What it said, once it is over and left nothing running."""
    said, _ = process.communicate(timeout=DEADLINE)
    assert pids(output) == {}, "nothing is left behind"
    return said


def weights(output: Path) -> list[dict[str, torch.Tensor]]:
    return [
        load_file(output / name / "checkpoint" / f"round-{ROUNDS:06d}" / "state.safetensors")
        for name in NAMES
    ]


@pytest.mark.timeout(300)
def test_a_killed_node_and_a_killed_coordinator_leave_the_result_as_it_was(tmp_path: Path) -> None:
    arguments = write_manifest(tmp_path, "Wait")
    calm = start(arguments, tmp_path / "calm")
    said = end_of(calm, tmp_path / "calm")
    assert calm.returncode == 0, said

    output = tmp_path / "disturbed"
    process = start(arguments, output)
    until_round(output, 2, process)
    os.kill(pids(output)["berlin"], signal.SIGKILL)
    until_round(output, 4, process)
    os.kill(pids(output)["coordinator"], signal.SIGKILL)
    said = end_of(process, output)
    assert process.returncode == 0, said
    assert "berlin: died by SIGKILL; started again in 0.5 s (1 of 3)" in said
    assert "lyon: waits for berlin to come back" in said
    for mine, other in zip(weights(output), weights(tmp_path / "calm"), strict=True):
        assert set(mine) == set(other)
        assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items())


@pytest.mark.timeout(120)
def test_with_fail_a_killed_node_ends_the_run_and_is_named(tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = start(write_manifest(tmp_path, "Fail"), output)
    until_round(output, 1, process)
    os.kill(pids(output)["berlin"], signal.SIGKILL)
    said = end_of(process, output)
    assert process.returncode == 137, said
    assert "berlin failed with exit code 137: it was killed" in said


@pytest.mark.timeout(120)
def test_a_runner_that_is_killed_leaves_nobody_behind(tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = start(write_manifest(tmp_path, "Wait"), output)
    until_round(output, 1, process)
    assert set(pids(output)) == {*NAMES, "coordinator"}
    process.kill()
    process.communicate(timeout=10)
    end = time.monotonic() + 20
    while pids(output):
        assert time.monotonic() < end, pids(output)
        time.sleep(0.05)  # between two looks; the deadline is above
