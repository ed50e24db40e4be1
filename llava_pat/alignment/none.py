"""No alignment: the caption loss alone, plain LLaVA bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from llava_pat.alignment.base import AlignmentObjective
from llava_pat.types import AlignmentInputs, AlignmentLoss, PatchRegions, PatchWords


class NoAlignment(AlignmentObjective):
    """Sum 0 over 0 items; its gradient is 0 everywhere."""

    def forward(self, inputs: AlignmentInputs) -> AlignmentLoss:
        total = self.anchor(inputs)
        return AlignmentLoss(total=total, count=torch.zeros((), device=total.device))

    def count(self, regions: PatchRegions | None, patch_words: PatchWords | None) -> Tensor:
        return torch.zeros(())
