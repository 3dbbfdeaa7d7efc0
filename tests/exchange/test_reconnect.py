"""A cut shorter than the agreed silence costs time, and nothing else; a renewed certificate costs nothing."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from cryptography import x509
from tests.exchange.rigs import Rig, message, open_rig, pattern, together, wait_until
from tests.exchange.strangers import authority_of, certificate, folder_of, install
from tests.faults.proxy import FaultProxy

from pcmoe_node.config import NodeConfig
from pcmoe_node.exchange.base import Kind

PATIENT = {"peer_timeout_seconds": 6, "connections": 2}


@contextmanager
def through_a_proxy(rate: float | None = None, **overrides: Any) -> Iterator[tuple[Rig, list[FaultProxy]]]:
    """Two participants whose every connection goes through a proxy."""
    with ExitStack() as stack:
        proxies: list[FaultProxy] = []

        def through(_dialer: int, _target: int, endpoint: str) -> str:
            proxies.append(stack.enter_context(FaultProxy(endpoint, rate=rate)))
            return proxies[-1].endpoint

        settings: dict[str, Any] = {"transport": PATIENT, **overrides}
        yield stack.enter_context(open_rig(2, reroute=through, **settings)), proxies


class Talk:
    """Both sides send numbered messages both ways and answer what they get, until stopped."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.stop = threading.Event()
        self.sent = [0, 0]
        self.got: list[list[int]] = [[], []]
        self.failures: list[Any] = []

    def side(self, index: int) -> None:
        transport, other = self.rig[index], 1 - index
        while not (self.stop.is_set() and len(self.got[index]) == self.sent[other]):
            if not self.stop.is_set():
                number = self.sent[index]
                self.sent[index] += 1
                made = message(
                    self.rig.limits[index],
                    transport.allocate,
                    Kind.FORWARD,
                    other,
                    rows=1 + number % 60,
                    request=number,
                )
                transport.send(other, made)
            self._take(index, transport.receive(0.01))

    def _take(self, index: int, arrival: Any) -> None:
        if arrival is None:
            return
        if arrival.failure is not None:
            self.failures.append(arrival.failure)
            self.stop.set()
            return
        header, payload = arrival.message.header, arrival.message.payload
        assert bytes(payload.view[: header.payload_length]) == pattern(header.payload_length, header.request)
        self.got[index].append(header.request)
        payload.release()

    def run(self, disturb: Any) -> None:
        """Talk while `disturb()` runs, and to the last answer after it."""

        def disturbed() -> None:
            try:
                disturb()
                time.sleep(0.2)  # talk on for a while
            finally:
                self.stop.set()

        together([partial(self.side, 0), partial(self.side, 1), disturbed])
        assert not self.failures
        for index in (0, 1):
            every = self.got[index]
            assert sorted(every) == list(range(self.sent[1 - index])), "each once"
            for lane in (0, 1):  # and in order on each link
                numbers = [number for number in every if number % 2 == lane]
                assert numbers == sorted(numbers)


def test_cuts_lose_nothing_double_nothing_and_are_healed() -> None:
    with through_a_proxy() as (rig, proxies):

        def back(connections: int) -> bool:
            return bool(rig[0].reconnected >= connections)

        def cut_now_and_then() -> None:
            for number in range(4):
                time.sleep(0.3)  # let some traffic pass
                for proxy in proxies:
                    proxy.cut()
                time.sleep(0.3)  # the network is gone for a while
                for proxy in proxies:
                    proxy.heal()
                wait_until(partial(back, 3 * (number + 1)), 10)

        Talk(rig).run(cut_now_and_then)


def test_a_flipped_bit_is_a_cut_and_never_a_wrong_number() -> None:
    with through_a_proxy() as (rig, proxies):

        def flip_now_and_then() -> None:
            for _ in range(5):
                time.sleep(0.2)  # let some traffic pass
                proxies[0].flip()

        Talk(rig).run(flip_now_and_then)
        assert rig[0].reconnected >= 3


@pytest.mark.parametrize("flips", [1, 2, 4])
def test_a_bit_that_is_flipped_in_a_handshake_is_tried_again(flips: int) -> None:
    with ExitStack() as stack:

        def through(_dialer: int, _target: int, endpoint: str) -> str:
            proxy = stack.enter_context(FaultProxy(endpoint))
            for _ in range(flips):
                proxy.flip()
            return proxy.endpoint

        rig = stack.enter_context(open_rig(2, reroute=through, transport=PATIENT))
        assert rig[0].receive(0.2) is None


