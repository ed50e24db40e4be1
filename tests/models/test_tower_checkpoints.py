"""Checkpoints of models with every kind of tower: trained and written with it, or frozen and found by its name."""

from __future__ import annotations

import importlib.util
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_pat.models.adapters import add_lora, load_lora, save_lora
from llava_pat.models.from_folder import load_model
from llava_pat.models.llava_config import finetune_config
from llava_pat.models.llava_layout import TOWER_PREFIX, save_llava
from llava_pat.models.restore import load_llava
from llava_pat.models.source import open_checkpoint
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.types import IMAGE_TOKEN_INDEX
from tests.models.tower_folders import BUILD, names_on_the_hub, write_open_clip_tower, write_tower

KINDS = [
    *BUILD,
    pytest.param(
        "open_clip",
        marks=pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="open_clip_torch is an extra"),
    ),
]


def build(kind, folder, llm, **keywords):
    """A model on a tower in `folder`, whose name for config.json comes with it."""
    name = str(write_open_clip_tower(folder) if kind == "open_clip" else write_tower(kind, folder))
    torch.manual_seed(1)
    return VisionLanguageModel.from_pretrained(name, str(llm), **keywords), name


def save(model, name, folder, llm, **keywords):
    config = finetune_config(model.llm.config, vision_tower=name, vision_width=model.vision_width)
    save_llava(model, folder, config, tokenizer_source=llm, **keywords)


@torch.no_grad()
def logits(model):
    model.eval()  # open_clip's attention rounds differently in training mode
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(1, 3, model.image_size, model.image_size, generator=generator)
    ids = torch.tensor([[1, 5, *[IMAGE_TOKEN_INDEX] * model.num_patches, 9, 11]])
    hidden = model.forward_hidden(ids, torch.ones_like(ids), model.project(model.encode_images(pixels)))
    return model.llm.get_output_embeddings()(hidden)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_that_trained(kind, written, tmp_path):
    model, name = build(kind, tmp_path / "tower", written / "llm", whole_tower=True)
    model.set_trainable(llm=True, tower_layers=-1)
    before = logits(model)
    with torch.no_grad():
        for parameter in model.tower.parameters():  # also the frozen ones: all must come from the folder
            parameter.add_(torch.randn_like(parameter) * 0.1)
    expected = logits(model)
    assert (expected - before).abs().max() > 1e-3
    out = tmp_path / "llava-v1.5-tower"
    save(model, name, out, written / "llm")

    stored = load_file(out / "model.safetensors")
    names = {name.removeprefix(TOWER_PREFIX) for name in stored if "vision_tower" in name}
    if kind == "open_clip":
        theirs = load_file(tmp_path / "tower" / "open_clip_model.safetensors")
        assert names == {name.removeprefix("visual.") for name in theirs if name.startswith("visual.")}
    else:
        assert names == names_on_the_hub(kind, tmp_path / "tower")

    assert torch.equal(logits(load_model(out, dtype=torch.float32).model), expected)
    again, _ = build(kind, tmp_path / "again", written / "llm", whole_tower=True)
    again.set_trainable(llm=True, tower_layers=-1)
    load_llava(again, out)
    assert torch.equal(logits(again), expected)
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())

    key = next(key for key in sorted(stored) if "vision_tower" in key and stored[key].dim() > 1)
    for change in ({key: stored[key][:-1].contiguous()}, {f"{TOWER_PREFIX}more": torch.zeros(1)}, None):
        changed = {k: v for k, v in stored.items() if k != key} if change is None else stored | change
        save_file(changed, out / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match="do not fit|in the tower that"):
            load_model(out, dtype=torch.float32)
        with pytest.raises(ValueError, match="missing|too many|in the model"):
            load_llava(again, out)
    assert torch.equal(logits(again), expected)  # nothing was changed by a load that failed


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_tower_is_found_by_its_name(kind, written, tmp_path, monkeypatch):
    model, name = build(kind, tmp_path / "tower", written / "llm")
    for given in (name, "./tower", "../tower"):
        out = tmp_path / f"llava-{len(given)}"
        save(model, given, out, written / "llm")
        assert not any("vision_tower" in key for key in load_file(out / "model.safetensors"))
        if given == "./tower":
            monkeypatch.chdir(tmp_path)
        loaded = load_model(out, dtype=torch.float32)
        assert torch.equal(logits(loaded.model), logits(model))
        assert list(loaded.image_processor.image_mean) == [0.4, 0.5, 0.6]
        monkeypatch.undo()
        shutil.rmtree(out)


@pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="open_clip_torch is an extra")
def test_open_clips_names(written, tmp_path):
    model, name = build("open_clip", tmp_path / "tower", written / "llm")
    for given in (f"open_clip:{name}", "open_clip:../tower"):
        out = tmp_path / f"llava-{len(given)}"
        save(model, given, out, written / "llm")
        assert torch.equal(logits(load_model(out, dtype=torch.float32).model), logits(model))
    with pytest.raises(ValueError, match="no class for open_clip's towers, so there is no llava-hf form"):
        open_checkpoint(out)


def test_open_clip_names_are_kept_for_open_clip():
    from llava_pat.models.source import find_tower

    for name in ("open_clip:ViT-B-32/openai", "open_clip:hf-hub:org/repo"):
        assert find_tower("anywhere", name, None) == name
    with pytest.raises(FileNotFoundError, match="names the vision tower 'open_clip:/gone/tower', which is not here"):
        find_tower("anywhere", "open_clip:/gone/tower", None)


@pytest.mark.parametrize("kind", ["siglip", "dinov2", "dinov2 with swiglu"])
def test_beside_adapters(kind, written, tmp_path):
    """Our training refuses it, but LLaVA-NeXT's LoRA folders may hold a tower."""
    pytest.importorskip("peft")
    model, name = build(kind, tmp_path / "tower", written / "llm", whole_tower=True)
    model.set_trainable(llm=False, tower_layers=-1)
    add_lora(model, r=2, alpha=4, dropout=0.0, bias="none")
    config = finetune_config(model.llm.config, vision_tower=name, vision_width=16, model_name_or_path="base")
    if kind == "dinov2 with swiglu":
        with pytest.raises(ValueError, match="SwiGLU .* no place beside adapters"):
            save_lora(model, tmp_path / "lora", config)
        return
    with torch.no_grad():
        for parameter in model.tower.parameters():
            parameter.mul_(1.5)
    expected = logits(model)
    save_lora(model, tmp_path / "lora", config)
    again, _ = build(kind, tmp_path / "again", written / "llm", whole_tower=True)
    add_lora(again, r=2, alpha=4, dropout=0.0, bias="none")
    load_lora(again, tmp_path / "lora")
    assert torch.equal(logits(again), expected)
