"""The dashboard of one participant: what its node does, with what, and how it reaches its peers."""

from grafana_foundation_sdk.models.dashboard import Dashboard
from tools.dashboards.board import BAD, FAIR, GOOD, NONE, Board, Shown
from tools.dashboards.queries import PHASE_NAMES, UP, phase, speed

ONE = 'namespace="$namespace",consortium="$consortium",participant="$participant"'
LATELY = "15m"


def participant() -> Dashboard:
    """All of it."""
    board = Board(
        "pcmoe-participant",
        "PC-MoE: a participant",
        "One node: what its steps are spent on, memory, GPU, peers, checkpoints, certificate.",
    )
    board.variable("namespace", "Namespace", "pcmoe_node_view")
    board.variable("consortium", "Consortium", 'pcmoe_node_view{namespace="$namespace"}')
    board.variable(
        "participant", "Participant", 'pcmoe_node_view{namespace="$namespace",consortium="$consortium"}'
    )
    _now(board)
    _step(board)
    _memory(board)
    _gpu(board)
    _peers(board)
    _keeping(board)
    return board.build()


def _one(metric: str) -> str:
    return f"max({metric}{{{ONE}}})"


def _now(board: Board) -> None:
    board.row("Now")
    board.numbers(
        "Phase",
        "What the node does.",
        {"phase": phase(ONE)},
        Shown(unit="none", names=PHASE_NAMES, none="not there"),
    )
    board.numbers(
        "Round",
        "Rounds finished here, the newest that everybody holds, and how many were agreed.",
        {
            "finished": _one("pcmoe_node_round"),
            "committed": _one("pcmoe_node_committed_round"),
            "agreed": _one("pcmoe_node_rounds"),
        },
        Shown(unit="none"),
        width=6,
    )
    board.numbers(
        "Held-out loss",
        "Mean loss per token on its own held-out documents; NaN: its numbers overflowed in the"
        " last evaluation.",
        {"loss": _one("pcmoe_node_held_out_loss")},
        Shown(unit="none"),
    )
    board.numbers(
        "Usual round",
        "Median of the last five finished rounds of this process.",
        {"round": _one("pcmoe_node_usual_round_seconds")},
        Shown(unit="s"),
    )
    board.numbers(
        "Version",
        "Version of the node's program.",
        {"{{version}}": f"max by (version) (pcmoe_node_build_info{{{ONE}}})"},
        Shown(unit="none", legend_only=True),
        width=6,
    )
    board.states(
        "Phases",
        "What the node did. WAITING: somebody else was not there.",
        {"{{participant}}": phase(ONE)},
        PHASE_NAMES,
    )
    board.lines(
        "Loss",
        "Mean loss per token: of the current round so far, and on held-out documents.",
        {
            "training": _one("pcmoe_node_training_loss"),
            "held out": _one("pcmoe_node_held_out_loss"),
        },
        Shown(unit="none"),
        width=12,
    )


def _step(board: Board) -> None:
    board.row("Where the time goes")
    board.lines(
        "What the time is spent on",
        "Share of each second; all together are 100 % while the node is in a view. Waiting for partners:"
        " exchange_wait; experts computed here for anybody: host_compute.",
        {"{{phase}}": speed("pcmoe_node_phase_seconds_total", ONE, "phase")},
        Shown(unit="percentunit", least=0),
        width=12,
        stacked=True,
    )
    board.lines(
        "Tokens per second",
        "Supervised tokens that it trains on, per second.",
        {"tokens": f"sum({speed('pcmoe_node_tokens_total', ONE)})"},
        Shown(unit="cps", least=0),
        width=6,
    )
    board.lines(
        "Micro-batches under way",
        "Own micro-batches that travel at the moment of the scrape, and the agreed limit.",
        {
            "under way": _one("pcmoe_node_requests_in_flight"),
            "limit": _one("pcmoe_node_in_flight_limit"),
        },
        Shown(unit="none", least=0),
        width=6,
    )


def _memory(board: Board) -> None:
    board.row("Memory")
    board.lines(
        "Memory of the process",
        "Resident memory now and at most so far, and the exact bytes of weights, gradients and"
        " optimizer state.",
        {
            "resident": _one("pcmoe_node_resident_memory_bytes"),
            "at most": _one("pcmoe_node_resident_memory_peak_bytes"),
            "tensors": _one("pcmoe_node_tensor_bytes"),
        },
        Shown(unit="bytes", least=0),
        width=12,
    )
    board.lines(
        "GPU memory",
        "In use on the device by anybody, held by torch (tensors, and with its reserve), and the size of the"
        " device's memory. Empty without a GPU.",
        {
            "in use": _one("pcmoe_node_gpu_memory_used_bytes"),
            "size": _one("pcmoe_node_gpu_memory_total_bytes"),
            "torch's tensors": _one("pcmoe_node_torch_allocated_bytes"),
            "torch's tensors, at most": _one("pcmoe_node_torch_allocated_peak_bytes"),
            "torch with reserve": _one("pcmoe_node_torch_reserved_bytes"),
        },
        Shown(unit="bytes", least=0),
        width=12,
    )


