"""The order of training samples when batches are to hold one modality and similar lengths (LLaVA's recipe, stage 2).

A text-only sample in a batch of images costs what the images cost in padding: LLaVA reports about 25 % less time with
`--group_by_modality_length` (its README). The rule is LLaVA's (llava/train/llava_trainer.py), with one difference:
inside an optimizer step it deals long and short samples evenly to the batches, here neighbours in length share a batch.
A step's samples are as random a draw, so its gradient is the same; less of the batches is padding. Where batches are
not padded (--padding_free True) there is nothing to save by neighbours, and samples are dealt evenly, as LLaVA's are:
no rank then waits for another, and no batch is the longest of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class ModalityLengthSampler(Sampler[int]):
    """Indices in megabatches of one modality each, longest sample first inside a megabatch.

    lengths: of every sample, in positions or in anything that grows with them; multimodal: whether it has images.
    megabatch_size: samples of one optimizer step, world size x batch size x accumulation steps. The order is to be cut
    into batches that are dealt to the ranks in turn, which is what accelerate's BatchSamplerShard does; then a step has
    one modality on all ranks. What is left of the two modalities forms the last, possibly mixed, steps.
    even_batches: how many batches a megabatch is, where they are to take about as many positions each; None where
    neighbours in length are to share one.

    The order follows from `seed` and `set_epoch` alone: it is the same on every rank and after a resume, and draws from
    no global random state. Give the sampler to the loader once more after accelerate has prepared it
    (`loader.set_sampler(sampler)`): else accelerate forgets to pass the epoch on when a run of several processes
    resumes inside its second epoch or later (accelerate 1.15, DataLoaderShard.set_epoch behind a SkipBatchSampler).
    """

    def __init__(
        self,
        lengths: Sequence[int],
        multimodal: Sequence[bool],
        megabatch_size: int,
        seed: int,
        even_batches: int | None = None,
    ) -> None:
        if len(lengths) != len(multimodal):
            raise ValueError(f"{len(lengths)} lengths, but {len(multimodal)} samples are marked multimodal or not")
        if megabatch_size < 1:
            raise ValueError(f"megabatch_size is {megabatch_size}, it counts the samples of an optimizer step")
        if even_batches is not None and (even_batches < 1 or megabatch_size % even_batches):
            raise ValueError(
                f"even_batches is {even_batches}: a megabatch of {megabatch_size} is not cut into that many"
            )
        self.lengths = lengths
        self.multimodal = multimodal
        self.megabatch_size = megabatch_size
        self.seed = seed
        self.even_batches = even_batches
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration gives the order of this epoch (0 is the first)."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        whole: list[list[int]] = []
        rest: list[int] = []
        for modality in (True, False):
            indices = [index for index in order if bool(self.multimodal[index]) is modality]
            cut = len(indices) - len(indices) % self.megabatch_size
            whole += [indices[at : at + self.megabatch_size] for at in range(0, cut, self.megabatch_size)]
            rest += sorted(indices[cut:], key=self._longest_first)
        for number in torch.randperm(len(whole), generator=generator).tolist():
            megabatch = sorted(whole[number], key=self._longest_first)
            yield from megabatch if self.even_batches is None else self._dealt(megabatch, self.even_batches)
        yield from rest

    def _dealt(self, indices: list[int], batches: int) -> list[int]:
        """Each in turn, longest first, to the batch that is shortest so far and not full (LLaVA's rule)."""
        dealt: list[list[int]] = [[] for _ in range(batches)]
        taken = [0] * batches
        for index in indices:
            open_ = [number for number in range(batches) if len(dealt[number]) < len(indices) // batches]
            shortest = min(open_, key=taken.__getitem__)
            dealt[shortest].append(index)
            taken[shortest] += self.lengths[index]
        return [index for batch in dealt for index in batch]

    def _longest_first(self, index: int) -> tuple[int, int]:
        return -self.lengths[index], index
