"""The dashboard of a consortium: does it train, how far is it, who is slow?"""

from grafana_foundation_sdk.models.dashboard import Dashboard
from tools.dashboards.board import BAD, FAIR, GOOD, NONE, Board, Shown
from tools.dashboards.queries import NODES, PHASE_NAMES, UP, newest, phase, speed

ALL = 'namespace="$namespace",consortium="$consortium"'
HERE = f'{ALL},participant=~"$participant"'
STATES = {"1": ("forming", FAIR), "2": ("running", GOOD), "3": ("failed", BAD)}
LATELY = "15m"
"""What is told at the end of a round only is seen as a mean of so long."""


def consortium() -> Dashboard:
    """All of it."""
    board = Board(
        "pcmoe-consortium",
        "PC-MoE: a consortium",
        "Training pods that run where this Prometheus looks. Of partners elsewhere it shows what"
        " nodes here say of them.",
    )
    board.variable("namespace", "Namespace", NODES)
    board.variable("consortium", "Consortium", NODES.replace("}", ',namespace="$namespace"}'))
    board.variable("participant", "Participant", f"pcmoe_node_view{{{ALL}}}", several=True)
    _now(board)
    _progress(board)
    _learning(board)
    _slow(board)
    _traffic(board)
    _together(board)
    _broken(board)
    _memory(board)
    return board.build()


def _now(board: Board) -> None:
    board.row("Is it training?")
    board.numbers(
        "Committed round",
        "The newest round that everybody has stored, and how many were agreed.",
        {
            "committed": f"max(pcmoe_node_committed_round{{{ALL}}})",
            "agreed": f"max(pcmoe_node_rounds{{{ALL}}})",
        },
        Shown(unit="none"),
    )
    board.numbers(
        "Done",
        "Share of the agreed rounds that are committed.",
        {"done": f"max(pcmoe_node_committed_round{{{ALL}}}) / max(pcmoe_node_rounds{{{ALL}}})"},
        Shown(unit="percentunit"),
    )
    board.numbers(
        "Time left",
        "Rounds that are left, times the median of the last five rounds of the slowest participant here.",
        {
            "left": f"(max(pcmoe_node_rounds{{{ALL}}}) - max(pcmoe_node_committed_round{{{ALL}}}))"
            f" * max(pcmoe_node_usual_round_seconds{{{ALL}}})"
        },
        Shown(unit="s"),
    )
    committed = f"pcmoe_node_last_commit_timestamp_seconds{{{ALL}}}"
    board.numbers(
        "Since the last commit",
        "How long ago the last round was committed, in usual rounds. From 3 on PCMoENoCommit comes.",
        {
            "rounds": f"max(timestamp({committed}) - {committed})"
            f" / max(pcmoe_node_usual_round_seconds{{{ALL}}})"
        },
        Shown(unit="none", limits=((None, GOOD), (2, FAIR), (3, BAD))),
    )
    board.numbers(
        "In a view",
        "Participants here that are in a view and train, evaluate or store, of those that run here.",
        {
            "in a view": "sum(max by (participant) (pcmoe_node_phase{"
            f'{ALL},phase!~"FAILED|LOADING|WAITING|CONNECTING|DONE"}}))',
            "here": f"count(count by (participant) (pcmoe_node_view{{{ALL}}}))",
        },
        Shown(unit="none"),
    )
    board.numbers(
        "All tokens per second",
        "Supervised tokens that all participants here train on, per second.",
        {"tokens": f"sum({speed('pcmoe_node_tokens_total', ALL)})"},
        Shown(unit="cps"),
    )


def _progress(board: Board) -> None:
    board.states(
        "Phases",
        "What each participant here does. WAITING: somebody else is not there. LOADING takes"
        " minutes with a large checkpoint.",
        {"{{participant}}": phase(HERE)},
        PHASE_NAMES,
    )
    board.rows(
        "Alerts",
        "Alerts of this consortium that fire. docs/runbook.md says what to do about each.",
        "max by (alertname, severity, participant, peer)"
        f' (ALERTS{{alertname=~"PCMoE.+",alertstate="firing",{ALL}}})',
        hidden=("Time", "Value"),
    )
    board.lines(
        "Rounds",
        "Rounds that each participant has finished, and the newest that everybody holds.",
        {
            "{{participant}}": newest("pcmoe_node_round", HERE),
            "committed by all": f"max(pcmoe_node_committed_round{{{ALL}}})",
        },
        Shown(unit="none"),
    )
    board.lines(
        "Steps",
        "Steps that each participant has decided, applied or skipped. They go back when a stored"
        " round is taken up again.",
        {"{{participant}}": newest("pcmoe_node_step", HERE)},
        Shown(unit="none"),
    )
    board.lines(
        "Usual round",
        "Median of the last five finished rounds of each process.",
        {"{{participant}}": newest("pcmoe_node_usual_round_seconds", HERE)},
        Shown(unit="s", least=0),
    )


