"""Which of the things that captions name have a region.

A noun is a noun phrase of the captions, found by the caption tagger and cleaned by the label rules: those of the run,
or their defaults. Each counts once an image. It has a region if a region's label, cleaned in the same way, is the same
words; loosely, if one of the two ends in the other ("brown dog" and "dog").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from llava_pat.annotation.config import LabelOptions, build_options
from llava_pat.annotation.pretrained import Placement
from llava_pat.annotation.taggers.caption import CaptionOptions, CaptionTagger

_REMEMBERED = 1 << 16  # labels


class NounFinder:
    """The nouns of an image's captions, and labels as nouns are spelt."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """settings: annotation.yaml's, or nothing. DataError for options that are wrong, or spaCy that is missing."""
        tagger = settings.get("tagger", {})
        own = {key: value for key, value in tagger.items() if key != "kind"} if tagger.get("kind") == "caption" else {}
        self._tagger = CaptionTagger(build_options("tagger caption", CaptionOptions, own), Placement("cpu", "float32"))
        rules = build_options("labels", LabelOptions, settings.get("labels", {})).build()
        self._clean_all = rules.apply_all
        self.clean = lru_cache(_REMEMBERED)(rules.apply)

    @property
    def version(self) -> str:
        return self._tagger.version

    def find(self, captions: Sequence[str]) -> list[list[str]]:
        """The nouns of each, every one once, in their order."""
        return [self._clean_all(phrases) for phrases in self._tagger.tag([], captions)]

    def covered(self, nouns: Sequence[str], labels: Iterable[str]) -> list[bool]:
        """Whether each noun is one of the labels."""
        known = set(map(self.clean, labels))
        return [noun in known for noun in nouns]

    def loosely_covered(self, nouns: Sequence[str], labels: Iterable[str]) -> list[bool]:
        """Whether each noun and one of the labels are the same words, or one ends in the other."""
        known = {tuple(self.clean(label).split()) for label in labels}
        ends = {label[start:] for label in known for start in range(len(label))}
        words = [tuple(noun.split()) for noun in nouns]
        return [mine in ends or any(mine[start:] in known for start in range(1, len(mine))) for mine in words]


@dataclass
class NounCounts:
    """Counters over images; a noun counts once an image."""

    images: int = 0
    nouns: Counter[str] = field(default_factory=Counter)
    """Noun -> images whose captions have it."""
    covered: Counter[str] = field(default_factory=Counter)
    """Noun -> of them, those with a region of it."""
    loosely: int = 0
    """Pairs of a noun and an image with a region of it, loosely."""

    def add(self, nouns: Sequence[str], labels: Sequence[str], finder: NounFinder) -> None:
        """One image."""
        self.images += 1
        self.nouns.update(nouns)
        if labels:
            self.covered.update(
                noun for noun, is_covered in zip(nouns, finder.covered(nouns, labels), strict=True) if is_covered
            )
            self.loosely += sum(finder.loosely_covered(nouns, labels))

    def __add__(self, other: NounCounts) -> NounCounts:
        return NounCounts(
            self.images + other.images,
            self.nouns + other.nouns,
            self.covered + other.covered,
            self.loosely + other.loosely,
        )

    @property
    def total(self) -> int:
        """Pairs of a noun and an image."""
        return self.nouns.total()

    @property
    def without(self) -> Counter[str]:
        """Noun -> images whose captions have it, without a region of it."""
        return self.nouns - self.covered
