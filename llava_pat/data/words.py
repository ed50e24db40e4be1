"""A list of words or labels as tokens, and which of its entries each region label contains.

What reads patches with words needs the entries' vectors and, for a region that a batch knows by its label's tokens
only, the right entries. V entries; other letters: see llava_pat/types.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava_pat.data.regions import label_tokens
from llava_pat.types import ImageRegions, PatchRegions


class Entries(Protocol):
    """What is needed of analysis.vocabulary.Vocabulary."""

    @property
    def words(self) -> tuple[str, ...]: ...

    @property
    def facets(self) -> Mapping[str, tuple[int, ...]]: ...

    def targets(self, labels: Sequence[str]) -> Tensor: ...


@dataclass(frozen=True)
class Words:
    """A vocabulary, its tokens, and which entries each region label of the data contains."""

    vocabulary: Entries
    ids: Tensor  # [V, L] int64, padded with 0
    mask: Tensor  # [V, L] bool
    targets: Mapping[tuple[int, ...], Tensor]  # a label's tokens -> bool [V]

    def vectors(self, embed_words: Callable[[Tensor], Tensor], device: torch.device | str = "cpu") -> Tensor:
        """[V, D] fp32: the mean of each entry's input embeddings; embed_words: ids [..., L] -> [..., L, D]."""
        return mean_vectors(embed_words, self.ids.to(device), self.mask.to(device))

    def region_targets(self, regions: PatchRegions) -> Tensor:
        """[R, V] bool, on the CPU."""
        rows = [
            self.targets[tuple(ids[mask].tolist())]
            for ids, mask in zip(regions.label_ids.cpu(), regions.label_mask.cpu(), strict=True)
        ]
        return torch.stack(rows) if rows else torch.zeros(0, len(self.ids), dtype=torch.bool)


def mean_vectors(embed_words: Callable[[Tensor], Tensor], ids: Tensor, mask: Tensor) -> Tensor:
    """ids [V, L] int64, mask [V, L] bool with a token in every row -> [V, D] fp32, the mean over the real tokens."""
    real = mask.unsqueeze(-1)
    return (embed_words(ids).float() * real).sum(-2) / real.sum(-2)


def words_for(
    vocabulary: Entries,
    annotated: Iterable[ImageRegions],
    tokenizer: PreTrainedTokenizerBase,
    where: str = "the object vocabulary",
) -> Words:
    """Prepare a vocabulary for the labels of a regions file; labels and entries are tokenised as in running text.

    where: what the entries are from, for the DataError about a word without tokens.
    """
    targets: dict[tuple[int, ...], Tensor] = {}
    for entry in annotated:
        for region in entry.regions:
            tokens = tuple(label_tokens(region.label, tokenizer, entry.where))
            if tokens not in targets:
                targets[tokens] = vocabulary.targets([region.label])[0]
    entries = [label_tokens(word, tokenizer, where) for word in vocabulary.words]
    ids = torch.zeros(len(entries), max(map(len, entries)), dtype=torch.int64)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, tokens in enumerate(entries):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = True
    return Words(vocabulary, ids, mask, targets)
