"""The work that all contestants do, the weights that all start from, and what each gives back for a step."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from llava_pat.models.projectors import build_projector
from llava_pat.performance.cpu_memory import cpu_peaks
from llava_pat.performance.shapes import Shape, Trains

LEARNING_RATE = 1e-5
MAX_GRAD_NORM = 1.0
LORA = {"r": 128, "lora_alpha": 256, "lora_dropout": 0.05}


@dataclass(frozen=True)
class Task:
    """A step: `sequences` images with captions, in micro-batches as a contestant likes."""

    shape: Shape
    trains: Trains
    device: torch.device
    sequences: int
    text_tokens: int
    uneven: bool
    seed: int


@dataclass(frozen=True)
class Weights:
    """The tower with all its layers (who needs fewer drops them), the language model and the projector, by name."""

    tower: Mapping[str, Tensor]
    llm: Mapping[str, Tensor]
    projector: Mapping[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """One step. cpu_seconds: of all threads of the process; peak_bytes: above the start of the step, where asked."""

    loss: float
    seconds: float
    cpu_seconds: float
    peak_bytes: int | None = None


class Contestant(Protocol):
    name: str

    def step(self) -> Sample:
        """Forward, backward, clipping, AdamW."""

    def measure_memory(self) -> Sample:
        """The same, with its peak of bytes; its times mean nothing."""

    def close(self) -> None:
        """Lets go of processes."""


def random_weights(task: Task) -> Weights:
    """In the dtypes in which they stay where they are frozen; the projector's in fp32. Equal for equal seeds."""
    torch.manual_seed(task.seed)
    shape = task.shape
    with task.device:
        tower = AutoModel.from_config(copy.deepcopy(shape.tower), dtype=shape.dtype)
        llm = AutoModelForCausalLM.from_config(copy.deepcopy(shape.llm), dtype=shape.dtype)
        projector = build_projector(shape.projector, shape.tower.hidden_size, shape.llm.hidden_size)
    return Weights(tower.state_dict(), llm.state_dict(), projector.state_dict())


def timed(step: Callable[[], Tensor], device: torch.device) -> Sample:
    _wait(device)
    started, cpu_started = time.perf_counter(), time.process_time()
    loss = step()
    _wait(device)
    return Sample(float(loss), time.perf_counter() - started, time.process_time() - cpu_started)


def with_memory(step: Callable[[], Tensor], device: torch.device) -> Sample:
    losses: list[Tensor] = []
    if device.type == "cuda":
        _wait(device)
        base = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        sample = timed(step, device)
        return Sample(sample.loss, sample.seconds, sample.cpu_seconds, torch.cuda.max_memory_allocated() - base)
    peak, _ = cpu_peaks(lambda: losses.append(step()))
    return Sample(float(losses[0]), 0.0, 0.0, peak)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
