"""Is this process alive, and is it ready? From what it has heard and what waits; pure but for the clock.

Alive means that a restart would not help. A watch says nothing while nothing changes, so a quiet one proves nothing:
each is opened anew every so many seconds, and one that was not is dead. Whoever waits for the lease watches
too. Whoever can't reach the API server is started again once, and is alive then: it waits until there is one to watch.
"""

import time
from collections.abc import Callable, Iterable, Mapping

Watch = tuple[str, str]
"""(resource, namespace)."""
DEAD_AFTER = 4
"""A watch is dead that was not opened for so many times the seconds that one lasts."""
STALLED_SECONDS = 300.0
"""A key that has waited so long while no worker finished anything: the workers hang."""


class Health:
    """Hears of answers and watches; `watch_seconds` is how long one watch lasts."""

    def __init__(self, watch_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._watch_seconds = watch_seconds
        self._clock = clock
        self._answered = False
        self._heard: dict[Watch, float] = {}
        self._restarts: dict[str, int] = {}
        self.stalled_seconds: Callable[[], float] = lambda: 0.0
        """What the queue says of itself, once there is one."""

    def answered(self) -> None:
        """The API server has answered a request of ours."""
        self._answered = True

    def expect(self, watches: Iterable[Watch]) -> None:
        """From now on these watches have to be open; no others."""
        self._heard = dict.fromkeys(watches, self._clock())
        self._restarts = {resource: self._restarts.get(resource, 0) for resource, _ in self._heard}

    def opened(self, watch: Watch) -> None:
        """The API server has answered a watch."""
        if watch in self._heard:
            self._heard[watch] = self._clock()

    def restarted(self, watch: Watch) -> None:
        """A watch had lost its place, and all that it tells of was listed anew."""
        if watch in self._heard:
            self._restarts[watch[0]] += 1

    def restarts(self) -> Mapping[str, int]:
        """How often that happened, by resource, in all namespaces together."""
        return dict(self._restarts)

    def ages(self) -> Mapping[Watch, float]:
        """Seconds since each watch was opened last."""
        now = self._clock()
        return {watch: now - heard for watch, heard in self._heard.items()}

    def faults(self) -> list[str]:
        """Why this process should be started again; mostly nothing."""
        limit = self._watch_seconds * DEAD_AFTER
        found = [
            f"the watch of {resource} in {namespace} is dead: not opened for {age:.0f} s"
            for (resource, namespace), age in self.ages().items()
            if age > limit
        ]
        stalled = self.stalled_seconds()
        if stalled > STALLED_SECONDS:
            found.append(f"the workers hang: a consortium waits since {stalled:.0f} s, and none was finished")
        return found

    @property
    def ready(self) -> bool:
        """Whether the API server has answered at all. Nobody has to lead for that, and no CRD has to be there: an
        upgrade would wait for ever for a new pod that waits for the lease of the old one."""
        return self._answered
