"""Certificates: one CA per participant, and a leaf that names the participant within its agreement.

CA and leaf are ECDSA P-256. A leaf carries exactly one name, `<participant>.<agreement id>.pcmoe.internal`,
is signed by the CA directly, and may be used by either side of a connection.
"""

import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BACKDATED = timedelta(hours=1)
"""Clocks of partners differ; a certificate is valid from an hour before it was made."""
LEAF_LIFE = timedelta(days=7)
AUTHORITY_LIFE = timedelta(days=3650)
RENEWED_AT = 1 / 3
"""A leaf is renewed when less than this share of its life is left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyPair:
    """A certificate and its private key, PEM."""

    certificate: str
    key: str


def identity_of(participant: str, agreement_id: str) -> str:
    """The dNSName of a participant."""
    return f"{participant}.{agreement_id}.pcmoe.internal"


def issue_authority(participant: str, agreement_id: str) -> KeyPair:
    """A new CA for one participant; it may sign leaves only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"{participant} CA", agreement_id, x509.random_serial_number())
    certificate = (
        _builder(name, name, key.public_key(), AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate, key)


def issue_leaf(authority: KeyPair, identity: str, life: timedelta = LEAF_LIFE) -> KeyPair:
    """A new leaf with `identity` as its only name, signed by `authority`, valid for `life` from now."""
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    signer = serialization.load_pem_private_key(authority.key.encode(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise TypeError("authority.key: must be an elliptic curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    point = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(_name("pcmoe node", None, None), issuer.subject, key.public_key(), life)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(point), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(identity)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .sign(signer, hashes.SHA256())
    )
    return _pair(certificate, key)


def write_participant(folder: Path, participant: str, agreement_id: str) -> str:
    """Issue a CA and a leaf into `folder` (`ca.*`, `tls.*`: `.crt` and `.key`); returns the CA's PEM text."""
    authority = issue_authority(participant, agreement_id)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(folder / "ca.crt", authority.certificate)
    write_private(folder / "ca.key", authority.key)
    write_leaf(folder, issue_leaf(authority, identity_of(participant, agreement_id)))
    return authority.certificate


def read_authority(folder: Path) -> KeyPair:
    """The CA that `write_participant` left in `folder`; OSError where it can't be read."""
    return KeyPair(certificate=(folder / "ca.crt").read_text(), key=(folder / "ca.key").read_text())


def write_leaf(folder: Path, leaf: KeyPair) -> None:
    """Replace `tls.key` and `tls.crt`, each whole. The certificate comes last: who sees a new one finds its key there.

    Who reads between the two finds a certificate and a key that don't fit, keeps what it had, and looks again.
    """
    write_private(folder / "tls.key", leaf.key)
    write_private(folder / "tls.crt", leaf.certificate)


def renew_due(folder: Path, now: datetime | None = None) -> bool:
    """Whether the leaf in `folder` needs a successor, or can't be read; see `leaf_due`."""
    try:
        pair = KeyPair(certificate=(folder / "tls.crt").read_text(), key=(folder / "tls.key").read_text())
    except (OSError, UnicodeDecodeError):
        return True
    return leaf_due(pair, now)


def issued_by(pair: KeyPair, authority: KeyPair, identity: str) -> bool:
    """Whether a leaf is of this CA and for this name.

    A CA that was lost and drawn anew leaves leaves of the old one behind, an agreement with another id those of its
    old names.
    """
    try:
        leaf = x509.load_pem_x509_certificate(pair.certificate.encode())
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate.encode()))
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return names.get_values_for_type(x509.DNSName) == [identity]


def leaf_due(pair: KeyPair, now: datetime | None = None) -> bool:
    """Whether a leaf needs a successor: too little of its life is left, or it can't be used.

    A key that doesn't fit its certificate counts as unusable: whoever wrote them was stopped between the two.
    """
    try:
        leaf = x509.load_pem_x509_certificate(pair.certificate.encode())
        key = serialization.load_pem_private_key(pair.key.encode(), None)
    except ValueError:
        return True
    return key.public_key() != leaf.public_key() or (now or datetime.now(UTC)) >= _renewal(leaf)


def renewal_time(pair: KeyPair) -> datetime:
    """When a leaf that can be used needs a successor."""
    return _renewal(x509.load_pem_x509_certificate(pair.certificate.encode()))


def _renewal(leaf: x509.Certificate) -> datetime:
    begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    return end - (end - begin) * RENEWED_AT


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read; it is there whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o600)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _name(common: str, unit: str | None, serial: int | None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common[:64])]
    if unit is not None:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit[:64]))
    if serial is not None:
        # A subject of its own for each CA, also for two of one participant: issuers are found by subject.
        parts.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, f"{serial:x}"))
    return x509.Name(parts)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(
        certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
    )
