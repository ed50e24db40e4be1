"""Bad steps are left out as often as --skip_bad_steps allows; what is left of the run is as if they had not been."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from llava_pat.training.arguments import parse_pretrain
from llava_pat.training.bad_steps import BadStep
from llava_pat.training.flags import ConfigError
from llava_pat.training.launch import run as run_to_exit
from llava_pat.training.stages import finetune, pretrain
from llava_pat.training.task import AlignedTraining
from tests.training.faults.comparing import assert_same, outcome
from tests.training.faults.processes import start
from tests.training.faults.spoiling import poison


def order(make) -> list[int]:
    return [int(i) for batch in make().trainer.get_train_dataloader() for i in batch["sample_index"]]


def lines(out: Path) -> list[dict]:
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [line for line in history if "learning_rate" in line]


class Weights(TrainerCallback):
    """Weights, first moments and learning rate behind each step."""

    def __init__(self) -> None:
        self.steps: list[tuple[torch.Tensor, torch.Tensor, float]] = []

    def on_step_end(self, args, state, control, model, optimizer, **keywords) -> None:
        weight = model.model.projector[0].weight
        moments = optimizer.state[weight]["exp_avg"]
        self.steps.append((weight.detach().clone(), moments.clone(), optimizer.param_groups[0]["lr"]))


def test_nothing_of_a_left_out_step_stays(world, make_trainer, monkeypatch, capsys) -> None:
    places = order(make_trainer)
    made, sound = make_trainer(skip_bad_steps=1, save_strategy="no", logging_steps=2), make_trainer(save_strategy="no")
    spies = [Weights(), Weights()]
    sound.trainer.add_callback(spies[1])
    sound.trainer.train()
    poison(monkeypatch, places[7])  # the second micro-batch of step 4
    made.trainer.add_callback(spies[0])
    made.trainer.train()
    steps, other = spies[0].steps, spies[1].steps
    for index in range(3):
        assert torch.equal(steps[index][0], other[index][0])
    for kind in (0, 1):
        assert torch.equal(steps[3][kind], steps[2][kind]) and not torch.equal(steps[4][kind], steps[3][kind])
    assert [rate for *_, rate in steps] == [rate for *_, rate in other], "the schedule goes on"
    blamed = f"projected patches hold NaN or infinite values at step 4 of 6; samples ['train-{places[7]}']"
    assert f"{blamed}: left out, number 1 of 1 (--skip_bad_steps)" in capsys.readouterr().out
    log = [line for line in made.trainer.state.log_history if "learning_rate" in line]
    assert [line.get("skipped_steps") for line in log] == [None, 1, None]
    assert all(math.isfinite(value) for line in log for value in line.values())
    # step 3 alone: its own log line in a run that logs each step
    alone = [line for line in sound.trainer.state.log_history if "learning_rate" in line][2]
    assert log[1]["caption_loss"] == alone["caption_loss"] and log[1]["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert "grad_norm" not in log[1] and "grad_norm" in log[0]


def test_the_cap(world, make_trainer, tmp_path: Path, monkeypatch) -> None:
    places = order(make_trainer)
    poison(monkeypatch, places[2], places[9])  # steps 2 and 5
    out = tmp_path / "llava-run"
    with pytest.raises(SystemExit) as exit_:
        run_to_exit(lambda: pretrain(world.argv(out, skip_bad_steps=1)))
    assert exit_.value.code == 1
    with pytest.raises(
        BadStep, match=f"at step 5 of 6; samples ..train-{places[9]}.*checkpoint-4.*now 1, says"
    ) as error:
        pretrain(world.argv(out, skip_bad_steps=1))  # goes on from step 4, and knows of the first one
    assert "could not be dumped" not in str(error.value)
    metrics = pretrain(world.argv(out, skip_bad_steps=2))
    assert (metrics["skipped_steps"], metrics["resumed_from_step"], metrics["steps"]) == (2, 4, 6)
    skipped = [line for line in lines(out) if "skipped_steps" in line]
    assert [(line["step"], "loss" in line) for line in skipped] == [(2, False), (5, False)]


@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_with_bad_steps_goes_on_to_the_byte(world, make_trainer, tmp_path, monkeypatch, stage: int) -> None:
    run, argv = {1: (pretrain, world.argv), 2: (finetune, world.finetune_argv)}[stage]
    poison(monkeypatch, 3, 8)
    asked, whole = tmp_path / "llava-asked", tmp_path / "llava-whole"
    flags = {"skip_bad_steps": 9, "alignment": "my_package.my_module", "logging_steps": 3, "save_steps": 100,
             "num_train_epochs": 2, "max_loss_spike": 1.5}  # fmt: skip
    monkeypatch.setenv("DIE_BY", "SIGTERM")
    monkeypatch.setenv("DIE_AT", "7")
    with pytest.raises(SystemExit) as exit_:
        run_to_exit(lambda: run(argv(asked, **flags)))
    assert exit_.value.code == 143
    monkeypatch.delenv("DIE_AT")
    for out in (asked, whole):
        run(argv(out, **flags))
    assert_same(outcome(asked), outcome(whole))
    assert outcome(whole)["metrics"]["skipped_steps"] >= 3


def test_a_spike(world, make_trainer, tmp_path, monkeypatch) -> None:
    """Found from the eleventh step on, against the median of the good steps."""
    places = order(make_trainer)
    intact = AlignedTraining.forward

    def spiking(self, batch=None, **keywords):
        outputs = intact(self, batch, **keywords)
        if keywords.get("ask") is None and self.training and places[4] in batch["sample_index"].tolist():
            outputs["loss"] = outputs["loss"] * 100
        return outputs

    monkeypatch.setattr(AlignedTraining, "forward", spiking)
    out = tmp_path / "llava-run"
    flags = {"num_train_epochs": 3, "max_loss_spike": 5, "eval_data_path": None, "eval_regions_path": None,
             "vocabulary_path": None}  # fmt: skip
    with pytest.raises(
        BadStep, match=r"the loss is [\d.]+, over 5 times the median of the last steps at step"
    ) as error:
        pretrain(world.argv(out, **flags))
    assert f"'train-{places[4]}'" in str(error.value)
    step = json.loads(next((out / "bad_steps").glob("*/step.json")).read_text())
    assert step["step"] >= 10 and step["losses_finite"]


@pytest.mark.parametrize("flag, value", [("skip_bad_steps", -1), ("dump_bad_steps", -1), ("max_loss_spike", 1.0)])
def test_flags_that_make_no_sense(world, tmp_path: Path, flag: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"--{flag} {value}"):
        parse_pretrain(world.argv(tmp_path / "llava-run", **{flag: value}))


def test_two_ranks_leave_out_the_same_steps(world, tmp_path: Path) -> None:
    """Only one of them has the bad sample, and both name it."""
    flags = {"gradient_accumulation_steps": 1, "num_train_epochs": 2, "skip_bad_steps": 2, "logging_steps": 1}

    def break_one(rank: int) -> None:
        poison(pytest.MonkeyPatch(), 5)

    out = tmp_path / "llava-run"
    run = start(1, world.argv(out, **flags), tmp_path / "log", ranks=2, prepare=break_one)
    assert run.wait(120) == [0, 0], run.said() + run.said(1)
    assert run.said(0).count("samples ['train-5']: left out") == 2 and "left out" not in run.said(1)
    skipped = [line["step"] for line in lines(out) if "skipped_steps" in line]
    assert len(skipped) == 2 and json.loads((out / "metrics.json").read_text())["skipped_steps"] == 2
    run = start(
        1, world.argv(tmp_path / "llava-other", **flags | {"skip_bad_steps": 1}), tmp_path / "log", 2, break_one
    )
    assert run.wait(120) == [1, 1], run.said() + run.said(1)
    for rank in (0, 1):
        assert f"at step {skipped[1]} of 12; samples ['train-5']" in run.said(rank).split("error: ")[1]
        assert "Traceback" not in run.said(rank)
    assert os.path.isfile(tmp_path / "llava-other" / "bad_steps" / f"step-{skipped[0]}" / "rank-1.safetensors")


@pytest.mark.parametrize("stage, plan", [(1, "zero2"), (2, "zero3")])
def test_deepspeed_leaves_out_the_same_steps(world, tmp_path: Path, stage: int, plan: str) -> None:
    """It has the gradients and the schedule; the run is that of DDP, up to the order of sums."""
    flags = {"num_train_epochs": 2, "skip_bad_steps": 2, "logging_steps": 1, "max_grad_norm": 0}
    flags |= {"group_by_modality_length": False, "alignment": "pat"} if stage == 2 else {}
    ends = []
    for name, more in (("llava-ddp", {}), ("llava-plan", {"deepspeed": f"scripts/{plan}.json"})):
        out = tmp_path / name
        argv = {1: world.argv, 2: world.finetune_argv}[stage](out, **flags | more)
        run = start(stage, argv, tmp_path / "log", ranks=2, prepare=lambda rank: poison(pytest.MonkeyPatch(), 5))
        assert run.wait(100) == [0, 0], run.said() + run.said(1)
        ends.append((lines(out), load_file(out / "mm_projector.safetensors")))
    (ours, weights), (theirs, others) = reversed(ends)
    assert [line.get("skipped_steps") for line in ours] == [line.get("skipped_steps") for line in theirs]
    assert sum("skipped_steps" in line for line in ours) == 2
    assert [line["learning_rate"] for line in ours] == pytest.approx([line["learning_rate"] for line in theirs])
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-4, atol=1e-5)
