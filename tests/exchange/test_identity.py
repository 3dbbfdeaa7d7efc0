"""Who may connect: whatever is wrong with certificate, handshake or agreement ends in a clear error."""

import ipaddress
import json
import socket
import ssl
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from tests.exchange.rigs import (
    AGREEMENT_ID,
    changed,
    credentials_of,
    free_port,
    message,
    node_configs,
    wait_until,
)
from tests.exchange.strangers import Opening, Stranger, authority_of, certificate, folder_of, install

from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import IdentityError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.base import Kind
from pcmoe_node.exchange.limits import Limits
from pcmoe_node.exchange.tls.difference import difference
from pcmoe_node.identity import Identity
from pcmoe_operator.pki import KeyPair, identity_of, issue_authority, issue_leaf, write_participant

AMSTERDAM = identity_of("amsterdam", AGREEMENT_ID)
SHORT = {"peer_timeout_seconds": 1, "connections": 1}


@pytest.fixture
def pair(tmp_path: Path) -> list[NodeConfig]:
    """Two participants: amsterdam dials berlin."""
    return node_configs(2, tmp_path, transport=SHORT)


@pytest.fixture
def lyon_in_it(tmp_path: Path) -> list[NodeConfig]:
    """Three participants."""
    return node_configs(3, tmp_path, transport=SHORT)


def dns(*names: str) -> list[x509.GeneralName]:
    return [x509.DNSName(name) for name in names]


def both(configs: list[NodeConfig], timeout: float = 1.5) -> tuple[Exception, Exception]:
    """Open the first two participants at once: their errors."""
    with Opening(configs[1], timeout) as listener, Opening(configs[0], timeout) as dialer:
        return dialer.outcome(), listener.outcome()


def turned_down(configs: list[NodeConfig], leaf: KeyPair) -> tuple[str, str]:
    """A stranger with `leaf` says it is amsterdam: what it is told, and what berlin's `open` says."""
    with Opening(configs[1]) as listener:
        install(configs[0], leaf)
        with Stranger(configs[0], configs[1]) as stranger:
            kind, payload = stranger.secure().introduce()
        assert kind is Kind.REFUSED
        error = listener.outcome()
    assert isinstance(error, IdentityError)
    return wire.decode_refused(payload).reason, str(error)


def with_bundle(config: NodeConfig, name: str, bundle: str) -> NodeConfig:
    """A configuration that trusts another CA for one participant."""
    peers = [peer.model_dump(mode="json") for peer in config.participants]
    for peer in peers:
        if peer["name"] == name:
            peer["ca_bundle"] = bundle
    coordinator = config.coordinator.model_dump(mode="json")
    if config.participants[0].name == name:  # the coordinator is at the first participant's
        coordinator["ca_bundle"] = bundle
    return changed(config, participants=peers, coordinator=coordinator)


def identity_from(config: NodeConfig) -> Identity:
    """What a configuration says of everybody."""
    return credentials_of(config).identity


def test_a_dialer_whose_ca_nobody_listed_is_refused_and_told_so(pair: list[NodeConfig]) -> None:
    stranger_ca = write_participant(folder_of(pair[0]), "amsterdam", AGREEMENT_ID)
    dialer, listener = both([with_bundle(pair[0], "amsterdam", stranger_ca), pair[1]])
    assert isinstance(dialer, IdentityError)
    assert "berlin: TLS 1.3" in str(dialer)
    assert "unknown ca" in str(dialer)
    assert isinstance(listener, IdentityError)
    assert "amsterdam is not connected after 1.5 s" in str(listener)
    assert "certificate doesn't verify" in str(listener)


def test_a_listener_whose_ca_is_another_is_named_with_both_fingerprints(pair: list[NodeConfig]) -> None:
    stranger_ca = write_participant(folder_of(pair[1]), "berlin", AGREEMENT_ID)
    impostor = with_bundle(pair[1], "berlin", stranger_ca)
    shown, trusted = identity_from(impostor).fingerprint, identity_from(pair[0]).trusted(1)
    dialer, listener = both([pair[0], impostor])
    assert isinstance(dialer, IdentityError)
    assert str(dialer).startswith("berlin: its certificate")
    assert shown in str(dialer)
    assert trusted in str(dialer)
    assert "amsterdam is not connected" in str(listener)


