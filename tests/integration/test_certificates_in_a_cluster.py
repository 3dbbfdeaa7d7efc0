"""What becomes of certificates that an operator has issued and that fall due, on a real control plane."""

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from tests.cluster.plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.integration.operating import Operated, operated

from pcmoe_operator.objects.names import authorities, certificate
from pcmoe_operator.pki import BACKDATED, RENEWED_AT, KeyPair, issue_leaf, issued_by
from pcmoe_operator.times import moment, time_of

DUE_SECONDS = 15.0


def pair(here: Operated, secret: str, stem: str) -> KeyPair:
    """A certificate and its key out of a Secret."""
    data = here.plane.read("secret", secret, "-n", here.namespace)["data"]
    texts = [base64.b64decode(data[f"{stem}.{end}"]).decode() for end in ("crt", "key")]
    return KeyPair(certificate=texts[0], key=texts[1])


def name_of(leaf: KeyPair) -> str:
    """Its only name."""
    parsed = x509.load_pem_x509_certificate(leaf.certificate.encode())
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.DNSName)[0]


def due_in(seconds: float) -> timedelta:
    """The life, from now, of a leaf that needs a successor after so long."""
    return (timedelta(seconds=seconds) + BACKDATED * RENEWED_AT) / (1 - RENEWED_AT)


def test_a_certificate_that_falls_due_is_renewed_and_nothing_is_started_again(
    own_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    """As after days: the operator that looks on is not the one that issued it, and waits for the hour."""
    with operated(own_plane, namespace, tmp_path, Operated) as here:
        here.apply()
        before = here.all_pods()
        told = here.until(lambda status: bool(status.get("certificateRenewalTime")))["certificateRenewalTime"]
        days_off = time_of(told)
        assert days_off is not None and days_off - datetime.now(UTC) > timedelta(days=4)
        here.stop()
        authority = pair(here, authorities("pilot"), "lyon")
        name = name_of(pair(here, certificate("pilot", "lyon"), "tls"))
        old = issue_leaf(authority, name, due_in(DUE_SECONDS))
        files = {"tls.crt": old.certificate, "tls.key": old.key}
        data = {file: base64.b64encode(text.encode()).decode() for file, text in files.items()}
        merge = ("-n", namespace, "--type=merge", "-p")
        own_plane.kubectl("patch", "secret", certificate("pilot", "lyon"), *merge, json.dumps({"data": data}))
        soon = moment(datetime.now(UTC) + timedelta(seconds=DUE_SECONDS + 1), "seconds")
        status = json.dumps({"status": {"certificateRenewalTime": soon}})
        own_plane.kubectl("patch", "pcmoe", "pilot", "--subresource=status", *merge, status)
        here.start()
        here.until_looked()
        assert pair(here, certificate("pilot", "lyon"), "tls") == old, "it is not due yet"
        eventually("its successor", lambda: pair(here, certificate("pilot", "lyon"), "tls") != old, within=60)
        assert moment(datetime.now(UTC), "seconds") >= soon
        assert issued_by(pair(here, certificate("pilot", "lyon"), "tls"), authority, name)
        here.until(lambda status: status["certificateRenewalTime"] >= told)
        uids = [
            {name: pod["metadata"]["uid"] for name, pod in pods.items()} for pods in (before, here.pods())
        ]
        assert uids[0] == uids[1]
