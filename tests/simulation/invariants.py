"""What must hold in every view. Kept apart from the machine and the nodes: it does its own accounting.

What must hold from view to view is in `run_invariants.py`.
"""

from collections import Counter, defaultdict

from tests.simulation.scenario import Scenario

from pcmoe_node.protocol.effects import Decision, Phase, Request

Place = tuple[int, int, Phase, int, int, int]


class InvariantError(AssertionError):
    """An invariant does not hold."""


def require(holds: bool, what: str) -> None:
    """An `InvariantError` that says what was found, unless `holds`."""
    if not holds:
        raise InvariantError(what)


class Journal:
    """What happened in a run, from its beginning to its end."""

    def __init__(self, trace: bool) -> None:
        """`trace`: keep a line per event; off for speed, since a seed can be run again."""
        self.trace: list[str] | None = [] if trace else None
        self.seen: Counter[str] = Counter()
        """How often each thing happened, so that a test can tell that it does happen."""

    def note(self, time: float, what: str, *details: object) -> None:
        """One event for the trace."""
        if self.trace is not None:
            self.trace.append(f"{time:9.2f}  {what} {' '.join(map(str, details))}")


class Watch:
    """Sees every event of a view, and raises an `InvariantError` at the first one that must not happen."""

    def __init__(self, scenario: Scenario, mark: str, journal: Journal) -> None:
        """`scenario`: one that begins at the round of the view."""
        self._scenario = scenario
        self.mark = mark
        self.journal = journal
        self.seen = journal.seen
        self.version = [scenario.first_step] * scenario.members
        """Of each node's weights."""
        self._served: set[Place] = set()
        self._open: defaultdict[tuple[int, int], Counter[int]] = defaultdict(Counter)
        self._ends: dict[int, dict[int, tuple[int, bool]]] = defaultdict(dict)
        self._votes: dict[int, dict[int, tuple[float, bool]]] = defaultdict(dict)
        self._decisions: dict[int, Decision] = {}
        self._decided = [scenario.first_step] * scenario.members
        self._evaluated: set[tuple[int, int]] = set()
        self._entered: set[tuple[int, int]] = set()
        self._done: set[int] = set()
        self._left: set[int] = set()

    # Requests

    def served(self, host: int, owner: int, request: Request) -> None:
        """A host has answered a request: once, at the right version, in order, within the quota."""
        place = (host, owner, request.phase, request.step, request.micro_batch, request.layer)
        require(place not in self._served, f"exactly once: {host} served {request} of {owner} twice")
        require(
            self.version[host] == request.step,
            f"version: {host} served {request} of {owner} with weights of version {self.version[host]}",
        )
        require(host not in self._left, f"farewell: {host} served {request} of {owner} after leaving")
        self._served.add(place)
        self.seen[request.phase.name] += 1
        if request.phase is Phase.EVALUATE:
            return
        opened = self._open[host, owner]
        if request.phase is Phase.FORWARD:
            opened[request.micro_batch] += 1
            require(
                len(opened) <= self._scenario.in_flight,
                f"quota: {owner} has {len(opened)} in flight at {host}",
            )
            return
        forward = (host, owner, Phase.FORWARD, *place[3:])
        require(forward in self._served, f"order: {host} served {request} of {owner} before its FORWARD")
        opened[request.micro_batch] -= 1
        if not opened[request.micro_batch]:
            del opened[request.micro_batch]

    def was_served(self, host: int, owner: int, request: Request) -> bool:
        """Whether this request was answered before, so that this one is a late copy."""
        return (
            host,
            owner,
            request.phase,
            request.step,
            request.micro_batch,
            request.layer,
        ) in self._served

    # Steps

    def entered(self, node: int, step: int) -> None:
        """A node began a step: after its evaluation, if one was due."""
        evaluated = not self._scenario.evaluates(step) or (node, step) in self._evaluated
        require(evaluated, f"order: {node} entered step {step} before it evaluated")
        self._entered.add((node, step))

    def ended(self, node: int, step: int, tokens: int, ok: bool) -> None:
        """An owner said STEP_END."""
        require(node in self._scenario.owners(step), f"owners: {node} ended step {step}")
        require(node not in self._ends[step], f"exactly once: {node} ended step {step} twice")
        self._ends[step][node] = (tokens, ok)

    def voted(self, node: int, step: int, squared_norm: float, finite: bool) -> None:
        """A node said VOTE: after entering, and after every owner's STEP_END."""
        require((node, step) in self._entered, f"fence: {node} voted in step {step} before entering it")
        missing = self._scenario.owners(step) - self._ends[step].keys()
        require(not missing, f"atomic: {node} voted in step {step} before {sorted(missing)} ended it")
        require(node not in self._votes[step], f"exactly once: {node} voted twice in step {step}")
        self._votes[step][node] = (squared_norm, finite)

    def decided(self, node: int, step: int, decision: Decision, unserved: int) -> None:
        """A node decided: each step once, in order, with all votes, as everybody, with nothing to serve."""
        require(self._decided[node] == step, f"atomic: {node} decided {step}, expected {self._decided[node]}")
        require(
            len(self._votes[step]) == self._scenario.members,
            f"atomic: {node} decided {step} before all votes",
        )
        require(unserved == 0, f"atomic: {node} decided {step} with {unserved} requests to be served")
        first = self._decisions.setdefault(step, decision)
        require(
            repr(decision) == repr(first), f"atomic: {node} decided {step} as {decision}, others as {first}"
        )
        self._check_decision(step, decision)
        self._check_all_served(node, step)
        self._decided[node] += 1
        self.seen["applied" if decision.apply else "skipped"] += 1

    def applied(self, node: int, step: int) -> None:
        """A node's weights are now of version `step + 1`: nobody may still evaluate with the old ones."""
        require(self.version[node] == step, f"atomic: {node} applied {step} at version {self.version[node]}")
        self.version[node] += 1
        for owner in range(self._scenario.members):
            self._open.pop((node, owner), None)
            fenced = not self._scenario.evaluates(step) or (owner, step) in self._evaluated
            require(fenced, f"fence: {node} left version {step} while {owner} evaluated at it")

    def evaluated(self, node: int, version: int) -> None:
        """A node's evaluation at this version is over."""
        self._evaluated.add((node, version))

    # The end

    def done(self, node: int) -> None:
        """A node needs nobody any more."""
        require(self._decided[node] == self._scenario.total_steps, f"farewell: {node} is done too early")
        self._done.add(node)

    def left(self, node: int) -> None:
        """A node is gone."""
        require(len(self._done) == self._scenario.members, f"farewell: {node} left, done are {self._done}")
        self._left.add(node)

    def _check_decision(self, step: int, decision: Decision) -> None:
        ends = self._ends[step].values()
        votes = [self._votes[step][member] for member in range(self._scenario.members)]
        tokens = sum(tokens for tokens, _ in ends)
        apply = tokens > 0 and all(ok for _, ok in ends) and all(finite for _, finite in votes)
        norm = 0.0
        for squared_norm, _ in votes:
            norm += squared_norm
        right = (decision.apply, decision.tokens, decision.squared_norm) == (apply, tokens, norm)
        require(right, f"atomic: step {step} was decided as {decision}, not as {apply}, {tokens}, {norm}")

    def _check_all_served(self, host: int, step: int) -> None:
        for owner, (_, ok) in self._ends[step].items():
            if owner == host or not ok:
                continue
            for layer in self._scenario.layers_of(host):
                for micro_batch in range(self._scenario.micro_batches):
                    place = (host, owner, Phase.BACKWARD, step, micro_batch, layer)
                    require(place in self._served, f"exactly once: {host} decided {step} without {place}")
