"""How much memory a run takes on a GPU and how long it lasts, from its config alone: nothing is loaded or run.

Memory: states by formula (states.py), activations by the real step on tensors without storage (weightless.py). Time:
floating-point work over an assumed share of the GPU's rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llava_pat.performance.flops import step_flops
from llava_pat.performance.gpus import FRAGMENTED, RESERVED, Gpu
from llava_pat.performance.made_up import made_up_batch
from llava_pat.performance.profiling import Load, plan_bytes, work_of
from llava_pat.performance.shapes import Recipe, Shape, build_task
from llava_pat.performance.states import Sharing, States, states_of

UTILISATION = {1: 0.50, 2: 0.33}
"""Of the GPU's rate, recomputation counted, by stage: what LLaVA's published hours on 8 A100 work out at.

Its README at c121f04: stage 1 takes 3.5 h at 7B (that is 0.45) and 5.5 h at 13B (0.55), stage 2 10 h (0.33) and 20 h
(0.32), the last two if a conversation has STAGE_2_TEXT tokens. Hours are whole or half ones, "around".
"""


@dataclass(frozen=True)
class RunConfig:
    """What planning needs to know of a run."""

    name: str
    stage: int
    shape: Shape
    recipe: Recipe
    sharing: Sharing
    micro_batch: int  # sequences of a GPU at a time
    global_batch: int  # sequences of an optimizer step on all GPUs
    most_text_tokens: int  # of the longest sequence, behind its image: for memory
    usual_text_tokens: int  # for time
    patches: int  # N, of an image
    samples: int | None = None  # of the run; None: not known

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step on each GPU."""
        return max(1, round(self.global_batch / (self.micro_batch * self.sharing.ranks)))


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU at its fullest moment."""

    states: States
    gradients: float
    activations: float

    @property
    def in_use(self) -> float:
        """Of tensors alone."""
        return self._with(self.activations)

    @property
    def total(self) -> float:
        """With what the allocator loses, CUDA, NCCL."""
        return self._with(self.activations * (1 + FRAGMENTED)) + RESERVED

    @property
    def between_steps(self) -> float:
        """What tensors hold when neither activations nor gradients are there, buckets aside."""
        room = self.gradients if self.states.room_for_gradients else 0.0
        return self.states.weights + self.states.optimizer + room

    @property
    def gradients_then(self) -> float:
        """Gradients at the fullest moment."""
        return 0.0 if self.fullest_in_update and self.states.update_replaces_gradients else self.gradients

    @property
    def fullest_in_update(self) -> bool:
        return self._in_update > self._in_backward(self.activations * (1 + FRAGMENTED))

    def _with(self, activations: float) -> float:
        states = self.states
        return states.weights + states.optimizer + states.buckets + max(self._in_backward(activations), self._in_update)

    def _in_backward(self, activations: float) -> float:
        return self.gradients + self.states.gathered + activations

    @property
    def _in_update(self) -> float:
        return self.states.update + (0.0 if self.states.update_replaces_gradients else self.gradients)


@dataclass(frozen=True)
class Plan:
    run: RunConfig
    gpu: Gpu
    memory: Memory
    step_seconds: float  # of a global batch
    utilisation: float

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.gpu.memory

    @property
    def run_seconds(self) -> float | None:
        if self.run.samples is None:
            return None
        return math.ceil(self.run.samples / self.run.global_batch) * self.step_seconds


class Planner:
    """Plans runs on GPUs of one kind; remembers the steps that it has been through.

    utilisation: of the GPU's rate; None: the stage's UTILISATION.
    """

    def __init__(self, gpu: Gpu, utilisation: float | None = None) -> None:
        self.gpu, self._utilisation = gpu, utilisation
        self._steps: dict[tuple, tuple[float, float]] = {}

    def plan(self, run: RunConfig) -> Plan:
        return Plan(run, self.gpu, self.memory(run), self.step_seconds(run), self._utilisation_of(run))

    def step_seconds(self, run: RunConfig) -> float:
        """Of a global batch."""
        task = build_task(run.shape, run.recipe, "meta")
        flops = step_flops(task.model, work_of(made_up_batch(task.model, run.micro_batch, run.usual_text_tokens)))
        return (flops.total + flops.recomputed) * run.accumulation / (self.gpu.rate * self._utilisation_of(run))

    def _utilisation_of(self, run: RunConfig) -> float:
        return UTILISATION[run.stage] if self._utilisation is None else self._utilisation

    def memory(self, run: RunConfig) -> Memory:
        task = build_task(run.shape, run.recipe, "meta")
        activations, gradients = self._step(run)
        return Memory(states_of(task, run.recipe, run.sharing), gradients, activations)

    def _step(self, run: RunConfig) -> tuple[float, float]:
        """(activations, gradients) at the fullest moment of a step."""
        share = run.sharing.gradient_share
        # Stage 3 keeps room for its share of the gradients.
        stay = run.sharing.stage == 3 or run.accumulation > 1
        key = (run.shape.llm.to_json_string(), run.shape.tower.to_json_string(), run.shape.projector, repr(run.recipe),
               run.micro_batch, run.most_text_tokens, share, stay)  # fmt: skip
        if key not in self._steps:
            found = plan_bytes(run.shape, run.recipe, Load(run.micro_batch, run.most_text_tokens), share)
            gradients = found.gradients * share
            # Gradients of an earlier micro-batch are there all the time; else they come while activations go.
            peak = found.activations + gradients if stay else max(found.with_gradients, gradients)
            self._steps[key] = (peak - gradients, gradients)
        return self._steps[key]

    def largest_micro_batch(self, run: RunConfig) -> int:
        """The largest power of two that fits and divides a GPU's part of the global batch; 0 where none does.

        What each moment of a step takes grows evenly with the batch, so the fullest moment's never grows slower than
        between 1 and 2 sequences: that line says from where to try downwards.
        """
        part = max(1, run.global_batch // run.sharing.ranks)
        sizes = [size for size in (2**power for power in range(12)) if size <= part and part % size == 0]
        first, second = (self._total(run, size) for size in (1, 2))
        candidates = [size for size in sizes if first + (second - first) * (size - 1) <= self.gpu.memory]
        return next((size for size in reversed(candidates) if self._total(run, size) <= self.gpu.memory), 0)

    def _total(self, run: RunConfig, micro_batch: int) -> float:
        return self.memory(replace(run, micro_batch=micro_batch)).total


def variants(run: RunConfig) -> Sequence[RunConfig]:
    """The run without gradient checkpointing and with it."""
    return [replace(run, recipe=replace(run.recipe, checkpointing=on)) for on in (False, True)]
