"""Records, the two tokenizers' contract, held-out documents, order, packing, and what errors may say."""

import json
import logging
import os
import traceback
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pcmoe_node.config import DatasetConfig
from pcmoe_node.data import Corpus, open_corpus
from pcmoe_node.errors import ConfigError, DataError
from pcmoe_node.packing import NO_LABEL, Batch
from pcmoe_node.records import DOCUMENT_BYTES, read_records, split_document
from pcmoe_node.tokenizer import ByteLevel, Checkpoint, load_tokenizer

SECRET = bytes(range(32))
CANARY = "mauve-okapi-7731"


def dataset(path: Path, *, lines: bool = False, percent: int = 0) -> DatasetConfig:
    return DatasetConfig(
        path=str(path),
        format="JSONLines" if lines else "Text",
        text_field="text",
        held_out_percent=percent,
    )


def write_documents(folder: Path, texts: Iterable[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:04}.txt").write_text(text, encoding="utf-8")
    return folder


def corpus_of(folder: Path, texts: Iterable[str], *, length: int = 8, percent: int = 0) -> Corpus:
    config = dataset(write_documents(folder, texts), percent=percent)
    return open_corpus(config, ByteLevel(), SECRET, length)


def segments(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of each segment, in reading order."""
    found: list[tuple[list[int], list[int]]] = []
    for ids, labels, positions in zip(
        batch.ids_BS.tolist(), batch.labels_BS.tolist(), batch.positions_BS.tolist(), strict=True
    ):
        for i, label, position in zip(ids, labels, positions, strict=True):
            if position == 0:
                found.append(([], []))
            assert position == len(found[-1][0])
            found[-1][0].append(i)
            found[-1][1].append(label)
    return found


# ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_of_text_is_one_document_per_file_in_sorted_order_without_hidden_or_blank_ones(
    tmp_path: Path,
) -> None:
    write_documents(tmp_path / "b", ["third"])
    write_documents(tmp_path / "a", ["first", " \n", "second\n"])
    write_documents(tmp_path / "..2026_data", ["hidden"])
    (tmp_path / "notes.md").write_text("not text here")
    assert [r.text for r in read_records(dataset(tmp_path))] == ["first", "second\n", "third"]


def test_one_file_may_be_named_whatever_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "letters").write_bytes(b"\xef\xbb\xbfDear all")
    assert [r.text for r in read_records(dataset(tmp_path / "letters"))] == ["Dear all"]


def test_json_lines_give_one_document_per_line_and_skip_empty_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one", "id": 1}\n\n{"text": "two\\n"}\n{"text": " "}')
    records = list(read_records(dataset(tmp_path, lines=True)))
    assert [(r.number, r.text) for r in records] == [(1, "one"), (3, "two\n")]


@pytest.mark.parametrize("paragraph", [50, 700, 5000])
def test_a_long_text_is_split_at_paragraph_ends_and_loses_nothing(paragraph: int) -> None:
    lines = [("é" * 40 + "\n") if i % paragraph else "\n" for i in range(4000)]
    documents = list(split_document(lines))
    assert "".join(documents) == "".join(lines)
    assert len(documents) > 1
    assert all(len(d.encode()) <= DOCUMENT_BYTES for d in documents)
    if paragraph < 800:
        assert all(d.endswith("\n\n") for d in documents[:-1])


def test_a_line_longer_than_a_document_is_cut_between_characters() -> None:
    line = "a" + "😀" * DOCUMENT_BYTES
    documents = list(split_document([line, "end\n"]))
    assert "".join(documents) == line + "end\n"
    assert all(len(d.encode()) <= DOCUMENT_BYTES for d in documents)


def test_a_text_that_fits_is_one_document_with_its_paragraphs() -> None:
    assert list(split_document(["one\n", "\n", "two\n"])) == ["one\n\ntwo\n"]


# ── Faults: path, record number and reason, never content ───────────────────────────────────────────────


BROKEN_LINES = {
    "not valid JSON": f'{{"text": "{CANARY}'.encode(),
    "not valid UTF-8": b'{"text": "' + CANARY.encode() + b'\xff"}',
    "not a JSON object": json.dumps([CANARY]).encode(),
    "has no field 'text'": json.dumps({"body": CANARY}).encode(),
    "field 'text' is not a string": json.dumps({"text": [CANARY]}).encode(),
    "holds half a surrogate pair": f'{{"text": "{CANARY}\\ud800"}}'.encode(),
}


def say_nothing_of_the_record(error: BaseException) -> None:
    """The error, everything chained to it and its printed traceback are free of the canary."""
    told = "".join(traceback.format_exception(error))
    link: BaseException | None = error
    while link is not None:
        told += (
            repr(link) + repr(vars(link)) + repr(getattr(link, "object", "")) + repr(getattr(link, "doc", ""))
        )
        link = link.__cause__ or link.__context__
    assert CANARY not in told


@pytest.mark.parametrize("reason", BROKEN_LINES)
def test_a_broken_json_record_is_named_by_path_and_number_and_never_quoted(
    tmp_path: Path, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + BROKEN_LINES[reason] + b'\n{"text": "fine"}\n')
    with pytest.raises(DataError) as caught:
        open_corpus(dataset(path, lines=True), ByteLevel(), SECRET, 8)
    assert str(caught.value).startswith(f"{path}: record 2: ")
    assert reason in str(caught.value)
    say_nothing_of_the_record(caught.value)
    assert CANARY not in caplog.text


def test_deeply_nested_json_is_a_fault_of_its_record(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text("[" * 200_000)
    with pytest.raises(DataError, match="record 1: not valid JSON"):
        list(read_records(dataset(path, lines=True)))


def test_text_that_is_not_utf8_is_named_by_line_and_never_quoted(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n" + CANARY.encode() + b"\xe9\n")
    with pytest.raises(DataError) as caught:
        list(read_records(dataset(tmp_path)))
    assert str(caught.value) == f"{path}: line 2: not valid UTF-8"
    say_nothing_of_the_record(caught.value)


def test_a_tokenizer_that_fails_is_reported_without_its_message(tmp_path: Path) -> None:
    class Picky(ByteLevel):
        def encode(self, text: str) -> list[int]:
            raise ValueError(f"can't take {text}")

    class Wild(ByteLevel):
        def encode(self, text: str) -> list[int]:
            return [len(text), self.vocabulary_size]

    write_documents(tmp_path, [CANARY])
    for tokenizer, reason in ((Picky(), "ValueError"), (Wild(), "unknown ids")):
        with pytest.raises(DataError, match=rf"record 1: the tokenizer failed \({reason}\)") as caught:
            open_corpus(dataset(tmp_path), tokenizer, SECRET, 8)
        say_nothing_of_the_record(caught.value)


def test_a_corpus_says_how_much_it_holds_and_nothing_of_what(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    corpus = corpus_of(tmp_path, [CANARY, CANARY + "!"], percent=50)
    assert "1 documents for training" in caplog.text
    assert CANARY not in caplog.text + repr(corpus) + repr(next(read_records(dataset(tmp_path))))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.mkdir(), r"no \*\.txt file"),
        (lambda path: path.write_text(" \n"), "holds no text"),
    ],
)
def test_an_absent_or_empty_dataset_is_refused(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    path = tmp_path / "dataset"
    make(path)
    with pytest.raises(DataError, match=reason):
        open_corpus(dataset(path), ByteLevel(), SECRET, 8)


def test_a_folder_that_cannot_be_read_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_documents(tmp_path / "a", ["fine"])
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match="locked: can't be read: Permission denied"):
        list(read_records(dataset(tmp_path)))


def test_holding_out_from_one_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds 1 document, but holding out 10 % needs at least 2"):
        corpus_of(tmp_path, ["only one"], percent=10)


# ── Held-out documents ──────────────────────────────────────────────────────────────────────────────────


def words(count: int) -> list[str]:
    return [f"document number {n}" for n in range(count)]


def texts_of(batches: Iterable[Batch]) -> list[str]:
    found = (segment for batch in batches for segment in segments(batch))
    return [ByteLevel().decode(ids) for ids, labels in found if set(labels) != {NO_LABEL}]


@pytest.mark.parametrize(("count", "percent", "held_out"), [(2, 1, 1), (10, 10, 1), (40, 25, 10), (3, 50, 2)])
def test_the_held_out_share_is_whole_documents_and_at_least_one(
    tmp_path: Path, count: int, percent: int, held_out: int
) -> None:
    corpus = corpus_of(tmp_path, words(count), percent=percent, length=64)
    assert (corpus.held_out_documents, corpus.training_documents) == (held_out, count - held_out)


def test_no_held_out_document_is_trained_on_and_none_is_lost(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, words(40), percent=25, length=16)
    trained = "".join(texts_of([corpus.training_batch(0, corpus.training_tokens // 16 + 1)]))
    kept = "".join(texts_of(corpus.held_out_batches(40, 4)))
    for text in words(40):
        assert (f"{text}d" in trained + "d") != (f"{text}d" in kept + "d"), (
            "a document is in exactly one part"
        )


def test_another_secret_holds_out_other_documents(tmp_path: Path) -> None:
    config = dataset(write_documents(tmp_path, words(100)), percent=20)
    chosen = [
        texts_of(open_corpus(config, ByteLevel(), secret, 64).held_out_batches(20, 20))
        for secret in (SECRET, SECRET, b"x" * 32)
    ]
    assert chosen[0] == chosen[1] != chosen[2]


def test_new_records_leave_most_of_the_choice_as_it_was(tmp_path: Path) -> None:
    before = corpus_of(tmp_path / "a", words(100), percent=20, length=32).held_out_batches(60, 60)
    after = corpus_of(tmp_path / "b", ["new one", *words(100)], percent=20, length=32).held_out_batches(
        60, 60
    )
    assert len(set("".join(texts_of(before)).split()) & set("".join(texts_of(after)).split())) >= 18


def test_held_out_batches_have_the_agreed_shape_and_count_every_token_once(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, words(20), percent=20, length=16)
    batches = corpus.held_out_batches(10, 4)
    assert [tuple(b.ids_BS.shape) for b in batches] == [(4, 16), (4, 16), (2, 16)]
    assert sum(b.tokens for b in batches) == corpus.held_out_tokens - corpus.held_out_documents
    assert batches[2].tokens == 0, "padding predicts nothing"
    assert corpus.held_out_batches(2, 4)[0].ids_BS.equal(batches[0].ids_BS[:2])
    assert corpus.held_out_batches(0, 4) == []


# ── Order and packing ───────────────────────────────────────────────────────────────────────────────────


def epoch_of(corpus: Corpus, epoch: int) -> list[int]:
    """Ids of one epoch, read in sequences."""
    length = corpus.training_batch(0, 1).ids_BS.shape[1]
    start = epoch * corpus.training_tokens
    last = (start + corpus.training_tokens - 1) // length
    batch = corpus.training_batch(start // length, last - start // length + 1)
    return batch.ids_BS.flatten().tolist()[start % length :][: corpus.training_tokens]


def test_every_epoch_holds_every_document_once_each_in_its_own_order(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, words(30), length=13)
    epochs = [ByteLevel().decode([10 if i == 256 else i for i in epoch_of(corpus, e)]) for e in range(3)]
    orders = [text.splitlines() for text in epochs]
    assert all(sorted(order) == sorted(words(30)) for order in orders)
    assert len({tuple(order) for order in orders} | {tuple(words(30))}) == 4


def test_sequences_are_full_and_a_document_goes_on_in_the_next_one(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ["abcdefghij", "xyz"], length=6)
    batch = corpus.training_batch(0, 5)
    assert batch.ids_BS.shape == (5, 6)
    for ids, labels in segments(batch):
        *inner, last = labels
        assert inner == ids[1:], "each position predicts the next one of its document"
        assert (last == NO_LABEL) == (ids[-1] == 256), "and the last one what the next sequence starts with"
    assert batch.tokens == int((batch.ids_BS != 256).sum())
    stream = batch.ids_BS.flatten().tolist()
    followed = [b for a, b in pairwise(stream) if a != 256]
    assert batch.labels_BS.flatten()[:-1][batch.ids_BS.flatten()[:-1] != 256].tolist() == followed


def test_a_batch_depends_on_its_index_alone(tmp_path: Path) -> None:
    texts = words(25)
    one_go = corpus_of(tmp_path / "a", texts, length=11).training_batch(0, 200)
    resumed = corpus_of(tmp_path / "b", texts, length=11)
    for index in (150, 7, 0, 199):
        again = resumed.training_batch(index, 1)
        for name in ("ids_BS", "labels_BS", "positions_BS"):
            assert getattr(again, name)[0].equal(getattr(one_go, name)[index])


def test_the_order_comes_from_the_secret(tmp_path: Path) -> None:
    config = dataset(write_documents(tmp_path, words(50)))
    first, second = (
        open_corpus(config, ByteLevel(), secret, 32).training_batch(0, 10) for secret in (SECRET, b"y" * 32)
    )
    assert not first.ids_BS.equal(second.ids_BS)


def test_one_token_documents_and_a_sequence_longer_than_an_epoch_are_packed_too(tmp_path: Path) -> None:
    batch = corpus_of(tmp_path, ["a", "b"], length=10).training_batch(3, 2)
    assert batch.tokens == 10
    assert all(ids[1:] == [256] for ids, _ in segments(batch))


def test_the_fingerprint_tells_changed_documents_but_needs_the_secret(tmp_path: Path) -> None:
    def fingerprint(folder: str, texts: list[str], secret: bytes) -> str:
        config = dataset(write_documents(tmp_path / folder, texts))
        return open_corpus(config, ByteLevel(), secret, 8).fingerprint

    same = fingerprint("a", ["one", "two"], SECRET)
    assert fingerprint("b", ["one", "two"], SECRET) == same
    assert fingerprint("c", ["one", "twice"], SECRET) != same
    assert fingerprint("d", ["one", "two"], b"z" * 32) != same


# ── Tokenizers ──────────────────────────────────────────────────────────────────────────────────────────


def test_bytes_come_back_as_text_and_special_ids_do_not() -> None:
    tokenizer = ByteLevel()
    assert tokenizer.encode("é") == [0xC3, 0xA9]
    assert tokenizer.decode([*tokenizer.encode("né"), 256, 257, 0xC3]) == "né\ufffd"
    assert (tokenizer.vocabulary_size, tokenizer.end_of_document) == (258, 256)


def write_tokenizer(folder: Path, *, eos: str | None = "<eos>") -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "hello": 2, "world": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"eos_token": eos} if eos else {}
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special).save_pretrained(folder)


def test_the_checkpoints_own_tokenizer_is_read_from_its_folder(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer("Checkpoint", str(tmp_path))
    assert tokenizer.encode("hello world hello") == [2, 3, 2]
    assert tokenizer.decode([2, 3, 1]) == "hello world"
    assert (tokenizer.vocabulary_size, tokenizer.end_of_document) == (4, 1)


def test_text_that_spells_a_special_token_does_not_end_a_document(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert 1 not in Checkpoint(tmp_path).encode("hello <eos> world")


def test_a_tokenizer_without_an_end_of_sequence_or_without_files_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "endless", eos=None)
    (tmp_path / "empty").mkdir()
    for folder, reason in (
        ("endless", "end-of-sequence"),
        ("empty", "no tokenizer that transformers can read"),
        ("absent", "no such folder"),
    ):
        with pytest.raises(ConfigError, match=reason):
            Checkpoint(tmp_path / folder)
    with pytest.raises(ConfigError, match="needs model.checkpoint"):
        load_tokenizer("Checkpoint", None)


# ── Documents don't attend across boundaries ────────────────────────────────────────────────────────────


def tiny_olmoe(attention: str) -> torch.nn.Module:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        attn_implementation=attention,
    )
    model: torch.nn.Module = OlmoeForCausalLM(config).eval()
    return model


def logits_of(model: torch.nn.Module, ids_BS: Tensor, positions_BS: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids_BS, position_ids=positions_BS, use_cache=False).logits
    return logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_documents_logits_do_not_depend_on_its_neighbours_in_a_packed_sequence(
    tmp_path: Path, attention: str, rows: int
) -> None:
    model = tiny_olmoe(attention)
    batch = corpus_of(tmp_path, words(12), length=40).training_batch(0, rows)
    packed = logits_of(model, batch.ids_BS, batch.positions_BS)
    place = 0
    for ids, _ in segments(batch):
        row, column = divmod(place, 40)
        alone = logits_of(model, torch.tensor([ids]), torch.arange(len(ids))[None])
        torch.testing.assert_close(packed[row, column : column + len(ids)], alone[0], atol=2e-6, rtol=1e-5)
        place += len(ids)
    joined = logits_of(model, batch.ids_BS, torch.arange(40).repeat(rows, 1))
    assert not torch.allclose(joined, packed, atol=1e-3), "the comparison would notice a missing mask"
