"""Do projected patches lie where their labels' words lie? Cosine, hit rates and ranks, streamed over images.

The vocabulary's word vectors are means of the language model's input embeddings over each entry's tokens.
Definitions are this project's (arXiv 2505.17316 measures patch alignment; its formula was not at hand).
V entries of the vocabulary, N' labelled patches; other letters: see llava_pat/types.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from llava_pat.analysis.tiles import row_slices
from llava_pat.analysis.vectors import unit_rows

TIE = 1e-6
"""Cosines this close are equal: it is the rounding of fp32, and two equal words can differ by it."""


@torch.no_grad()
def label_ranks(patch_embeds: Tensor, word_vectors: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Where the nearest right entry of each labelled patch stands in the vocabulary.

    Its rank is 1 + the number of wrong entries that are as near or nearer. A tie counts as a miss, so that vectors
    that have all collapsed to one point score 0 and not 1. A hit at k is a rank of at most k.

    Args:
        patch_embeds: [N', D] labelled patches only; N' may be 0.
        word_vectors: [V, D].
        targets: [N', V] bool, the right entries of each patch, at least one per row.

    Returns:
        fp32 cosine to the nearest right entry [N'], int64 rank from 1 [N'].

    Raises:
        ValueError: shapes that do not fit, a patch without a right entry, NaN or infinite vectors.
    """
    _check(patch_embeds, word_vectors, targets)
    units = unit_rows(word_vectors, torch.float32)
    best = torch.zeros(len(targets), device=targets.device)
    rank = torch.zeros(len(targets), dtype=torch.int64, device=targets.device)
    for rows, cosine in _cosines(patch_embeds, units):
        row, _, value, place = _pair_ranks(cosine, targets[rows])
        best[rows], rank[rows] = _nearest_right(len(cosine), row, value, place)
    return best, rank


