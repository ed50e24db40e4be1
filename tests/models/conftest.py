"""A tiny VisionLanguageModel: 28 px, patch 14 (4 patches), widths 16 and 24; weights so large that errors show"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from llava_pat.models.projectors import build_projector
from llava_pat.models.towers import VisionTower
from llava_pat.models.vlm import VisionLanguageModel

VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
TEXT = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads":
    2, "vocab_size": 50, "max_position_embeddings": 64, "initializer_range": 0.4, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture
def written() -> Path:
    """What LLaVA's own code wrote; see its README.md."""
    return Path(__file__).parents[1] / "assets" / "llava_written"


@pytest.fixture
def tiny_vlm() -> Callable[..., VisionLanguageModel]:
    def build(
        projector: str = "mlp2x_gelu", select_layer: int = -2, select_feature: str = "patch", **text
    ) -> VisionLanguageModel:
        torch.manual_seed(0)
        tower = VisionTower(CLIPVisionModel(CLIPVisionConfig(**VISION)))
        llm = LlamaForCausalLM(LlamaConfig(**(TEXT | text)))
        return VisionLanguageModel(
            tower, build_projector(projector, 16, llm.config.hidden_size), llm, select_layer, select_feature
        )

    return build
