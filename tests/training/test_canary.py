"""A phrase planted in everybody's data; every stage of a node broken by an error that quotes it: it stays unsaid."""

import importlib
import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.exchange.rigs import changed, together
from tests.training.small import architecture, small_configs
from tests.unit.test_report import make_run

import pcmoe_node.__main__ as entry
from pcmoe_node.config import NodeConfig
from pcmoe_node.coordination.table import LocalTable
from pcmoe_node.journal import Journal
from pcmoe_node.process import exit_code_of
from pcmoe_node.status import State, write_termination
from pcmoe_operator.report import write_report

CANARY = "quince-heron-58213"
IDS = ", ".join(map(str, CANARY.encode()))
"""The same as a list of tokens would be printed."""
STAGES: Mapping[str, tuple[str, str]] = {
    "reading": ("pcmoe_node.data", "read_records"),
    "encoding": ("pcmoe_node.tokenizer.ByteLevel", "encode"),
    "holding out": ("pcmoe_node.data", "_held_out"),
    "loading": ("pcmoe_node.model", "_split"),
    "packing": ("pcmoe_node.packing.Stream", "write"),
    "batch": ("pcmoe_node.data.Corpus", "training_batch"),
    "model": ("pcmoe_node.step", "_logits"),
    "loss": ("pcmoe_node.step", "sum_loss"),
    "order": ("pcmoe_node.moe", "secret_order"),
    "routes": ("pcmoe_node.moe", "routes"),
    "rows into a message": ("pcmoe_node.payloads.Codec", "gather_rows"),
    "choices into a message": ("pcmoe_node.payloads.Codec", "write_choices"),
    "sending": ("pcmoe_node.exchange.local.LocalTransport", "send"),
    "request": ("pcmoe_node.payloads.Codec", "read_batch"),
    "experts forward": ("pcmoe_node.host.Host", "forward"),
    "answer": ("pcmoe_node.payloads.Codec", "read_rows"),
    "combining": ("pcmoe_node.moe", "combine"),
    "gradients": ("pcmoe_node.moe", "gather_gradients"),
    "experts backward": ("pcmoe_node.host.Host", "backward"),
    "integrity": ("pcmoe_node.moe", "integrity_gap"),
    "scattering": ("pcmoe_node.moe", "scatter_gradients"),
    "backward": ("pcmoe_node.cut.MicroBatch", "backward"),
    "counting": ("pcmoe_node.ledger.Exposed", "add_to"),
    "vote": ("pcmoe_node.step", "_vote"),
    "optimizer": ("pcmoe_node.step", "_apply"),
    "evaluation": ("pcmoe_node.rounds", "evaluate"),
    "storing": ("pcmoe_node.checkpoint", "save_file"),
    "ledger": ("pcmoe_node.ledger_book.Book", "round"),
    "end of a view": ("pcmoe_node.ledger_book.Book", "left"),
    "journal": ("pcmoe_node.journal.Journal", "round"),
    "commit": ("pcmoe_node.rounds", "_remember_commit"),
    "leave": ("pcmoe_node.rounds", "_take_leave"),
    "finish": ("pcmoe_node.checkpoint.Checkpoints", "finish"),
}
"""Module or class, and function: from the first byte read to the last one written."""
EVERYBODY = ("reading", "encoding", "holding out", "loading")
"""Stages before anybody knows of anybody: they break at all nodes, so that none waits for the others to come."""
Said = dict[str, str]


def owner_of(path: str) -> Any:
    """A module or a class by its dotted path."""
    head, _, tail = path.rpartition(".")
    return (
        getattr(importlib.import_module(head), tail) if tail[:1].isupper() else importlib.import_module(path)
    )


def break_once(stage: str, patched: pytest.MonkeyPatch) -> list[str]:
    """Let the first visit of a stage, whoever's, end in an error that quotes the data; the visits are noted."""
    path, name = STAGES[stage]
    owner, visits = owner_of(path), []
    real: Callable[..., Any] = getattr(owner, name)

    def broken(*given: Any, **named: Any) -> Any:
        visits.append(stage)
        if len(visits) == 1 or stage in EVERYBODY:
            try:
                raise KeyError(f"{CANARY} [{IDS}]")
            except KeyError as cause:
                raise ValueError(f"can't go on with {CANARY!r}: [{IDS}]") from cause
        return real(*given, **named)

    patched.setattr(owner, name, broken)
    return visits


