"""Cross entropy in pieces is cross entropy: loss, gradients, and how often the head is called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llava_pat.models import vlm as module
from llava_pat.types import IGNORE_INDEX

LABELS = torch.tensor([[0, 5, 6, IGNORE_INDEX, 7, 8, 9], [0, IGNORE_INDEX, 4, 3, 2, 1, IGNORE_INDEX]])
SUPERVISED = 9
WORDS = 50  # of tiny_vlm


def loss_and_gradients(model, dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(1)
    hidden = torch.randn(2, 7, 24, requires_grad=True)
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        total, count = model.caption_loss_sum(hidden, LABELS)
    assert float(count) == SUPERVISED
    (total / count).backward()
    found = {"loss": total.detach(), "hidden": hidden.grad}
    weight = model.llm.get_output_embeddings().weight
    return found if weight.grad is None else {**found, "head": weight.grad}


def calls_of_head(model) -> list[int]:
    rows: list[int] = []
    model.llm.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    return rows


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("positions", [1, 4, 8])
def test_in_pieces_it_is_the_same(
    tiny_vlm, monkeypatch: pytest.MonkeyPatch, positions: int, dtype: torch.dtype, trained: bool
) -> None:
    model = tiny_vlm()
    model.set_trainable(llm=trained)
    whole = loss_and_gradients(model, dtype)
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", positions * WORDS)
    rows = calls_of_head(model)
    pieces = loss_and_gradients(model, dtype)
    assert pieces.keys() == whole.keys()
    assert max(rows) == positions and sum(rows) == 2 * SUPERVISED  # forward, and again backward
    for name, value in whole.items():
        # fp32: sums in another order; bf16: each piece's gradient of the head is rounded before they are added
        close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.002}
        torch.testing.assert_close(pieces[name], value, **close)


def test_what_fits_is_done_at_once(tiny_vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_vlm()
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", SUPERVISED * WORDS)
    rows = calls_of_head(model)
    loss_and_gradients(model, torch.float32)
    assert rows == [SUPERVISED]


def test_under_zero_3_every_rank_calls_the_head_once(tiny_vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call gathers the weights with all ranks, which have other numbers of positions: one more would hang them."""
    model = tiny_vlm()
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", WORDS)
    model.llm.get_output_embeddings().weight.ds_id = 7
    rows = calls_of_head(model)
    loss_and_gradients(model, torch.float32)
    assert rows == [SUPERVISED]


def test_it_saves_memory(tiny_vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers kept for the backward pass: the log-probabilities of all positions, or none of them."""
    model = tiny_vlm()
    model.set_trainable(llm=False)
    hidden = torch.randn(2, 7, 24, requires_grad=True)

    def kept_words() -> int:
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
        ):
            model.caption_loss_sum(hidden, LABELS)
        return sum(tensor.numel() for tensor in kept if tensor.shape[-1:] == (WORDS,))

    assert kept_words() >= SUPERVISED * WORDS
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 4 * WORDS)
    assert kept_words() == 0
