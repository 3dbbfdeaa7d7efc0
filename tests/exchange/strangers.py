"""Odd certificates, and a client that speaks the protocol by hand: what a hostile peer would send."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tests.exchange.rigs import incarnation_of, tls_transport, view_of

from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import NodeError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.base import UNNUMBERED, Header, Kind, WireDtype
from pcmoe_node.exchange.limits import Limits
from pcmoe_node.exchange.tls.frames import read_frame, write_frame
from pcmoe_node.exchange.tls.handshake import parse_endpoint
from pcmoe_operator.pki import KeyPair

PATIENCE = 10.0
"""Deadline of every wait in these tests, seconds."""


def certificate(
    issuer: KeyPair | None,
    *,
    names: Sequence[x509.GeneralName] = (),
    common_name: str = "odd",
    authority: bool = False,
    path_length: int | None = None,
    start: timedelta = timedelta(hours=-1),
    end: timedelta = timedelta(days=1),
    ed: bool = False,
) -> KeyPair:
    """A certificate with any names, dates, issuer (None: itself) and key."""
    key: Any = ed25519.Ed25519PrivateKey.generate() if ed else ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    signer: Any = key
    issuer_name, issuer_key = subject, key.public_key()
    if issuer is not None:
        signer = serialization.load_pem_private_key(issuer.key.encode(), None)
        issuer_name = x509.load_pem_x509_certificate(issuer.certificate.encode()).subject
        issuer_key = signer.public_key()
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + start)
        .not_valid_after(now + end)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=path_length), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
        .add_extension(_usage(authority), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if not authority:
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    signed = builder.sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    return KeyPair(
        certificate=signed.public_bytes(serialization.Encoding.PEM).decode(),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    )


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def folder_of(config: NodeConfig) -> Path:
    """The certificate folder of a configuration."""
    return Path(config.identity.certificate_directory)


def authority_of(config: NodeConfig) -> KeyPair:
    """The CA that `node_configs` made for a participant."""
    folder = folder_of(config)
    return KeyPair(certificate=(folder / "ca.crt").read_text(), key=(folder / "ca.key").read_text())


def install(config: NodeConfig, leaf: KeyPair, intermediates: str = "") -> None:
    """Give a participant another leaf."""
    folder = folder_of(config)
    (folder / "tls.crt").write_text(leaf.certificate + intermediates)
    (folder / "tls.key").write_text(leaf.key)


class Opening:
    """`open` of a transport on a thread of its own, and how it ended."""

    def __init__(self, config: NodeConfig, timeout: float = 1.5) -> None:
        self.transport = tls_transport(config)
        self.error: NodeError | None = None
        self.seconds = 0.0
        self._timeout = timeout
        self._thread = threading.Thread(target=self._open, name="opening", daemon=True)

    def _open(self) -> None:
        began = time.monotonic()
        try:
            self.transport.open(self._timeout)
        except NodeError as error:
            self.error = error
        self.seconds = time.monotonic() - began

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(PATIENCE)
        self.transport.close()

    def outcome(self) -> NodeError:
        """The error that `open` ended with."""
        self.join()
        assert self.error is not None, "it connected"
        return self.error

    def join(self) -> None:
        """Wait until `open` has ended."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "open did not end within its deadline"


class Stranger:
    """A client of its own making: any certificate, any TLS, any bytes; each wait has a deadline."""

    def __init__(self, mine: NodeConfig, target: NodeConfig) -> None:
        self.mine, self.target = mine, target
        self.sock: Any = None
        self.hello = wire.Hello(
            sender=mine.participant,
            receiver=target.participant,
            agreement_id=mine.identity.agreement_id,
            agreement_digest=mine.identity.agreement_digest,
            plan_digest=mine.identity.plan_digest,
            incarnation=incarnation_of(mine.index),
            connection=0,
            connections=mine.transport.connections,
            view=1,
            mark=view_of(mine.participants).mark,
        )
        self.sequence = 0

    def connect(self) -> Self:
        """TCP only."""
        assert self.target.identity.listen is not None
        address = parse_endpoint(self.target.identity.listen)
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.sock = socket.create_connection(address, timeout=PATIENCE)
                return self
            except ConnectionRefusedError:
                assert time.monotonic() < end, "nobody listens"

    def secure(
        self, *, alpn: Sequence[str] = ("pcmoe/1",), version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ) -> Self:
        """TLS with our folder's certificate; checks nothing about the other side."""
        if self.sock is None:
            self.connect()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        if alpn:
            context.set_alpn_protocols(list(alpn))
        folder = folder_of(self.mine)
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        self.sock = context.wrap_socket(self.sock, suppress_ragged_eofs=False)
        return self

    def introduce(self, **changes: Any) -> tuple[Kind, bytes]:
        """Send a HELLO with changes; the answer."""
        self.say(Kind.HELLO, wire.encode_json(replace(self.hello, **changes)))
        return self.answer()

    def say(self, kind: Kind, payload: bytes) -> None:
        """Send a handshake frame."""
        write_frame(self.sock, kind, payload, time.monotonic() + PATIENCE)

    def answer(self) -> tuple[Kind, bytes]:
        """Read a handshake frame."""
        return read_frame(self.sock, time.monotonic() + PATIENCE)

    def frame(self, kind: Kind, **fields: Any) -> bytes:
        """The bytes of a message to the target, of the right size, its fields then changed by `raw` and `stamp`."""
        raw, stamp = fields.pop("raw", {}), fields.pop("stamp", {})
        limits = Limits.from_config(self.mine)
        dtype = limits.dtype if kind < Kind.STEP_END else WireDtype.NONE
        header = limits.sized(Header(kind=kind, dtype=dtype, **fields), self.target.index)
        body = bytes(header.payload_length + header.pad_length)
        self.sequence += kind not in UNNUMBERED
        stamp = {"view": 1, "sequence": self.sequence if kind not in UNNUMBERED else 0} | stamp
        return wire.encode_header(replace(header, **raw), wire.Stamp(**stamp)) + body

    def heard_abort(self) -> tuple[type[NodeError], str]:
        """Read frames until an ABORT: its class and reason."""
        self.sock.settimeout(PATIENCE)
        while True:
            header = wire.decode_header(self._exactly(wire.HEADER_SIZE))
            body = self._exactly(header.payload_length + header.pad_length)
            if header.kind is Kind.ABORT:
                kind, _, reason = wire.decode_abort(body)
                return kind, reason

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            assert part, "closed"
            data += part
        return data

    def closed(self) -> bool:
        """Whether the other side closes within the deadline, whatever it sends before."""
        self.sock.settimeout(PATIENCE)
        try:
            while self.sock.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def hang_up(self, *, politely: bool = False) -> None:
        """Close, with TLS's goodbye or without."""
        if politely:
            self.sock.settimeout(0.2)
            with suppress(OSError):
                self.sock.unwrap()
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.sock is not None:
            self.sock.close()


def join_as(stranger: Callable[[], Stranger], **changes: Any) -> list[Stranger]:
    """All connections of a peer, welcomed: the control connection first."""
    joined = []
    count = stranger().hello.connections + 1
    for number in range(count):
        each = stranger().secure()
        kind, payload = each.introduce(connection=number, **changes)
        assert kind is Kind.WELCOME, payload
        joined.append(each)
    return joined
