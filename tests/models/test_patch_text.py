"""Vectors of patches and words against a forward written out by hand, from the weights in the file alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPModel

from llava_pat.models.patch_text import load_patch_text
from tests.models.clip_folder import write_clip
from tests.models.tower_folders import write_tower


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder):
    return load_patch_text(str(folder))


class ByHand:
    """CLIP's image tower in NumPy, float64."""

    def __init__(self, folder, heads: int = 2, layers: int = 3):
        stored = load_file(folder / "model.safetensors")
        self.weights = {name: tensor.double().numpy() for name, tensor in stored.items()}
        self.heads, self.layers = heads, layers

    def get(self, name):
        found = [value for key, value in self.weights.items() if key.endswith(name) and "text_model" not in key]
        assert len(found) == 1, name
        return found[0]

    def norm(self, x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * self.get(f"{name}.weight") + self.get(f"{name}.bias")

    def linear(self, x, name):
        return x @ self.get(f"{name}.weight").T + self.get(f"{name}.bias")

    def attend(self, q, k, v):
        out = np.zeros_like(v)
        size = v.shape[-1] // self.heads
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[:, part] @ k[:, part].T / np.sqrt(size)
            share = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, part] = share / share.sum(-1, keepdims=True) @ v[:, part]
        return out

    def patches(self, pixels, surgery_from=None):
        """One image [3, 32, 32] -> unit vectors [16, 12]."""
        kernel = self.get("patch_embedding.weight").reshape(16, -1)
        cells = pixels.reshape(3, 4, 8, 4, 8).transpose(1, 3, 0, 2, 4).reshape(16, -1)
        x = np.concatenate([self.get("class_embedding")[None], cells @ kernel.T]) + self.get(
            "position_embedding.weight"
        )
        x = self.norm(x, "pre_layrnorm")
        second = None
        for layer in range(self.layers):
            at = f"layers.{layer}"
            if layer == surgery_from:
                second = x.copy()
            y = self.norm(x, f"{at}.layer_norm1")
            q, k, v = (self.linear(y, f"{at}.self_attn.{name}_proj") for name in "qkv")
            if second is not None:
                second = second + self.linear(self.attend(v, v, v), f"{at}.self_attn.out_proj")
            x = x + self.linear(self.attend(q, k, v), f"{at}.self_attn.out_proj")
            y = self.linear(self.norm(x, f"{at}.layer_norm2"), f"{at}.mlp.fc1")
            x = x + self.linear(y / (1 + np.exp(-1.702 * y)), f"{at}.mlp.fc2")
        x = self.norm((x if second is None else second)[1:], "post_layernorm") @ self.get("visual_projection.weight").T
        return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize(("source", "surgery_from"), [("last", None), ("surgery", 1)])
def test_patches_by_hand(clip, folder, source, surgery_from):
    """Three layers: CLIP Surgery's six are all but the first."""
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = clip.patches(pixels, source)
    assert found.shape == (2, 16, 12) and found.dtype == torch.float32 and not found.requires_grad
    by_hand = ByHand(folder)
    for image in range(2):
        expected = by_hand.patches(pixels[image].double().numpy(), surgery_from)
        np.testing.assert_allclose(found[image].numpy(), expected, atol=2e-5)


def test_surgery_leaves_early_layers_alone(tmp_path):
    """Eight layers: the second path begins at the third."""
    folder = write_clip(tmp_path, layers=8)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    found = load_patch_text(str(folder)).patches(pixels, "surgery")[0]
    expected = ByHand(folder, layers=8).patches(pixels[0].double().numpy(), surgery_from=2)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_words_are_transformers_text_features(clip, folder):
    """Padded in one batch, against each text alone; and the similarity against CLIPModel's own class token's way."""
    words = ["red", "a small purple circle", "blue"]
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    done = []
    found = clip.words(words, "this is a {}.", progress=done.append)
    assert found.shape == (3, 12) and done == [3]
    for word, vector in zip(words, found, strict=True):
        with torch.no_grad():
            hidden = model.text_model(**tokenizer(f"this is a {word}.", return_tensors="pt")).pooler_output
        expected = torch.nn.functional.normalize(model.text_projection(hidden)[0], dim=-1)
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=0)


def test_other_braces_of_a_prompt_stay(clip, monkeypatch):
    """A prompt is text, not a format string: `{{}}` would lose the word in silence."""
    texts, encode = [], clip._encode
    monkeypatch.setattr(clip, "_encode", lambda batch: texts.extend(batch) or encode(batch))
    for prompt in ("a {} {x}", "a {{}}", "{ {}"):
        clip.words(["red"], prompt)
    assert texts == ["a red {x}", "a {red}", "{ red"]


