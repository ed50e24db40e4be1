"""A patch as a sum of a few words: orthogonal matching pursuit of a patch into word embeddings.

Source: orthogonal matching pursuit (Pati, Rezaiifar, Krishnaprasad 1993). Take the word with the largest inner product
with what is left of the patch, fit all words taken so far again by least squares, and go on. With `non_negative`, the
largest positive inner product, and non-negative least squares (Lawson and Hanson 1974): a patch is then made of words
and never of "minus a word". The paper behind this project (arXiv 2505.17316) names matching pursuit; its procedure was
not at hand, so the numbers of atoms and the stop are ours.
P patches, V words, K atoms; other letters: see llava_pat/types.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llava_pat.analysis.tiles import best_words, row_slices
from llava_pat.analysis.vectors import check_vectors, unit_rows, working_dtype

NO_GAIN = 1e-6
"""An inner product of this share of the patch's length is fp32 rounding: no word helps any more."""


@dataclass(frozen=True)
class Decomposition:
    """patch = sum_k coefficients[k] * unit(word atoms[k]) + what is left, atoms in the order they were taken."""

    atoms: Tensor  # [P, K] int64 word numbers; -1 where the pursuit had stopped
    coefficients: Tensor  # [P, K] of the final fit, in the patch's units; 0 where there is no atom
    explained: Tensor  # [P, K] in [0, 1]: share of the squared length explained by the first 1, 2, ... K atoms


@torch.no_grad()
def matching_pursuit(
    patch_embeds: Tensor,
    word_vectors: Tensor,
    atoms: int = 5,
    stop_at: float = 0.05,
    non_negative: bool = False,
    keep: Tensor | None = None,
) -> Decomposition:
    """Decompose each patch into at most `atoms` words.

    Args:
        patch_embeds: [P, D]; word_vectors: [V, D], brought to length 1 here. The search runs in fp32 (fp64 if one of
            them is fp64), the fits in fp64.
        stop_at: a patch is done when at most this share of its squared length is left (0: only when nothing is).
        non_negative: coefficients >= 0. A word taken early may end at 0 and still keeps its place.
        keep: [V] bool, the words that may be taken.

    A patch stops early, too, when no word that may be taken has an inner product with what is left. A zero patch has
    no atoms and 0 explained.

    Raises:
        ValueError: widths that differ, NaN or infinite values, atoms < 1, stop_at outside [0, 1).
    """
    check_vectors(patch_embeds, word_vectors)
    if atoms < 1 or not 0.0 <= stop_at < 1.0:
        raise ValueError(
            f"need atoms >= 1 and stop_at, a share of the squared length, in [0, 1); got {atoms}, {stop_at}"
        )
    width = patch_embeds.shape[1]
    with torch.autocast(device_type=patch_embeds.device.type, enabled=False):
        parts = [
            _pursue(patch_embeds[rows], word_vectors, atoms, stop_at, non_negative, keep)
            for rows in row_slices(len(patch_embeds), 2 * max(1, atoms) * width)  # fp64: two numbers' room each
        ] or [_pursue(patch_embeds, word_vectors, atoms, stop_at, non_negative, keep)]
    dtype = working_dtype(patch_embeds, word_vectors)
    return Decomposition(
        torch.cat([part.atoms for part in parts]),
        torch.cat([part.coefficients for part in parts]).to(dtype),
        torch.cat([part.explained for part in parts]).to(dtype),
    )


