"""`python -m pcmoe_node.baselines` as a process: what it is given, what it writes, how it ends."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.exchange.rigs import changed
from tests.training.runs import Case, configs_of

from pcmoe_node.baselines.settings import Kind, baseline_of
from pcmoe_node.baselines.training import run_baseline
from pcmoe_node.config import NodeConfig

CASE = Case(n=2, rounds=1, steps_per_round=2)
DEADLINE_SECONDS = 60.0


def written(config: NodeConfig, folder: Path) -> Path:
    path = folder / f"{config.participant}.json"
    path.write_text(config.model_dump_json())
    return path


def start(kind: str, configs: list[Path], output: Path) -> "subprocess.Popen[str]":
    given = [argument for path in configs for argument in ("--config", str(path))]
    return subprocess.Popen(
        [sys.executable, "-m", "pcmoe_node.baselines", "--kind", kind, *given, "--output", str(output)],
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_union_of_two_writes_a_journal_for_each_and_ends_with_0(tmp_path: Path) -> None:
    configs = configs_of(CASE, tmp_path)
    process = start("union", [written(config, tmp_path) for config in configs], tmp_path / "out")
    _, said = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, said
    losses = {}
    for config in configs:
        text = (tmp_path / "out" / "union" / config.participant / "log" / "rounds.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["round"] for line in lines] == [0, 1]
        losses[config.participant] = lines[-1]["heldOutLoss"]
    assert len(set(losses.values())) == 2


def test_what_can_not_be_used_is_a_sentence_and_64(tmp_path: Path) -> None:
    config = written(configs_of(CASE, tmp_path)[0], tmp_path)
    process = start("union", [config], tmp_path / "out")
    _, said = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 64
    assert "ConfigError: --config: union needs every participant's once" in said
    assert "Traceback" not in said


def test_one_that_is_told_to_stop_ends_with_143(tmp_path: Path) -> None:
    long = [changed(c, training={"rounds": 10_000}) for c in configs_of(CASE, tmp_path)[:1]]
    process = start("alone-all", [written(long[0], tmp_path)], tmp_path / "out")
    journal = tmp_path / "out" / "alone-all" / long[0].participant / "log" / "rounds.jsonl"
    deadline = time.monotonic() + DEADLINE_SECONDS
    try:
        while not (journal.exists() and journal.read_text().count("\n") > 1):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=DEADLINE_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 143
    assert "told to stop before it was done" in said


def test_it_talks_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = configs_of(CASE, tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a baseline opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    run_baseline(baseline_of(Kind.UNION, configs), tmp_path / "out")
