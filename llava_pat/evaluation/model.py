"""From questions to answers: a checkpoint of any layout, its template and tokenizer, and one generate loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llava_pat.data.templates import Template
from llava_pat.evaluation.questions import Question
from llava_pat.models.from_folder import LoadedModel


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen; LLaVA's flags. Greedy unless told otherwise."""

    temperature: float = 0.0  # 0: the most likely token
    top_p: float | None = None
    num_beams: int = 1
    seed: int = 0  # with a temperature: what a question gets depends on it and the question, not on the batch


class Answerer:
    """A model that answers questions.

    name: LLaVA's model_id. template: the conversation it was trained with. fingerprint: what provenance says of it.
    """

    name: str
    template: Template
    loaded: LoadedModel
    dtype: torch.dtype
    decoding: Decoding

    def __init__(
        self, loaded: LoadedModel, template: str | Template, *, name: str, decoding: Decoding | None = None
    ) -> None:
        """Raises DataError where the template does not fit the checkpoint's tokenizer."""
        raise NotImplementedError

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        base: str | None = None,
        vision_tower: str | None = None,
        template: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        decoding: Decoding | None = None,
    ) -> Answerer:
        """Any layout that models/from_folder.py reads; dtype auto: fp16 on a GPU, as LLaVA, fp32 on a CPU."""
        raise NotImplementedError

    def answer(
        self,
        questions: Sequence[Question],
        max_new_tokens: int,
        batch_size: int,
        done: Callable[[list[Question], list[str]], None] | None = None,
    ) -> list[str]:
        """Texts in the order of the questions. done: called after each batch with its questions and texts."""
        raise NotImplementedError
