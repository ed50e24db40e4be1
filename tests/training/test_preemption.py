"""SIGTERM or SIGUSR1: a checkpoint after the step, status 143, and the same command goes on to the byte."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from llava_pat.training.checkpoint_files import damage
from llava_pat.training.launch import run as run_to_exit
from llava_pat.training.stages import finetune, pretrain
from tests.training.faults.comparing import assert_same, outcome
from tests.training.faults.processes import start

# No checkpoint but the one that is asked for, between two log lines and in the second of two epochs.
FLAGS = {
    "alignment": "my_package.my_module", "num_train_epochs": 2, "logging_steps": 3, "save_steps": 100,
    "eval_strategy": "steps", "eval_steps": 4,
}  # fmt: skip


@pytest.mark.parametrize("stage, number", [(1, "SIGTERM"), (2, "SIGUSR1")])
def test_a_run_that_is_asked_to_stop(world, tmp_path: Path, monkeypatch, capsys, stage: int, number: str) -> None:
    run, argv = {1: (pretrain, world.argv), 2: (finetune, world.finetune_argv)}[stage]
    asked, whole = tmp_path / "llava-asked", tmp_path / "llava-whole"
    monkeypatch.setenv("DIE_AT", "7")  # inside the eighth step of twelve
    monkeypatch.setenv("DIE_BY", number)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_:
        run_to_exit(lambda: run(argv(asked, **FLAGS)))
    assert exit_.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    assert f"stopped by {number} after step 8 of 12; checkpoint-8 is saved" in capsys.readouterr().err
    assert [path.name for path in asked.glob("checkpoint-*")] == ["checkpoint-8"]
    assert damage(asked / "checkpoint-8") is None and not (asked / "metrics.json").exists()

    monkeypatch.delenv("DIE_AT")
    assert run(argv(asked, **FLAGS, save_total_limit=1))["resumed_from_step"] == 8
    run(argv(whole, **FLAGS))
    ours, theirs = outcome(asked), outcome(whole)
    measured = [line for line in theirs["log"] if "eval_caption_loss" in line]
    assert [line["step"] for line in measured] == [4, 8, 12]
    ours["log"].insert(theirs["log"].index(measured[1]), measured[1])  # left out: who asks has no time
    assert_same(ours, theirs)


def test_one_of_two_ranks_is_asked(world, tmp_path: Path) -> None:
    flags = FLAGS | {"gradient_accumulation_steps": 1, "num_train_epochs": 1, "eval_strategy": "no"}
    asked, whole = tmp_path / "llava-asked", tmp_path / "llava-whole"

    def ask(rank: int) -> None:
        if rank == 1:
            os.environ.update(DIE_AT="1", DIE_BY="SIGTERM")

    stopped = start(1, world.argv(asked, **flags), tmp_path / "asked.log", ranks=2, prepare=ask)
    assert stopped.wait(120) == [143, 143], stopped.said() + stopped.said(1)
    assert "stopped by SIGTERM after step 2 of 6" in stopped.said(0) and "stopped by" not in stopped.said(1)
    for out in (asked, whole):
        run = start(1, world.argv(out, **flags), tmp_path / "again.log", ranks=2)
        assert run.wait(120) == [0, 0], run.said() + run.said(1)
    assert_same(outcome(asked), outcome(whole))


def test_a_rank_that_hangs(world, tmp_path: Path) -> None:
    """The other ends after --ddp_timeout, names itself and the phase, and said before that it waits."""

    def hang(rank: int) -> None:
        if rank == 1:
            os.environ.update(DIE_AT="2", DIE_BY="SIGSTOP")

    flags = FLAGS | {"gradient_accumulation_steps": 1, "ddp_timeout": 20}
    run = start(1, world.argv(tmp_path / "llava-run", **flags), tmp_path / "log", ranks=2, prepare=hang)
    try:
        run.processes[0].join(120)
    finally:
        run.send(signal.SIGKILL, rank=1)
    assert run.processes[0].exitcode == 1, run.said()
    assert "error: rank 0 of 2 got no answer from another rank in this phase: step 3 of 12 (" in run.said()
    assert "rank 0 of 2 has been in this phase for" in run.said() and "after 20 s (--ddp_timeout)" in run.said()
