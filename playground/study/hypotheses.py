"""What is tested: the claims of PAT's abstract (arXiv 2505.17316), each as one metric and one direction.

A family is the six claims about one objective against `none`; p values are adjusted within it (Holm). All other
differences are shown with intervals and without p values: they are looked at, not tested.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from playground.study.statistics import Difference

BASELINE = "none"
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Hypothesis:
    """`direction`: +1 where the claim says that the objective raises the metric, -1 where it lowers it."""

    claim: str
    metric: str
    direction: int


HYPOTHESES = (
    Hypothesis("stronger compression", "stage1_entropy_patches", -1),
    Hypothesis("better patch alignment", "stage1_patch_cosine", +1),
    Hypothesis("better captions", "cider", +1),
    Hypothesis("grounding (the paper: +16 %)", "rec", +1),
    Hypothesis("question answering (the paper: +4 %)", "qa", +1),
    Hypothesis("instruction following (the paper: +3 %)", "instruct", +1),
)


def verdict(hypothesis: Hypothesis, found: Difference, adjusted: float) -> str:
    """ "yes", "the opposite" or "not shown".

    Something is shown when Student's t over seeds says so after Holm's adjustment, and the bootstrap interval over
    seeds and scenes leaves out 0 on the same side.
    """
    low, high = found.interval
    if np.isnan(adjusted) or adjusted >= SIGNIFICANT or low <= 0 <= high or (low > 0) != (found.mean > 0):
        return "not shown"
    return "yes" if np.sign(found.mean) == hypothesis.direction else "the opposite"
