"""Vision tower + projector + language model, as tensors in and tensors out.

Together with loading.py the only place that names Hugging Face attributes. Shape letters as in llava_pat/types.py:
B sequences, T tokens (every image expanded to N positions), I images, N patches, Dv tower width, D language width,
L tokens of a text, S supervised positions, V vocabulary.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from llava_pat.models.loading import (
    disable_gradient_checkpointing,
    enable_gradient_checkpointing,
    load_image_processor,
    load_language_model,
    load_vision_tower,
)
from llava_pat.models.projectors import build_projector
from llava_pat.types import IGNORE_INDEX, IMAGE_TOKEN_INDEX

logger = logging.getLogger(__name__)

SELECT_FEATURES = ("patch", "cls_patch")


class VisionLanguageModel(nn.Module):
    """LLaVA-1.5 from Hugging Face's own classes.

    tower: CLIPVisionModel; projector: [..., Dv] -> [..., D]; llm: any AutoModelForCausalLM with logits lm_head(hidden).
    select_layer: index into the tower's hidden states as LLaVA counts (0 = embeddings, -2 = before the last layer).
    select_feature: "patch" drops the class token, "cls_patch" keeps it in front (LLaVA's names).
    The tower is in eval mode from birth and its features carry no gradient; freezing is `freeze_for_stage1`.
    """

    def __init__(
        self,
        tower: CLIPVisionModel,
        projector: nn.Module,
        llm: PreTrainedModel,
        select_layer: int = -2,
        select_feature: str = "patch",
    ) -> None:
        super().__init__()
        if select_feature not in SELECT_FEATURES:
            raise ValueError(f"select_feature {select_feature!r} is unknown. Known: {', '.join(SELECT_FEATURES)}.")
        depth = len(tower.encoder.layers)
        layer = select_layer if select_layer >= 0 else depth + 1 + select_layer
        if not 0 <= layer <= depth:
            raise ValueError(
                f"select_layer {select_layer} is out of range: the vision tower has {depth} layers, so {-depth - 1} "
                f"to {depth}"
            )
        self.tower, self.projector, self.llm = tower, projector, llm
        self.select_layer, self.select_feature = select_layer, select_feature
        self._layer = layer  # non-negative: hidden state after this many layers
        self._frozen: tuple[nn.Module, ...] = (tower,)
        tower.eval()

    @classmethod
    def from_pretrained(
        cls,
        vision_tower: str,
        model_name_or_path: str,
        projector_type: str = "mlp2x_gelu",
        select_layer: int = -2,
        select_feature: str = "patch",
        dtype: torch.dtype = torch.float32,
        attn_implementation: str = "sdpa",
    ) -> VisionLanguageModel:
        """Pretrained tower and language model (folders or hub ids), with a new projector.

        dtype: of tower and language model. The projector stays fp32, as LLaVA keeps it: it is what stage 1 trains.
        attn_implementation: the language model's; the tower follows it for "eager" and otherwise takes sdpa.
        The tower's layers above `select_layer` are dropped: nothing reads them, and they cost time and memory.
        """
        tower = load_vision_tower(vision_tower, dtype, "eager" if attn_implementation == "eager" else "sdpa")
        llm = load_language_model(model_name_or_path, dtype, attn_implementation)
        projector = build_projector(projector_type, tower.config.hidden_size, llm.config.hidden_size)
        model = cls(tower, projector, llm, select_layer, select_feature)
        del tower.encoder.layers[model._layer :]
        # Read now, so that grids which differ end the run here and not in step 1.
        image_processor = load_image_processor(vision_tower, model.image_size)
        logger.info(
            "%s (layer %d, %s, %d patches of %d pixels, image %s) -> %s -> %s (width %d, vocabulary %d), %s",
            vision_tower, select_layer, select_feature, model.num_patches, model.patch_size,
            dict(image_processor.crop_size), projector_type, model_name_or_path, model.hidden_size, model.vocab_size,
            dtype,
        )  # fmt: skip
        return model

    # ---- sizes

    @property
    def image_size(self) -> int:
        """Side of the square the tower takes, in pixels."""
        return self.tower.config.image_size

    @property
    def patch_size(self) -> int:
        """Side of a patch, in pixels."""
        return self.tower.config.patch_size

    @property
    def num_patches(self) -> int:
        """N: positions that one image takes in a sequence."""
        return (self.image_size // self.patch_size) ** 2 + (self.select_feature == "cls_patch")

    @property
    def vision_width(self) -> int:
        """Dv."""
        return self.tower.config.hidden_size

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.llm.config.hidden_size

    @property
    def vocab_size(self) -> int:
        """V: rows of the language model's embedding. A tokenizer's ids must stay below it."""
        return self.llm.get_input_embeddings().num_embeddings

    # ---- the forward, in parts

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """pixels [I, 3, S, S] -> features [I, N, Dv] in the tower's dtype, without gradient. I may be 0.

        Raises ValueError when the pixels are not the tower's size.
        """
        side = self.image_size
        if pixels.dim() != 4 or tuple(pixels.shape[1:]) != (3, side, side):
            raise ValueError(f"the vision tower takes pixels [I, 3, {side}, {side}], got {list(pixels.shape)}")
        images = len(pixels)
        if images == 0:  # still a call of the tower: under ZeRO-3 other ranks wait for this one's share of its weights
            pixels = pixels.new_zeros(1, 3, side, side)
        pixels = pixels.to(self.tower.dtype)
        if len(self.tower.encoder.layers) == self._layer:
            states = self.tower(pixel_values=pixels).last_hidden_state  # CLIP's: before the final layer norm
        else:
            states = self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states[self._layer]
        return states[:images, 1:] if self.select_feature == "patch" else states[:images]

    def project(self, features: Tensor) -> Tensor:
        """features [I, N, Dv] -> patch_embeds [I, N, D], in the projector's dtype (autocast may lower it)."""
        for parameter in self.projector.parameters():
            features = features.to(parameter.dtype)
            break
        return self.projector(features)

    def embed_words(self, ids: Tensor) -> Tensor:
        """ids [..., L] -> [..., L, D]: the LLM's input embeddings, by a call of the module, so ZeRO-3 can gather."""
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
            # Keeps the projector on the graph with gradient 0: a rank without an image must take part in the reduction.
            return embeds + 0 * patch_embeds.sum().to(embeds.dtype)
        return embeds.masked_scatter(is_image.unsqueeze(-1), patch_embeds.to(embeds.dtype))

    def forward_hidden(self, input_ids: Tensor, attention_mask: Tensor, patch_embeds: Tensor) -> Tensor:
        """input_ids, attention_mask [B, T], patch_embeds [I, N, D] -> last hidden states [B, T, D].

        After the final norm. Padding must be on the right. Errors as in `embed_sequence`.
        """
        embeds = self.embed_sequence(input_ids, patch_embeds)
        decoder = self.llm.get_decoder()
        return decoder(inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False).last_hidden_state

    def supervised_logits(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [B, T, D], labels [B, T] -> (logits [S, V] fp32, targets [S] int64), S positions in row-major order.

        Position t predicts label t + 1. Only positions whose next label is supervised reach lm_head: image positions
        and prompts would only cost memory. S may be 0.
        """
        targets = labels[:, 1:]
        supervised = targets != IGNORE_INDEX
        logits = self.llm.get_output_embeddings()(hidden[:, :-1][supervised])
        return logits.float(), targets[supervised]

    def caption_loss_sum(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Next-token cross entropy in nats: (fp32 scalar SUM, on the graph even when S is 0; fp32 scalar S)."""
        logits, targets = self.supervised_logits(hidden, labels)
        total = F.cross_entropy(logits, targets, reduction="sum")
        return total, torch.tensor(len(targets), dtype=torch.float32, device=total.device)

    # ---- what trains

    def freeze_for_stage1(self) -> None:
        """Only the projector trains from here. Tower and language model stay in eval mode, also under `.train()`."""
        self.tower.requires_grad_(False)
        self.llm.requires_grad_(False)
        self.projector.requires_grad_(True)
        self._frozen = (self.tower, self.llm)
        self.train(self.training)
        for name, part in (("tower", self.tower), ("projector", self.projector), ("llm", self.llm)):
            total = sum(parameter.numel() for parameter in part.parameters())
            trains = sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)
            logger.info("stage 1: %s: %d of %d parameters train", name, trains, total)

    def train(self, mode: bool = True) -> VisionLanguageModel:
        super().train(mode)
        for part in self._frozen:
            part.eval()
        if mode and self.is_gradient_checkpointing:
            # transformers checkpoints a layer only where its own flag says training. The flag is set on the layers
            # alone, not on what they hold, so that a frozen language model's dropout stays off.
            for layer in self._checkpointed_layers():
                layer.training = True
        return self

    @property
    def is_gradient_checkpointing(self) -> bool:
        return any(layer.gradient_checkpointing for layer in self._checkpointed_layers())

    def _checkpointed_layers(self) -> list[GradientCheckpointingLayer]:
        return [module for module in self.llm.modules() if isinstance(module, GradientCheckpointingLayer)]

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None) -> None:
        """Recomputes the language model's layers in the backward pass (non-reentrant unless told otherwise)."""
        enable_gradient_checkpointing(self.llm, gradient_checkpointing_kwargs)
        self.train(self.training)

    def gradient_checkpointing_disable(self) -> None:
        disable_gradient_checkpointing(self.llm)
        self.train(self.training)
