"""From view to view: enter one, train in it, and, when somebody is lost, hold until the next one forms.

Model, data and tokenizer stay in memory all the while; only weights and moments are taken back from the stored round
that the new view begins from, and not even they when they are still as stored.
"""

import gc
import logging
import time
from collections.abc import Callable
from functools import partial

from pcmoe_node.coordination.place import Place
from pcmoe_node.errors import PeerLostError, last_words
from pcmoe_node.exchange.base import Reach, Transport
from pcmoe_node.participant import assemble, join, restore
from pcmoe_node.protocol.membership import View
from pcmoe_node.rounds import Run, run_rounds
from pcmoe_node.watchdog import Watchdog

log = logging.getLogger("pcmoe")

REMIND_SECONDS = 30.0


def run_views(run: Run, place: Place) -> None:
    """Until the last round is committed and nobody needs this node, or until an error that no return can cure."""
    transport = run.node.config.transport
    deadline = time.monotonic() + transport.rejoin_timeout_seconds
    while (view := _hold(run, place, deadline)) is not None:
        connected_at: float | None = None

        def connected() -> None:
            nonlocal connected_at
            connected_at = time.monotonic()

        try:
            _live_through(run, place, view, deadline, connected)
            return
        except PeerLostError as lost:
            if transport.on_peer_loss == "Fail":
                raise
            _leave(run, view, lost)
            if connected_at is not None:  # a view that nobody trained in gives no more time
                deadline = time.monotonic() + transport.rejoin_timeout_seconds


def _hold(run: Run, place: Place, deadline: float) -> View | None:
    """Wait for a view, and say now and then who keeps it from forming."""
    run.state.phase = "WAITING"
    place.progress("WAITING")
    told, told_at = "", 0.0

    def tell(absent: str) -> None:
        nonlocal told, told_at
        run.state.waiting_for = absent
        if absent != told or time.monotonic() - told_at > REMIND_SECONDS:
            log.info("waiting for a view: %s", absent)
            told, told_at = absent, time.monotonic()

    rule = f"within {run.node.config.transport.rejoin_timeout_seconds} s"
    try:
        view = run.seat.await_view(deadline, rule, tell)
    except PeerLostError as alone:
        if run.seat.committed < run.state.rounds:
            raise
        # Everybody had this commit on disk before anybody could leave: nobody needs this node.
        log.info("the last round is committed, and nobody else is there any more: %s", alone)
        return None
    run.state.waiting_for = None
    return view


def _live_through(run: Run, place: Place, view: View, deadline: float, connected: Callable[[], None]) -> None:
    """Enter a view and train in it to the end of the run."""
    config, state = run.node.config, run.state
    _enter(run, view)
    transport = place.transport(view)
    join(run.node, transport, _step_of(run, view.round))
    run.accounts.begin(run.node)
    state.reach = partial(_reach, transport, run.node.conductor.names)
    state.travelling = run.node.conductor.travelling
    try:
        run.seat.inside(transport.interrupt)
        state.phase = "CONNECTING"
        place.progress("CONNECTING")
        transport.open(max(1.0, deadline - time.monotonic()))
        connected()
        state.peers_connected = state.peers
        place.progress("TRAINING")
        log.info("view %d stands; going on after round %d of %d", view.number, view.round, state.rounds)
        run.journal.event("ViewEntered", f"view {view.number} begins after round {view.round}")
        corpus = run.node.corpus
        run.book.entered(
            view,
            transport.presented(),
            {
                "fingerprint": corpus.fingerprint,
                "documents": corpus.training_documents,
                "heldOut": corpus.held_out_documents,
            },
        )
        with Watchdog(transport, run.node.conductor.patience, 2.0 * config.transport.peer_timeout_seconds):
            run_rounds(run, view.round)
        run.checkpoints.finish(config.training.rounds)
        run.seat.finish()
        _close_account(run, transport, None)
        state.phase = "DONE"
        transport.close()
    except BaseException as error:
        state.peers_connected = 0
        run.accounts.leave(run.node.conductor)
        _close_account(run, transport, error)
        transport.abort(last_words(error))
        raise
    finally:
        run.seat.inside(None)
        state.leave_view()


def _close_account(run: Run, transport: Transport, error: BaseException | None) -> None:
    """Write down what left after the last stored round of the view."""
    run.book.left(run.node.ledger.take(), run.state.refused(), transport.presented(), error)


def _reach(transport: Transport, names: tuple[str, ...]) -> dict[str, Reach]:
    return {names[peer]: reach for peer, reach in transport.reach().items()}


def _enter(run: Run, view: View) -> None:
    """Remember the view, drop rounds after its own, then say so; take back what was stored."""
    run.checkpoints.remember(view=view.number)
    run.checkpoints.drop_after(view.round)
    run.seat.entered(run.checkpoints.rounds())
    run.state.view, run.state.round = view.number, view.round
    if run.standing == view.round:
        return
    log.info("taking up round %d again", view.round)
    if view.round == 0:
        _begin_anew(run)
        return
    position, tensors = run.checkpoints.load(view.round)
    if position.corpus != run.node.corpus.fingerprint:
        log.warning("the dataset has changed since round %d was stored: its order starts anew", view.round)
    restore(run.node, tensors)
    run.tokens = run.state.tokens = position.tokens
    run.standing = view.round


def _begin_anew(run: Run) -> None:
    """Back to the weights of the start, which no round holds: they are read again."""
    config, secret = run.node.config, run.node.owner.secret
    del run.node  # before the new one takes the same memory
    gc.collect()
    run.node = assemble(config, secret)
    run.tokens = run.state.tokens = 0
    run.standing = 0


def _step_of(run: Run, round_number: int) -> int:
    return 0 if round_number == 0 else run.checkpoints.position(round_number).step


def _leave(run: Run, view: View, lost: PeerLostError) -> None:
    log.warning("leaving view %d: %s", view.number, lost)
    run.journal.event("ViewLeft", f"view {view.number}: {lost}")
    run.state.views_lost += 1
    run.seat.left(str(lost))
