"""Models of the stages: by transformers' from_pretrained, from a hub id or a folder; errors of one line."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, BatchFeature, PreTrainedModel

from llava_pat.types import DataError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Placement:
    """Where a stage's model runs and in which precision.

    Weights stay in float32, and half precision is autocast's, as the authors of SAM 2 run it: with weights in bfloat16,
    transformers gives boxes that are whole 256ths of the image, and rounds SAM's box prompts to as much.
    """

    device: str = "cpu"
    dtype: str = "float32"

    @property
    def torch_dtype(self) -> torch.dtype:
        if self.dtype not in _DTYPES:
            raise DataError(f"dtype is {self.dtype!r}, expected one of {sorted(_DTYPES)}")
        return _DTYPES[self.dtype]

    def autocast(self) -> torch.autocast:
        """`with place.autocast():` around a model's forward; nothing for float32."""
        dtype = self.torch_dtype
        return torch.autocast(torch.device(self.device).type, dtype=dtype, enabled=dtype != torch.float32)

    def move(self, inputs: BatchFeature | dict[str, Any]) -> dict[str, Any]:
        """Tensors to the device, floating ones in float32."""
        return {
            key: value.to(self.device, torch.float32 if value.is_floating_point() else value.dtype)
            for key, value in inputs.items()
            if isinstance(value, torch.Tensor)
        }


def load_model(kind: Any, name: str, types: tuple[str, ...], place: Placement, what: str) -> PreTrainedModel:
    """kind.from_pretrained(name), frozen and in eval mode. kind: a model class or an Auto class.

    types: the model_type that its config.json may have. Raises DataError when it is not there or of another
    architecture, and when weights are missing: they would be random.
    """
    # a truncated file is a SafetensorError, weights of another shape are a RuntimeError
    errors = (OSError, ValueError, ImportError, SafetensorError, RuntimeError)
    try:
        found = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
        if found in types:
            model, info = kind.from_pretrained(
                name, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
            )
    except errors as error:
        raise DataError(f"{what} {name}: cannot be loaded: {_first_line(error)}") from error
    if found not in types:
        raise DataError(f"{what} {name}: its config.json says model_type {found!r}, not {' or '.join(types)}")
    for reason in ("missing_keys", "mismatched_keys"):
        if info[reason]:
            some = sorted(map(str, info[reason]))[:3]
            raise DataError(f"{what} {name}: {len(info[reason])} {reason.replace('_', ' ')}, such as {some}")
    return model.requires_grad_(False).eval().to(place.device)


def load_part(kind: Any, name: str, what: str, **options: Any) -> Any:
    """A processor or tokenizer: kind.from_pretrained(name)."""
    try:
        return kind.from_pretrained(name, trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{what} {name}: its {kind.__name__} cannot be loaded: {_first_line(error)}") from error


def load_image_processor(name: str, what: str) -> Any:
    """Pillow's, not torchvision's: the same pixels on every machine, and torchvision is not asked for."""
    return load_part(AutoImageProcessor, name, what, backend="pil")


def require_package(package: str, what: str, command: str) -> None:
    """DataError with the command that installs it, if it is not there."""
    if importlib.util.find_spec(package) is None:
        raise DataError(f"{what} needs the package {package}: {command}")


def heights_and_widths(images: list[Image.Image]) -> list[tuple[int, int]]:
    return [(image.height, image.width) for image in images]


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
