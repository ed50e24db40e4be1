"""Taggers, one file each: which labels an image may have. A new one: a Tagger in a file, and its name here."""

from llava_pat.annotation.stages import Tagger
from llava_pat.annotation.taggers.caption import CaptionTagger
from llava_pat.annotation.taggers.clip import ClipTagger
from llava_pat.annotation.taggers.florence2 import Florence2Tagger
from llava_pat.annotation.taggers.ram import RamTagger

TAGGERS: dict[str, type[Tagger]] = {
    "caption": CaptionTagger,
    "clip": ClipTagger,
    "florence2": Florence2Tagger,
    "ram": RamTagger,
}
