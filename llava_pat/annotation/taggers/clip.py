"""Labels by CLIP: the words of a vocabulary file that are nearest to the whole image, zero-shot.

CLIP (arXiv 2103.00020, section 3.1): cosine of image and "a photo of a {label}.", times the logit scale, softmax over
the vocabulary. open_clip's models are on the hub in transformers' format too (laion/CLIP-ViT-B-32-laion2B-s34B-b79K).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from llava_pat.annotation.pretrained import Placement, load_image_processor, load_model, load_part
from llava_pat.annotation.stages import Images, Tagger
from llava_pat.types import DataError

_TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class ClipOptions:
    vocabulary: str = ""
    """A text file, a label a line; lines that begin with # are notes. Needed."""
    model: str = "openai/clip-vit-large-patch14-336"
    template: str = "a photo of a {}."
    top_k: int = 10
    """At most so many labels an image."""
    min_probability: float = 0.02
    """Softmax over the vocabulary; a larger vocabulary wants a lower one."""

    def __post_init__(self) -> None:
        if "{}" not in self.template:
            raise DataError(f"clip tagger: the template {self.template!r} has no {{}} for the label")
        if self.top_k < 1 or not 0 <= self.min_probability < 1:
            raise DataError(f"clip tagger: top_k {self.top_k} (>= 1), min_probability {self.min_probability} ([0, 1))")


class ClipTagger(Tagger):
    """Nearest words of a vocabulary."""

    Options = ClipOptions

    def __init__(self, options: ClipOptions, place: Placement) -> None:
        self.options, self._place = options, place
        self.labels = read_vocabulary(options.vocabulary)
        self._model = load_model(CLIPModel, options.model, ("clip",), place, "tagger")
        self._processor = load_image_processor(options.model, "tagger")
        tokenizer = load_part(AutoTokenizer, options.model, "tagger")
        self._texts = torch.cat(
            [
                self._embed_texts(tokenizer, self.labels[start : start + _TEXTS_AT_ONCE])
                for start in range(0, len(self.labels), _TEXTS_AT_ONCE)
            ]
        )

    @torch.inference_mode()
    def probabilities(self, images: Images) -> Tensor:
        """float32 [I, V] on the CPU: softmax over the vocabulary."""
        inputs = self._place.move(self._processor(images=list(images), return_tensors="pt"))
        with self._place.autocast():
            features = self._model.get_image_features(**inputs).pooler_output.float()
        cosines = torch.nn.functional.normalize(features, dim=-1) @ self._texts.T
        return (cosines * self._model.logit_scale.float().exp()).softmax(-1).cpu()

    def tag(self, images: Images, captions: Sequence[str]) -> list[list[str]]:
        best = self.probabilities(images).topk(min(self.options.top_k, len(self.labels)))
        return [
            [self.labels[i] for p, i in zip(ps, places, strict=True) if p >= self.options.min_probability]
            for ps, places in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    @property
    def version(self) -> str:
        return f"clip {self.options.model}"

    @torch.inference_mode()
    def _embed_texts(self, tokenizer, labels: Sequence[str]) -> Tensor:
        prompts = [self.options.template.format(label) for label in labels]
        inputs = tokenizer(prompts, padding=True, truncation=True, max_length=self._text_length(), return_tensors="pt")
        with self._place.autocast():
            features = self._model.get_text_features(**self._place.move(inputs)).pooler_output.float()
        return torch.nn.functional.normalize(features, dim=-1)

    def _text_length(self) -> int:
        return self._model.config.text_config.max_position_embeddings


def read_vocabulary(path: str) -> list[str]:
    """Labels, a line each, in their order, each once. DataError for none."""
    if not path:
        raise DataError("clip tagger: vocabulary is not given; it is a text file with a label a line")
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a vocabulary: {error}") from error
    labels = list(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.startswith("#")))
    if not labels:
        raise DataError(f"{path}: holds no label")
    return labels
