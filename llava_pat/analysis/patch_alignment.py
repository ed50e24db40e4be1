"""Do projected patches lie where their labels' words lie? Cosine and hit rates, streamed over images.

The vocabulary's word vectors are means of the language model's input embeddings over each entry's tokens.
Definitions are this project's (arXiv 2505.17316 measures patch alignment; its formula was not at hand).
V entries of the vocabulary, N' labelled patches; other letters: see llava_pat/types.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LabelHits:
    """Sums over labelled patches; divide by `patches` for the means."""

    patches: int
    patch_cosine: float  # cosine to the nearest right entry
    hit_at_1: float  # patches whose nearest entry is right
    hit_at_5: float  # patches with a right entry among the five nearest


def label_hits(patch_embeds: Tensor, word_vectors: Tensor, targets: Tensor) -> LabelHits:
    """Compare labelled patches with all entries of the vocabulary.

    A hit at k: fewer than k wrong entries are as near as the nearest right one. A tie counts as a miss, so that
    vectors that have all collapsed to one point score 0 and not 1.

    Args:
        patch_embeds: [N', D] labelled patches only; N' may be 0.
        word_vectors: [V, D].
        targets: [N', V] bool, the right entries of each patch, at least one per row.

    Raises:
        ValueError: shapes that do not fit, a patch without a right entry, NaN or infinite vectors.
    """
    cosine = _cosines(patch_embeds, word_vectors, targets)
    best, wrong_as_near = _rank(cosine, targets)
    return LabelHits(
        patches=len(targets),
        patch_cosine=float(best.double().sum()),
        hit_at_1=float((wrong_as_near < 1).sum()),
        hit_at_5=float((wrong_as_near < 5).sum()),
    )


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
        `label_hits(patch_embeds[images, patches], word_vectors, targets)` fits. A patch under several regions has the
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

    Args:
        word_vectors: [V, D], one per entry of the vocabulary.
        facets: name -> column numbers of its entries (Vocabulary.facets). For a patch that carries exactly one entry
            of the facet: is that entry the nearest of the facet's?
    """

    def __init__(self, word_vectors: Tensor, facets: Mapping[str, Sequence[int]] | None = None) -> None:
        self.word_vectors = word_vectors.detach()
        self.facets = {name: list(columns) for name, columns in (facets or {}).items()}
        self.sums = torch.zeros(4 + 2 * len(self.facets), dtype=torch.float64)
        """Plain sums, on the CPU: over several processes, all-reduce them in place and read `result` after."""

    @torch.no_grad()
    def update(self, patch_embeds: Tensor, targets: Tensor) -> None:
        """Add labelled patches [N', D] with their right entries [N', V] bool; errors as in `label_hits`."""
        cosine = _cosines(patch_embeds, self.word_vectors, targets)
        best, wrong_as_near = _rank(cosine, targets)
        sums = [float(len(targets)), float(best.double().sum())]
        sums += [float((wrong_as_near < k).sum()) for k in (1, 5)]
        for columns in self.facets.values():
            one = targets[:, columns].sum(-1) == 1
            _, wrong = _rank(cosine[one][:, columns], targets[one][:, columns])
            sums += [float(one.sum()), float((wrong < 1).sum())]
        self.sums += torch.tensor(sums, dtype=torch.float64)

    def result(self) -> dict[str, float]:
        """patches, patch_cosine, hit_at_1, hit_at_5; per facet hit_<facet> and patches_<facet>.

        A facet without a single patch has `patches_<facet>` 0 and no hit rate. ValueError when no patch was added.
        """
        patches, *means = self.sums[:4].tolist()
        if not patches:
            raise ValueError("patch alignment of no patches: no region's label has a word of the vocabulary")
        names = ("patch_cosine", "hit_at_1", "hit_at_5")
        result = {"patches": patches, **{name: value / patches for name, value in zip(names, means, strict=True)}}
        for number, facet in enumerate(self.facets):
            seen, hits = self.sums[4 + 2 * number : 6 + 2 * number].tolist()
            result[f"patches_{facet}"] = seen
            if seen:
                result[f"hit_{facet}"] = hits / seen
        return result


def _cosines(patch_embeds: Tensor, word_vectors: Tensor, targets: Tensor) -> Tensor:
    """fp32 [N', V], after the checks."""
    expected = (len(patch_embeds), len(word_vectors))
    if tuple(targets.shape) != expected or patch_embeds.shape[-1] != word_vectors.shape[-1]:
        raise ValueError(
            f"patches {tuple(patch_embeds.shape)} and words {tuple(word_vectors.shape)} need targets {expected} "
            f"and one width; the targets are {tuple(targets.shape)}"
        )
    empty = int((~targets.any(-1)).sum()) if len(targets) else 0
    if empty:
        raise ValueError(f"{empty} of {len(targets)} patches have no right entry; give labelled patches only")
    with torch.no_grad(), torch.autocast(device_type=patch_embeds.device.type, enabled=False):
        cosine = F.normalize(patch_embeds.float(), dim=-1) @ F.normalize(word_vectors.float(), dim=-1).T
    if not bool(torch.isfinite(cosine).all()):
        raise ValueError("patches or words hold NaN or infinite values")
    return cosine


def _rank(cosine: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine of the nearest right entry [N'], and how many wrong entries are at least as near [N']."""
    best = cosine.masked_fill(~targets, -2.0).amax(-1)  # -2 is below any cosine
    return best, ((cosine >= best.unsqueeze(-1)) & ~targets).sum(-1)
