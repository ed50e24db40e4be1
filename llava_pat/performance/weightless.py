"""The real training step on tensors without storage, and the bytes that it would take: exact, for any size, in seconds.

torch's fake tensors have shapes, dtypes and lifetimes but no memory. The training module runs on them as it is, forward
and backward, with real ids and labels (what a step does depends on them), and a dispatch mode adds up the bytes of
every storage that comes and goes. What an operator takes for itself inside is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_TRUTH = torch.ops.aten._local_scalar_dense.default
_INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


@dataclass(frozen=True)
class StepBytes:
    """Bytes of one forward and backward, weights and optimizer aside.

    activations: peak of all but weights' gradients; with_gradients: peak of both together, the gradients counted by
    `gradient_share`; gradients: of the weights, at the end; forward: what is alive behind the forward pass.
    """

    activations: int
    with_gradients: int
    gradients: int
    forward: int


class _Ledger(TorchDispatchMode):
    """Adds up storages while they live, and answers what only real numbers could."""

    def __init__(self, resident: set[int], gradient_share: float) -> None:
        super().__init__()
        self.live = self.gradients = self.peak_activations = self.peak_weighted = 0
        self._share = gradient_share
        self._known = set(resident)
        self._owned: dict[int, tuple[weakref.ref, int]] = {}
        self._gradient_storages: set[int] = set()

    def __torch_dispatch__(self, function: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if function is _TRUTH and isinstance(args[0], FakeTensor):
            return True  # the one question that a step asks of its activations: are they finite?
        if function in _INDEXED and isinstance(args[0], FakeTensor):
            args = (args[0], _places(args[1]), *args[2:])
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):  # real ones too: masks are made of real ids
                self._enter(leaf)
        return result

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def leave(_: weakref.ref) -> None:
            self._known.discard(key)
            del self._owned[key]
            if key in self._gradient_storages:
                self._gradient_storages.discard(key)
                self.gradients -= size
            else:
                self.live -= size

        self._known.add(key)
        self._owned[key] = (weakref.ref(storage, leave), size)
        self.live += size
        self._note()

    def is_gradient(self, tensor: Tensor) -> None:
        """From now on these bytes are a weight's gradient."""
        key = tensor.untyped_storage()._cdata
        if key in self._owned and key not in self._gradient_storages:
            size = self._owned[key][1]
            self._gradient_storages.add(key)
            self.live -= size
            self.gradients += size
            self._note()

    def _note(self) -> None:
        self.peak_activations = max(self.peak_activations, self.live)
        self.peak_weighted = max(self.peak_weighted, self.live + int(self._share * self.gradients))


def _places(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Masks as numbers: how many places a real mask chooses is known."""
    found: list[Tensor | None] = []
    for index in indices:
        is_mask = index is not None and index.dtype in (torch.bool, torch.uint8)
        found += list(index.nonzero(as_tuple=True)) if is_mask else [index]
    return found


def weightless(module: nn.Module) -> FakeTensorMode:
    """Makes the parameters and buffers of a module on the meta device fake ones of the CPU, in place -> their mode."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, Tensor] = {}  # tied weights stay tied

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return made[id(tensor)]

    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = fake(tensor)
    return mode


def without_values(batch: Mapping[str, Tensor], mode: FakeTensorMode) -> dict[str, Tensor]:
    """A real batch, its pixels without storage: all else stays real, since the step's course depends on it."""
    return {name: mode.from_tensor(value) if name == "pixel_values" else value for name, value in batch.items()}


def step_bytes(module: nn.Module, backward: Callable[[], Tensor], gradient_share: float = 1.0) -> StepBytes:
    """Runs `backward`, which makes a forward of `module` and returns its loss with the graph, then the backward of it.

    gradient_share: the part of the weights' gradients that stays (ZeRO keeps one of as many as there are ranks).
    """
    resident = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
    ledger = _Ledger(resident, gradient_share)
    hooks = [
        parameter.register_post_accumulate_grad_hook(lambda parameter: ledger.is_gradient(parameter.grad))
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    with ledger:
        loss = backward()
        forward = ledger.live
        loss.backward()
        del loss
    for hook in hooks:
        hook.remove()
    counted = StepBytes(ledger.peak_activations, ledger.peak_weighted, ledger.gradients, forward)
    module.zero_grad(set_to_none=True)
    return counted


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of their storages, each once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())