def _learning(board: Board) -> None:
    board.row("Does it learn?")
    board.lines(
        "Held-out loss",
        "Mean loss per token on each participant's own held-out documents. Should fall, then level out.",
        {"{{participant}}": newest("pcmoe_node_held_out_loss", HERE)},
        Shown(unit="none"),
    )
    board.lines(
        "Training loss",
        "Mean loss per token of the current round so far, on each participant's own text.",
        {"{{participant}}": newest("pcmoe_node_training_loss", HERE)},
        Shown(unit="none"),
    )
    board.lines(
        "Skipped steps",
        "Steps within 15 minutes that everybody skipped, since somebody's numbers overflowed. A"
        " few at the start are harmless.",
        {
            "{{participant}}": f"max by (participant) (increase(pcmoe_node_steps_skipped_total{{{HERE}}}[{LATELY}]))"
        },
        Shown(unit="none", least=0, limits=((None, NONE), (3, FAIR))),
    )


def _slow(board: Board) -> None:
    board.row("Who is slow?")
    waits = speed("pcmoe_node_phase_seconds_total", f'{HERE},phase="exchange_wait"')
    hosts = speed("pcmoe_node_phase_seconds_total", f'{HERE},phase="host_compute"')
    spent = speed("pcmoe_node_phase_seconds_total", f'{HERE},phase!~"evaluation|checkpoint"')
    board.lines(
        "Waiting for partners",
        "Share of a step in which a participant waits for what others compute for it. Who waits"
        " least is the slowest.",
        {"{{participant}}": f"{waits} / ({spent} > 0)"},
        Shown(unit="percentunit", least=0, most=1, limits=((None, NONE), (0.5, FAIR))),
    )
    board.lines(
        "Computing for partners",
        "Share of a step in which a participant computes its experts for others and for itself.",
        {"{{participant}}": f"{hosts} / ({spent} > 0)"},
        Shown(unit="percentunit", least=0, most=1),
    )
    board.lines(
        "Tokens per second",
        "Supervised tokens that each participant trains on, per second.",
        {"{{participant}}": speed("pcmoe_node_tokens_total", HERE)},
        Shown(unit="cps"),
        stacked=True,
    )
    replies = speed("pcmoe_node_reply_seconds_total", HERE, "peer", LATELY)
    count = speed("pcmoe_node_replies_total", HERE, "peer", LATELY)
    board.lines(
        "Time until a peer's reply",
        "From sending a request to taking up the answer, mean over 15 minutes and all askers here,"
        " by who answers.",
        {"{{peer}}": f"{replies} / ({count} > 0)"},
        Shown(unit="s", least=0),
    )
    board.lines(
        "Round trips",
        "Smoothed round trip of TCP to each peer, from the participant here that is farthest from it. On a busy"
        " machine a few milliseconds are its own.",
        {"to {{peer}}": f"max by (peer) (pcmoe_node_peer_rtt_seconds{{{HERE}}})"},
        Shown(unit="s", least=0),
    )
    board.lines(
        "Micro-batches under way",
        "Own micro-batches that travel now, at the moment of the scrape; the agreed limit beside it.",
        {
            "{{participant}}": newest("pcmoe_node_requests_in_flight", HERE),
            "limit": f"max(pcmoe_node_in_flight_limit{{{ALL}}})",
        },
        Shown(unit="none", least=0),
    )


