"""A tiny made-up CLIP with both towers, as a folder: 32 px in patches of 8, three layers, playground tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

PLAYGROUND = Path(__file__).resolve().parents[2] / "playground" / "models" / "clip"
TOKENIZER = ("merges.txt", "vocab.json", "tokenizer_config.json")


def clip_config(side: int = 32, patch: int = 8, layers: int = 3) -> CLIPConfig:
    vocabulary = len(json.loads((PLAYGROUND / "vocab.json").read_text()))
    playground = json.loads((PLAYGROUND / "config.json").read_text())["text_config"]
    shared = {"intermediate_size": 32, "num_attention_heads": 2, "projection_dim": 12, "hidden_act": "quick_gelu"}
    special = {name: playground[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return CLIPConfig(
        vision_config=shared
        | {"hidden_size": 16, "num_hidden_layers": layers, "image_size": side, "patch_size": patch},
        text_config=shared | special | {"hidden_size": 20, "num_hidden_layers": 2, "vocab_size": vocabulary},
        projection_dim=12,
    )


def write_clip(folder: Path, seed: int = 0, side: int = 32, patch: int = 8, layers: int = 3) -> Path:
    """Weights so large that every part shows in the result."""
    torch.manual_seed(seed)
    clip = CLIPModel(clip_config(side, patch, layers))
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.5 if parameter.ndim > 1 else 0.3) + (parameter == 1))
    clip.save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copy(PLAYGROUND / name, folder / name)
    processor = json.loads((PLAYGROUND / "preprocessor_config.json").read_text())
    processor |= {"crop_size": {"height": side, "width": side}, "size": {"shortest_edge": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
