"""Where a run begins: at the newest round that every participant has stored."""

import logging
from dataclasses import replace

from pcmoe_node.checkpoint import Checkpoints, Position, common_round
from pcmoe_node.conductor import Conductor
from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import ConfigError, PeerLostError
from pcmoe_node.exchange.base import Kind
from pcmoe_node.exchange.layout import HELD
from pcmoe_node.participant import frozen_digest, restore
from pcmoe_node.rounds import Run

log = logging.getLogger("pcmoe")


def stored_position(config: NodeConfig, checkpoints: Checkpoints) -> Position | None:
    """The newest stored position, which must belong to this consortium; None where nothing is stored."""
    newest = checkpoints.newest()
    if newest == 0:
        return None
    position = checkpoints.position(newest)
    if position.frozen != frozen_digest(config):
        raise ConfigError(
            f"checkpoint_directory: {checkpoints.directory} belongs to another consortium, participant, model or "
            "placement; these are frozen after the first stored round"
        )
    return position


def resume(run: Run, newest: int) -> int:
    """Agree with everybody on the round to go on from, take it up, and return it; 0 is the beginning."""
    node, conductor = run.node, run.node.conductor
    held = _held_by_all(conductor, newest)
    common = common_round({conductor.names[peer]: rounds for peer, rounds in held.items()})
    run.checkpoints.drop_after(common)
    run.state.round = common
    if common == 0:
        return 0
    position, tensors = run.checkpoints.load(common)
    if position.corpus != node.corpus.fingerprint:
        log.warning("the dataset has changed since round %d was stored: its order starts anew", common)
    restore(node, tensors)
    conductor.machine = replace(conductor.machine, first_step=position.step)
    node.begin(position.step)
    run.tokens = run.state.tokens = position.tokens
    log.info("resuming after round %d of %d", common, run.state.rounds)
    return common


def _held_by_all(conductor: Conductor, newest: int) -> dict[int, int]:
    """The newest round of each participant. Whatever else arrives meanwhile waits: some peers may be ahead of us."""
    held = {conductor.me: newest}
    conductor.broadcast(Kind.HELD, 0, HELD.pack(newest))
    while len(held) < len(conductor.names):
        arrival = conductor.transport.receive(conductor.progress_timeout)
        if arrival is None:
            missing = [name for peer, name in enumerate(conductor.names) if peer not in held]
            raise PeerLostError(
                f"{', '.join(missing)} did not say which round they hold within {conductor.progress_timeout:g} s"
            )
        if arrival.failure is not None:
            raise arrival.failure
        message = arrival.message
        if message is not None and message.header.kind is Kind.HELD and message.payload is not None:
            (held[arrival.peer],) = HELD.unpack(message.payload.view[: HELD.size])
            message.payload.release()
        else:
            conductor.early.append(arrival)
    return held
