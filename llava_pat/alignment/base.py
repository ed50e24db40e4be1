"""What every alignment objective is: a module from `AlignmentInputs` to a sum and a count.

An objective knows tensors, not models. It returns the SUM of its items and how many there were; the trainer divides
once, by the count of the whole accumulation window and of all ranks, so that 4 steps of 1 equal 1 step of 4.
Letters of the shapes: see llava_pat/types.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llava_pat.types import AlignmentInputs, AlignmentLoss, PatchRegions, PatchWords

SCHEDULES = ("linear", "constant")


def require_choice(name: str, value: str, choices: Collection[str]) -> str:
    """`value`, or a ValueError that names the keyword and its choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}")
    return value


def check_provided(name: str, required: Collection[str], provided: Collection[str]) -> None:
    """ValueError when something that the objective `name` requires is not among what the run provides."""
    missing = sorted(set(required) - set(provided))
    if missing:
        have = ", ".join(sorted(provided)) if provided else "none"
        raise ValueError(
            f"alignment objective {name} needs {', '.join(missing)}, and the run provides {have}; give the file (for "
            f"regions: --regions_path FILE, for patch_words: --patch_words_path DIR) or choose --alignment none"
        )


class AlignmentObjective(nn.Module):
    """Base of all objectives; docs/objectives.md is the guide with a worked example.

    A subclass sets `requires` (names of the data it needs: "regions", "patch_words"), defines `forward`, and `count`
    where the data alone tell it. Its constructor takes keywords only, each typed and with a default, beside
    `hidden_size: int` and `vision_width: int`, which are filled in when the constructor names them. Where a keyword
    decides what data is needed, `requires_with` says so.

    Args:
        schedule: how the factor on `alignment_weight` moves over stage 1: "linear" from 0 to 1, or "constant" 1.
    """

    requires: frozenset[str] = frozenset()

    def __init__(self, *, schedule: Literal["linear", "constant"] = "linear") -> None:
        super().__init__()
        self.schedule = require_choice("schedule", schedule, SCHEDULES)

    @classmethod
    def requires_with(cls, keywords: Mapping[str, Any]) -> frozenset[str]:
        """What an objective built with these keywords requires. The base: `requires`, whatever they are."""
        return cls.requires

    @property
    def parts(self) -> Mapping[str, AlignmentObjective]:
        """The objectives to compute, by name: this one alone, without a name (several: combined.py)."""
        return {"": self}

    def forward(self, inputs: AlignmentInputs) -> AlignmentLoss:
        """Sum over the items of one micro-batch: fp32, on the graph even when there is no item."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward(inputs)")

    def count(self, regions: PatchRegions | None, patch_words: PatchWords | None) -> Tensor | None:
        """How many items `forward` would sum over these data: fp32 scalar, no gradient, from data alone.

        The trainer asks before the forward of an accumulation window, when only data is at hand. None (the default)
        says that the data do not tell (for instance, items sampled in `forward`); the trainer must then normalise
        each micro-batch by what `forward` returns (`divisor`, else `count`) and take the mean over micro-batches, and
        the 4x1 = 1x4 equality holds only on average.
        """
        return None

    def weight(self, step: int, total_steps: int) -> float:
        """Factor in [0, 1] on `alignment_weight` at `step` (0-based, optimizer steps done) of `total_steps`.

        linear: min(1, step / total_steps), so the first step has exactly 0. constant: 1.
        """
        if step < 0 or total_steps < 1:
            raise ValueError(f"step {step} of {total_steps}: step must be >= 0 and total_steps >= 1")
        return 1.0 if self.schedule == "constant" else min(1.0, step / total_steps)

    def check_requirements(self, provided: Collection[str]) -> None:
        """ValueError when the run does not provide what the objective requires; called before the first step."""
        check_provided(type(self).__name__, self.requires, provided)

    def anchor(self, inputs: AlignmentInputs) -> Tensor:
        """Exactly 0 (fp32 scalar) that depends on `patch_embeds` and on every own parameter.

        Added to a total, it keeps a micro-batch without items on the graph with gradient 0, so that no rank waits for
        a gradient that never comes. A sum over an empty slice, not 0 * sum: that one is NaN when a value overflows.
        """
        zero = inputs.patch_embeds[..., :0].sum(dtype=torch.float32)
        for parameter in self.parameters():
            zero = zero + parameter.flatten()[:0].sum(dtype=torch.float32)
        return zero
