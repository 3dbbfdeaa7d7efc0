"""Everything a run is made of: the network, disks, processes, coordinators, and what goes wrong with them."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.simulation.disk import Disk
from tests.simulation.faults import PEER_TIMEOUT, Fault, Kind
from tests.simulation.links import CRASHED, STOPPED, EndedError
from tests.simulation.network import Network
from tests.simulation.process import Process
from tests.simulation.run_invariants import RunWatch
from tests.simulation.scenario import Scenario
from tests.simulation.sessions import CoordinatorProcess

from pcmoe_node.protocol.coordinator import Coordinator
from pcmoe_node.protocol.membership import Member
from pcmoe_node.protocol.step import StepMachine

MachineFactory = Callable[[Scenario, int], StepMachine]
ARMED = 300.0
"""So long a crash at a point waits for its process to come by."""
RESUMED = 1
"""Digest of the round that a resumed run begins with."""


def plain_machine(scenario: Scenario, me: int, machine: type[StepMachine] = StepMachine) -> StepMachine:
    """The machine of a member, of this class."""
    return machine(
        me=me,
        members=scenario.members,
        micro_batches=scenario.micro_batches,
        in_flight=scenario.in_flight,
        served_layers=scenario.layers_of(me),
        first_step=scenario.first_step,
        evaluation_batches=scenario.evaluation_batches,
        tokens_per_step=9,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What a run is made with; a planted bug takes the place of one of them."""

    machine: MachineFactory = plain_machine
    member: type[Member] = Member
    coordinator: type[Coordinator] = Coordinator
    process: type[Process] = Process
    disk: type[Disk] = Disk


class World:
    """One run."""

    def __init__(self, scenario: Scenario, parts: Parts, trace: bool) -> None:
        """Processes and the coordinator start at random times, in any order."""
        self.scenario = scenario
        self.machine = parts.machine
        self.network = Network(scenario.seed, scenario.copies, scenario.spread)
        self.disks = [self._new_disk(parts.disk) for _ in range(scenario.members)]
        self.watch = RunWatch(scenario, self.disks, trace)
        self._parts = parts
        self._processes: list[list[Process]] = [[] for _ in range(scenario.members)]
        """Living ones, in the order of their start."""
        self._ended: set[int] = set()
        self._coordinators: list[CoordinatorProcess] = []
        self._cuts: dict[tuple[int, int], float] = {}
        self._armed: dict[tuple[int, str], Fault] = {}
        self._armed_coordinator: Fault | None = None
        self._away = [0.0] * scenario.members
        """How long a member does not reach the coordinator, once its session breaks."""
        self._pause = [0.0] * scenario.members
        """How long a member is down after its next end."""
        for member in range(scenario.members):
            self.network.after(20.0 * self.network.luck.random(), self._start, member)
        self.network.after(20.0 * self.network.luck.random(), self._start_coordinator, 0.0)
        for fault in scenario.faults:
            self.network.after(fault.time, self._strike, fault)

    def __str__(self) -> str:
        living = [process for processes in self._processes for process in processes]
        return "\n".join(map(str, (*living, *self._coordinators)))

    @property
    def over(self) -> bool:
        """Whether everybody has ended for good."""
        return len(self._ended) == self.scenario.members

    def note(self, what: str, *details: object) -> None:
        """One event for the trace."""
        self.watch.journal.note(self.network.now, what, *details)

    def step(self) -> bool:
        """Run the next event. False: there is none."""
        try:
            return self.network.step()
        except EndedError as end:
            self._has_ended(end.process, end.code, end.reason)
            return True

    # What processes see of it

    def beginning_at(self, first_round: int) -> Scenario:
        """The scenario from this round on."""
        return self.scenario.beginning_at(first_round)

    def coordinator(self) -> CoordinatorProcess | None:
        """The one that a process reaches when it dials: while there are several, any."""
        return self.network.luck.choice(self._coordinators) if self._coordinators else None

    def listening(self, member: int) -> Process | None:
        """The process that is reached under this participant's name."""
        living = self._processes[member]
        return self.network.luck.choice(living) if len(living) > 1 else (living[0] if living else None)

    def cut_until(self, one: int, other: int) -> float:
        """When two that can't reach one another will; 0: they do."""
        if not self._cuts:
            return 0.0
        until = self._cuts.get((min(one, other), max(one, other)), 0.0)
        return until if until > self.network.now else 0.0

    def reconnect_after(self, member: int) -> float:
        """How long it takes a member to reach the coordinator again."""
        away, self._away[member] = self._away[member], 0.0
        return away + 20.0 * self.network.luck.random()

    def strikes(self, process: Process, point: str) -> bool:
        """Whether this process ends at this point."""
        member = process.me
        fault = self._armed.pop((member, point), None)
        if fault is None or self.network.now > fault.time + ARMED:
            return False
        if fault.kind is Kind.SESSION_AT:
            self.watch.seen[fault.kind] += 1
            process.contact.break_session()
            return False
        self._pause[member] = fault.duration
        return True

    def strikes_coordinator(self) -> bool:
        """Whether the coordinator ends between two notices."""
        fault, self._armed_coordinator = self._armed_coordinator, None
        if fault is None or self.network.now > fault.time + ARMED:
            return False
        self.watch.seen["coordinator crash between notices"] += 1
        self._end_coordinators(None)
        self.network.after(fault.duration, self._start_coordinator, 0.0)
        return True

    # Start and end

    def _new_disk(self, disk: type[Disk]) -> Disk:
        first = self.scenario.first_round
        if not first:
            return disk()
        return disk(number=3, committed=first * (self.scenario.seed % 2), rounds={first: RESUMED})

    def _start(self, member: int) -> None:
        process = self._parts.process(self, member, self.disks[member], self._parts.member)
        self._processes[member].append(process)
        self.note(process.name, "starts with", self.disks[member])
        try:
            process.start()
        except EndedError as end:
            self._has_ended(process, end.code, end.reason)

    def _has_ended(self, process: Process, code: int, reason: str = "") -> None:
        self.note(process.name, "ends with", code, reason)
        newest = self._processes[process.me][-1] is process
        self._processes[process.me].remove(process)
        process.ended(clean=code != CRASHED)
        if code in (CRASHED, STOPPED):
            if newest:
                self._restart(process.me)
            return
        self.watch.ended(process, code, reason)
        if newest:
            self._ended.add(process.me)

    def _restart(self, member: int) -> None:
        pause, self._pause[member] = self._pause[member], 0.0
        self.network.after(pause or 1.0 + 20.0 * self.network.luck.random(), self._start, member)

    def _start_coordinator(self, overlap: float) -> None:
        """Another one; those before it run on for a while."""
        new = CoordinatorProcess(self, self._parts.coordinator(self._names()))
        self._coordinators.append(new)
        self.note("a coordinator starts")
        self.network.after(overlap, self._end_coordinators, new)

    def _names(self) -> tuple[str, ...]:
        return tuple(f"participant {member}" for member in range(self.scenario.members))

    def _end_coordinators(self, newest: CoordinatorProcess | None) -> None:
        """Ends all before this one."""
        while self._coordinators and self._coordinators[0] is not newest:
            if newest is not None and newest not in self._coordinators:
                return
            self.note("a coordinator ends")
            self._coordinators.pop(0).crash()

    # What goes wrong

    def _newest(self, member: int) -> Process | None:
        living = self._processes[member]
        return living[-1] if living else None

    def _strike(self, fault: Fault) -> None:
        if self.over:
            return
        self.note("fault:", fault)
        process = self._newest(fault.member)
        strike: dict[Kind, Callable[[Fault, Process | None], None]] = {
            Kind.CRASH: self._crash,
            Kind.CRASH_AT: self._arm,
            Kind.STOP: self._stop,
            Kind.FAILURE: self._fail,
            Kind.LOST_DISK: self._lose_disk,
            Kind.ZOMBIE: self._start_second,
            Kind.PARTITION: self._cut,
            Kind.SESSION: self._break_session,
            Kind.SESSION_AT: self._arm,
            Kind.COORDINATOR: self._crash_coordinator,
            Kind.COORDINATOR_AT: self._arm_coordinator,
            Kind.OVERLAP: self._overlap,
            Kind.BLACKOUT: self._black_out,
        }
        strike[fault.kind](fault, process)

    def _crash(self, fault: Fault, process: Process | None) -> None:
        if process is not None:
            self.watch.seen[fault.kind] += 1
            self._pause[fault.member] = fault.duration
            self._has_ended(process, CRASHED)

    def _arm(self, fault: Fault, process: Process | None) -> None:
        self._armed[fault.member, fault.point] = fault

    def _stop(self, fault: Fault, process: Process | None) -> None:
        if process is not None:
            self.watch.seen[fault.kind] += 1
            self._pause[fault.member] = fault.duration
            self._has_ended(process, STOPPED)

    def _fail(self, fault: Fault, process: Process | None) -> None:
        if process is not None:
            self.watch.seen[fault.kind] += 1
            self.watch.failed.add(fault.member)
            process.fail()

    def _lose_disk(self, fault: Fault, process: Process | None) -> None:
        if fault.member in self._ended:
            return
        self.watch.seen[fault.kind] += 1
        self.watch.lost_disk(fault.member)
        self.disks[fault.member] = self._parts.disk()
        if process is not None:
            self._has_ended(process, CRASHED)

    def _start_second(self, fault: Fault, process: Process | None) -> None:
        if process is None:
            return
        self.watch.seen[fault.kind] += 1
        if fault.other % 2:
            self._away[fault.member] = fault.duration
            process.contact.break_session()
        self._start(fault.member)

    def _cut(self, fault: Fault, process: Process | None) -> None:
        pair = min(fault.member, fault.other), max(fault.member, fault.other)
        self._cuts[pair] = max(self._cuts.get(pair, 0.0), self.network.now + fault.duration)
        long = fault.duration > PEER_TIMEOUT
        self.watch.seen["long partition" if long else "short partition"] += 1
        if long:
            for one, other in (pair, pair[::-1]):
                delay = PEER_TIMEOUT + 5.0 * self.network.luck.random()
                self.network.after(delay, self._silent, one, other)

    def _silent(self, member: int, peer: int) -> None:
        for process in list(self._processes[member]):
            link = process.links.get(peer)
            if link is not None:
                process.peer_gone(link, Kind.PARTITION)

    def _break_session(self, fault: Fault, process: Process | None) -> None:
        if process is not None:
            self.watch.seen[fault.kind] += 1
            process.contact.break_session()

    def _crash_coordinator(self, fault: Fault, process: Process | None) -> None:
        self.watch.seen[fault.kind] += 1
        self._end_coordinators(None)
        self.network.after(fault.duration, self._start_coordinator, 0.0)

    def _arm_coordinator(self, fault: Fault, process: Process | None) -> None:
        self._armed_coordinator = fault

    def _overlap(self, fault: Fault, process: Process | None) -> None:
        if self._coordinators:
            self.watch.seen[fault.kind] += 1
            self._start_coordinator(fault.duration)
            # Nodes move over one by one.
            for member in range(self.scenario.members):
                self.network.after(fault.duration * self.network.luck.random(), self._move, member)

    def _move(self, member: int) -> None:
        process = self._newest(member)
        if process is not None:
            process.contact.break_session()

    def _black_out(self, fault: Fault, process: Process | None) -> None:
        self.watch.seen[fault.kind] += 1
        self._end_coordinators(None)
        self.network.after(fault.duration, self._start_coordinator, 0.0)
        for member in range(self.scenario.members):
            newest = self._newest(member)
            if newest is not None:
                self._has_ended(newest, CRASHED)
