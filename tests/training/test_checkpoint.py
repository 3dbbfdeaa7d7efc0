"""A stored round is whole or not there, whenever the writer dies."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.killed_writer import position_of, tensors_of
from tests.training.small import architecture, small_configs

from pcmoe_node import checkpoint
from pcmoe_node.checkpoint import Checkpoints, Membership
from pcmoe_node.errors import ConfigError, IdentityError, StorageError
from pcmoe_node.participant import frozen_digest, order_secret, stored_position


def stored(folder: Path, *numbers: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for number in numbers:
        checkpoints.save(position_of(number), tensors_of(number))
    return checkpoints


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What a writer that was killed between each two of its steps left behind."""
    folder = tmp_path_factory.mktemp("kills")
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.killed_writer", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return found


def test_a_writer_killed_anywhere_leaves_the_rounds_before_and_nothing_half_written(
    kills: dict[str, list[dict[str, Any]]],
) -> None:
    entries = kills["save"]
    assert len(entries) >= 10 and [entry["code"] for entry in entries] == [9] * (len(entries) - 1) + [0]
    for entry in entries:
        assert entry["whole"], entry
        assert max(entry["rounds"]) in (3, 4) and {3} <= set(entry["rounds"]), entry
        assert entry["next"] == [3, 4] and entry["leftovers"] == [], entry
    assert {max(entry["rounds"]) for entry in entries} == {3, 4}, "killed before and after it counts"


def test_a_node_killed_while_it_drops_a_round_never_takes_the_rest_of_it_for_a_round(
    kills: dict[str, list[dict[str, Any]]],
) -> None:
    entries = kills["drop"]
    assert len(entries) >= 4
    for entry in entries:
        assert entry["whole"] and entry["leftovers"] == [], entry
        assert entry["rounds"] in ([2, 3], [2]), entry
    assert entries[-1]["rounds"] == [2]


def test_a_round_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    checkpoints = stored(tmp_path / "a", 1)
    position, tensors = checkpoints.load(1)
    assert position == position_of(1)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in tensors_of(1).items())


def test_the_newest_rounds_are_kept(tmp_path: Path) -> None:
    checkpoints = stored(tmp_path, 1, 2, 3, 4)
    assert checkpoints.rounds() == (3, 4) and checkpoints.newest() == 4
    assert stored(tmp_path / "three", 1, 2, 3, 4, keep=3).rounds() == (2, 3, 4)
    assert Checkpoints(tmp_path / "none", 2).newest() == 0


def test_a_round_that_is_stored_again_replaces_the_one_before(tmp_path: Path) -> None:
    checkpoints = stored(tmp_path, 1, 2)
    checkpoints.save(position_of(2), tensors_of(7))
    assert checkpoints.rounds() == (1, 2)
    assert torch.equal(checkpoints.load(2)[1]["a"], tensors_of(7)["a"])


def test_rounds_that_not_everybody_has_are_dropped(tmp_path: Path) -> None:
    checkpoints = stored(tmp_path, 1, 2, 3, keep=5)
    checkpoints.drop_after(3)
    assert checkpoints.rounds() == (1, 2, 3)
    checkpoints.drop_after(1)
    assert checkpoints.rounds() == (1,)
    checkpoints.drop_after(0)
    assert checkpoints.rounds() == () and list(tmp_path.iterdir()) == []


def test_the_secret_and_the_weights_are_readable_by_the_owner_only(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        stored(tmp_path, 1)
    finally:
        os.umask(old)
    folder = tmp_path / "round-000001"
    assert stat.S_IMODE((folder / "state.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("where", ["save_file", "fsync", "rename", "mkdir"])
@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file system")]
)
def test_a_full_disk_is_a_storage_error_with_path_and_reason_and_spoils_nothing(
    where: str, number: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = stored(tmp_path, 1, 2)

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint if where == "save_file" else os, where, fail)
        with pytest.raises(StorageError) as caught:
            checkpoints.save(position_of(3), tensors_of(3))
    assert str(caught.value) == f"{tmp_path / 'round-000003'}: can't be stored: {reason}"
    again = stored(tmp_path)
    assert again.rounds() == (1, 2)
    again.load(2)
    again.save(position_of(3), tensors_of(3))
    assert again.rounds() == (2, 3)


@pytest.mark.parametrize("name", ["unlink", "rmdir"])
def test_old_rounds_that_cannot_be_removed_are_a_storage_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = stored(tmp_path, 1, 2)

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(StorageError, match="Permission denied"):
        checkpoints.save(position_of(3), tensors_of(3))
    with pytest.raises(StorageError, match="Permission denied"):
        checkpoints.drop_after(1)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match=r"file/below: .*Not a directory"):
        Checkpoints(tmp_path / "file" / "below", 2)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_a_damaged_round_is_refused_naming_its_folder(name: str, damage: str, tmp_path: Path) -> None:
    checkpoints = stored(tmp_path, 1)
    path = tmp_path / "round-000001" / name
    if damage == "missing":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(ConfigError, match=r"round-000001: can't be resumed from"):
        checkpoints.load(1)


def test_what_else_lies_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "round-12").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    checkpoints = stored(tmp_path, 1, 2, 3)
    assert checkpoints.rounds() == (2, 3)
    assert (tmp_path / "lost+found").exists() and (tmp_path / "notes.txt").exists()


