"""LLaVA's own trained checkpoint in our classes gives the logits that LLaVA's own code computed from it."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from llava_pat.models.checkpoint import load_projector
from llava_pat.models.loading import load_image_processor
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.types import IMAGE_TOKEN_INDEX


@pytest.fixture(scope="module")
def written_here(request):
    return request.path.parents[1] / "assets" / "llava_written"


@pytest.fixture(scope="module")
def llava(written_here):
    model = VisionLanguageModel.from_pretrained(str(written_here / "clip"), str(written_here / "llm"))
    checkpoint = load_file(written_here / "llava-v1.5-tiny" / "model.safetensors")
    language = {k: v for k, v in checkpoint.items() if "mm_projector" not in k and "vision_tower" not in k}
    model.llm.load_state_dict(language, strict=True)
    report = load_projector(written_here / "llava-v1.5-tiny" / "model.safetensors", model.projector)
    assert len(report.ignored) == len(checkpoint) - 4
    return model.eval(), load_image_processor(str(written_here / "clip"), model.image_size)


def padded(image, processor):
    image = image.convert("RGB")
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in processor.image_mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return torch.from_numpy(processor(square)["pixel_values"][0])[None]


@torch.no_grad()
def last_logits(model, ids, pixels):
    expanded = [t for token in ids for t in ([token] if token != IMAGE_TOKEN_INDEX else [token] * model.num_patches)]
    ids = torch.tensor([expanded])
    hidden = model.forward_hidden(
        ids, torch.ones_like(ids, dtype=torch.bool), model.project(model.encode_images(pixels))
    )
    return model.llm.get_output_embeddings()(hidden[0, -1])


def test_golden_logits(llava, written_here):
    model, processor = llava
    golden = json.loads((written_here / "golden.json").read_text(encoding="utf-8"))["generation"]
    assert len(golden) == 16 and len({sample["image"] for sample in golden}) > 8
    for sample in golden:
        pixels = padded(Image.open(written_here / "images" / sample["image"]), processor)
        logits = last_logits(model, sample["input_ids"], pixels)
        expected = torch.tensor(sample["last_logits"])
        # fp32 on both sides; logits reach 4.3, and two versions of torch and transformers order their sums differently
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
        assert logits.argmax() == sample["greedy_ids"][1]  # [0] is the BOS that transformers 4.37 put in front
        assert (
            last_logits(model, sample["input_ids"], torch.zeros_like(pixels)) - expected
        ).abs().max() > 1e-3  # it looks
