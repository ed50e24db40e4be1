"""What the rooms say to each other: plain dataclasses and constants. Imports nothing of ours.

Shape letters, here and in every other file:

    B  sequences in a batch          T  tokens of a sequence, image patches included
    I  images in a batch             N  patches of an image (row-major, the class token dropped)
    R  regions in a batch            L  tokens of a text (a label, a caption)
    Dv width of the vision tower     D  width of the language model
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing the package must stay cheap; torch is heavy
    from torch import Tensor

IGNORE_INDEX = -100
"""Label of a position that is not supervised (torch's and LLaVA's convention)."""

IMAGE_TOKEN_INDEX = -200
"""Id of an image position in `input_ids`; never embedded (llava/constants.py)."""

IMAGE_TOKEN = "<image>"

_MESSAGE = 4000  # characters of an error


class DataError(ValueError):
    """A file, record or image that cannot be trained on. The message names it and the way out.

    kind: what is wrong in one word, where a check counts such errors (data/check/findings.py).
    A message quotes what it is about, and that may be of any size: the middle of a long one is left out.
    """

    def __init__(self, message: str, kind: str = "data") -> None:
        if len(message) > _MESSAGE:
            message = f"{message[: _MESSAGE // 2]} ... {message[-_MESSAGE // 4 :]}"
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str  # "human" or "gpt", LLaVA's words
    value: str


@dataclass(frozen=True)
class Record:
    """One training example as its JSON holds it, with where it stands."""

    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    file: str
    index: int  # position in the list, or line number - 1 of a JSONL file
    line: int = 0  # 1-based line of the file on which it starts; 0: made, not read

    @property
    def where(self) -> str:
        return f"{self.file}: record {self.index} (id {self.id!r})"


@dataclass(frozen=True)
class Region:
    """A label and the pixels that show it, in COCO's conventions (original pixel coordinates)."""

    label: str
    segmentation: Mapping | list | None  # COCO RLE {"size": [h, w], "counts": ...}, polygons [[x0, y0, ...]], or None
    bbox: tuple[float, float, float, float] | None  # x, y, width, height


@dataclass(frozen=True)
class ImageRegions:
    """One line of a regions file: everything annotated on one image."""

    id: str
    image: str
    width: int
    height: int
    regions: tuple[Region, ...]
    file: str
    line: int  # 1-based

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line} (image {self.image!r})"


@dataclass
class PatchRegions:
    """All regions of a batch, one row each, after the same geometry as the pixels.

    Unlabelled images have no rows; R may be 0. A region that the crop removed entirely is not here
    (the data set counts it). A patch may lie under several regions.
    """

    coverage: Tensor  # [R, N] float32 in [0, 1]: share of the patch under the region's mask
    image: Tensor  # [R] int64: which of the batch's I images
    label_ids: Tensor  # [R, L] int64: the label's tokens, padded with 0
    label_mask: Tensor  # [R, L] bool: which of them are real


@dataclass
class PatchWords:
    """Candidate words of every patch of a batch, best first; from images and a word list (docs/objectives.md, SEA)."""

    words: Tensor  # [I, N, n] int64: rows of `word_ids`; -1 where there is no candidate
    scores: Tensor  # [I, N, n] float32 >= 0, descending; 0 where there is no candidate
    word_ids: Tensor  # [W, L] int64: tokens of the batch's distinct words, padded with 0
    word_mask: Tensor  # [W, L] bool: which of them are real


@dataclass
class AlignmentInputs:
    """What an objective may look at in one step."""

    vision_features: Tensor  # [I, N, Dv], no gradient
    patch_embeds: Tensor  # [I, N, D], carries the projector's gradient
    embed_words: Callable[[Tensor], Tensor]  # ids [..., L] -> vectors [..., L, D]: a call, since ZeRO-3 shards weights
    caption_ids: Tensor  # [I, L] int64: supervised text of the sequence each image belongs to
    caption_mask: Tensor  # [I, L] bool
    regions: PatchRegions | None
    patch_words: PatchWords | None = None
    side: Mapping[str, Tensor] = field(default_factory=dict)  # further side data by name
    step: int = 0
    total_steps: int = 1


@dataclass
class AlignmentLoss:
    """What an objective returns for one micro-batch."""

    total: Tensor  # fp32 scalar: the SUM over items, on the graph even when nothing is annotated
    count: Tensor  # fp32 scalar: how many items were summed
    metrics: Mapping[str, Tensor] = field(default_factory=dict)  # detached sums over the same items; the log divides
    # What `total` is divided by when the data do not tell the count (see AlignmentObjective.count); None: by `count`.
    divisor: Tensor | None = None
    counters: Mapping[str, Tensor] = field(default_factory=dict)  # detached sums that the log shows as they are
