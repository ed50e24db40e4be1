"""Data that change or vanish under a run, and processes that read them and are killed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch.utils.data import get_worker_info

from llava_pat.data.dataset import LlavaDataset
from llava_pat.training import stages
from tests.faults.registry import Outcome, Run, fault_kind
from tests.faults.small_disk import contents
from tests.faults.tiny_world import LIMIT, last_words, tiny_world, without_traceback
from tests.training.faults.comparing import assert_same, outcome
from tests.training.faults.processes import start
from tests.training.faults.spoiling import CHANGES, copy_data, data_flags
from tests.training.world import World

_FLAGS = {"save_steps": 1, "alignment": "my_package.my_module"}


@fault_kind(
    "data changed between two starts of a run",
    "refused, with the data set's name; put back, the run goes on to the bit",
    slow=True,
)
def changed(run: Run) -> Iterator[Outcome]:
    world = tiny_world(run)
    own = copy_data(world, run.folder / "data")
    kept = contents(own)
    whole, begun = run.folder / "whole" / "llava-run", run.folder / "begun" / "llava-run"
    done = start(1, world.argv(whole, **data_flags(own, **_FLAGS)), run.folder / "log")
    assert done.wait(LIMIT) == [0], last_words(done)
    argv = world.argv(begun, **data_flags(own, **_FLAGS))
    killed = start(1, argv, run.folder / "log", prepare=lambda rank: os.environ.update(DIE_AT="3"))
    assert killed.wait(LIMIT) == [-signal.SIGKILL], last_words(killed)
    for change, which in CHANGES.items():
        change(own)
        again = start(1, argv, run.folder / "log")
        refused = again.wait(LIMIT) == [2] and f"the {which} data are not those that this run began" in again.said()
        for name, content in kept.items():
            (own / name).write_bytes(content)
        yield Outcome(refused and without_traceback(again), change.__name__, last_words(again))
    last = start(1, argv, run.folder / "log")
    assert last.wait(LIMIT) == [0], last_words(last)
    assert_same(outcome(begun), outcome(whole))


@fault_kind(
    "images that vanish, are emptied, become folders under a run",
    "it ends with the record's name, or goes on and counts them as --missing says",
    slow=True,
)
def lost(run: Run) -> Iterator[Outcome]:
    world = tiny_world(run)
    harms: dict[str, Callable[[Path], object]] = {
        "vanishes": Path.unlink,
        "is emptied": lambda file: file.write_bytes(b""),
        "is cut": lambda file: file.write_bytes(file.read_bytes()[:40]),
        "becomes a folder": lambda file: (file.unlink(), file.mkdir()),
        "becomes a link to itself": lambda file: (file.unlink(), file.symlink_to(file.name)),
    }
    number = 0
    for what in run.some(sorted(harms)):
        for missing in ("error", "skip", "blank"):
            number += 1
            folder = run.folder / str(number)
            own, record = copy_data(world, folder / "data"), run.rng.randrange(number, number + 12) % 12
            more = {"missing": missing, "max_missing": 1, "dataloader_num_workers": number % 2, "alignment": "pat"}
            yield _lost(world, folder, own, record, what, harms[what], more)
            shutil.rmtree(folder)


def _lost(
    world: World, folder: Path, own: Path, record: int, what: str, harm: Callable[[Path], object], more: dict
) -> Outcome:
    """The image is there for the check and not when training reads it."""
    out, image = folder / "llava-run", own / "images" / f"train-{record}.png"

    def then_lost(rank: int) -> None:
        build = stages.build_trainer

        def spoiled(*values, **keywords):
            harm(image)
            return build(*values, **keywords)

        stages.build_trainer = spoiled

    run = start(1, world.argv(out, **data_flags(own, **more)), folder / "log", prepare=then_lost)
    (status,) = run.wait(LIMIT)
    if more["missing"] == "error" or "link" in what:  # no name that leads out of the folder is ever passed over
        survived = status == 2 and f"(id 'train-{record}')" in run.said() and image.name in run.said()
    else:
        survived = status == 0 and '"lost_images": 1' in (out / "metrics.json").read_text()
    fault = f"train-{record}.png {what}, --missing {more['missing']}"
    return Outcome(survived and without_traceback(run), fault, last_words(run))


@fault_kind(
    "SIGKILL of runs that have lost images",
    "the same command goes on; log, weights and the count of images are to the bit those of a run that was left alone",
    slow=True,
)
def lost_and_killed(run: Run) -> Iterator[Outcome]:
    world = tiny_world(run)
    cases = [(missing, ranks) for missing in ("skip", "blank") for ranks in (1, 2)]
    for number, (missing, ranks) in enumerate(run.some(cases)):
        folder = run.folder / f"killed-{number}"
        own = copy_data(world, folder / "data")
        names = [f"train-{record}.png" for record in run.rng.sample(range(12), 3)]
        step = run.rng.randrange(1, 6)
        more = {"missing": missing, "max_missing": 3, "num_train_epochs": ranks, **_FLAGS}
        yield _lost_and_killed(world, folder, own, names, ranks, step, data_flags(own, **more))
        shutil.rmtree(folder)


def _lost_and_killed(
    world: World, folder: Path, own: Path, names: list[str], ranks: int, step: int, flags: dict
) -> Outcome:
    kept = contents(own)

    def lose(rank: int) -> None:
        build = stages.build_trainer

        def gone(*values, **keywords):
            for name in names:
                (own / "images" / name).unlink(missing_ok=True)
            return build(*values, **keywords)

        stages.build_trainer = gone

    def lose_and_die(rank: int) -> None:
        lose(rank)
        os.environ.update(DIE_AT=str(step))

    whole, killed = folder / "whole" / "llava-run", folder / "killed" / "llava-run"
    done = start(1, world.argv(whole, **flags), folder / "log", ranks=ranks, prepare=lose)
    assert done.wait(LIMIT) == [0] * ranks, last_words(done)
    for name, content in kept.items():
        (own / name).write_bytes(content)
    died = start(1, world.argv(killed, **flags), folder / "log", ranks=ranks, prepare=lose_and_die)
    assert -signal.SIGKILL in died.wait(LIMIT), last_words(died)
    again = start(1, world.argv(killed, **flags), folder / "log", ranks=ranks)
    survived = again.wait(LIMIT) == [0] * ranks and '"lost_images": 3' in (killed / "metrics.json").read_text()
    if survived:
        assert_same(outcome(killed), outcome(whole))
    fault = f"{', '.join(names)} vanish, killed in step {step + 1}, --missing {flags['missing']}, {ranks} ranks"
    return Outcome(survived and without_traceback(again), fault, last_words(again))


@fault_kind(
    "killed processes that read data",
    "the run ends with the sample that was read; the same command goes on to the bit",
    slow=True,
)
def workers(run: Run) -> Iterator[Outcome]:
    world = tiny_world(run)
    flags = _FLAGS | {"dataloader_num_workers": 2}
    whole = run.folder / "whole" / "llava-run"
    done = start(1, world.argv(whole, **flags), run.folder / "log")
    assert done.wait(LIMIT) == [0], last_words(done)
    for record in run.some(range(0, 12, 2)):
        out = run.folder / str(record) / "llava-run"
        died = start(1, world.argv(out, **flags), run.folder / "log", prepare=_killer(record))
        (status,) = died.wait(LIMIT)
        survived = status == 1 and f"'train-{record}'" in died.said() and without_traceback(died)
        again = start(1, world.argv(out, **flags), run.folder / "log")
        survived = survived and again.wait(LIMIT) == [0]
        if survived:
            assert_same(outcome(out), outcome(whole))
        yield Outcome(survived, f"a process at train-{record}", last_words(died))


def _killer(record: int) -> Callable[[int], None]:
    """Kills the process that reads this training record, as the kernel does when memory is out."""

    def prepare(rank: int) -> None:
        intact = LlavaDataset.__getitem__

        def killed(self: LlavaDataset, index: int):
            sample = intact(self, index)
            if index == record and len(self) == 12 and get_worker_info() is not None:
                os.kill(os.getpid(), signal.SIGKILL)
            return sample

        pytest.MonkeyPatch().setattr(LlavaDataset, "__getitem__", killed)

    return prepare
