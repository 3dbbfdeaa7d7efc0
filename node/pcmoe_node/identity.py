"""Who is who: this node's certificate, the TLS contexts, and the check of a peer's certificate.

Every participant has its own CA. TLS alone would let any listed CA sign for any name, so after a handshake
the leaf is verified once more, against the bundle of the one participant that the peer claims to be.
"""

import logging
import ssl
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from pcmoe_node.config import PeerConfig
from pcmoe_node.errors import IdentityError

log = logging.getLogger("pcmoe")

ALPN = "pcmoe/1"
LOOK_SECONDS = 1.0
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_RSA_BITS = 2048


@dataclass(frozen=True, slots=True)
class _Bundle:
    """A participant and the CA certificates that may sign for it."""

    peer: PeerConfig
    certificates: tuple[x509.Certificate, ...]

    @property
    def fingerprints(self) -> str:
        return ", ".join(fingerprint(certificate) for certificate in self.certificates)


class Identity:
    """This process's certificate and everybody's CAs. Every error is an `IdentityError` naming peer and rule."""

    def __init__(self, me: str, parties: Sequence[PeerConfig], directory: str) -> None:
        """Read and check certificate, key and bundles. `parties` are the participants in order, then the coordinator;
        `me` is one of them.
        """
        self.names = tuple(peer.name for peer in parties)
        self.index = self.names.index(me)
        self._bundles = tuple(_bundle(peer) for peer in parties)
        _refuse_ambiguous(self._bundles)
        # Resolved once, so that key and certificate are of one pair where a folder is swapped as a whole.
        folder = Path(directory).resolve()
        self._certificate_path = folder / "tls.crt"
        self._key_path = folder / "tls.key"
        leaf = _own_leaf(self._certificate_path)
        self.fingerprint = fingerprint(leaf)
        """SHA-256 of this process's own leaf."""
        self.ends = leaf.not_valid_after_utc
        """When this process's own leaf expires."""
        self.verify(self.index, leaf.public_bytes(serialization.Encoding.DER))
        self._server = self._context(ssl.PROTOCOL_TLS_SERVER, self._bundles)
        self._server.num_tickets = 0  # with tickets a leaf that has expired could resume
        self._clients = {
            peer: self._context(ssl.PROTOCOL_TLS_CLIENT, [bundle])
            for peer, bundle in enumerate(self._bundles)
            if peer != self.index
        }

    def server_context(self) -> ssl.SSLContext:
        """The listener's context: accepts a leaf of any listed CA; `verify` narrows it to the claimed one."""
        return self._server

    def client_context(self, peer: int) -> ssl.SSLContext:
        """The context to dial one peer with: it trusts that peer's CAs only."""
        return self._clients[peer]

    def server_name(self, peer: int) -> str:
        """The name that the peer's certificate must carry; also the SNI that a gateway routes by."""
        return self._bundles[peer].peer.identity

    def trusted(self, peer: int) -> str:
        """Fingerprints (SHA-256) of the CAs that may sign for a peer."""
        return self._bundles[peer].fingerprints

    def seconds_left(self, leaf: bytes) -> float:
        """For how long both our own certificate and this verified one (DER) are still valid."""
        ends = min(self.ends, x509.load_der_x509_certificate(leaf).not_valid_after_utc)
        return (ends - datetime.now(UTC)).total_seconds()

    def verify(self, peer: int, leaf: bytes) -> None:
        """Raise unless the DER certificate `leaf` is this peer's: name, dates, key, signed by its own CA."""
        bundle = self._bundles[peer]
        name = bundle.peer.name
        try:
            certificate = x509.load_der_x509_certificate(leaf)
            names = _dns_names(certificate)
        except ValueError:
            raise IdentityError(f"{name}: its certificate can't be read: must be X.509 in DER") from None
        subject = f"{name}: its certificate (SHA-256 {fingerprint(certificate)})"
        if names != [bundle.peer.identity]:
            found = ", ".join(_short(found) for found in names[:4]) or "none"
            raise IdentityError(f"{subject} has the names {found}: must be exactly {bundle.peer.identity}")
        now = datetime.now(UTC)
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            span = f"{certificate.not_valid_before_utc:%F %T} to {certificate.not_valid_after_utc:%F %T} UTC"
            raise IdentityError(f"{subject} is valid from {span}: must be valid now, {now:%F %T} UTC")
        _check_key(certificate, subject)
        verifier = (
            PolicyBuilder().store(Store(list(bundle.certificates))).max_chain_depth(0).build_client_verifier()
        )
        try:
            verifier.verify(certificate, [])
        except VerificationError as error:
            rule = f"must be signed directly by a CA listed for {name} (SHA-256 {bundle.fingerprints})"
            raise IdentityError(f"{subject}: {rule}: {_short(str(error))}") from None

    def _context(self, protocol: int, bundles: Iterable[_Bundle]) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
        if protocol == ssl.PROTOCOL_TLS_CLIENT:
            context.hostname_checks_common_name = False
        context.set_alpn_protocols([ALPN])
        for bundle in bundles:
            context.load_verify_locations(cadata=bundle.peer.ca_bundle)
        try:
            context.load_cert_chain(self._certificate_path, self._key_path)
        except (OSError, ssl.SSLError) as error:
            reason = getattr(error, "reason", None) or error.strerror or "unusable"
            raise IdentityError(
                f"{self._key_path}: must be the key of {self._certificate_path.name}: {reason}"
            ) from None
        return context


