"""Matching pursuit of labelled patches into the tokenizer's words, summed over a sample of patches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llava_pat.analysis.decomposition import DecompositionScores
from llava_pat.analysis.matching_pursuit import matching_pursuit
from llava_pat.evaluation.alignment.readings import Readings
from llava_pat.evaluation.alignment.views import View

ATOMS = 5
SIGNS = {False: "", True: "_nonnegative"}
_NAMES = {
    "omp_hit": "omp_overlap",
    "omp_recall": "omp_recall",
    "omp_precision": "omp_precision",
    "omp_recall_several": "omp_recall_several",
}
"""DecompositionScores' name -> the report's."""


class Decompositions:
    """Explained energy and overlap with the labels, with coefficients of any sign and with non-negative ones.

    A patch's right words are the tokens of its labels that are words of the tokenizer, in whatever case; where none of
    them is, the patch counts for the energy only.
    """

    def __init__(self, readings: Readings) -> None:
        self.readings = readings
        self.atoms = min(ATOMS, len(readings.piece_ids))
        self.scores = {sign: DecompositionScores(self.atoms) for sign in SIGNS}
        self.columns = {token: column for column, token in enumerate(readings.piece_ids.tolist())}
        self.columns |= {token: self.columns[kept] for token, kept in readings.same_word.items()}

    def update(self, view: View, patch_embeds: Tensor) -> None:
        """Add the patches that the view chose, of patch_embeds [I, N, D]."""
        if not view.decomposed:
            return
        images, patches, tokens = zip(*view.decomposed, strict=True)
        chosen = patch_embeds[list(images), list(patches)].float()
        targets = torch.zeros(len(chosen), len(self.readings.piece_ids), dtype=torch.bool)
        for row, right in enumerate(tokens):
            targets[row, [self.columns[token] for token in right if token in self.columns]] = True
        targets = targets.to(chosen.device)
        for sign, scores in self.scores.items():
            scores.update(matching_pursuit(chosen, self.readings.piece_vectors, self.atoms, non_negative=sign), targets)

    def result(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Nothing when no patch was decomposed."""
        metrics: dict[str, float] = {}
        arrays: dict[str, np.ndarray] = {}
        for sign, ending in SIGNS.items():
            if not self.scores[sign].sums.any():
                continue
            found = self.scores[sign].result()
            explained = [found[f"omp_explained_at_{k}"] for k in range(1, self.atoms + 1)]
            arrays[f"omp_explained{ending}"] = np.array(explained)
            metrics["omp_patches"] = found["omp_patches"]
            metrics[f"omp_explained{ending}"] = explained[-1]
            metrics |= {f"{name}{ending}": found[theirs] for theirs, name in _NAMES.items() if theirs in found}
        return metrics, arrays
