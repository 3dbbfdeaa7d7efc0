"""Continuations: the model that is put together is the consortium's, it goes on as plain transformers does, and what
was typed is in one file and nowhere else."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.exchange.rigs import changed
from tests.training.runs import QWEN3_MOE, Case, configs_of, final_weights, rounds_of, run_local
from tests.training.small import plain_model
from tests.unit.test_data import write_tokenizer
from torch import Tensor

from pcmoe_node import step
from pcmoe_node.checkpoint import round_folder
from pcmoe_node.config import NodeConfig
from pcmoe_node.continuation import generate
from pcmoe_node.continuation.generate import NEW_TOKENS, Prompt, go_on, last_committed, write_continuations
from pcmoe_node.cut import sum_loss
from pcmoe_node.data import open_corpus
from pcmoe_node.errors import ConfigError, NodeError, ResourceError, StorageError
from pcmoe_node.process import exit_code_of
from pcmoe_node.step import Participant
from pcmoe_node.tokenizer import ByteLevel, Checkpoint
from pcmoe_node.whole import BACKBONE, EXPERTS, Whole, build_whole, take_round

CPU = torch.device("cpu")
CASE = Case(
    n=3, placement="CapacityWeighted", deterministic=True, learning_rate=5e-3, architecture=dict(QWEN3_MOE)
)
TEXT = "Whoever quince-heron-58213"
"""Must be in no log and no error."""
DEADLINE_SECONDS = 60.0


@dataclass(frozen=True)
class Trained:
    """A consortium that is done, and what its nodes computed when they evaluated for the last time."""

    configs: list[NodeConfig]
    logits: dict[str, list[Tensor]]
    """By participant, a micro-batch each."""

    def at(self, index: int) -> NodeConfig:
        return self.configs[index]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    configs = configs_of(CASE, tmp_path_factory.mktemp("trained"))
    heard: dict[str, list[Tensor]] = {}
    logits_of = step._logits

    def listen(node: Participant, batch: Any) -> Tensor:
        logits = logits_of(node, batch)
        if not node.built.model.training:
            heard.setdefault(node.config.participant, []).append(logits.clone())
        return logits

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(step, "_logits", listen)
        run_local(configs)
    evaluations = CASE.rounds + 1
    last = {name: found[-len(found) // evaluations :] for name, found in heard.items()}
    yield Trained(configs, last)


def assembled(trained: Trained, index: int, kinds: tuple[str, ...] = (EXPERTS,)) -> Whole:
    """The backbone of one, and what is asked for of everybody."""
    configs = trained.configs
    whole = build_whole(configs[0], CPU)
    whole.cast(configs[0])
    for config in configs:
        take_round(whole, config, stored(config), kinds)
    take_round(whole, configs[index], stored(configs[index]), (BACKBONE,))
    return whole


def stored(config: NodeConfig) -> Path:
    return round_folder(Path(config.checkpoint_directory), CASE.rounds)


def held_out(whole: Whole, config: NodeConfig) -> tuple[float, list[Tensor]]:
    """(mean loss, logits by micro-batch) of a participant's own held-out documents in a whole model."""
    secret = bytes.fromhex(Path(str(config.order_secret_file)).read_text())
    corpus = open_corpus(config.dataset, ByteLevel(), secret, CASE.length)
    training, loss, tokens, every = config.training, 0.0, 0, []
    for batch in corpus.held_out_batches(training.evaluation_sequences, training.sequences_per_micro_batch):
        with torch.no_grad():
            logits = whole.model.eval()(
                input_ids=batch.ids_BS, position_ids=batch.positions_BS, use_cache=False
            ).logits
        loss, tokens = loss + float(sum_loss(logits, batch.labels_BS)), tokens + batch.tokens
        every.append(logits)
    return loss / tokens, every