def test_a_listed_ca_cannot_sign_for_another_participants_name(lyon_in_it: list[NodeConfig]) -> None:
    forged = issue_leaf(authority_of(lyon_in_it[2]), AMSTERDAM)
    told, noted = turned_down(lyon_in_it, forged)
    assert "must be signed directly by a CA listed for amsterdam" in told
    assert "amsterdam is not connected" in noted
    assert identity_from(lyon_in_it[1]).trusted(0) in noted


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (dns(f"*.{AGREEMENT_ID}.pcmoe.internal"), f"*.{AGREEMENT_ID}.pcmoe.internal"),
        (dns(AMSTERDAM, identity_of("berlin", AGREEMENT_ID)), "amsterdam.test-2026"),
        (dns(identity_of("lyon", AGREEMENT_ID)), "lyon.test-2026"),
        ([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))], "IPAddress: 127.0.0.1"),
        ([*dns(AMSTERDAM), x509.RFC822Name("a@example.org")], "RFC822Name"),
    ],
    ids=["wildcard", "two names", "another's name", "an address", "name and mail"],
)
def test_a_leaf_must_carry_exactly_its_own_name(
    pair: list[NodeConfig], names: list[x509.GeneralName], found: str
) -> None:
    leaf = certificate(authority_of(pair[0]), names=names)
    told, noted = turned_down(pair, leaf)
    assert found in told
    assert f"must be exactly {AMSTERDAM}" in told
    assert told in noted
    with pytest.raises(IdentityError, match="must be exactly"):
        credentials_of(pair[0])


def test_an_expired_leaf_is_refused_on_either_side_and_at_home(pair: list[NodeConfig]) -> None:
    with Opening(pair[1]) as listener:
        old = certificate(
            authority_of(pair[0]), names=dns(AMSTERDAM), start=timedelta(days=-2), end=timedelta(days=-1)
        )
        install(pair[0], old)
        refused = pytest.raises(ssl.SSLError, match="(?i)certificate.expired")
        with Stranger(pair[0], pair[1]) as stranger, refused:
            stranger.secure().introduce()
        assert "certificate has expired" in str(listener.outcome())
    with pytest.raises(IdentityError, match="amsterdam: its certificate .* must be valid now"):
        credentials_of(pair[0])


def test_a_leaf_through_an_intermediate_outside_the_bundle_is_refused(pair: list[NodeConfig]) -> None:
    root = certificate(None, common_name="root", authority=True, path_length=1)
    middle = certificate(root, common_name="middle", authority=True, path_length=0)
    leaf = certificate(middle, names=dns(AMSTERDAM))
    configs = [with_bundle(config, "amsterdam", root.certificate) for config in pair]
    with Opening(configs[1]) as listener:
        install(configs[0], leaf, intermediates=middle.certificate)
        with Stranger(configs[0], configs[1]) as stranger:
            kind, payload = stranger.secure().introduce()
        assert kind is Kind.REFUSED
        assert "must be signed directly" in wire.decode_refused(payload).reason
        assert "must be signed directly" in str(listener.outcome())
    install(configs[0], leaf)
    configs = [with_bundle(config, "amsterdam", middle.certificate) for config in pair]
    with Opening(configs[1]) as listener, Opening(configs[0]) as dialer:
        dialer.join()
        listener.join()
        assert dialer.error is None, "an intermediate that is listed may sign"
        assert listener.error is None


@pytest.mark.parametrize("alpn", [(), ("h2",)], ids=["none", "another"])
def test_a_connection_without_our_alpn_is_refused(pair: list[NodeConfig], alpn: tuple[str, ...]) -> None:
    with Opening(pair[1]) as listener, Stranger(pair[0], pair[1]) as stranger:
        kind, payload = stranger.secure(alpn=alpn).answer()
        assert kind is Kind.REFUSED
        assert wire.decode_refused(payload).reason == "the dialer: ALPN is None: must be pcmoe/1"
        error = listener.outcome()
    assert isinstance(error, IdentityError)
    assert "ALPN" in str(error)


