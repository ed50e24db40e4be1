"""Trackers get the caption loss, the alignment loss and the weight."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from llava_pat.training.stages import pretrain

NAMES = ("caption_loss", "alignment_loss", "alignment_weight", "samples_per_second", "grad_norm")


def flags(tracker: str) -> dict:
    evaluation = {"eval_strategy": "steps", "eval_steps": 3}
    return {"report_to": tracker, "save_strategy": "no", "logging_steps": 1} | evaluation


def test_tensorboard(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    out = tmp_path / "llava-run"
    pretrain(world.argv(out, **flags("tensorboard")))
    (events,) = out.rglob("events.out.tfevents.*")
    read = EventAccumulator(str(events.parent))
    read.Reload()
    written = set(read.Tags()["scalars"])
    assert written >= {f"train/{name}" for name in NAMES}
    assert written >= {"eval/caption_loss", "eval/patch_cosine", "eval/hit_at_1"}
    weights = {event.step: event.value for event in read.Scalars("train/alignment_weight")}
    assert weights == pytest.approx({step + 1: 2 * step / 6 for step in range(6)})


def test_wandb_without_an_account(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    pretrain(world.argv(tmp_path / "llava-run", **flags("wandb")))
    wandb.finish()
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    # wandb's service is a process of its own, which may write the log after `finish` has returned
    until = time.monotonic() + 30
    while missing := [name for name in NAMES if f"train/{name}".encode() not in log.read_bytes()]:
        assert time.monotonic() < until, f"not in {log} after 30 s: {missing}"
        time.sleep(0.2)
