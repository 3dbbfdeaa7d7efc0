"""A consortium of real processes that tests can hurt: kill, stop and start nodes and coordinator at will."""

import http.client
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.exchange.rigs import changed, coordinator_config, free_port
from tests.faults.nursery import Spawn, Spawned, forked
from tests.faults.proxy import FaultProxy

from pcmoe_node.config import NodeConfig

START_SECONDS = 90.0
Status = Callable[[dict[str, Any]], bool]
BROKEN_NODE = str(Path(__file__).with_name("broken_node.py"))


class Process:
    """One process that may be started again; its output is added to one log."""

    def __init__(
        self, name: str, log: Path, command: Callable[[str | None], list[str]], spawn: Spawn = forked
    ) -> None:
        """`command`: what follows `python`, for a planted fault or none."""
        self.name = name
        self.log_file = log
        self.codes: list[int] = []
        """Exit codes of all its lives that have ended and were looked at."""
        self._command = command
        self._spawn = spawn
        self._process: Spawned | None = None

    def start(self, fault: str | None = None) -> None:
        """Start it, with a planted fault if one is given."""
        assert self._process is None or self._process.poll() is not None, f"{self.name} runs already"
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        told = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self._process = self._spawn(self._command(fault), self.log_file, told)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)

    def poll(self) -> int | None:
        """Exit code as a shell has it (128 + signal), or None while it runs."""
        assert self._process is not None
        code = self._process.poll()
        return None if code is None else code if code >= 0 else 128 - code

    def wait(self, seconds: float) -> int:
        """Its exit code within a deadline."""
        end = time.monotonic() + seconds
        while (code := self.poll()) is None:
            assert time.monotonic() < end, f"{self.name} still runs after {seconds:g} s:\n{self.tail()}"
            time.sleep(0.02)  # between two looks; the deadline is above
        return code

    @property
    def log(self) -> str:
        """All it said, in all its lives."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def tail(self, lines: int = 25) -> str:
        """The end of its log."""
        return "\n".join(self.log.splitlines()[-lines:])

    def last_error(self) -> str:
        """The last line that tells an error."""
        errors = [line for line in self.log.splitlines() if " ERROR " in line]
        return errors[-1] if errors else ""


class Consortium:
    """Processes of one run. Use as a `with`: nothing is left behind."""

    def __init__(
        self,
        configs: Sequence[NodeConfig],
        coordinator_listen: str | None = None,
        spawn: Spawn = forked,
    ) -> None:
        """`coordinator_listen`: where the coordinator really listens, if nodes reach it through a proxy."""
        self.configs = [
            changed(
                config, status_listen=f"127.0.0.1:{free_port()}", termination_message=_message_path(config)
            )
            for config in configs
        ]
        self.nodes = [process_of(config, spawn=spawn) for config in self.configs]
        told = coordinator_config(configs).model_copy(update={"status_listen": f"127.0.0.1:{free_port()}"})
        self.coordinator_status = told.status_listen
        if coordinator_listen is not None:
            identity = told.identity.model_copy(update={"listen": coordinator_listen})
            told = told.model_copy(update={"identity": identity})
        home = Path(told.log_directory).parent
        (home / "config.json").write_text(told.model_dump_json())
        command = ["-m", "pcmoe_node.coordination", "--config", str(home / "config.json")]
        self.coordinator = Process("coordinator", home / "coordinator.log", lambda _fault: command, spawn)

    def __enter__(self) -> "Consortium":
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.nodes, self.coordinator):
            process.kill()

    def start(self, **faults: str) -> None:
        """Start everybody; `faults` by participant."""
        self.coordinator.start()
        for node in self.nodes:
            node.start(faults.get(node.name))

    def status(self, index: int) -> dict[str, Any]:
        """A node's `/status`; empty while it doesn't answer."""
        return status_of(self.configs[index].status_listen)

    def until(
        self, index: int, true: Callable[[dict[str, Any]], bool], seconds: float = START_SECONDS
    ) -> dict[str, Any]:
        """Look at a node's status until something holds."""
        end = time.monotonic() + seconds
        while True:
            found = self.status(index)
            if found and true(found):
                return found
            code = self.nodes[index].poll()
            assert code is None, f"{self.nodes[index].name} ended with {code}:\n{self.nodes[index].tail()}"
            assert time.monotonic() < end, f"{found}\n{self.everything()}"
            time.sleep(0.02)  # between two looks; the deadline is above

    def step(self, number: int, index: int = 0, seconds: float = START_SECONDS) -> None:
        """Wait until a node has decided a step."""
        self.until(index, lambda status: status["step"] >= number, seconds)

    def round(self, number: int, index: int = 0, seconds: float = START_SECONDS) -> None:
        """Wait until a node has stored a round."""
        self.until(index, lambda status: status["round"] >= number, seconds)

    def finish(self, seconds: float, restart: bool = True) -> None:
        """Run to the end: whoever dies by a signal or lost a peer is started again, as the runner does."""
        end = time.monotonic() + seconds
        while not all(node.poll() == 0 for node in self.nodes):
            for process in (*self.nodes, self.coordinator):
                code = process.poll()
                if code in (None, 0):
                    continue
                process.codes.append(code)
                assert restart and (code > 128 or code == 75), (
                    f"{process.name} ended with {code}:\n{self.everything()}"
                )
                process.start()
            assert time.monotonic() < end, f"not finished within {seconds:g} s:\n{self.everything()}"
            time.sleep(0.05)  # between two looks; the deadline is above

    def everything(self) -> str:
        """The end of every log."""
        return "\n".join(f"--- {p.name}\n{p.tail()}" for p in (*self.nodes, self.coordinator))


