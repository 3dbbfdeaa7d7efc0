"""What the report says besides figures: names of kinds, and sentences that must stay plain and true."""

from collections.abc import Mapping

SECTIONS: Mapping[str, tuple[str, str]] = {
    "pays": ("Does it pay?", "for whoever decides"),
    "work": ("Where did the time go?", "for whoever runs it"),
    "privacy": ("What left, and who could read it?", "for the data-protection officer"),
}
"""Title, and for whom."""
ARRANGEMENTS: Mapping[str, str] = {
    "together": "together",
    "alone-shard": "alone, same memory",
    "alone-all": "alone, all experts",
    "union": "one model, all text",
}
BASELINES = (
    "Held-out loss after round {round}: from the same weights, on the same text in the same order, in as many steps. "
    "“Alone, same memory” has only the experts that the plan gives the organisation, and its router's rows for those: "
    "the same memory for tensors. “Alone, all experts” holds and trains all of them. “One model, all text” is one "
    "process with one backbone on everybody's text: a reference, for partners may not pool their text."
)
NO_BASELINES = (
    "Not measured. What each organisation would have reached alone is made by `pcmoe run --resume DIR --baselines`, on "
    "the same text in the same order, where all data lie on one machine."
)
CONTINUATIONS = (
    "How the starting model and each organisation's trained one go on from a prompt that somebody typed. An "
    "impression, not a measurement; what is said is made up. A continuation may repeat text that was trained on: look "
    "before you pass it on."
)
TOKENS: Mapping[str, str] = {
    "ownToken": "The token itself, read from its hidden state",
    "nextToken": "The next token, read from the gradient",
}
ATTACKS: Mapping[str, Mapping[str, str]] = {
    "ownToken": {
        "probe": "linear probe",
        "probeUpperBound": "… taught with today's weights",
        "mostFrequent": "floor: most frequent token",
        "unigram": "floor: unigram",
    },
    "nextToken": {
        "formula": "formula",
        "probe": "linear probe",
        "probeUpperBound": "… taught with today's weights",
        "withoutGradients": "guess without gradients",
        "mostFrequent": "floor: most frequent token",
        "unigram": "floor: unigram",
    },
}
LEAK = (
    "Measured on the organisation's own text and machine; nothing was sent for it. Of the rows that one partner is "
    "sent in a layer: the share whose token it can name. Floors are what guessing reaches without looking at any row. "
    "Lower is safer."
)
MEASURE = (
    "run `python -m pcmoe_node.leak --config DIR/NAME/config.json --output DIR/NAME/leak.json`, each on its own text, "
    "then `pcmoe report DIR`."
)
NO_LEDGER = (
    "No participant's ledger lies here: each keeps its own. `pcmoe exposure DIR` tells it where it lies."
)
REFUSED = (
    "A frame or a connection is refused where it isn't what the agreement says. A round that was done once more after "
    "a loss left the house again, and counts again above. A view whose end nobody wrote down goes on, or its process "
    "was killed: at least this much left. Connections are those of the last process."
)
SETTINGS = "Partners with the same digests hold the same agreement and plan; `pcmoe agreement` prints it."
TENSORS = {
    "backbone": "backbone, with experts of local layers",
    "experts": "experts",
    "masters": "float32 master weights",
    "gradients": "gradients",
    "moments": "optimizer moments",
}
PHASES = {
    "forward": "own forward",
    "backward": "own backward",
    "host": "experts, for others and itself",
    "host_compute": "experts, for others and itself",
    "wait": "waiting for the network",
    "exchange_wait": "waiting for the network",
    "optimizer": "optimizer",
    "vote": "votes on steps",
    "evaluation": "evaluation",
    "data": "reading data",
    "checkpoint": "checkpoint",
    "other": "everything else",
}
"""Older nodes say `host` and `wait`."""

LOSS = (
    "Mean loss per token (cross-entropy, nats) on each organisation's own text; lower is better. Held-out documents "
    "are never trained on. Round 0 is the starting model, before any training. All charts share one scale."
)
MEMORY_EXACT = (
    "The bars are exact: the bytes of all weights, gradients and optimizer state. They stand for "
    "{participants} participants, a model of {parameters} parameters of which {expertSharePercent} % are "
    "experts ({sharedOutPercent} % in layers that are shared out), and {optimizer}. Another model or "
    "another number of participants gives another saving. “One for all” is a single process that trains "
    "the whole model by itself."
)
MEMORY_MEASURED = (
    "Measured where it ran: the largest resident memory of each process, above what Python and its "
    "libraries take after import. It also holds activations, message buffers, the text, and the "
    "checkpoint while it is written; these do not shrink with the number of participants, so for a small "
    "model they weigh most."
)
TRAFFIC = (
    "Bytes that each organisation (row) sent to each other one (column), with padding, without TLS's own."
)
REPLIES = (
    "From sending a request to taking up its answer, on average: network, queue and the partner's work together. "
    "Rows ask, columns answer; a dark column is a slow partner, or one far away. Several requests are under way at a "
    "time, so these times overlap and don't add up to the time waited."
)
RECEIVED = "Where a participant's part is missing, its row is what the others received from it."
TIME = "Seconds of each participant over all rounds. Waiting is for partners and for the network alike."
SHARED = "Participants of a local run share the processor: while one waits, the others compute."
GPU_HOURS = ("GPU-hours trained", "GPU-hours held")
MACHINES_GPU = (
    "GPU-hours trained are those of the rounds above, each once; GPU-hours held are those of the pods that are "
    "still listed, also while they load, wait, or do a round again."
)
MACHINES = (
    "A stored round is its size on disk. “Sent out” is the share of an organisation's tokens, counted per layer, "
    "of which a partner computed a part."
)
ELSEWHERE = (
    "runs in another cluster and keeps its own figures; ask that partner for its report",
    "run in other clusters and keep their own figures; ask those partners for their reports",
)
"""One, and more than one."""
EVENTS = (
    "Times are UTC. A view is a stretch in which everybody is connected; when somebody is lost, the others leave "
    "it, wait, and go on from the last round that all have stored."
)

SENT_AND_KEPT = (
    (
        "Hidden states: per layer, one row of numbers for each token whose router chose an expert there",
        "The text, and which documents there are",
    ),
    ("Gradients of those rows, on the way back", "Token ids, labels and positions"),
    (
        "Which experts each row is for, and their weights relative to each other",
        "Weights and gradients of the backbone: embeddings, attention, router, head",
    ),
    (
        "Per step: how many tokens were trained, and the squared norm of its experts' gradients",
        "Weights of the experts it hosts, and their optimizer state",
    ),
    (
        "Its name, its certificate, the agreement's digest, how far it is, and whom it waits for; when it leaves, why",
        "Its losses",
    ),
)
EXPOSURE = (
    "By each participant's own ledger, over the whole run: the share of its tokens whose hidden state a partner got at "
    "one layer or more, the share of next tokens whose gradient it got, and the documents of which it saw anything. "
    "Bytes about own data are hidden states and gradients with all that goes with them; bytes in answer are what the "
    "own experts made of the partner's. `pcmoe exposure DIR` tells more."
)
WARNING_LEAD = "Hidden states and gradients are text-equivalent to whoever receives them:"
WARNING = (
    "nearly all of the text behind them can be recovered. TLS keeps them from everybody else on the network, not "
    "from the partner who hosts the expert. Train this way with partners to whom you would show the text, "
    "but may not hand over the records or the model. A partner that returns plausible wrong numbers is "
    "not detected."
)