def test_tls_1_2_is_refused(pair: list[NodeConfig]) -> None:
    with Opening(pair[1]) as listener, Stranger(pair[0], pair[1]) as stranger:
        with pytest.raises(ssl.SSLError, match="(?i)protocol.version"):
            stranger.secure(version=ssl.TLSVersion.TLSv1_2)
        assert "protocol" in str(listener.outcome())


def test_plain_text_to_our_listener_is_refused(pair: list[NodeConfig]) -> None:
    with Opening(pair[1]) as listener, Stranger(pair[0], pair[1]) as stranger:
        stranger.connect().sock.sendall(b"GET / HTTP/1.1\r\nHost: berlin\r\n\r\n")
        assert stranger.closed()
        error = listener.outcome()
    assert isinstance(error, IdentityError)
    assert "http request" in str(error)


def test_a_listener_that_speaks_plain_text_is_refused(pair: list[NodeConfig]) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server:
        host, port = server.getsockname()
        peers = [peer.model_dump(mode="json") for peer in pair[0].participants]
        peers[1]["endpoint"] = f"{host}:{port}"
        with Opening(changed(pair[0], participants=peers), timeout=5.0) as dialer:
            server.settimeout(5.0)
            with server.accept()[0] as accepted:
                accepted.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                error = dialer.outcome()
    assert isinstance(error, IdentityError)
    assert "berlin: TLS 1.3" in str(error)
    assert dialer.seconds < 3.0


def test_another_agreement_is_told_on_both_sides_with_the_path_that_differs(pair: list[NodeConfig]) -> None:
    other = {"id": AGREEMENT_ID, "training": {"rounds": 3}}
    changes = {"agreement_digest": "sha256:" + "c" * 64, "agreement": json.dumps(other)}
    dialer, listener = both([changed(pair[0], identity=changes), pair[1]])
    assert isinstance(dialer, IdentityError)
    assert isinstance(listener, IdentityError)
    assert "training.rounds: ours 3, berlin's 2" in str(dialer)
    assert "training.rounds: ours 2, amsterdam's 3" in str(listener)


def test_another_plan_of_the_same_agreement_is_told_on_both_sides(pair: list[NodeConfig]) -> None:
    dialer, listener = both([changed(pair[0], identity={"plan_digest": "sha256:" + "d" * 64}), pair[1]])
    assert "berlin holds another plan of the same agreement" in str(dialer)
    assert "amsterdam holds another plan of the same agreement" in str(listener)


def test_another_agreement_id_is_refused(pair: list[NodeConfig]) -> None:
    with Opening(pair[1]) as listener, Stranger(pair[0], pair[1]) as stranger:
        kind, payload = stranger.secure().introduce(agreement_id="other")
        assert kind is Kind.REFUSED
        assert "agreement_id is other: must be test-2026" in wire.decode_refused(payload).reason
        listener.outcome()


def test_a_hello_meant_for_another_is_refused(pair: list[NodeConfig]) -> None:
    with Opening(pair[1]) as listener, Stranger(pair[0], pair[1]) as stranger:
        kind, _ = stranger.secure().introduce(receiver="lyon")
        assert kind is Kind.REFUSED
        listener.outcome()


def test_two_cas_with_one_subject_and_different_keys_are_refused(pair: list[NodeConfig]) -> None:
    twins = [certificate(None, common_name="twin", authority=True) for _ in range(2)]
    config = with_bundle(
        with_bundle(pair[0], "amsterdam", twins[0].certificate), "berlin", twins[1].certificate
    )
    with pytest.raises(IdentityError, match="amsterdam and berlin: their CAs .* have the same subject"):
        identity_from(config)


@pytest.mark.parametrize(
    ("bundle", "rule"),
    [
        ("no certificate", "ca_bundle must be CA certificates in PEM"),
        (certificate(None, authority=True, ed=True).certificate, "its key must be ECDSA"),
    ],
    ids=["no PEM", "Ed25519"],
)
def test_an_unusable_bundle_is_refused(pair: list[NodeConfig], bundle: str, rule: str) -> None:
    with pytest.raises(IdentityError, match=f"berlin: .*{rule}"):
        identity_from(with_bundle(pair[0], "berlin", bundle))


