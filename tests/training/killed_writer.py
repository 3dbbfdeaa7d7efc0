"""Stores, and drops, a round again and again, killed one file operation later each time. Prints what was left as JSON.

Run as a program with a folder: forking is only safe where no thread runs yet.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pcmoe_node import checkpoint
from pcmoe_node.checkpoint import Checkpoints, Position

KILLED = 9
OPERATIONS = ("fsync", "rename", "mkdir", "open", "unlink", "rmdir")


def tensors_of(number: int) -> dict[str, torch.Tensor]:
    """What round `number` stores."""
    return {"a": torch.full((300,), float(number)), "b": torch.arange(number)}


def position_of(number: int) -> Position:
    """Where round `number` stands."""
    return Position(
        round=number,
        step=10 * number,
        secret="00" * 32,
        frozen="sha256:0",
        agreement_digest="sha256:1",
        corpus="c",
        tokens=number,
    )


def kill_at(count: int) -> None:
    """From now on this process ends, as by a power cut, just before its `count`-th file operation."""
    done = 0

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            if done == count:
                os._exit(KILLED)
            done += 1
            return operation(*args, **kwargs)

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    save = checkpoint.save_file  # type: ignore[attr-defined]

    def in_two_halves(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save(tensors, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        counted(lambda: None)()
        path.write_bytes(whole)

    checkpoint.save_file = in_two_halves  # type: ignore[attr-defined]


def in_a_child(work: Callable[[], None], count: int) -> int:
    """Exit code of a child that does `work` and is killed at its `count`-th operation."""
    child = os.fork()
    if child == 0:
        kill_at(count)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def whole(stored: Checkpoints, number: int) -> bool:
    """Whether a round can be read and is what was stored."""
    position, found = stored.load(number)
    expected = tensors_of(number)
    return position == position_of(number) and all(torch.equal(found[n], expected[n]) for n in expected)


def what_is_left(folder: Path, work: Callable[[Path], None]) -> list[dict[str, object]]:
    """One entry per kill: the rounds found after it, whether all of them are whole, and what is stored next."""
    before, now, entries = folder / "before", folder / "now", []
    stored = Checkpoints(before, keep=2)
    for number in (1, 2, 3):
        stored.save(position_of(number), tensors_of(number))
    code, count = KILLED, 0
    while code == KILLED:
        shutil.copytree(before, now)
        code = in_a_child(lambda: work(now), count)
        left = Checkpoints(now, keep=2)
        entry: dict[str, object] = {"code": code, "rounds": left.rounds()}
        entry["whole"] = all(whole(left, number) for number in left.rounds())
        left.save(position_of(4), tensors_of(4))
        entry["next"] = left.rounds()
        entry["leftovers"] = sorted(p.name for p in now.iterdir() if "tmp" in p.name)
        entries.append(entry)
        shutil.rmtree(now)
        count += 1
    shutil.rmtree(before)
    return entries


def main() -> None:
    """Both works, one after the other."""
    folder = Path(sys.argv[1])

    def save(now: Path) -> None:
        Checkpoints(now, keep=2).save(position_of(4), tensors_of(4))

    def drop(now: Path) -> None:
        Checkpoints(now, keep=2).drop_after(2)

    result = {"save": what_is_left(folder, save), "drop": what_is_left(folder, drop)}
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
