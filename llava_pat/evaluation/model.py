"""From questions to answers: a checkpoint of any layout, its template and tokenizer, and one generate loop.

Prompts and answers as in llava/eval/model_vqa*.py of haotian-liu/LLaVA at c121f04: the images in front, each on a line
of its own, answers decoded without special tokens and stripped. Several questions at a time get the answers that each
gets alone, up to ties that rounding decides.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import llava_pat
from llava_pat.data.collate import expand_images
from llava_pat.data.geometry import geometry_for
from llava_pat.data.images import UNREADABLE, open_image, open_pixels, unreadable
from llava_pat.data.templates import Template, get_template
from llava_pat.data.tokenize import check_round_trip, encode_prompt, load_tokenizer
from llava_pat.data.yaml_file import BadYaml, read_yaml_file
from llava_pat.evaluation.hashes import folder_hash
from llava_pat.evaluation.questions import Question
from llava_pat.models.from_folder import LoadedModel, load_model
from llava_pat.models.generate import GREEDY, Decoding, generate
from llava_pat.models.llava_names import model_name, named_conversation
from llava_pat.types import IMAGE_TOKEN, IMAGE_TOKEN_INDEX, DataError, Turn

logger = logging.getLogger(__name__)

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_WINDOW = 8  # batches that are planned together
_READERS = 2  # threads that read images ahead
_TAIL = 16  # new ids that are looked through for an end that is text

Done = Callable[[list[Question], list[str]], None]


def choose_template(folder: str | Path, conv_mode: str | None) -> tuple[str, str]:
    """(template name, why): --conv-mode, else what the run's own config.yaml says, else LLaVA's rule for names."""
    if conv_mode is not None:
        return conv_mode, "--conv-mode"
    run = Path(folder) / "config.yaml"
    if run.is_file():
        try:
            settings = read_yaml_file(run)
        except BadYaml as error:
            raise DataError(f"{run}: {error}; say --conv-mode, or take the file away") from error
        version = settings.get("version") if isinstance(settings, dict) else None
        if version is not None:
            return str(version), f"version in {run}"
    name = model_name(folder)
    return named_conversation(
        name
    ), f"LLaVA's rule for the name {name!r}; say --conv-mode if it was trained with another"


class Answerer:
    """A model that answers questions, with what makes its inputs."""

    def __init__(
        self,
        loaded: LoadedModel,
        template: str | Template,
        *,
        folder: str | Path,
        device: torch.device | str = "cpu",
        decoding: Decoding = GREEDY,
        template_from: str = "given",
    ) -> None:
        """folder: what `loaded` came from; its name is LLaVA's model_id. The model is moved to the device.

        Raises ValueError for a template that there is not, DataError for one that does not fit the tokenizer.
        """
        self.folder, self.loaded, self.decoding, self.template_from = str(folder), loaded, decoding, template_from
        self.name = model_name(folder)
        self.template = get_template(template) if isinstance(template, str) else template
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(loaded.tokenizer_source)
        try:
            check_round_trip(self.template, self.tokenizer)
        except DataError as error:
            raise DataError(f"{folder}: {error} (--conv-mode; this one is from: {template_from})") from error
        self.device = torch.device(device)
        self.model = loaded.model.to(self.device).eval()
        self.dtype = next(self.model.llm.parameters()).dtype
        self.end_ids = self._end_ids()
        self.geometry = geometry_for(loaded.image_aspect_ratio, loaded.image_processor)
        self._encoded: OrderedDict[Path | bytes, Tensor] = OrderedDict()  # the last images, [N, D] each

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
        decoding: Decoding = GREEDY,
    ) -> Answerer:
        """Any layout that models/from_folder.py reads.

        template: see `choose_template`. dtype: fp16, bf16, fp32, or auto: fp16 on a GPU, as LLaVA, and fp32 on a CPU.
        device: by default the GPU if there is one.
        """
        template, reason = choose_template(folder, template)
        logger.info("template %s (%s)", template, reason)
        get_template(template)  # an unknown one should not cost loading the model
        device = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
        if dtype == "auto":
            dtype = "fp32" if device == "cpu" else "fp16"
        loaded = load_model(folder, base=base, vision_tower=vision_tower, dtype=DTYPES[dtype])
        return cls(loaded, template, folder=folder, device=device, decoding=decoding, template_from=reason)

    @torch.inference_mode()
    def answer(
        self, questions: Sequence[Question], max_new_tokens: int, batch_size: int, done: Done | None = None
    ) -> list[str]:
        """Texts in the order of the questions. done: called after each batch with its questions and texts.

        Raises DataError for an image that cannot be read, <image> marks that are not the images, and a prompt that is
        longer than the language model's context.
        """
        if batch_size < 1 or max_new_tokens < 1:
            raise ValueError(f"batch_size {batch_size} and max_new_tokens {max_new_tokens} must be at least 1")
        prompts = [self._prompt(question) for question in questions]
        texts = [""] * len(questions)
        batches = list(_batches(questions, prompts, batch_size))
        with ThreadPoolExecutor(_READERS) as readers:
            coming = self._read_ahead([questions[i] for i in batches[0]], readers, {}) if batches else {}
            for number, batch in enumerate(batches):
                asked, pixels = [questions[i] for i in batch], coming
                if number + 1 < len(batches):
                    coming = self._read_ahead([questions[i] for i in batches[number + 1]], readers, pixels)
                found = self._answer_batch(asked, [prompts[i] for i in batch], pixels, max_new_tokens)
                for i, text in zip(batch, found, strict=True):
                    texts[i] = text
                if done is not None:
                    done(asked, found)
        return texts

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What answers depend on, for the provenance file. Reads all weight files once."""
        parts = {"language_model": self.loaded.tokenizer_source, "vision_tower": self.loaded.vision_tower}
        return {
            "model_id": self.name,
            "checkpoint": {"path": self.folder, "layout": self.loaded.kind, "sha256": folder_hash(self.folder)},
            "parts": {
                part: {"path": source, "sha256": folder_hash(source)}
                for part, source in parts.items()
                if source != self.folder
            },
            "template": self.template.name,
            "template_from": self.template_from,
            "image_aspect_ratio": self.loaded.image_aspect_ratio,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "decoding": dataclasses.asdict(self.decoding),
            "versions": {
                "llava_pat": llava_pat.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "python": sys.version.split()[0],
            },
        }

    # ---- prompts and ends

    def _prompt(self, question: Question) -> list[int]:
        """Ids, with one IMAGE_TOKEN_INDEX an image."""
        said = [*(turn.value for turn in question.history), question.text]
        count = len(question.images)
        marks = sum(text.count(IMAGE_TOKEN) for text in said)
        if not marks:
            said[0] = f"{IMAGE_TOKEN}\n" * count + said[0]
        elif marks != count:
            raise DataError(
                f"{question.where}: question {question.id!r} has {count} images and {marks} {IMAGE_TOKEN} in its text; "
                "leave the marks out, or one an image"
            )
        history = [Turn(turn.role, text) for turn, text in zip(question.history, said, strict=False)]
        ids = encode_prompt(said[-1], self.template, self.tokenizer, history)
        length = len(ids) + count * (self.model.num_patches - 1)
        context = self.model.llm.config.to_dict().get("max_position_embeddings")
        if context is not None and length >= context:
            raise DataError(
                f"{question.where}: question {question.id!r} takes {length} positions ({count} images of "
                f"{self.model.num_patches}), but the language model has {context}; shorten it"
            )
        return ids

    def _end_ids(self) -> list[int]:
        """What ends an answer: the template's control, the tokenizer's eos, what the checkpoint's settings name."""
        ends = [] if self.template.end is None else [self.tokenizer.convert_tokens_to_ids(self.template.end)]
        configured = self.model.llm.generation_config.eos_token_id
        ends += [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        ends += [] if configured is None else [configured] if isinstance(configured, int) else list(configured)
        if not ends:
            raise DataError(f"{self.folder}: no token ends an answer; set eos_token in its tokenizer_config.json")
        return list(dict.fromkeys(ends))

    @property
    def _end_text(self) -> str | None:
        """LLaVA's stop string, where an answer ends with plain text (v0: ###)."""
        return self.template.close if self.template.end is None else None

    def _ended(self, ids: list[int]) -> bool:
        return self._end_text in self.tokenizer.decode(ids[-_TAIL:], skip_special_tokens=True)

    def _text(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return (text if self._end_text is None else text.split(self._end_text)[0]).strip()

    def _seed(self, question: Question) -> int:
        """A question's own: neither batch nor rank nor a resumed run changes what it draws."""
        asked = json.dumps([self.decoding.seed, *question.key])
        return int.from_bytes(hashlib.sha256(asked.encode()).digest()[:6], "big")

    # ---- batches

    def _answer_batch(
        self,
        questions: Sequence[Question],
        prompts: Sequence[list[int]],
        pixels: dict[Path | bytes, Future[Tensor]],
        max_new_tokens: int,
    ) -> list[str]:
        images = list(dict.fromkeys(image for question in questions for image in question.images))
        number = {image: i for i, image in enumerate(images)}
        patches = self.model.num_patches
        ids = generate(
            self.model,
            [expand_images(ids, ids, patches, sys.maxsize, "a prompt")[0] for ids in prompts],
            [[number[image] for image in question.images] for question in questions],
            self._patch_embeds(images, pixels, room=len(questions)),
            max_new_tokens=max_new_tokens,
            end_ids=self.end_ids,
            decoding=self.decoding,
            seeds=[self._seed(question) for question in questions],
            ended=None if self._end_text is None else self._ended,
        )
        return [self._text(row) for row in ids]

    def _patch_embeds(
        self, images: Sequence[Path | bytes], pixels: dict[Path | bytes, Future[Tensor]], room: int
    ) -> Tensor:
        """[I, N, D]; images of the last batches are not encoded again."""
        new = [image for image in images if image not in self._encoded]
        if new:
            square = torch.stack([pixels[image].result() for image in new]).to(self.device, self.dtype)
            patches = self.model.project(self.model.encode_images(square))
            self._encoded.update(zip(new, patches, strict=True))
        for image in images:
            self._encoded.move_to_end(image)
        found = [self._encoded[image] for image in images]
        while len(self._encoded) > max(room, len(images)):
            self._encoded.popitem(last=False)
        if not found:
            return torch.zeros(0, self.model.num_patches, self.model.hidden_size, device=self.device, dtype=self.dtype)
        return torch.stack(found)

    def _read_ahead(
        self, questions: Sequence[Question], readers: ThreadPoolExecutor, known: dict[Path | bytes, Future[Tensor]]
    ) -> dict[Path | bytes, Future[Tensor]]:
        """The batch's images, being read; those of the batch before it are taken over."""
        coming: dict[Path | bytes, Future[Tensor]] = {}
        for question in questions:
            for image in question.images:
                if image not in coming:
                    coming[image] = known[image] if image in known else readers.submit(self._pixels, image, question)
        return coming

    def _pixels(self, image: Path | bytes, question: Question) -> Tensor:
        """[3, S, S]"""
        where = f"{question.where}: question {question.id!r}"
        if isinstance(image, Path):
            with open_image(image, where) as opened:
                try:
                    return self.geometry.pixels(opened)
                except UNREADABLE as error:  # cut short: it opens, and cannot be decoded
                    raise unreadable(image, where, error) from error
        try:
            with open_pixels(io.BytesIO(image)) as opened:
                return self.geometry.pixels(opened)
        except UNREADABLE as error:
            raise DataError(f"{where}: its image ({len(image)} bytes) cannot be read ({error})") from error


def _batches(questions: Sequence[Question], prompts: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Places of the questions that are answered together: few lengths of prompt, and questions on one image, a batch.

    Only within a window of the order they came in, so that answers are written about as they are asked.
    """
    for start in range(0, len(questions), _WINDOW * batch_size):
        window = range(start, min(start + _WINDOW * batch_size, len(questions)))
        first: dict[tuple[Path | bytes, ...], int] = {}
        order = sorted(
            window,
            key=lambda i: (
                prompts[i].count(IMAGE_TOKEN_INDEX),
                first.setdefault(questions[i].images, i),
                len(prompts[i]),
            ),
        )
        for place in range(0, len(order), batch_size):
            yield order[place : place + batch_size]