def planted(folder: Path) -> list[NodeConfig]:
    """Two nodes whose every document is about the same thing."""
    folder.mkdir(exist_ok=True)
    configs = small_configs(
        folder,
        2,
        architecture("olmoe", num_hidden_layers=1),
        training={"evaluation_sequences": 2, "steps_per_round": 1},
        dataset={"held_out_percent": 10},
        termination_message=lambda index: str(folder / f"termination-{index}"),
    )
    for index in range(2):
        for path in (folder / f"data-{index}").iterdir():
            path.write_text(f"{path.stem}: {CANARY} was seen again.\n")
    return configs


def run_as_processes_do(
    configs: list[NodeConfig], folder: Path, patched: pytest.MonkeyPatch
) -> tuple[Said, list[int]]:
    """What the nodes showed at their ends, and their exit codes."""
    table, said, codes = LocalTable(configs), Said(), [0] * len(configs)

    def written(path: str | None, state: State, code: int) -> None:
        said[f"status of {state.participant}"] = json.dumps(state.as_json())
        said[f"metrics of {state.participant}"] = str([family.samples for family in state.metrics()])
        write_termination(path, state, code)

    def run(index: int) -> None:
        path = folder / f"config-{index}.json"
        path.write_text(configs[index].model_dump_json())
        codes[index] = exit_code_of(lambda: entry._run([path]))

    patched.setattr(entry, "write_termination", written)
    patched.setattr(entry, "TlsPlace", lambda config: table.place(config.index))
    together([partial(run, index) for index in range(len(configs))])
    return said, codes


def left_behind(configs: list[NodeConfig], folder: Path) -> Said:
    """Every log, event, report and message that the nodes left, as text."""
    said = Said()
    for index, config in enumerate(configs):
        log = Path(config.log_directory)
        for path in (*log.iterdir(), folder / f"termination-{index}"):
            said[str(path)] = path.read_text()
        said[f"/report of {config.participant}"] = Journal(log).report(config.participant).decode()
        report = make_run(folder / f"report-{index}")
        for name in ("events.jsonl", "exposure.jsonl"):
            if (log / name).exists():
                (report / "berlin" / "log" / name).write_bytes((log / name).read_bytes())
        made = write_report(report)
        said[str(made.page)], said[str(made.data)] = made.page.read_text(), made.data.read_text()
    return said


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_breaks_tells_nothing_of_the_data(
    stage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    configs = planted(tmp_path / "run")
    with monkeypatch.context() as patched:
        visits = break_once(stage, patched)
        said, codes = run_as_processes_do(configs, tmp_path, patched)
    assert visits, "the stage was never reached"
    assert any(codes), "nobody noticed"
    printed = capfd.readouterr()
    said |= left_behind(configs, tmp_path / "run")
    said |= {"log": caplog.text, "stdout": printed.out, "stderr": printed.err}
    assert "events.jsonl" in " ".join(said) and "status of berlin" in said
    assert [where for where, text in said.items() if CANARY in text or IDS in text] == []


def test_a_run_that_goes_well_tells_nothing_of_the_data_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    configs = planted(tmp_path / "run")
    with monkeypatch.context() as patched:
        said, codes = run_as_processes_do(configs, tmp_path, patched)
    assert codes == [0, 0]
    said |= left_behind(configs, tmp_path / "run") | {"log": caplog.text}
    assert len(said) > 15
    assert [where for where, text in said.items() if CANARY in text or IDS in text] == []


def test_a_configuration_that_can_not_be_read_is_not_quoted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (config, _) = planted(tmp_path / "run")
    path = tmp_path / "config.json"
    path.write_text(changed(config).model_dump_json().replace('"Text"', f'"{CANARY}"'))
    assert exit_code_of(lambda: entry._run([path])) == 64
    assert "dataset.format" in caplog.text and CANARY not in caplog.text
