"""A step of a shape, taken apart: seconds, bytes and floating-point work of each phase, held against the machine."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from llava_pat.alignment import requirements
from llava_pat.performance.clocks import GpuMemory, PhaseClock
from llava_pat.performance.cpu_memory import TraceMarks, cpu_peaks
from llava_pat.performance.flops import StepFlops, Work, step_flops
from llava_pat.performance.loading import Loading, time_loading
from llava_pat.performance.made_up import made_up_batch
from llava_pat.performance.matrix_rate import matrix_rate
from llava_pat.performance.phases import Phases, watched
from llava_pat.performance.shapes import Recipe, Shape, build_task
from llava_pat.performance.step import Trainee
from llava_pat.performance.weightless import StepBytes, step_bytes, stored_bytes, weightless, without_values
from llava_pat.types import IGNORE_INDEX


@dataclass(frozen=True)
class Load:
    """What is trained on: micro-batches of made-up sequences."""

    sequences: int
    text_tokens: int
    uneven: bool = False  # captions of all lengths up to text_tokens, padded


@dataclass
class Measured:
    """Of steps that were run; seconds by phase are means, and sum to the mean step."""

    seconds: dict[str, float]
    step_seconds: list[float]
    peak_bytes: int  # above what the step began with: weights and optimizer
    peak_by_phase: dict[str, int]  # the same base
    matrix_rate: float  # FLOPs a second
    loading: Loading


@dataclass
class Profile:
    shape: str
    recipe: dict[str, Any]
    work: Work
    flops: StepFlops
    weight_bytes: int
    planned: StepBytes
    measured: Measured | None = None
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> float:
        """Mean seconds of a step."""
        return statistics.fmean(self.measured.step_seconds)

    @property
    def utilisation(self) -> float:
        """Model FLOPs a second over the rate of a matrix product in the same run."""
        return self.flops.total / self.step / self.measured.matrix_rate

    def as_json(self) -> dict[str, Any]:
        written = asdict(self)
        written["flops"] |= {"total": self.flops.total}
        if self.measured is not None:
            written["measured"] |= {"utilisation": self.utilisation, "images_per_second": self.work.images / self.step}
        return written


def profile_step(shape: Shape, recipe: Recipe, load: Load, device: str, steps: int) -> Profile:
    """Counts and plans a step; on a device other than "meta" also runs it, `steps` times after a warm-up."""
    task = build_task(shape, recipe, "meta")
    batch = made_up_batch(
        task.model, load.sequences, load.text_tokens, requirements(recipe.objectives), uneven=load.uneven
    )
    work = work_of(batch)
    profile = Profile(
        shape=shape.name,
        recipe=described(recipe),
        work=work,
        flops=step_flops(task.model, work),
        weight_bytes=stored_bytes([*task.parameters(), *task.buffers()]),
        planned=plan_bytes(shape, recipe, load),
    )
    if device != "meta":
        profile.machine = machine(torch.device(device))
        profile.measured = _measure(shape, recipe, load, batch, torch.device(device), steps)
    return profile


def work_of(batch: Mapping[str, Tensor]) -> Work:
    sequences, tokens = batch["input_ids"].shape
    supervised = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    return Work(sequences, tokens, len(batch["pixel_values"]), supervised)


def plan_bytes(shape: Shape, recipe: Recipe, load: Load, gradient_share: float = 1.0) -> StepBytes:
    """What a step will take beside weights and optimizer, from a run without storage; the objective left out."""
    recipe = Recipe(**{**vars(recipe), "objectives": Recipe("projector", recipe.dtype).objectives})
    task = build_task(shape, recipe, "meta")
    batch = made_up_batch(task.model, load.sequences, load.text_tokens, uneven=load.uneven)
    mode = weightless(task)
    trainee = Trainee(task, recipe, "cpu")

    def forward() -> Tensor:
        with trainee.autocast():
            return task(without_values(batch, mode))["loss"]

    return step_bytes(task, forward, gradient_share)


def described(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON."""
    written = {**vars(recipe), "dtype": str(recipe.dtype).removeprefix("torch.")}
    written["objectives"] = "+".join(part.objective for part in recipe.objectives.values())
    return written


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were taken on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {"device": device.type, "name": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _measure(
    shape: Shape, recipe: Recipe, load: Load, batch: Mapping[str, Tensor], device: torch.device, steps: int
) -> Measured:
    torch.manual_seed(0)
    task = build_task(shape, recipe, device)
    trainee = Trainee(task, recipe, device)
    batch = {name: value.to(device) for name, value in batch.items()}
    clock = PhaseClock(device)
    phases = Phases([clock])
    step_seconds, sums = [], {}
    with watched(task, phases):
        trainee.step([batch], phases)
        for _ in range(steps):
            clock.reset()
            trainee.step([batch], phases)
            seconds = clock.seconds()
            step_seconds.append(sum(seconds.values()))
            sums = {name: sums.get(name, 0.0) + value for name, value in seconds.items()}
    peak, by_phase = _peaks(trainee, batch, device)
    loading = time_loading(task.model, load.sequences, load.text_tokens)
    del task, trainee
    gc.collect()
    return Measured(
        seconds={name: value / steps for name, value in sums.items()},
        step_seconds=step_seconds,
        peak_bytes=peak,
        peak_by_phase=by_phase,
        matrix_rate=matrix_rate(device, recipe.dtype),
        loading=loading,
    )


def _peaks(trainee: Trainee, batch: Mapping[str, Tensor], device: torch.device) -> tuple[int, dict[str, int]]:
    """(peak, by phase) of one more step, above its start."""
    if device.type == "cuda":
        base, memory = torch.cuda.memory_allocated(), GpuMemory()
        phases = Phases([memory])
        with watched(trainee.task, phases):
            trainee.step([batch], phases)
        above = {name: peak - base for name, peak in memory.peaks.items()}
        return max(above.values()), above
    phases = Phases([TraceMarks()])
    with watched(trainee.task, phases):
        return cpu_peaks(lambda: trainee.step([batch], phases))
