"""Ranks x batch: a seed gives one run, however its sequences are dealt to ranks; on the same ranks, the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.faults.layouts import LAYOUTS, LOSSES, WEIGHTS, differences, run_on


@pytest.mark.parametrize("case", ["stage 1, pat", "stage 2"])
def test_1x4_is_2x2_is_4x1(world, tmp_path: Path, case: str) -> None:
    ends = []
    for number, (ranks, batch) in enumerate([*LAYOUTS, LAYOUTS[1]]):
        (tmp_path / str(number)).mkdir()
        ends.append(run_on(world, case, ranks, batch, tmp_path / str(number)))
    for end in ends[1:3]:
        losses, weights = differences(end, ends[0])
        assert losses < LOSSES and weights < WEIGHTS
    assert torch.equal(ends[3].losses, ends[1].losses) and torch.equal(ends[3].weights, ends[1].weights)


def test_the_bounds_tell_runs_apart(world, tmp_path: Path) -> None:
    """Another order of the same data; one run of the whole batch, one of half of it."""
    ends = []
    for number, (seed, batch) in enumerate([(1, 4), (2, 4), (1, 2)]):
        (tmp_path / str(number)).mkdir()
        ends.append(run_on(world, "stage 1, pat", 1, batch, tmp_path / str(number), seed=seed, max_steps=4))
    for end in ends[1:]:
        losses, weights = differences(end, ends[0])
        assert losses > 100 * LOSSES and weights > 100 * WEIGHTS
