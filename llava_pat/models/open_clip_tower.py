"""open_clip's image towers behind the interface of towers.py. open_clip_torch is an extra, imported when asked for.

Names: `open_clip:MODEL/PRETRAINED` (such as open_clip:ViT-L-14/datacomp_xl_s13b_b90k), `open_clip:hf-hub:ORG/REPO`,
`open_clip:FOLDER`, or plainly a folder with open_clip_config.json and no config.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from PIL import Image
from torch import Tensor, nn
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from llava_pat.models.towers import VisionTower

PREFIX = "open_clip:"
_CONFIG = "open_clip_config.json"
_RESAMPLE = {
    "bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST,
}  # fmt: skip


def is_open_clip(name_or_path: str) -> bool:
    """Whether the name is open_clip's. A folder that transformers can read as well is transformers'."""
    folder = Path(name_or_path)
    return name_or_path.startswith(PREFIX) or ((folder / _CONFIG).is_file() and not (folder / "config.json").is_file())


class OpenClipTower(VisionTower):
    """open_clip's VisionTransformer, or a timm vision transformer within open_clip, as a VisionTower.

    The tower's own forward runs, so that ZeRO-3 gathers its weights, and the layer's output is taken from within. So
    the layers above, when they were not dropped, are run for nothing.
    """

    def __init__(self, visual: nn.Module) -> None:
        nn.Module.__init__(self)
        if hasattr(visual, "transformer") and hasattr(visual, "conv1"):
            parts = _native(visual)
        elif hasattr(visual, "trunk") and hasattr(visual.trunk, "blocks") and hasattr(visual.trunk, "patch_embed"):
            parts = _timm(visual)
        else:
            raise ValueError(
                f"open_clip's {type(visual).__name__} is no plain vision transformer: it has no list of layers whose "
                "hidden states are patches. Take a ViT."
            )
        self._stem = parts.stem
        height, width = visual.image_size
        if height != width:
            raise ValueError(f"the open_clip tower takes images of {height} x {width} pixels; only squares are known")
        self._adopt(
            visual, layers=parts.layers, image_size=height, patch_size=parts.patch_size, width=parts.width,
            class_tokens=parts.class_tokens, prefix_tokens=parts.prefix_tokens,
        )  # fmt: skip

    def _hidden_state(self, pixels: Tensor, layer: int) -> Tensor:
        """Of I = 0 images too: callers bring a dummy."""
        caught: list[Tensor] = []
        if layer == 0:
            handle = self.layers[0].register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        else:
            handle = self.layers[layer - 1].register_forward_hook(lambda _, inputs, output: caught.append(output))
        try:
            self.model(pixels)
        finally:
            handle.remove()
        return caught[0]

    def drop_layers_above(self, select_layer: int) -> None:
        """As VisionTower's; one layer stays for select_layer 0, whose input is what is read."""
        del self.layers[max(1, self.layer_index(select_layer)) :]

    def _stem_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.model.named_parameters() if name in self._stem or _under(name, self._stem)]

    def gradient_checkpointing_enable(self, keywords: dict | None = None) -> None:
        self.model.set_grad_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        self.model.set_grad_checkpointing(False)


@dataclass(frozen=True)
class _Parts:
    layers: str
    stem: tuple[str, ...]
    patch_size: int
    width: int
    class_tokens: int
    prefix_tokens: int


def _native(visual: nn.Module) -> _Parts:
    if not visual.transformer.batch_first:
        raise ValueError("an open_clip tower whose layers want the batch second is not known here")
    visual.patch_dropout = nn.Identity()  # it would take patches away in training, and the grid with them
    return _Parts(
        layers="transformer.resblocks",
        stem=("conv1", "class_embedding", "positional_embedding", "ln_pre"),
        patch_size=_side(visual.patch_size),
        width=visual.conv1.out_channels,
        class_tokens=1,
        prefix_tokens=1,
    )


