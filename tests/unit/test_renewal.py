"""Certificates of a local run: whose successor is due, how it is put in place, and that a run sees to it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from tests.unit.crew import make_crew, run_plainly

from pcmoe_operator import pki
from pcmoe_operator.errors import UsageError
from pcmoe_operator.local import certificates
from pcmoe_operator.local.certificates import Leaf, Renewals
from pcmoe_operator.local.processes import Crew
from pcmoe_operator.pki import (
    identity_of,
    issue_leaf,
    read_authority,
    renew_due,
    write_leaf,
    write_participant,
)

IDENTITY = identity_of("coordinator", "hospitals-2026")


def make_leaf(folder: Path, life: timedelta = pki.LEAF_LIFE) -> Leaf:
    """A leaf of the coordinator, signed by lyon's CA, with so much life ahead of it."""
    authority, own = folder / "lyon-certificates", folder / "certificates"
    write_participant(authority, "lyon", "hospitals-2026")
    own.mkdir()
    write_leaf(own, issue_leaf(read_authority(authority), IDENTITY, life))
    return Leaf(owner="coordinator", identity=IDENTITY, folder=own, authority=authority)


def certificate(leaf: Leaf) -> x509.Certificate:
    return x509.load_pem_x509_certificate((leaf.folder / "tls.crt").read_bytes())


def test_a_successor_is_due_when_less_than_a_third_of_a_leafs_life_is_left(tmp_path: Path) -> None:
    leaf = make_leaf(tmp_path)
    now = datetime.now(UTC)
    assert not renew_due(leaf.folder)
    assert not renew_due(leaf.folder, now + timedelta(days=4.6))
    assert renew_due(leaf.folder, now + timedelta(days=4.7))
    assert renew_due(leaf.folder, now + timedelta(days=70))


def test_a_new_leaf_has_the_same_name_from_the_same_ca_a_whole_life_and_its_key(tmp_path: Path) -> None:
    leaf = make_leaf(tmp_path, timedelta(minutes=10))
    assert renew_due(leaf.folder)
    before = certificate(leaf)
    leaf.renew()
    after = certificate(leaf)
    assert after.serial_number != before.serial_number
    assert not renew_due(leaf.folder)
    names = after.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [IDENTITY]
    after.verify_directly_issued_by(x509.load_pem_x509_certificate((leaf.authority / "ca.crt").read_bytes()))
    assert after.not_valid_after_utc - datetime.now(UTC) > timedelta(days=6.9)
    key = serialization.load_pem_private_key((leaf.folder / "tls.key").read_bytes(), None)
    assert key.public_key() == after.public_key()
    assert (leaf.folder / "tls.key").stat().st_mode & 0o077 == 0


def test_whoever_sees_a_new_certificate_finds_its_key_and_half_a_pair_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf = make_leaf(tmp_path)
    before = certificate(leaf)
    written: list[str] = []
    write = pki.write_private

    def first_only(path: Path, text: str) -> None:
        if written:
            raise OSError("no space left")
        written.append(path.name)
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(pki, "write_private", first_only)
        with pytest.raises(OSError, match="no space"):
            leaf.renew()
    assert written == ["tls.key"]
    assert certificate(leaf) == before
    assert renew_due(leaf.folder)


@pytest.mark.parametrize("name", ["tls.crt", "tls.key"])
def test_a_leaf_that_can_not_be_read_is_renewed(tmp_path: Path, name: str) -> None:
    leaf = make_leaf(tmp_path)
    (leaf.folder / name).write_text("-----BEGIN NOTHING-----\n")
    assert renew_due(leaf.folder)
    (leaf.folder / name).unlink()
    assert renew_due(leaf.folder)


def test_a_running_run_renews_only_what_is_due_and_looks_once_a_minute(tmp_path: Path) -> None:
    old, fresh = tmp_path / "old", tmp_path / "fresh"
    old.mkdir()
    fresh.mkdir()
    leaves = [make_leaf(old, timedelta(minutes=10)), make_leaf(fresh)]
    before = [certificate(leaf) for leaf in leaves]
    now = [0.0]
    told: list[str] = []
    renewals = Renewals(leaves, told.append, clock=lambda: now[0])
    now[0] = 59.0
    renewals.tend()
    assert [certificate(leaf) for leaf in leaves] == before
    now[0] = 60.0
    renewals.tend()
    assert certificate(leaves[0]) != before[0]
    assert certificate(leaves[1]) == before[1]
    assert told == []


def test_what_can_not_be_renewed_is_told_once_and_tried_again(tmp_path: Path) -> None:
    leaf = make_leaf(tmp_path, timedelta(minutes=10))
    (leaf.authority / "ca.key").rename(tmp_path / "away")
    now = [0.0]
    told: list[str] = []
    renewals = Renewals([leaf], told.append, clock=lambda: now[0])
    for now[0] in (60.0, 120.0):
        renewals.tend()
    assert len(told) == 1
    assert told[0].startswith("coordinator: its certificate can't be renewed before it expires:")
    assert "No such file" in told[0]
    (tmp_path / "away").rename(leaf.authority / "ca.key")
    now[0] = 180.0
    renewals.tend()
    assert not renew_due(leaf.folder)


def test_a_broken_ca_is_an_error_that_names_folder_and_owner(tmp_path: Path) -> None:
    leaf = make_leaf(tmp_path)
    (leaf.authority / "ca.key").write_text("nonsense")
    with pytest.raises(
        UsageError, match=r"lyon-certificates: the CA that signs for coordinator can't be used"
    ):
        leaf.renew()


def test_a_run_renews_a_leaf_while_its_nodes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "CHECK_SECONDS", 0.05)
    leaf = make_leaf(tmp_path, timedelta(minutes=10))
    before = certificate(leaf)
    crew = make_crew(tmp_path, lyon={"after": "porto/ready"})
    whole = Crew(
        members=crew.members, coordinator=crew.coordinator, on_peer_loss=crew.on_peer_loss, leaves=(leaf,)
    )
    outcome, _ = run_plainly(whole)
    assert outcome.exit_code == 0
    assert certificate(leaf) != before
    assert not renew_due(leaf.folder)
