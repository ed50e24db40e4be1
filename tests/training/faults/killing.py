"""Kills runs of either stage by SIGKILL at random moments, also inside saves, also one of two ranks; lets them go on
each time, and compares what they leave with a run that was left alone: to the byte.

    python -m tests.training.faults.killing --stage 1 --kills 20             # OMP_NUM_THREADS=1; minutes
    python -m tests.training.faults.killing --stage 2 --kills 10 --ranks 2
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from llava_pat.training import checkpoint_files
from llava_pat.training.checkpoint_files import damage
from llava_pat.training.checkpoints import ASIDE
from tests.training.faults.comparing import assert_same, outcome
from tests.training.faults.processes import Started, start
from tests.training.world import World, write_world

# Two epochs of six steps, a checkpoint after each; the objective has parameters and draws noise. A log line is of
# three steps, so that most checkpoints lie between two lines.
FLAGS = {
    "num_train_epochs": 2, "save_steps": 1, "save_total_limit": 2, "logging_steps": 3, "eval_strategy": "steps",
    "eval_steps": 4, "alignment": "my_package.my_module",
}  # fmt: skip
STEPS = 12
END = 120  # seconds for the other rank to end; far below torch's half hour


def kill_and_resume(
    world: World, folder: Path, stage: int, kills: int, ranks: int = 1, seed: int = 0, **flags: object
) -> dict[str, int]:
    """Kills as often as told: half of them some moments after some more steps, half of them inside a save.

    A run that comes to its end before is begun anew. Returns how many kills met a run, how many of those met a save,
    and how many runs came to their end. AssertionError if a kill leaves half a checkpoint under its name or none where
    one was, if the other rank hangs or says nothing, or if a run's end is not that of one that was left alone.
    """
    rng = random.Random(seed)
    argv = {1: world.argv, 2: world.finetune_argv}[stage]
    out, whole = folder / "killed" / "llava-run", folder / "whole" / "llava-run"
    settings = FLAGS | flags
    if ranks > 1:
        settings |= {"gradient_accumulation_steps": 1}
    left_alone = start(stage, argv(whole, **settings), folder / "whole.log", ranks)
    assert left_alone.wait(10 * END) == [0] * ranks, left_alone.said()[-3000:]
    expected = outcome(whole)
    counts = {"kills": 0, "inside a save": 0, "runs": 0}
    while counts["kills"] < kills:
        before = newest(out)
        run = start(stage, argv(out, **settings), folder / "killed.log", ranks, prepare=slow_saves)
        met = _kill(run, out, rng, inside=counts["kills"] % 2 == 1, ranks=ranks)
        if met:
            counts["kills"] += 1
            counts["inside a save"] += (out / ASIDE).exists()
            assert newest(out) >= before, f"the checkpoint of step {before} is gone"
            continue
        assert run.wait(10 * END) == [0] * ranks, run.said()[-3000:]
        _compare(out, expected, counts)
    last = start(stage, argv(out, **settings), folder / "killed.log", ranks)
    assert last.wait(10 * END) == [0] * ranks, last.said()[-3000:]
    _compare(out, expected, counts)
    return counts


def newest(out: Path) -> int:
    """The step of the newest checkpoint, all of which are whole; 0 without any."""
    problems = {path.name: problem for path in out.glob("checkpoint-*") if (problem := damage(path)) is not None}
    assert not problems, problems
    return _last(out)


def _last(out: Path) -> int:
    return max((int(path.name.rpartition("-")[2]) for path in out.glob("checkpoint-*")), default=0)


def slow_saves(rank: int) -> None:
    """Saves that last for some tenths of a second, as large ones do."""
    save, to_disk = torch.save, checkpoint_files.to_disk
    torch.save = lambda *values, **keywords: (time.sleep(0.03), save(*values, **keywords), time.sleep(0.03))
    checkpoint_files.to_disk = lambda path: (time.sleep(0.01), to_disk(path))


def _kill(run: Started, out: Path, rng: random.Random, inside: bool, ranks: int) -> bool:
    """Whether a kill met the run. The other rank, if there is one, must then end by itself and say why, or be done."""
    more = rng.randrange(1, 5)
    if ranks == 1 and not inside and rng.random() < 0.2:
        more = 0  # at once
    ripe = _last(out) + more
    while run.processes[0].is_alive() and not (_last(out) >= ripe and (not inside or (out / ASIDE).exists())):
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.2 if more else 3))
    rank = rng.randrange(ranks)
    if not run.processes[rank].is_alive():
        return False
    run.send(signal.SIGKILL, rank)
    statuses = run.wait(END)
    if None in statuses:
        run.send(signal.SIGKILL)
        raise AssertionError(f"a rank hangs for {END} s when another was killed: {run.said(1 - rank)[-2000:]}")
    for other in set(range(ranks)) - {rank}:
        said, told = run.said(other), f"rank {other} of {ranks} got no answer from another rank"
        done = statuses[other] == 0 and _last(out) == STEPS  # it had nothing left to do: only rank 0 writes the end
        assert done or (statuses[other] == 1 and told in said), f"statuses {statuses}, {_last(out)}: {said[-2000:]}"
    return statuses[rank] == -signal.SIGKILL


def _compare(out: Path, expected: dict[str, object], counts: dict[str, int]) -> None:
    assert_same(outcome(out), expected)
    assert expected["steps"] == STEPS
    counts["runs"] += 1
    shutil.rmtree(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", type=int, choices=(1, 2), default=1)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        tiny = write_world(Path(scratch) / "world")
        sys.path.insert(0, str(tiny.folder / "modules"))
        print(kill_and_resume(tiny, Path(scratch), options.stage, options.kills, options.ranks, options.seed))
