"""A bad step's dump gives the run's losses again, to the bit, and says where the first odd value comes up."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from llava_pat import replay
from llava_pat.training import replaying, stages, step_dump
from llava_pat.training.bad_steps import BadStep
from llava_pat.training.stages import finetune, pretrain
from llava_pat.training.task import AlignedTraining
from tests.training.faults.processes import start
from tests.training.faults.spoiling import poison


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action) -> None:
    """action(model) when a step (the first is 0) begins, in the stage's own run."""

    class At(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **keywords) -> None:
            if state.global_step == step:
                with torch.no_grad():
                    action(model.model)

    build = stages.build_trainer

    def with_callback(*values, **keywords):
        trainer = build(*values, **keywords)
        trainer.add_callback(At())
        return trainer

    monkeypatch.setattr(stages, "build_trainer", with_callback)


def dump_of(run, argv) -> Path:
    with pytest.raises(BadStep) as error:
        run(argv)
    folder = Path(str(error.value).split("python -m llava_pat.replay ")[1].split(". ")[0])
    assert folder.parent.name == "bad_steps"
    return folder


@pytest.fixture(scope="module")
def dump(world, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        poison(monkeypatch, 7)
        return dump_of(pretrain, world.argv(tmp_path_factory.mktemp("dumped") / "llava-run"))


def replayed(dump: Path, capsys, *more: str, status: int = 0) -> str:
    capsys.readouterr()
    torch.manual_seed(99)
    assert replay.main([str(dump), *more]) == status
    return capsys.readouterr().out


@pytest.mark.parametrize("half", [False, True])
def test_an_image_that_is_not_finite(world, tmp_path: Path, monkeypatch, capsys, half: bool) -> None:
    """The objective draws noise, so that the random state counts; of two samples one is named."""
    poison(monkeypatch, 7)
    flags = {"alignment": "my_package.my_module", "per_device_train_batch_size": 2, "bf16": half}
    dump = dump_of(pretrain, world.argv(tmp_path / "llava-run", **flags))
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(world.folder / "modules"))
    said = replayed(dump, capsys)
    assert said.count("as in the run") == 2 and said.count("loss nan, as in the run") == 1
    first = [line for line in said.splitlines() if "first value" in line]
    assert first == ["  first value that is not finite: pixel_values: 3072 of 6144 values are not finite, samples "
                     "['train-7']"]  # fmt: skip
    assert "gradient" not in said
    step = json.loads((dump / "step.json").read_text())
    assert (step["stage"], step["autocast"], step["losses_finite"]) == (1, "bfloat16" if half else None, False)

    # another random state, or other weights: seen
    state = dump / "rank-0.json"
    described = json.loads(state.read_text())
    finite = next(one for one in described["micro_batches"] if one["trouble"] is None)
    finite["loss"] += 1e-6
    state.write_text(json.dumps(described))
    assert f"{finite['loss']!r} in the run" in replayed(dump, capsys, status=1)


def test_a_value_that_overflows(world, tmp_path: Path, monkeypatch, capsys) -> None:
    at_step(monkeypatch, 3, lambda model: model.projector[2].weight.mul_(1e38).mul_(1e4).clamp_(-3e38, 3e38))
    dump = dump_of(pretrain, world.argv(tmp_path / "llava-run"))
    assert dump.name == "step-4"
    said = replayed(dump, capsys)
    assert "first value that is not finite: the output of model.projector.2 (Linear), whose input was finite" in said


def test_a_weight_that_was_lost_before(world, tmp_path: Path, monkeypatch, capsys) -> None:
    """Stage 2: the language model's weights are in the dump."""
    at_step(monkeypatch, 1, lambda model: model.llm.model.layers[1].mlp.up_proj.weight[0, 0].fill_(float("inf")))
    dump = dump_of(finetune, world.finetune_argv(tmp_path / "llava-run"))
    said = replayed(dump, capsys)
    assert "layers.1.mlp.up_proj.weight, since an earlier step: 1 of 768 values are not finite" in said


