"""The shared core of contrastive objectives: pairs of a patch and a word, over all ranks, with repeated words in mind.

Every rank holds its own pairs and computes its own share of ONE loss over the pairs of all ranks:

    total_r = sum over the rank's pairs i of l_i;  l_i: patch i among all words, and word i among all patches
    loss    = sum_r total_r / M,  M pairs on all R ranks

Why the gradient comes out right under DDP and DeepSpeed, which average gradients over ranks: rank r minimises
L_r = total_r / (M / R), so the average of the gradients is that of (1/R) sum_r L_r = sum_r total_r / M. But total_r
depends on the patches of every rank s. Rank s must therefore receive d(sum_r total_r)/d(its rows): the backward of
`gather_rows` adds up what all ranks send to a row. Own parameters (the temperature) need nothing: they enter each
total_r, and the average is the derivative of the same mean. With one process all of this is the plain loss.

Everything is fp32, or fp64 where that comes in. Letters of the shapes: llava_pat/types.py, and

    P  pairs of this rank            M  pairs of all ranks, rank after rank
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

SDM_EPS = 1e-8  # as IRRA's code, beneath the logarithm of a target share of 0
LOSSES = ("infonce", "sdm")


@dataclass(frozen=True)
class Contrast:
    """What a rank's pairs amount to, among the pairs of all ranks."""

    total: Tensor  # scalar: sum over the rank's own pairs, with the graph to the patches of all ranks
    right: Tensor  # scalar, detached: own pairs whose patch is nearer to its word than to every other word


def ranks() -> tuple[int, int]:
    """(this rank, how many there are); (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def gather_sizes(size: int, device: torch.device) -> list[int]:
    """Everybody's `size`, in order of ranks. A collective call: every rank, equally often."""
    _, world = ranks()
    if world == 1:
        return [size]
    mine = torch.tensor([size], dtype=torch.int64, device=device)
    everyone = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(everyone, mine)
    return [int(entry) for entry in everyone]


def gather_rows(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows of all ranks, rank after rank: [P, ...] -> [M, ...], on every rank. Collective, and so is its backward.

    The gradient of a row is the sum of what all ranks send to it. A rank without rows takes part.

    Args:
        rows: this rank's, of the same width and dtype everywhere.
        sizes: how many rows each rank has (`gather_sizes`).
    """
    return rows if len(sizes) == 1 else _GatherRows.apply(rows, tuple(sizes))


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.sizes = sizes
        padded = rows.new_zeros((max(sizes), *rows.shape[1:]))  # collectives want equal shapes
        padded[: len(rows)] = rows
        everyone = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everyone, padded)
        return torch.cat([part[:size] for part, size in zip(everyone, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        start = own_start(ctx.sizes)
        return gradient[start : start + ctx.sizes[dist.get_rank()]], None


def own_start(sizes: Sequence[int]) -> int:
    """Where this rank's rows begin among the gathered ones."""
    return sum(sizes[: ranks()[0]])


def contrast(
    patches: Tensor, words: Tensor, ids: Tensor, scale: Tensor, sizes: Sequence[int], loss: str = "infonce"
) -> Contrast:
    """This rank's share of a symmetric contrastive loss between the patches and the words of all ranks. Collective.

    With s_ij = scale * cos(patch i, word j) and w_i the word of pair i:

    infonce (SEA's eq. 11, CLIP's form): l_i = (ce(s_i., i) + ce(s_.i, i)) / 2, ce the cross entropy of a softmax. Pairs
    of the same word are no negatives of each other: j with w_j = w_i and j != i is left out of both sums.

    sdm (similarity distribution matching, IRRA, arXiv 2303.12501):
    l_i = KL(softmax(s_i.) || q_i) + KL(softmax(s_.i) || q_i) with q_ij = [w_i = w_j] / number of pairs of that word.
    Nothing is left out: pairs of a word share its mass.

    Args:
        patches: [P, D], length 1, with gradient.
        words: [P, D], length 1; row i belongs to patch i. May carry a gradient on all ranks or on none.
        ids: [P] int64, equal where the words are the same, over all ranks.
        scale: positive scalar, with or without gradient.
        sizes: P of every rank.
        loss: "infonce" or "sdm".

    Needs [P, M] numbers a few times over.
    """
    all_patches, all_words, all_ids = (gather_rows(rows, sizes) for rows in (patches, words, ids))
    to_words = scale * (patches @ all_words.T)  # [P, M]
    to_patches = scale * (words @ all_patches.T)  # [P, M]
    column = own_start(sizes) + torch.arange(len(ids), device=ids.device)
    same = ids.unsqueeze(1) == all_ids.unsqueeze(0)
    if loss == "infonce":
        own = torch.zeros_like(same).scatter_(1, column.unsqueeze(1), True)
        total = sum(_cross_entropies(scores, column, same & ~own) for scores in (to_words, to_patches)).sum() / 2
    else:
        target = same.to(to_words.dtype)
        log_target = (target / target.sum(1, keepdim=True) + SDM_EPS).log()
        total = sum(_divergences(scores, log_target) for scores in (to_words, to_patches)).sum()
    with torch.no_grad():
        nearest_wrong = to_words.masked_fill(same, -torch.inf).amax(1) if len(all_ids) else to_words.sum(1)
        right = (to_words.gather(1, column.unsqueeze(1)).squeeze(1) > nearest_wrong).sum()
    return Contrast(total, right)


def _cross_entropies(scores: Tensor, column: Tensor, left_out: Tensor) -> Tensor:
    """[P, M] -> [P]: -log softmax at `column`, without the columns that are left out."""
    scores = scores.masked_fill(left_out, -torch.inf)
    return scores.logsumexp(1) - scores.gather(1, column.unsqueeze(1)).squeeze(1)


def _divergences(scores: Tensor, log_target: Tensor) -> Tensor:
    """[P, M] -> [P]: KL of the rows' softmax from the target."""
    log_share = scores.log_softmax(1)
    return (log_share.exp() * (log_share - log_target)).sum(1)


def number_texts(texts: Tensor) -> Tensor:
    """[M, L] int64 token rows -> [M] int64: equal numbers for equal rows, the same on every rank with these rows."""
    if not len(texts):
        return texts.new_zeros(0)
    return torch.unique(texts, dim=0, return_inverse=True)[1]


def one_of_each(ids: Tensor, draws: Tensor) -> Tensor:
    """[M], [M] -> bool [M]: of the rows with the same id, the one with the largest draw (of equal draws, the first)."""
    order = torch.argsort(draws, descending=True, stable=True)
    order = order[torch.argsort(ids[order], stable=True)]  # by id, and within an id by draw
    ordered = ids[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return torch.zeros_like(first).scatter_(0, order, first)
