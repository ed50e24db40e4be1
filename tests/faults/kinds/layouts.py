"""The same seed on other numbers of ranks. Not a fault of anything, but what a scheduler does to a run."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tests.faults.registry import Outcome, Run, fault_kind
from tests.faults.tiny_world import tiny_world
from tests.training.faults.layouts import CASES, LAYOUTS, LOSSES, WEIGHTS, differences, run_on


@fault_kind(
    "2 x 2 and 4 x 1 (ranks x sequences) in the place of 1 x 4, each twice",
    f"losses within {LOSSES:g} and weights within {WEIGHTS:g}, relative; the second time to the bit",
    slow=True,
)
def layouts(run: Run) -> Iterator[Outcome]:
    world = tiny_world(run)
    for case in run.some(sorted(CASES)):
        ends = {}
        for layout in LAYOUTS:
            for time in (1, 2):
                folder = run.folder / f"{case} {layout} {time}"
                folder.mkdir()
                ends[layout, time] = run_on(world, case, *layout, folder)
            first, again = ends[layout, 1], ends[layout, 2]
            same = torch.equal(first.losses, again.losses) and torch.equal(first.weights, again.weights)
            losses, weights = differences(first, ends[LAYOUTS[0], 1])
            told = f"losses {losses:.1e}, weights {weights:.1e}, {'the same' if same else 'another'} the second time"
            yield Outcome(same and losses < LOSSES and weights < WEIGHTS, f"{case} on {layout}", told)
