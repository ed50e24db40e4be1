"""Steps whose loss or gradient is not finite, or far too large."""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from llava_pat import replay
from llava_pat.models.shards import read_file
from llava_pat.training import stages
from llava_pat.training.step_dump import first_troubled_rank, read_micro_batches, read_step
from tests.faults.examples import generated
from tests.faults.harmful import changed_bytes
from tests.faults.refusal import refused
from tests.faults.registry import Outcome, Run, fault_kind
from tests.faults.tiny_world import LIMIT, last_words, tiny_world, without_traceback
from tests.training.faults.processes import Started, start
from tests.training.faults.spoiling import poison
from tests.training.world import World

_FACTORS = {"NaN": float("nan"), "infinity": float("inf"), "1e38": 1e38}


@fault_kind(
    "samples that make a step NaN or infinite",
    "the run ends at the step and names them; `llava_pat.replay` gives the step's losses again, to the bit",
    slow=True,
)
def found(run: Run) -> Iterator[Outcome]:
    world = tiny_world(run)
    for number in range(run.many(12)):
        rng = random.Random(run.seed * 1000 + number)
        stage, record, (name, factor) = 1 + number % 2, rng.randrange(12), rng.choice(sorted(_FACTORS.items()))
        if stage == 2 and record % 4 == 2:
            record -= 1  # text only
        out = run.folder / str(number) / "llava-run"
        ended = start(stage, _argv(world, stage, out), run.folder / "log", prepare=_poisoned(record, factor))
        (status,) = ended.wait(LIMIT)
        fault = f"train-{record} times {name}, stage {stage}"
        if status != 1 or f"'train-{record}'" not in ended.said() or not without_traceback(ended):
            yield Outcome(False, fault, last_words(ended))
            continue
        again = _replayed(ended, run.folder / "replay.log")
        finite = all(_finite(file) for file in out.glob("checkpoint-*/mm_projector.bin"))
        yield Outcome(again is None and finite, fault, again or "a checkpoint holds values that are not finite")


@fault_kind(
    "bad steps with --skip_bad_steps and --max_loss_spike",
    "left out and counted; the run ends with finite weights",
    slow=True,
)
def skipped(run: Run) -> Iterator[Outcome]:
    world = tiny_world(run)
    cases: list[tuple[str, int, Callable[[int], None], dict[str, object]]] = []
    for number in range(run.many(6)):
        record = random.Random(run.seed * 100 + number).randrange(12)
        cases.append((f"a sample of NaN, train-{record}", 1, _poisoned(record, float("nan")), {}))
        steep = {"max_loss_spike": 3, "num_train_epochs": 3}
        cases.append((f"weights times 1000 in step {12 + number}", 1, _spiking(11 + number), steep))
    for number, (fault, stage, prepare, more) in enumerate(cases):
        out = run.folder / str(number) / "llava-run"
        flags = {"skip_bad_steps": 12} | more
        ended = start(stage, _argv(world, stage, out, **flags), run.folder / "log", prepare=prepare)
        (status,) = ended.wait(LIMIT)
        if status != 0:
            yield Outcome(False, fault, last_words(ended))
            continue
        metrics = json.loads((out / "metrics.json").read_text())
        yield Outcome(metrics["skipped_steps"] > 0 and _finite(out / "mm_projector.bin"), fault, str(metrics)[:300])


@fault_kind("dumps of steps with bytes changed or files missing", "refused by folder, or replayed", slow=True)
def dumps(run: Run) -> Iterator[Outcome]:
    world = tiny_world(run)
    out = run.folder / "llava-run"
    ended = start(1, _argv(world, 1, out), run.folder / "log", prepare=_poisoned(3, float("nan")))
    assert ended.wait(LIMIT) == [1], last_words(ended)
    (dump,) = (out / "bad_steps").iterdir()
    files = sorted(file for file in dump.iterdir() if file.is_file())
    whole = {file: file.read_bytes() for file in files}

    def one(rng: random.Random) -> Iterator[Outcome]:
        file = rng.choice(files)
        if rng.random() < 0.1:
            file.unlink()
        else:
            file.write_bytes(changed_bytes(rng, whole[file]))
        # its own main says "refused" by status 2 and one line
        yield _read(dump, file.name)
        file.write_bytes(whole[file])

    yield from generated(run, 300, one)


def _read(dump: Path, name: str) -> Outcome:
    def read() -> None:
        about = read_step(dump)
        read_micro_batches(dump, first_troubled_rank(dump, about["ranks"]))
        raise ValueError(f"{dump}: read")  # what was not in what changed, or says so when it is computed

    return refused(name, read, str(dump))


def _argv(world: World, stage: int, out: Path, **more: object) -> list[str]:
    settings = {"save_steps": 1, "logging_steps": 1, "alignment": "my_package.my_module"} | more
    return {1: world.argv, 2: world.finetune_argv}[stage](out, **settings)


def _poisoned(record: int, factor: float) -> Callable[[int], None]:
    return lambda rank: poison(pytest.MonkeyPatch(), record, factor=factor)


def _spiking(step: int) -> Callable[[int], None]:
    """The projector is 1000 times what it was for one step."""

    class Once(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **keywords) -> None:
            if state.global_step in (step, step + 1):
                with torch.no_grad():
                    model.model.projector[2].weight.mul_(1000.0 if state.global_step == step else 0.001)

    def prepare(rank: int) -> None:
        build = stages.build_trainer

        def with_callback(*values, **keywords):
            trainer = build(*values, **keywords)
            trainer.add_callback(Once())
            return trainer

        stages.build_trainer = with_callback

    return prepare


def _replayed(ended: Started, log: Path) -> str | None:
    """What is wrong with the replay of the step that the message names; None when nothing is."""
    named = re.search(r"python -m llava_pat\.replay (\S+?)\.? ", ended.said() + " ")
    if named is None:
        return f"no dump is named: {last_words(ended)}"
    process = multiprocessing.get_context("fork").Process(target=_replay, args=(named[1], log))
    process.start()
    process.join(LIMIT)
    said = log.read_text()
    if process.exitcode != 0 or "as in the run" not in said:
        return f"replay ends with {process.exitcode}: {said[-500:]}"
    return None


def _replay(dump: str, log: Path) -> None:
    with log.open("w") as stream:
        sys.stdout = sys.stderr = stream
        status = replay.main([dump])
    sys.exit(status)


def _finite(file: Path) -> bool:
    return all(bool(torch.isfinite(tensor.read()).all()) for tensor in read_file(file).values())
