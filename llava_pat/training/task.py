"""One training step as one module: model and loss meet here, so that DDP and DeepSpeed see a single forward.

    loss = caption + weight(step) * alignment.total / alignment.count

Of several objectives (combined.py) each has its own last term. Shape letters as in llava_pat/types.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llava_pat.alignment import AlignmentObjective, CombinedObjective
from llava_pat.data.collate import patch_regions, patch_words
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.types import IGNORE_INDEX, AlignmentInputs, AlignmentLoss


@dataclass(frozen=True)
class Divisors:
    """What the sums of a micro-batch are divided by.

    A step's gradient must not depend on how its sequences are cut into micro-batches and ranks. So each sum is divided
    by the count of the whole accumulation window over all ranks, times the ranks (their gradients are averaged).
    `alignment` holds such a divisor for each objective by name; None where the data alone do not tell the count: then
    each micro-batch is divided by what the objective returned (its divisor, else its count) and by `micro_batches`,
    the mean over the window.
    """

    caption: Tensor  # fp32 scalar
    alignment: Mapping[str, Tensor | None]  # fp32 scalars
    micro_batches: int = 1


class AlignedTraining(nn.Module):
    """Vision-language model + alignment objective: a batch in, the loss and what to log out.

    `alignment_weight` is the weight at full strength, of several objectives a mapping by name; the objectives'
    schedules ramp it.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        objective: AlignmentObjective | CombinedObjective,
        alignment_weight: float | Mapping[str, float],
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        by_name = isinstance(alignment_weight, Mapping)
        self.alignment_weights = dict(alignment_weight if by_name else dict.fromkeys(objective.parts, alignment_weight))
        # Where transformers and accelerate look for the width that DeepSpeed's "auto" bucket sizes follow from.
        self.config = model.llm.config

    def forward(
        self,
        batch: Mapping[str, Tensor] | None = None,
        step: int = 0,
        total_steps: int = 1,
        divisors: Divisors | None = None,
        ask: Callable[[VisionLanguageModel], Any] | None = None,
        refuse_unsound: bool = True,
    ) -> Any:
        """One micro-batch as the collator gives it (llava_pat/data/collate.py).

        Returns `loss` (fp32 scalar with the graph) and detached fp32 sums: caption_sum, caption_count, alignment_sum,
        alignment_count, each of the objective's metrics as alignment/<name> and its counters as counter/<name>. Of
        several objectives each has its own, with @<objective> behind the name. Without `divisors` the micro-batch
        stands alone: plain means. FloatingPointError when the projected patches are not finite; with `refuse_unsound`
        False the loss is NaN then, through the whole graph, for ranks that must go backward together, and `unsound` is
        True.

        With `ask`, returns ask(model) instead: ZeRO-3 has the weights together only inside the forward of the whole.
        """
        if ask is not None:
            return ask(self.model)
        features = vision_features(self.model, batch)
        patch_embeds = self.model.project(features)
        # Here and not at the loss: an objective may stumble over such patches with words about something else.
        unsound = not torch.isfinite(patch_embeds.detach().sum(dtype=torch.float32))
        if unsound and refuse_unsound:
            raise FloatingPointError("projected patches hold NaN or infinite values")
        if unsound:  # zeros, on the graph
            patch_embeds = torch.nan_to_num(patch_embeds, nan=0.0, posinf=0.0, neginf=0.0) * 0.0
        hidden = self.model.forward_hidden(batch["input_ids"], batch["attention_mask"], patch_embeds, batch["labels"])
        caption, caption_count = self.model.caption_loss_sum(hidden, batch["labels"])
        loss = caption / _at_least_something(caption_count if divisors is None else divisors.caption)
        outputs = {"caption_sum": caption.detach(), "caption_count": caption_count}
        weights = self.weights(step, total_steps)
        inputs = self._alignment_inputs(batch, features, patch_embeds, step, total_steps)
        for name, objective in self.objective.parts.items():
            aligned = objective(inputs)
            # Added even at weight 0: an objective's own parameters must be on every rank's graph.
            loss = loss + weights[name] * _share(aligned, name, divisors)
            outputs |= _sums(aligned, name)
        if unsound:
            return {"loss": loss * float("nan"), "unsound": True, **outputs}
        return {"loss": loss, **outputs}

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict | None = None, every_n_layers: int = 1, offload: bool = False
    ) -> None:
        """transformers' Trainer calls this by the one name or, in older versions, by the other."""
        if every_n_layers != 1 or offload:
            raise ValueError(
                f"activation_checkpointing_kwargs: every_n_layers {every_n_layers} and offload {offload} are not "
                "supported; leave them out, and every layer is recomputed"
            )
        self.model.gradient_checkpointing_enable(activation_checkpointing_kwargs)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None) -> None:
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)

    def weights(self, step: int, total_steps: int) -> dict[str, float]:
        """Each objective's weight at this optimizer step (the first one is step 0), by name."""
        return {
            name: self.alignment_weights[name] * objective.weight(step, total_steps)
            for name, objective in self.objective.parts.items()
        }

    def _alignment_inputs(
        self, batch: Mapping[str, Tensor], features: Tensor, patch_embeds: Tensor, step: int, total_steps: int
    ) -> AlignmentInputs:
        captions = batch["labels"][batch["image_sequence"]]
        return AlignmentInputs(
            vision_features=features,
            patch_embeds=patch_embeds,
            embed_words=self.model.embed_words,
            caption_ids=captions.clamp_min(0),
            caption_mask=captions != IGNORE_INDEX,
            regions=patch_regions(batch),
            patch_words=patch_words(batch),
            step=step,
            total_steps=total_steps,
        )


def vision_features(model: VisionLanguageModel, batch: Mapping[str, Tensor]) -> Tensor:
    """[I, N, Dv]: the batch's own where the run has a feature cache, else the tower's."""
    return batch["vision_features"] if "vision_features" in batch else model.encode_images(batch["pixel_values"])


def _share(aligned: AlignmentLoss, name: str, divisors: Divisors | None) -> Tensor:
    """An objective's term of a micro-batch's loss, before its weight."""
    known = None if divisors is None else divisors.alignment[name]
    if known is not None:
        return aligned.total / _at_least_something(known)
    share = aligned.total / _at_least_something(aligned.count if aligned.divisor is None else aligned.divisor)
    return share if divisors is None else share / divisors.micro_batches


def _sums(aligned: AlignmentLoss, name: str) -> dict[str, Tensor]:
    mark = f"@{name}" if name else ""
    return {
        f"alignment_sum{mark}": aligned.total.detach(),
        f"alignment_count{mark}": aligned.count.detach(),
        **{f"alignment/{key}{mark}": value for key, value in aligned.metrics.items()},
        **{f"counter/{key}{mark}": value for key, value in aligned.counters.items()},
    }


def _at_least_something(count: Tensor) -> Tensor:
    """1 where the count is 0: a batch without items has a sum of 0 and must not become NaN."""
    return torch.where(count > 0, count, 1.0)
