"""The phases of a training step, and their boundaries put on the real training module.

Every moment of a step belongs to exactly one phase: a phase ends where the next begins. So the phases sum to the step
whatever the module does. Boundaries are calls of the model's parts (forward) and the arrival of gradients (backward):
autograd runs what was made last first, so the objective's backward ends where the gradient reaches the caption loss,
the head's where it reaches the last hidden states, the language model's where it reaches the projected patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor

from llava_pat.training.task import AlignedTraining

TOWER = "tower"
PROJECTOR = "projector"
LLM = "language model"
HEAD = "head, cross entropy"
OBJECTIVE = "objective"
OBJECTIVE_BACKWARD = "objective, backward"
HEAD_BACKWARD = "head, backward"
LLM_BACKWARD = "language model, backward"
PROJECTOR_BACKWARD = "projector, backward"
OPTIMIZER = "optimizer"
OTHER = "other"
PHASES = (
    TOWER, PROJECTOR, LLM, HEAD, OBJECTIVE, OBJECTIVE_BACKWARD, HEAD_BACKWARD, LLM_BACKWARD, PROJECTOR_BACKWARD,
    OPTIMIZER, OTHER,
)  # fmt: skip
"""In the order of a step. `projector, backward` holds a tower's that trains; `other` is the loss's arithmetic."""


class Listener(Protocol):
    """Told of every boundary."""

    def switch(self, phase: str | None) -> None:
        """The phase that begins now; None: the step is over."""


class Phases:
    """Says to its listeners which phase begins."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = tuple(listeners)
        self._current: str | None = None

    def switch(self, phase: str | None) -> None:
        self._current = phase
        for listener in self._listeners:
            listener.switch(phase)

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """`phase` inside, what it was before behind it."""
        outer = self._current
        self.switch(phase)
        yield
        self.switch(outer)

    def at_gradient(self, tensor: Tensor, phase: str) -> None:
        """`phase` begins when the gradient of `tensor` is complete. Nothing for a tensor without gradient."""
        if tensor.requires_grad:
            tensor.register_hook(lambda _: self.switch(phase))


@contextmanager
def watched(task: AlignedTraining, phases: Phases) -> Iterator[None]:
    """Inside, the task's own forward and backward tell `phases` where they are. The numbers stay the same."""
    model = task.model

    def project(*args: Any, **keywords: Any) -> Tensor:
        with phases.within(PROJECTOR):
            patch_embeds = type(model).project(model, *args, **keywords)
        phases.at_gradient(patch_embeds, PROJECTOR_BACKWARD)
        return patch_embeds

    def forward_hidden(*args: Any, **keywords: Any) -> Tensor:
        with phases.within(LLM):
            hidden = type(model).forward_hidden(model, *args, **keywords)
        phases.at_gradient(hidden, LLM_BACKWARD)
        return hidden

    def caption_loss_sum(*args: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        with phases.within(HEAD):
            total, count = type(model).caption_loss_sum(model, *args, **keywords)
        phases.at_gradient(total, HEAD_BACKWARD)
        return total, count

    def encode_images(*args: Any, **keywords: Any) -> Tensor:
        with phases.within(TOWER):
            return type(model).encode_images(model, *args, **keywords)

    replaced: dict[str, Callable] = {
        "encode_images": encode_images,
        "project": project,
        "forward_hidden": forward_hidden,
        "caption_loss_sum": caption_loss_sum,
    }
    hooks = [
        hook
        for objective in task.objective.parts.values()
        for hook in (
            objective.register_forward_pre_hook(lambda *_: phases.switch(OBJECTIVE)),
            objective.register_forward_hook(lambda *_: phases.switch(OTHER)),
        )
    ]
    for name, function in replaced.items():
        setattr(model, name, function)
    try:
        yield
    finally:
        for name in replaced:
            delattr(model, name)
        for hook in hooks:
            hook.remove()
