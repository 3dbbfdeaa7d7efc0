"""`pcmoe-node --config FILE`: run one participant until its rounds are done."""

import argparse
import ctypes
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from pcmoe_node.checkpoint import Checkpoints
from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, NodeError, PeerLostError
from pcmoe_node.exchange.base import Transport
from pcmoe_node.exchange.tls import TlsTransport
from pcmoe_node.gpu import meter_of
from pcmoe_node.participant import assemble, order_secret
from pcmoe_node.resume import resume, stored_position
from pcmoe_node.rounds import Run, run_rounds
from pcmoe_node.status import Journal, State, StatusServer, resident

log = logging.getLogger("pcmoe")
_M_ARENA_MAX = -8  # malloc.h


class _Told(BaseException):
    """A signal told the node to stop."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code


def main() -> None:
    """Read the configuration, run, and end with the exit code that says why (errors.py)."""
    parser = argparse.ArgumentParser(prog="pcmoe-node", description=__doc__)
    parser.add_argument(
        "--config", type=Path, required=True, help="NodeConfig as JSON, written by the operator"
    )
    path: Path = parser.parse_args().config
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    for number, code in ((signal.SIGTERM, EXIT_TERMINATED), (signal.SIGINT, EXIT_INTERRUPTED)):
        signal.signal(number, _raise_told(code))
    _use_one_arena()
    exit_code = _run(path)
    # Taking a process with torch and transformers apart object by object takes seconds, and frees nothing that the
    # end of the process doesn't.
    logging.shutdown()
    os._exit(exit_code)


def _use_one_arena() -> None:
    """Let all threads share one malloc arena, where the C library is glibc.

    By default each lane's thread has its own, and memory freed in one is of no use to the others: measured on the
    pilot, 515 MB of peak against 386 MB, at the same speed, because only one lane runs at a time anyway.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def _run(path: Path) -> int:
    """Run the node and return its exit code."""
    try:
        config = NodeConfig.load(path)
        run_node(config, TlsTransport(config))
    except NodeError as error:
        log.error("%s: %s", type(error).__name__, error)
        return error.exit_code
    except _Told as told:
        log.info("told to stop before the last round was stored; run again to resume")
        return told.exit_code
    except Exception:
        log.exception("a fault of the program itself; please report it")
        return NodeError.exit_code
    return 0


def run_node(config: NodeConfig, transport: Transport) -> None:
    """Load, connect, agree on where to begin, run, and say goodbye; peers learn the cause of an error."""
    baseline = resident()["rssBytes"]
    training = config.training
    journal = Journal(Path(config.log_directory))
    state = State(
        participant=config.participant,
        rounds=training.rounds,
        steps=config.total_steps,
        peers=len(config.participants) - 1,
    )
    server = StatusServer(config.status_listen, state)
    try:
        checkpoints = Checkpoints(Path(config.checkpoint_directory), config.checkpoint_keep)
        stored = checkpoints.newest()
        if stored >= training.rounds and checkpoints.finished(training.rounds):
            log.info("all %d rounds are stored already", training.rounds)
            state.phase, state.round = "DONE", stored
            return
        position = stored_position(config, checkpoints)
        node = assemble(config, transport, order_secret(config, position.secret if position else None))
        state.phase = "CONNECTING"
        log.info("loaded; connecting to %d peers", state.peers)
        try:
            transport.open(float(config.transport.rejoin_timeout_seconds))
        except PeerLostError as error:
            if stored < training.rounds:
                raise
            log.info("all %d rounds are stored, and not everybody is there any more: %s", stored, error)
            state.phase, state.round = "DONE", stored
            return
        state.peers_connected = state.peers
        run = Run(
            node=node,
            state=state,
            journal=journal,
            checkpoints=checkpoints,
            baseline_rss=baseline,
            gpu=meter_of(node.device),
        )
        run_rounds(run, resume(run, stored))
        checkpoints.finish(training.rounds)
        transport.close()
    except NodeError as error:
        state.phase, state.error = "FAILED", f"{type(error).__name__}: {error}"
        transport.abort(error)  # first: the disk may be what failed
        journal.event("Failed", state.error)
        raise
    except BaseException as error:
        state.phase = "FAILED"
        told = isinstance(error, _Told)
        transport.abort(
            PeerLostError("was told to stop") if told else NodeError(f"a fault: {type(error).__name__}")
        )
        raise
    finally:
        server.close()


def _raise_told(exit_code: int):  # type: ignore[no-untyped-def]
    def handler(_number: int, _frame: FrameType | None) -> None:
        raise _Told(exit_code)

    return handler


if __name__ == "__main__":
    main()
