"""Output folders: on a disk that is full or read-only, and another run's."""

from __future__ import annotations

import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from llava_pat.training.checkpoint_files import damage
from tests.faults.registry import Outcome, Run, fault_kind
from tests.faults.small_disk import NoDisk, SmallDisk, contents
from tests.faults.tiny_world import LIMIT, last_words, tiny_world, without_traceback
from tests.training.faults.comparing import assert_same, outcome
from tests.training.faults.processes import Started, start
from tests.training.world import World

_LARGE = 64 << 20
_FLAGS = {"save_total_limit": 2, "alignment": "my_package.my_module", "save_steps": 1, "logging_steps": 1}


@fault_kind(
    "a disk that is full at some moment of a run",
    "one message with the way out; every checkpoint is whole; with room again it goes on to the bit",
    slow=True,
)
def full(run: Run) -> Iterator[Outcome]:
    """A real disk of so many bytes where this process may mount one, else files that end there, as by a quota."""
    world = tiny_world(run)
    for stage, faults in ((1, 14), (2, 10)):
        whole = run.folder / f"whole-{stage}" / "llava-run"
        done = start(stage, _argv(world, stage, whole), run.folder / "log")
        assert done.wait(LIMIT) == [0], last_words(done)
        expected = outcome(whole)
        disk = _disk(run.folder / f"disk-{stage}")
        largest = sum(map(len, contents(whole).values())) if disk else max(map(len, contents(whole).values()))
        for number in range(run.many(faults)):
            room = int(largest * (number + 0.5) / faults)
            yield _filled(world, stage, run.folder, disk, room, expected)


def _argv(world: World, stage: int, out: Path, **more: object) -> list[str]:
    return {1: world.argv, 2: world.finetune_argv}[stage](out, **_FLAGS | more)


def _disk(folder: Path) -> SmallDisk | None:
    try:
        return SmallDisk(folder, _LARGE)
    except NoDisk:
        return None


def _filled(
    world: World, stage: int, folder: Path, disk: SmallDisk | None, room: int, expected: dict[str, object]
) -> Outcome:
    out = (disk.folder if disk else folder / "quota") / "llava-run"
    fault = f"room for {room} bytes, stage {stage}, {'a disk' if disk else 'a quota'}"
    if disk:
        disk.resize(max(room, 4096))
    short = start(stage, _argv(world, stage, out), folder / "log", prepare=None if disk else _quota(room))
    (status,) = short.wait(LIMIT)
    problem = _wrong(short, status, out)
    if problem is None and status:
        if disk:
            disk.resize(_LARGE)
        again = start(stage, _argv(world, stage, out), folder / "log")
        if again.wait(LIMIT) != [0]:
            problem = f"does not go on: {last_words(again)}"
    if problem is None:
        try:
            assert_same(outcome(out), expected)
        except AssertionError as error:
            problem = str(error)[:500]
    shutil.rmtree(out, ignore_errors=True)
    return Outcome(problem is None, fault, problem or "")


def _quota(room: int) -> Callable[[int], None]:
    def prepare(rank: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    return prepare


def _wrong(run: Started, status: int | None, out: Path) -> str | None:
    """What is wrong with how a run ended; None when nothing is."""
    broken = [f"{path.name}: {why}" for path in out.glob("checkpoint-*") if (why := damage(path)) is not None]
    if broken:
        return f"half a checkpoint: {broken}"
    if status not in (0, 1, 2) or not without_traceback(run):
        return f"no message: {last_words(run)}"
    if status and (out / "metrics.json").exists():
        return "metrics.json says that it is finished"
    said = run.said().split("error: ")[-1]
    if status and not (str(out) in said and "GB free" in said or "nothing can be written" in said):
        return f"the message does not say where and why: {said[:500]}"
    return None


@fault_kind(
    "read-only folders, and folders of other runs and models",
    "refused before a model is loaded; nothing in them is touched",
    slow=True,
)
def others(run: Run) -> Iterator[Outcome]:
    world = tiny_world(run)
    out = run.folder / "there" / "llava-run"
    done = start(1, _argv(world, 1, out), run.folder / "log")
    assert done.wait(LIMIT) == [0], last_words(done)
    changes: tuple[dict[str, object], ...] = (
        {"learning_rate": 0.5}, {"seed": 9}, {"alignment": "pat"}, {"alignment_weight": 3}, {"max_steps": 3},
        {"data_path": world.folder / "mixed.json"}, {"gradient_accumulation_steps": 1}, {"num_train_epochs": 5},
        {"model_max_length": 100}, {"weight_decay": 0.3},
    )  # fmt: skip
    for change in run.some(changes):
        yield _untouched(world, run.folder, out, str(change), "holds another run", **change)
    disk = _disk(run.folder / "disk")
    if disk is not None:
        shutil.copytree(out, disk.folder / "there" / "llava-run")
        (disk.folder / "there" / "llava-run" / "metrics.json").unlink()  # else it is done, and nothing is written
        disk.resize(_LARGE, read_only=True)
        for name in ("there", "new"):
            place = disk.folder / name / "llava-run"
            yield _untouched(world, run.folder, place, "a read-only disk", "Read-only file system")
    (out / "config.yaml").unlink()
    yield _untouched(world, run.folder, out, "a folder with a model, no run of ours", "not one of our runs")
    yield _untouched(world, run.folder, world.folder / "llm", "a language model's folder", "not one of our runs")
    (run.folder / "file").write_text("precious")
    yield _untouched(world, run.folder, run.folder / "file" / "run", "a file", "Not a directory")


def _untouched(world: World, folder: Path, out: Path, fault: str, words: str, **more: object) -> Outcome:
    there = out if out.exists() else out.parent
    before = contents(there) if there.is_dir() else {"": there.read_bytes()} if there.exists() else {}
    run = start(1, _argv(world, 1, out, **more), folder / "log")
    (status,) = run.wait(LIMIT)
    after = contents(there) if there.is_dir() else {"": there.read_bytes()} if there.exists() else {}
    survived = status == 2 and words in run.said() and str(out) in run.said() and before == after
    return Outcome(survived and without_traceback(run), fault, last_words(run))