def test_our_own_certificate_must_be_signed_by_the_ca_listed_for_us(pair: list[NodeConfig]) -> None:
    install(pair[0], issue_leaf(issue_authority("amsterdam", AGREEMENT_ID), AMSTERDAM))
    with pytest.raises(IdentityError, match="must be signed directly by a CA listed for amsterdam"):
        identity_from(pair[0])


def test_a_key_of_another_certificate_is_refused(pair: list[NodeConfig]) -> None:
    other = issue_leaf(authority_of(pair[0]), AMSTERDAM)
    (folder_of(pair[0]) / "tls.key").write_text(other.key)
    with pytest.raises(IdentityError, match="must be the key of"):
        identity_from(pair[0])


def test_a_missing_certificate_is_named(pair: list[NodeConfig]) -> None:
    (folder_of(pair[0]) / "tls.crt").unlink()
    with pytest.raises(IdentityError, match=r"tls\.crt: our own certificate can't be read"):
        identity_from(pair[0])


@pytest.fixture
def connected(pair: list[NodeConfig]) -> Iterator[tuple[list[NodeConfig], Any, Any]]:
    """Both configurations and their connected transports."""
    with Opening(pair[1], 10.0) as listener, Opening(pair[0], 10.0) as dialer:
        for side in (listener, dialer):
            side.join()
            assert side.error is None
        yield pair, dialer.transport, listener.transport


def test_a_second_connection_of_one_incarnation_takes_the_first_ones_place(
    connected: tuple[list[NodeConfig], Any, Any],
) -> None:
    configs, dialer, listener = connected
    with Stranger(configs[0], configs[1]) as stranger:
        assert stranger.secure().introduce(connection=1)[0] is Kind.WELCOME
        wait_until(lambda: listener.reconnected > 0)
    # The stranger hangs up; the one whose place it took comes back, and nothing is lost.
    sent = message(
        Limits.from_config(configs[0]), dialer.allocate, Kind.FORWARD, 1, rows=3, request=configs[0].index
    )
    dialer.send(1, sent)
    arrival = listener.receive(5.0)
    assert arrival.failure is None
    assert arrival.message.header.rows == 3


@pytest.mark.parametrize(
    "changes",
    [{"incarnation": "2" * 32}, {"view": 2}, {"view": 0}, {"mark": "another"}],
    ids=["another incarnation", "a later view", "an earlier view", "another view of the same number"],
)
def test_whoever_is_not_of_this_view_is_refused_and_harms_nobody(
    connected: tuple[list[NodeConfig], Any, Any], changes: dict[str, Any]
) -> None:
    configs, _, listener = connected
    with Stranger(configs[0], configs[1]) as stranger:
        kind, payload = stranger.secure().introduce(**changes)
    assert kind is Kind.REFUSED
    assert wire.decode_refused(payload).code == "another-view"
    assert listener.receive(0.3) is None


def test_a_difference_names_added_and_missing_parts() -> None:
    ours = '{"a":1,"participants":[{"name":"berlin","capacity":1},{"name":"lyon"}]}'
    theirs = 'pcmoe-agreement/1\n{"participants":[{"name":"lyon"},{"name":"berlin","capacity":2}],"b":"x"}'
    assert difference(ours, theirs, "lyon") == (
        "a: ours 1, lyon's absent (its default); b: ours absent (its default), lyon's \"x\"; "
        "participants[berlin].capacity: ours 1, lyon's 2"
    )


def test_a_difference_shows_no_control_characters_and_no_endless_text() -> None:
    shown = difference('{"a":1}', json.dumps({"a": "\x1b[2J" + "x" * 5000, "k\x07": 1}), "lyon")
    assert shown.isprintable()
    assert len(shown) < 400
    assert "must be canonical JSON" in difference("{}", "[" * 100_000, "lyon")
