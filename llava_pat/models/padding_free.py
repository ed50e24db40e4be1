"""The sequences of a batch end to end in one row, without padding; each attends to itself alone and counts from 0.

The name is TRL's (`SFTConfig.padding_free`). Loss and gradients are those of the padded batch: the same samples, the
same positions, in another layout. How the boundaries reach the attention, by the language model's implementation:

    sdpa               a causal call for each sequence (sequence_attention.py): no mask is built, and nothing between
                       them computed. docs/performance.md has what transformers' block mask of the row would cost.
    flash_attention_2  one varlen call for the row, from transformers' `cu_seq_lens_q` and its companions
    eager              transformers' block mask, which it builds from positions that start again: correct, but time and
                       memory grow with the square of the row

Letters as in llava_pat/types.py, and S: positions of a batch that are no padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from llava_pat.models.sequence_attention import BY_SEQUENCE, WAY_OUT
from llava_pat.types import DataError

if TYPE_CHECKING:
    from llava_pat.models.vlm import VisionLanguageModel

_IMPLEMENTATIONS = {"sdpa": BY_SEQUENCE, "flash_attention_2": "flash_attention_2", "eager": "eager"}
_LAYERS = {"full_attention", "sliding_attention"}
_MOST_LEAK = 0.1


@dataclass(frozen=True)
class Padded:
    """The layout that a batch comes in: every sequence a row, as long as the longest."""

    attention_mask: Tensor  # [B, T]

    def arrange(self, values: Tensor) -> Tensor:
        """[B, T] as it is."""
        return values

    def arguments(self) -> dict[str, Any]:
        """What a decoder is told beside `inputs_embeds`."""
        return {"attention_mask": self.attention_mask}

    def restore(self, values: Tensor) -> Tensor:
        """[B, T, D] as it is."""
        return values


@dataclass(frozen=True)
class EndToEnd:
    """The layout without padding: one row of S positions, sequence after sequence."""

    places: Tensor  # [S] int64: where the row's positions stand in the padded batch, counted over B * T
    lengths: tuple[int, ...]  # of the sequences; their sum is S
    shape: tuple[int, int]  # B, T
    implementation: str

    @classmethod
    def of(cls, attention_mask: Tensor, implementation: str) -> EndToEnd:
        """attention_mask [B, T]: what is no padding. implementation: the decoder's attention."""
        real = attention_mask.bool()
        lengths = tuple(length for length in real.sum(1).tolist() if length)
        return cls(real.flatten().nonzero().squeeze(1), lengths, tuple(real.shape), implementation)

    def arrange(self, values: Tensor) -> Tensor:
        """[B, T] -> [1, S]."""
        return values.flatten()[self.places].unsqueeze(0)

    def arguments(self) -> dict[str, Any]:
        """What a decoder is told beside `inputs_embeds`: positions that start again, no mask, and the boundaries."""
        device = self.places.device
        starts_again = torch.cat([torch.arange(length, device=device) for length in self.lengths]).unsqueeze(0)
        arguments: dict[str, Any] = {"attention_mask": None, "position_ids": starts_again}
        if self.implementation == BY_SEQUENCE:
            arguments["sequence_lengths"] = self.lengths
        elif self.implementation == "flash_attention_2":
            # Without them every layer would find the boundaries again, and wait for the GPU to do it.
            ends = F.pad(torch.tensor(self.lengths, device=device).cumsum(0, dtype=torch.int32), (1, 0))
            arguments |= dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), ends)
            arguments |= dict.fromkeys(("max_length_q", "max_length_k"), max(self.lengths))
        return arguments

    def restore(self, values: Tensor) -> Tensor:
        """[1, S, D] -> [B, T, D], zeros on padding."""
        padded = values.new_zeros(self.shape[0] * self.shape[1], values.shape[-1])
        return padded.index_copy(0, self.places, values[0]).view(*self.shape, -1)


def prepare(llm: PreTrainedModel) -> str:
    """Switch the language model to the attention that keeps sequences apart; returns its name.

    DataError for what is known not to keep them apart; `check_boundaries` sees the rest.
    """
    kind, config = llm.config.model_type, llm.config.to_dict()
    others = set(config.get("layer_types") or ()) - _LAYERS
    if others:
        raise DataError(
            f"--padding_free True: {kind} has layers of the kind {', '.join(sorted(others))}, which would run on from "
            f"one sequence into the next; {WAY_OUT}"
        )
    if "position_ids" not in inspect.signature(llm.get_decoder().forward).parameters:
        raise DataError(
            f"--padding_free True: {kind} takes no position_ids, so it cannot be told where a sequence begins; "
            f"{WAY_OUT}"
        )
    now = llm.config._attn_implementation
    wanted = _IMPLEMENTATIONS[now]
    if wanted != now:
        llm.set_attn_implementation(wanted)
        if llm.config._attn_implementation != wanted:
            raise DataError(
                f"--padding_free True: {kind} does not take its attention from transformers' AttentionInterface; "
                f"{WAY_OUT}, or with --attn_implementation eager"
            )
    return wanted


@torch.no_grad()
def check_boundaries(
    model: VisionLanguageModel, ask: Callable[[Callable[[VisionLanguageModel], Any]], Any] | None = None
) -> None:
    """See for a few words that no sequence depends on the one before it. DataError if it does.

    The second of two sequences is read behind one first sequence and behind another. What it then differs by must be
    next to nothing of what it differs by where the two are one sequence. (Nothing at all, but for kernels that look at
    the whole row, such as int8's.) ask: as Probe.measure has it. Draws no random numbers.
    """
    ask = (lambda question: question(model)) if ask is None else ask
    device = model.llm.device
    words = torch.linspace(1, model.vocab_size - 1, 12, device=device).long().view(3, 4)
    first, other, second = words
    patches = torch.zeros(0, model.num_patches, model.hidden_size, device=device)

    def second_behind(before: Tensor, apart: bool) -> Tensor:
        ids = torch.stack((before, second)) if apart else torch.cat((before, second)).unsqueeze(0)
        hidden = ask(lambda asked: asked.forward_hidden(ids, torch.ones_like(ids), patches))
        return hidden.flatten(0, 1)[len(before) :].float()

    was_training = model.training
    model.eval()
    leak, whole = (
        torch.linalg.vector_norm(second_behind(first, apart) - second_behind(other, apart)).item()
        for apart in (True, False)
    )
    model.train(was_training)
    if leak > _MOST_LEAK * whole:
        raise DataError(
            f"--padding_free True: in {model.llm.config.model_type} a sequence depends on the one before it (hidden "
            f"states move by {leak:.3g}; in one sequence, where they may, by {whole:.3g}); {WAY_OUT}"
        )
