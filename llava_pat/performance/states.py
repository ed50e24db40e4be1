"""What a run takes on a GPU beside activations: weights and optimizer states, whole or in shares of DeepSpeed's ZeRO.

Sources: ZeRO (arXiv 1910.02054): stage 1 shares optimizer states, 2 gradients as well, 3 weights as well; in mixed
precision a trained weight has 12 bytes of state (fp32 copy, two moments of AdamW). Without DeepSpeed the trained
weights are fp32 themselves, and AdamW keeps 8 bytes for each. Buffers, and what an update takes: DeepSpeed 0.19.8's
runtime/zero/stage_1_and_2.py and stage3.py, torch 2.13's optim/adamw.py and DistributedDataParallel's buckets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from llava_pat.performance.quantized_stand_in import StandIn
from llava_pat.performance.shapes import Recipe
from llava_pat.training.task import AlignedTraining

# Bytes of a trained weight.
_MOMENTS = 8  # two in fp32
_MASTER = 4  # DeepSpeed's fp32 copy
_FP32_GRADIENT = 4  # which DeepSpeed makes for the update
_DENOMINATOR = 4  # of AdamW, for all weights of an update at once (foreach, torch's default on a GPU)
_DDP_BUCKET = 4  # the gradient once more, on its way
_BLOCK, _SECOND_BLOCK = 64, 256  # weights that share a constant, and constants that share one (QLoRA, arXiv 2305.14314)


@dataclass(frozen=True)
class Sharing:
    """How ZeRO shares the states of `ranks` GPUs. Stage 0: DDP, or one GPU."""

    ranks: int
    stage: int = 0
    offload_optimizer: bool = False
    offload_weights: bool = False
    live_weights: int = 0  # most numbers that stage 3 holds together at a time
    group: int = 0  # most numbers that stage 3 updates at a time on a GPU
    bucket: int | None = None  # numbers of a bucket of gradients; None: "auto"

    @classmethod
    def of(cls, plan: Mapping[str, Any] | None, ranks: int) -> Sharing:
        """plan: a DeepSpeed configuration; None is none."""
        if plan is None:
            return cls(ranks)
        zero = plan.get("zero_optimization", {})
        offloads = {
            name: zero.get(f"offload_{name}", {}).get("device", "none") != "none" for name in ("optimizer", "param")
        }
        bucket = zero.get("reduce_bucket_size", 5e8)  # numbers: DeepSpeed's defaults, where the file has none
        return cls(
            ranks,
            int(zero.get("stage", 0)),
            offloads["optimizer"],
            offloads["param"],
            int(zero.get("stage3_max_live_parameters", 1e9)),
            int(zero.get("sub_group_size", 1e9)),
            None if bucket == "auto" else int(bucket),
        )

    @property
    def gradient_share(self) -> float:
        """The part of the gradients that stays on a GPU through the backward pass, in the training's dtype."""
        if self.stage >= 2 and self.offload_optimizer:
            return 0.0
        return 1 / self.ranks if self.stage >= 2 else 1.0


@dataclass(frozen=True)
class States:
    """Bytes of one GPU, and `host` bytes of its share of the machine's memory."""

    weights: float
    optimizer: float
    buckets: float  # of gradients on their way
    gathered: float  # weights that are whole, or unpacked, while they multiply: beside activations
    update: float  # what an update takes beside all these, when the activations are gone
    host: float = 0.0
    room_for_gradients: bool = False  # is kept between steps
    update_replaces_gradients: bool = False  # by fp32 ones, which `update` holds


def states_of(task: AlignedTraining, recipe: Recipe, sharing: Sharing) -> States:
    """States of a training module on the meta device, whose dtypes are those of the run."""
    packed = [module.weight for module in task.model.llm.modules() if isinstance(module, StandIn)]
    inside = {id(weight) for weight in packed}
    parameters = list(task.parameters())
    weights = sum(_packed_bytes(weight, recipe) for weight in packed)
    weights += sum(_bytes(tensor) for tensor in (*parameters, *task.buffers()) if id(tensor) not in inside)
    count = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    if sharing.stage == 0:
        unpacked = max((2 * weight.numel() for weight in packed), default=0)  # one layer's at a time, in 16 bits
        buckets = _DDP_BUCKET * count if sharing.ranks > 1 else 0
        return States(weights, _MOMENTS * count, buckets, unpacked, _DENOMINATOR * count)
    share = count / sharing.ranks
    bucket = (
        task.config.hidden_size**2 if sharing.bucket is None else sharing.bucket
    )  # "auto", as transformers fills it
    buckets = 2.0 * 2 * bucket  # bytes; two: one fills while one is sent
    optimizer, host = (_MOMENTS + _MASTER) * share, 0.0
    updated = min(share, sharing.group) if sharing.stage == 3 else share
    update = (_FP32_GRADIENT + _DENOMINATOR) * updated
    if sharing.offload_optimizer:  # there the gradients are all the time: in fp32, and in stage 3 in 16 bits as well
        host = optimizer + (_FP32_GRADIENT + (2 if sharing.stage == 3 else 0)) * share
        optimizer = update = 0.0
    if sharing.stage < 3:
        return States(weights, optimizer, buckets, 0.0, update, host, update_replaces_gradients=sharing.stage == 2)
    shard, live = weights / sharing.ranks, min(weights, 2.0 * sharing.live_weights)
    if sharing.offload_weights:
        host, shard = host + shard, 0.0
    return States(shard, optimizer, buckets, live, update, host, room_for_gradients=True)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _packed_bytes(weight: nn.Parameter, recipe: Recipe) -> float:
    if recipe.bits == 8:
        return weight.numel() + 4.0 * weight.shape[0]  # a scale for each row
    constants = 1 / _BLOCK + 4 / (_BLOCK * _SECOND_BLOCK) if recipe.double_quant else 4 / _BLOCK
    return weight.numel() * (0.5 + constants)
