"""Tiny language models of the families that LLaVA is built on, with weights so large that errors show."""

from __future__ import annotations

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from llava_pat.models.projectors import build_projector
from llava_pat.models.towers import VisionTower
from llava_pat.models.vlm import VisionLanguageModel

SIZES = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50,
    "max_position_embeddings": 64, "initializer_range": 0.4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 1}
FAMILIES = {
    "llama": LlamaConfig(**GROUPED),
    "mistral": MistralConfig(**GROUPED, sliding_window=4),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=12),
    "gemma": GemmaConfig(**GROUPED, head_dim=12),
    "gemma2": Gemma2Config(**GROUPED, head_dim=12, sliding_window=4, final_logit_softcapping=3.0),
    "gemma3": Gemma3TextConfig(**GROUPED, head_dim=12, sliding_window=4),
    "phi": PhiConfig(**SIZES),
    "phi3": Phi3Config(**GROUPED),
    "cohere": CohereConfig(**GROUPED, logit_scale=0.25),
    "cohere2": Cohere2Config(**GROUPED, logit_scale=0.25, sliding_window=4),
    "granite": GraniteConfig(**GROUPED, logits_scaling=8.0, embedding_multiplier=3.0),
}  # fmt: skip


def model_of(config: PretrainedConfig, attention: str | None = None) -> VisionLanguageModel:
    """Behind a tower of 4 patches and a linear projector, in eval mode. attention: None is transformers' choice."""
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=attention)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    return VisionLanguageModel(VisionTower(CLIPVisionModel(vision)), build_projector("linear", 16, 24), llm).eval()
