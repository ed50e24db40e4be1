"""Florence-2 (arXiv 2311.06242) as a tagger and a detector: a task token in, text with <loc_N> tokens out.

transformers' own port (model_type florence2), such as florence-community/Florence-2-base; Microsoft's repositories hold
code of their own and are not loaded. Its answers have no scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoProcessor, Florence2ForConditionalGeneration

from llava_pat.annotation.pretrained import Placement, load_model, load_part
from llava_pat.annotation.stages import Images

MODEL = "florence-community/Florence-2-large"


class Florence2:
    """Answers of a Florence-2, parsed by its processor."""

    def __init__(self, model: str, place: Placement, max_new_tokens: int, num_beams: int, batch_size: int) -> None:
        self.name, self._place = model, place
        self._model = load_model(Florence2ForConditionalGeneration, model, ("florence2",), place, "Florence-2")
        self.processor = load_part(AutoProcessor, model, "Florence-2", backend="pil")
        self._limits = {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "do_sample": False}
        self._batch_size = batch_size

    def ask(self, images: Images, task: str, texts: Sequence[str] | None = None) -> list[Any]:
        """One parsed answer an image. task: "<OD>" ...; texts: what follows it, for tasks that take some."""
        prompts = [task + text for text in (texts or [""] * len(images))]
        answers: list[Any] = []
        for start in range(0, len(images), self._batch_size):
            part = slice(start, start + self._batch_size)
            answers.extend(self._ask(list(images[part]), task, prompts[part]))
        return answers

    @torch.inference_mode()
    def _ask(self, images: list, task: str, prompts: list[str]) -> list[Any]:
        inputs = self._place.move(self.processor(images=images, text=prompts, padding=True, return_tensors="pt"))
        with self._place.autocast():
            generated = self._model.generate(**inputs, **self._limits)
        # its parser drops <s> and </s> of a caption, and leaves the padding of a batch
        pad = self.processor.tokenizer.pad_token
        texts = [text.replace(pad, "") for text in self.processor.batch_decode(generated, skip_special_tokens=False)]
        return [
            self.processor.post_process_generation(text=text, task=task, image_size=(image.width, image.height))[task]
            for text, image in zip(texts, images, strict=True)
        ]
