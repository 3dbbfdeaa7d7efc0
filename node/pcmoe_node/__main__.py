"""`pcmoe-node --config FILE [FILE …]`: run one participant until its rounds are done."""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from pcmoe_node.accounts import Accounts
from pcmoe_node.checkpoint import Checkpoints
from pcmoe_node.config import NodeConfig
from pcmoe_node.coordination.place import Place
from pcmoe_node.coordination.session import TlsPlace
from pcmoe_node.coordination.words import failure_of
from pcmoe_node.errors import NodeError, last_words
from pcmoe_node.exchange.base import Traffic
from pcmoe_node.exchange.tls import tap
from pcmoe_node.figures import Replies
from pcmoe_node.gpu import meter_of
from pcmoe_node.journal import Journal
from pcmoe_node.ledger_book import Book
from pcmoe_node.participant import assemble, order_secret, stored_position
from pcmoe_node.process import run_process, use_one_arena
from pcmoe_node.protocol.membership import Member
from pcmoe_node.rounds import Run
from pcmoe_node.status import State, StatusServer, resident, write_termination
from pcmoe_node.views import run_views

log = logging.getLogger("pcmoe")


def main() -> None:
    """Read the configuration, run, and end with the exit code that says why (errors.py)."""
    parser = argparse.ArgumentParser(prog="pcmoe-node", description=__doc__)
    told = "NodeConfig as JSON, written by the operator; the fields may be in several files"
    parser.add_argument("--config", type=Path, nargs="+", required=True, metavar="FILE", help=told)
    paths: list[Path] = parser.parse_args().config
    use_one_arena()
    stopped = "told to stop before the last round was stored; run again to resume"
    run_process(lambda: _run(paths), stopped)


def _run(paths: Sequence[Path]) -> None:
    config = NodeConfig.load(*paths)
    run_node(config, TlsPlace(config))


def run_node(config: NodeConfig, place: Place) -> None:
    """Load, take a seat at the coordinator's table, and go from view to view until the last round is committed."""
    baseline = resident()["rssBytes"]
    tap.begin_if_asked(config)
    journal = Journal(Path(config.log_directory))
    state = _state(config)
    server = StatusServer(config.status_listen, state, lambda: journal.report(config.participant))
    exit_code = 0
    try:
        _live(config, place, state, journal, baseline)
    except BaseException as error:
        words = last_words(error)
        told = not isinstance(error, Exception)
        state.phase, state.error = "FAILED", str(words) if told else f"{type(words).__name__}: {words}"
        exit_code = getattr(error, "exit_code", NodeError.exit_code)
        journal.event("Stopped" if told else "Failed", state.error)
        raise
    finally:
        write_termination(config.termination_message, state, exit_code)
        server.close()


def _state(config: NodeConfig) -> State:
    """What is known before anything has happened."""
    peers = tuple(peer.name for peer in config.participants if peer.name != config.participant)
    return State(
        participant=config.participant,
        rounds=config.training.rounds,
        steps=config.total_steps,
        peers=len(peers),
        peer_names=peers,
        in_flight_limit=config.training.in_flight,
        traffic={peer: Traffic() for peer in peers},
        replies={peer: Replies() for peer in peers},
    )


def _live(config: NodeConfig, place: Place, state: State, journal: Journal, baseline: int) -> None:
    checkpoints = Checkpoints(Path(config.checkpoint_directory), config.checkpoint_keep)
    if checkpoints.finished(config.training.rounds):
        log.info("all %d rounds are stored already", config.training.rounds)
        state.phase, state.round = "DONE", config.training.rounds
        return
    state.refused, state.certificate_ends = place.refused, place.certificate_ends
    checkpoints.claim(place.incarnation)
    position = stored_position(config, checkpoints)
    state.committed = checkpoints.membership.committed
    if state.committed:
        state.last_commit = time.time()  # nobody knows when; until the next one, it is not before now
    seat = place.sit_down(lambda incarnation: _member(config, checkpoints, incarnation))
    seat.check_owner = checkpoints.check_owner
    try:
        node = assemble(config, order_secret(config, position.secret if position else None))
        log.info("loaded")
        seat.loaded(checkpoints.rounds())
        gpu = meter_of(node.device)
        if gpu is not None:
            state.gpu = gpu.read
        run = Run(
            node=node,
            seat=seat,
            state=state,
            accounts=Accounts(figures=state, names=tuple(peer.name for peer in config.participants)),
            journal=journal,
            book=Book(config),
            checkpoints=checkpoints,
            baseline_rss=baseline,
            gpu=gpu,
        )
        run_views(run, place)
        checkpoints.finish(config.training.rounds)
        state.phase = "DONE"
    except Exception as error:
        failure = failure_of(last_words(error), config.index)
        if failure is not None:
            seat.fail(failure)
        raise
    finally:
        place.close()


def _member(config: NodeConfig, checkpoints: Checkpoints, incarnation: str) -> Member:
    """Where this node stands when it starts."""
    return Member(
        me=config.index,
        members=len(config.participants),
        incarnation=incarnation,
        last_round=config.training.rounds,
        number=checkpoints.membership.view,
        committed=checkpoints.membership.committed,
        rounds=checkpoints.rounds(),
    )


if __name__ == "__main__":
    main()
