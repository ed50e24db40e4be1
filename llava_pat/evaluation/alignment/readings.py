"""The words that a checkpoint's patches are read with, as vectors of its own language model.

V entries of the object vocabulary, U distinct labels, W pieces of the tokenizer that are words; other letters: see
llava_pat/types.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llava_pat.analysis.vocabulary import Vocabulary
from llava_pat.analysis.word_pieces import find_word_pieces
from llava_pat.data.words import Words, words_for
from llava_pat.evaluation.alignment.material import Material
from llava_pat.evaluation.alignment.models import Subject
from llava_pat.types import DataError

_ROWS = 4096  # ids that are embedded at a time


@dataclass(frozen=True)
class Readings:
    """Word lists and their vectors, on the model's device."""

    words: Words | None  # the object vocabulary; None without regions
    labels: Words | None  # the regions' own labels
    word_vectors: Tensor | None  # [V, D] fp32
    label_vectors: Tensor | None  # [U, D] fp32
    piece_ids: Tensor  # [W] int64, ids of the tokenizer
    piece_words: tuple[str, ...]  # W texts without the space mark
    piece_vectors: Tensor  # [W, D] in the model's dtype
    dropped_pieces: dict[str, int]  # reason -> how many of the tokenizer's pieces are no words
    silent_ids: frozenset[int]  # special tokens and white space: no words of a caption
    same_word: Mapping[int, int] = field(default_factory=dict)  # id of "Dog" -> id of "dog", where that is the piece


@torch.inference_mode()
def read_with(subject: Subject, material: Material) -> Readings:
    """DataError for a word without tokens in this tokenizer, ValueError for a tokenizer without words."""
    tokenizer, model = subject.tokenizer, subject.model
    pieces = find_word_pieces(tokenizer.convert_ids_to_tokens(range(len(tokenizer))), tokenizer.all_special_ids)
    ids = pieces.keep.nonzero().squeeze(-1).to(subject.device)
    if not len(ids):
        raise DataError(f"{subject.folder}: none of its tokenizer's {len(tokenizer)} pieces is a word")
    blank = {i for i, text in enumerate(pieces.words) if not text.strip() or not tokenizer.decode([i]).strip()}
    words = labels = word_vectors = label_vectors = None
    if material.vocabulary is not None and material.regions is not None:
        words = _prepare(material.vocabulary, material, subject, material.vocabulary_path or "the regions' labels")
        labels = _prepare(material.labels, material, subject, "the regions' labels")
        word_vectors = words.vectors(model.embed_words, subject.device)
        label_vectors = labels.vectors(model.embed_words, subject.device)
    return Readings(
        words,
        labels,
        word_vectors,
        label_vectors,
        ids,
        tuple(pieces.words[i] for i in ids.tolist()),
        torch.cat([model.embed_words(part) for part in ids.split(_ROWS)]),
        pieces.dropped,
        frozenset(blank | set(tokenizer.all_special_ids)),
        pieces.same_word,
    )


def _prepare(vocabulary: Vocabulary, material: Material, subject: Subject, where: str) -> Words:
    return words_for(vocabulary, material.regions.values(), subject.tokenizer, f"{subject.folder}: {where}")