def test_a_network_that_is_silent_for_less_than_agreed_costs_time_only() -> None:
    with through_a_proxy() as (rig, proxies):

        def freeze_for_a_while() -> None:
            proxies[0].freeze()
            time.sleep(4.0)  # more than half of what is agreed: new connections are tried meanwhile
            proxies[0].thaw()

        Talk(rig).run(freeze_for_a_while)


def test_a_cut_in_the_middle_of_a_large_message_sends_it_again_whole() -> None:
    with through_a_proxy(quota={"rows_per_message": 32768}) as (rig, proxies):
        made = message(rig.limits[0], rig[0].allocate, Kind.FORWARD, 1, rows=32000, request=4)
        proxies[0].freeze()
        rig[0].send(1, made)
        time.sleep(0.2)  # a part of it is in the proxy
        proxies[0].cut()
        time.sleep(0.1)  # everybody notices
        proxies[0].thaw()
        proxies[0].heal()
        arrival = rig[1].receive(10.0)
        header, payload = arrival.message.header, arrival.message.payload
        assert header.payload_length > 8 << 20
        assert bytes(payload.view[: header.payload_length]) == pattern(header.payload_length, 4)
        payload.release()
        wait_until(lambda: rig[0]._io.peers[1].links[1].idle)


def test_a_slow_line_that_moves_is_no_loss_however_long_a_message_takes() -> None:
    slow = {"peer_timeout_seconds": 2, "connections": 1}
    with through_a_proxy(rate=250_000, transport=slow, quota={"rows_per_message": 8192}) as (rig, _):
        made = message(rig.limits[0], rig[0].allocate, Kind.FORWARD, 1, rows=4000, request=4)
        assert made.header.payload_length > 1_000_000
        began = time.monotonic()
        rig[0].send(1, made)
        arrival = rig[1].receive(20.0)
        assert arrival.failure is None
        assert time.monotonic() - began > 2 * slow["peer_timeout_seconds"] - 1
        arrival.message.payload.release()
        assert rig[0].reconnected == 0


def renew(config: NodeConfig, seconds: float) -> None:
    """A new leaf that is valid for so long."""
    name = [x509.DNSName(config.participants[config.index].identity)]
    install(config, certificate(authority_of(config), names=name, end=timedelta(seconds=seconds)))


def test_a_renewed_certificate_replaces_every_connection_without_losing_a_message() -> None:
    with open_rig(2, transport=PATIENT) as rig:
        before = [transport._credentials.identity.fingerprint for transport in rig]

        def renew_both() -> None:
            for config, transport in zip(rig.configs, rig, strict=True):
                renew(config, 3600)
                assert transport._credentials.look()
            wait_until(lambda: rig[0].reconnected >= 3, 8.0)

        Talk(rig).run(renew_both)
        after = [transport._credentials.identity.fingerprint for transport in rig]
        assert not set(before) & set(after)


def test_a_key_without_its_certificate_is_not_used_until_both_are_there() -> None:
    with open_rig(2, transport=PATIENT) as rig:
        credentials, config = rig[0]._credentials, rig.configs[0]
        before = credentials.identity.fingerprint
        old = (folder_of(config) / "tls.crt").read_text()
        renew(config, 3600)
        new = (folder_of(config) / "tls.crt").read_text()
        (folder_of(config) / "tls.crt").write_text(old)
        assert not credentials.look()
        assert (credentials.identity.fingerprint, credentials.refused) == (before, 1)
        (folder_of(config) / "tls.crt").write_text(new)
        assert credentials.look()
        assert credentials.identity.fingerprint != before


@pytest.mark.parametrize("renewed", [True, False], ids=["renewed in time", "never renewed"])
def test_no_connection_outlives_a_certificate(renewed: bool) -> None:
    with open_rig(2, transport={"peer_timeout_seconds": 2, "connections": 1}) as rig:
        for config, transport in zip(rig.configs, rig, strict=True):
            renew(config, 3.0)
            assert transport._credentials.look()
        wait_until(lambda: rig[0].reconnected >= 2, 5.0)
        if renewed:
            for config, transport in zip(rig.configs, rig, strict=True):
                renew(config, 3600)
                assert transport._credentials.look()
        arrival = rig[1].receive(7.0)
        if renewed:
            assert arrival is None
        else:
            assert arrival.failure is not None
            assert "amsterdam is lost: no byte for 2 s" in str(arrival.failure)
            assert re.search("certificate.*expired", str(arrival.failure))
