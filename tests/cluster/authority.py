"""Who may talk to the API server: its own certificate authority, and kubeconfigs that name users."""

import datetime
import json
import ssl
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

VALID = datetime.timedelta(days=2)
CA_USAGE = x509.KeyUsage(
    key_cert_sign=True,
    crl_sign=True,
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)


class Authority:
    """A certificate authority in a folder; lives as long as one control plane."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "control plane for tests")])
        builder = self._builder(self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        certificate = builder.add_extension(CA_USAGE, critical=True)
        self.certificate = folder / "ca.crt"
        self.certificate.write_bytes(_pem(certificate.sign(self._key, hashes.SHA256())))
        self.context = ssl.create_default_context(cafile=str(self.certificate))
        """Trusts what this authority signed, and nothing else."""

    def server(self, *addresses: str) -> tuple[Path, Path]:
        """Certificate and key for a server on the loopback and at these addresses."""
        names = [
            x509.DNSName("localhost"),
            x509.DNSName("kubernetes.default.svc"),
            *(x509.IPAddress(ip_address(each)) for each in dict.fromkeys(("127.0.0.1", *addresses))),
        ]
        return self._issue("server", [x509.NameAttribute(NameOID.COMMON_NAME, "server")], names)

    def client(self, user: str, groups: Sequence[str], file: str) -> tuple[Path, Path]:
        """Certificate and key that the API server takes for this user in these groups."""
        subject = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        return self._issue(file, [*subject, x509.NameAttribute(NameOID.COMMON_NAME, user)], [])

    def _issue(
        self, file: str, subject: list[x509.NameAttribute[Any]], names: Sequence[x509.GeneralName]
    ) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name(subject), key.public_key())
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate, private = self._folder / f"{file}.crt", self._folder / f"{file}.key"
        certificate.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))
        write_key(private, key)
        return certificate, private

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        """With all that a strict client (Python 3.13) asks of any certificate."""
        now = datetime.datetime.now(datetime.UTC)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + VALID)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(issuer, critical=False)
        )


def write_key(path: Path, key: ec.EllipticCurvePrivateKey | None = None) -> None:
    """Write a private key, a new one if none is given, so that only its owner can read it."""
    path.touch(mode=0o600)
    path.write_bytes(
        (key or ec.generate_private_key(ec.SECP256R1())).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,  # the only one that kube-apiserver reads
            serialization.NoEncryption(),
        )
    )


def write_kubeconfig(path: Path, server: str, authority: Path, user: Mapping[str, str]) -> Path:
    """A kubeconfig with one cluster and one user, with all it refers to inside.

    Args:
        path: Where to.
        server: The API server's address.
        authority: File with the certificates that are trusted for it.
        user: As kubeconfig has it, such as `token`.
    """
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "test", "cluster": {"server": server, "certificate-authority": str(authority)}}
        ],
        "users": [{"name": "test", "user": dict(user)}],
        "contexts": [
            {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}
        ],
        "current-context": "test",
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=2))
    return path


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