def greedily(model: Any, ids: list[int], count: int) -> list[int]:
    """The likeliest token, again and again, with no cache and no `generate`."""
    found: list[int] = []
    for _ in range(count):
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([ids + found]), use_cache=False).logits
        found.append(int(logits[0, -1].argmax()))
        if found[-1] == ByteLevel.END_OF_DOCUMENT:
            break
    return found


def written(trained: Trained, output: Path, **texts: str) -> dict[str, Any]:
    write_continuations(trained.configs, texts, output)
    found: dict[str, Any] = json.loads(output.read_text())
    return found


# ---- the model


@pytest.mark.parametrize("index", range(CASE.n))
def test_every_weight_is_the_stored_one_bit_for_bit(trained: Trained, index: int) -> None:
    backbones, shared = final_weights(trained.configs)
    expected = {name.removeprefix("backbone/"): t for name, t in backbones[index].items()} | shared
    found = dict(assembled(trained, index).model.named_parameters())
    assert set(found) == set(expected)
    assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == []


@pytest.mark.parametrize("index", range(CASE.n))
def test_it_computes_what_the_node_evaluated(trained: Trained, index: int) -> None:
    """To the bound of docs/design/0006; rows of experts are added up in another order, so bits may differ."""
    config = trained.at(index)
    loss, logits = held_out(assembled(trained, index), config)
    assert loss == pytest.approx(rounds_of(config)[-1]["heldOutLoss"], rel=1e-6)
    assert len(logits) == len(trained.logits[config.participant]) == 2
    for mine, node in zip(logits, trained.logits[config.participant], strict=True):
        gap = torch.linalg.vector_norm(mine - node)
        assert float(gap) <= 1e-6 * float(torch.linalg.vector_norm(node))


def test_another_ones_backbone_or_the_experts_of_the_start_would_be_told_apart(trained: Trained) -> None:
    mine = trained.at(0)
    evaluated = rounds_of(mine)[-1]["heldOutLoss"]
    for other in (assembled(trained, 1), assembled(trained, 2), assembled(trained, 0, kinds=())):
        loss, logits = held_out(other, mine)
        assert abs(loss - evaluated) > 1e-4 * evaluated
        gap = torch.linalg.vector_norm(logits[0] - trained.logits[mine.participant][0])
        assert float(gap) > 1e-3 * float(torch.linalg.vector_norm(logits[0]))


def test_a_model_in_bfloat16_computes_what_its_node_evaluated(tmp_path: Path) -> None:
    configs = [changed(c, model={"dtype": "bfloat16"}) for c in configs_of(replace(CASE, n=2), tmp_path)]
    run_local(configs)
    found = Trained(configs, {})
    for index, config in enumerate(configs):
        whole = assembled(found, index)
        assert {p.dtype for p in whole.model.parameters()} == {torch.bfloat16}
        assert held_out(whole, config)[0] == pytest.approx(rounds_of(config)[-1]["heldOutLoss"], rel=0.01)


def test_what_another_consortium_has_stored_is_refused(trained: Trained) -> None:
    whole = build_whole(trained.at(0), CPU)
    with pytest.raises(ConfigError, match="belongs to another consortium, participant, model or placement"):
        take_round(whole, trained.at(0), stored(trained.at(1)))


# ---- the text


def test_it_goes_on_as_plain_transformers_before_training_and_as_the_own_model_after_it(
    trained: Trained, tmp_path: Path
) -> None:
    names = [config.participant for config in trained.configs]
    found = written(trained, tmp_path / "continuations.json", **{names[0]: TEXT, names[2]: "A "})
    assert found["round"] == CASE.rounds
    assert list(found["organisations"]) == [names[0], names[2]]
    for name, text in ((names[0], TEXT), (names[2], "A ")):
        ids, told = list(text.encode()), found["organisations"][name]
        new = min(NEW_TOKENS, 64 - len(ids))
        own = assembled(trained, names.index(name)).model
        assert told == {
            "prompt": text,
            "base": ByteLevel().decode(greedily(plain_model(trained.at(0)), ids, new)),
            "consortium": ByteLevel().decode(greedily(own, ids, new)),
            "newTokens": new,
        }
        assert told["base"] != told["consortium"]


