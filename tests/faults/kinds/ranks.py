"""Ranks that do not do the same."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.registry import Outcome, Run, fault_kind
from tests.faults.tiny_world import LIMIT, last_words, tiny_world, without_traceback
from tests.training.faults.processes import start
from tests.training.faults.spoiling import CHANGES, copy_data, data_flags
from tests.training.world import World

_TIMEOUT = 15  # seconds; --ddp_timeout

_SETTINGS: dict[str, tuple[Any, Any]] = {
    "learning_rate": (0.01, 0.02), "seed": (1, 2), "gradient_accumulation_steps": (1, 2), "max_steps": (6, 5),
    "alignment": ("pat", "none"), "alignment_weight": (2, 3), "per_device_train_batch_size": (1, 2),
    "save_steps": (2, 3), "model_max_length": (200, 100), "num_train_epochs": (1, 2),
}  # fmt: skip


@fault_kind(
    "ranks started with other settings or data", "both end at start and name the difference; none hangs", slow=True
)
def otherwise(run: Run) -> Iterator[Outcome]:
    world = tiny_world(run)
    for name in run.some(sorted(_SETTINGS)):
        out = run.folder / name / "llava-run"

        def argv(rank: int, name: str = name, out: Path = out) -> list[str]:
            return world.argv(out, **{name: _SETTINGS[name][rank]})

        yield _refused(f"--{name}", argv, run.folder, f"--{name} is ")
    for change in [change for change in CHANGES if "image" not in change.__name__]:
        other = copy_data(world, run.folder / change.__name__)
        change(other)
        same = copy_data(world, run.folder / f"{change.__name__} not")

        def argv(rank: int, folders: tuple[Path, Path] = (same, other)) -> list[str]:
            return world.argv(run.folder / "llava-run", **data_flags(folders[rank]))

        yield _refused(change.__name__, argv, run.folder, "path is ")


def _refused(fault: str, argv: Callable[[int], list[str]], folder: Path, words: str) -> Outcome:
    started = start(1, argv, folder / "log", ranks=2)
    statuses = started.wait(LIMIT)
    if None in statuses:
        started.send(signal.SIGKILL)
    told = all(
        "the ranks were not started alike" in started.said(rank) and words in started.said(rank) for rank in (0, 1)
    )
    return Outcome(statuses == [2, 2] and told and without_traceback(started), fault, last_words(started))


@fault_kind(
    "ranks that hang or leave at any step",
    f"the other ends after --ddp_timeout ({_TIMEOUT} s here) at the latest, with its rank and the phase",
    slow=True,
)
def hanging(run: Run) -> Iterator[Outcome]:
    world, rng = tiny_world(run), random.Random(run.seed)
    for number, how in enumerate(("SIGSTOP", "SIGSTOP", "SIGKILL", "SIGKILL", "SIGSEGV", "SIGABRT")):
        rank, step = number % 2, rng.randrange(6)
        yield _one_is_gone(world, run.folder / str(number), how, rank, step)


def _one_is_gone(world: World, folder: Path, how: str, rank: int, step: int) -> Outcome:
    folder.mkdir()

    def prepare(own: int) -> None:
        if own == rank:
            os.environ.update(DIE_AT=str(step), DIE_BY=how)

    flags = {"gradient_accumulation_steps": 1, "ddp_timeout": _TIMEOUT, "alignment": "my_package.my_module"}
    run = start(1, world.argv(folder / "llava-run", **flags), folder / "log", ranks=2, prepare=prepare)
    run.processes[1 - rank].join(LIMIT)
    status = run.processes[1 - rank].exitcode
    run.send(signal.SIGKILL)
    run.wait(LIMIT)
    told = (
        f"error: rank {1 - rank} of 2 got no answer from another rank in this phase: step {step + 1} of "
        in run.said(1 - rank)
    )
    return Outcome(status == 1 and told, f"rank {rank} in step {step + 1}: {how}", last_words(run))