class Credentials:
    """The identity in use. Looks for new files about once a second, and swaps when they are whole and valid.

    Certificates live for days and runs for weeks: whoever renews them replaces the files, and nobody restarts a node.
    """

    def __init__(self, me: str, parties: Sequence[PeerConfig], directory: str) -> None:
        """Read the certificate; raises `IdentityError` where it can't be used."""
        self._arguments = (me, tuple(parties), directory)
        self._folder = Path(directory)
        self._current = (Identity(*self._arguments), 0)
        self._seen = self._stamps()
        self.refused = 0
        """Times that new files could not be used: the old certificate stays until they can."""
        self._listeners: list[Callable[[], None]] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pcmoe-certificates", daemon=True)

    @property
    def identity(self) -> Identity:
        """The one in use."""
        return self._current[0]

    def current(self) -> tuple[Identity, int]:
        """The identity in use and its generation, which rises with every renewal."""
        return self._current

    def start(self) -> None:
        """Begin to look for new files."""
        self._thread.start()

    def on_renewal(self, call: Callable[[], None]) -> Callable[[], None]:
        """Have `call` called, on this object's thread, after each renewal; returns what takes that back."""
        self._listeners.append(call)
        return lambda: self._listeners.remove(call)

    def look(self) -> bool:
        """Read the files anew if they have changed; True when another certificate is in use now."""
        stamps = self._stamps()
        if stamps == self._seen:
            return False
        try:
            identity = Identity(*self._arguments)
        except IdentityError as error:
            # Often a pair of which only one half is written yet; and a broken one must not end a healthy run.
            self.refused += 1
            log.warning("new certificate not used, the old one stays: %s", error)
            self._seen = stamps
            return False
        self._seen = stamps
        if identity.fingerprint == self.identity.fingerprint:
            return False
        self._current = (identity, self._current[1] + 1)
        log.info("a new certificate is in use (SHA-256 %s), until %s", identity.fingerprint, identity.ends)
        for call in list(self._listeners):
            call()
        return True

    def close(self) -> None:
        """Look no more."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _stamps(self) -> tuple[object, ...]:
        """What changes when a file is replaced; also when the folder is a link that now leads elsewhere."""
        found: list[object] = []
        for name in ("tls.crt", "tls.key"):
            try:
                at = (self._folder.resolve() / name).stat()
                found.append((at.st_ino, at.st_mtime_ns, at.st_size))
            except OSError:
                found.append(None)
        return tuple(found)

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            self.look()


def fingerprint(certificate: x509.Certificate | bytes) -> str:
    """SHA-256 of a certificate (or of its DER bytes), in hex."""
    if isinstance(certificate, bytes):
        digest = hashes.Hash(hashes.SHA256())
        digest.update(certificate)
        return digest.finalize().hex()
    return certificate.fingerprint(hashes.SHA256()).hex()


def presented(sock: ssl.SSLSocket) -> bytes | None:
    """The DER leaf that the peer showed, also when the handshake failed over it; None when it showed none."""
    # Public as SSLSocket.get_unverified_chain() from Python 3.13 on; before, only the inner object has it.
    try:
        chain = getattr(sock, "_sslobj").get_unverified_chain()  # noqa: B009
        return bytes(ssl.PEM_cert_to_DER_cert(chain[0].public_bytes(1))) if chain else None
    except (AttributeError, ValueError, ssl.SSLError):
        return None


def _bundle(peer: PeerConfig) -> _Bundle:
    try:
        certificates = tuple(x509.load_pem_x509_certificates(peer.ca_bundle.encode()))
    except ValueError:
        raise IdentityError(f"{peer.name}: ca_bundle must be CA certificates in PEM") from None
    for certificate in certificates:
        _check_key(certificate, f"{peer.name}: ca_bundle: certificate (SHA-256 {fingerprint(certificate)})")
    return _Bundle(peer, certificates)


def _own_leaf(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())[0]
    except OSError as error:
        raise IdentityError(f"{path}: our own certificate can't be read: {error.strerror}") from None
    except ValueError:
        raise IdentityError(f"{path}: our own certificate must be X.509 in PEM") from None


def _check_key(certificate: x509.Certificate, subject: str) -> None:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _RSA_BITS:
        return
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES):
        return
    raise IdentityError(
        f"{subject}: its key must be ECDSA P-256 or P-384, or RSA of at least {_RSA_BITS} bits"
    )


def _dns_names(certificate: x509.Certificate) -> list[str]:
    """Every alternative name; one that is no dNSName is written with its type."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [n.value if isinstance(n, x509.DNSName) else f"{type(n).__name__}: {n.value}" for n in names]


def _refuse_ambiguous(bundles: Iterable[_Bundle]) -> None:
    """Two participants' CAs that look alike: verifiers find an issuer by subject and key id, not by key."""
    seen: dict[tuple[str, bytes], tuple[_Bundle, x509.Certificate]] = {}
    for bundle in bundles:
        for certificate in bundle.certificates:
            for mark in _marks(certificate):
                other, earlier = seen.setdefault(mark, (bundle, certificate))
                if other is not bundle and _key_bytes(earlier) != _key_bytes(certificate):
                    prints = f"SHA-256 {fingerprint(earlier)} and {fingerprint(certificate)}"
                    raise IdentityError(
                        f"{other.peer.name} and {bundle.peer.name}: their CAs ({prints}) have the same {mark[0]} "
                        "and different keys: must differ in both"
                    )


def _marks(certificate: x509.Certificate) -> list[tuple[str, bytes]]:
    marks = [("subject", certificate.subject.public_bytes())]
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        return marks
    return [*marks, ("subject key identifier", extension.value.digest)]


def _key_bytes(certificate: x509.Certificate) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return certificate.public_key().public_bytes(serialization.Encoding.DER, form)


def _short(text: str) -> str:
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= 200 else clean[:199] + "…"
