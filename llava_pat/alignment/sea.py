"""Supervised embedding alignment: a patch's projection against one of its words, among all the words of the batch.

SEA, arXiv 2408.11813 (EMNLP 2025). The paper's choices are the defaults; what it leaves open is a switch, and
docs/objectives.md says which. Letters of the shapes: llava_pat/types.py, and P pairs of this rank, M of all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_pat.alignment.base import AlignmentObjective, require_choice
from llava_pat.alignment.contrastive import (
    LOSSES,
    contrast,
    gather_rows,
    gather_sizes,
    number_texts,
    one_of_each,
    own_start,
    ranks,
)
from llava_pat.alignment.labels import LABELS, REQUIRED, check_patch_words, words_of_regions
from llava_pat.alignment.pooling import check_regions, embed_texts, full_precision, unit
from llava_pat.types import AlignmentInputs, AlignmentLoss, PatchWords

SAMPLING = ("weighted", "best", "mean")
DEDUP = ("one", "mask")
METRICS = ("accuracy", "scale")


class SupervisedEmbeddingAlignment(AlignmentObjective):
    """Symmetric contrast of N pairs of a patch and a word, N over the whole batch of all ranks.

    A micro-batch's pairs come about in five steps:

    1. Candidates: each patch has up to `top_n` words with scores.
    2. Windows: of each `window` x `window` patches one that has candidates, at random.
    3. A word: one candidate at random, with probability score / sum of scores ("weighted"); the best one ("best"); or
       no choice, the target is sum_k score_k e_k / |e_k| ("mean"; for step 4 its word is the best one).
    4. Repeated words, over all ranks: keep one pair of a word, at random ("one"); or keep all, and pairs of a word are
       no negatives of each other ("mask").
    5. The word's vector e: mean of the language model's input embeddings over its tokens.

    The loss is `contrast` (contrastive.py) of unit vectors with scale exp(log_scale). Items are pairs; total and count
    are this rank's share. With fewer than two different words on all ranks there is nothing to contrast: the
    micro-batch is skipped (0 items, gradient 0) and counted.

    The random choices draw from torch's global generator of the device. The trainer saves its state, so a resumed run
    makes the same choices.

    Metrics (sums over pairs): `accuracy`, pairs whose patch is nearest to its own word among the batch's words;
    `scale`. Counters: `candidates`, pairs before step 4; `skipped`, micro-batches.

    Args:
        labels: where candidates come from: "clip", the label file of patch words; "regions", labels of the masks over a
            patch, their score the coverage.
        top_n: candidates used of a patch, 1 or more.
        min_coverage: share of a patch, in [0, 1], that a region must cover to be a candidate; for labels "regions".
        window: side of a window in patches; 0 and 1 take every patch.
        sampling, dedup: see above.
        loss: "infonce" (the paper's), or "sdm", which has repeated words in its target (then mostly with dedup "mask").
        init_log_scale: ln of the scale at the start. 0 is our reading of the paper's "zero temperature", scale 1; CLIP
            begins with ln(1 / 0.07) = 2.66.
        learn_temperature: whether the scale trains, at the run's learning rate.
        max_scale: the scale stays at or below it, as CLIP's.
        schedule: see AlignmentObjective; the paper ramps nothing.
    """

    requires = frozenset({"patch_words"})

    def __init__(
        self,
        *,
        labels: Literal["clip", "regions"] = "clip",
        top_n: int = 10,
        min_coverage: float = 0.5,
        window: int = 2,
        sampling: Literal["weighted", "best", "mean"] = "weighted",
        dedup: Literal["one", "mask"] = "one",
        loss: Literal["infonce", "sdm"] = "infonce",
        init_log_scale: float = 0.0,
        learn_temperature: bool = True,
        max_scale: float = 100.0,
        schedule: Literal["linear", "constant"] = "constant",
    ) -> None:
        super().__init__(schedule=schedule)
        if top_n < 1:
            raise ValueError(f"top_n is {top_n}; a patch needs at least 1 candidate")
        if not 0.0 <= min_coverage <= 1.0:
            raise ValueError(f"min_coverage is {min_coverage}; a share of a patch lies in [0, 1]")
        if window < 0:
            raise ValueError(f"window is {window}; give its side in patches, or 0 for every patch")
        if not (max_scale > 0 and -math.inf < init_log_scale <= math.log(max_scale)):
            raise ValueError(
                f"init_log_scale is {init_log_scale}, max_scale {max_scale}; give a finite one, at most its ln"
            )
        self.requires = self.requires_with({"labels": labels})
        self.labels = labels
        self.top_n = top_n
        self.min_coverage = min_coverage
        self.window = window
        self.sampling = require_choice("sampling", sampling, SAMPLING)
        self.dedup = require_choice("dedup", dedup, DEDUP)
        self.loss = require_choice("loss", loss, LOSSES)
        self.max_scale = max_scale
        # [1] and no scalar: DeepSpeed cannot broadcast those.
        self.log_scale = nn.Parameter(torch.full((1,), float(init_log_scale)), requires_grad=learn_temperature)

    @classmethod
    def requires_with(cls, keywords: Mapping[str, Any]) -> frozenset[str]:
        return frozenset({REQUIRED[require_choice("labels", keywords.get("labels", "clip"), LABELS)]})

    def scale(self) -> Tensor:
        """What cosines are multiplied with: fp32 scalar, at most max_scale."""
        log_scale, limit = self.log_scale.float().squeeze(), math.log(self.max_scale)
        # The value is cut, its gradient is not: else a scale that once passed the limit could never come back.
        return (log_scale + (log_scale.clamp(max=limit) - log_scale).detach()).exp()

    def forward(self, inputs: AlignmentInputs) -> AlignmentLoss:
        with full_precision(inputs.patch_embeds):
            zero = self.anchor(inputs)
            candidates = self._candidates(inputs)
            image, patch, words, weights = self._draw(candidates)
            drawn = len(image)
            texts = _token_rows(candidates, words[:, 0])
            kept, ids, distinct = self._over_ranks(texts)
            if distinct < 2:
                kept = torch.zeros_like(kept)
            image, patch, words, weights, ids = (rows[kept] for rows in (image, patch, words, weights, ids))
            targets = self._targets(inputs, candidates, words, weights)
            _, world = ranks()
            counters = {"candidates": zero.new_tensor(float(drawn)), "skipped": zero.new_tensor((distinct < 2) / world)}
            if distinct < 2:
                nothing = {name: zero.detach().clone() for name in METRICS}
                return AlignmentLoss(zero, zero.detach().clone(), nothing, zero.detach().clone(), counters)
            sizes = gather_sizes(len(image), image.device)
            scale = self.scale()
            found = contrast(unit(inputs.patch_embeds[image, patch]), targets, ids, scale, sizes, self.loss)
            count = zero.new_tensor(float(len(image)))
            metrics = {"accuracy": found.right.float(), "scale": scale.detach() * count}
            divisor = zero.new_tensor(sum(sizes) / world)  # gradients are averaged over ranks: contrastive.py
            return AlignmentLoss(found.total + zero, count, metrics, divisor, counters)

    def _candidates(self, inputs: AlignmentInputs) -> PatchWords:
        """What the labels say of each patch; nothing, in the right shape, where there are none."""
        images, patches = inputs.patch_embeds.shape[:2]
        if self.labels == "regions" and inputs.regions is not None:
            check_regions(inputs.regions, inputs.patch_embeds)
            return words_of_regions(inputs.regions, images, self.min_coverage)
        if self.labels == "clip" and inputs.patch_words is not None:
            check_patch_words(inputs.patch_words, inputs.patch_embeds)
            return inputs.patch_words
        device = inputs.patch_embeds.device
        nothing = torch.full((images, patches, 1), -1, dtype=torch.int64, device=device)
        text = torch.zeros((0, 1), dtype=torch.int64, device=device)
        return PatchWords(nothing, torch.zeros(nothing.shape, device=device), text, text.bool())

    @torch.no_grad()
    def _draw(self, candidates: PatchWords) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Steps 1 to 3: image [P], patch [P], words [P, k] and their weights [P, k], the word that identifies first."""
        words, scores = candidates.words[..., : self.top_n], candidates.scores[..., : self.top_n]
        scores = scores * (words >= 0)
        chosen = scores.sum(-1) > 0
        if self.window > 1:
            chosen &= one_per_window(chosen, self.window)
        image, patch = chosen.nonzero(as_tuple=True)
        words, scores = words[image, patch], scores[image, patch]
        if self.sampling == "mean":
            return image, patch, words, scores / scores.sum(-1, keepdim=True)
        if self.sampling == "weighted" and len(image):
            place = torch.multinomial(scores, 1)
        else:
            place = torch.zeros((len(image), 1), dtype=torch.int64, device=image.device)
        return image, patch, words.gather(1, place), torch.ones(place.shape, device=image.device)

    @torch.no_grad()
    def _over_ranks(self, texts: Tensor) -> tuple[Tensor, Tensor, int]:
        """Step 4: which own pairs stay (bool [P]), the number of each one's word ([P]), how many words there are."""
        longest = max(gather_sizes(texts.shape[1], texts.device))
        texts = F.pad(texts, (0, longest - texts.shape[1]), value=-1)
        sizes = gather_sizes(len(texts), texts.device)
        draws = _draws(len(texts), texts.device)
        everyone = gather_rows(torch.cat([draws.unsqueeze(1), texts], dim=1), sizes)
        ids = number_texts(everyone[:, 1:])
        distinct = int(ids.max()) + 1 if len(ids) else 0
        kept = one_of_each(ids, everyone[:, 0]) if self.dedup == "one" else torch.ones_like(ids, dtype=torch.bool)
        own = slice(own_start(sizes), own_start(sizes) + len(texts))
        return kept[own], ids[own], distinct

    @torch.no_grad()
    def _targets(self, inputs: AlignmentInputs, candidates: PatchWords, words: Tensor, weights: Tensor) -> Tensor:
        """Step 5: fp32 [P, D] of length 1. Only the words that are used are embedded."""
        used, place = torch.unique(words[words >= 0], return_inverse=True)
        vectors = unit(embed_texts(inputs, candidates.word_ids[used], candidates.word_mask[used]))
        if not len(words):
            return vectors.new_zeros((0, inputs.patch_embeds.shape[-1]))
        rows = torch.zeros_like(words)
        rows[words >= 0] = place
        return unit(F.embedding_bag(rows, vectors, mode="sum", per_sample_weights=weights))


def one_per_window(eligible: Tensor, window: int) -> Tensor:
    """Of each window x window patches one eligible patch, at random: bool [I, N] -> bool [I, N].

    Windows begin at the upper left; where the side of the grid is no multiple of `window`, the last ones are smaller.

    Raises:
        ValueError: N is not the square of a grid's side.
    """
    images, patches = eligible.shape
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"window {window} needs a square grid of patches, the tower gives {patches}; give window 0")
    place = torch.arange(side, device=eligible.device) // window
    across = -(-side // window)
    number = (place.unsqueeze(1) * across + place).flatten()  # [N]: which window
    number = number + across * across * torch.arange(images, device=eligible.device).unsqueeze(1)  # [I, N]
    found = torch.zeros(images * patches, dtype=torch.bool, device=eligible.device)
    rows = eligible.flatten().nonzero().flatten()
    found[rows] = one_of_each(number.flatten()[rows], _draws(len(rows), eligible.device))
    return found.view(images, patches)


def _token_rows(candidates: PatchWords, words: Tensor) -> Tensor:
    """[P] rows of the word table -> [P, L] tokens, -1 behind the last: what identifies a word on every rank."""
    return torch.where(candidates.word_mask[words], candidates.word_ids[words], -1)


def _draws(size: int, device: torch.device) -> Tensor:
    """[size] int64 in which the largest is as likely at every place: what random choices are made with."""
    return torch.randint(2**62, (size,), device=device)
