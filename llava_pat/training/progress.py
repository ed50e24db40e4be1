"""What a run prints while it trains, and the table at its end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback


class StepLines(TrainerCallback):
    """One line per log: where it is, the losses, the gradient, the speed, and when it will be over."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._first = 0

    def on_train_begin(self, args, state, control, **keywords) -> None:
        self._start, self._first = time.perf_counter(), state.global_step
        if state.is_world_process_zero:
            begin = f", from step {self._first}" if self._first else ""
            print(f"training: {state.max_steps} steps{begin}", flush=True)

    def on_log(self, args, state, control, logs: Mapping[str, Any] | None = None, **keywords) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "caption_loss" in logs:
            print(self._line(state, logs), flush=True)
        elif "eval_caption_loss" in logs:
            parts = (f"{name.removeprefix('eval_')} {value:.4g}" for name, value in logs.items() if name in _SHOWN)
            shown = " | ".join(parts)
            print(f"step {state.global_step}/{state.max_steps} held out | {shown}", flush=True)

    def _line(self, state, logs: Mapping[str, Any]) -> str:
        done = state.global_step - self._first
        left = (time.perf_counter() - self._start) / max(done, 1) * (state.max_steps - state.global_step)
        parts = [f"step {state.global_step}/{state.max_steps}", f"caption {logs['caption_loss']:.4f}"]
        if logs["alignment_items"]:
            parts += _alignment(logs)
        parts += [
            *([f"grad {logs['grad_norm']:.3g}"] if "grad_norm" in logs else []),
            f"lr {logs['learning_rate']:.3g}",
            f"{logs['samples_per_second']:.1f} samples/s",
            f"ETA {_clock(left)}",
        ]
        return " | ".join(parts)


def _alignment(logs: Mapping[str, Any]) -> list[str]:
    """Loss and weight of the objective; of several, each one's (the names: trainer.alignment_log)."""
    names = [name.removesuffix("_items") for name in logs if name.startswith("alignment/") and name.endswith("_items")]
    parts = []
    for name in names:
        said = f"{logs[f'{name}_loss']:.4f} x {logs[f'{name}_weight']:.3g}"
        parts.append(f"{name.removeprefix('alignment/')} {said}")
    return parts or [f"alignment {logs['alignment_loss']:.4f} x {logs['alignment_weight']:.3g}"]


_SHOWN = {f"eval_{name}" for name in ("caption_loss", "patch_cosine", "hit_at_1", "hit_at_5", "entropy_patches")}

ROWS = {
    "caption_loss": "caption loss, held out (nats per token)",
    "patch_cosine": "patch cosine with its label's words",
    "hit_at_1": "hit@1, right word among the vocabulary",
    "hit_at_5": "hit@5",
    "entropy_features": "entropy before the projector (nats)",
    "entropy_patches": "entropy after the projector (nats)",
    "entropy_features_centred": "entropy before, centred",
    "entropy_patches_centred": "entropy after, centred",
}


def table(metrics: Mapping[str, Any]) -> str:
    """Every measure at initialisation and after training, from the flat metrics.json."""
    hits = sorted(name for name in metrics if name.startswith("hit_") and name.endswith("_init"))
    facets = [name.removesuffix("_init") for name in hits if "_at_" not in name]
    rows = dict(ROWS)
    if metrics["stage"] == 2:
        rows["caption_loss"] = "answer loss, held out (nats per token)"
    rows |= {name: f"nearest {name.removeprefix('hit_')} right" for name in facets}
    lines = [f"{'objective: ' + str(metrics['objective']):42s} {'at init':>10s} {'trained':>10s}"]
    for name, words in rows.items():
        if f"{name}_init" in metrics:
            lines.append(f"{words:42s} {metrics[f'{name}_init']:10.4f} {metrics[f'{name}_final']:10.4f}")
    lines.append(
        f"{metrics['steps']} steps, {metrics['seconds']:.0f} s, {metrics['samples_per_second']:.1f} samples/s, "
        f"peak memory {metrics['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
    return "\n".join(lines)


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
