"""When the operator says that it should be started again, and when that it is ready."""

from pcmoe_operator.health import Health

WATCHES = [("pods", "one"), ("jobs", "one")]


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def health() -> tuple[Health, Clock]:
    """With watches of ten seconds."""
    clock = Clock()
    return Health(10.0, clock), clock


def test_whoever_waits_for_the_lease_is_live_however_long_that_takes() -> None:
    found, clock = health()
    clock.now += 1e6
    assert found.faults() == []


def test_a_watch_that_is_opened_anew_is_live_without_any_news() -> None:
    found, clock = health()
    found.expect(WATCHES)
    for _ in range(100):
        clock.now += 10.0
        for watch in WATCHES:
            found.opened(watch)
    assert found.faults() == []
    assert found.ages() == dict.fromkeys(WATCHES, 0.0)


def test_a_watch_that_was_never_opened_or_not_for_long_is_named() -> None:
    found, clock = health()
    found.expect(WATCHES)
    found.opened(("pods", "one"))
    clock.now += 39.0
    assert found.faults() == []
    found.opened(("pods", "one"))
    clock.now += 2.0
    assert found.faults() == ["the watch of jobs in one is dead: not opened for 41 s"]


def test_what_was_not_expected_is_not_watched_over() -> None:
    found, clock = health()
    found.expect(WATCHES)
    found.opened(("secrets", "one"))
    assert set(found.ages()) == set(WATCHES)
    found.expect(())
    clock.now += 1e6
    assert found.faults() == []


def test_workers_that_finish_nothing_while_a_key_waits_hang() -> None:
    found, _ = health()
    found.stalled_seconds = lambda: 299.0
    assert found.faults() == []
    found.stalled_seconds = lambda: 301.0
    assert found.faults() == ["the workers hang: a consortium waits since 301 s, and none was finished"]


def test_it_is_ready_once_the_api_server_has_answered() -> None:
    found, _ = health()
    assert not found.ready
    found.answered()
    assert found.ready
