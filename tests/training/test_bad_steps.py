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

from llava_pat.training import bad_steps
from llava_pat.training.arguments import parse_pretrain
from llava_pat.training.bad_steps import BadStep, BadSteps
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


def test_the_step_that_ends_the_run_is_dumped(world, tmp_path: Path, monkeypatch) -> None:
    """Also behind one that was left out, whose dump is all that --dump_bad_steps 1 gives; not where dumps are off."""
    poison(monkeypatch, 5)
    flags = {"num_train_epochs": 2, "skip_bad_steps": 1}
    for dumps, folders in ((1, 2), (0, 0)):
        out = tmp_path / f"llava-{dumps}"
        with pytest.raises(BadStep) as error:
            pretrain(world.argv(out, dump_bad_steps=dumps, **flags))
        assert len(list(out.glob("bad_steps/step-*/step.json"))) == folders
        assert ("python -m llava_pat.replay" in str(error.value)) == bool(folders)


def test_the_mean_loss_of_a_run_is_of_the_steps_that_were_taken(world, make_trainer, monkeypatch) -> None:
    made = make_trainer(num_train_epochs=2, skip_bad_steps=2, logging_steps=1, save_strategy="no")
    poison(monkeypatch, 5)
    trained = made.trainer.train()
    history = made.trainer.state.log_history
    losses = [line["loss"] for line in history if "loss" in line]
    (logged,) = [line["train_loss"] for line in history if "train_loss" in line]
    assert len(losses) == 10 and sum("skipped_steps" in line for line in history) == 2
    assert logged == pytest.approx(sum(losses) / 10, rel=1e-4)  # log lines are rounded
    assert trained.training_loss == trained.metrics["train_loss"] == pytest.approx(logged)


def test_log_lines_without_a_gradient_norm(world, make_trainer, monkeypatch) -> None:
    """DeepSpeed can be told not to compute it."""
    made = make_trainer(skip_bad_steps=1, logging_steps=1, save_strategy="no")
    poison(monkeypatch, order(make_trainer)[7])
    log = type(made.trainer).log

    def without(self, logs, *rest):
        return log(self, {name: value for name, value in logs.items() if name != "grad_norm"}, *rest)

    monkeypatch.setattr(type(made.trainer), "log", without)
    made.trainer.train()
    lines = [line for line in made.trainer.state.log_history if "learning_rate" in line]
    assert [line["step"] for line in lines if "skipped_steps" in line] == [4] and "loss" not in lines[3]


@pytest.mark.parametrize("nothing_supervised", [False, True])
def test_every_gradient_of_a_spike_is_nan(make_finetuner, nothing_supervised: bool) -> None:
    """Also of weights that no value of the loss went through: DeepSpeed and loss scalers see nothing but gradients."""
    made = make_finetuner(freeze_backbone=True, max_loss_spike=2)
    dataset, task = made.parts.train, made.trainer.model
    text = next(index for index in range(len(dataset)) if not dataset.records[index].images)
    batch = made.parts.collator([dataset[text]])
    if nothing_supervised:
        batch["labels"] = torch.full_like(batch["labels"], -100)
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    for spike in (True, False):
        guard = BadSteps(made.trainer.args, task)
        guard.restore({"skipped": [], "losses": [-1e-9 if not spike else 1e-9] * 10, "overflows": 0})
        task.zero_grad()
        guard.begin([batch], None)
        loss = task(batch, refuse_unsound=False)["loss"]
        guard.after_forward(loss + 1.0, False).backward()
        for parameter in trained:
            assert torch.isnan(parameter.grad).all() if spike else torch.isfinite(parameter.grad).all()
        assert guard.is_bad(None, scaled=True) == spike
    loss = task(batch, refuse_unsound=False)["loss"]  # the next step has hooks no longer
    task.zero_grad()
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in trained)


def test_a_loss_scaler_that_finds_no_scale_ends_the_run(world, make_trainer, monkeypatch) -> None:
    """fp16 needs a GPU: here accelerate says of every step that it was left out, but for the second one."""
    made = make_trainer(save_strategy="no", num_train_epochs=2, dump_bad_steps=0)
    monkeypatch.setattr(bad_steps, "OVERFLOWS_IN_A_ROW", 4)
    skipped = property(lambda self: made.trainer.state.global_step != 2)
    monkeypatch.setattr(type(made.trainer.accelerator), "optimizer_step_was_skipped", skipped)
    said = r"no gradient of 4 steps in a row was finite, whatever the loss scale at step 6 of 12; .*train in bf16"
    with pytest.raises(BadStep, match=said):
        made.trainer.train()
    assert made.trainer.bad_steps.state()["overflows"] == 4


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


@pytest.mark.parametrize("plan", ["zero2", "zero3"])
def test_deepspeed_leaves_out_a_spike_without_images(world, tmp_path: Path, plan: str) -> None:
    """The projector alone trains, and no value of a text's loss goes through it: its gradient is made NaN itself."""
    records = json.loads((world.folder / "mixed.json").read_text())
    images = [record for record in records if "image" in record]
    texts = [record for record in records if "image" not in record]
    data = tmp_path / "data.json"
    data.write_text(json.dumps([*images[:4], *texts[:1] * 4]).replace("-text", "-text0"))
    flags = {
        "data_path": data, "eval_data_path": None, "eval_regions_path": None, "vocabulary_path": None,
        "regions_path": None, "freeze_backbone": True, "gradient_accumulation_steps": 1, "num_train_epochs": 2,
        "skip_bad_steps": 8, "max_loss_spike": 5, "logging_steps": 1, "max_grad_norm": 0, "learning_rate": 1e-3,
    }  # fmt: skip

    def spiking(rank: int) -> None:
        patch, intact = pytest.MonkeyPatch(), AlignedTraining.forward

        def forward(self, batch=None, **keywords):
            outputs = intact(self, batch, **keywords)
            if keywords.get("ask") is None and self.training and not len(batch["pixel_values"]):
                print("TEXT")
                outputs["loss"] = outputs["loss"] * 100
            return outputs

        patch.setattr(AlignedTraining, "forward", forward)
        patch.setattr(bad_steps, "_ENOUGH", 1)

    ends = []
    for name, more in (("llava-ddp", {}), ("llava-plan", {"deepspeed": f"scripts/{plan}.json"})):
        out = tmp_path / name
        run = start(2, world.finetune_argv(out, **flags | more), tmp_path / "log", ranks=2, prepare=spiking)
        assert run.wait(100) == [0, 0], run.said() + run.said(1)
        assert "TEXT" in run.said(0) and "TEXT" in run.said(1)
        ends.append((lines(out), load_file(out / "mm_projector.safetensors")))
    (ours, weights), (theirs, others) = reversed(ends)
    left_out = [line["step"] for line in ours if "skipped_steps" in line]
    assert left_out and left_out == [line["step"] for line in theirs if "skipped_steps" in line]
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-4, atol=1e-5)
