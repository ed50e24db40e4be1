"""The tiny world of tests/training for kinds that start runs."""

from __future__ import annotations

import sys

import torch

from tests.faults.registry import Run
from tests.training.faults.processes import Started
from tests.training.world import World, write_world

LIMIT = 120  # seconds for a run of some steps; they take one or two


def tiny_world(run: Run) -> World:
    """Written into the kind's folder; its own objective can be imported. One thread: the order of sums."""
    torch.set_num_threads(1)
    world = write_world(run.folder / "world")
    sys.path.insert(0, str(world.folder / "modules"))
    return world


def without_traceback(started: Started) -> bool:
    """Whether every rank ended with a message, if it said anything."""
    return all("Traceback" not in started.said(rank) for rank in range(len(started.processes)))


def last_words(started: Started) -> str:
    """What each rank said last, for a fault that was not survived."""
    return " | ".join(
        f"rank {rank}: {started.processes[rank].exitcode}: {started.said(rank)[-300:]}"
        for rank in range(len(started.processes))
    )