def test_what_a_node_knows_of_views_and_commits_is_kept_and_only_ever_rises(tmp_path: Path) -> None:
    checkpoints = stored(tmp_path, 1)
    assert checkpoints.membership == Membership(0, 0)
    checkpoints.remember(view=7)
    checkpoints.remember(committed=1)
    checkpoints.remember(view=3)
    assert Checkpoints(tmp_path, 2).membership == Membership(7, 1)


@pytest.mark.parametrize(
    "content", ["", "{", '{"view": 1}x', '{"rounds": 1}', '{"view": "a"}', '{"view": -1}']
)
def test_a_damaged_memory_of_views_is_refused_naming_the_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "membership.json").write_text(content)
    with pytest.raises(ConfigError, match=r"membership\.json: can't be used"):
        Checkpoints(tmp_path, 2)


def test_a_half_written_memory_of_views_leaves_the_old_one(tmp_path: Path) -> None:
    Checkpoints(tmp_path, 2).remember(view=2)
    (tmp_path / "membership.json.tmp").write_text('{"vi')
    assert Checkpoints(tmp_path, 2).membership == Membership(2, 0)
    assert not (tmp_path / "membership.json.tmp").exists()


def test_a_process_whose_folder_another_one_has_taken_writes_nothing_more(tmp_path: Path) -> None:
    older, newer = stored(tmp_path, 1), Checkpoints(tmp_path, 2)
    older.claim("1" * 32)
    older.check_owner()
    newer.claim("2" * 32)
    writes: list[Callable[[], object]] = [
        lambda: older.save(position_of(2), tensors_of(2)),
        lambda: older.remember(view=9),
        lambda: older.drop_after(0),
        lambda: older.finish(2),
    ]
    for write in writes:
        with pytest.raises(IdentityError, match="another process of this participant writes here since"):
            write()
    newer.save(position_of(2), tensors_of(2))
    assert newer.rounds() == (1, 2) and newer.membership.view == 0


def test_the_committed_round_stays_however_many_are_stored_after_it(tmp_path: Path) -> None:
    checkpoints = stored(tmp_path, 1, 2)
    checkpoints.remember(committed=2)
    for number in (3, 4, 5, 6):
        checkpoints.save(position_of(number), tensors_of(number))
    assert checkpoints.rounds() == (2, 5, 6)
    checkpoints.remember(committed=6)
    assert checkpoints.rounds() == (5, 6)


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    config = small_configs(tmp_path, 1, architecture("olmoe"))[0]
    checkpoints = Checkpoints(Path(config.checkpoint_directory), 2)
    assert stored_position(config, checkpoints) is None
    checkpoints.save(position_of(1), tensors_of(1))
    with pytest.raises(ConfigError, match="belongs to another consortium"):
        stored_position(config, checkpoints)
    own = {**json.loads((checkpoints.directory / "round-000001/state.json").read_text())}
    own["frozen"] = frozen_digest(config)
    (checkpoints.directory / "round-000001/state.json").write_text(json.dumps(own))
    found = stored_position(config, checkpoints)
    assert found is not None and found.round == 1


def test_where_the_run_stands_is_read_without_its_tensors(tmp_path: Path) -> None:
    """They are as large as the model, and are read again when everybody has agreed on a round."""
    config = small_configs(tmp_path, 1, architecture("olmoe"))[0]
    checkpoints = stored(Path(config.checkpoint_directory), 1)
    folder = checkpoints.directory / "round-000001"
    own = json.loads((folder / "state.json").read_text()) | {"frozen": frozen_digest(config)}
    (folder / "state.json").write_text(json.dumps(own))
    (folder / "state.safetensors").unlink()
    found = stored_position(config, checkpoints)
    assert found is not None and found.step == 10


def test_what_the_digest_of_the_frozen_parts_covers(tmp_path: Path) -> None:
    config, other = small_configs(tmp_path, 2, architecture("olmoe"))
    digest = frozen_digest(config)
    assert digest != frozen_digest(other), "the participant"
    longer = config.training.model_copy(update={"rounds": 9})
    assert digest == frozen_digest(config.model_copy(update={"training": longer})), "rounds may be added"
    dtype = config.model.model_copy(update={"dtype": "bfloat16"})
    assert digest != frozen_digest(config.model_copy(update={"model": dtype}))
    assert digest != frozen_digest(config.model_copy(update={"placement": config.placement[:1]}))
    moved = config.model.model_copy(update={"checkpoint": "/elsewhere"})
    assert digest == frozen_digest(config.model_copy(update={"model": moved})), "where the weights lie"


def test_the_order_secret_is_that_of_the_file_else_the_stored_one_else_new(tmp_path: Path) -> None:
    config = small_configs(tmp_path, 1, architecture("olmoe"))[0]
    assert order_secret(config, "ff" * 32) == bytes([1] * 32)
    without = config.model_copy(update={"order_secret_file": None})
    assert order_secret(without, "ff" * 32) == b"\xff" * 32
    drawn = {order_secret(without, None) for _ in range(3)}
    assert len(drawn) == 3 and {len(secret) for secret in drawn} == {32}
    path = Path(str(config.order_secret_file))
    for content in ("", "ab" * 31, "zz" * 32):
        path.write_text(content)
        with pytest.raises(ConfigError) as caught:
            order_secret(config, None)
        assert str(caught.value) == f"order_secret_file: {path} must hold 32 bytes in hex"
    shutil.rmtree(path.parent / "model")
