"""open_clip's towers against open_clip's own forward_intermediates. Skipped where the extra is not installed."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from llava_pat.models.loading import load_image_processor, load_vision_tower
from llava_pat.models.open_clip_tower import is_open_clip

INSTALLED = importlib.util.find_spec("open_clip") is not None
needs_open_clip = pytest.mark.skipif(not INSTALLED, reason="open_clip_torch is an optional extra")
TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
VISION = {
    "native": {"image_size": 28, "layers": 3, "width": 32, "head_width": 16, "patch_size": 14, "patch_dropout": 0.5},
    "timm": {
        "image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear",
        "timm_model_pretrained": False,
    },
    "timm with registers and no class token": {
        "image_size": 256, "timm_model_name": "vit_little_patch16_reg4_gap_256", "timm_pool": "", "timm_proj": "linear",
        "timm_model_pretrained": False,
    },
}  # fmt: skip


def folder_of(folder, vision, **preprocess):
    import open_clip

    torch.manual_seed(0)
    settings = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT}
    custom = "timm_model_name" in vision
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**settings)
    numbers = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]} | preprocess
    settings = {"model_cfg": settings | {"custom_text": custom}, "preprocess_cfg": numbers}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return model.visual.eval().requires_grad_(False)


@needs_open_clip
@pytest.mark.parametrize("kind", VISION)
def test_hidden_states_are_open_clips_own(tmp_path, kind):
    visual = folder_of(tmp_path, VISION[kind])
    tower = load_vision_tower(str(tmp_path), torch.float32, "sdpa")
    pixels = torch.randn(1, 3, tower.image_size, tower.image_size)
    for layer in (1, tower.num_layers - 1, tower.num_layers):
        theirs = visual.forward_intermediates(
            pixels, indices=[layer - 1], intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
        )
        assert torch.equal(tower(pixels, layer), theirs["image_intermediates"][0])
        if tower.class_tokens:
            first = theirs["image_intermediates_prefix"][0]
            assert torch.equal(tower(pixels, layer, "cls_patch")[:, :1], first)
    before = tower(pixels, -2)
    assert before.shape[1] == tower.num_patches()
    tower.drop_layers_above(-2)
    assert len(tower.layers) == tower.num_layers - 1 and torch.equal(tower(pixels, -2), before)
    if kind == "native":
        assert torch.equal(tower(pixels, 0), visual._embeds(pixels)[:, 1:])


@needs_open_clip
@pytest.mark.parametrize("kind", ["native", "timm"])
@pytest.mark.parametrize("count", [1, -1])
def test_what_trains_is_what_the_gradient_reaches(tmp_path, kind, count):
    """In training mode all patches stay, whatever patch_dropout the config asks for."""
    folder_of(tmp_path, VISION[kind])
    tower = load_vision_tower(str(tmp_path), torch.float32, "sdpa")
    tower.drop_layers_above(-2)
    tower.train_layers(count, -2)
    tower.train()
    tower.gradient_checkpointing_enable()
    features = tower(torch.randn(1, 3, tower.image_size, tower.image_size))
    assert features.shape[1] == tower.num_patches()
    features.sum().backward()
    assert {n for n, p in tower.named_parameters() if p.grad is not None} == {
        n for n, p in tower.named_parameters() if p.requires_grad
    }


@needs_open_clip
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_pixels_are_open_clips_own(tmp_path, mode):
    """Even margins: torchvision rounds an odd one half to even, where CLIP's processor rounds down."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    visual = folder_of(tmp_path, VISION["native"], interpolation="bilinear", resize_mode=mode)
    assert visual.image_size == (28, 28)
    processor = load_image_processor(str(tmp_path), 28)
    numbers = PreprocessCfg(
        size=28, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bilinear", resize_mode=mode
    )
    image = Image.effect_noise((60, 50), 90).convert("RGB")
    theirs = image_transform_v2(numbers, is_train=False)(image)
    ours = processor(image, return_tensors="pt").pixel_values[0]
    assert torch.allclose(ours, theirs, atol=1e-5)


@needs_open_clip
def test_weights_that_are_not_there(tmp_path):
    folder_of(tmp_path, VISION["native"])
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises((RuntimeError, FileNotFoundError)):
        load_vision_tower(str(tmp_path), torch.float32, "sdpa")


@pytest.mark.skipif(INSTALLED, reason="open_clip_torch is installed")
def test_the_extra_that_is_missing():
    with pytest.raises(ImportError, match=r"open_clip is not installed; run `bash scripts/setup.sh --with open-clip`"):
        load_vision_tower("open_clip:ViT-B-32/openai", torch.float32, "sdpa")


def test_whose_folder_it_is(tmp_path):
    assert is_open_clip("open_clip:ViT-B-32/openai") and not is_open_clip(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert is_open_clip(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")  # laion's repositories hold both: transformers reads those
    assert not is_open_clip(str(tmp_path))


@needs_open_clip
@pytest.mark.parametrize("name", ["open_clip:ViT-B-32", "open_clip:/nowhere"])
def test_names(name):
    with pytest.raises(ValueError, match="expected open_clip:MODEL/PRETRAINED"):
        load_vision_tower(name, torch.float32, "sdpa")
