"""Stage 2: run, kill, run again in one process; to the bit what an uninterrupted run gives."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_pat.training.checkpoint_files import seal
from llava_pat.training.launch import run as run_to_exit
from llava_pat.training.stages import finetune

# Two epochs of six steps; killed in the tenth step, so that the run goes on inside the second epoch. The objective has
# parameters and draws noise; measures in between, workers, recomputed activations.
FLAGS = {
    "num_train_epochs": 2, "alignment": "my_package.my_module", "dataloader_num_workers": 1, "logging_steps": 1,
    "eval_strategy": "steps", "eval_steps": 4, "save_steps": 4, "mm_projector_lr": 5e-3,
    "activation_checkpointing": True,
}  # fmt: skip
LORA = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.3}


def lines(out: Path) -> list[dict]:
    """The log without clocks."""
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    timed = ("samples_per_second", "runtime", "steps_per_second")
    return [{k: v for k, v in line.items() if not k.endswith(timed)} for line in history if "caption_loss" in line]


def tensors(out: Path) -> dict[str, torch.Tensor]:
    """Of all safetensors files of a finished folder."""
    return {f"{file.name}:{name}": t for file in out.glob("*.safetensors") for name, t in load_file(file).items()}


def assert_same_end(killed: Path, whole: Path) -> None:
    assert lines(killed) == lines(whole) and len(lines(whole)) == 12
    one, other = tensors(killed), tensors(whole)
    assert one.keys() == other.keys() and one
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_killed_run_goes_on_to_the_bit(world, tmp_path: Path, capsys: pytest.CaptureFixture, kind: str) -> None:
    lora = kind == "lora"
    flags = FLAGS | (LORA if lora else {})
    killed, whole = (tmp_path / name / ("llava-lora" if lora else "llava-run") for name in ("killed", "whole"))
    died = world.start("train/finetune.py", *world.finetune_argv(killed, **flags), DIE_AT="9")
    assert died.returncode == -signal.SIGKILL, died.stderr[-3000:]
    assert sorted(p.name for p in killed.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]
    assert not (killed / "metrics.json").exists() and not list(killed.glob("*.safetensors"))
    own = load_file(killed / "checkpoint-8" / "alignment_objective.safetensors")
    assert set(own) == {"head.weight", "head.bias"}

    half_written = killed / "checkpoint-10"  # by no way of ours: saves that are killed lie aside
    half_written.mkdir()
    (half_written / "model.safetensors").write_bytes(b"half")
    capsys.readouterr()
    resumed = finetune(world.finetune_argv(killed, **flags))
    printed = capsys.readouterr().out
    assert f"going on from {killed / 'checkpoint-8'}" in printed and "from step 8" in printed
    uninterrupted = finetune(world.finetune_argv(whole, **flags))
    assert_same_end(killed, whole)
    assert (resumed["resumed_from_step"], uninterrupted["resumed_from_step"]) == (8, 0)
    assert resumed["caption_loss_final"] == uninterrupted["caption_loss_final"]
    assert resumed["caption_loss_init"] == uninterrupted["caption_loss_init"]
    trained = load_file(killed / "alignment_objective.safetensors")
    assert not torch.equal(trained["head.weight"], own["head.weight"])


def test_killed_after_the_last_checkpoint(world, tmp_path: Path) -> None:
    """All steps done, final files missing: they are written, the same, from weights that were kept to the last bit."""
    out = tmp_path / "llava-run"
    flags = {"max_steps": 2, "save_steps": 2, "save_dtype": "bfloat16"}
    first = finetune(world.finetune_argv(out, **flags))
    written = tensors(out)
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert {t.dtype for t in load_file(out / "checkpoint-2" / "model.safetensors").values()} == {torch.float32}
    for file in (*out.glob("*.safetensors"), out / "mm_projector.bin", out / "metrics.json", out / "config.json"):
        file.unlink()
    again = finetune(world.finetune_argv(out, **flags))
    assert again["caption_loss_final"] == first["caption_loss_final"] and again["steps"] == 2
    assert all(torch.equal(tensor, written[name]) for name, tensor in tensors(out).items())
    assert tensors(out).keys() == written.keys()


def test_a_tower_that_trains_is_resumed(world, tmp_path: Path) -> None:
    """The tower trains: its weights are in the checkpoint and come back."""
    whole, parted = tmp_path / "whole" / "llava-run", tmp_path / "parted" / "llava-run"
    flags = {"max_steps": 4, "save_steps": 2, "unfreeze_mm_vision_tower": True, "mm_vision_tower_lr": 1e-3}
    finetune(world.finetune_argv(whole, **flags))
    parted.mkdir(parents=True)
    for name in ("config.yaml", "metrics_init.json"):
        (parted / name).write_bytes((whole / name).read_bytes())
    (whole / "checkpoint-2").rename(parted / "checkpoint-2")
    assert finetune(world.finetune_argv(parted, **flags))["resumed_from_step"] == 2
    one, other = tensors(parted), tensors(whole)
    assert one.keys() == other.keys() and any("vision_tower" in name for name in one)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_checkpoint_that_does_not_fit_is_refused(world, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Whole, and still not this model's: nothing goes on from that, and the message says what helps."""
    out = tmp_path / "llava-run"
    flags = {"max_steps": 4, "save_steps": 2}
    finetune(world.finetune_argv(out, **flags))
    for file in (*out.glob("*.safetensors"), out / "mm_projector.bin", out / "metrics.json"):
        file.unlink()
    whole = (out / "checkpoint-4" / "model.safetensors").read_bytes()
    (out / "checkpoint-4" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    seal(out / "checkpoint-4")
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run_to_exit(lambda: finetune(world.finetune_argv(out, **flags)))
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert f"cannot go on from {out / 'checkpoint-4'}" in message and "Truncated?" in message and "Remove" in message
