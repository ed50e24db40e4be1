"""From similarities of patches and words to labels: the n best words of every patch (SEA).

SEA (arXiv 2408.11813, appendix C) takes -cos(v, t) ("the cosine needs to be negated in the CLIP embedding space",
citing CLIP Surgery), the 10 best words of a patch, and leaves out scores below 0. Where a CLIP's patch-text cosines are
mostly positive, hardly a label is left of that; where they are low for what a patch shows, the sign is needed. What
holds for a tower is measured before training, by the label report (llava_pat/labelling); all of it is a switch here:

    score = sign * cos, then centred, then the n best of those above min_score (SEA: 0)

    centring "none"     as it is
    centring "words"    less the patch's mean over all words: what all words share says nothing about the patch (the
                        "redundant features" of CLIP Surgery)
    centring "patches"  less the word's mean over the patches of a sample of the corpus: a word that is alike everything
                        labels nothing
    centring "both"     less both, plus the mean of all

Shape letters as in llava_pat/types.py; W words, d the shared width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_pat.models.patch_text import SOURCES

SIGNS = (1, -1)
CENTRINGS = ("none", "words", "patches", "both")
_SIMILARITIES_AT_ONCE = 1 << 25  # 128 MiB of float32


@dataclass(frozen=True)
class LabelSwitches:
    """How similarities become labels. The defaults are SEA's, where its text says."""

    n: int = 10
    sign: int = -1
    centring: Literal["none", "words", "patches", "both"] = "none"
    source: Literal["last", "surgery"] = "last"
    prompt: str = "{}"  # the word alone: SEA names no template
    min_score: float = 0.0  # candidates must be above it

    def __post_init__(self) -> None:
        for name, choices in (("sign", SIGNS), ("centring", CENTRINGS), ("source", SOURCES)):
            value = vars(self)[name]
            if value not in choices:
                raise ValueError(f"{name} of the labels is {value!r}; choose one of {', '.join(map(str, choices))}")
        if not isinstance(self.n, int) or self.n < 1:
            raise ValueError(f"n of the labels is {self.n!r}: at least 1 word a patch")
        if not isinstance(self.prompt, str) or self.prompt.count("{}") != 1:
            raise ValueError(f"prompt of the labels is {self.prompt!r}: it must hold {{}} once, for the word")
        if not isinstance(self.min_score, (int, float)) or not 0 <= self.min_score < 2:
            raise ValueError(
                f"min_score of the labels is {self.min_score!r}: expected at least 0, as scores are weights"
            )

    @property
    def needs_word_means(self) -> bool:
        return self.centring in ("patches", "both")


def best_words(
    patches: Tensor, words: Tensor, switches: LabelSwitches, word_means: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Labels of patches.

    patches: unit vectors [I, N, d]; words: unit vectors [W, d]; word_means: [W], each word's mean cosine over patches,
    for the centrings that need it. Returns ids int64 [I, N, n] (rows of `words`, -1 where fewer than n are above
    min_score) and scores float32 [I, N, n], best first, 0 where there is no word.
    """
    if switches.needs_word_means and word_means is None:
        raise ValueError(f"centring {switches.centring!r} needs the words' means over patches")
    rows = patches.float().flatten(0, -2)
    at_once = max(1, _SIMILARITIES_AT_ONCE // max(1, len(words)))
    found = [_best(chunk, words.float(), switches, word_means) for chunk in rows.split(at_once)]
    if not found:
        found = [_best(rows, words.float(), switches, word_means)]
    ids, scores = (torch.cat(parts).reshape(*patches.shape[:-1], switches.n) for parts in zip(*found, strict=True))
    return ids, scores


def word_means(patch_mean: Tensor, words: Tensor) -> Tensor:
    """Each word's mean cosine [W] over patches whose unit vectors have the mean `patch_mean` [d]."""
    return words.double() @ patch_mean.double()


def _best(patches: Tensor, words: Tensor, switches: LabelSwitches, means: Tensor | None) -> tuple[Tensor, Tensor]:
    """patches [P, d] -> ids and scores [P, n]."""
    scores = patches @ words.T
    if switches.centring in ("words", "both"):
        scores = scores - scores.mean(-1, keepdim=True)
    if switches.needs_word_means:
        centred = means - means.mean() if switches.centring == "both" else means
        scores = scores - centred.to(scores)
    scores, ids = (switches.sign * scores).topk(min(switches.n, len(words)), dim=-1)
    enough = scores > switches.min_score
    missing = (0, switches.n - ids.shape[-1])
    return F.pad(torch.where(enough, ids, -1), missing, value=-1), F.pad(torch.where(enough, scores, 0.0), missing)
