"""A real Prometheus for a test: scrapes what it is told to, evaluates rules, answers queries."""

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.cluster.errors import ProcessError
from tests.cluster.processes import Process, free_ports

READY_SECONDS = 30.0
ATTEMPTS = 3
"""Somebody else may take the port between our choice of it and its use."""
Sample = tuple[Mapping[str, str], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One page of metrics, and the labels that Kubernetes' service discovery would give it."""

    listen: str
    labels: Mapping[str, str]


class Prometheus:
    """Its own process, from `__enter__` to `__exit__`; reads every target once a second.

    Args:
        program: The binary.
        folder: For configuration, data and log.
        rules: A file of rules, or none.
        jobs: What to read besides the targets, as in `scrape_configs`.
    """

    def __init__(
        self,
        program: Path,
        folder: Path,
        targets: Sequence[Target] = (),
        rules: Path | None = None,
        jobs: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._program, self._folder = program, folder
        self._process: Process | None = None
        self.url = ""
        """Where it answers."""
        self._targets = folder / "targets.json"
        self.look_at(targets)
        named = {
            "job_name": "targets",
            "file_sd_configs": [{"files": [str(self._targets)], "refresh_interval": "1s"}],
        }
        settings = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "scrape_configs": [named, *jobs],
            "rule_files": [str(rules)] if rules else [],
        }
        (folder / "prometheus.yaml").write_text(json.dumps(settings))

    def look_at(self, targets: Sequence[Target]) -> None:
        """From now on read these targets; noticed within a second."""
        text = json.dumps([{"targets": [each.listen], "labels": dict(each.labels)} for each in targets])
        unfinished = self._targets.with_suffix(".new")
        unfinished.write_text(text)
        unfinished.replace(self._targets)

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            ProcessError: it ended or was not ready in time.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._start()
            except ProcessError as error:
                self._stop()
                if "address already in use" not in str(error) or attempt == ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def query(self, expression: str) -> list[Sample]:
        """What an expression is now, by labels."""
        data = self._get("query", query=expression)
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(each["metric"], float(each["value"][1])) for each in data["result"]]

    def selectors(self, expression: str) -> list[str]:
        """The selectors of series that an expression has, as Prometheus itself reads it, without ranges."""
        return sorted(set(_selectors(self._get("parse_query", query=expression))))

    def firing(self) -> set[str]:
        """Names of alerts that fire."""
        return {labels["alertname"] for labels, _ in self.query('ALERTS{alertstate="firing"}')}

    def until_fires(self, alert: str, **labels: str) -> None:
        """Wait until an alert fires that has these labels."""
        self.until(_alert(alert, labels))

    def until_over(self, alert: str, **labels: str) -> None:
        """Wait until it fires no more."""
        self.until(_alert(alert, labels), lambda found: not found)

    def until(
        self, expression: str, true: Callable[[list[Sample]], bool] = bool, seconds: float = 60.0
    ) -> list[Sample]:
        """Ask until the answer is as wanted; by itself, until there is one."""
        end = time.monotonic() + seconds
        while not true(found := self.query(expression)):
            assert time.monotonic() < end, f"{expression}: {found} after {seconds:g} s"
            time.sleep(0.2)  # between two looks; the deadline is above
        return found

    def _get(self, what: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {json.load(error)['error']}") from error

    def _start(self) -> Self:
        [port] = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        flags = (
            f"--config.file={self._folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        )
        self._process = Process("prometheus", [self._program, *flags], self._folder)
        self._process.wait_ready(self._ready, READY_SECONDS)
        return self

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _selectors(node: Any) -> Iterator[str]:
    """Every selector below a node of a parsed expression."""
    if isinstance(node, list):
        for each in node:
            yield from _selectors(each)
    elif isinstance(node, dict):
        if node.get("type") == "vectorSelector":
            # The name is one of the matchers.
            matchers = (
                f"{each['name']}{each['type']}{json.dumps(each['value'])}" for each in node["matchers"]
            )
            yield "{" + ",".join(matchers) + "}"
        for each in node.values():
            yield from _selectors(each)


def _alert(name: str, labels: Mapping[str, str]) -> str:
    wanted = {"alertname": name, "alertstate": "firing", **labels}
    return f"ALERTS{{{','.join(f'{key}={json.dumps(value)}' for key, value in wanted.items())}}}"


def at_once(rules: str, seconds: int = 2) -> str:
    """The same rules, but what has to be so for minutes has to be so for seconds, and so does a wait in the queue."""
    shorter = re.sub(r"(?m)^( +for:) \S+$", rf"\1 {seconds}s", rules)
    return re.sub(r"(_queue_oldest_seconds\)) > \d+", rf"\1 > {seconds}", shorter)
