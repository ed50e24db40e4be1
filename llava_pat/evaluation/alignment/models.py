"""Checkpoints under measurement: opened from any layout, named as rows of the report, refused where they do not fit."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava_pat.data.geometry import Geometry, geometry_for
from llava_pat.data.json_files import read_json
from llava_pat.data.templates import Template, get_template
from llava_pat.data.tokenize import check_round_trip, load_tokenizer
from llava_pat.data.yaml_file import read_yaml_file
from llava_pat.models.from_folder import LoadedModel, load_model
from llava_pat.models.source import layout_of
from llava_pat.models.vlm import VisionLanguageModel
from llava_pat.types import DataError

logger = logging.getLogger(__name__)

_ASKED = 16  # words that a language model is known by


@dataclass(frozen=True)
class Subject:
    """A checkpoint, ready to be looked at."""

    row: str
    folder: str
    loaded: LoadedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template
    geometry: Geometry
    device: torch.device

    @property
    def model(self) -> VisionLanguageModel:
        return self.loaded.model

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.llm.parameters()).dtype


def name_rows(folders: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """A distinct name [A-Za-z0-9._+-]+ for each folder: its own, with its parent's in front where two are equal or
    the name is `taken`.

    DataError when a folder is given twice.
    """
    paths = [str(Path(folder).resolve()) if Path(folder).is_dir() else folder for folder in folders]
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise DataError(f"{twice[0]} is given twice; each checkpoint is measured once")
    for depth in range(1, max((path.count("/") for path in paths), default=0) + 2):
        names = [
            re.sub(r"[^A-Za-z0-9._+-]+", "-", "-".join(Path(path).parts[-depth:])).strip("-") or "model"
            for path in paths
        ]
        if len(set(names)) == len(names) and not set(names) & set(taken):
            return names
    return [f"{name}-{number}" for number, name in enumerate(names, start=1)]


def refuse_no_projector(folders: Sequence[str]) -> None:
    """ValueError for a folder that is no checkpoint with a projector, before the first one is loaded."""
    for folder in folders:
        try:
            layout_of(folder)
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"no checkpoint with a projector: {error}") from error


def open_subject(
    row: str,
    folder: str,
    *,
    base: str | None,
    vision_tower: str | None,
    template: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Subject:
    """Loads a checkpoint. ValueError, DataError or OSError, with the folder, for what does not fit together."""
    try:
        loaded = load_model(folder, base=base, vision_tower=vision_tower, dtype=dtype)
    except (ValueError, OSError) as error:
        raise DataError(f"{folder} cannot be loaded: {error}") from error
    tokenizer = load_tokenizer(loaded.tokenizer_source)
    rows = loaded.model.vocab_size
    if len(tokenizer) > rows:
        raise DataError(
            f"{folder}: its tokenizer ({loaded.tokenizer_source}) has {len(tokenizer)} ids and its language model "
            f"{rows} embeddings; take the tokenizer that belongs to the model"
        )
    chosen = get_template(template)
    try:
        check_round_trip(chosen, tokenizer)
    except DataError as error:
        raise DataError(f"{folder}: {error} (--template)") from error
    geometry = geometry_for(loaded.image_aspect_ratio, loaded.image_processor)
    loaded.model.to(device)
    return Subject(row, folder, loaded, tokenizer, chosen, geometry, device)


def objective_of(folder: str) -> str | None:
    """What a run of ours was trained with, from its config.yaml or metrics.json; None where nobody wrote it down.

    Other software leaves files of these names too: what is in them is then its own affair.
    """
    for name, read, key in (("config.yaml", read_yaml_file, "alignment"), ("metrics.json", read_json, "objective")):
        file = Path(folder) / name
        if not file.is_file():
            continue
        try:
            content = read(file)
        except ValueError:
            continue
        if isinstance(content, dict) and isinstance(content.get(key), str):
            return content[key]
    return None


@torch.inference_mode()
def fingerprint(subject: Subject, ids: Tensor, words: Sequence[str], vectors: Tensor) -> str:
    """sha256 of all that the controls depend on: tower, language model, words, geometry, and the projector's kind but
    not its weights.

    Two checkpoints with one fingerprint share their controls. The tower is known by what it makes of made-up pixels,
    the language model by its words (ids [W], vectors [W, D]) and what its layers make of the first of them: fine-tuning
    may leave the words as they were, and the controls' caption loss and IMA are of the layers.
    """
    model = subject.model
    shapes = [(name, tuple(tensor.shape)) for name, tensor in model.projector.state_dict().items()]
    digest = hashlib.sha256(repr([shapes, subject.geometry, list(words)]).encode())
    side = model.image_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    features = model.encode_images(pixels.to(subject.device, subject.dtype))
    text = ids[:_ASKED].unsqueeze(0)
    states = model.forward_hidden(
        text, torch.ones_like(text, dtype=torch.bool), vectors.new_zeros(0, 1, vectors.shape[1])
    )
    for tensor in (features, vectors, states):
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