def test_a_gradient_that_overflows(world, tmp_path: Path, monkeypatch, capsys) -> None:
    """The losses are finite, the squared gradient is not: nothing to see before the backward pass."""

    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 1e30 * 1e30

    from llava_pat.models.vlm import VisionLanguageModel

    project = VisionLanguageModel.project
    monkeypatch.setattr(VisionLanguageModel, "project", lambda self, features: Steep.apply(project(self, features)))
    dump = dump_of(pretrain, world.argv(tmp_path / "llava-run"))
    said = replayed(dump, capsys)
    assert said.count("as in the run") == 2 and "first value" not in said
    assert "the gradient norm is" in said.splitlines()[0]
    assert "  the gradient of the output of model.projector.2 (Linear)" in said


def test_one_rank_of_two(world, tmp_path: Path, capsys) -> None:
    """The rank that has the bad sample is replayed, alone; the other on request."""
    flags = {"gradient_accumulation_steps": 1, "alignment": "my_package.my_module"}

    def break_one(rank: int) -> None:
        poison(pytest.MonkeyPatch(), 5)

    out = tmp_path / "llava-run"
    run = start(1, world.argv(out, **flags), tmp_path / "log", ranks=2, prepare=break_one)
    assert run.wait(120) == [1, 1], run.said() + run.said(1)
    (dump,) = (out / "bad_steps").iterdir()
    said = replayed(dump, capsys)
    assert "['train-5']: loss nan, as in the run" in said
    other = 0 if "rank 1 of 2" in said.splitlines()[0] else 1
    assert "train-5" not in replayed(dump, capsys, "--rank", str(other))
    replayed(dump, capsys, "--rank", "2", status=2)


@pytest.mark.parametrize(
    ("stage", "plan", "more"),
    [(1, "zero3", {}), (2, "zero2", {"freeze_mm_mlp_adapter": True}), (2, "zero3", {"activation_checkpointing": True})],
)
def test_deepspeed_in_half_precision(world, tmp_path: Path, capsys, stage: int, plan: str, more: dict) -> None:
    """It casts frozen weights, and ZeRO-3 rounds twice in a linear layer."""
    flags = {"bf16": True, "deepspeed": f"scripts/{plan}.json", "gradient_accumulation_steps": 1,
             "per_device_train_batch_size": 3} | more  # fmt: skip
    flags |= {"group_by_modality_length": False} if stage == 2 else {}
    out = tmp_path / "llava-run"
    argv = (world.argv if stage == 1 else world.finetune_argv)(out, **flags)
    run = start(stage, argv, tmp_path / "log", ranks=2, prepare=lambda rank: poison(pytest.MonkeyPatch(), 5))
    assert run.wait(120) == [1, 1], run.said() + run.said(1)
    (dump,) = (out / "bad_steps").iterdir()
    losses = [replayed(dump, capsys, "--rank", rank).split(": loss ")[1].splitlines()[0] for rank in ("0", "1")]
    assert sorted(loss.startswith("nan") for loss in losses) == [False, True]

    step = json.loads((dump / "step.json").read_text())
    assert step["linear"] == ("zero3_linear_wrap" if plan == "zero3" else "linear")
    (dump / "step.json").write_text(json.dumps(step | {"dtypes": dict.fromkeys(step["dtypes"], "float32")}))
    finite = str([loss.startswith("nan") for loss in losses].index(False))
    assert "the losses are not the run's: DeepSpeed, which" in replayed(dump, capsys, "--rank", finite, status=1)


