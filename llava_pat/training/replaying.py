"""A dumped step (step_dump.py), computed again as it was: the same losses, and the first value that is not finite."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from llava_pat.training.arguments import parse_pretrain
from llava_pat.training.finetune_arguments import parse_finetune
from llava_pat.training.parts import build_model
from llava_pat.training.stages import assemble_task
from llava_pat.training.step_dump import CONFIG, WEIGHTS, MicroBatch, trained_state
from llava_pat.training.step_precision import cast_as_in_run, dtype_of, linear_as_in_run
from llava_pat.training.step_watch import StepWatch
from llava_pat.training.task import AlignedTraining, Divisors
from llava_pat.types import DataError


@dataclass(frozen=True)
class Replayed:
    """One micro-batch: its loss now, and the first value that is not finite on the way there, in words."""

    micro_batch: MicroBatch
    loss: float
    first: str | None

    @property
    def is_the_same(self) -> bool:
        """To the bit; NaN is NaN."""
        then = self.micro_batch.loss
        return self.loss == then or (math.isnan(self.loss) and math.isnan(then))


@dataclass(frozen=True)
class Replay:
    """The micro-batches of one rank; of their gradient the norm (without clipping and the other ranks' part) and the
    first value that is not finite, both None where a loss of the step was not."""

    micro_batches: Sequence[Replayed]
    gradient_norm: float | None
    first_in_gradient: str | None


@contextlib.contextmanager
def one_device() -> Iterator[None]:
    """One process takes the first GPU that it may see: with several it would be refused. torchrun gives each one."""
    if "WORLD_SIZE" in os.environ:
        yield
        return
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = "0" if seen is None else seen.split(",")[0]
    try:
        yield
    finally:
        if seen is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = seen


def build(folder: Path, about: Mapping[str, Any], cpu: bool) -> tuple[AlignedTraining, torch.device]:
    """The training module with the weights of the dump, where it will run. about: step.json.

    Raises ConfigError when the base models are not where config.yaml says, DataError for weights of something else.
    """
    # Without the plan: what DeepSpeed computes otherwise is in step.json (step_precision.py).
    argv = ["--config", str(folder / CONFIG), "--deepspeed=", *(["--use_cpu=True"] if cpu else [])]
    arguments = {1: parse_pretrain, 2: parse_finetune}[about["stage"]](argv)
    device = arguments.training.device
    model, _ = build_model(arguments)
    task = assemble_task(arguments, model)
    _load(task, folder / WEIGHTS)
    cast_as_in_run(task, about)
    task.to(device).train()
    if arguments.training.gradient_checkpointing:  # as transformers' Trainer does
        settings = arguments.training.gradient_checkpointing_kwargs or {}
        settings = {name: value for name, value in settings.items() if name not in ("every_n_layers", "offload")}
        task.activation_checkpointing_enable(settings or None)
    return task, device


def replay(
    task: AlignedTraining, micro_batches: Sequence[MicroBatch], about: Mapping[str, Any], device: torch.device
) -> Replay:
    """Forward, and backward where every loss of the step was finite. about: step.json."""
    done, in_gradient = [], None
    for micro_batch in micro_batches:
        batch = {name: tensor.to(device) for name, tensor in micro_batch.batch.items()}
        _set_random_state(micro_batch.random, device)
        with StepWatch(task, batch, micro_batch.samples) as watch:
            with _autocast(about["autocast"], device), linear_as_in_run(about):
                outputs = task(
                    batch,
                    step=about["step"],
                    total_steps=about["total_steps"],
                    divisors=_on_device(micro_batch.divisors, device),
                    refuse_unsound=False,
                )
            done.append(Replayed(micro_batch, float(outputs["loss"].detach()), watch.first_forward))
            if about["losses_finite"]:
                with linear_as_in_run(about):  # where activations are computed again
                    outputs["loss"].backward()
                in_gradient = in_gradient or watch.first_backward
    if not about["losses_finite"]:
        return Replay(done, None, None)
    norms = [parameter.grad.float().norm() for parameter in task.parameters() if parameter.grad is not None]
    return Replay(done, float(torch.stack(norms).norm()), in_gradient)


def _load(task: AlignedTraining, file: Path) -> None:
    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    wanted = trained_state(task)
    if stored.keys() != wanted.keys() or any(stored[name].shape != wanted[name].shape for name in wanted):
        odd = sorted(stored.keys() ^ wanted.keys()) or [n for n in wanted if stored[n].shape != wanted[n].shape]
        raise DataError(f"{file} is of another model than {file.parent / CONFIG} describes: {', '.join(odd[:3])}")
    places = {**dict(task.named_parameters()), **{f"objective.{n}": b for n, b in task.objective.named_buffers()}}
    for name, tensor in stored.items():
        places[name].data = tensor  # in its own precision, which is the run's


def _on_device(divisors: Divisors, device: torch.device) -> Divisors:
    """Where the run had them: CUDA divides by a scalar of the CPU in another way."""
    alignment = {name: None if one is None else one.to(device) for name, one in divisors.alignment.items()}
    return replace(divisors, caption=divisors.caption.to(device), alignment=alignment)


def _set_random_state(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _autocast(precision: str | None, device: torch.device) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if precision is None else torch.autocast(device.type, dtype_of(precision))
