"""One run on different numbers of ranks: 1 x 4, 2 x 2 and 4 x 1 sequences (ranks x sequences a rank)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.training.faults.processes import start
from tests.training.world import World

LAYOUTS = ((1, 4), (2, 2), (4, 1))
LOSSES, WEIGHTS = 2e-5, 5e-6
"""What the order of sums may change, relative; measured: below 5e-6 and 2e-6 after six steps in float32."""

# Without random choices, which every rank draws for itself.
_SEA = {"labels": "regions", "window": 0, "sampling": "best", "dedup": "mask", "min_coverage": 0.0}
CASES: dict[str, tuple[int, dict[str, object]]] = {
    "stage 1, pat": (1, {"alignment": "pat"}),
    "stage 1, none": (1, {"alignment": "none", "regions_path": None, "eval_regions_path": None,
                          "vocabulary_path": None}),
    "stage 1, pat+sea": (1, {"alignment": "pat+sea", "alignment_args": json.dumps({"sea": _SEA | {"weight": 1.0}})}),
    "stage 2": (2, {}),
}  # fmt: skip
_FLAGS = {"gradient_accumulation_steps": 1, "num_train_epochs": 2, "logging_steps": 1, "save_steps": 100}
_LIMIT = 200  # seconds
_LOGGED = ("caption_loss", "alignment_loss", "loss", "grad_norm")


@dataclass(frozen=True)
class End:
    """What a run logged, step by step, and its weights, all in one row."""

    losses: torch.Tensor  # [steps, logged], float64
    weights: torch.Tensor  # float64


def run_on(world: World, case: str, ranks: int, batch: int, folder: Path, **flags: object) -> End:
    """AssertionError with what the ranks said when one of them does not come to its end."""
    stage, more = CASES[case]
    out = folder / "llava-run"
    argv = {1: world.argv, 2: world.finetune_argv}[stage](
        out, **_FLAGS | more | flags | {"per_device_train_batch_size": batch}
    )
    run = start(stage, argv, folder / "log", ranks)
    assert run.wait(_LIMIT) == [0] * ranks, " | ".join(run.said(rank)[-2000:] for rank in range(ranks))
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    lines = [line for line in history if "learning_rate" in line]
    losses = [[line[name] for name in _LOGGED if name in line] for line in lines]
    weights = load_file(out / ("mm_projector.safetensors" if stage == 1 else "model.safetensors"))
    return End(torch.tensor(losses, dtype=torch.float64), _in_a_row(weights))


def differences(one: End, other: End) -> tuple[float, float]:
    """The largest of what was logged, relative; the largest of a weight, relative to the largest weight."""
    assert one.losses.shape == other.losses.shape
    losses = ((one.losses - other.losses).abs() / other.losses.abs().clamp_min(1e-12)).max()
    weights = (one.weights - other.weights).abs().max() / other.weights.abs().max()
    return float(losses), float(weights)


def _in_a_row(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])