def _pursue(
    patch_embeds: Tensor, word_vectors: Tensor, atoms: int, stop_at: float, non_negative: bool, keep: Tensor | None
) -> Decomposition:
    dtype = working_dtype(patch_embeds, word_vectors)
    patches = patch_embeds.double()
    count, width = patches.shape
    energy = patches.square().sum(-1)
    taken = torch.full((count, atoms), -1, dtype=torch.int64, device=patches.device)
    coefficients = patches.new_zeros(count, atoms)
    explained = patches.new_zeros(count, atoms)
    directions = patches.new_zeros(count, atoms, width)
    left = patches.clone()
    share = patches.new_zeros(count)
    going = energy > 0
    for step in range(atoms):
        rows = going.nonzero().squeeze(-1)
        if not len(rows):
            explained[:, step:] = share.unsqueeze(-1)
            break
        value, word = _best_word(left[rows].to(dtype), word_vectors, dtype, taken[rows, :step], non_negative, keep)
        helps = value.double() > NO_GAIN * energy[rows].sqrt()
        going[rows[~helps]] = False
        rows, word = rows[helps], word[helps]
        taken[rows, step] = word
        directions[rows, step] = unit_rows(word_vectors[word], torch.float64)
        basis = directions[rows, : step + 1]
        gram, right = basis @ basis.mT, (basis @ patches[rows].unsqueeze(-1)).squeeze(-1)
        fit = non_negative_fit(gram, right) if non_negative else _solve(gram, right)
        coefficients[rows, : step + 1] = fit
        left[rows] = patches[rows] - (fit.unsqueeze(-2) @ basis).squeeze(-2)
        share[rows] = (1.0 - left[rows].square().sum(-1) / energy[rows]).clamp(0.0, 1.0)
        going[rows] = share[rows] < 1.0 - stop_at
        explained[:, step] = share
    return Decomposition(taken, coefficients, explained)


def _best_word(
    left: Tensor, word_vectors: Tensor, dtype: torch.dtype, taken: Tensor, signed: bool, keep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Largest inner product (signed, or by size) [p] and its word [p]; never a word already taken [p, step] (under
    TF32, which is coarser than NO_GAIN, its product with what is left is not quite 0)."""

    def products(rows: slice, columns: slice) -> Tensor:
        tile = left[rows] @ unit_rows(word_vectors[columns], dtype).T
        tile = tile if signed else tile.abs()
        inside = (taken[rows] >= columns.start) & (taken[rows] < columns.stop)
        row, slot = inside.nonzero(as_tuple=True)
        tile[row, taken[rows][row, slot] - columns.start] = float("-inf")
        return tile

    value, word = best_words(products, len(left), len(word_vectors), left.shape[1], 1, keep)
    return value.squeeze(-1), word.squeeze(-1)


def _solve(gram: Tensor, right: Tensor) -> Tensor:
    """Least squares from the normal equations; the smallest solution where words are linearly dependent."""
    return (torch.linalg.pinv(gram, hermitian=True) @ right.unsqueeze(-1)).squeeze(-1)


def non_negative_fit(gram: Tensor, right: Tensor) -> Tensor:
    """argmin |A c - y|^2 over c >= 0 for many small problems at once, from A^T A and A^T y.

    Source: the active-set method of Lawson and Hanson (1974), in the form that needs the normal equations only (Bro
    and de Jong 1997).

    Args:
        gram: [P, k, k] fp64; right: [P, k] fp64.

    Returns:
        [P, k] fp64, >= 0.
    """
    tolerance = 1e-12 * right.abs().amax(-1, keepdim=True)
    free = torch.zeros_like(right, dtype=torch.bool)
    current = torch.zeros_like(right)
    for _ in range(3 * right.shape[-1]):  # Lawson and Hanson's own bound
        gradient = (right - (gram @ current.unsqueeze(-1)).squeeze(-1)).masked_fill(free, float("-inf"))
        rows = (gradient > tolerance).any(-1).nonzero().squeeze(-1)
        if not len(rows):
            break
        free[rows, gradient[rows].argmax(-1)] = True
        while len(rows):
            inside = free[rows]
            fit = _solve_within(gram[rows], right[rows], inside)
            negative = inside & (fit <= 0)
            good = ~negative.any(-1)
            current[rows[good]] = fit[good]
            rows, fit, negative = rows[~good], fit[~good], negative[~good]
            old = current[rows]
            # the furthest step from the old point towards the fit on which nothing turns negative
            ratio = torch.where(negative, old / (old - fit).clamp_min(1e-300), float("inf"))
            step = ratio.amin(-1, keepdim=True)
            current[rows] = (old + step * (fit - old)).clamp_min(0.0).masked_fill(ratio <= step, 0.0)
            free[rows] = inside[~good] & (current[rows] > 0)
    return current


def _solve_within(gram: Tensor, right: Tensor, inside: Tensor) -> Tensor:
    """Least squares over the coefficients in `inside` [P, k]; 0 for the others."""
    both = inside.unsqueeze(-1) & inside.unsqueeze(-2)
    return _solve(gram.masked_fill(~both, 0.0), right.masked_fill(~inside, 0.0)).masked_fill(~inside, 0.0)
