"""A CLIP's weights as two numbers: what made a label file, and what a run trains on, must be the same tower.

Values are hashed in float32 under their names in files, so a copy that holds the tower alone, or that was saved in a
wider dtype, has the same number; a tower that was trained has another.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from llava_pat.models.open_clip_tower import is_open_clip, load_open_clip
from llava_pat.models.shards import tensor_files
from llava_pat.models.tower_names import name_in_files, parts_by_name
from llava_pat.models.tower_source import BUFFERS, tower_weights, vision_config_of
from llava_pat.models.towers import VisionTower

_TEXT = ("text_model.", "text_projection.", "visual_projection.")
_SETTINGS = ("image_size", "patch_size", "num_attention_heads", "hidden_act", "layer_norm_eps")


def tower_fingerprint(name_or_path: str) -> str:
    """sha256 of a vision tower: its weights, and the settings that change what they give.

    Folder or hub id of transformers, a tower alone or within a whole CLIP, or a name of open_clip. Raises ValueError
    for an architecture that is no tower here.
    """
    if is_open_clip(name_or_path):
        return _hash(_of_open_clip(name_or_path, visual=True))
    config = vision_config_of(name_or_path)
    weights = {name: tensor.read for name, tensor in tower_weights(name_or_path, config).items()}
    return _hash(weights, _settings(config))


def used_tower_fingerprint(tower: VisionTower, select_layer: int) -> str:
    """sha256 of a tower in memory, as far as the features of this layer depend on it; also of one that was trained.

    Its weights count as they were rounded when they were loaded, so this is not `tower_fingerprint`'s number. Under
    ZeRO-3 they must be gathered.
    """
    used = tower.layer_index(select_layer)
    number = re.compile(rf"(?:^|\.){re.escape(tower.layers_name)}\.(\d+)\.")
    weights = {
        name: functools.partial(_joined, parts)
        for name, parts in parts_by_name(tower.model).items()
        if not name.endswith(BUFFERS) and not ((layer := number.search(name)) and int(layer[1]) >= used)
    }
    config = tower.model.config if isinstance(tower.model, PreTrainedModel) else None
    return _hash(weights, "" if config is None else _settings(config))


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _settings(config: PretrainedConfig) -> str:
    return f"{config.model_type} { {name: config.to_dict().get(name) for name in _SETTINGS} }"


def text_fingerprint(name_or_path: str) -> str:
    """sha256 of what a CLIP has beside its vision tower: the text encoder and both projections."""
    if is_open_clip(name_or_path):
        return _hash(_of_open_clip(name_or_path, visual=False))
    return _hash(
        {
            name_in_files(None, name): tensor.read
            for name, tensor in tensor_files(name_or_path).items()
            if name.startswith(_TEXT) and not name.endswith(BUFFERS)
        }
    )


def _of_open_clip(name_or_path: str, visual: bool) -> dict[str, Callable[[], Tensor]]:
    model, _ = load_open_clip(name_or_path)
    return {
        name: lambda tensor=tensor: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith("visual.") == visual
    }


def _hash(weights: Mapping[str, Callable[[], Tensor]], settings: str = "") -> str:
    digest = hashlib.sha256(settings.encode())
    for name in sorted(weights):
        tensor = weights[name]()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
