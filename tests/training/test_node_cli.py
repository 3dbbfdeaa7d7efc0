"""How a node ends: exit codes, and what it says, as a process and from within."""

import http.client
import json
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tests.exchange.rigs import changed, coordinating, free_port
from tests.faults.nursery import Spawned, interpreter
from tests.training.runs import node_log, start_process
from tests.training.small import architecture, outcomes, small_configs

from pcmoe_node.__main__ import _run
from pcmoe_node.config import NodeConfig
from pcmoe_node.process import exit_code_of

START, PEER_TIMEOUT = 60.0, 3.0


def one_node(folder: Path, **overrides: object) -> NodeConfig:
    return small_configs(folder, 1, architecture("olmoe", num_hidden_layers=1), **overrides)[0]


def ended(path: Path) -> int:
    return exit_code_of(lambda: _run([path]))


def run_here(config: NodeConfig, folder: Path) -> int:
    path = folder / "config.json"
    path.write_text(config.model_dump_json())
    return ended(path)


def test_a_missing_configuration_ends_with_64_naming_the_path(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.json"
    done = subprocess.run(
        [sys.executable, "-m", "pcmoe_node", "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=START,
        check=False,
    )
    assert done.returncode == 64
    assert f"ConfigError: {path}: can't be read: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ('"surprise": "planted-value", ', "surprise: Extra inputs are not permitted"),
        ('"threads": "planted-value", ', "threads: Input should be a valid integer"),
    ],
)
def test_a_broken_configuration_ends_with_64_naming_the_field_and_no_value(
    change: str, named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = one_node(tmp_path).model_dump_json().replace('"threads":1,', "")
    path = tmp_path / "config.json"
    path.write_text("{" + change + content[1:])
    assert ended(path) == 64
    assert named in caplog.text and str(path) in caplog.text
    assert "planted-value" not in caplog.text


def test_text_that_is_no_json_ends_with_64(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "config.json").write_text("planted-value")
    assert ended(tmp_path / "config.json") == 64
    assert "planted-value" not in caplog.text


@pytest.mark.parametrize(
    ("overrides", "code", "said"),
    [
        ({"device": "CUDA"}, 66, "device: CUDA was asked for"),
        ({"model": {"checkpoint": "/nowhere/model", "fingerprint": None}}, 66, "/nowhere/model: "),
        ({"model": {"fingerprint": "sha256:" + "0" * 64}}, 66, "the agreement says sha256:0000"),
        ({"dataset": {"path": "/nowhere/data"}}, 65, "/nowhere/data: no such file or folder"),
        ({"status_listen": "127.0.0.1"}, 64, "status_listen: 127.0.0.1 must be host:port"),
        ({"order_secret_file": "/nowhere/secret"}, 64, "order_secret_file: /nowhere/secret must hold"),
    ],
    ids=["no CUDA", "no checkpoint", "other checkpoint", "no data", "no port", "no secret"],
)
def test_what_is_missing_here_ends_with_its_exit_code(
    overrides: dict[str, object],
    code: int,
    said: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_here(changed(one_node(tmp_path), **overrides), tmp_path) == code
    assert said in caplog.text and "Traceback" not in caplog.text


def test_a_finished_run_ends_with_0_at_once_when_it_is_started_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = one_node(tmp_path)
    assert outcomes([config]) == [None]
    journal = Path(config.log_directory) / "rounds.jsonl"
    before = journal.read_text()
    # Neither its data nor its peers are looked for.
    assert run_here(changed(config, dataset={"path": "/nowhere"}), tmp_path) == 0
    assert "all 1 rounds are stored already" in caplog.text
    assert journal.read_text() == before


def test_a_fault_of_the_program_ends_with_70_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr("pcmoe_node.__main__.assemble", fail)
    assert run_here(one_node(tmp_path), tmp_path) == 70
    assert "a fault of the program itself" in caplog.text


# ---- processes


def endless(folder: Path, n: int) -> list[NodeConfig]:
    """Nodes that train for longer than any test waits, with a status port each."""
    return small_configs(
        folder,
        n,
        architecture("olmoe", num_hidden_layers=1),
        training={"rounds": 1000, "steps_per_round": 1000},
        transport={"peer_timeout_seconds": int(PEER_TIMEOUT)},
        status_listen=lambda _: f"127.0.0.1:{free_port()}",
    )


def step_of(config: NodeConfig) -> int:
    """How many steps the node has decided; -1 while it doesn't say."""
    connection = http.client.HTTPConnection(config.status_listen, timeout=2)
    try:
        connection.request("GET", "/status")
        return int(json.loads(connection.getresponse().read())["step"])
    except (OSError, http.client.HTTPException):
        return -1
    finally:
        connection.close()


@contextmanager
def training(configs: list[NodeConfig]) -> Iterator[list[Spawned]]:
    """The nodes as processes that have taken a few steps; none is left behind."""
    with coordinating(configs):
        processes = [start_process(config, interpreter) for config in configs]
        try:
            deadline = time.monotonic() + START
            for config, process in zip(configs, processes, strict=True):
                while step_of(config) < 3:
                    assert process.poll() is None, node_log(config)
                    assert time.monotonic() < deadline, node_log(config)
                    time.sleep(0.1)  # between two looks; the deadline is above
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.wait(10)


def test_a_killed_peer_ends_the_others_with_75_naming_it_within_its_deadline(tmp_path: Path) -> None:
    configs = endless(tmp_path, 3)
    with training(configs) as processes:
        processes[1].kill()
        killed = time.monotonic()
        codes = [processes[index].wait(PEER_TIMEOUT + 8) for index in (0, 2)]
        assert time.monotonic() - killed < PEER_TIMEOUT + 8
    assert codes == [75, 75]
    for index in (0, 2):
        last = [line for line in node_log(configs[index]).splitlines() if "ERROR" in line][-1]
        assert "PeerLostError" in last and "berlin" in last, last
        assert "Traceback" not in node_log(configs[index])
        with socket.socket() as probe:  # nobody listens there any more
            probe.settimeout(2)
            assert probe.connect_ex(("127.0.0.1", int(configs[index].status_listen.split(":")[1]))) != 0


def test_sigterm_ends_with_143_and_its_peer_with_75(tmp_path: Path) -> None:
    configs = endless(tmp_path, 2)
    with training(configs) as processes:
        processes[0].send_signal(signal.SIGTERM)
        assert processes[0].wait(15) == 143, node_log(configs[0])
        assert processes[1].wait(PEER_TIMEOUT + 8) == 75, node_log(configs[1])
    assert "told to stop before the last round was stored" in node_log(configs[0])
    assert "amsterdam" in node_log(configs[1]).splitlines()[-1]
    assert "Traceback" not in node_log(configs[0]) + node_log(configs[1])


def test_sigint_ends_with_130(tmp_path: Path) -> None:
    (config,) = endless(tmp_path, 1)
    with training([config]) as (process,):
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 130, node_log(config)
    assert "Traceback" not in node_log(config)
