"""transformers' gradient checkpointing, switched by the one name that all its 5.x versions share."""

from __future__ import annotations

import warnings

from transformers import PreTrainedModel


def enable_gradient_checkpointing(model: PreTrainedModel, keywords: dict | None) -> None:
    """Recompute in the backward pass; non-reentrant unless `keywords` say otherwise (5.23 deprecates the name)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*gradient_checkpointing_enable.*")
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False} if keywords is None else keywords
        )


def disable_gradient_checkpointing(model: PreTrainedModel) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*gradient_checkpointing_disable.*")
        model.gradient_checkpointing_disable()