def process_of(config: NodeConfig, where: str = "", spawn: Spawn = forked) -> Process:
    """A node that can be started; `where` tells it from another one of the same participant."""
    folder = Path(config.checkpoint_directory).parent
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"config{where}.json"
    path.write_text(config.model_dump_json())
    return Process(config.participant + where, folder / f"node{where}.log", _node_command(path), spawn)


def _message_path(config: NodeConfig) -> str:
    return str(Path(config.checkpoint_directory).parent / "termination.json")


def _node_command(config: Path) -> Callable[[str | None], list[str]]:
    def command(fault: str | None) -> list[str]:
        what = ["-m", "pcmoe_node"] if fault is None else [BROKEN_NODE, fault]
        return [*what, "--config", str(config)]

    return command


def status_of(listen: str) -> dict[str, Any]:
    """`/status` of a process; empty while it doesn't answer."""
    connection = http.client.HTTPConnection(listen, timeout=2)
    try:
        connection.request("GET", "/status")
        found: dict[str, Any] = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    finally:
        connection.close()
    return found


@contextmanager
def running(configs: Sequence[NodeConfig], **faults: str) -> Iterator[Consortium]:
    """A consortium that has been started."""
    with Consortium(configs) as consortium:
        consortium.start(**faults)
        yield consortium


def through_proxies(
    configs: Sequence[NodeConfig], stack: ExitStack, **settings: float
) -> tuple[list[NodeConfig], list[FaultProxy]]:
    """The configurations with a proxy in front of every participant and the coordinator, and those proxies in order."""
    targets = [*(peer.endpoint for peer in configs[0].participants), configs[0].coordinator.endpoint]
    proxies = [stack.enter_context(FaultProxy(str(target), **settings)) for target in targets]
    rerouted = []
    for config in configs:
        peers = [peer.model_dump(mode="json") for peer in config.participants]
        for index, peer in enumerate(peers):
            if index != config.index:
                peer["endpoint"] = proxies[index].endpoint
        coordinator = config.coordinator.model_dump(mode="json") | {"endpoint": proxies[-1].endpoint}
        rerouted.append(changed(config, participants=peers, coordinator=coordinator))
    return rerouted, proxies