def test_one_process_takes_one_of_many_devices(dump: Path, monkeypatch, capsys) -> None:
    """torch counts those that CUDA_VISIBLE_DEVICES leaves; what is behind the flags runs on the CPU here."""
    intact, taken = replaying.build_model, []

    def on_the_cpu(arguments):
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
        return intact(arguments)

    def count() -> int:
        return len(os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3").split(","))

    monkeypatch.setattr(replaying, "build_model", on_the_cpu)
    for visible in (None, "5,6"):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert "as in the run" in replayed(dump, capsys)
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible
    assert taken == ["0", "5"]


def test_divisors_lie_where_the_step_runs(dump: Path, monkeypatch) -> None:
    """CUDA divides by a scalar of the CPU in another way. The meta device stands for one here."""
    seen = []

    def divisors_of(batch, divisors, **_: object) -> dict[str, torch.Tensor]:
        seen.extend([divisors.caption, *(one for one in divisors.alignment.values() if one is not None)])
        return {"loss": torch.zeros(())}

    about = step_dump.read_step(dump)
    task, _ = replaying.build(dump, about, cpu=True)
    monkeypatch.setattr(task, "forward", divisors_of)
    monkeypatch.setattr(replaying, "StepWatch", lambda *_: contextlib.nullcontext(SimpleNamespace(first_forward=None)))
    replaying.replay(task, step_dump.read_micro_batches(dump, 0), about, torch.device("meta"))
    assert len(seen) == 4 and {tensor.device.type for tensor in seen} == {"meta"}


def test_activations_are_computed_again_as_in_the_run(world, tmp_path: Path, monkeypatch, capsys) -> None:
    calls = []
    enable = AlignedTraining.activation_checkpointing_enable
    spy = lambda self, settings=None, **more: (calls.append(settings), enable(self, settings, **more))  # noqa: E731
    with pytest.MonkeyPatch.context() as poisoned:
        poison(poisoned, 7)
        dump = dump_of(pretrain, world.argv(tmp_path / "llava-run", activation_checkpointing=True))
    monkeypatch.setattr(AlignedTraining, "activation_checkpointing_enable", spy)
    replayed(dump, capsys)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("dtypes", []), ("dtypes", {"model.x": "float32"}), ("dtypes", "float64"), ("autocast", "is_tensor")],
)
def test_a_precision_that_is_none(dump: Path, tmp_path: Path, capsys, key: str, value: object) -> None:
    folder = Path(shutil.copytree(dump, tmp_path / "dump"))
    step = json.loads((folder / "step.json").read_text())
    step[key] = dict.fromkeys(step["dtypes"], value) if value == "float64" else value
    (folder / "step.json").write_text(json.dumps(step))
    assert replay.main([str(folder)]) == 2
    assert "replay: step.json: " in capsys.readouterr().err


def test_a_dump_that_cannot_be_written_is_a_line_of_the_message(world, tmp_path: Path, monkeypatch) -> None:
    """Whatever comes of the write: other ranks wait for this one's word."""
    poison(monkeypatch, 7)

    def lacks(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(step_dump, "save_file", lacks)
    with pytest.raises(BadStep, match="It could not be dumped: RuntimeError: out of memory. Look at these samples"):
        pretrain(world.argv(tmp_path / "llava-run"))


def test_what_is_no_dump(tmp_path: Path, capsys) -> None:
    assert replay.main([str(tmp_path)]) == 2
    assert "no step to replay" in capsys.readouterr().err
    (tmp_path / "step.json").write_text('{"format": "another"}')
    assert replay.main([str(tmp_path)]) == 2
    assert "its format is 'another'" in capsys.readouterr().err
    for text in ("[]", "[" * 100_000, "null", "{}"):
        (tmp_path / "step.json").write_text(text)
        assert replay.main([str(tmp_path)]) == 2
        assert f"replay: {tmp_path}: no step to replay" in capsys.readouterr().err
    (tmp_path / "step.json").write_text('{"format": "llava-pat step 2", "ranks": 1}')
    assert replay.main([str(tmp_path)]) == 2
    assert "step.json: it lacks step, total_steps, stage, verdict, autocast, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("rank-0.json", '"loss"', '"lost"'), ("rank-0.json", '"trouble"', '"double"'), ("rank-0.json", "[", "{"),
        ("rank-0.json", '"micro_batches": [', '"micro_batches": 3, "x": ['), ("rank-0.json", '"caption"', '"option"'),
        ("rank-0.safetensors", "0.batch.", "9.batch."), ("rank-0.safetensors", "0.batch.", "x.batch."),
    ],
)  # fmt: skip
def test_a_dump_that_was_altered(dump: Path, tmp_path: Path, capsys, name: str, old: str, new: str) -> None:
    folder = Path(shutil.copytree(dump, tmp_path / "dump"))
    content = (folder / name).read_bytes()
    assert old.encode() in content
    (folder / name).write_bytes(content.replace(old.encode(), new.encode(), 1))
    assert replay.main([str(folder)]) == 2
    assert f"replay: {folder}: the micro-batches of rank 0 cannot be read" in capsys.readouterr().err
