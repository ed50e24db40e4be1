"""Reads a LLaVA-layout folder back into a model that exists: how a stage-2 run goes on from its checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from llava_pat.models.llava_layout import PROJECTOR_PREFIX, TOWER_PREFIX
from llava_pat.models.shards import LazyTensor, tensor_files
from llava_pat.models.tower_names import joined_shape, parts_by_name, pieces
from llava_pat.models.vlm import VisionLanguageModel


@torch.no_grad()
def load_llava(model: VisionLanguageModel, folder: str | Path, with_tower: bool | None = None) -> None:
    """In place: language model, projector, and the tower if it is there; each tensor cast to its parameter's dtype.

    with_tower: whether the folder holds the tower; by default whether it trains.

    Raises ValueError for missing, surplus or misshapen tensors before anything is changed; as `tensor_files` for files.
    """
    wanted = _named(model.llm, "")
    wanted |= _named(model.projector, PROJECTOR_PREFIX)
    if model.tower_is_trained if with_tower is None else with_tower:
        wanted |= {TOWER_PREFIX + name: parts for name, parts in parts_by_name(model.tower.model).items()}
    stored = tensor_files(folder)
    missing, surplus = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    if missing or surplus:
        raise ValueError(
            f"{folder}: does not fit this run: {len(missing)} tensors missing {missing[:3]}, {len(surplus)} too many "
            f"{surplus[:3]}. Is it a checkpoint of the same base models, with the same parts trained?"
        )
    for name, parts in wanted.items():
        shape = joined_shape([tuple(part.shape) for part in parts])
        if stored[name].shape != shape:
            raise ValueError(
                f"{folder}: {name} is {list(stored[name].shape)} in the file and {list(shape)} in the model"
            )
    for name, parts in wanted.items():
        fill(parts, stored[name])


@torch.no_grad()
def fill(parts: tuple[Tensor, ...], stored: LazyTensor) -> None:
    """Copies a tensor of a file into those of the model that it holds, in place. The shapes must have been compared."""
    for part, piece in zip(parts, pieces(stored.read(), [len(part) for part in parts if part.dim()]), strict=True):
        part.copy_(piece)


def _named(module: nn.Module, prefix: str) -> dict[str, tuple[Tensor, ...]]:
    """state_dict, a tied weight once."""
    found: dict[str, tuple[Tensor, ...]] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[prefix + name] = (tensor,)
    return found
