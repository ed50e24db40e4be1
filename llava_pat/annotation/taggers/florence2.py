"""Labels by Florence-2: the classes that it detects (<OD>), or the noun phrases of a caption that it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llava_pat.annotation.florence2 import MODEL, Florence2
from llava_pat.annotation.pretrained import Placement
from llava_pat.annotation.stages import Images, Tagger
from llava_pat.annotation.taggers.noun_phrases import find_noun_phrases
from llava_pat.types import DataError

_CAPTIONS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
_OBJECTS = ("<OD>", "<DENSE_REGION_CAPTION>")


@dataclass(frozen=True)
class Florence2TaggerOptions:
    model: str = MODEL
    task: str = "<OD>"
    """<OD> and <DENSE_REGION_CAPTION>: labels of its boxes; <CAPTION>, <DETAILED_CAPTION> and <MORE_DETAILED_CAPTION>:
    noun phrases, by rule."""
    max_new_tokens: int = 1024
    num_beams: int = 3
    """As in the models' generation_config.json."""
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.task not in _CAPTIONS + _OBJECTS:
            raise DataError(f"florence2 tagger: task is {self.task!r}, expected one of {_CAPTIONS + _OBJECTS}")


class Florence2Tagger(Tagger):
    """What Florence-2 sees."""

    Options = Florence2TaggerOptions

    def __init__(self, options: Florence2TaggerOptions, place: Placement) -> None:
        self.options = options
        self._florence = Florence2(options.model, place, options.max_new_tokens, options.num_beams, options.batch_size)

    def tag(self, images: Images, captions: Sequence[str]) -> list[list[str]]:
        answers = self._florence.ask(images, self.options.task)
        if self.options.task in _CAPTIONS:
            return [find_noun_phrases(answer) for answer in answers]
        return [list(dict.fromkeys(answer["labels"])) for answer in answers]

    @property
    def version(self) -> str:
        return f"florence2 {self.options.model} {self.options.task}"
