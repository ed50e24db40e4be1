"""Loss and projector gradient equal those of transformers' own LLaVA with the same weights."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from llava_pat.models.projectors import build_projector
from llava_pat.models.towers import VisionTower
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.types import IMAGE_TOKEN_INDEX

HF_IMAGE_ID = 49  # transformers spends a vocabulary id on the image; no text below uses it
HF_TO_OURS = {
    "linear_1.weight": "0.weight",
    "linear_1.bias": "0.bias",
    "linear_2.weight": "2.weight",
    "linear_2.bias": "2.bias",
}

PATCHES = [IMAGE_TOKEN_INDEX] * 4
BATCHES = {
    "one image": ([[1, *PATCHES, 5, 6, 7]], [[-100] * 5 + [5, 6, 7]]),
    "two images in a row, one in the next": (
        [[1, *PATCHES, 5, *PATCHES, 6, 7, 8], [1, 9, 10, *PATCHES, 11, 12, 13, 14, 15, 16]],
        [[-100] * 10 + [6, 7, 8], [-100, 9, 10] + [-100] * 5 + [12, 13, 14, 15, 16]],
    ),
    "padded, with a text-only row": (
        [[1, *PATCHES, 5, 6, 7], [1, 9, 10], [1, 3, *PATCHES, 11]],
        [[-100] * 5 + [5, 6, 7], [-100, -100, 10], [-100] * 6 + [11]],
    ),
}


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=50,
        initializer_range=0.4,
    )
    hf = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=HF_IMAGE_ID, vision_feature_layer=-2)
    ).eval()
    ours = VisionLanguageModel(
        VisionTower(CLIPVisionModel(vision)), build_projector("mlp2x_gelu", 16, 24), LlamaForCausalLM(text)
    ).eval()
    ours.tower.model.load_state_dict(hf.model.vision_tower.state_dict())
    ours.llm.model.load_state_dict(hf.model.language_model.state_dict())
    ours.llm.lm_head.load_state_dict(hf.lm_head.state_dict())
    torch.nn.init.normal_(
        hf.model.multi_modal_projector.linear_1.weight, std=0.5
    )  # hf starts it near 0, where errors hide
    torch.nn.init.normal_(hf.model.multi_modal_projector.linear_2.weight, std=0.5)
    ours.projector.load_state_dict({HF_TO_OURS[k]: v for k, v in hf.model.multi_modal_projector.state_dict().items()})
    return hf, ours


@pytest.mark.parametrize("name", BATCHES)
def test_loss_and_projector_gradient(pair, name):
    hf, ours = pair
    rows, targets = BATCHES[name]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in targets])
    assert labels.shape == ids.shape
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    pixels = torch.randn(sum(row.count(IMAGE_TOKEN_INDEX) for row in rows) // 4, 3, 28, 28)

    hf.zero_grad()
    hf_ids = ids.masked_fill(ids == IMAGE_TOKEN_INDEX, HF_IMAGE_ID)
    hf_loss = hf(input_ids=hf_ids, attention_mask=mask.long(), pixel_values=pixels, labels=labels).loss
    hf_loss.backward()

    ours.zero_grad()
    hidden = ours.forward_hidden(ids, mask, ours.project(ours.encode_images(pixels)))
    total, count = ours.caption_loss_sum(hidden, labels)
    (total / count).backward()

    assert total.dtype == torch.float32 and count.item() == (labels[:, 1:] != -100).sum().item()
    # fp32 and the same operations, up to lm_head's batch shape and the order of one sum: a few units in the last place
    torch.testing.assert_close(total / count, hf_loss, rtol=1e-6, atol=1e-6)
    for hf_name, our_name in HF_TO_OURS.items():
        expected = hf.model.multi_modal_projector.get_parameter(hf_name).grad
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(ours.projector.get_parameter(our_name).grad, expected, rtol=1e-5, atol=1e-6)
