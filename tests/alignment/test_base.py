"""Schedules, requirements and the zero that keeps a batch on the graph."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llava_pat.alignment.base import AlignmentObjective
from llava_pat.types import AlignmentInputs


class Scaled(AlignmentObjective):
    requires = frozenset({"regions", "side"})

    def __init__(self) -> None:
        super().__init__(schedule="constant")
        self.scale = nn.Parameter(torch.tensor(float("inf")))


def inputs(patch_embeds: torch.Tensor) -> AlignmentInputs:
    nothing = torch.zeros(0, 1, dtype=torch.int64)
    return AlignmentInputs(patch_embeds, patch_embeds, lambda ids: ids, nothing, nothing.bool(), None)


def test_linear_ramp_runs_from_zero_to_one():
    objective = AlignmentObjective()
    assert [objective.weight(step, 4) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_constant_schedule_is_one_from_the_first_step():
    assert [Scaled().weight(step, 4) for step in (0, 3, 4)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("step, total", [(-1, 4), (0, 0)])
def test_impossible_steps_are_refused(step, total):
    with pytest.raises(ValueError, match=f"step {step} of {total}"):
        AlignmentObjective().weight(step, total)


def test_unknown_schedule_lists_the_choices():
    with pytest.raises(ValueError, match="'cosine'; choose one of 'linear', 'constant'"):
        AlignmentObjective(schedule="cosine")


def test_missing_data_is_named():
    with pytest.raises(ValueError, match="Scaled needs side, and the run provides captions, regions"):
        Scaled().check_requirements({"regions", "captions"})
    Scaled().check_requirements({"regions", "side", "captions"})


def test_anchor_is_zero_with_zero_gradients_even_where_values_overflow():
    patch_embeds = torch.full((2, 3, 4), 1e38).requires_grad_()
    objective = Scaled()
    zero = objective.anchor(inputs(patch_embeds))
    zero.backward()
    assert zero.item() == 0.0 and zero.dtype == torch.float32
    assert torch.equal(patch_embeds.grad, torch.zeros(2, 3, 4))
    assert objective.scale.grad.item() == 0.0


def test_base_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="AlignmentObjective defines no forward"):
        AlignmentObjective()(inputs(torch.zeros(1, 1, 1)))
    assert AlignmentObjective().count(None, None) is None