def labelled_patches(
    coverage: Tensor, image: Tensor, region_targets: Tensor, min_coverage: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """Patches that carry an entry of the vocabulary, and which entries they carry.

    Args:
        coverage: [R, N] in [0, 1].
        image: [R] int64.
        region_targets: [R, V] bool, the entries in each region's label (Vocabulary.targets); rows may be empty.
        min_coverage: share of a patch that a region must cover to label it (0: any share above 0).

    Returns:
        image numbers [N'], patch numbers [N'], targets [N', V] bool, so that
        `label_ranks(patch_embeds[images, patches], word_vectors, targets)` fits. A patch under several regions has the
        entries of all of them.
    """
    covered = (coverage > 0) & (coverage >= min_coverage) & region_targets.any(-1, keepdim=True)
    region, patch = covered.nonzero(as_tuple=True)
    cells, row = torch.unique(image[region] * coverage.shape[1] + patch, return_inverse=True)
    votes = torch.zeros(len(cells), region_targets.shape[1], device=coverage.device)
    votes.index_add_(0, row, region_targets[region].float())
    return cells // coverage.shape[1], cells % coverage.shape[1], votes > 0


class PatchAlignment:
    """Streaming means over images: add a batch at a time, read the result at the end.

    Holds one fp32 copy of the words; a [N', V] matrix exists only a tile at a time.

    Args:
        word_vectors: [V, D], one per entry of the vocabulary.
        facets: name -> column numbers of its entries (Vocabulary.facets). For a patch that carries exactly one entry
            of the facet: is that entry the nearest of the facet's?
    """

    def __init__(self, word_vectors: Tensor, facets: Mapping[str, Sequence[int]] | None = None) -> None:
        self.units = unit_rows(word_vectors.detach(), torch.float32)
        self.facets = {name: list(columns) for name, columns in (facets or {}).items()}
        words = len(word_vectors)
        # patches and cosine; patches and hits of each facet; patches of each rank; five sums of each label
        self._sizes = [2, 2 * len(self.facets), words, 5 * words]
        self.sums = torch.zeros(sum(self._sizes), dtype=torch.float64)
        """Plain sums, on the CPU, the number of patches first: over several processes, all-reduce them in place and
        read `result` after."""

    @torch.no_grad()
    def update(self, patch_embeds: Tensor, targets: Tensor) -> None:
        """Add labelled patches [N', D] with their right entries [N', V] bool; errors as in `label_ranks`."""
        _check(patch_embeds, self.units, targets)
        words = len(self.units)
        for rows, cosine in _cosines(patch_embeds, self.units):
            right = targets[rows]
            row, column, value, place = _pair_ranks(cosine, right)
            best, rank = _nearest_right(len(right), row, value, place)
            facets = []
            for columns in self.facets.values():
                one = right[:, columns].sum(-1) == 1
                _, _, _, among = _pair_ranks(cosine[one][:, columns], right[one][:, columns])
                facets += [one.sum(), (among <= 1).sum()]
            of_pairs = torch.stack([torch.ones_like(value), value, 1 / place, place <= 1, place <= 5]).double()
            labels = of_pairs.new_zeros(5, words).index_add_(1, column, of_pairs)
            parts = [
                torch.stack([best.new_tensor(len(right), dtype=torch.float64), best.double().sum()]),
                torch.stack(facets).double() if facets else best.new_zeros(0, dtype=torch.float64),
                torch.bincount(rank - 1, minlength=words).double(),
                labels.flatten(),
            ]
            self.sums += torch.cat(parts).cpu()

    def result(self) -> dict[str, float]:
        """patches, patch_cosine, hit_at_1, hit_at_5, hit_at_10, mean_reciprocal_rank, mean_rank, median_rank; per
        facet hit_<facet> and patches_<facet>.

        Hits and ranks are of each patch's nearest right entry, as in `label_ranks`. The median of an even number of
        ranks is the mean of the middle two. A facet without a single patch has `patches_<facet>` 0 and no hit rate.
        ValueError when no patch was added.
        """
        totals, facets, ranks, _ = self.sums.split(self._sizes)
        patches, cosine = totals.tolist()
        if not patches:
            raise ValueError("patch alignment of no patches: no region's label has a word of the vocabulary")
        places = torch.arange(1, len(ranks) + 1, dtype=torch.float64)
        result = {"patches": patches, "patch_cosine": cosine / patches}
        result |= {f"hit_at_{k}": float(ranks[:k].sum()) / patches for k in (1, 5, 10)}
        result["mean_reciprocal_rank"] = float((ranks / places).sum()) / patches
        result["mean_rank"] = float((ranks * places).sum()) / patches
        result["median_rank"] = _median(ranks)
        for facet, (seen, hits) in zip(self.facets, facets.view(-1, 2).tolist(), strict=True):
            result[f"patches_{facet}"] = seen
            if seen:
                result[f"hit_{facet}"] = hits / seen
        return result

    def ranks(self) -> Tensor:
        """How many patches have their nearest right entry at rank 1, 2, ... V: int64 [V]."""
        return self.sums.split(self._sizes)[2].round().long()

    def labels(self) -> dict[str, Tensor]:
        """The table of labels: columns of fp64 [V].

        patches: how many carry the entry. patch_cosine, mean_reciprocal_rank, hit_at_1, hit_at_5: means over these,
        of the entry's own cosine and rank; NaN without any. A patch's other right entries do not count against it.
        """
        patches, *sums = self.sums.split(self._sizes)[3].view(5, -1)
        names = ("patch_cosine", "mean_reciprocal_rank", "hit_at_1", "hit_at_5")
        return {"patches": patches.clone(), **{name: s / patches for name, s in zip(names, sums, strict=True)}}


def _check(patch_embeds: Tensor, word_vectors: Tensor, targets: Tensor) -> None:
    expected = (len(patch_embeds), len(word_vectors))
    if tuple(targets.shape) != expected or patch_embeds.shape[-1] != word_vectors.shape[-1]:
        raise ValueError(
            f"patches {tuple(patch_embeds.shape)} and words {tuple(word_vectors.shape)} need targets {expected} "
            f"and one width; the targets are {tuple(targets.shape)}"
        )
    empty = int((~targets.any(-1)).sum()) if len(targets) else 0
    if empty:
        raise ValueError(f"{empty} of {len(targets)} patches have no right entry; give labelled patches only")
    if not bool(torch.isfinite(patch_embeds).all()) or not bool(torch.isfinite(word_vectors).all()):
        raise ValueError("patches or words hold NaN or infinite values")


def _cosines(patch_embeds: Tensor, units: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of patches, and their fp32 cosines [n, V] to all words."""
    for rows in row_slices(len(patch_embeds), max(units.shape)):
        with torch.autocast(device_type=patch_embeds.device.type, enabled=False):
            yield rows, unit_rows(patch_embeds[rows], torch.float32) @ units.T


def _pair_ranks(cosine: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each right entry of each patch: row, column, its cosine, and 1 + how many wrong entries are as near."""
    row, column = targets.nonzero(as_tuple=True)
    value = cosine[row, column]
    wrong = cosine.masked_fill(targets, float("-inf"))
    place = torch.ones_like(row)
    for part in row_slices(len(row), cosine.shape[1]):
        place[part] += (wrong[row[part]] >= value[part].unsqueeze(-1) - TIE).sum(-1)
    return row, column, value, place


def _nearest_right(patches: int, row: Tensor, value: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Of each patch's right entries, as `_pair_ranks` lists them, the highest cosine [P] and its rank [P]."""
    best = value.new_full((patches,), -2.0).scatter_reduce_(0, row, value, "amax")  # -2 is below any cosine
    rank = place.new_full((patches,), torch.iinfo(torch.int64).max).scatter_reduce_(0, row, place, "amin")
    return best, rank


def _median(counts: Tensor) -> float:
    """Median of whole numbers from 1, given how often each occurs."""
    total = int(counts.sum())
    below = counts.cumsum(0)
    low, high = (int((below < place).sum()) + 1 for place in ((total + 1) // 2, total // 2 + 1))
    return (low + high) / 2
