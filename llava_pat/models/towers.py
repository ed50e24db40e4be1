"""One interface over the vision towers: pixels in, the hidden states of one layer out, counted as LLaVA counts.

    CLIP      CLIPVisionModel      one class token
    SigLIP    SiglipVisionModel    no class token (SigLIP2 of a fixed resolution is this architecture too)
    DINOv2    Dinov2Model          one class token; Dinov2WithRegistersModel: and registers behind it
    open_clip                      open_clip_tower.py

Hidden state k is what k layers have made of the embeddings (LLaVA's `mm_vision_select_layer`, an index into
transformers' `hidden_states`): 0 the embeddings, -1 after the last layer, -2 before it. No final norm in any of them.
Shape letters as in llava_pat/types.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llava_pat.models.checkpointing import disable_gradient_checkpointing, enable_gradient_checkpointing

SELECT_FEATURES = ("patch", "cls_patch")


@dataclass(frozen=True)
class _Family:
    """Where a transformers architecture keeps its parts."""

    stem: tuple[str, ...]  # modules in front of the layers, one after the other
    layers: str
    class_tokens: int
    mask: tuple[None, ...] = ()  # positional arguments of a layer behind the hidden state: no attention mask
    never_used: tuple[str, ...] = ()  # parameters of the stem that pre-training alone reads


_FAMILIES = {
    "clip_vision_model": _Family(("embeddings", "pre_layrnorm"), "encoder.layers", 1, mask=(None,)),
    "siglip_vision_model": _Family(("embeddings",), "encoder.layers", 0, mask=(None,)),
    "dinov2": _Family(("embeddings",), "encoder.layer", 1, never_used=("embeddings.mask_token",)),
    "dinov2_with_registers": _Family(("embeddings",), "encoder.layer", 1, never_used=("embeddings.mask_token",)),
}


class VisionTower(nn.Module):
    """A Hugging Face vision model, as LLaVA reads it.

    model: CLIPVisionModel, SiglipVisionModel, Dinov2Model or Dinov2WithRegistersModel; it stays what it is, for export.
    image_size: side of the square that the tower is given, in pixels; by default its config's. (DINOv2 interpolates its
    position embeddings: the config says 518, its image processor makes 224.)
    Frozen and in eval mode from birth; `train_layers` says what trains.
    """

    def __init__(self, model: PreTrainedModel, image_size: int | None = None) -> None:
        super().__init__()
        kind = model.config.model_type
        if kind not in _FAMILIES:
            raise ValueError(f"a {kind!r} model is no vision tower that is known here. Known: {', '.join(_FAMILIES)}.")
        family = _FAMILIES[kind]
        registers = model.config.num_register_tokens if kind == "dinov2_with_registers" else 0
        self._family = family
        self._adopt(
            model,
            layers=family.layers,
            image_size=model.config.image_size if image_size is None else image_size,
            patch_size=model.config.patch_size,
            width=model.config.hidden_size,
            class_tokens=family.class_tokens,
            prefix_tokens=family.class_tokens + registers,
        )

    def _adopt(
        self, model: nn.Module, *, layers: str, image_size: int, patch_size: int, width: int, class_tokens: int,
        prefix_tokens: int,
    ) -> None:  # fmt: skip
        self.model = model
        self._layers = layers
        self.image_size, self.patch_size, self.width = image_size, patch_size, width
        self.class_tokens, self.prefix_tokens = class_tokens, prefix_tokens
        self.num_layers = len(self.layers)  # of the checkpoint: what LLaVA's negative numbers count from
        self.requires_grad_(False)
        self.eval()

    # ---- sizes

    @property
    def layers_name(self) -> str:
        """Where the layers are in `model`: their names begin with it, a dot and a number."""
        return self._layers

    @property
    def layers(self) -> nn.ModuleList | nn.Sequential:
        """The transformer layers that are there (`drop_layers_above` takes some away)."""
        return self.model.get_submodule(self._layers)

    @property
    def grid(self) -> int:
        """Patches along a side. A rest smaller than a patch, right and bottom, is not seen (SigLIP's 384 by 14)."""
        return self.image_size // self.patch_size

    def num_patches(self, select_feature: str = "patch") -> int:
        """N: positions that one image takes in a sequence."""
        return self.grid**2 + (self.class_tokens if select_feature == "cls_patch" else 0)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.layers.parameters()).dtype if len(self.layers) else next(self.parameters()).dtype

    def check_feature(self, select_feature: str) -> None:
        """ValueError for an unknown name, and for the class token of a tower that has none."""
        if select_feature not in SELECT_FEATURES:
            raise ValueError(f"select_feature {select_feature!r} is unknown. Known: {', '.join(SELECT_FEATURES)}.")
        if select_feature == "cls_patch" and not self.class_tokens:
            raise ValueError(
                f"select_feature 'cls_patch' asks for a class token, but {type(self.model).__name__} has none; "
                "take 'patch'"
            )

    def layer_index(self, select_layer: int) -> int:
        """LLaVA's number, which may be negative -> how many layers are run. ValueError when it is out of range."""
        layer = select_layer if select_layer >= 0 else self.num_layers + 1 + select_layer
        if not 0 <= layer <= self.num_layers:
            raise ValueError(
                f"select_layer {select_layer} is out of range: the vision tower has {self.num_layers} layers, so "
                f"{-self.num_layers - 1} to {self.num_layers}"
            )
        if layer > len(self.layers):
            raise ValueError(
                f"select_layer {select_layer} needs {layer} layers, but those above {len(self.layers)} were dropped; "
                "load the tower with whole_tower"
            )
        return layer

    def drop_layers_above(self, select_layer: int) -> None:
        """Takes away the layers that `select_layer` does not need: they would cost time and memory."""
        del self.layers[self.layer_index(select_layer) :]

    # ---- the forward

    def forward(self, pixels: Tensor, select_layer: int = -2, select_feature: str = "patch") -> Tensor:
        """pixels [I, 3, S, S] -> [I, N, Dv] in the tower's dtype, patches row by row.

        "patch": the patches alone, without class token and registers; "cls_patch": the class token in front of them.
        Only the layers up to `select_layer` are run. Raises ValueError when the pixels are not the tower's size.
        """
        side = self.image_size
        if pixels.dim() != 4 or tuple(pixels.shape[1:]) != (3, side, side):
            raise ValueError(f"the vision tower takes pixels [I, 3, {side}, {side}], got {list(pixels.shape)}")
        self.check_feature(select_feature)
        states = self._hidden_state(pixels.to(self.dtype), self.layer_index(select_layer))
        patches = states[:, self.prefix_tokens :]
        if select_feature == "patch":
            return patches
        return torch.cat((states[:, : self.class_tokens], patches), dim=1)

    def _hidden_state(self, pixels: Tensor, layer: int) -> Tensor:
        """Module by module, each by its own call: ZeRO-3 gathers weights there."""
        states = pixels
        for name in self._family.stem:
            states = self.model.get_submodule(name)(states)
        for block in self.layers[:layer]:
            states = block(states, *self._family.mask)
        return states

    # ---- what trains

    @property
    def is_trained(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters())

    def train_layers(self, count: int, select_layer: int) -> None:
        """Makes the last `count` layers below `select_layer` train; 0 none, -1 all that is used, embeddings included.

        What no gradient reaches (layers above, the final norm, a pooling head) stays frozen: it would hang a reduction.
        Raises ValueError for more layers than there are.
        """
        used = self.layer_index(select_layer)
        if not -1 <= count <= used:
            raise ValueError(
                f"{count} layers of the vision tower cannot train: select_layer {select_layer} uses {used} of them. "
                f"Take 0 to {used}, or -1 for all of it."
            )
        self.requires_grad_(False)
        for block in self.layers[used - count if count >= 0 else 0 : used]:
            block.requires_grad_(True)
        if count == -1:
            for parameter in self._stem_parameters():
                parameter.requires_grad_(True)

    def _stem_parameters(self) -> Iterator[nn.Parameter]:
        for part in self._family.stem:
            for name, parameter in self.model.get_submodule(part).named_parameters():
                if f"{part}.{name}" not in self._family.never_used:
                    yield parameter

    def gradient_checkpointing_enable(self, keywords: dict | None = None) -> None:
        """Recomputes the layers in the backward pass (non-reentrant unless told otherwise)."""
        enable_gradient_checkpointing(self.model, keywords)

    def gradient_checkpointing_disable(self) -> None:
        disable_gradient_checkpointing(self.model)
