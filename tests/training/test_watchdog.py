"""The watchdog ends a node that hangs, and no other."""

import threading
import time
from typing import Any

import pytest
from tests.exchange.rigs import open_rig

from pcmoe_node.patience import Patience
from pcmoe_node.watchdog import Watchdog

PATIENCE = Patience(me=0, names=("amsterdam", "berlin"), progress_timeout=0.5, rejoin_timeout=60.0)


@pytest.fixture
def transport() -> Any:
    with open_rig(2, "local") as rig:
        yield rig[0]


def watching(transport: Any, ended: threading.Event) -> Watchdog:
    return Watchdog(transport, PATIENCE, grace=0.2, end=ended.set)


def test_a_node_in_which_nothing_moves_is_ended_after_its_patience(
    transport: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ended = threading.Event()
    transport.progress("forward")
    began = time.monotonic()
    with watching(transport, ended):
        assert ended.wait(5.0)
    assert time.monotonic() - began > 0.6
    assert "this process hangs" in caplog.text and "(in forward)" in caplog.text


def test_a_node_that_moves_or_waits_for_a_peer_or_stores_a_round_is_left_alone(transport: Any) -> None:
    ended = threading.Event()
    with watching(transport, ended):
        for _ in range(10):
            transport.progress("forward")
            assert not ended.wait(0.15)
        transport.waiting(frozenset({1}))
        assert not ended.wait(1.5)
        transport.waiting(frozenset())
        transport.progress("CHECKPOINT")
        assert not ended.wait(1.5)


def test_a_process_that_was_stopped_for_a_while_does_not_hang(
    transport: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    real, offset = time.monotonic, 0.0

    def clock() -> float:
        return real() + offset

    monkeypatch.setattr("pcmoe_node.watchdog.time.monotonic", clock)
    transport.progress("forward")
    with watching(transport, ended):
        assert not ended.wait(0.3)
        offset = 3600.0  # as after SIGSTOP and SIGCONT an hour later
        assert not ended.wait(0.4)
        transport.progress("forward")
        assert not ended.wait(0.4)