def _timm(visual: nn.Module) -> _Parts:
    trunk = visual.trunk
    if hasattr(trunk, "patch_drop"):
        trunk.patch_drop = nn.Identity()
    return _Parts(
        layers="trunk.blocks",
        stem=tuple(f"trunk.{name}" for name in ("patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre")),
        patch_size=_side(trunk.patch_embed.patch_size),
        width=trunk.embed_dim,
        class_tokens=int(trunk.cls_token is not None),
        prefix_tokens=trunk.num_prefix_tokens,
    )


def load_open_clip_tower(name_or_path: str, dtype: torch.dtype) -> OpenClipTower:
    """The image tower of an open_clip model, in eval mode. Its text tower is let go.

    Raises ImportError when open_clip_torch is not there, ValueError for a name or a tower that is not known.
    """
    open_clip = _open_clip(name_or_path)
    model_name, pretrained = _parse(name_or_path)
    model = open_clip.create_model(
        model_name,
        pretrained=pretrained,
        require_pretrained=True,
        pretrained_text=False,
        device="cpu",
    )
    return OpenClipTower(model.visual.to(dtype))


def load_open_clip(name_or_path: str) -> tuple[nn.Module, Callable[[list[str]], Tensor]]:
    """A whole open_clip model in eval mode, and its tokenizer. Errors as `load_open_clip_tower`."""
    open_clip = _open_clip(name_or_path)
    model_name, pretrained = _parse(name_or_path)
    with torch.random.fork_rng():  # a run's random state must not depend on what is looked at on the way
        model = open_clip.create_model(model_name, pretrained=pretrained, require_pretrained=True, device="cpu")
    return model.eval(), open_clip.get_tokenizer(model_name)


def load_open_clip_processor(name_or_path: str) -> CLIPImageProcessorPil | SiglipImageProcessorPil:
    """open_clip's preprocessing for evaluation, as one of transformers' PIL processors.

    resize_mode "shortest" is CLIP's crop, "squash" is SigLIP's resize; "longest" is not known. torchvision rounds the
    crop's corner half to even where CLIP's processor rounds down: an odd margin moves the crop by one pixel at most.
    """
    open_clip = _open_clip(name_or_path)
    model_name, pretrained = _parse(name_or_path)
    with torch.device("meta"):  # its settings are merged while the model is built, so it is built without memory
        model = open_clip.create_model(
            model_name, pretrained=pretrained, load_weights=False, pretrained_text=False, device="meta"
        )
    settings = model.visual.preprocess_cfg
    side, mode = _side(settings["size"]), settings["resize_mode"]
    numbers = {
        "image_mean": list(settings["mean"]),
        "image_std": list(settings["std"]),
        "resample": _RESAMPLE[settings["interpolation"]],
    }
    if mode == "shortest":
        crop = {"height": side, "width": side}
        return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=crop, **numbers)
    if mode == "squash":
        return SiglipImageProcessorPil(size={"height": side, "width": side}, **numbers)
    raise ValueError(f"vision tower {name_or_path}: open_clip's resize_mode {mode!r} is not known: shortest, squash")


def _open_clip(name_or_path: str) -> ModuleType:
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(
            f"vision tower {name_or_path}: open_clip is not installed; run `bash scripts/setup.sh --with open-clip`"
        ) from error
    return open_clip


def _parse(name_or_path: str) -> tuple[str, str | None]:
    """-> open_clip's (model_name, pretrained)."""
    name = name_or_path.removeprefix(PREFIX)
    if name.startswith(("hf-hub:", "local-dir:")):
        return name, None
    if (Path(name) / _CONFIG).is_file():
        return f"local-dir:{name}", None
    model_name, slash, pretrained = name.partition("/")
    if not (model_name and slash and pretrained):
        raise ValueError(
            f"vision tower {name_or_path}: expected {PREFIX}MODEL/PRETRAINED, {PREFIX}hf-hub:ORG/REPO or a folder with "
            f"{_CONFIG}"
        )
    return model_name, pretrained


def _side(size: int | tuple[int, int] | list[int]) -> int:
    if isinstance(size, int):
        return size
    height, width = size
    if height != width:
        raise ValueError(f"the open_clip tower works with {height} x {width} pixels; only squares are known")
    return height


def _under(name: str, parts: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{part}.") for part in parts)
