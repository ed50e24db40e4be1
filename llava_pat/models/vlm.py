"""Vision tower + projector + language model, as tensors in and tensors out.

Together with loading.py and towers.py the only place that names Hugging Face attributes. Shape letters as in
llava_pat/types.py: B sequences, T tokens (every image expanded to N positions), I images, N patches, Dv tower width,
D language width, L tokens of a text, S supervised positions, V vocabulary.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.quantization_config import QuantizationConfigMixin

from llava_pat.models.checkpointing import disable_gradient_checkpointing, enable_gradient_checkpointing
from llava_pat.models.last_layer import LastLayer
from llava_pat.models.loading import load_image_processor, load_language_model, load_vision_tower
from llava_pat.models.logits import LogitTransform
from llava_pat.models.padding_free import EndToEnd, Padded, prepare
from llava_pat.models.projectors import build_projector
from llava_pat.models.towers import VisionTower
from llava_pat.types import IGNORE_INDEX, IMAGE_TOKEN_INDEX

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

_LOGITS_AT_ONCE = 2**27  # 4,194 positions of 32,000 words: 2 GiB


class VisionLanguageModel(nn.Module):
    """LLaVA-1.5 from Hugging Face's own classes.

    tower: see towers.py; projector: [..., Dv] -> [..., D]; llm: any AutoModelForCausalLM, LoRA layers within or not.
    select_layer: index into the tower's hidden states as LLaVA counts (0 = embeddings, -2 = before the last layer).
    select_feature: "patch" drops the class token, "cls_patch" keeps it in front (LLaVA's names).
    adapter: the PeftModel around `llm`, once there is one (adapters.py).
    padding_free: whether the language model sees a batch without its padding; see `remove_padding`.
    The tower is frozen from birth; `set_trainable` says what trains. A part without any trainable parameter stays in
    eval mode, also under `.train()`.
    """

    adapter: PeftModel | None

    def __init__(
        self,
        tower: VisionTower,
        projector: nn.Module,
        llm: PreTrainedModel,
        select_layer: int = -2,
        select_feature: str = "patch",
    ) -> None:
        super().__init__()
        tower.check_feature(select_feature)
        tower.layer_index(select_layer)
        self.tower, self.projector, self.llm = tower, projector, llm
        self.select_layer, self.select_feature = select_layer, select_feature
        self.adapter = None
        self.padding_free = False
        self._logit_transform = LogitTransform.of(llm.config)
        self._last_layer = LastLayer.of(llm)

    def __setattr__(self, name: str, value: object) -> None:
        if name == "adapter":  # it wraps `llm`: registered as a part, every weight would have a second name
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @classmethod
    def from_pretrained(
        cls,
        vision_tower: str | Path,
        model_name_or_path: str | Path,
        projector_type: str = "mlp2x_gelu",
        select_layer: int = -2,
        select_feature: str = "patch",
        dtype: torch.dtype = torch.float32,
        attn_implementation: str = "sdpa",
        *,
        llm_dtype: torch.dtype | None = None,
        whole_tower: bool = False,
        quantization_config: QuantizationConfigMixin | None = None,
    ) -> VisionLanguageModel:
        """Pretrained tower and language model (folders or hub ids), with a new projector.

        dtype: of the tower, and of the language model unless llm_dtype is given. The projector stays fp32.
        attn_implementation: the language model's; the tower follows it for "eager" and otherwise takes sdpa.
        whole_tower: keep the tower's layers above `select_layer`, for a tower that is exported. Otherwise they are
        dropped: nothing reads them, and they cost time and memory.
        quantization_config: the language model's (adapters.py makes one).
        """
        tower = load_vision_tower(vision_tower, dtype, "eager" if attn_implementation == "eager" else "sdpa")
        llm = load_language_model(
            model_name_or_path, dtype if llm_dtype is None else llm_dtype, attn_implementation, quantization_config
        )
        projector = build_projector(projector_type, tower.width, llm.config.hidden_size)
        model = cls(tower, projector, llm, select_layer, select_feature)
        if not whole_tower:
            tower.drop_layers_above(select_layer)
        # Read now, so that grids which differ end the run here and not in step 1.
        image_processor = load_image_processor(vision_tower, model.image_size)
        logger.info(
            "%s (layer %d, %s, %d patches of %d pixels, %s of %d pixels) -> %s -> %s (width %d, vocabulary %d, %s), %s",
            vision_tower, select_layer, select_feature, model.num_patches, model.patch_size,
            type(image_processor).__name__, model.image_size, projector_type, model_name_or_path, model.hidden_size,
            model.vocab_size, llm.config._attn_implementation, dtype,
        )  # fmt: skip
        return model

    # ---- sizes

    @property
    def image_size(self) -> int:
        """Side of the square the tower takes, in pixels."""
        return self.tower.image_size

    @property
    def patch_size(self) -> int:
        """Side of a patch, in pixels."""
        return self.tower.patch_size

    @property
    def num_patches(self) -> int:
        """N: positions that one image takes in a sequence."""
        return self.tower.num_patches(self.select_feature)

    @property
    def vision_width(self) -> int:
        """Dv."""
        return self.tower.width

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.llm.config.hidden_size

    @property
    def vocab_size(self) -> int:
        """V: rows of the language model's embedding. A tokenizer's ids must stay below it."""
        return self.llm.get_input_embeddings().num_embeddings

    # ---- the forward, in parts

    def encode_images(self, pixels: Tensor) -> Tensor:
        """pixels [I, 3, S, S] -> features [I, N, Dv] in the tower's dtype. I may be 0.

        With gradient if the tower trains. Raises ValueError when the pixels are not the tower's size.
        """
        images = len(pixels)
        if images == 0:
            # Still a call of the tower: under ZeRO-3 other ranks wait for this one's share of its weights, and where
            # the tower trains, for its (zero) gradients.
            pixels = pixels.new_zeros(1, *pixels.shape[1:])
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.tower_is_trained):
            return self.tower(pixels, self.select_layer, self.select_feature)[:images]

    def project(self, features: Tensor) -> Tensor:
        """features [I, N, Dv] -> patch_embeds [I, N, D], in the projector's dtype (autocast may lower it)."""
        for parameter in self.projector.parameters():
            features = features.to(parameter.dtype)
            break
        return self.projector(features)

    def embed_words(self, ids: Tensor) -> Tensor:
        """ids [..., L] -> [..., L, D]: the LLM's input embeddings, by a call of the module, so ZeRO-3 can gather.

        As they enter the first layer: where a family scales its embeddings (Gemma: by sqrt(D)), the call has done it,
        in every transformers 5 that is supported. So patch_embeds live in the scaled space, as words do.
        """
        return self.llm.get_input_embeddings()(ids)

    def embed_sequence(self, input_ids: Tensor, patch_embeds: Tensor) -> Tensor:
        """input_ids [B, T] with IMAGE_TOKEN_INDEX at image positions, patch_embeds [I, N, D] -> embeds [B, T, D].

        Patches fill the image positions in order: row by row of the batch, left to right. Raises ValueError when the
        number of positions is not I * N.
        """
        is_image = input_ids == IMAGE_TOKEN_INDEX
        positions, patches = int(is_image.sum()), patch_embeds.shape[0] * patch_embeds.shape[1]
        if positions != patches:
            raise ValueError(
                f"input_ids hold {positions} image positions, but patch_embeds bring {patches} = "
                f"{patch_embeds.shape[0]} images x {patch_embeds.shape[1]} patches: the "
                "collator's num_patches or its list of images is not this model's"
            )
        embeds = self.embed_words(input_ids.masked_fill(is_image, 0))
        if patches == 0:
            # Keeps the projector, and a tower that trains, on the graph with gradient 0: a rank without an image must
            # take part in the reduction.
            return embeds + 0 * patch_embeds.sum().to(embeds.dtype)
        return embeds.masked_scatter(is_image.unsqueeze(-1), patch_embeds.to(embeds.dtype))

    def forward_hidden(
        self, input_ids: Tensor, attention_mask: Tensor, patch_embeds: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """input_ids, attention_mask [B, T], patch_embeds [I, N, D] -> last hidden states [B, T, D].

        After the final norm; without meaning on padding, which must be on the right. With labels [B, T] they may have a
        meaning only where the next label is supervised, which saves work. Errors as in `embed_sequence`.
        """
        layout = self._layout(attention_mask)
        embeds = self.embed_sequence(layout.arrange(input_ids), patch_embeds)
        with contextlib.ExitStack() as saving:
            if labels is not None and self._last_layer is not None and not self.is_gradient_checkpointing:
                is_read = F.pad(labels[:, 1:] != IGNORE_INDEX, (0, 1))
                saving.enter_context(self._last_layer.only(layout.arrange(is_read)))
            output = self.llm.get_decoder()(inputs_embeds=embeds, use_cache=False, **layout.arguments())
        return layout.restore(output.last_hidden_state)

    def forward_layers(self, input_ids: Tensor, attention_mask: Tensor, patch_embeds: Tensor) -> tuple[Tensor, ...]:
        """As `forward_hidden`, of every layer: the input embeddings, then what each layer gives, [B, T, D] each.

        The last is after the final norm. Costs the memory of all of them; meant for looking, not for training.
        """
        layout = self._layout(attention_mask)
        embeds = self.embed_sequence(layout.arrange(input_ids), patch_embeds)
        decoder = self.llm.get_decoder()
        output = decoder(inputs_embeds=embeds, use_cache=False, output_hidden_states=True, **layout.arguments())
        return tuple(layout.restore(hidden) for hidden in output.hidden_states)

    def remove_padding(self) -> None:
        """From here on sequences run end to end in one row (padding_free.py); the numbers stay, to rounding.

        DataError for a language model that cannot keep them apart.
        """
        implementation = prepare(self.llm)
        self.padding_free = True
        logger.info("sequences run end to end without padding, kept apart by %s attention", implementation)

    def _layout(self, attention_mask: Tensor) -> Padded | EndToEnd:
        if self.padding_free:
            return EndToEnd.of(attention_mask, self.llm.config._attn_implementation)
        return Padded(attention_mask)

    def supervised_logits(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [B, T, D], labels [B, T] -> (logits [S, V] fp32, targets [S] int64), S positions in row-major order.

        Position t predicts label t + 1. Only positions whose next label is supervised reach lm_head: image positions
        and prompts would only cost memory. S may be 0. Logits are the model's own, capped or scaled where it does so.
        """
        states, targets = self._supervised(hidden, labels)
        return self.logits(states).float(), targets

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] -> [..., V] in the head's dtype: the model's own, capped or scaled where it does so."""
        return self._logit_transform(self.llm.get_output_embeddings()(hidden))

    def caption_loss_sum(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Next-token cross entropy in nats: (fp32 scalar SUM, on the graph even when S is 0; fp32 scalar S).

        Where S * V is large, logits are made for some positions at a time, and again in the backward pass: they take
        16 bytes a number, half of them at the peak of all activations.
        """
        states, targets = self._supervised(hidden, labels)
        positions = self._positions_at_once(len(targets))
        if len(targets) <= positions:
            total = self._cross_entropy_sum(states, targets)
        else:
            pieces = zip(states.split(positions), targets.split(positions), strict=True)
            total = torch.stack([_recomputed(self._cross_entropy_sum, *piece) for piece in pieces]).sum()
        return total, torch.tensor(len(targets), dtype=torch.float32, device=total.device)

    def _supervised(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """([S, D], targets [S])."""
        targets = labels[:, 1:]
        supervised = targets != IGNORE_INDEX
        return hidden[:, :-1][supervised], targets[supervised]

    def _cross_entropy_sum(self, states: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(states).float(), targets, reduction="sum")

    def _positions_at_once(self, supervised: int) -> int:
        """How many positions the head is called for; under ZeRO-3 all: ranks must call it equally often."""
        if hasattr(self.llm.get_output_embeddings().weight, "ds_id"):
            return supervised
        return max(1, _LOGITS_AT_ONCE // self.vocab_size)

    # ---- what trains

    @property
    def tower_is_trained(self) -> bool:
        return self.tower.is_trained

    def set_trainable(self, *, llm: bool, projector: bool = True, tower_layers: int = 0) -> None:
        """What trains from here, logged. Before LoRA is added: its weights are made trainable by themselves.

        llm: all of the language model, embeddings and head too. tower_layers: 0 none, n the last n layers that are
        used, -1 all of the tower that is used. Raises ValueError for more layers than there are, for a quantized
        language model that should train, and after LoRA was added.
        """
        if self.adapter is not None:
            raise ValueError("LoRA was added already: freezing or unfreezing now would touch its weights as well")
        if llm and self.llm.config.to_dict().get("quantization_config") is not None:
            raise ValueError("a quantized language model cannot train in full: add LoRA, or load it unquantized")
        self.llm.requires_grad_(llm)
        self.projector.requires_grad_(projector)
        self.tower.train_layers(tower_layers, self.select_layer)
        self.train(self.training)
        for name, part in self._parts():
            total = sum(_size(parameter) for parameter in part.parameters())
            trains = sum(_size(parameter) for parameter in part.parameters() if parameter.requires_grad)
            logger.info("%s: %d of %d parameters train", name, trains, total)

    def freeze_for_stage1(self) -> None:
        """Only the projector trains."""
        self.set_trainable(llm=False)

    def train(self, mode: bool = True) -> VisionLanguageModel:
        super().train(mode)
        for _, part in self._parts():
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        if mode and self.is_gradient_checkpointing:
            # transformers checkpoints a layer only where its own flag says training. The flag is set on the layers
            # alone, not on what they hold, so that a frozen language model's dropout stays off.
            for layer in self._checkpointed_layers():
                layer.training = True
        return self

    def _parts(self) -> tuple[tuple[str, nn.Module], ...]:
        return ("tower", self.tower), ("projector", self.projector), ("llm", self.llm)

    @property
    def is_gradient_checkpointing(self) -> bool:
        return any(layer.gradient_checkpointing for layer in self._checkpointed_layers())

    def _checkpointed_layers(self) -> list[GradientCheckpointingLayer]:
        return [module for module in self.llm.modules() if isinstance(module, GradientCheckpointingLayer)]

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None) -> None:
        """Recomputes the language model's layers in the backward pass, and those of a tower that trains.

        Non-reentrant unless told otherwise: text-only batches under LoRA have embeddings without gradient, through
        which the reentrant kind would lose the gradients of the first layers.
        """
        enable_gradient_checkpointing(self.llm, gradient_checkpointing_kwargs)
        if self.tower_is_trained:
            self.tower.gradient_checkpointing_enable(gradient_checkpointing_kwargs)
        self.train(self.training)

    def gradient_checkpointing_disable(self) -> None:
        disable_gradient_checkpointing(self.llm)
        if self.tower_is_trained:
            self.tower.gradient_checkpointing_disable()
        self.train(self.training)


def _recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), of which nothing but the inputs is kept for the backward pass. It must draw no numbers."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def _size(parameter: nn.Parameter) -> int:
    """Elements, also where ZeRO-3 holds the parameter in shards (it leaves numel() 0 and keeps the count aside)."""
    return parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()
