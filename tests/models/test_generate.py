"""Greedy decoding against the plain loop: one forward of the whole sequence per new token."""

from __future__ import annotations

import pytest
import torch

from llava_pat.models.generate import greedy
from llava_pat.types import IMAGE_TOKEN_INDEX

NEVER = 49


@torch.no_grad()
def by_hand(model, ids, pixels, steps):
    ids = list(ids)
    for _ in range(steps):
        row = torch.tensor([ids])
        patches = model.project(model.encode_images(pixels))
        hidden = model.forward_hidden(row, torch.ones_like(row, dtype=torch.bool), patches)
        ids.append(int(model.llm.get_output_embeddings()(hidden[0, -1]).argmax()))
    return ids[-steps:]


@pytest.mark.parametrize("images", [0, 1, 2])
def test_equals_the_plain_loop(tiny_vlm, images):
    model = tiny_vlm().eval()
    pixels = torch.randn(images, 3, 28, 28)
    ids = [1, 7, *[IMAGE_TOKEN_INDEX] * (model.num_patches * images), 9]
    expected = by_hand(model, ids, pixels, 8)
    assert len(set(expected)) > 1 and NEVER not in expected
    assert greedy(model, torch.tensor([ids]), pixels, 8, [NEVER]) == expected
    end = expected[3]
    until = expected[: expected.index(end) + 1]
    assert greedy(model, torch.tensor([ids]), pixels, 8, [NEVER, end]) == until


def test_looks_at_the_image(tiny_vlm):
    model = tiny_vlm().eval()
    ids = torch.tensor([[1, *[IMAGE_TOKEN_INDEX] * model.num_patches, 9]])
    answers = {tuple(greedy(model, ids, torch.randn(1, 3, 28, 28) * 4, 8, [NEVER])) for _ in range(6)}
    assert len(answers) > 1


def test_refuses_a_batch_and_a_missing_image(tiny_vlm):
    model = tiny_vlm().eval()
    with pytest.raises(ValueError, match=r"one prompt.*\[2, 3\]"):
        greedy(model, torch.ones(2, 3, dtype=torch.int64), torch.zeros(0, 3, 28, 28), 4, [2])
    with pytest.raises(ValueError, match="4 image positions, but patch_embeds bring 0"):
        greedy(model, torch.full((1, 4), IMAGE_TOKEN_INDEX), torch.zeros(0, 3, 28, 28), 4, [2])
