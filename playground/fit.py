"""The training loop that both base models share: AdamW, warm-up and cosine, progress bar, resumable."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import trange


def fit(
    model: nn.Module,
    loss_of: Callable[[int], tuple[Tensor, dict[str, float]]],
    *,
    steps: int,
    learning_rate: float,
    state: Path,
    weight_decay: float = 0.05,
    warmup: int = 200,
    save_every: int = 250,
    report: Callable[[int], None] | None = None,
) -> None:
    """Trains `model` for `steps`; `loss_of(step)` draws its own batch from the step alone, so a resumed run equals another.

    `state` is written every `save_every` steps (aside, then renamed) and taken up again when it exists. `report` runs at
    the same steps. Raises FloatingPointError when a loss is not finite.
    """
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    first = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
        print(f"{state}: going on from step {first}", flush=True)
    bar = trange(first, steps, initial=first, total=steps, mininterval=5, desc=state.stem)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _schedule(step, steps, warmup)
        loss, shown = loss_of(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of step {step} is {loss.item()}; {state} holds the last good state")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()}, refresh=False)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            aside = state.with_suffix(".part")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, aside)
            os.replace(aside, state)
            if report is not None:
                report(step + 1)


def _schedule(step: int, steps: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