def test_twice_is_the_same_file_for_its_owner_alone_and_nothing_beside_it(
    trained: Trained, tmp_path: Path
) -> None:
    output = tmp_path / "continuations.json"
    texts = {trained.at(1).participant: "In the beginning"}
    first = written(trained, output, **texts)
    assert written(trained, output, **texts) == first
    assert output.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["continuations.json"]


def test_it_ends_where_a_document_ends(trained: Trained) -> None:
    whole, ids = assembled(trained, 0), list(b"In the")
    everything = greedily(whole.model, ids, 12)
    end = everything[0]

    class Ending(ByteLevel):
        """A document ends with a token that the model is known to come to."""

        @property
        def end_of_document(self) -> int:
            return end

    assert go_on(whole, Ending(), Prompt("In the", ids, 12)) == bytes([end]).decode(errors="replace")
    assert go_on(whole, ByteLevel(), Prompt("In the", ids, 12)) == ByteLevel().decode(everything)
    assert len(everything) == 12


def test_a_tokenizer_that_drops_spaces_at_the_start_drops_none_in_between(trained: Trained) -> None:
    class Stripping(ByteLevel):
        def decode(self, ids: Any) -> str:
            return super().decode(ids).lstrip()

    whole, ids = assembled(trained, 0), list(b"The next one is")
    plain = go_on(whole, ByteLevel(), Prompt("", ids, 20))
    assert go_on(whole, Stripping(), Prompt("", ids, 20)) == plain


def test_what_a_checkpoints_own_tokenizer_does_not_know_is_left_out(trained: Trained, tmp_path: Path) -> None:
    """A model's vocabulary may be larger than its tokenizer's; a model that was trained never gets there."""
    write_tokenizer(tmp_path)
    whole, tokenizer = assembled(trained, 0), Checkpoint(tmp_path)
    ids = tokenizer.encode("hello world")
    assert min(greedily(whole.model, ids, 6)) >= tokenizer.vocabulary_size
    assert go_on(whole, tokenizer, Prompt("hello world", ids, 6)) == ""


@pytest.mark.parametrize(("size", "left"), [(1, NEW_TOKENS), (60, 4), (63, 1)])
def test_no_more_follows_than_the_model_takes(size: int, left: int, trained: Trained, tmp_path: Path) -> None:
    name = trained.at(0).participant
    found = written(trained, tmp_path / "out.json", **{name: "x" * size})
    assert found["organisations"][name]["newTokens"] == left


