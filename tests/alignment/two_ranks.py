"""What test_two_ranks.py runs on two processes: python -m torch.distributed.run --nproc_per_node 2 two_ranks.py OUT.pt

Everything is wrapped as DDP wraps it, or averaged over ranks as DDP does; rank 0 writes what came out.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from llava_pat.alignment import build_objective, sea
from llava_pat.alignment.contrastive import contrast, gather_sizes, ranks
from llava_pat.types import AlignmentInputs, PatchWords

SIZES = ((5, 3), (0, 6), (4, 0))  # pairs of each rank
CORE = [(loss, sizes) for loss in ("infonce", "sdm") for sizes in SIZES]

IMAGES, N, DV, D, WORDS = 2, 9, 5, 6, 6
TABLE = torch.randn(20, D, generator=torch.Generator().manual_seed(3))
TEXTS = [[4], [5, 6], [7, 8, 9], [4, 5], [10], [11, 12]]
# name -> keywords, and the words that each rank's patches may have
OBJECTIVES = {
    "mask": ({"dedup": "mask"}, (range(6), range(6))),
    "mask-sdm": ({"dedup": "mask", "loss": "sdm", "sampling": "mean"}, (range(6), range(6))),
    "one": ({"dedup": "one"}, (range(6), range(6))),
    "one-sided": ({"dedup": "one"}, (range(6), ())),
    "across": ({"dedup": "mask"}, (range(1, 2), range(2, 3))),  # nothing to contrast on either rank alone
    "nothing": ({"dedup": "mask"}, (range(1, 2), range(1, 2))),  # the same word everywhere
    "empty": ({}, ((), ())),
}


class Core(nn.Module):
    """Rows through a matrix, contrasted; fp64."""

    def __init__(self, loss: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(DV, D, generator=generator, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.loss = loss

    def forward(self, rows: Tensor, words: Tensor, ids: Tensor) -> Tensor:
        """The rank's loss, as the trainer divides it: total / (M / R)."""
        sizes = gather_sizes(len(rows), rows.device)
        found = contrast(normalize(rows @ self.matrix, dim=-1), words, ids, self.log_scale.exp(), sizes, self.loss)
        return found.total / (sum(sizes) / ranks()[1])


def core_data() -> tuple[Tensor, Tensor, Tensor]:
    """Rows, word vectors and word numbers of the pairs of both ranks; word 1 comes often."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(8, DV, generator=generator, dtype=torch.float64)
    ids = torch.tensor([1, 0, 1, 2, 1, 0, 3, 1])
    table = normalize(torch.randn(4, D, generator=generator, dtype=torch.float64), dim=-1)
    return rows, table[ids], ids


def run_core(loss: str, sizes: tuple[int, ...], rank: int | None) -> dict[str, Tensor]:
    """rank None: one process on all pairs. Loss and gradients are averaged over ranks."""
    model = Core(loss)
    start = 0 if rank is None else sum(sizes[:rank])
    stop = sum(sizes) if rank is None else start + sizes[rank]
    value = model(*(part[start:stop] for part in core_data()))
    value.backward()
    return {"loss": averaged(value), "matrix": averaged(model.matrix.grad), "scale": averaged(model.log_scale.grad)}


def averaged(value: Tensor) -> Tensor:
    value = value.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


class Projected(nn.Module):
    """Features through a projector into an objective: the trainer's step without the rest."""

    def __init__(self, keywords: dict) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projector = nn.Linear(DV, D)
        self.objective = build_objective("sea", **keywords)

    def forward(self, features: Tensor, words: PatchWords) -> tuple[Tensor, dict[str, Tensor]]:
        text = torch.zeros(len(features), 1, dtype=torch.int64)
        patches = self.projector(features)
        aligned = self.objective(
            AlignmentInputs(features, patches, lambda ids: TABLE[ids], text, text.bool(), None, words)
        )
        sums = {"total": aligned.total.detach(), "count": aligned.count, **aligned.metrics, **aligned.counters}
        return aligned.total / (aligned.divisor if aligned.divisor > 0 else 1.0), sums


def images_of(rank: int, allowed) -> tuple[Tensor, PatchWords]:
    """A rank's images: features, and words whose numbers and padding differ from the other rank's."""
    generator = torch.Generator().manual_seed(10 + rank)
    features = torch.randn(IMAGES, N, DV, generator=generator)
    pool = torch.tensor(list(allowed), dtype=torch.int64)
    words = torch.full((IMAGES, N, 2), -1, dtype=torch.int64)
    if len(pool):
        words[..., 0] = pool[torch.randint(len(pool), (IMAGES, N), generator=generator)]
        words[0, :3] = -1  # some patches have none
    scores = torch.where(words >= 0, torch.rand(IMAGES, N, 2, generator=generator) + 0.1, 0.0)
    order = torch.randperm(WORDS, generator=generator)  # another order of the table on each rank
    longest = 3 + rank
    ids, mask = torch.zeros(WORDS, longest, dtype=torch.int64), torch.zeros(WORDS, longest, dtype=torch.bool)
    for place, number in enumerate(order.tolist()):
        ids[place, : len(TEXTS[number])] = torch.tensor(TEXTS[number])
        mask[place, : len(TEXTS[number])] = True
    renumbered = torch.where(words >= 0, torch.argsort(order)[words.clamp_min(0)], -1)
    return features, PatchWords(renumbered, scores, ids, mask)


def together(images: list[tuple[Tensor, PatchWords]]) -> tuple[Tensor, PatchWords]:
    """The images of all ranks as one batch."""
    longest = max(words.word_ids.shape[1] for _, words in images)
    texts = [nn.functional.pad(words.word_ids, (0, longest - words.word_ids.shape[1])) for _, words in images]
    masks = [nn.functional.pad(words.word_mask, (0, longest - words.word_mask.shape[1])) for _, words in images]
    shifted = [torch.where(words.words >= 0, words.words + WORDS * i, -1) for i, (_, words) in enumerate(images)]
    scores = torch.cat([words.scores for _, words in images])
    return torch.cat([features for features, _ in images]), PatchWords(
        torch.cat(shifted), scores, torch.cat(texts), torch.cat(masks)
    )


def run_objective(name: str, rank: int | None) -> dict[str, Tensor]:
    """The objective on a rank's images, or with rank None on those of both; every random choice the same in both."""
    keywords, allowed = OBJECTIVES[name]
    images = [images_of(r, allowed[r]) for r in range(2)]
    pairs = [int((words.words[..., 0] >= 0).sum()) for _, words in images]
    draws = torch.randperm(sum(pairs), generator=torch.Generator().manual_seed(7))
    own = draws if rank is None else draws.split(pairs)[rank]
    sea._draws = lambda size, device: own[:size]
    module = Projected({"window": 0, "sampling": "best", "init_log_scale": 2.0} | keywords)
    wrapped = module if rank is None else DistributedDataParallel(module)
    loss, sums = wrapped(*(together(images) if rank is None else images[rank]))
    loss.backward()
    found = {key: parameter.grad for key, parameter in module.named_parameters()}
    found["loss"] = averaged(loss)
    world = ranks()[1]
    return found | {f"sum of {key}": averaged(value) * world for key, value in sums.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    here = dist.get_rank()
    results = {f"{loss} {sizes}": run_core(loss, sizes, here) for loss, sizes in CORE}
    results |= {name: run_objective(name, here) for name in OBJECTIVES}
    if here == 0:
        torch.save(results, sys.argv[1])
    dist.barrier()  # else the faster rank ends while the other still talks to it
    dist.destroy_process_group()
