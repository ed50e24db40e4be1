"""SIGKILL at random moments and inside saves: the run goes on to the byte. faults/killing.py does many of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.faults.killing import kill_and_resume


@pytest.mark.parametrize("stage, ranks, seed", [(1, 1, 1), (2, 1, 2), (1, 2, 3)])
def test_killed_runs_go_on_to_the_byte(world, tmp_path: Path, stage: int, ranks: int, seed: int) -> None:
    counts = kill_and_resume(world, tmp_path, stage, kills=2, ranks=ranks, seed=seed)
    assert counts["kills"] == 2 and counts["runs"] >= 1
