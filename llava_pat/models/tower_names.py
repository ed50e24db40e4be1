"""How a vision tower's weights are called in files, in LLaVA's layout (behind its prefix) and in llava-hf's.

    CLIP, SigLIP    vision_model.*, as transformers 4, LLaVA and LLaVA-NeXT's SigLipVisionTower have them (5.x: flat)
    DINOv2          as on the hub: embeddings.*, encoder.layer.N.attention.attention.query.*, mlp.weights_in.* ...
                    (newer transformers: attention.q_proj.*; of a SwiGLU, gate and up apart)
    open_clip       its own, of `visual`
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

_UNDER_VISION_MODEL = ("clip_vision_model", "siglip_vision_model")
_DINOV2 = ("dinov2", "dinov2_with_registers")
_DINOV2_ON_DISK = (
    (".attention.q_proj.", ".attention.attention.query."),
    (".attention.k_proj.", ".attention.attention.key."),
    (".attention.v_proj.", ".attention.attention.value."),
    (".attention.o_proj.", ".attention.output.dense."),
    (".mlp.gate_proj.", ".mlp.weights_in."),  # the first half of it
    (".mlp.up_proj.", ".mlp.weights_in."),  # the second
    (".mlp.down_proj.", ".mlp.weights_out."),
)


def name_in_files(model_type: str | None, name: str) -> str:
    """A name in memory, of any transformers 5, or in files -> the name in files. model_type None: open_clip."""
    if model_type in _UNDER_VISION_MODEL:
        return name if name.startswith("vision_model.") else f"vision_model.{name}"
    if model_type in _DINOV2:
        for memory, disk in _DINOV2_ON_DISK:
            name = name.replace(memory, disk)
    return name


def parts_by_name(model: nn.Module) -> dict[str, tuple[Tensor, ...]]:
    """Name in files -> the tower's own tensors that are it: mostly one, else to be joined along dimension 0."""
    kind = model.config.model_type if isinstance(model, PreTrainedModel) else None
    found: dict[str, tuple[Tensor, ...]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        key = name_in_files(kind, name)
        found[key] = (*found.get(key, ()), tensor)
    return found


def joined_shape(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Of tensors joined along dimension 0."""
    if len(shapes) == 1:
        return shapes[0]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def pieces(whole: Tensor, lengths: list[int]) -> tuple[Tensor, ...]:
    """The way back: one tensor of the file, as many as the tower has of it."""
    return whole.split(lengths) if len(lengths) > 1 else (whole,)
