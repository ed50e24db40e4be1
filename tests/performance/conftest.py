"""A tiny shape: 28 px, patch 14 (4 patches), widths 16 and 24, fp32."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from llava_pat.performance.shapes import Shape


@pytest.fixture
def tiny() -> Shape:
    tower = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    llm = LlamaConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=50, max_position_embeddings=256,
    )  # fmt: skip
    return Shape("tiny", tower, llm, batch_size=3, text_tokens=5, dtype=torch.float32)
