"""Model sizes by name, and the training module of that size with made-up weights: nothing is downloaded.

Sources: config.json of lmsys/vicuna-7b-v1.5, lmsys/vicuna-13b-v1.5 and openai/clip-vit-large-patch14-336;
playground/models. `mid` is what two CPU cores take in seconds: 38 M parameters in its layers, a head of 32,000 words,
576 patches.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import AutoModel, AutoModelForCausalLM, CLIPVisionConfig, LlamaConfig, PretrainedConfig

from llava_pat.alignment import Part, build_planned, plan_objectives
from llava_pat.models.adapters import add_lora
from llava_pat.models.projectors import build_projector
from llava_pat.models.towers import VisionTower
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.performance.quantized_stand_in import pretend_quantized
from llava_pat.training.task import AlignedTraining

Trains = Literal["projector", "all", "lora"]


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, and of the sequences that it is measured with."""

    name: str
    tower: PretrainedConfig
    llm: PretrainedConfig
    batch_size: int  # sequences of a micro-batch
    text_tokens: int  # supervised tokens behind the image; T = 1 (BOS) + N + text_tokens
    dtype: torch.dtype  # of matrix products
    projector: str = "mlp2x_gelu"
    select_layer: int = -2
    select_feature: str = "patch"
    image_size: int | None = None  # None: the tower config's


CONFIGS: dict[str, PretrainedConfig] = {
    "lmsys/vicuna-7b-v1.5": LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, vocab_size=32000, max_position_embeddings=4096, rms_norm_eps=1e-5,
    ),
    "lmsys/vicuna-13b-v1.5": LlamaConfig(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40,
        num_key_value_heads=40, vocab_size=32000, max_position_embeddings=4096, rms_norm_eps=1e-5,
    ),
    "openai/clip-vit-large-patch14-336": CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    ),
}  # fmt: skip
"""What the published recipe names, so that it can be planned without a network."""

_MID_TOWER = CLIPVisionConfig(
    hidden_size=256, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=4, image_size=336, patch_size=14
)
_MID_LLM = LlamaConfig(
    hidden_size=512, intermediate_size=1376, num_hidden_layers=12, num_attention_heads=8, num_key_value_heads=8,
    vocab_size=32000, max_position_embeddings=2048,
)  # fmt: skip
_PLAYGROUND_TOWER = CLIPVisionConfig(
    hidden_size=192, intermediate_size=576, num_hidden_layers=5, num_attention_heads=6, image_size=80, patch_size=8,
    projection_dim=128,
)  # fmt: skip
_PLAYGROUND_LLM = LlamaConfig(
    hidden_size=320, intermediate_size=640, num_hidden_layers=5, num_attention_heads=5, num_key_value_heads=5,
    head_dim=64, vocab_size=1310, max_position_embeddings=2048, rms_norm_eps=1e-5,
)  # fmt: skip
_CLIP_L = CONFIGS["openai/clip-vit-large-patch14-336"]

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llava-v1.5-7b", _CLIP_L, CONFIGS["lmsys/vicuna-7b-v1.5"], 16, 40, torch.bfloat16),
        Shape("llava-v1.5-13b", _CLIP_L, CONFIGS["lmsys/vicuna-13b-v1.5"], 16, 40, torch.bfloat16),
        Shape("mid", _MID_TOWER, _MID_LLM, 4, 40, torch.bfloat16),
        Shape("playground", _PLAYGROUND_TOWER, _PLAYGROUND_LLM, 32, 24, torch.float32),
    )
}


@dataclass(frozen=True)
class Recipe:
    """How a step trains, as training/parts.py and training/trainer.py make it of a run's arguments.

    trains: "projector" (stage 1), "all" of the language model and the projector (stage 2), or "lora" and the projector.
    masters: weights that train are fp32 under autocast; False: all are in `dtype`, as under DeepSpeed.
    tower_layers: layers of the tower that train, as VisionLanguageModel.set_trainable counts.
    padding_free: --padding_free (models/padding_free.py).
    bits, double_quant: below 16 the language model is quantised; such a task is built to be planned, not to be run.
    """

    trains: Trains
    dtype: torch.dtype
    masters: bool = True
    checkpointing: bool = False
    padding_free: bool = False
    projector_trains: bool = True
    tower_layers: int = 0
    attention: str = "sdpa"
    lora_r: int = 128
    lora_alpha: int = 256
    lora_dropout: float = 0.05
    bits: int = 16
    double_quant: bool = True
    objectives: Mapping[str, Part] = field(default_factory=lambda: plan_objectives("none", {}, 1.0, None))

    @property
    def stage(self) -> int:
        return 1 if self.trains == "projector" else 2


def build_task(shape: Shape, recipe: Recipe, device: torch.device | str) -> AlignedTraining:
    """The training module, in training mode, with random weights on `device` ("meta": without any).

    Dtypes, frozen parts and LoRA are those of a run.
    """
    trained = torch.float32 if recipe.masters else recipe.dtype
    tower_dtype = trained if recipe.tower_layers else recipe.dtype
    llm_dtype = trained if recipe.trains == "all" else recipe.dtype
    with torch.device(device):
        tower_model = AutoModel.from_config(
            copy.deepcopy(shape.tower),
            dtype=tower_dtype,
            attn_implementation=recipe.attention,
            trust_remote_code=False,
        )
        tower = VisionTower(tower_model, shape.image_size)
        llm = AutoModelForCausalLM.from_config(
            copy.deepcopy(shape.llm), dtype=llm_dtype, attn_implementation=recipe.attention, trust_remote_code=False
        ).eval()
        projector = build_projector(shape.projector, tower.width, shape.llm.hidden_size).to(trained)
        model = VisionLanguageModel(tower, projector, llm, shape.select_layer, shape.select_feature)
        tower.drop_layers_above(shape.select_layer)
        model.set_trainable(
            llm=recipe.trains == "all", projector=recipe.projector_trains, tower_layers=recipe.tower_layers
        )
        if recipe.bits < 16:
            pretend_quantized(model)
        if recipe.trains == "lora":
            add_lora(model, r=recipe.lora_r, alpha=recipe.lora_alpha, dropout=recipe.lora_dropout)
        objective = build_planned(recipe.objectives, hidden_size=model.hidden_size, vision_width=model.vision_width)
        task = AlignedTraining(model, objective, {name: part.weight for name, part in recipe.objectives.items()})
        if not recipe.masters:
            for parameter in task.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(recipe.dtype)
    if recipe.padding_free:
        model.remove_padding()
    task.train()
    if recipe.checkpointing:
        model.gradient_checkpointing_enable()
    return task
