"""Counted FLOPs against torch's own counter, which looks at every operator that runs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralConfig

from llava_pat.performance import phases
from llava_pat.performance.flops import Work, step_flops
from llava_pat.performance.made_up import made_up_batch
from llava_pat.performance.profiling import work_of
from llava_pat.performance.shapes import SHAPES, Recipe, Shape, build_task


def counted_by_torch(task, batch) -> tuple[int, int]:
    """(forward, backward)."""
    with FlopCounterMode(display=False) as forward:
        loss = task(batch)["loss"]
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


# Eager attention: fused kernels recompute the scores backward, and the counter counts that.
@pytest.mark.parametrize(
    "settings",
    [
        {"trains": "projector"},
        {"trains": "all"},
        {"trains": "all", "projector_trains": False},
        {"trains": "lora", "lora_r": 4, "lora_dropout": 0.0},
        {"trains": "all", "tower_layers": 1},
        {"trains": "all", "tower_layers": -1},
    ],
    ids=str,
)
def test_flops_are_torchs(tiny: Shape, settings: dict) -> None:
    task = build_task(tiny, Recipe(dtype=torch.float32, attention="eager", **settings), "cpu")
    task.model._last_layer = None  # whose work is model FLOPs, done or not
    batch = made_up_batch(task.model, 3, 5)
    forward, backward = counted_by_torch(task, batch)
    counted = step_flops(task.model, work_of(batch))
    ahead = (phases.TOWER, phases.PROJECTOR, phases.LLM, phases.HEAD)
    assert sum(counted.by_phase[phase] for phase in ahead) == forward
    behind = counted.total - forward
    if settings["trains"] == "all" and not settings.get("projector_trains", True):
        assert behind == pytest.approx(backward, rel=0.03)  # the projector's inputs: nobody asks for their gradients
    else:
        assert behind == backward


def test_checkpointing_recomputes_the_language_model(tiny: Shape) -> None:
    recipe = Recipe("projector", torch.float32, attention="eager")
    plain, again = (build_task(tiny, dataclasses.replace(recipe, checkpointing=on), "cpu") for on in (False, True))
    batch = made_up_batch(plain.model, 3, 5)
    (_, without), (_, with_it) = counted_by_torch(plain, batch), counted_by_torch(again, batch)
    counted = step_flops(again.model, work_of(batch))
    assert counted.total == step_flops(plain.model, work_of(batch)).total  # model FLOPs do not change
    # each layer is recomputed up to its last product, whose result backward does not need
    last = 2 * 3 * work_of(batch).tokens * 40 * 24 * 2
    assert with_it - without == pytest.approx(counted.recomputed, abs=last)


def test_what_the_last_layer_leaves_out(tiny: Shape) -> None:
    task = build_task(tiny, Recipe("projector", torch.float32, attention="eager"), "cpu")
    batch = made_up_batch(task.model, 3, 5)
    forward, _ = counted_by_torch(task, batch)
    counted, work = step_flops(task.model, work_of(batch)), work_of(batch)
    ahead = (phases.TOWER, phases.PROJECTOR, phases.LLM, phases.HEAD)
    left_out = 2 * (3 * work.tokens - work.supervised) * 3 * 24 * 40
    assert forward == sum(counted.by_phase[phase] for phase in ahead) - left_out


def test_7b_by_hand() -> None:
    shape = SHAPES["llava-v1.5-7b"]
    task = build_task(shape, Recipe("projector", torch.bfloat16), "meta")
    flops = step_flops(task.model, Work(sequences=1, tokens=617, images=1, supervised=40)).by_phase
    layers = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    square = 4 * 617**2 * 4096 * 32
    assert flops[phases.LLM] == 2 * 617 * layers + square
    assert flops[phases.LLM_BACKWARD] == 2 * 617 * layers + 2 * square
    assert flops[phases.HEAD] == 2 * 40 * 32000 * 4096
    tower = 23 * (4 * 1024**2 + 2 * 1024 * 4096)  # of 24 layers, hidden state -2 needs 23
    embedding = 2 * 576 * 3 * 14**2 * 1024
    assert flops[phases.TOWER] == 2 * 577 * tower + 4 * 577**2 * 1024 * 23 + embedding


def test_experts_are_refused(tiny: Shape) -> None:
    llm = MixtralConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=50, num_local_experts=2,
    )  # fmt: skip
    task = build_task(dataclasses.replace(tiny, llm=llm), Recipe("projector", torch.float32), "meta")
    with pytest.raises(ValueError, match="experts"):
        step_flops(task.model, Work(1, 10, 1, 5))
