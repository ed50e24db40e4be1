"""What patches are made of: sums over decompositions into words (matching_pursuit.py), compared with their labels.

The multi-semantic hypothesis of arXiv 2505.17316 says that a patch relates to several words; the overlap with several
labels is this project's way to look at it. K atoms, V words, P patches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llava_pat.analysis.matching_pursuit import Decomposition


class DecompositionScores:
    """Streaming means over patches: add decompositions of `atoms` atoms, read the result at the end."""

    def __init__(self, atoms: int) -> None:
        self.atoms = atoms
        # explained by 1 ... K atoms, patches, atoms; labelled patches, hits, recall, precision; several labels, recall
        self.sums = torch.zeros(atoms + 8, dtype=torch.float64)
        """Plain sums, on the CPU: over several processes, all-reduce them in place and read `result` after."""

    @torch.no_grad()
    def update(self, decomposition: Decomposition, targets: Tensor) -> None:
        """Add P patches with their right words, bool [P, V]; a patch without any counts for the energy only."""
        atoms = decomposition.atoms
        if atoms.shape != (len(targets), self.atoms) or targets.dim() != 2:
            raise ValueError(
                f"atoms {tuple(atoms.shape)} and targets {tuple(targets.shape)} do not fit "
                f"[P, {self.atoms}] and [P, V] of one P"
            )
        if len(atoms) and int(atoms.max()) >= targets.shape[1]:
            raise ValueError(f"atom {int(atoms.max())} is outside the {targets.shape[1]} words of the targets")
        # "minus a word" and a word that ended at 0 are not among the words that the patch shows
        shown = (atoms >= 0) & (decomposition.coefficients > 0)
        right = (targets.gather(1, atoms.clamp_min(0)) & shown).sum(-1).double()
        labels = targets.sum(-1)
        labelled, several = labels > 0, labels > 1
        recall = right / labels.clamp_min(1)
        precision = right / shown.sum(-1).clamp_min(1)
        counts = [
            torch.tensor(len(atoms), device=atoms.device),
            (atoms >= 0).sum(),
            labelled.sum(),
            (right[labelled] > 0).sum(),
            recall[labelled].sum(),
            precision[labelled].sum(),
            several.sum(),
            recall[several].sum(),
        ]
        explained = decomposition.explained.double().sum(0)
        self.sums += torch.cat([explained, torch.stack([count.double() for count in counts])]).cpu()

    def result(self) -> dict[str, float]:
        """Means over patches; ValueError when no patch was added.

        omp_patches; omp_explained_at_1 ... _K: share of the squared length that the first k atoms explain; omp_atoms:
        how many were taken. Over labelled patches (omp_labelled_patches), with the atoms of positive coefficient:
        omp_hit, the share of patches with a right word among them; omp_recall, the share of a patch's right words;
        omp_precision, the share of them that is right (0 without any). omp_recall_several: recall over patches with
        two right words or more (omp_several_patches). A mean over no patches is left out.
        """
        explained, rest = self.sums.split([self.atoms, 8])
        patches, atoms, labelled, hits, recall, precision, several, several_recall = rest.tolist()
        if not patches:
            raise ValueError("decomposition of no patches: nothing was added")
        result = {"omp_patches": patches, "omp_atoms": atoms / patches}
        result |= {f"omp_explained_at_{k}": value / patches for k, value in enumerate(explained.tolist(), start=1)}
        result |= {"omp_labelled_patches": labelled, "omp_several_patches": several}
        if labelled:
            result |= {"omp_hit": hits / labelled, "omp_recall": recall / labelled}
            result["omp_precision"] = precision / labelled
        if several:
            result["omp_recall_several"] = several_recall / several
        return result
