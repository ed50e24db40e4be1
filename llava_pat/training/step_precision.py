"""In which precision a run computed a step, where its settings alone do not tell: DeepSpeed has ways of its own.

It casts every weight to bf16 or fp16, the frozen ones too. And its ZeRO-3 puts a function of its own in the place of
torch.nn.functional.linear (`memory_efficient_linear`), which rounds the product before it adds the bias: two roundings
where torch has one, for every linear layer of a run in half precision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from llava_pat.training.task import AlignedTraining
from llava_pat.types import DataError

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
_ROUNDS_TWICE = "zero3_linear_wrap"  # deepspeed.runtime.zero.linear


def precision_of(task: AlignedTraining) -> dict[str, Any]:
    """For step.json. Call it where the run is: the function is replaced for a whole process."""
    return {
        "dtypes": {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in _floats(task).items()},
        "linear": functional.linear.__name__,
    }


def cast_as_in_run(task: AlignedTraining, about: Mapping[str, Any]) -> None:
    """Every weight and buffer to the dtype that it had. DataError for names or dtypes that are of no such model."""
    there, now = about["dtypes"], _floats(task)
    if not isinstance(there, dict) or there.keys() != now.keys():
        raise DataError("step.json: its dtypes are not those of the model of config.yaml; was it altered?")
    for name, tensor in now.items():
        tensor.data = tensor.data.to(dtype_of(there[name]))


def dtype_of(name: Any) -> torch.dtype:
    """DataError for what is none that a run computes in."""
    if not isinstance(name, str) or name not in _DTYPES:
        raise DataError(f"step.json: {name!r} is no precision of a run ({', '.join(_DTYPES)}); was it altered?")
    return _DTYPES[name]


@contextlib.contextmanager
def linear_as_in_run(about: Mapping[str, Any]) -> Iterator[None]:
    """Linear layers round as they did."""
    if about["linear"] != _ROUNDS_TWICE:
        yield
        return
    torchs, functional.linear = functional.linear, _linear_that_rounds_twice
    try:
        yield
    finally:
        functional.linear = torchs


def _linear_that_rounds_twice(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = values.matmul(weight.t())
    return product if bias is None else product + bias


def _floats(task: AlignedTraining) -> dict[str, Tensor]:
    """Weights and buffers that have a floating dtype: quantised ones stay as they are."""
    found = {**dict(task.named_parameters()), **dict(task.named_buffers())}
    return {name: tensor for name, tensor in found.items() if tensor.dtype in _DTYPES.values()}