def _gpu(board: Board) -> None:
    board.row("GPU (empty without one)")
    board.numbers(
        "State",
        "How the driver answers for the GPU. mig: a slice of a device; no_driver: NVML can't be asked, training goes"
        " on; lost: it no longer answers.",
        {"{{state}}": f"max by (state) (pcmoe_node_gpu_info{{{ONE}}}) == 1"},
        Shown(unit="none", legend_only=True, none="no GPU"),
    )
    board.numbers(
        "Memory errors",
        "Memory errors (ECC) of the GPU since its driver was loaded. Uncorrected ones mean that numbers may be wrong.",
        {
            kind: f'max(pcmoe_node_gpu_errors_total{{{ONE},kind="ecc_{kind}"}})'
            for kind in ("corrected", "uncorrected")
        },
        Shown(unit="none", none="not told"),
    )
    board.lines(
        "Utilisation",
        "Share of the time in which a kernel ran.",
        {"utilisation": _one("pcmoe_node_gpu_utilization_ratio")},
        Shown(unit="percentunit", least=0, most=1),
        width=6,
    )
    board.lines(
        "Power",
        "Power that the GPU draws.",
        {"power": _one("pcmoe_node_gpu_power_watts")},
        Shown(unit="watt", least=0),
        width=5,
    )
    board.lines(
        "Temperature",
        "Temperature of the GPU.",
        {"temperature": _one("pcmoe_node_gpu_temperature_celsius")},
        Shown(unit="celsius", limits=((None, NONE), (85, FAIR))),
        width=5,
    )


def _peers(board: Board) -> None:
    board.row("Peers")
    board.states(
        "Connected",
        "Whether all connections with a peer stand. Outside of a view nobody is connected.",
        {"{{peer}}": f"max by (peer) (pcmoe_node_peer_up{{{ONE}}})"},
        UP,
    )
    board.lines(
        "Round trips",
        "Smoothed round trip of TCP to each peer.",
        {"{{peer}}": f"max by (peer) (pcmoe_node_peer_rtt_seconds{{{ONE}}})"},
        Shown(unit="s", least=0),
        width=12,
    )
    replies = speed("pcmoe_node_reply_seconds_total", ONE, "peer", LATELY)
    count = speed("pcmoe_node_replies_total", ONE, "peer", LATELY)
    board.lines(
        "Time until a reply",
        "From sending a request to taking up the answer, mean over 15 minutes; told at the end of a round.",
        {"{{peer}}": f"{replies} / ({count} > 0)"},
        Shown(unit="s", least=0),
    )
    board.lines(
        "Sent per second",
        "Bytes sent to each peer, padding included, told at the end of a round. A mean over 15 minutes, so it"
        " rises slowly after a start.",
        {"{{peer}}": speed("pcmoe_node_sent_bytes_total", ONE, "peer", LATELY)},
        Shown(unit="Bps"),
        stacked=True,
    )
    board.lines(
        "Received per second",
        "Bytes received from each peer, padding included, told at the end of a round. A mean over 15 minutes, so it"
        " rises slowly after a start.",
        {"{{peer}}": speed("pcmoe_node_received_bytes_total", ONE, "peer", LATELY)},
        Shown(unit="Bps"),
        stacked=True,
    )


def _keeping(board: Board) -> None:
    board.row("Checkpoint and certificate")
    board.numbers(
        "Since the last commit",
        "How long ago this process heard of a commit.",
        {"ago": f"time() - {_one('pcmoe_node_last_commit_timestamp_seconds')}"},
        Shown(unit="s"),
    )
    board.numbers(
        "Storing a round",
        "How long storing the last round took.",
        {"took": _one("pcmoe_node_checkpoint_seconds")},
        Shown(unit="s"),
    )
    board.numbers(
        "Size of a round",
        "Bytes of the last stored round of this participant.",
        {"size": _one("pcmoe_node_checkpoint_bytes")},
        Shown(unit="bytes"),
    )
    board.numbers(
        "Certificate",
        "How long its certificate is valid. The operator renews it with a third of seven days left.",
        {"left": f"min(pcmoe_node_certificate_expiry_timestamp_seconds{{{ONE}}}) - time()"},
        Shown(unit="s", limits=((None, BAD), (6 * 3600, FAIR), (48 * 3600, GOOD))),
    )
    board.numbers(
        "Refused connections",
        "Connections turned down by this process, by reason; closing and another-view come between"
        " two views.",
        {"{{reason}}": f"sum by (reason) (pcmoe_node_refused_connections_total{{{ONE}}}) > 0"},
        Shown(unit="none", none="none"),
    )
