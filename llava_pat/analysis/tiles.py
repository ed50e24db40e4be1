"""Patches against very many words, a tile at a time: the [P, V] matrix of all scores never exists.

5,000 images of 576 patches against 32,000 words would need 369 GB in fp32. P patches, V words; other letters: see
llava_pat/types.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

TILE_NUMBERS = 1 << 24
"""Most numbers of a tile, and of the rows it is made of: 64 MB in fp32."""
TILE_WORDS = 4096


def row_slices(rows: int, numbers_per_row: int) -> Iterator[slice]:
    """Slices that cover `rows` rows, each of at most TILE_NUMBERS numbers (but of one row at least)."""
    height = max(1, TILE_NUMBERS // max(1, numbers_per_row))
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))


def best_words(
    score: Callable[[slice, slice], Tensor], patches: int, words: int, width: int, k: int, keep: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k words of the highest score for each patch.

    Args:
        score: (slice of patches, slice of words) -> [p, v] scores of that tile.
        width: D, which bounds the height of a tile as V does.
        keep: [V] bool, the words that may be chosen; None: all.

    Returns:
        scores [P, k] falling, word numbers [P, k] int64. Which of several equal words comes first is not defined.

    Raises:
        ValueError: k < 1, or fewer than k words to choose from.
    """
    if keep is not None and (keep.dtype != torch.bool or tuple(keep.shape) != (words,)):
        raise ValueError(f"`keep` must be bool ({words},), one per word; it is {keep.dtype} {tuple(keep.shape)}")
    choices = words if keep is None else int(keep.sum())
    if not 1 <= k <= choices:
        raise ValueError(f"{k} words per patch asked for, of {choices} that may be chosen")
    values, numbers = [], []
    for rows in row_slices(patches, max(width, min(words, TILE_WORDS))):
        value = number = None
        for start in range(0, words, TILE_WORDS):
            columns = slice(start, min(start + TILE_WORDS, words))
            tile = score(rows, columns)
            if keep is not None:
                tile = tile.masked_fill(~keep[columns].to(tile.device), float("-inf"))
            best, where = tile.topk(min(k, tile.shape[1]), dim=-1)
            where = where + start
            if value is not None:
                best, where = torch.cat([value, best], -1), torch.cat([number, where], -1)
                best, order = best.topk(min(k, best.shape[1]), dim=-1)
                where = where.gather(-1, order)
            value, number = best, where
        values.append(value)
        numbers.append(number)
    if not values:
        empty = score(slice(0, 0), slice(0, 1))
        return empty.new_zeros(0, k), torch.zeros(0, k, dtype=torch.int64, device=empty.device)
    return torch.cat(values), torch.cat(numbers)
