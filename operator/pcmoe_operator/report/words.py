"""What the report says besides figures: names of kinds, and sentences that must stay plain and true."""

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
    "wait": "waiting for the network",
    "optimizer": "optimizer",
    "evaluation": "evaluation",
    "data": "reading data",
    "checkpoint": "checkpoint",
}

LOSS = (
    "Mean loss per token on each organisation's own text; lower is better. Held-out documents are never "
    "trained on. Round 0 is the starting model, before any training. All charts share one scale."
)
MEMORY_EXACT = (
    "The bars are exact: the bytes of all weights, gradients and optimizer state. They stand for "
    "{participants} participants, a model of {parameters} parameters of which {expertSharePercent} % are "
    "experts ({sharedOutPercent} % in layers that are shared out), and {optimizer}. Another model or "
    "another number of participants gives another saving. “One for all” is a single process that trains "
    "the whole model by itself."
)
MEMORY_MEASURED = (
    "Measured on this machine: the largest resident memory of each process, above what Python and its "
    "libraries take after import. It also holds activations, message buffers, the text, and the "
    "checkpoint while it is written; these do not shrink with the number of participants, so for a small "
    "model they weigh most."
)
TRAFFIC = (
    "Bytes that each organisation (row) sent to each other one (column), with padding, without TLS's own."
)
TIME = (
    "Seconds of each participant over all rounds. Participants of a local run share the processor: while "
    "one waits, the others compute."
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
WARNING_LEAD = "Hidden states and gradients are text-equivalent to whoever receives them:"
WARNING = (
    "much of the text can be recovered from them. TLS keeps them from everybody else on the network, not "
    "from the partner who hosts the expert. Train this way with partners to whom you would show the text, "
    "but may not hand over the records or the model. A partner that returns plausible wrong numbers is "
    "not detected."
)
