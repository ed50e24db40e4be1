"""Tiny made-up towers as folders, with image processors, for tests of checkpoints: 2 x 2 patches, width 16."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 14}
SIGLIP = SIZES | {"intermediate_size": 32, "image_size": 34}  # 6 pixels of a side are in no patch
DINOV2 = SIZES | {"image_size": 70, "mlp_ratio": 2}  # its processor makes 28
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 9,
        "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip

BUILD = {
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES, intermediate_size=32, image_size=28)),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**SIGLIP)),
    "whole siglip": lambda: SiglipModel(SiglipConfig(text_config=TEXT, vision_config=SIGLIP)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**DINOV2)),
    "dinov2 with swiglu": lambda: Dinov2Model(Dinov2Config(**DINOV2, use_swiglu_ffn=True)),
    "dinov2 with registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINOV2)),
}
COLOURS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
CROP = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
PROCESSORS = {
    "clip": CROP | {"image_processor_type": "CLIPImageProcessor"},
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 34, "width": 34}},
    "dinov2": CROP | {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 32}},
}


def write_tower(kind: str, folder: Path) -> Path:
    """Weights, all of them random (also those that start at one or zero), and preprocessor_config.json."""
    torch.manual_seed(0)
    model = BUILD[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    processor = PROCESSORS[next(name for name in PROCESSORS if name in kind)] | COLOURS
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def names_on_the_hub(kind: str, folder: Path) -> set[str]:
    """As transformers 4 wrote them and the hub has them: what newer versions still save, but for CLIP and SigLIP."""
    names = {name for name in load_file(folder / "model.safetensors") if not name.startswith(("text_model.", "logit_"))}
    if kind in ("clip", "siglip"):
        return {f"vision_model.{name}" for name in names}
    return names


def write_open_clip_tower(folder: Path) -> Path:
    """open_clip's own vision transformer, 28 pixels, in a folder of open_clip's."""
    import open_clip

    torch.manual_seed(0)
    folder.mkdir()
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 28, "layers": 3, "width": 16, "head_width": 8, "patch_size": 14}
    settings = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    model = open_clip.CLIP(**settings)
    numbers = {"mean": COLOURS["image_mean"], "std": COLOURS["image_std"]}
    content = {"model_cfg": settings, "preprocess_cfg": numbers}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder
