"""What labels are worth, before anything is trained on them: how many there are, which, and whether they are right.

Over patches of a sample of images, for one setting of the switches:

    with_label          share of patches with at least one candidate
    labels_per_patch    mean number of candidates (at most n)
    best_words          how many different words are some patch's best
    top_share           share of the labelled patches that the most frequent best word takes (1: one word for all)
    caption_best        share of the labelled patches whose best word is in a caption of their image
    caption_chance      share that a word drawn evenly from the list would have

and where there are regions, over the patches that they cover by at least COVERED, with a label whose words are listed:

    region_patches      how many there are
    right_best          share whose best word is in a label of a region that covers it
    right_any           share with such a word among all candidates
    right_drawn         expected share when one candidate is drawn by its score, as SEA draws; none is wrong
    right_chance        share that a word drawn evenly from the list would have
    outside_with_label  share of the patches under no region at all (the background) that have a label
    best_score_inside, best_score_outside    the best score's 5 %, 50 % and 95 % points, of patches in regions and of
                        background ones (0 where there is no candidate): where a min_score could part them
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava_pat.data.geometry import Geometry
from llava_pat.data.regions import to_mask
from llava_pat.data.word_list import words_in
from llava_pat.types import DataError, ImageRegions

COVERED = 0.25  # as in the alignment measures
_POINTS = (0.05, 0.5, 0.95)


@dataclass
class Truth:
    """What is known of one image; W words in the list."""

    caption: Tensor  # bool [W]: words of its captions
    right: Tensor | None = None  # bool [N, W]: words of the regions that cover a patch; None: no regions known
    outside: Tensor | None = None  # bool [N]: under no region


def caption_words(captions: Iterable[str], places: Mapping[str, int]) -> Tensor:
    """bool [W]: which words of the list (word -> its place) the captions have."""
    found = torch.zeros(len(places), dtype=torch.bool)
    for caption in captions:
        found[sorted(words_in(caption, places))] = True
    return found


def region_truth(
    entry: ImageRegions, geometry: Geometry, patch_size: int, places: Mapping[str, int]
) -> tuple[Tensor, Tensor]:
    """One image's right words bool [N, W], and bool [N]: is the patch under no region.

    places: word -> its place in the list. A label of several words makes each of them right.
    """
    patches = (geometry.size // patch_size) ** 2
    right, outside = torch.zeros(patches, len(places), dtype=torch.bool), torch.ones(patches, dtype=torch.bool)
    for region in entry.regions:
        try:
            coverage = geometry.coverage(to_mask(region, entry.height, entry.width), patch_size)
        except DataError as error:
            raise DataError(f"{entry.where}: {error}") from error
        outside &= coverage == 0
        words = torch.tensor(sorted(words_in(region.label, places)), dtype=torch.int64)
        right[:, words] |= (coverage >= COVERED)[:, None]
    return right, outside


class LabelStatistics:
    """Counts over images; `result` gives the shares above. W words in the list."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._patches = self._with_label = self._labels = 0
        self._regions, self._outside, self._outside_with = 0, 0, 0
        self._right = torch.zeros(4, dtype=torch.float64)  # best, any, drawn, chance
        self._caption = torch.zeros(2, dtype=torch.float64)  # best, chance
        self._scores: dict[str, list[Tensor]] = {"inside": [], "outside": []}
        self.best: Counter[int] = Counter()  # place in the list -> patches whose best word it is
        self.all: Counter[int] = Counter()  # ... that have it among their candidates

    def update(self, ids: Tensor, scores: Tensor, truth: Truth | None = None) -> None:
        """Of one image: ids int64 [N, n] (-1: none), scores [N, n]. Without a truth, of the patches of any number."""
        ids, scores = ids.cpu(), scores.cpu().double()
        there = ids >= 0
        labelled = there[:, 0]
        self._patches += len(ids)
        self._with_label += int(labelled.sum())
        self._labels += int(there.sum())
        for counter, chosen in ((self.best, ids[:, 0][labelled]), (self.all, ids[there])):
            values, counts = torch.unique(chosen, return_counts=True)
            counter.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        if truth is None:
            return
        said = truth.caption.double()
        self._caption += torch.stack([said[ids[:, 0][labelled]].sum(), said.mean() * labelled.sum()])
        if truth.right is not None and truth.outside is not None:
            self._compare(ids, scores, there, truth.right, truth.outside)

    def _compare(self, ids: Tensor, scores: Tensor, there: Tensor, right: Tensor, outside: Tensor) -> None:
        self._outside += int(outside.sum())
        self._outside_with += int((outside & there[:, 0]).sum())
        known = right.any(-1)
        self._scores["outside"].append(scores[outside, 0])
        self._scores["inside"].append(scores[known, 0])
        ids, scores, there, right = ids[known], scores[known], there[known], right[known]
        hits = right.gather(1, ids.clamp_min(0)) & there
        drawn = (scores * hits).sum(-1) / scores.sum(-1).clamp_min(torch.finfo(torch.float64).tiny)
        chance = right.double().mean(-1)
        self._regions += len(ids)
        self._right += torch.stack([hits[:, 0].double().sum(), hits.any(-1).double().sum(), drawn.sum(), chance.sum()])

    def result(self) -> dict[str, Any]:
        """The shares of the file's top; those of captions and regions only where they were given."""
        result: dict[str, Any] = {
            "patches": self._patches,
            "with_label": self._with_label / max(1, self._patches),
            "labels_per_patch": self._labels / max(1, self._patches),
            "best_words": len(self.best),
            "top_share": max(self.best.values(), default=0) / max(1, self._with_label),
        }
        if bool(self._caption.any()):
            shares = (self._caption / max(1, self._with_label)).tolist()
            result |= dict(zip(("caption_best", "caption_chance"), shares, strict=True))
        if self._regions:
            shares = (self._right / self._regions).tolist()
            result["region_patches"] = self._regions
            result |= dict(zip(("right_best", "right_any", "right_drawn", "right_chance"), shares, strict=True))
        if self._outside:
            result["outside_with_label"] = self._outside_with / self._outside
        for where, scores in self._scores.items():
            if scores:
                whole = torch.cat(scores).sort().values
                at = [round(share * (len(whole) - 1)) for share in _POINTS] if len(whole) else []
                result[f"best_score_{where}"] = [float(whole[place]) for place in at]
        return result

    def histogram(self, most: int | None = None) -> dict[str, dict[str, int]]:
        """Per word, most frequent best word first: in how many patches it is best, and a candidate at all."""
        order = sorted(self.all, key=lambda place: (-self.best[place], -self.all[place], place))[:most]
        return {self._words[place]: {"best": self.best[place], "candidate": self.all[place]} for place in order}
