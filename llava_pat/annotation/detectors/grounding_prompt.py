"""Labels -> Grounding DINO's prompts, and which tokens of a prompt are which label.

The rules of IDEA-Research/GroundingDINO's README: lower case, a full stop after every label. The model lets words
attend to each other between full stops only (token ids 1012 "." and 1029 "?" of BERT, SPECIAL_TOKENS of transformers'
modeling_grounding_dino.py), so a full stop inside a label would cut it in two: it goes.

The known trap (GroundingDINO issues 63 and 143, Grounded-Segment-Anything 240 and 339): a box's text, made of all
tokens above a threshold, is often a piece of a label ("##hy" of "fire hydrant"), or two labels ("car taxi"). Here a box
has a score for every label, from that label's own tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_STOPS = re.compile(r"[.?]+")
_JOIN = ". "


@dataclass(frozen=True)
class Prompt:
    """One text for the model."""

    text: str
    labels: tuple[str, ...]
    """As they were asked for."""
    tokens: Tensor
    """bool [labels, T]: which tokens of the text, special ones included, are each label's."""


def build_prompts(
    labels: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> tuple[list[Prompt], list[str]]:
    """(prompts of at most max_tokens tokens, labels that cannot be asked for).

    Labels that are the same to the model (case, full stops) are asked once, as the first of them. A label cannot be
    asked for when the tokenizer knows none of it or when it alone is longer than a prompt.
    """
    room = max_tokens - tokenizer.num_special_tokens_to_add()
    texts: dict[str, str] = {}
    unknown: list[str] = []
    for label in labels:
        words = " ".join(_STOPS.sub(" ", label.lower()).split())
        ids = tokenizer(words, add_special_tokens=False)["input_ids"]
        if not ids or all(i == tokenizer.unk_token_id for i in ids) or len(ids) + 1 > room:
            unknown.append(label)
        else:
            texts.setdefault(words, label)
    prompts: list[Prompt] = []
    packed: list[str] = []
    used = 0
    for words in texts:
        cost = len(tokenizer(words, add_special_tokens=False)["input_ids"]) + 1  # and its full stop
        if packed and used + cost > room:
            prompts.append(_prompt(packed, texts, tokenizer))
            packed, used = [], 0
        packed.append(words)
        used += cost
    if packed:
        prompts.append(_prompt(packed, texts, tokenizer))
    return prompts, unknown


def score_labels(logits: Tensor, prompt: Prompt) -> Tensor:
    """logits [queries, T or more], padding -inf -> float32 [queries, labels]: the best of each label's tokens.

    The best token is what the authors' threshold is about (box_threshold is compared with the maximum over tokens); a
    box that only a full stop or [CLS] speaks for has no label and scores low here.
    """
    probabilities = logits.float().sigmoid()
    return torch.stack(
        [probabilities[:, : len(own)][:, own].max(-1).values for own in prompt.tokens.to(logits.device)], dim=-1
    )


def _prompt(packed: list[str], texts: dict[str, str], tokenizer: PreTrainedTokenizerBase) -> Prompt:
    text = _JOIN.join(packed) + "."
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    tokens = torch.zeros(len(packed), len(offsets), dtype=torch.bool)
    start = 0
    for row, words in enumerate(packed):
        end = start + len(words)
        for column, (first, last) in enumerate(offsets):
            tokens[row, column] = first < last and first >= start and last <= end  # special tokens are (0, 0)
        start = end + len(_JOIN)
    return Prompt(text, tuple(texts[words] for words in packed), tokens)
