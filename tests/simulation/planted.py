"""Machines with one planted bug each: mistakes this protocol was designed against, and slips around them."""

from tests.simulation.scenario import Scenario

from pcmoe_node.protocol.effects import Decide, Drop, Effect, Phase, Request, Serve
from pcmoe_node.protocol.step import StepMachine, StepState
from pcmoe_node.protocol.vote import Pool, Tally


class HoldsAndWaits(StepMachine):
    """Hands out credits for kept activations layer by layer: enough for one owner, not for two half-way."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.credits = self.in_flight * len(self.served_layers)
        self.parked: list[Serve] = []

    def _spend(self, effects: list[Effect]) -> list[Effect]:
        granted: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Serve) and effect.request.phase is Phase.FORWARD:
                if not self.credits:
                    self.parked.append(effect)
                    continue
                self.credits -= 1
            granted.append(effect)
        return granted

    def request(self, peer: int, request: Request, item: object) -> list[Effect]:
        return self._spend(super().request(peer, request, item))

    def served(self, peer: int, request: Request) -> list[Effect]:
        super().served(peer, request)
        if request.phase is not Phase.BACKWARD:
            return []
        self.credits += 1
        parked, self.parked = self.parked, []
        return self._spend(list(parked))

    def applied(self) -> list[Effect]:
        self.credits = self.in_flight * len(self.served_layers)
        return self._spend(super().applied())


class DecidesEarly(StepMachine):
    """Takes one missing vote for granted."""

    def _decide_if_ready(self) -> list[Effect]:
        now = self._now
        missing = now.tally.missing
        if now.cast and now.tally.has(self.me) and len(missing) == 1 and not now.decided:
            now.decided = True
            votes = [now.tally._votes[peer] for peer in range(self.members) if peer not in missing]
            pool = sum(vote.squared_norm for vote in votes)
            return [Decide(self.version, self._decision(Pool(pool, True, ())))]
        return super()._decide_if_ready()


class SkipsWithoutVotes(StepMachine):
    """Knows from the STEP_ENDs that a step is skipped, and doesn't wait for votes that change nothing."""

    def _decide_if_ready(self) -> list[Effect]:
        now = self._now
        tokens = sum(end.tokens for end in now.ends.values())
        if now.cast and now.tally.has(self.me) and not tokens and not now.decided:
            now.decided = True
            return [Decide(self.version, self._decision(Pool(0.0, True, ())))]
        return super()._decide_if_ready()


class ServesEarly(StepMachine):
    """Serves what belongs to the next version at once instead of holding it."""

    phase = Phase.FORWARD

    def request(self, peer: int, request: Request, item: object) -> list[Effect]:
        effects = super().request(peer, request, item)
        if not effects and request.phase is self.phase:
            return [self._next.held.pop()]
        return effects


class EvaluatesStale(ServesEarly):
    """Answers an evaluation of the next version with the weights it has."""

    phase = Phase.EVALUATE


class AppliesTwice(StepMachine):
    """Doesn't recognise the copy of a request, so that its gradient counts twice."""

    def request(self, peer: int, request: Request, item: object) -> list[Effect]:
        effects = super().request(peer, request, item)
        if request.step == self.version and isinstance(effects[0], Drop):
            return [Serve(peer, request, item)]
        return effects


class DecidesTwice(StepMachine):
    """Takes the copy of the last vote for the last vote."""

    def vote(self, peer: int, step: int, squared_norm: float, finite: bool) -> list[Effect]:
        effects = super().vote(peer, step, squared_norm, finite)
        if step == self.version and effects and isinstance(effects[0], Drop) and self._now.tally.complete:
            self._now.decided = False
            return self._decide_if_ready()
        return effects


class VotesBeforeEntering(StepMachine):
    """Votes as soon as all owners are done, though it may still evaluate at this version."""

    scenario: Scenario

    def _cast_if_ready(self) -> list[Effect]:
        entered, self._now.owners = self._now.owners, self.scenario.owners(self.version)
        effects = super()._cast_if_ready()
        self._now.owners = entered
        return effects


class ForgetsHeld(StepMachine):
    """Loses what came before its time."""

    def applied(self) -> list[Effect]:
        super().applied()
        return []


class OrderOfArrival(Tally):
    """Adds up votes as they came."""

    def result(self) -> Pool:
        pool = super().result()
        norms = [vote.squared_norm for vote in self._votes.values()]
        total = 0.0
        for norm in norms:
            total += norm
        return Pool(total, pool.finite, pool.reasons)


class AddsAsTheyCome(StepMachine):
    """Sums the votes in order of arrival, so that the last bit differs between participants."""

    def _blank(self) -> StepState:
        return StepState(OrderOfArrival(self.names))
