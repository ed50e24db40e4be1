"""Where the first value that is not finite comes up in a forward and backward pass, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llava_pat.training.task import AlignedTraining


class StepWatch:
    """Watches one micro-batch: what goes into the pass (batch, weights), every module's inputs and outputs, then the
    gradients of those and of the weights. The first of each that holds NaN or infinite values is kept.

    batch: as the collator gives it. samples: ids of its sequences; those that are to blame are named where a tensor's
    first dimension tells.
    """

    def __init__(self, task: AlignedTraining, batch: Mapping[str, Tensor], samples: Sequence[str]) -> None:
        self.task, self.batch, self.samples = task, batch, samples
        self.first_forward: str | None = None
        self.first_backward: str | None = None
        self._hooks: list[Any] = []

    def __enter__(self) -> StepWatch:
        for name, tensor in self.batch.items():
            self._forward(name, tensor)
        for name, weight in self.task.named_parameters():
            self._forward(f"the weight {name}, since an earlier step", weight)
            if weight.requires_grad:
                self._hooks.append(weight.register_hook(lambda grad, name=name: self._backward(f"weight {name}", grad)))
        for name, module in self.task.named_modules():
            if name:
                self._watch(f"{name} ({type(module).__name__})", module)
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _watch(self, name: str, module: nn.Module) -> None:
        def before(_: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> None:
            # additive attention masks are infinite on purpose
            given = [inputs, {key: value for key, value in keywords.items() if "mask" not in key}]
            for tensor in _tensors(given):
                self._forward(f"the input of {name}, from no module", tensor)

        def after(_: nn.Module, inputs: tuple, output: Any) -> None:
            for tensor in _tensors(output):
                self._forward(f"the output of {name}, whose input was finite", tensor)
                if tensor.requires_grad:
                    tensor.register_hook(lambda grad: self._backward(f"output of {name}", grad))

        self._hooks += [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]

    def _forward(self, place: str, tensor: Tensor) -> None:
        if self.first_forward is None and (problem := self._problem(tensor)) is not None:
            self.first_forward = f"{place}: {problem}"

    def _backward(self, place: str, gradient: Tensor) -> None:
        if self.first_backward is None and (problem := self._problem(gradient)) is not None:
            self.first_backward = f"the gradient of the {place}: {problem}"

    def _problem(self, tensor: Tensor) -> str | None:
        if not tensor.is_floating_point():
            return None
        broken = ~torch.isfinite(tensor.detach())
        if not broken.any():
            return None
        rows = broken.flatten(1).any(1).nonzero().flatten().tolist() if tensor.dim() > 1 else []
        ids = self._ids(rows, len(tensor)) if rows else []
        blamed = f", samples {ids}" if ids else ""
        return f"{int(broken.sum())} of {tensor.numel()} values are not finite{blamed}"

    def _ids(self, rows: Sequence[int], size: int) -> list[str]:
        """Of the samples that rows of a tensor belong to: one a sequence, or one an image."""
        sequences = self.batch["image_sequence"].tolist()
        if size == len(sequences):
            return list(dict.fromkeys(self.samples[sequences[row]] for row in rows))
        return [self.samples[row] for row in rows] if size == len(self.samples) else []


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors inside tuples, lists and mappings (model outputs are those)."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inside in value.values():
            yield from _tensors(inside)
    elif isinstance(value, (list, tuple)):
        for inside in value:
            yield from _tensors(inside)
