"""A step as files, from which `python -m llava_pat.replay` computes it again.

    OUT/bad_steps/step-5/
      config.yaml                 of the run
      step.json                   which step, of which stage, on how many ranks, in which precision (each dtype)
      weights.safetensors         what trains, before the step (and the objective's buffers)
      rank-0.safetensors          micro-batches and torch's random states before each: 0.batch.input_ids, 0.random.cpu
      rank-0.json                 of each micro-batch: samples, loss, divisors, what is wrong with it

Every rank writes its own micro-batches.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llava_pat.data.json_text import quoted
from llava_pat.training.bad_steps import Window
from llava_pat.training.checkpoints import gathered_parameters
from llava_pat.training.ranks import from_all
from llava_pat.training.task import AlignedTraining, Divisors
from llava_pat.types import DataError

FOLDER = "bad_steps"
CONFIG, STEP, WEIGHTS = "config.yaml", "step.json", "weights.safetensors"
_FORMAT = "llava-pat step 2"
_ASKED = (
    "step", "total_steps", "stage", "ranks", "verdict", "autocast", "losses_finite", "deepspeed", "dtypes", "linear",
)  # fmt: skip  # by llava_pat.replay
# What comes of files that hold something else than was written.
_ALTERED = (ValueError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of the step, as it was."""

    batch: Mapping[str, Tensor]
    random: Mapping[str, Tensor]
    divisors: Divisors
    samples: Sequence[str]  # ids
    loss: float
    trouble: str | None


def write_dump(
    folder: Path,
    window: Window,
    id_of: Callable[[int], str],
    about: Mapping[str, Any],
    task: AlignedTraining,
    rank: int,
) -> str | None:
    """Called on every rank. id_of: a sample's id, by its place in the data set. about: for step.json. Returns what went
    wrong on any rank, if anything: a disk that is full must not hide the message about the step."""
    weights = trained_state(task, keep=rank == 0)
    problem = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_tensors(window), folder / f"rank-{rank}.safetensors")
        _write(folder / f"rank-{rank}.json", {"micro_batches": _described(window, id_of)})
        if rank == 0:
            save_file(weights, folder / WEIGHTS)
            shutil.copy(folder.parents[1] / CONFIG, folder / CONFIG)
            _write(folder / STEP, {"format": _FORMAT, **about})
    except Exception as error:  # any: the other ranks wait below, and the message about the step comes before
        problem = f"{type(error).__name__}: {error}"
    return next((found for found in from_all(problem) if found is not None), None)


def read_step(folder: Path) -> dict[str, Any]:
    """step.json. DataError when `folder` is no dump, or not a whole one."""
    try:
        about = json.loads((folder / STEP).read_text(encoding="utf-8"))
        kind = about["format"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{folder}: no step to replay, its {STEP} cannot be read: {_said(error)}") from error
    if kind != _FORMAT:
        raise DataError(f"{folder / STEP}: its format is {quoted(kind)}, expected {_FORMAT!r}")
    lacking = [name for name in _ASKED if name not in about]
    if lacking:
        raise DataError(f"{folder / STEP}: it lacks {', '.join(lacking)}; was it altered?")
    return about


def read_micro_batches(folder: Path, rank: int) -> list[MicroBatch]:
    """Of one rank. DataError when the files are not there or not whole."""
    described = _read_described(folder, rank)
    found: list[dict[str, dict[str, Tensor]]] = [{"batch": {}, "random": {}} for _ in described]
    try:
        for name, tensor in load_file(folder / f"rank-{rank}.safetensors").items():
            place, kind, key = name.split(".", 2)
            found[int(place)][kind][key] = tensor
        return [
            MicroBatch(
                parts["batch"], parts["random"], _divisors(entry["divisors"]), entry["samples"], entry["loss"],
                entry["trouble"],
            )
            for parts, entry in zip(found, described, strict=True)
        ]  # fmt: skip
    except (OSError, SafetensorError, *_ALTERED) as error:
        raise _unreadable(folder, rank, error) from error


def first_troubled_rank(folder: Path, ranks: int) -> int:
    """The first rank that has a loss which is not finite; 0 where none has."""
    for rank in range(ranks):
        try:
            if any(one["trouble"] for one in _read_described(folder, rank)):
                return rank
        except _ALTERED as error:
            raise _unreadable(folder, rank, error) from error
    return 0


def trained_state(task: AlignedTraining, keep: bool = True) -> dict[str, Tensor]:
    """Copies on the CPU of what trains, and of the objective's buffers; {} without `keep`, for ranks that only help
    ZeRO-3 to gather."""
    state = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            with gathered_parameters([parameter]):
                if keep:
                    state[name] = _copy(parameter)
    if keep:
        state |= {f"objective.{name}": _copy(buffer) for name, buffer in task.objective.named_buffers()}
    return state


def _tensors(window: Window) -> dict[str, Tensor]:
    named = {}
    for place, batch in enumerate(window.batches):
        parts = {"batch": batch, "random": window.random[place] if place < len(window.random) else {}}
        for kind, tensors in parts.items():
            named |= {
                f"{place}.{kind}.{name}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, tensor in tensors.items()
            }
    return named


def _described(window: Window, id_of: Callable[[int], str]) -> list[dict[str, Any]]:
    divisors = window.divisors
    shared = {
        "caption": float(divisors.caption),
        "alignment": {name: None if one is None else float(one) for name, one in divisors.alignment.items()},
        "micro_batches": divisors.micro_batches,
    }
    return [
        {
            "samples": [id_of(index) for index in window.samples([place])],
            "loss": loss,
            "divisors": shared,
            "trouble": window.troubles.get(place),
        }
        for place, loss in enumerate(window.losses)
    ]


def _read_described(folder: Path, rank: int) -> list[dict[str, Any]]:
    try:
        described = json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8"))["micro_batches"]
    except (OSError, RecursionError, *_ALTERED) as error:
        raise _unreadable(folder, rank, error) from error
    if not isinstance(described, list):
        raise _unreadable(folder, rank, TypeError(f"they are a {type(described).__name__}"))
    return described


def _unreadable(folder: Path, rank: int, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    return DataError(f"{folder}: the micro-batches of rank {rank} cannot be read: {_said(error)}")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {quoted(str(error))}" if isinstance(error, _ALTERED) else str(error)


def _divisors(stored: Mapping[str, Any]) -> Divisors:
    alignment = {name: None if one is None else torch.tensor(one) for name, one in stored["alignment"].items()}
    return Divisors(torch.tensor(stored["caption"]), alignment, stored["micro_batches"])


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
