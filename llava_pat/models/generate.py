"""Greedy answers of a VisionLanguageModel, by transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llava_pat.models.vlm import VisionLanguageModel


@torch.no_grad()
def greedy(
    model: VisionLanguageModel, input_ids: Tensor, pixel_values: Tensor, max_new_tokens: int, eos_ids: Sequence[int]
) -> list[int]:
    """The most likely continuation of one prompt, token by token: new ids only, with the end token if it was reached.

    input_ids: int64 [1, T], IMAGE_TOKEN_INDEX at every image patch (as data/collate.py expands them);
    pixel_values: [I, 3, S, S], I may be 0. Stops at `max_new_tokens` or behind any id of `eos_ids`.
    The model is to be in eval mode; raises ValueError for more than one prompt, or where ids and images do not fit.
    """
    if input_ids.dim() != 2 or len(input_ids) != 1:
        raise ValueError(f"greedy takes one prompt, ids of shape [1, T], got {list(input_ids.shape)}")
    embeds = model.embed_sequence(input_ids, model.project(model.encode_images(pixel_values)))
    generated = model.llm.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=list(eos_ids),
        pad_token_id=eos_ids[0],  # never used: one prompt has no padding; without it transformers logs a line a call
    )
    return generated[0].tolist()
