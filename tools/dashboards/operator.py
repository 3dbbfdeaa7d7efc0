"""The dashboard of the operator: does it lead, does it keep up, what does the API server say?"""

from grafana_foundation_sdk.models.dashboard import Dashboard
from tools.dashboards.board import BAD, FAIR, GOOD, NONE, Board, Shown

IT = 'namespace="$namespace"'
LEADS = {"0": ("waits", FAIR), "1": ("leads", GOOD)}
LATELY = "$__rate_interval"


def operator() -> Dashboard:
    """All of it."""
    board = Board(
        "pcmoe-operator",
        "PC-MoE: the operator",
        "The operator's pods in one namespace. What trains is on the other dashboards.",
    )
    board.variable("namespace", "Namespace", "pcmoe_operator_leader")
    _leading(board)
    _looks(board)
    _api(board)
    _process(board)
    return board.build()


def _leading(board: Board) -> None:
    board.row("Does it lead?")
    board.numbers(
        "Leaders",
        "Pods that lead: 1. For a moment after a change it may be 0.",
        {"leaders": f"sum(pcmoe_operator_leader{{{IT}}})"},
        Shown(unit="none", limits=((None, BAD), (1, GOOD), (2, BAD))),
    )
    board.numbers(
        "CRD fields missing",
        "Fields of a PCMoEConsortium that this operator needs and the API server doesn't know. More than 0:"
        " CRDTooOld, and the operator does nothing until a newer CRD is applied.",
        {"fields": f"max(pcmoe_operator_crd_missing_fields{{{IT}}})"},
        Shown(unit="none", limits=((None, GOOD), (1, BAD))),
    )
    board.numbers(
        "Version",
        "Versions of the operator's pods.",
        {"{{version}}": f"count by (version) (pcmoe_operator_build_info{{{IT}}})"},
        Shown(unit="none", legend_only=True),
    )
    board.states(
        "Who leads",
        "Which pod holds the Lease.",
        {"{{pod}}": f"max by (pod) (pcmoe_operator_leader{{{IT}}})"},
        LEADS,
    )
    board.lines(
        "Consortia by state",
        "Consortia in the watched namespaces by the state in their status; new: none yet.",
        {"{{state}}": f"sum by (state) (pcmoe_operator_consortia{{{IT}}}) > 0"},
        Shown(unit="none", least=0, colours={"Failed": BAD, "Invalid": BAD, "Running": GOOD}),
        width=8,
        stacked=True,
    )
    board.lines(
        "Failed, by reason",
        "Consortia that ended as Failed, by the reason in their status; docs/operator.md says what to do about each.",
        {"{{reason}}": f"sum by (reason) (pcmoe_operator_consortia_failed{{{IT}}}) > 0"},
        Shown(unit="none", least=0),
        width=8,
        stacked=True,
    )
    board.rows(
        "Alerts",
        "Alerts of the operator that fire. docs/runbook.md says what to do about each.",
        "max by (alertname, severity, reason, resource)"
        f' (ALERTS{{alertname=~"PCMoE.+",alertstate="firing",consortium="",{IT}}})',
        hidden=("Time", "Value"),
        width=8,
    )