def _traffic(board: Board) -> None:
    board.row("What goes over the network?")
    board.lines(
        "Sent per second",
        "Bytes that each participant sends, padding included, told at the end of a round. A mean over 15"
        " minutes, so it rises slowly after a start.",
        {"{{participant}}": speed("pcmoe_node_sent_bytes_total", HERE, over=LATELY)},
        Shown(unit="Bps"),
        stacked=True,
    )
    board.lines(
        "Received per second",
        "Bytes that each participant receives, padding included, told at the end of a round. A mean over 15"
        " minutes, so it rises slowly after a start.",
        {"{{participant}}": speed("pcmoe_node_received_bytes_total", HERE, over=LATELY)},
        Shown(unit="Bps"),
        stacked=True,
    )
    board.lines(
        "Rows that partners saw",
        "Share of a participant's rows of the last round, one for each token and shared-out layer,"
        " that went to a peer.",
        {"{{participant}}": newest("pcmoe_node_remote_token_share", HERE)},
        Shown(unit="percentunit", least=0, most=1),
    )


def _together(board: Board) -> None:
    board.row("Are they together?")
    number = " or ".join(
        f'{value} * pcmoe_coordinator_state{{{ALL},state="{name.upper()}"}}'
        for value, (name, _) in STATES.items()
    )
    board.numbers(
        "Consortium",
        "What the coordinator says of the consortium; empty where it runs at a partner's.",
        {"state": f"max(sum without (state) ({number}))"},
        Shown(unit="none", names=STATES, none="elsewhere"),
    )
    board.numbers(
        "View",
        "Number of the view, and how many this coordinator has formed. Each loss of somebody makes another.",
        {
            "view": f'max({{__name__=~"pcmoe_node_view|pcmoe_coordinator_view",{ALL}}})',
            "formed": f"max(pcmoe_coordinator_views_total{{{ALL}}})",
        },
        Shown(unit="none"),
    )
    board.numbers(
        "Certificates",
        "How long the certificate that expires first is valid, of nodes and coordinator here.",
        {
            "left": f'min({{__name__=~"pcmoe_(node|coordinator)_certificate_expiry_timestamp_seconds",{ALL}}}) - time()'
        },
        Shown(unit="s", limits=((None, BAD), (6 * 3600, FAIR), (48 * 3600, GOOD))),
    )
    board.states(
        "Connected to the coordinator",
        "Who has a session with the coordinator, partners elsewhere included; empty where the"
        " coordinator runs at a partner's.",
        {"{{participant}}": f"max by (participant) (pcmoe_coordinator_connected{{{ALL}}})"},
        UP,
    )


def _broken(board: Board) -> None:
    board.lines(
        "Connections made anew",
        "Connections within a view that broke and were made anew, within 15 minutes.",
        {
            "{{participant}}": f"sum by (participant) (increase(pcmoe_node_reconnections_total{{{HERE}}}[{LATELY}]))"
        },
        Shown(unit="none", least=0),
    )
    board.lines(
        "Views left",
        "Views that a participant had to leave within 15 minutes, since somebody was lost.",
        {
            "{{participant}}": f"sum by (participant) (increase(pcmoe_node_views_lost_total{{{HERE}}}[{LATELY}]))"
        },
        Shown(unit="none", least=0),
    )
    refused = '{__name__=~"pcmoe_(node|coordinator)_refused_connections_total",' + ALL + "}"
    board.lines(
        "Refused connections",
        "Connections turned down within 15 minutes by nodes and coordinator here, by reason;"
        " closing and another-view"
        " come between two views and are harmless.",
        {"{{reason}}": f"sum by (reason) (increase({refused}[{LATELY}]))"},
        Shown(unit="none", least=0),
    )


def _memory(board: Board) -> None:
    board.row("How much memory?")
    board.lines(
        "Resident memory",
        "Resident memory of each node's process.",
        {"{{participant}}": newest("pcmoe_node_resident_memory_bytes", HERE)},
        Shown(unit="bytes", least=0),
    )
    board.lines(
        "GPU memory in use",
        "Share of each GPU's memory that anybody uses; what torch keeps in reserve included. Empty"
        " without GPUs.",
        {
            "{{participant}}": f"max by (participant) (pcmoe_node_gpu_memory_used_bytes{{{HERE}}}"
            f" / pcmoe_node_gpu_memory_total_bytes{{{HERE}}})"
        },
        Shown(unit="percentunit", least=0, most=1, limits=((None, NONE), (0.95, BAD))),
    )
    board.lines(
        "GPU utilisation",
        "Share of the time in which a kernel ran. Empty without GPUs.",
        {"{{participant}}": newest("pcmoe_node_gpu_utilization_ratio", HERE)},
        Shown(unit="percentunit", least=0, most=1),
    )
