"""What a language model does to `lm_head(hidden)` before it calls the result logits, for those that do something."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

_FACTOR = "logit_scale"
_DIVISOR = "logits_scaling"
_CAP = "final_logit_softcapping"


@dataclass(frozen=True)
class LogitTransform:
    """logits * factor / divisor, then cap * tanh(logits / cap): each as config.json has it, None where it has not.

    factor: `logit_scale` (Cohere); divisor: `logits_scaling` (Granite);
    cap: `final_logit_softcapping` (Gemma 2). Source: the models' own forward in transformers, which tests compare.
    """

    factor: float | None = None
    divisor: float | None = None
    cap: float | None = None

    @classmethod
    def of(cls, config: PretrainedConfig) -> LogitTransform:
        settings = config.to_dict()
        return cls(settings.get(_FACTOR), settings.get(_DIVISOR), settings.get(_CAP))

    def __call__(self, logits: Tensor) -> Tensor:
        """Same shape and dtype: in the dtype of lm_head's output, as the models do it."""
        if self.factor is not None:
            logits = logits * self.factor
        if self.divisor is not None:
            logits = logits / self.divisor
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits
