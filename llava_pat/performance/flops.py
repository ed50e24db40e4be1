"""Floating-point operations of a training step, counted from the modules: what the mathematics needs, no more.

A multiplication and an addition are two. Counted are matrix products, as everywhere (PaLM, arXiv 2204.02311, appendix
B): a linear layer of P weights costs 2 P a token forward, 2 P for its input's gradient and 2 P for its weights', the
last only where they train. So a frozen language model of N weights costs 2 N + 2 N, a trained one 6 N. Attention adds,
for each layer and sequence of T tokens, 4 T^2 w forward (Q K^T and its product with V; w heads x width of a head) and
8 T^2 w backward. The whole square is counted, although half of it is masked, as others do. Not counted: recomputation
under gradient checkpointing (`recomputed` has it), norms, softmax, rotary embeddings, the optimizer. Counted although
it is not done: what models/last_layer.py leaves out.

Letters as in llava_pat/types.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig

from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.performance import phases


@dataclass(frozen=True)
class Work:
    """What a micro-batch holds, padding included."""

    sequences: int  # B
    tokens: int  # T
    images: int  # I
    supervised: int  # S


@dataclass(frozen=True)
class StepFlops:
    """by_phase: model FLOPs by the names of phases.py; recomputed: what gradient checkpointing adds to them."""

    by_phase: dict[str, float]
    recomputed: float

    @property
    def total(self) -> float:
        return sum(self.by_phase.values())


def step_flops(model: VisionLanguageModel, work: Work) -> StepFlops:
    """Model FLOPs of forward and backward of one micro-batch. The model may be on the meta device.

    Padding is counted as tokens. What trains is read from requires_grad; gradients reach all of the language model's
    layers (they do when the projector or the embeddings train). Raises ValueError for a mixture of experts.
    """
    _refuse_experts(model.llm.config)
    head = model.llm.get_output_embeddings()
    linears = [module for module in model.llm.modules() if _is_linear(module) and module is not head]
    tokens = work.sequences * work.tokens
    square = 4.0 * work.sequences * work.tokens**2 * _attention_width(model.llm.config)
    layers = model.llm.config.num_hidden_layers
    llm_forward = 2.0 * tokens * _weights(linears) + square * layers
    llm_backward = llm_forward + square * layers + 2.0 * tokens * _weights(linears, training=True)

    tower_forward, tower_backward = _tower(model, work.images)
    projector = [module for module in model.projector.modules() if _is_linear(module)]
    rows = work.images * model.num_patches
    first = _weights(projector[:1]) if not model.tower_is_trained else 0  # nobody asks for the features' gradient
    needs_inputs = model.tower_is_trained or any(p.requires_grad for p in model.projector.parameters())
    projector_backward = 2.0 * rows * _weights(projector, training=True)
    if needs_inputs:
        projector_backward += 2.0 * rows * (_weights(projector) - first)
    head_forward = 2.0 * work.supervised * _weights([head])
    by_phase = {
        phases.TOWER: tower_forward,
        phases.PROJECTOR: 2.0 * rows * _weights(projector),
        phases.LLM: llm_forward,
        phases.HEAD: head_forward,
        phases.HEAD_BACKWARD: head_forward + 2.0 * work.supervised * _weights([head], training=True),
        phases.LLM_BACKWARD: llm_backward,
        phases.PROJECTOR_BACKWARD: projector_backward + tower_backward,
    }
    recomputed = llm_forward if model.is_gradient_checkpointing else 0.0
    if model.is_gradient_checkpointing and model.tower_is_trained:
        recomputed += tower_forward
    return StepFlops(by_phase, recomputed)


def _tower(model: VisionLanguageModel, images: int) -> tuple[float, float]:
    """(forward, backward): the layers that are run, and the embedding of patches."""
    tower = model.tower
    used = tower.layers[: tower.layer_index(model.select_layer)]
    linears = [module for layer in used for module in layer.modules() if _is_linear(module)]
    tokens = tower.grid**2 + tower.prefix_tokens
    patches = 2.0 * images * tower.grid**2 * 3 * tower.patch_size**2 * tower.width
    square = 4.0 * images * tokens**2 * tower.width
    forward = patches + 2.0 * images * tokens * _weights(linears) + square * len(used)
    if not tower.is_trained:
        return forward, 0.0
    trained = [layer for layer in used if any(p.requires_grad for p in layer.parameters())]
    within = [module for layer in trained for module in layer.modules() if _is_linear(module)]
    backward = 2.0 * images * tokens * (_weights(within) + _weights(within, training=True)) + 2 * square * len(trained)
    # The pixels need no gradient: where the embedding trains, its weights alone cost.
    stem_trains = len(trained) == len(used) and any(p.dim() == 4 and p.requires_grad for p in tower.parameters())
    return forward, backward + (patches if stem_trains else 0.0)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)  # bitsandbytes' layers are, too


def _weights(modules: list[nn.Module], training: bool = False) -> float:
    """Weights of linear layers; training: of those that train. By features: a quantised weight is packed."""
    chosen = [module for module in modules if not training or module.weight.requires_grad]
    return float(sum(module.in_features * module.out_features for module in chosen))


def _attention_width(config: PretrainedConfig) -> int:
    """Heads x width of a head."""
    head_width = config.to_dict().get("head_dim")
    return config.num_attention_heads * head_width if head_width else config.hidden_size


def _refuse_experts(config: PretrainedConfig) -> None:
    expert_keys = [key for key in config.to_dict() if key in ("num_local_experts", "num_experts", "n_routed_experts")]
    if expert_keys:
        raise ValueError(
            f"a {config.model_type} model routes tokens to experts ({expert_keys[0]}): its FLOPs are not counted here"
        )
