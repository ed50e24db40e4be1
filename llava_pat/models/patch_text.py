"""How alike patches and words are in a CLIP's shared space: the vectors of both.

    v  patches of the last layer, through the final norm and the projection that CLIP trains for its class token
    t  the prompt with the word for its {}, through CLIP's text encoder and projection

    source "last"       v as above
    source "surgery"    CLIP Surgery (arXiv 2304.05653, clip/clip_surgery_model.py): beside the tower's own path a
                        second one through its last layers, which adds up attention of values to values and leaves out
                        the MLPs: x' <- x' + proj(softmax(v v^T / sqrt(d)) v), with the values v of the own path

What becomes of the two is in patch_labels.py. Shape letters as in llava_pat/types.py; W words, d the shared width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel

from llava_pat.models.loading import load_whole_clip
from llava_pat.models.open_clip_tower import OpenClipTower, is_open_clip, load_open_clip
from llava_pat.models.towers import VisionTower

SOURCES = ("last", "surgery")
SURGERY_LAYERS = 6  # of CLIP Surgery's code; of a shallower tower all layers but the first
_WORDS_AT_ONCE = 256


class PatchText(nn.Module):
    """A frozen CLIP, seen patch by patch. Build it with `load_patch_text`. Everything it gives is float32."""

    tower: VisionTower  # all layers

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower = tower

    @property
    def num_patches(self) -> int:
        return self.tower.num_patches()

    @torch.no_grad()
    def patches(self, pixels: Tensor, source: str = "last") -> Tensor:
        """pixels [I, 3, S, S] of the tower's own image processor -> unit vectors [I, N, d]."""
        with torch.autocast(pixels.device.type, enabled=False):
            pixels = pixels.to(self.tower.dtype)
            if source == "last":
                states = self.tower(pixels, select_layer=-1)
            else:
                states = self._surgery(pixels)
            return F.normalize(self._project(states).float(), dim=-1)

    @torch.no_grad()
    def words(self, words: Sequence[str], prompt: str = "{}", progress: Callable[[int], Any] | None = None) -> Tensor:
        """Unit vectors [W, d]. progress is called with the number of words that were done."""
        vectors = []
        for start in range(0, len(words), _WORDS_AT_ONCE):
            texts = [prompt.replace("{}", word) for word in words[start : start + _WORDS_AT_ONCE]]
            vectors.append(F.normalize(self._encode(texts).float(), dim=-1))
            if progress is not None:
                progress(len(texts))
        return torch.cat(vectors)

    def _surgery(self, pixels: Tensor) -> Tensor:
        """The second path's patches [I, N, Dv], before the final norm."""
        first = max(1, self.tower.num_layers - SURGERY_LAYERS)
        caught: dict[int, Tensor] = {}
        handles = [
            layer.register_forward_pre_hook(lambda _, inputs, place=place: caught.__setitem__(place, inputs[0]))
            for place, layer in enumerate(self.tower.layers)
            if place >= first
        ]
        try:
            self.tower(pixels, select_layer=-1)
        finally:
            for handle in handles:
                handle.remove()
        states = caught[first]
        for place in range(first, self.tower.num_layers):
            states = states + self._value_attention(self.tower.layers[place], caught[place])
        return states[:, self.tower.prefix_tokens :]

    def _value_attention(self, layer: nn.Module, states: Tensor) -> Tensor:
        """proj(softmax(v v^T / sqrt(d)) v) of a layer's input [I, T, Dv], its norm included."""
        values, heads, join = self._values(layer, states)
        split = values.unflatten(-1, (heads, -1)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(split, split, split)
        return join(attended.transpose(1, 2).flatten(-2))

    @abstractmethod
    def _values(self, layer: nn.Module, states: Tensor) -> tuple[Tensor, int, nn.Module]:
        """Values [I, T, Dv] of a layer, its heads, and its output projection."""

    @abstractmethod
    def _project(self, states: Tensor) -> Tensor:
        """Patches after the last layer [I, N, Dv] -> [I, N, d]: final norm and projection."""

    @abstractmethod
    def _encode(self, texts: list[str]) -> Tensor:
        """Texts -> [W, d]."""


class TransformersPatchText(PatchText):
    """CLIPModel of transformers."""

    def __init__(self, clip: CLIPModel, tokenizer: Any) -> None:
        super().__init__(VisionTower(clip.vision_model))
        self.clip, self.tokenizer = clip.requires_grad_(False).eval(), tokenizer

    def _values(self, layer: nn.Module, states: Tensor) -> tuple[Tensor, int, nn.Module]:
        attention = layer.self_attn
        return attention.v_proj(layer.layer_norm1(states)), attention.num_heads, attention.out_proj

    def _project(self, states: Tensor) -> Tensor:
        return self.clip.visual_projection(self.clip.vision_model.post_layernorm(states))

    def _encode(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        tokens = tokens.to(self.clip.text_projection.weight.device)
        return self.clip.text_projection(self.clip.text_model(**tokens).pooler_output)


class OpenClipPatchText(PatchText):
    """A CLIP of open_clip whose image tower is its own vision transformer and pools its class token."""

    def __init__(self, model: nn.Module, tokenizer: Callable[[list[str]], Tensor], name: str) -> None:
        visual = model.visual
        if not (hasattr(visual, "transformer") and hasattr(visual, "ln_post") and hasattr(visual, "proj")):
            raise _refuse(name, type(visual).__name__)
        if visual.attn_pool is not None or visual.pool_type != "tok" or visual.proj is None:
            raise _refuse(name, f"{type(visual).__name__} with a pooling head")
        super().__init__(OpenClipTower(visual))
        self.model, self.tokenizer = model.requires_grad_(False).eval(), tokenizer

    def _values(self, layer: nn.Module, states: Tensor) -> tuple[Tensor, int, nn.Module]:
        attention, width = layer.attn, states.shape[-1]
        weight = attention.in_proj_weight[2 * width :]
        bias = attention.in_proj_bias[2 * width :]
        return F.linear(layer.ln_1(states), weight, bias), attention.num_heads, attention.out_proj

    def _project(self, states: Tensor) -> Tensor:
        return self.model.visual.ln_post(states) @ self.model.visual.proj

    def _encode(self, texts: list[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(texts).to(self.model.visual.proj.device))


def load_patch_text(name_or_path: str, dtype: torch.dtype = torch.float32) -> PatchText:
    """The whole CLIP of a folder or name (transformers' or open_clip's), frozen.

    Raises ValueError where there is no text encoder, or no projection of single patches into its space (SigLIP).
    """
    if is_open_clip(name_or_path):
        model, tokenizer = load_open_clip(name_or_path)
        return OpenClipPatchText(model.to(dtype), tokenizer, name_or_path)
    return TransformersPatchText(
        load_whole_clip(name_or_path, dtype), AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    )


def _refuse(name: str, kind: str) -> ValueError:
    return ValueError(
        f"{name}: a {kind} has no projection of single patches into the space of its texts: its pooling mixes them "
        "first. Take the labels of a CLIP with as many patches, --patch_words_tower"
    )