def test_one_organisation_is_enough(tmp_path: Path) -> None:
    configs = configs_of(replace(CASE, n=1, rounds=1, steps_per_round=2), tmp_path)
    run_local(configs)
    write_continuations(configs, {configs[0].participant: "Alone"}, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["round"] == 1


# ---- what is wrong


def test_everything_wrong_with_the_prompts_is_told_at_once_and_quoted_nowhere(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encode, names = ByteLevel.encode, [config.participant for config in trained.configs]

    def failing(tokenizer: ByteLevel, text: str) -> list[int]:
        if text == TEXT:
            raise ValueError(text)
        return [] if text == " " else encode(tokenizer, text)

    monkeypatch.setattr(ByteLevel, "encode", failing)
    with pytest.raises(ConfigError) as told:
        write_continuations(
            trained.configs, {names[0]: TEXT, names[1]: " ", names[2]: "y" * 64}, tmp_path / "out.json"
        )
    assert str(told.value) == (
        f"--prompt {names[0]}: the model's tokenizer makes no token of it, must make one or more; "
        f"--prompt {names[1]}: the model's tokenizer makes no token of it, must make one or more; "
        f"--prompt {names[2]}: is 64 tokens, must be fewer than max_position_embeddings, 64"
    )
    assert TEXT not in caplog.text
    assert not (tmp_path / "out.json").exists()


def test_without_a_committed_round_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    configs = configs_of(replace(CASE, n=2), tmp_path)
    with pytest.raises(ResourceError, match="checkpoint_directory: no participant has a committed round yet"):
        last_committed(configs)


def test_the_newest_round_that_anybody_knows_to_be_committed_is_taken(tmp_path: Path) -> None:
    configs = configs_of(replace(CASE, n=2), tmp_path)
    for config, committed in zip(configs, (4, 5), strict=True):
        folder = Path(config.checkpoint_directory)
        folder.mkdir(parents=True)
        (folder / "membership.json").write_text(json.dumps({"view": 1, "committed": committed}))
    assert last_committed(configs) == 5


def test_a_missing_checkpoint_is_named_with_whose_it_is(trained: Trained, tmp_path: Path) -> None:
    gone = changed(trained.at(1), checkpoint_directory=str(tmp_path / "gone"))
    configs = [trained.at(0), gone, trained.at(2)]
    with pytest.raises(
        ResourceError, match="round 2 is committed, but not all of it is here: berlin: .*gone"
    ):
        write_continuations(configs, {trained.at(0).participant: TEXT}, tmp_path / "out.json")


def test_a_file_that_can_not_be_written_is_named(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="--output .*out.json: can't be written: No such file"):
        write_continuations(trained.configs, {trained.at(0).participant: "A"}, tmp_path / "not" / "out.json")


def test_a_fault_that_quotes_the_prompt_is_logged_without_it(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_whole: Whole, _tokenizer: object, prompt: Prompt) -> str:
        raise RuntimeError(prompt.text)

    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(generate, "go_on", fail)
    texts = {trained.at(0).participant: TEXT}
    code = exit_code_of(lambda: write_continuations(trained.configs, texts, tmp_path / "out.json"))
    assert code == NodeError.exit_code
    assert "RuntimeError > " in caplog.text
    assert TEXT not in caplog.text


# ---- the process


def run_process(configs: list[NodeConfig], folder: Path, *prompts: str) -> "subprocess.CompletedProcess[str]":
    given: list[str] = []
    for config in configs:
        path = folder / f"{config.participant}.json"
        path.write_text(config.model_dump_json())
        given += ["--config", str(path)]
    for prompt in prompts:
        given += ["--prompt", prompt]
    return subprocess.run(
        [sys.executable, "-m", "pcmoe_node.continuation", *given, "--output", str(folder / "out.json")],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


def test_as_a_process_it_says_neither_prompt_nor_what_follows(trained: Trained, tmp_path: Path) -> None:
    name = trained.at(0).participant
    done = run_process(trained.configs, tmp_path, f"{name}={TEXT}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())["organisations"][name]
    assert found["prompt"] == TEXT
    said = done.stdout + done.stderr
    assert f"{name}: the model of round {CASE.rounds} has gone on" in said
    assert not any(text in said for text in (TEXT, found["base"], found["consortium"]))


def test_bad_arguments_end_a_process_with_a_sentence_and_64(trained: Trained, tmp_path: Path) -> None:
    names = ", ".join(config.participant for config in trained.configs)
    few = trained.configs[:2]
    for configs, prompts, sentence in (
        (trained.configs, [f"bonn={TEXT}"], f"--prompt: 'bonn' is no participant, must be one of {names}"),
        (trained.configs, [TEXT], "--prompt, number 1: must be NAME=TEXT, and neither may be empty"),
        (
            trained.configs,
            ["lyon=a", "lyon="],
            "--prompt, number 2: must be NAME=TEXT, and neither may be empty",
        ),
        (trained.configs, [f"lyon={TEXT}", "lyon=b"], "--prompt lyon: must be given once"),
        (few, ["lyon=a"], f"--config: every participant's is needed once, {names}; given: amsterdam, berlin"),
    ):
        done = run_process(configs, tmp_path, *prompts)
        assert done.returncode == 64, done.stderr
        assert f"ConfigError: {sentence}" in done.stderr
        assert TEXT not in done.stderr
        assert "Traceback" not in done.stderr