def _looks(board: Board) -> None:
    board.row("Does it keep up?")
    board.lines(
        "Looks per second",
        "Looks at a consortium (reconciles) that have ended.",
        {"looks": f"sum(rate(pcmoe_operator_reconciles_total{{{IT}}}[{LATELY}]))"},
        Shown(unit="ops", least=0),
    )
    board.lines(
        "Failed looks per second",
        "Looks that failed, by reason; each is tried again, later and later. api_refused: mostly a missing right."
        " bug: please report it.",
        {"{{reason}}": f"sum by (reason) (rate(pcmoe_operator_reconcile_errors_total{{{IT}}}[{LATELY}]))"},
        Shown(unit="ops", least=0),
        stacked=True,
    )
    buckets = f"sum by (le) (rate(pcmoe_operator_reconcile_duration_seconds_bucket{{{IT}}}[{LATELY}]))"
    board.lines(
        "How long a look takes",
        "Half of all looks take at most so long, 90 % of them, and 99 %.",
        {
            "half": f"histogram_quantile(0.5, {buckets})",
            "90 %": f"histogram_quantile(0.9, {buckets})",
            "99 %": f"histogram_quantile(0.99, {buckets})",
        },
        Shown(unit="s", least=0),
    )
    board.lines(
        "Queue",
        "Consortia whose next look is planned, due or under way: about as many as train. What is overdue is in the"
        " next panel.",
        {"{{pod}}": f"max by (pod) (pcmoe_operator_queue_length{{{IT}}})"},
        Shown(unit="none", least=0),
    )
    board.lines(
        "Oldest in the queue",
        "How long the consortium waits that is overdue most. From 300 s on PCMoEQueueStuck comes.",
        {"{{pod}}": f"max by (pod) (pcmoe_operator_queue_oldest_seconds{{{IT}}})"},
        Shown(unit="s", least=0, limits=((None, NONE), (300, BAD))),
    )
    board.lines(
        "Age of watches",
        "Seconds since a watch of each resource was opened last, the oldest of all namespaces."
        " Rises to settings.watchSeconds"
        " (30) and falls; four times as much is a dead one.",
        {"{{resource}}": f"max by (resource) (pcmoe_operator_watch_age_seconds{{{IT}}})"},
        Shown(unit="s", least=0, limits=((None, NONE), (120, BAD))),
    )


def _api(board: Board) -> None:
    board.row("What does the API server say?")
    requests = f"rate(pcmoe_operator_api_requests_total{{{IT}}}[{LATELY}])"
    failed = f'rate(pcmoe_operator_api_requests_total{{{IT},code!~"2.."}}[{LATELY}])'
    board.lines(
        "Requests by verb",
        "Requests to the API server per second.",
        {"{{verb}}": f"sum by (verb) ({requests})"},
        Shown(unit="reqps"),
        width=6,
        stacked=True,
    )
    board.lines(
        "Requests by resource",
        "Requests to the API server per second.",
        {"{{resource}}": f"sum by (resource) ({requests})"},
        Shown(unit="reqps"),
        width=6,
        stacked=True,
    )
    board.lines(
        "Failed requests by code",
        "Answers of the API server per second that are no success; none: there was no answer. 409 and 404 now and then"
        " are normal; 429: it slows us down; 403: a right is missing.",
        {"{{code}}": f"sum by (code) ({failed})"},
        Shown(unit="reqps", least=0),
        width=6,
        stacked=True,
    )
    board.lines(
        "Watches listed anew",
        "Watches that had lost their place within 15 minutes, so that all was listed anew.",
        {"{{resource}}": f"sum by (resource) (increase(pcmoe_operator_watch_restarts_total{{{IT}}}[15m]))"},
        Shown(unit="none", least=0),
        width=6,
    )


def _process(board: Board) -> None:
    board.row("The process")
    board.lines(
        "CPU cores",
        "Cores that each pod uses. The chart sets no limit: a throttled operator loses its Lease.",
        {"{{pod}}": f"sum by (pod) (rate(pcmoe_operator_process_cpu_seconds_total{{{IT}}}[{LATELY}]))"},
        Shown(unit="none", least=0),
    )
    board.lines(
        "Memory",
        "Resident memory of each pod; the chart's limit is 512 MiB.",
        {"{{pod}}": f"max by (pod) (pcmoe_operator_process_resident_memory_bytes{{{IT}}})"},
        Shown(unit="bytes", least=0, limits=((None, NONE), (512 * 2**20, BAD))),
    )
    board.lines(
        "Open files",
        "Files and connections that each pod holds open.",
        {"{{pod}}": f"max by (pod) (pcmoe_operator_process_open_fds{{{IT}}})"},
        Shown(unit="none", least=0),
    )
