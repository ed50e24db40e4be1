"""Run, kill, run again: to the bit what an uninterrupted run gives."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_pat.training.checkpoint_files import seal
from llava_pat.training.launch import run as run_to_exit
from llava_pat.training.stages import pretrain

PROJECTOR = {f"model.mm_projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}


def lines(out: Path) -> list[dict]:
    """The log without clocks."""
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    timed = ("samples_per_second", "runtime", "steps_per_second")
    return [{k: v for k, v in line.items() if not k.endswith(timed)} for line in history if "caption_loss" in line]


def test_random_choices_of_an_objective_go_on_to_the_bit(world, tmp_path: Path) -> None:
    """SEA draws patches, words and pairs; its temperature trains. A run that ended after step 4 of 6 goes on."""
    flags = {
        "alignment": "pat+sea", "alignment_args": '{"sea": {"labels": "regions", "min_coverage": 0.0}}',
        "logging_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
    }  # fmt: skip
    whole, again = tmp_path / "llava-whole", tmp_path / "llava-again"
    pretrain(world.argv(whole, **flags))
    again.mkdir()
    for name in ("config.yaml", "metrics_init.json"):
        shutil.copy(whole / name, again / name)
    shutil.copytree(whole / "checkpoint-4", again / "checkpoint-4")
    pretrain(world.argv(again, **flags))
    assert lines(again) == lines(whole) and len(lines(whole)) == 6
    assert sum(line["alignment/sea_items"] for line in lines(whole)) > 10
    for name in ("mm_projector.bin", "alignment_objective.safetensors"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()
    other = tmp_path / "llava-other"
    pretrain(world.argv(other, **flags, seed=2))
    assert lines(other) != lines(whole)


def test_a_killed_run_goes_on_to_the_bit(world, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """With accumulation, workers, an objective that has parameters and draws noise, and measures in between."""
    flags = {
        "alignment": "my_package.my_module", "dataloader_num_workers": 2, "logging_steps": 1, "eval_strategy": "steps",
        "eval_steps": 2,
    }  # fmt: skip
    whole, killed = tmp_path / "llava-whole", tmp_path / "llava-killed"
    died = world.start("train/pretrain.py", *world.argv(killed, **flags), DIE_AT="5")  # of 6 steps
    assert died.returncode == -signal.SIGKILL, died.stderr[-3000:]
    assert sorted(p.name for p in killed.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert not (killed / "metrics.json").exists() and not (killed / "mm_projector.bin").exists()

    half_written = killed / "checkpoint-5"  # by no way of ours: saves that are killed lie aside
    half_written.mkdir()
    (half_written / "mm_projector.bin").write_bytes(b"half")
    capsys.readouterr()
    resumed = pretrain(world.argv(killed, **flags))
    printed = capsys.readouterr().out
    assert f"going on from {killed / 'checkpoint-4'}" in printed and "from step 4" in printed
    uninterrupted = pretrain(world.argv(whole, **flags))

    assert lines(killed) == lines(whole) and len(lines(whole)) == 6
    for name in ("mm_projector.bin", "alignment_objective.safetensors"):
        one, other = (
            torch.load(folder / name, weights_only=True) if name.endswith(".bin") else load_file(folder / name)
            for folder in (killed, whole)
        )
        assert one.keys() == other.keys() and one
        for key in one:
            assert torch.equal(one[key], other[key]), key
    assert (killed / "mm_projector.bin").read_bytes() == (whole / "mm_projector.bin").read_bytes()
    clocks = {"seconds", "samples_per_second", "peak_memory_bytes", "resumed_from_step"}
    same = lambda metrics: {k: v for k, v in metrics.items() if k not in clocks}  # noqa: E731
    assert same(resumed) == same(uninterrupted)
    assert (resumed["resumed_from_step"], uninterrupted["resumed_from_step"]) == (4, 0)
    # 2 of 6 steps were done: the speed counts what was done in this start
    assert resumed["samples_per_second"] == pytest.approx(4 / resumed["seconds"])

    checkpoint = whole / "checkpoint-6"
    frozen = (world.folder / "llm" / "model.safetensors").stat().st_size
    weights = [p for p in checkpoint.iterdir() if p.suffix in (".bin", ".safetensors", ".pt")]
    assert {p.name for p in weights} >= {"mm_projector.bin", "mm_projector.safetensors", "optimizer.pt"}
    assert sum(p.stat().st_size for p in weights) < frozen / 2
    assert set(torch.load(checkpoint / "mm_projector.bin", weights_only=True)) == PROJECTOR
    assert (checkpoint / "config.json").is_file()


def test_a_finished_run_called_again_does_nothing(world, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "llava-run"
    first = pretrain(world.argv(out))
    projector = (out / "mm_projector.bin").stat().st_mtime_ns
    capsys.readouterr()
    assert pretrain(world.argv(out)) == first
    printed = capsys.readouterr().out
    assert "finished" in printed and "objective: pat" in printed and "step 1/" not in printed
    assert (out / "mm_projector.bin").stat().st_mtime_ns == projector
    assert pretrain(world.argv(out, dataloader_num_workers=1, logging_steps=3)) == first  # not another run


def test_killed_after_the_last_checkpoint(world, tmp_path: Path) -> None:
    """All steps done, final files missing: they are written, the same."""
    out = tmp_path / "llava-run"
    first = pretrain(world.argv(out))
    projector = (out / "mm_projector.bin").read_bytes()
    for name in ("mm_projector.bin", "mm_projector.safetensors", "metrics.json", "config.json"):
        (out / name).unlink()
    again = pretrain(world.argv(out))
    assert (out / "mm_projector.bin").read_bytes() == projector and (out / "config.json").is_file()
    assert again["caption_loss_final"] == first["caption_loss_final"] and again["steps"] == 6


def test_another_runs_folder_is_refused(world, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "llava-run"
    pretrain(world.argv(out, max_steps=1, save_strategy="no"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run_to_exit(lambda: pretrain(world.argv(out, max_steps=1, save_strategy="no", alignment_weight=3)))
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert "another run" in message and "alignment_weight: 2.0 there, 3.0 now" in message and "--output_dir" in message


def test_a_checkpoint_of_more_processes_is_refused(world, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """With twice the processes and the same flags the run has half the steps; the folder looks the same otherwise."""
    out = tmp_path / "llava-run"
    pretrain(world.argv(out))
    for name in ("mm_projector.bin", "metrics.json"):
        (out / name).unlink()
    shutil.rmtree(out / "checkpoint-6")
    shutil.rmtree(out / "checkpoint-4")
    state = out / "checkpoint-2" / "trainer_state.json"
    state.write_text(state.read_text().replace('"max_steps": 6', '"max_steps": 3'))
    seal(out / "checkpoint-2")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run_to_exit(lambda: pretrain(world.argv(out)))
    message = capsys.readouterr().err
    assert "of a run of 3 steps, this one has 6" in message and "processes" in message
