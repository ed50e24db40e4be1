"""Labels from the image's own caption: its noun phrases. No model looks at the image; the detector does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llava_pat.annotation.pretrained import Placement
from llava_pat.annotation.stages import Images, Tagger
from llava_pat.annotation.taggers.noun_phrases import MAX_WORDS, find_noun_phrases
from llava_pat.annotation.taggers.spacy_phrases import has_spacy, load_spacy_phrases
from llava_pat.types import DataError


@dataclass(frozen=True)
class CaptionOptions:
    engine: Literal["auto", "rules", "spacy"] = "auto"
    """auto: spaCy where it and its model are installed, else the rules. The regions file says which."""
    spacy_model: str = "en_core_web_sm"
    max_words: int = MAX_WORDS
    """Of a phrase its last ones, the head being the last."""

    def __post_init__(self) -> None:
        if self.engine not in ("auto", "rules", "spacy"):
            raise DataError(f"caption tagger: engine is {self.engine!r}, expected auto, rules or spacy")
        if self.max_words < 1:
            raise DataError(f"caption tagger: max_words is {self.max_words}, expected at least 1")


class CaptionTagger(Tagger):
    """Noun phrases."""

    Options = CaptionOptions

    def __init__(self, options: CaptionOptions, place: Placement) -> None:
        self._max_words = options.max_words
        self._parse, self._engine = None, "rules"
        if options.engine == "spacy" or (options.engine == "auto" and has_spacy(options.spacy_model)):
            self._parse, self._engine = load_spacy_phrases(options.spacy_model, options.max_words)

    def tag(self, images: Images, captions: Sequence[str]) -> list[list[str]]:
        if self._parse is not None:
            return self._parse(captions)
        return [find_noun_phrases(caption, self._max_words) for caption in captions]

    @property
    def version(self) -> str:
        return f"caption ({self._engine})"
