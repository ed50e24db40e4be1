"""What can be wrong with a data set: every kind has a name, and one of four consequences.

always    training stops
record    --bad_records decides: error stops, skip leaves the record out
image     --missing decides: error stops, skip leaves the record out, blank puts a grey image in its place
warning   training goes on, and does what the text says
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from llava_pat.data.images import BROKEN, MISSING, TOO_LARGE
from llava_pat.data.records import OnBad

OnMissing = Literal["error", "skip", "blank"]
Consequence = Literal["always", "record", "image", "warning"]


class Kind(NamedTuple):
    consequence: Consequence
    meaning: str


KINDS: dict[str, Kind] = {
    # the file of records
    "bad_json": Kind("always", "no JSON, or cut off"),
    "bad_value": Kind("record", "JSON with a key twice in one object, a number without end or half a character"),
    "no_object": Kind("record", "a record that is no object"),
    "missing_key": Kind("record", "no 'id' or no 'conversations'"),
    "bad_id": Kind("record", "an id that is no string and no number, or longer than 1000 characters"),
    "bad_image_name": Kind("record", "'image' is no name and no list of names"),
    "path_leaves_folder": Kind("record", "an image name that leads out of the folder (absolute, '..', a link)"),
    "empty_conversation": Kind("record", "no messages"),
    "too_much_text": Kind("record", "more than 1,000,000 characters"),
    "bad_message": Kind("record", "a message without 'from' or 'value', or that is no text"),
    "unknown_role": Kind("record", "a message from somebody else than human and gpt"),
    "not_in_turn": Kind("record", "two messages of one side in a row"),
    "empty_answer": Kind("record", "an answer without text"),
    "image_in_answer": Kind("record", "an answer that holds <image>"),
    "unanswered": Kind("record", "a question at the end"),
    "image_count": Kind("record", "not as many <image> as images"),
    "duplicate_id": Kind("warning", "an id that an earlier record has: trained on both"),
    # tokens
    "template": Kind("always", "a conversation that the template cannot hold"),
    "image_cut": Kind("record", "model_max_length leaves no room for an image"),
    "nothing_to_learn": Kind("record", "no answer is left within model_max_length"),
    "too_long": Kind("warning", "longer than model_max_length: its end is cut off"),
    # images
    MISSING: Kind("image", "no such file"),
    BROKEN: Kind("image", "no image, or not a whole one"),
    TOO_LARGE: Kind("image", "more pixels than a picture has (a decompression bomb)"),
    "other_extension": Kind("warning", "not there, but with another extension: that file is taken"),
    "format_differs": Kind("warning", "the extension says another format: harmless, the content counts"),
    "exif_rotated": Kind("warning", "rotated by EXIF, which training does not apply, nor may the regions"),
    "sixteen_bit": Kind("warning", "16-bit grey, clipped at 255: almost white; save it with 8 bits"),
    # regions
    "bad_regions": Kind("always", "a line that is no annotation of an image"),
    "region_twice": Kind("always", "an image on two lines"),
    "empty_label": Kind("always", "a region without a label"),
    "label_without_tokens": Kind("always", "a label that the tokenizer has no tokens for"),
    "region_size": Kind("always", "annotated on an image of another size"),
    "mask_size": Kind("always", "a mask of another size than its image"),
    "bad_mask": Kind("always", "a mask that cannot be read"),
    "mask_empty": Kind("warning", "a mask without a pixel: left out"),
    "mask_full": Kind("warning", "a mask of the whole image: it labels every patch"),
    "no_region_matches": Kind("always", "no image of the regions file is in the records"),
    "region_unused": Kind("warning", "an image that no record has: left out"),
    # everything else that a room has to say, such as labels of patches of other files
    "data": Kind("always", "see the text"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, where it stands."""

    kind: str
    message: str  # complete: names file, record or line, and the way out
    file: str
    line: int  # 1-based; 0 where there is none
    index: int | None = None  # of the record in its file
    id: str | None = None
    image: str | None = None

    def stops(self, bad_records: OnBad, missing: OnMissing) -> bool:
        """Training ends before it begins."""
        consequence = KINDS[self.kind].consequence
        return (
            consequence == "always"
            or (consequence == "record" and bad_records == "error")
            or (consequence == "image" and missing == "error")
        )
