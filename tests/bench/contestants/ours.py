"""This project's training module, as llava_pat/training makes it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contestants.base import Sample, Task, Weights, timed, with_memory
from llava_pat.alignment import requirements
from llava_pat.models.fused_kernels import fuse
from llava_pat.performance.made_up import made_up_micro_batches
from llava_pat.performance.phases import Phases
from llava_pat.performance.shapes import Recipe, build_task
from llava_pat.performance.step import Trainee


class Ours:
    """micro_batch: sequences of a forward, None all of the step. cached: --feature_cache, computed before any step.
    compiled: the language model's layers by torch.compile. fused: --use_liger_kernel."""

    def __init__(
        self,
        name: str,
        task: Task,
        recipe: Recipe,
        weights: Weights,
        micro_batch: int | None,
        *,
        cached: bool = False,
        compiled: bool = False,
        fused: bool = False,
    ) -> None:
        self.name, self.device = name, task.device
        module = build_task(task.shape, recipe, task.device)
        model = module.model
        take(model.tower.model, weights.tower, strict=False)  # the layers above the selected one are not there
        take(model.llm, weights.llm)
        take(model.projector, weights.projector)
        if fused:
            fuse(model.llm)
        if compiled:
            for layer in model.llm.get_decoder().layers:
                layer.compile()
        self.trainee = Trainee(module, recipe, task.device)
        size = task.sequences if micro_batch is None else micro_batch
        batches = made_up_micro_batches(
            model, task.sequences, size, task.text_tokens, requirements(recipe.objectives), uneven=task.uneven
        )
        self.batches = [{name: value.to(task.device) for name, value in batch.items()} for batch in batches]
        if cached:
            for batch in self.batches:
                batch["vision_features"] = model.encode_images(batch.pop("pixel_values"))

    def step(self) -> Sample:
        return timed(self._step, self.device)

    def measure_memory(self) -> Sample:
        return with_memory(self._step, self.device)

    def _step(self) -> Tensor:
        return self.trainee.step(self.batches, Phases(()))

    def close(self) -> None:
        del self.trainee, self.batches


def take(module: nn.Module, weights: dict[str, Tensor], strict: bool = True) -> None:
    """A frozen weight is shared, so that 7B models stand side by side; what trains is copied into the module.

    Weights under LoRA have another name than the model's. Raises KeyError for one that `weights` has not.
    """
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            continue
        source = weights[name.replace(".base_layer.", ".")]
        if parameter.requires_grad or parameter.dtype != source.dtype:
            with torch.no_grad():
                parameter.copy_(source)
        else:
            parameter.data = source
    held = {name.replace(".base_layer.", ".") for name, _ in module.named_parameters()}
    if strict and (surplus := {name for name in weights if name not in held}):
        raise KeyError(f"{type(module).__name__} has no place for {sorted(surplus)[:3]}")
