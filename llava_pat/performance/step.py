"""One optimizer step of the real training module, as a run makes it: autocast, backward, clipping, AdamW."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from llava_pat.performance import phases as names
from llava_pat.performance.phases import Phases
from llava_pat.performance.shapes import Recipe
from llava_pat.training.task import AlignedTraining
from llava_pat.types import IGNORE_INDEX

_HALF_WAY = (1, 2)  # step and total_steps: objectives that ramp their weight are at half strength, not at 0
_MAX_GRAD_NORM = 1.0  # transformers' default, which the recipe leaves as it is


class Trainee:
    """A training module with its optimizer."""

    def __init__(self, task: AlignedTraining, recipe: Recipe, device: torch.device | str) -> None:
        self.task, self.recipe, self.device = task, recipe, torch.device(device)
        self.trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5)

    def step(self, batches: Sequence[Mapping[str, Tensor]], phases: Phases | None = None) -> Tensor:
        """Forward and backward of each micro-batch, update -> the loss, detached: the mean over all supervised tokens.

        `phases` are told of the boundaries (see phases.watched).
        """
        phases = phases if phases is not None else Phases(())
        counts = [int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in batches]
        losses = []
        for batch, count in zip(batches, counts, strict=True):
            phases.switch(names.OTHER)
            losses.append(self._backward(batch, phases, count / sum(counts)))
        phases.switch(names.OPTIMIZER)
        torch.nn.utils.clip_grad_norm_(self.trained, _MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        phases.switch(None)
        return torch.stack(losses).sum()

    def _backward(self, batch: Mapping[str, Tensor], phases: Phases, share: float) -> Tensor:
        step, total_steps = _HALF_WAY
        with self.autocast():
            loss = self.task(batch, step=step, total_steps=total_steps)["loss"] * share
        phases.switch(names.OBJECTIVE_BACKWARD)
        loss.backward()
        return loss.detach()

    def autocast(self) -> contextlib.AbstractContextManager:
        """As transformers' Trainer with --bf16; under DeepSpeed (no fp32 masters) there is none."""
        if self.recipe.dtype == torch.float32 or not self.recipe.masters:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.recipe.dtype)