def test_nothing_trains_and_nothing_is_drawn(folder):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    clip = load_patch_text(str(folder))
    clip.words(["red"])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(parameter.requires_grad for parameter in clip.parameters()) and not clip.clip.training


def test_towers_without_texts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="clip_vision_model.*no text encoder"):
        load_patch_text(str(write_tower("clip", tmp_path / "clip")))
    with pytest.raises(ValueError, match="pooling head.*no single patch"):
        load_patch_text(str(write_tower("whole siglip", tmp_path / "siglip")))
    with pytest.raises(ValueError, match="'dinov2'.*no text encoder"):
        load_patch_text(str(write_tower("dinov2", tmp_path / "dinov2")))


def test_missing_weights_are_refused(tmp_path):
    """transformers would start the text tower at random, with a warning."""
    folder = write_clip(tmp_path)
    from safetensors.torch import save_file

    kept = {k: v for k, v in load_file(folder / "model.safetensors").items() if "text_model.encoder.layers.1" not in k}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"the weights do not fit the config: \d+ missing"):
        load_patch_text(str(folder))


def test_open_clip(tmp_path):
    """transformers' CLIPModel with the same weights gives the same vectors, both sources."""
    open_clip = pytest.importorskip("open_clip")
    from llava_pat.models.patch_text import OpenClipPatchText

    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=12,
        vision_cfg={"image_size": 32, "patch_size": 8, "width": 16, "layers": 3, "head_width": 8, "mlp_ratio": 2.0},
        text_cfg={"context_length": 8, "vocab_size": 30, "width": 16, "heads": 2, "layers": 1},
        quick_gelu=True,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    theirs = OpenClipPatchText(model, lambda texts: torch.arange(1, 9).repeat(len(texts), 1), "made up")
    folder = write_clip(tmp_path)
    _copy_open_clip(model, folder)
    ours = load_patch_text(str(folder))
    pixels = torch.randn(2, 3, 32, 32)
    for source in ("last", "surgery"):
        torch.testing.assert_close(theirs.patches(pixels, source), ours.patches(pixels, source), atol=1e-4, rtol=0)
    expected = torch.nn.functional.normalize(model.encode_text(torch.arange(1, 9)[None]), dim=-1)
    torch.testing.assert_close(theirs.words(["x", "y"]), expected.detach().repeat(2, 1), atol=1e-5, rtol=0)


def test_open_clip_with_a_pooling_head_is_refused():
    open_clip = pytest.importorskip("open_clip")
    from llava_pat.models.patch_text import OpenClipPatchText

    model = open_clip.CLIP(
        embed_dim=12,
        vision_cfg={"image_size": 32, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8,
                    "attentional_pool": True, "attn_pooler_heads": 2},
        text_cfg={"context_length": 8, "vocab_size": 30, "width": 16, "heads": 2, "layers": 1},
    )  # fmt: skip
    with pytest.raises(ValueError, match="pooling head.*no projection of single patches"):
        OpenClipPatchText(model, None, "made up")


def _copy_open_clip(model, folder) -> None:
    """open_clip's image tower into the file of a CLIPModel folder."""
    from safetensors.torch import save_file

    state = load_file(folder / "model.safetensors")
    state["vision_model.embeddings.patch_embedding.weight"] = model.visual.conv1.weight
    state["vision_model.embeddings.class_embedding"] = model.visual.class_embedding
    state["vision_model.embeddings.position_embedding.weight"] = model.visual.positional_embedding
    state["visual_projection.weight"] = model.visual.proj.T
    names = {"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post"}
    for layer in range(3):
        at, there = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        names |= {
            f"{at}.layer_norm1": f"{there}.ln_1", f"{at}.layer_norm2": f"{there}.ln_2",
            f"{at}.mlp.fc1": f"{there}.mlp.c_fc", f"{at}.mlp.fc2": f"{there}.mlp.c_proj",
            f"{at}.self_attn.out_proj": f"{there}.attn.out_proj",
        }  # fmt: skip
        attention = model.visual.transformer.resblocks[layer].attn
        for kind in ("weight", "bias"):
            split = getattr(attention, f"in_proj_{kind}").chunk(3)
            for name, part in zip("qkv", split, strict=True):
                state[f"vision_model.{at}.self_attn.{name}_proj.{kind}"] = part
    weights = dict(model.visual.named_parameters())
    for ours, theirs in names.items():
        for kind in ("weight", "bias"):
            state[f"vision_model.{ours}.{kind}"] = weights[f"{theirs}.{kind}"]
    save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert config["vision_config"]["hidden_act"] == "quick_gelu"
