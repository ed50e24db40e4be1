"""Bytes: those foretold without storage against those that torch's allocator recorded, and both against paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llava_pat.performance import phases as names
from llava_pat.performance.cpu_memory import TraceMarks, cpu_peaks, peaks_of_trace
from llava_pat.performance.made_up import made_up_batch
from llava_pat.performance.phases import Phases, watched
from llava_pat.performance.profiling import Load, plan_bytes
from llava_pat.performance.shapes import Recipe, Shape, build_task
from llava_pat.performance.step import Trainee
from llava_pat.performance.weightless import step_bytes, stored_bytes, weightless


@pytest.mark.parametrize("trains", ["projector", "all", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_plan_is_what_the_allocator_records(
    tiny: Shape, trains: str, checkpointing: bool, dtype: torch.dtype
) -> None:
    recipe = Recipe(trains, dtype, checkpointing=checkpointing)
    planned = plan_bytes(tiny, recipe, Load(8, 150, uneven=True))
    task = build_task(tiny, recipe, "cpu")
    trainee = Trainee(task, recipe, "cpu")
    batch = made_up_batch(task.model, 8, 150, uneven=True)
    phases = Phases([TraceMarks()])
    with watched(task, phases):
        trainee.step([batch], phases)  # makes the optimizer's state, which is not counted
        _, by_phase = cpu_peaks(lambda: trainee.step([batch], phases))
    recorded = max(size for phase, size in by_phase.items() if phase != names.OPTIMIZER)
    # operators take a few kB inside, which counts at this size alone
    assert planned.with_gradients == pytest.approx(recorded, rel=0.02)


def test_a_layer_by_hand() -> None:
    """Frozen, it keeps nothing of its input; trained, its input stays for the weight's gradient."""
    rows, width, half = 64, 32, 64 * 16 * 4
    for trains in (False, True):
        layer = nn.Linear(width, 16, bias=False, device="meta").requires_grad_(trains)
        mode = weightless(layer)
        with mode:
            leaf = torch.empty(rows, width, requires_grad=True)

        def forward(layer: nn.Module = layer, leaf: torch.Tensor = leaf) -> torch.Tensor:
            return layer(leaf * 2).sum()

        counted = step_bytes(layer, forward)
        inner = rows * width * 4
        kept = inner if trains else 0
        # behind the forward: what the layer keeps, the sum, and 2 as a tensor where torch makes one
        assert kept <= counted.forward <= kept + 64
        assert counted.gradients == (16 * width * 4 if trains else 0)
        assert inner + half <= counted.activations <= 3 * inner + half


def test_gradients_count_by_their_share() -> None:
    layer = nn.Linear(512, 512, bias=False, device="meta")
    mode = weightless(layer)
    with mode:
        leaf = torch.empty(1, 512)
    weight = 512 * 512 * 4
    whole = step_bytes(layer, lambda: layer(leaf).sum(), gradient_share=1.0)
    eighth = step_bytes(layer, lambda: layer(leaf).sum(), gradient_share=0.125)
    assert whole.gradients == eighth.gradients == weight
    assert weight <= whole.activations < weight + 16384  # before it is the weight's, a gradient is like any tensor
    assert eighth.with_gradients == pytest.approx(whole.with_gradients, abs=16384)


def test_weights_are_counted_once(tiny: Shape) -> None:
    task = build_task(tiny, Recipe("projector", torch.bfloat16), "meta")
    expected = sum(p.numel() * p.element_size() for p in task.parameters())
    expected += sum(b.numel() * b.element_size() for b in task.buffers())
    weightless(task)
    assert stored_bytes([*task.parameters(), *task.buffers()]) == expected
    assert all(p.device.type == "cpu" for p in task.parameters())


def test_a_traces_peak_by_hand() -> None:
    def memory(time: float, size: int, device: int = 0) -> dict:
        return {"ph": "i", "name": "[memory]", "ts": time, "args": {"Bytes": size, "Device Type": device}}

    def mark(time: float, name: str) -> dict:
        return {"ph": "X", "name": f"llava_pat phase: {name}", "ts": time, "dur": 1}

    events = [
        mark(0, "a"), memory(1, 100), memory(2, 50), memory(3, -100), mark(4, "b"), memory(4, 70), memory(5, -70),
        memory(6, 10_000, device=1), {"ph": "M", "name": "process_name", "args": {}},
    ]  # fmt: skip
    assert peaks_of_trace(events) == (150, {"a": 150, "b": 120})
    with pytest.raises(RuntimeError, match="no allocation"):
        peaks_of_trace([mark(0, "a")])


def test_a_real_traces_peak() -> None:
    marks = TraceMarks()

    def step() -> None:
        marks.switch("a")
        first = torch.empty(1_000_000)  # 4 MB
        second = torch.empty(500_000)
        del first, second
        marks.switch("b")
        torch.empty(250_000)
        marks.switch(None)

    peak, by_phase = cpu_peaks(step)
    assert peak == by_phase["a"] == 6_000_000
    assert by_phase["b"] == 1_000_000
