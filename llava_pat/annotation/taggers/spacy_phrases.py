"""Noun phrases of a caption by spaCy's parser: doc.noun_chunks without determiners, pronouns and numbers.

pip install spacy; python -m spacy download en_core_web_sm. Optional: noun_phrases.py needs neither.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

from llava_pat.annotation.pretrained import require_package
from llava_pat.annotation.taggers.noun_phrases import GENERIC
from llava_pat.types import DataError

_DROPPED = ("DET", "PRON", "NUM", "PUNCT", "SPACE", "ADV", "CCONJ", "ADP")


def has_spacy(model: str) -> bool:
    """Whether spaCy and this model of it are installed."""
    return importlib.util.find_spec("spacy") is not None and importlib.util.find_spec(model) is not None


def load_spacy_phrases(model: str, max_words: int) -> tuple[Callable[[Sequence[str]], list[list[str]]], str]:
    """(captions -> their noun phrases, version of spaCy and model). DataError when either is not installed."""
    require_package("spacy", "caption tagger with engine spacy", "pip install spacy")
    import spacy

    try:
        parser = spacy.load(model, disable=["ner"])
    except OSError as error:
        raise DataError(f"spaCy's model {model} is not installed: python -m spacy download {model}") from error

    def find(captions: Sequence[str]) -> list[list[str]]:
        return [_phrases(document, max_words) for document in parser.pipe(captions)]

    return find, f"spacy {spacy.__version__} {model} {parser.meta['version']}"


def _phrases(document: object, max_words: int) -> list[str]:
    found: list[str] = []
    for chunk in document.noun_chunks:
        words = [token.text for token in chunk if token.pos_ not in _DROPPED]
        if words and chunk.root.pos_ not in _DROPPED and words[-1].lower() not in GENERIC:
            found.append(" ".join(words[-max_words:]))
    return list(dict.fromkeys(found))
