"""The training loop that both base models share: AdamW or Muon, warm-up and cosine, progress bar, resumable."""

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
    muon: tuple[float, list[nn.Parameter]] | None = None,
    save_every: int = 250,
    report: Callable[[int], None] | None = None,
) -> None:
    """Trains `model` for `steps`; `loss_of(step)` draws its own batch from the step alone, so a resumed run equals another.

    `state` is written every `save_every` steps (aside, then renamed) and taken up again when it exists. `report` runs at
    the same steps. `muon` names the matrices that Muon (torch.optim.Muon) trains instead of AdamW, and its learning rate.
    Raises FloatingPointError when a loss is not finite.
    """
    optimizers = _optimizers(model, learning_rate, weight_decay, muon)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    first = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, kept in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        first = saved["step"]
        print(f"{state}: going on from step {first}", flush=True)
    bar = trange(first, steps, initial=first, total=steps, mininterval=5, desc=state.stem)
    for step in bar:
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * _schedule(step, steps, warmup)
        loss, shown = loss_of(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of step {step} is {loss.item()}; {state} holds the last good state")
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if step % 20 == 0:
            bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()}, refresh=False)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            aside = state.with_suffix(".part")
            kept = [optimizer.state_dict() for optimizer in optimizers]
            torch.save({"model": model.state_dict(), "optimizers": kept, "step": step + 1}, aside)
            os.replace(aside, state)
            if report is not None:
                report(step + 1)


def _optimizers(
    model: nn.Module, learning_rate: float, weight_decay: float, muon: tuple[float, list[nn.Parameter]] | None
) -> list[torch.optim.Optimizer]:
    muon_rate, matrices = muon if muon is not None else (0.0, [])
    taken = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))]
    if matrices:
        made.append(torch.optim.Muon(matrices, lr=muon_rate, momentum=0.95, weight_decay=weight_decay))
    return made


def _schedule(step: int, steps: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
