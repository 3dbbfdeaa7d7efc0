"""The pilot as shipped: pinned, small, readable by the node, and its manifest names what its base becomes."""

import hashlib
import json
from itertools import combinations
from pathlib import Path

import pytest

from pcmoe_node.config import DatasetConfig
from pcmoe_node.data import Corpus, open_corpus
from pcmoe_node.tokenizer import ByteLevel
from pcmoe_node.upcycle import Settings, upcycle
from pcmoe_operator import spec
from pcmoe_operator.plan import shape_of
from pcmoe_operator.schema import Consortium
from pcmoe_operator.shape import canonical_config

SAMPLES = Path(__file__).parents[2] / "manifests" / "samples"
DATASETS_BYTES = 2_000_000
BASE_BYTES = 10_000_000


@pytest.fixture(scope="module")
def pilot() -> Consortium:
    return spec.load(SAMPLES / "pilot.yaml")


@pytest.fixture(scope="module")
def corpora(pilot: Consortium) -> dict[str, Corpus]:
    found = {}
    for local in pilot.local:
        config = DatasetConfig(
            path=str(SAMPLES / "volumes" / local.name / "dataset" / local.dataset.path),
            format=local.dataset.format,
            text_field=local.dataset.text_field,
            held_out_percent=local.dataset.held_out_percent,
        )
        length = pilot.agreement.training.sequence_length
        found[local.name] = open_corpus(config, ByteLevel(), b"secret" * 6, length)
    return found


def test_every_shipped_file_is_the_pinned_one() -> None:
    pinned = dict(line.split("  ")[::-1] for line in (SAMPLES / "SHA256SUMS").read_text().splitlines())
    folders = [SAMPLES / "base", SAMPLES / "volumes"]
    files = [f for folder in folders for f in folder.rglob("*") if f.is_file()]
    shipped = {
        f.relative_to(SAMPLES).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in [*files, SAMPLES / "LICENSE.python.txt"]
    }
    assert shipped == pinned


def test_what_is_shipped_is_small() -> None:
    def size(folder: str) -> int:
        return sum(f.stat().st_size for f in (SAMPLES / folder).rglob("*") if f.is_file())

    assert size("volumes") <= DATASETS_BYTES
    assert size("base") <= BASE_BYTES


def test_the_manifest_names_the_model_that_the_base_becomes(pilot: Consortium, tmp_path: Path) -> None:
    source = pilot.agreement.model.source.checkpoint
    assert source is not None
    made = upcycle(SAMPLES / "base", tmp_path / "model", Settings(experts=16, top_k=2))
    assert made == source.fingerprint
    assert canonical_config((tmp_path / "model" / "config.json").read_text()) == source.config
    assert json.loads(source.config)["vocab_size"] >= ByteLevel().vocabulary_size


def test_experts_are_most_of_the_model_so_that_sharing_them_shows(pilot: Consortium) -> None:
    shape = shape_of(pilot)
    assert shape.backbone_parameters < 0.2 * shape.parameters


def test_every_participant_has_enough_text_for_what_the_manifest_asks(
    pilot: Consortium, corpora: dict[str, Corpus]
) -> None:
    training = pilot.agreement.training
    steps = training.rounds * training.steps_per_round * training.micro_batches_per_step
    wanted = steps * training.sequences_per_micro_batch * training.sequence_length
    for name, corpus in corpora.items():
        assert corpus.held_out_documents >= 2, name
        assert corpus.training_tokens >= 0.75 * wanted, f"{name} would see its text more than 4/3 times"
        batches = corpus.held_out_batches(training.evaluation.sequences, 4)
        assert min(batch.tokens for batch in batches) > 0, f"{name} would evaluate padding"


def test_the_four_texts_are_clearly_different(corpora: dict[str, Corpus]) -> None:
    """Share of the text whose 6-byte piece occurs anywhere in another's text, beside that within its own."""
    text = {name: corpus.training_batch(0, 400).ids_BS.flatten().tolist() for name, corpus in corpora.items()}
    pieces = {name: [tuple(ids[i : i + 6]) for i in range(0, len(ids) - 6, 3)] for name, ids in text.items()}
    for one, other in combinations(pieces, 2):
        half = len(pieces[one]) // 2
        own, foreign = set(pieces[one][:half]), set(pieces[other][:half])
        rest = pieces[one][half:]
        within = sum(p in own for p in rest) / len(rest)
        across = sum(p in foreign for p in rest) / len(rest)
        assert across < 0.75 * within, (one, other, within, across)
