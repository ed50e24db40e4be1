"""Phases: every moment of a step in exactly one, in the order of the step, without changing a number."""

from __future__ import annotations

import pytest
import torch

from llava_pat.alignment import plan_objectives, requirements
from llava_pat.performance import phases as names
from llava_pat.performance.clocks import PhaseClock
from llava_pat.performance.made_up import made_up_batch
from llava_pat.performance.phases import Phases, watched
from llava_pat.performance.shapes import Recipe, Shape, build_task
from llava_pat.performance.step import Trainee

CPU = torch.device("cpu")


class Diary:
    def __init__(self) -> None:
        self.entries: list[str | None] = []

    def switch(self, phase: str | None) -> None:
        if not self.entries or self.entries[-1] != phase:
            self.entries.append(phase)


def trainee(shape: Shape, trains: str = "projector", alignment: str = "none") -> tuple[Trainee, dict]:
    torch.manual_seed(0)
    plan = plan_objectives(alignment, {}, 5.0, None)
    recipe = Recipe(trains, torch.float32, objectives=plan)
    task = build_task(shape, recipe, CPU)
    return Trainee(task, recipe, CPU), made_up_batch(task.model, 3, 5, requirements(plan))


@pytest.mark.parametrize("trains", ["projector", "all", "lora"])
def test_a_steps_phases_in_their_order(tiny: Shape, trains: str) -> None:
    subject, batch = trainee(tiny, trains, "pat")
    diary = Diary()
    phases = Phases([diary])
    with watched(subject.task, phases):
        subject.step([batch], phases)
    worked = [entry for entry in diary.entries if entry not in (names.OTHER, None)]
    assert worked == [phase for phase in names.PHASES if phase != names.OTHER]
    assert diary.entries[-1] is None


def test_phases_sum_to_the_step() -> None:
    now = iter([1.0, 3.0, 4.5, 4.5, 9.0, 10.0])
    clock = PhaseClock(CPU)
    for phase in ("a", "b", "a", None, "b", None):
        clock.switch(phase)
        clock._marks[-1] = (phase, next(now))
    # a: 1.0 to 3.0 and 4.5 to 4.5; b: 3.0 to 4.5 and 9.0 to 10.0; the time between the steps belongs to nobody
    assert clock.seconds() == {"a": 2.0, "b": 2.5}


def test_watching_changes_no_number(tiny: Shape) -> None:
    losses = []
    for watch in (False, True):
        subject, batch = trainee(tiny, alignment="pat")
        phases = Phases([PhaseClock(CPU)])
        if watch:
            with watched(subject.task, phases):
                losses.append([float(subject.step([batch], phases)) for _ in range(3)])
            assert "project" not in vars(subject.task.model)  # nothing is left behind
            objective = subject.task.objective.parts[""]
            assert not objective._forward_hooks and not objective._forward_pre_hooks
        else:
            losses.append([float(subject.step([batch])) for _ in range(3)])
    assert losses[0] == losses[1]
    assert losses[0][2] < losses[0][0]  # it trains


def test_boundaries_go_away_after_an_error(tiny: Shape) -> None:
    subject, batch = trainee(tiny)
    phases = Phases([])
    with pytest.raises(KeyError), watched(subject.task, phases):
        subject.step([{name: batch[name] for name in ("pixel_values", "labels")}], phases)
    assert "encode_images" not in vars(subject.task.model)
