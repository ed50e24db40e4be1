"""Processes that are killed, or asked to stop, at any moment."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from llava_pat.training.checkpoint_files import damage
from tests.annotation.engine.killing import kill_and_resume as kill_annotation
from tests.faults.registry import Outcome, Run, fault_kind
from tests.faults.tiny_world import LIMIT, last_words, tiny_world
from tests.training.faults.comparing import assert_same, outcome
from tests.training.faults.killing import FLAGS, kill_and_resume
from tests.training.faults.processes import start
from tests.training.world import World

_GOES_ON = "the same command goes on; log and weights are to the bit those of a run that was left alone"
_AT_ONCE = 4  # kills that one comparison stands for


@fault_kind("SIGKILL in stage 1, half of them inside a save", _GOES_ON, slow=True)
def stage_1(run: Run) -> Iterator[Outcome]:
    yield from _killed(run, stage=1, kills=20)


@fault_kind("SIGKILL in stage 2, half of them inside a save", _GOES_ON, slow=True)
def stage_2(run: Run) -> Iterator[Outcome]:
    yield from _killed(run, stage=2, kills=20)


@fault_kind("SIGKILL of one of two ranks", f"the other says so and ends; {_GOES_ON}", slow=True)
def one_of_two(run: Run) -> Iterator[Outcome]:
    yield from _killed(run, stage=1, kills=8, ranks=2)
    yield from _killed(run, stage=2, kills=4, ranks=2)


def _killed(run: Run, stage: int, kills: int, ranks: int = 1) -> Iterator[Outcome]:
    world = tiny_world(Run(run.folder / f"stage-{stage}", run.seed, run.share))
    for number in range(run.many(kills // _AT_ONCE)):
        folder = run.folder / f"{stage}-{number}"
        folder.mkdir()
        fault = f"{_AT_ONCE} kills of stage {stage}, seed {run.seed * 100 + number}"
        try:
            counts = kill_and_resume(world, folder, stage, _AT_ONCE, ranks, run.seed * 100 + number)
        except AssertionError as error:
            yield Outcome(False, fault, str(error)[:1000], _AT_ONCE)
        else:
            yield Outcome(counts["kills"] == _AT_ONCE, fault, str(counts), _AT_ONCE)
        shutil.rmtree(folder)


@fault_kind(
    "SIGKILL of annotation, in the middle and at its start",
    "the same command goes on; every file is that of a run that was left alone",
    slow=True,
)
def annotation(run: Run) -> Iterator[Outcome]:
    kills = run.many(8)
    try:
        counts = kill_annotation(run.folder, "local", kills, run.seed)
    except AssertionError as error:
        yield Outcome(False, f"{kills} kills", str(error)[:1000], kills)
    else:
        yield Outcome(counts["kills"] == kills, f"{kills} kills", str(counts), kills)


@fault_kind(
    "SIGTERM, as before a preemption", f"a checkpoint after the step in hand and status 143; {_GOES_ON}", slow=True
)
def asked_to_stop(run: Run) -> Iterator[Outcome]:
    world, rng = tiny_world(run), run.rng
    for stage in (1, 2):
        whole = run.folder / f"whole-{stage}" / "llava-run"
        left_alone = start(stage, _argv(world, stage, whole), run.folder / "whole.log")
        assert left_alone.wait(LIMIT) == [0], last_words(left_alone)
        expected = outcome(whole)
        for number in range(run.many(8)):
            out = run.folder / f"asked-{stage}-{number}" / "llava-run"
            yield _asked(world, stage, out, expected, rng)


def _argv(world: World, stage: int, out: Path) -> list[str]:
    """No checkpoint but those that are asked for; no measures between, which one that is asked leaves out."""
    settings = FLAGS | {"save_steps": 100, "eval_strategy": "no"}
    return {1: world.argv, 2: world.finetune_argv}[stage](out, **settings)


def _asked(world: World, stage: int, out: Path, expected: dict[str, object], rng: random.Random) -> Outcome:
    """Asked twice and then let go on. The moments: from the start on, as long as a run lasts."""
    statuses = []
    for _ in range(2):
        run = start(stage, _argv(world, stage, out), out.parents[1] / "asked.log")
        time.sleep(rng.uniform(0, 1.5))
        run.send(signal.SIGTERM)
        statuses += run.wait(LIMIT)
        fault = f"SIGTERM in stage {stage}, statuses {statuses}"
        problems = [problem for path in out.glob("checkpoint-*") if (problem := damage(path)) is not None]
        if statuses[-1] not in (143, -signal.SIGTERM, 0) or problems or "Traceback" in run.said():
            return Outcome(False, fault, f"{problems} {last_words(run)}")
        if statuses[-1] == 143 and not list(out.glob("checkpoint-*")):
            return Outcome(False, fault, "status 143, and no checkpoint")
    last = start(stage, _argv(world, stage, out), out.parents[1] / "asked.log")
    if last.wait(LIMIT) != [0]:
        return Outcome(False, fault, last_words(last), 2)
    try:
        assert_same(outcome(out), expected)
    except AssertionError as error:
        return Outcome(False, fault, str(error)[:500], 2)
    return Outcome(True, fault, count=2)
